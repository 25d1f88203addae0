# ruff: noqa: RUF001
"""Languages that are written without spaces, or unlike English in another way, pass the rules made for English.

A text of each was written for this file. Public reports of the fault: EleutherAI/dps#4 and #52,
mozilla/translations#742.
"""

import numpy as np
import pytest

from pipeline.corpus.collect.source_rules import RULE_SETS
from pipeline.corpus.filter.rules import FilterConfig, judge, unjudged
from pipeline.corpus.signals.language import DETECTED
from pipeline.corpus.signals.stage import signals_of

TEXTS = {
    "zh": (
        "老船夫每天黎明划着小船过河，把对岸的学生送到学校。\n他从不收钱，只在中秋节接受一盒月饼和几个柚子。\n"
        "去年夏天，上游修了一座石桥，许多人劝他休息。\n他笑着说：“桥不会讲故事，也不会等迟到的孩子！”\n"
        "傍晚，河面上升起薄雾，他点亮船头的红灯笼。\n远处传来狗叫声和炒菜的香味，燕子贴着水面飞回屋檐。\n"
    ),
    "ja": (
        "山のふもとの小さな郵便局は、朝の八時に古い木の戸を開けます。\n局長の田中さんは、手紙の字を見るだけで差出人がわかるそうです。\n"
        "雪の深い冬には、スキーをはいて峠の向こうの村まで小包を届けます。\n子どもたちは、切手に描かれた鳥の名前を教えてもらうのが大好きです。\n"
        "ある日、三十年前に出された絵葉書が、海を渡ってようやく届きました。\n"
    ),
    "th": (
        "ช่างทำรองเท้าคนสุดท้ายของตลาดเก่านั่งทำงานอยู่ใต้บันไดไม้มาตั้งแต่ยังหนุ่ม\n"
        "ลูกค้าส่วนใหญ่เป็นครูกับพยาบาลซึ่งเดินไกลทุกวันและไม่อยากทิ้งของที่ยังซ่อมได้\n"
        "เมื่อฝนตกน้ำจะท่วมทางเดินแคบแต่เขาก็ยังเปิดร้านและต้มกาแฟแบ่งคนที่มาหลบฝน\n"
        "หลานชายช่วยเขียนป้ายราคาใหม่ด้วยสีฟ้าแล้วแขวนไว้ข้างนาฬิกาที่เดินช้าไปห้านาที\n"
    ),
    "lo": (
        "ຊາວປະມົງອອກເຮືອແຕ່ເຊົ້າມືດເພື່ອວາງມອງໃນແມ່ນ້ຳຂອງ\nເມຍຂອງລາວຕື່ນມາຕົ້ມເຂົ້າໜຽວແລະປີ້ງປາໃຫ້ລູກກິນກ່ອນໄປໂຮງຮຽນ\n"
        "ຕອນບ່າຍຜູ້ເຖົ້ານັ່ງສານກະຕ່າຢູ່ກ້ອງຕົ້ນມ່ວງແລະເລົ່ານິທານເກົ່າ\n"
    ),
    "km": (
        "អ្នកតម្បាញសូត្រនៅភូមិមាត់ទន្លេចាប់ផ្តើមធ្វើការពេលព្រះអាទិត្យរះ។\nកូនស្រីរបស់គាត់ជួយជ្រលក់ពណ៌ក្រហមនិងខៀវពីសំបកឈើ។\n"
        "ភ្ញៀវមកពីទីក្រុងទិញក្រមានិងស្តាប់រឿងអំពីស្តេចដែលជិះដំរីស។\n"
    ),
    "my": (
        "ထီးလုပ်သမားအဘိုးကြီးသည် ဝါးကိုပါးပါးလွှာ၍ စက္ကူပေါ်တွင် ပန်းပုံများဆွဲသည်။\nမိုးရာသီတွင် ကျောင်းသားများက သူ့ဆိုင်ရှေ့၌ ခိုနားကြသည်။\n"
        "သူ့မြေးမလေးက ထီးအဟောင်းများကို ပြင်ရန် စာရင်းရေးမှတ်ပေးသည်။\n"
    ),
    "ko": (
        "섬마을 도서관은 배가 들어오는 날에만 문을 연다. 사서 할머니는 젖은 우산을 털고 난로에 불을 지핀다. "
        "아이들은 고래 그림책을 서로 먼저 읽겠다고 다툰다. 창밖에는 갈매기가 날고 멀리 등대가 보인다. "
        "폭풍이 불던 밤, 선장은 시집 한 권을 빌려 갔다가 삼 년 만에 돌려주었다. 책갈피에는 들꽃이 있었다. "
        "할머니는 연체료 대신 바다 이야기를 해 달라고 했다. 그날 저녁 온 마을이 모여 늦도록 귀를 기울였다. "
        "다음 배에는 책이 왔다."
    ),
    "vi": (
        "Bà cụ bán chè ở đầu ngõ dọn hàng từ lúc trời còn tối. Bà có ba cái ghế gỗ và một cái ô xanh to. "
        "Trẻ con đi học về hay ghé vào ăn chè đỗ đen, kể cho bà nghe đủ thứ chuyện ở lớp. "
        "Hôm nào mưa to, bà vẫn ngồi đó, che ô cho cả con mèo già. Bà bảo rằng ai đói thì cứ ăn, mai trả cũng kịp."
    ),
}  # fmt: skip
FEW_WORDS = 20  # the texts of some languages are shorter than Gopher's 50 words


def reason_of(text: str, cfg: FilterConfig) -> str | None:
    measured = {name: [value] for name, value in signals_of(text).items() if name != "edits"}
    columns = {name: np.array(values, float if values == [None] else None) for name, values in measured.items()}
    return judge(columns, cfg, cfg.languages, cfg.rules)[0][0]


@pytest.mark.parametrize("sets", [("gopher_quality", "gopher_repetition"), RULE_SETS], ids=["default", "all"])
@pytest.mark.parametrize("language", TEXTS)
def test_prose_in_a_language_unlike_english_is_kept_when_its_language_is_asked_for(language, sets):
    """What is between two spaces was taken for a word, so that every text in Chinese or Thai was dropped, with
    too_few_words or mean_word_length as the reason."""
    config = FilterConfig(languages=(language,), rules=sets, min_words=FEW_WORDS, min_sentences=2)
    assert reason_of(TEXTS[language], config) is None


@pytest.mark.parametrize(("language", "least"), [("zh", 60), ("ja", 80), ("th", 60)])
def test_words_without_spaces_are_estimated_by_the_characters_of_their_script(language, least):
    text = TEXTS[language]
    signals = signals_of(text)
    assert least < signals["n_words"] < len(text) / 1.5
    assert signals["mean_word_length"] is None  # an estimate has no length that could be judged
    assert reason_of(text[:50], FilterConfig(languages=(language,))) == "too_few_words"


def test_words_of_korean_are_as_long_as_their_letters():
    assert signals_of("방앗간은 문을")["mean_word_length"] == (12 + 6) / 2


@pytest.mark.parametrize("language", ["zh", "th"])
def test_repetition_without_spaces_is_still_found(language):
    line = TEXTS[language].splitlines()[0]
    text = TEXTS[language] + "".join(f"{line[:30]}{i}" for i in range(30))
    assert reason_of(text, FilterConfig(languages=(language,))) in {"top_3_gram", "top_4_gram"}
    assert reason_of(TEXTS[language] * 3, FilterConfig(languages=(language,))) == "duplicate_lines"


def test_long_line_without_spaces_is_no_overlong_word_for_c4():
    """C4 removes lines with a word of more than 1,000 characters; a paragraph of Chinese looked like one."""
    paragraph = "".join(chr(0x4E00 + i % 3000) for i in range(1200)) + "。"
    assert "c4_line" not in {kind for _, _, kind in signals_of(paragraph)["edits"]}


def test_rules_that_cannot_judge_a_language_are_listed():
    config = FilterConfig(rules=RULE_SETS)
    gaps = unjudged(config, config.rules, ["en", "th", "zh"])
    assert gaps == {
        "mean_word_length": ["th", "zh"],
        "few_stop_words": ["th", "zh"],
        "c4_few_sentences": ["th"],
        "fineweb_terminal_lines": ["th"],
    }
    assert unjudged(config, config.rules, ["en"]) == {}


@pytest.mark.parametrize(("code", "instead"), [("nb", "no"), ("zh-CN", "zh"), ("jp", "ja"), ("EN", "en")])
def test_language_that_is_never_detected_is_refused_with_the_code_that_is(code, instead):
    """With such a code every document was dropped as wrong_language, without a word."""
    with pytest.raises(ValueError, match=f"languages contains '{code}'.*did you mean '{instead}'"):
        FilterConfig(languages=(code,))


def test_detected_languages_are_those_of_the_model():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    assert frozenset(LanguageIdentifier.from_model_file(MODEL_FILE).labels) == DETECTED
