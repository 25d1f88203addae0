"""Rows of questions and texts: as `tokenizers` pairs them, windows, and characters at every border."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, processors

from model.data.questions import encoded_questions, pair_layout
from model.hf.tokenizer_import import import_tokenizer
from tests.model.hf.tokenizers_of_others import BERT_ROLES, GPT_ROLES, bert, byte_pairs, mixed_texts, real_documents

QUESTION = "Who grinds the 12 tons?"
TEXT = "The mill, in 1999, grinds 12 tons. It's a caf\u00e9 now; we'll see. " * 3
ROBERTA_ROLES = GPT_ROLES | {"cls_token": "<|im_start|>", "sep_token": "<|im_end|>"}


def roberta() -> Tokenizer:
    tokenizer = byte_pairs(None)
    sep, cls = ((token, tokenizer.token_to_id(token)) for token in ("<|im_end|>", "<|im_start|>"))
    tokenizer.post_processor = processors.RobertaProcessing(sep, cls, trim_offsets=True, add_prefix_space=False)
    return tokenizer


@pytest.fixture(scope="module", params=["bert", "roberta", "gpt2"])
def both(request, tmp_path_factory):
    """Its name, our tokenizer, and that of `tokenizers` for the same file."""
    folder = tmp_path_factory.mktemp(request.param)
    made, roles = {
        "bert": (bert, BERT_ROLES),
        "roberta": (roberta, ROBERTA_ROLES),
        "gpt2": (lambda: byte_pairs(None), GPT_ROLES),
    }[request.param]
    theirs = made()
    theirs.no_truncation()
    theirs.no_padding()
    theirs.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(roles))
    return request.param, import_tokenizer(folder, folder / "out", vocab_size=1200), theirs


def encode(tokenizer, questions, texts, answers=None, max_tokens=500):
    ids = [str(number) for number in range(len(questions))]
    return encoded_questions(ids, questions, texts, tokenizer, max_tokens=max_tokens, answers=answers)


def test_rows_of_encoders_are_the_pairs_of_tokenizers(both):
    name, ours, theirs = both
    if name == "gpt2":
        return
    encoded = encode(ours, [QUESTION], [TEXT])
    pair = theirs.encode(QUESTION, TEXT)
    assert encoded.tokens[0].tolist() == pair.ids
    is_text = np.array([part == 1 for part in pair.sequence_ids])
    assert encoded.token_targets["allowed_BT"][0].tolist() == (is_text | (np.arange(len(is_text)) == 0)).tolist()
    if name == "bert":
        assert encoded.token_targets["types_BT"][0].tolist() == pair.type_ids


def test_windows_of_encoders_are_those_of_tokenizers_with_a_stride(both):
    name, ours, theirs = both
    if name == "gpt2":
        return
    texts = [*mixed_texts(8, 3), *real_documents(2)]
    encoded = encode(ours, [QUESTION] * len(texts), texts, max_tokens=60)
    theirs.enable_truncation(60, stride=15, strategy="only_second")
    expected = [(i, one.ids) for i, text in enumerate(texts) for one in _windows(theirs.encode(QUESTION, text))]
    theirs.no_truncation()
    assert [(int(i), t.tolist()) for i, t in zip(encoded.questions, encoded.tokens, strict=True)] == expected
    assert len(expected) > 2 * len(texts)


def _windows(encoding):
    return [encoding, *encoding.overflowing]


def test_row_of_another_tokenizer_ends_with_no_answer(both):
    name, ours, _ = both
    encoded = encode(ours, [QUESTION], [TEXT])
    tokens, allowed = encoded.tokens[0], encoded.token_targets["allowed_BT"][0]
    assert allowed[encoded.nulls[0]]
    if name == "gpt2":
        assert encoded.nulls[0] == len(tokens) - 1 and tokens[-1] == ours.end_of_text
        assert ours.decode(tokens[len(ours.opening) : -1]) == f"{QUESTION}\n{TEXT}"
    else:
        assert encoded.nulls[0] == 0


@pytest.mark.parametrize("max_tokens", [500, 60, 40])
def test_every_answer_comes_back_as_its_characters_from_each_window_that_holds_it(both, max_tokens):
    """Answers are widened to whole pieces, never narrowed; windows without the whole answer point at no answer."""
    _, ours, _ = both
    starts = [0, 4, TEXT.index("1999"), TEXT.rindex("caf\u00e9"), TEXT.rindex("12 tons"), len(TEXT) - len("see. ")]
    words = ["The", "mill, in", "1999", "caf\u00e9", "12 tons", "see."]
    answers = [[(start, word)] for start, word in zip(starts, words, strict=True)]
    encoded = encode(ours, [QUESTION] * len(words), [TEXT] * len(words), answers, max_tokens)
    found = set()
    targets = zip(encoded.targets["starts_B"].tolist(), encoded.targets["ends_B"].tolist(), strict=True)
    for row, (start, end) in enumerate(targets):
        question = int(encoded.questions[row])
        assert encoded.token_targets["allowed_BT"][row][[start, end]].all()
        if start == encoded.nulls[row]:
            assert end == start
            continue
        first, last = encoded.span(row, start, end)
        at, text = answers[question][0]
        assert TEXT[at : at + len(text)] in TEXT[first:last] and len(TEXT[first:last]) <= len(text) + 1
        found.add(question)
    assert found == set(range(len(words)))


def test_question_of_two_windows_is_cut_and_counted_and_leaves_half_of_a_window(both):
    _, ours, _ = both
    encoded = encode(ours, [QUESTION * 40, QUESTION], [TEXT] * 2, max_tokens=48)
    assert encoded.n_cut == 1
    assert max(map(len, encoded.tokens)) <= 48
    around = pair_layout(ours).n_around
    n_text = encoded.token_targets["allowed_BT"][0].sum() - 1
    assert n_text >= (48 - around) // 2
    (of_text,) = ours.encode_offsets([TEXT])
    assert encoded.shifts[0] + n_text < len(encoded.tokens[0]) and len(of_text) > n_text


def test_empty_question_and_empty_text_are_rows_too(both):
    _, ours, _ = both
    encoded = encode(ours, ["", QUESTION, ""], [TEXT, "", ""], [[], [], []])
    assert encoded.questions.tolist() == [0, 1, 2]
    assert encoded.targets["starts_B"].tolist() == encoded.nulls.tolist() == encoded.targets["ends_B"].tolist()
    assert [int(allowed.sum()) for allowed in encoded.token_targets["allowed_BT"]][1:] == [1, 1]


def test_window_without_room_is_refused(both):
    _, ours, _ = both
    with pytest.raises(ValueError, match="max_tokens=4 leaves no room for a question and a text"):
        encode(ours, [QUESTION], [TEXT], max_tokens=4)
