"""A tokenizer.json that somebody else made: every part that is unknown, wrong or too large is refused in one line."""

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from model.data.byte_alphabet import CHARACTERS
from model.data.tokenizer import DESCRIPTION_FILE, load_tokenizer
from model.data.tokenizer_json import DIGITS_FIRST, PATTERNS, SPLITS, pattern_of
from model.data.tokenizer_tiktoken import TiktokenEngine
from model.hf.tokenizer_import import import_tokenizer

BYTES = {character: i for i, character in enumerate(CHARACTERS.values())}
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
END = {"id": 258, "content": "<end>", "special": True, **FLAGS}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True, "trim_offsets": True}
SOUND = {
    "truncation": None,
    "padding": None,
    "added_tokens": [END],
    "normalizer": None,
    "pre_tokenizer": BYTE_LEVEL,
    "post_processor": None,
    "decoder": None,
    "model": {"type": "BPE", "vocab": {**BYTES, "ab": 256, "abc": 257}, "merges": [["a", "b"], ["ab", "c"]]},
}
EXPLODING = r"(a+)+$"
CUT = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}


def split(pattern: dict) -> dict:
    return {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": pattern, "behavior": "Isolated"}]}


def replace(pattern: dict, content: str = "x") -> dict:
    return {"type": "Replace", "pattern": pattern, "content": content}


def precompiled(content: bytes) -> dict:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(content).decode()}


def model(**changes) -> dict:
    return {"model": {**SOUND["model"], **changes}}


def added(**changes) -> dict:
    return {"added_tokens": [END | changes]}


def imported(folder, content, vocab_size=300):
    source = folder / "source"
    source.mkdir(exist_ok=True)
    (source / "tokenizer.json").write_text(content if isinstance(content, str) else json.dumps(content))
    (source / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    return import_tokenizer(source, folder / "out", vocab_size)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre_tokenizer": split({"Regex": EXPLODING})}, r"the regular expression '\(a\+\)\+\$' is not one of those"),
        ({"pre_tokenizer": split({"Regex": ".{1,99999}{1,99999}"})}, "is not one of those that we run"),
        ({"normalizer": replace({"Regex": EXPLODING})}, "is not one of those that we run"),
        (
            {"normalizer": {"type": "Sequence", "normalizers": [replace({"Regex": "x*"})]}},
            "is not one of those that we run",
        ),
        ({"normalizer": replace({"String": "a"}, "a" * 1000)}, "replaces .* by a longer text, 'aaaa"),
        ({"normalizer": replace({"String": ""})}, "replaces an empty text"),
        ({"normalizer": {"type": "Prepend", "prepend": "a" * 10**6}}, "prepends 1,000,000 characters"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTE_LEVEL] * 9}}, "9 steps, 9 of them of bytes"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 99}}, "99 steps"),
        ({"normalizer": precompiled(b"")}, r"cannot run this tokenizer .*precompiled_charsmap"),
        ({"normalizer": {"type": "Python"}}, "normalizer 'Python', expected NFC"),
        ({"pre_tokenizer": {"type": "Custom"}}, "pre-tokenizer 'Custom', expected"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": 3}}, "a part is missing or of another type"),
        ({"model": {"type": "WordLevel", "vocab": {"a": 0}}}, "model type 'WordLevel', expected BPE"),
        ({"model": []}, "expected an object with an object `model`"),
        (model(vocab={}), "1 tokens|the vocabulary|expected 1 to"),
        (model(vocab=7), "a part is missing or of another type"),
        (model(vocab={**BYTES, "ab": 256, "abc": 256}), "have the same id 256"),
        (model(vocab={**BYTES, "ab": 10**9, "abc": 257}), "has the id 1000000000, expected 0 to"),
        (model(vocab={**BYTES, "ab": -1, "abc": 257}), "has the id -1"),
        (model(vocab={**BYTES, "ab": "256", "abc": 257}), "has the id '256'"),
        (model(vocab={**BYTES, "ab": True, "abc": 257}), "has the id True"),
        (model(vocab={**BYTES, "ab": 256, "abc": 257, "a" * 20_001: 259}), "a token of 20,001 characters"),
        (model(merges=[["a", "b"], ["ab", "d"]]), "merge 2 is .*, expected two tokens that make a third one"),
        (model(merges=[["ab", "ab"]]), "merge 1 is"),
        (model(merges=["a b c"]), "merge 1 is"),
        (model(merges=["ab"]), "merge 1 is"),
        (model(merges=None), "a part is missing or of another type"),
        (model(dropout=0.1), "dropout of merges is on"),
        (model(end_of_word_suffix="</w>"), "with a prefix or suffix of words are not supported"),
        (added(id=300), "has an id 300, but the model only 300 ids"),
        (added(id=257), "'abc' and '<end>' have the same id 257|'<end>' and 'abc' have the same id 257"),
        (added(content="ab"), "the added token 'ab' has the id 258, but 256 elsewhere"),
        (added(content=""), "an added token without text"),
        ({"added_tokens": [{"id": 258}]}, "a part is missing or of another type"),
        (
            {"post_processor": {"type": "Python"}},
            r"post-processor is not one that we know \('Python', expected Template",
        ),
        (
            {"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x"}}]}},
            "post-processor",
        ),
        *(
            ({"post_processor": broken}, "a part is missing or of another type|post-processor")
            for broken in (
                "x",
                5,
                [],
                {"cls": 1},
                {"type": "Sequence"},
                {"type": "Sequence", "processors": 5},
                {"type": "RobertaProcessing"},
                {"type": "RobertaProcessing", "cls": [], "sep": ["<end>", 258]},
                {"type": "BertProcessing", "cls": ["<end>"], "sep": 6},
                {"type": "TemplateProcessing", "single": 5},
                {"type": "TemplateProcessing", "single": [{"SpecialToken": 5}], "special_tokens": {}},
            )
        ),
        ({"model": {"type": "Unigram", "vocab": [["a", float("nan")]], "unk_id": 0}}, "no finite number|NaN"),
        ({"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 5}}, "unk_id is 5"),
        ({"model": {"type": "Unigram", "vocab": [["a", 0.0], ["a", 0.0]], "unk_id": 0}}, "in the vocabulary twice"),
    ],
)
def test_tokenizer_json_with_a_bad_part_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        imported(tmp_path, {**SOUND, **changes})
    assert "tokenizer.json" in str(caught.value) and len(str(caught.value)) < 1200
    assert not (tmp_path / "out" / DESCRIPTION_FILE).exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000, "\x00", '{"model": 4}', "null"])
def test_tokenizer_json_that_is_none_is_refused(tmp_path, text):
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer in the format"):
        imported(tmp_path, text)


def test_tokenizer_json_of_an_absurd_size_is_refused_before_it_is_read(tmp_path):
    imported(tmp_path, SOUND)
    with (tmp_path / "source" / "tokenizer.json").open("r+b") as file:
        file.truncate(300 << 20)
    with pytest.raises(ValueError, match="314,572,800 bytes, expected at most"):
        import_tokenizer(tmp_path / "source", tmp_path / "again", 300)


def test_tokenizer_json_whose_table_of_characters_is_broken_is_refused_when_it_is_used(tmp_path):
    """The library panics, with an exception that is no Exception."""
    tokenizer = imported(tmp_path, {**SOUND, "normalizer": precompiled(b"\x10\0\0\0" + b"\1" * 40)})
    with pytest.raises(ValueError, match=r"cannot run this tokenizer .*index out of bounds"):
        tokenizer.encode("h\u00e9llo")


def test_tokenizer_json_with_truncation_on_cuts_nothing(tmp_path):
    """`tokenizers` would give four ids of any text; the file of all-MiniLM-L6-v2 has such a section."""
    content = {**SOUND, "truncation": CUT, "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_id": 0}}
    assert imported(tmp_path, content).encode("abc" * 50) == [257] * 50


def test_tokenizer_json_with_gaps_keeps_its_ids_and_decodes_them_as_unknown(tmp_path):
    content = {**SOUND, **model(vocab={**BYTES, "ab": 280, "abc": 290})}
    tokenizer = imported(tmp_path, content)
    assert tokenizer.encode("abcab") == [290, 280]
    assert tokenizer.decode([290, 270, 280]) == "abc\ufffdab" and tokenizer.vocab_size == 300


def test_tokenizer_json_added_token_outside_the_next_id_keeps_its_own(tmp_path):
    """`tokenizers` gives an added token that is in no vocabulary the next free id."""
    word = {"type": "WordPiece", "vocab": {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3}, "unk_token": "[UNK]"}
    word |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    own = {"id": 77, "content": "<tag>", "special": False, **FLAGS}
    content = {**SOUND, "pre_tokenizer": {"type": "BertPreTokenizer"}, "model": word, "added_tokens": [own]}
    assert imported(tmp_path, content).encode("a<tag>a") == [3, 77, 3]


def test_tokenizer_json_merges_in_another_order_than_the_ids_run_in_tokenizers(tmp_path):
    """tiktoken would merge by the order of ids, which gives other ids here."""
    vocabulary = {**BYTES, "bc": 256, "ab": 257}
    merges = [["a", "b"], ["b", "c"]]
    tokenizer = imported(tmp_path, {**SOUND, **model(vocab=vocabulary, merges=merges)})
    assert not isinstance(tokenizer.engine, TiktokenEngine)
    assert tokenizer.encode("abc") == [257, BYTES["c"]]


@pytest.mark.parametrize("name", ["abcab", "ab"])
def test_tokenizer_json_second_way_to_a_token_does_not_change_ids(tmp_path, name):
    """Two merges make the token `abcd`, of which only one can ever happen."""
    vocabulary = {**BYTES, "ab": 256, "cd": 257, "abcd": 259, "bcd": 260, name + "x": 261}
    merges = [["a", "b"], ["c", "d"], ["ab", "cd"], ["a", "bcd"], ["b", "cd"]]
    content = {**SOUND, **model(vocab=vocabulary, merges=merges)}
    tokenizer, theirs = imported(tmp_path, content), Tokenizer.from_str(json.dumps(content))
    assert isinstance(tokenizer.engine, TiktokenEngine)
    for text in ("abcd", "bcd", "abcdabcd bcd abx", "xabcabx"):
        assert tokenizer.encode(text) == theirs.encode(text, add_special_tokens=False).ids


@given(st.lists(st.text("abc", min_size=2, max_size=4), unique=True, max_size=8), st.data())
@settings(max_examples=50, deadline=None)
def test_tokenizer_json_of_any_merges_gives_the_ids_of_tokenizers(tmp_path_factory, tokens, data):
    vocabulary = dict(BYTES)
    for token in tokens:
        vocabulary[token] = len(vocabulary) + 3
    pairs = [(t[:i], t[i:]) for t in tokens for i in range(1, len(t)) if t[:i] in vocabulary and t[i:] in vocabulary]
    merges = data.draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    ignores = data.draw(st.booleans())
    content = {**SOUND, **model(vocab=vocabulary, merges=merges, ignore_merges=ignores)}
    content["added_tokens"] = [END | {"id": 299}]
    ours, theirs = imported(tmp_path_factory.mktemp("any"), content), Tokenizer.from_str(json.dumps(content))
    for text in data.draw(st.lists(st.text("abc ", max_size=14), max_size=8)):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids


@given(st.text(st.characters(exclude_categories=("Cs", "Cn"))) | st.text("a' \n\r\tsSlL12\u0301\u3000|<\u00b2\u2167"))
@settings(max_examples=200, deadline=None)
def test_patterns_split_as_the_steps_in_the_files_do(text):
    import regex

    engine = Tokenizer(models.BPE())
    for pattern, name in SPLITS.items():
        engine.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
        assert regex.findall(PATTERNS[name], text) == [
            part for part, _ in engine.pre_tokenizer.pre_tokenize_str(text)
        ]
    digits = pre_tokenizers.Digits(individual_digits=True)
    gpt2 = pre_tokenizers.Split(Regex(PATTERNS["gpt-2"]), "isolated")
    parts = [part for part, _ in pre_tokenizers.Sequence([digits, gpt2]).pre_tokenize_str(text)]
    assert regex.findall(PATTERNS[DIGITS_FIRST], text) == parts


def test_patterns_are_recognised_by_all_steps_and_not_by_one(tmp_path):
    assert pattern_of(SOUND) == "gpt-2"
    for change in ({"add_prefix_space": True}, {"use_regex": False}, {"type": "Whitespace"}):
        assert pattern_of({**SOUND, "pre_tokenizer": BYTE_LEVEL | change}) is None
    digits = {"type": "Digits", "individual_digits": False}
    assert pattern_of({**SOUND, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, BYTE_LEVEL]}}) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engine": "exec"}, "a part is missing"),
        ({"stops": [300]}, "an id is outside the vocabulary"),
        ({"opening": "x"}, "a part is missing"),
        ({"special_tokens": {"boss": 1}}, "a part is missing"),
        ({"vocab_size": 100}, "an id is outside the vocabulary"),
        ({"vocab_size": 259, "stops": []}, None),
        ({"vocab_size": None}, "a part is missing"),
        ({"tokenizer_json_sha256": "0"}, "does not describe tokenizer.json beside it"),
    ],
)
def test_description_of_an_imported_tokenizer_is_checked(tmp_path, change, message):
    imported(tmp_path, SOUND)
    path = tmp_path / "out" / DESCRIPTION_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    if message is None:
        assert load_tokenizer(path.parent).vocab_size == 259
        return
    with pytest.raises(ValueError, match=message):
        load_tokenizer(path.parent)
