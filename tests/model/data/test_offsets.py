"""Offsets of tokens: characters of exactly the given text, whatever the tokenizer does to it."""

import json
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from model.data.tokenizer import load_tokenizer
from model.data.tokenizer_tiktoken import TiktokenEngine
from model.data.vocabularies import TRAINED_PATTERNS
from model.hf.tokenizer_import import import_tokenizer
from pipeline.corpus.tokens.tokenizer import train_ranks
from pipeline.corpus.tokens.tokenizer_files import write_tokenizer
from tests.model.hf.tokenizers_of_others import OTHERS, mixed_texts, save

TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cn"))) | st.text(
    "a' \n\r\tsL12\u0301\u3000\u1100\u1161<>\x04"
)
HARD = "Cafe\u0301 \U0001f469\u200d\U0001f469\u200d\U0001f467 \u4e2d\u6587, stra\u00dfe  \ufb01 a\u0308\u0323b\n\n"


@pytest.fixture(scope="module", params=OTHERS)
def both(request, tmp_path_factory):
    """Its name, our tokenizer, and that of `tokenizers` for the same file, which removes no white space."""
    folder = tmp_path_factory.mktemp(request.param)
    source = save(request.param, folder / "source")
    content = json.loads((source / "tokenizer.json").read_text("utf-8"))
    theirs = Tokenizer.from_str(json.dumps({**content, "post_processor": None, "truncation": None, "padding": None}))
    return request.param, import_tokenizer(source, folder / "out", vocab_size=1200), theirs


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    piece = text[start:end]
    if not piece.strip():
        return start, end
    return end - len(piece.lstrip()), start + len(piece.rstrip())


@given(text=TEXTS)
@example(text=HARD)
@example(text="")
@settings(max_examples=60, deadline=None)
def test_offsets_are_those_of_tokenizers_without_outer_white_space(both, text):
    """Where the library composes characters it names the first of those that were composed, ours are all of them;
    after a byte that is not in a vocabulary its offsets lag behind."""
    name, ours, theirs = both
    (pieces,) = ours.encode_offsets([text])
    assert pieces.ids.tolist() == ours.encode(text)
    found = list(zip(pieces.starts.tolist(), pieces.ends.tolist(), strict=True))
    encoding = theirs.encode(text, add_special_tokens=False)
    expected = [trimmed(text, *offsets) for offsets in encoding.offsets]
    if encoding.ids != pieces.ids.tolist() or (
        name == "smollm" and b"".join(map(ours.tokens.__getitem__, encoding.ids)) != text.encode()
    ):
        return  # special tokens that are spelled out in a text are text in ours
    if name == "qwen2" and unicodedata.normalize("NFC", text) != text:
        assert all(a <= c < d <= b for (a, b), (c, d) in zip(found, expected, strict=True))
    else:
        assert found == expected


@given(text=TEXTS)
@example(text=HARD)
@settings(max_examples=40, deadline=None)
def test_offsets_of_byte_level_tokens_hold_their_bytes(both, text):
    _, ours, _ = both
    if not isinstance(ours.engine, TiktokenEngine):
        return
    (pieces,) = ours.encode_offsets([text])
    for token, start, end in zip(pieces.ids, pieces.starts, pieces.ends, strict=True):
        covered = unicodedata.normalize("NFC", text[start:end]) if both[0] == "qwen2" else text[start:end]
        assert ours.tokens[token].decode("utf-8", "ignore").strip() in covered
        assert not covered[:1].isspace() or not covered.strip()


def test_offsets_are_in_order_and_inside_the_text(both):
    texts = [HARD, *mixed_texts(30, 5)]
    for text, pieces in zip(texts, both[1].encode_offsets(texts), strict=True):
        assert (pieces.starts <= pieces.ends).all() and (pieces.ends <= len(text)).all()
        assert (pieces.starts[1:] >= pieces.starts[:-1]).all() and (pieces.ends[1:] >= pieces.ends[:-1]).all()


def test_offsets_of_our_own_tokenizer_are_characters(tmp_path):
    ranks = train_ranks(["the mill grinds the corn " * 50], 280, TRAINED_PATTERNS["qwen2"])
    write_tokenizer(tmp_path, ranks, "qwen2")
    text = "the \U0001f469 \u4e2d e\u0301  mill"
    pieces = load_tokenizer(tmp_path).encode_offsets([text, ""])
    assert len(pieces[1]) == 0
    covered = [text[start:end] for start, end in zip(pieces[0].starts, pieces[0].ends, strict=True)]
    assert covered == [
        "the",
        " ",
        *["\U0001f469"] * 4,
        " ",
        *["\u4e2d"] * 3,
        " ",
        "e",
        "\u0301",
        "\u0301",
        " ",
        "mill",
    ]


def test_offsets_of_word_pieces_are_of_the_text_as_it_was_given(both):
    """Lower-casing, accents that are stripped and words without pieces change no offset."""
    name, ours, _ = both
    if name != "bert":
        return
    text = "\u00c9T\u00c9 return \u2603\u2603 caf\u00e9S"
    (pieces,) = ours.encode_offsets([text])
    words = {(0, 3): "\u00c9T\u00c9", (4, 10): "return", (11, 13): "\u2603\u2603", (14, 19): "caf\u00e9S"}
    assert all(
        any(a <= start < end <= b for a, b in words) for start, end in zip(pieces.starts, pieces.ends, strict=True)
    )
    assert set(pieces.starts.tolist()) >= {a for a, _ in words}
    assert set(pieces.ends.tolist()) >= {b for _, b in words}


def test_offsets_of_a_text_with_a_lone_surrogate_are_refused(both):
    with pytest.raises(ValueError, match="character 2"):
        both[1].encode_offsets(["ab\ud800"])
