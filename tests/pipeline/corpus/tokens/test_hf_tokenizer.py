"""What transformers and `tokenizers` make of our files: the ids are ours, for any text."""

import itertools
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.byte_alphabet import CHARACTERS
from model.data.merges import LONG_TOKEN, merges
from model.data.tokenizer import load_tokenizer, tokenizer_of
from model.data.vocabularies import END_OF_TEXT, TRAINED_PATTERNS
from pipeline.corpus.laws import HARD_TEXTS
from pipeline.corpus.tokens.hf_tokenizer import tokenizer_json
from pipeline.corpus.tokens.tokenizer import train_ranks
from pipeline.corpus.tokens.tokenizer_files import write_tokenizer

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "it's",
    "we'll",
    "don't",
    "na\xefve",
    "caf\xe9",
    "\u6771\u4eac",
    "\u041c\u043e\u0441\u043a\u0432\u0430",
    "3.14",
    "...",
    "--",
    "{x}",
    "=>",
    "!!",
]
HOSTILE = {
    "spaces": " " * 1_000_000,
    "inner_spaces": "x" + " " * 1_000_000 + "y",
    "letters": "a" * 1_000_000,
    "lines": "\n" * 200_000 + "x",
    "mixed_space": " \t\u3000\u2028" * 50_000 + "x",
    "digits": "1" * 100_000,
    "signs": "^" * 100_000,
    "marks": "e\u0301" * 50_000,
    "crlf": "a\r\n\r\n b \r\n" * 100 + "\r",
    "trailing_space": "a \n  ",
    "escaped_surrogates": "a\ud800b\udfff \U0001f600".encode("utf-8", "backslashreplace").decode(),
    "emoji": "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f3f4\u200d\u2620\ufe0f\U0001f1e9\U0001f1ea" * 50,
    "scripts": (
        "W\xf6rld \u043c\u0438\u0440 \u4e16\u754c \u0e44\u0e17\u0e22 \u05e2\u05d5\u05dc"
        " \u0939\u093f\u0928\u094d\u0926\u0940 \uabc3\uabe4\uabc7\uabe9 \U0001d518\U0001d52b\U0001d526"
        " \xbd\xb2\u2167 \u02bcn \u017f'\u017f 'S 'LL \u0130 \xdf"
    )
    * 20,
    "controls": "".join(map(chr, range(0x20))) * 3 + "\x7f\x85\xa0\u200b\ufeff\ufffe\uffff\U0010ffff",
    "special": f"a{END_OF_TEXT}b <|fim_prefix|> {END_OF_TEXT}",
    "lonely_quote": "' 's 'S 'll 'LL'Re ''d",
}


def prose(rng, n_words):
    return " ".join(rng.choices(WORDS, k=n_words)) + rng.choice(["", "\n\n", "  ", "\r\n"])


@pytest.fixture(scope="module", params=sorted(TRAINED_PATTERNS))
def both(request, tmp_path_factory):
    """The same vocabulary as we run it, and as `tokenizers` does."""
    from tokenizers import Tokenizer as HuggingFaceTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    rng = random.Random(7)
    texts = [*(prose(rng, 200) for _ in range(50)), *HARD_TEXTS, "a" * 300, " " * 500 + "x"]
    write_tokenizer(folder, train_ranks(texts, 700, TRAINED_PATTERNS[request.param]), request.param)
    theirs = HuggingFaceTokenizer.from_file(str(folder / "tokenizer.json"))
    theirs.encode_special_tokens = True
    return load_tokenizer(folder), theirs, folder


def test_tokenizer_json_ten_thousand_documents_have_our_ids(both):
    ours, theirs, _ = both
    rng = random.Random(3)
    texts = [prose(rng, rng.randrange(1, 60)) for _ in range(10_000)]
    assert [encoding.ids for encoding in theirs.encode_batch(texts)] == ours.encode_batch(texts)


@pytest.mark.parametrize("text", [*HARD_TEXTS, *HOSTILE.values()], ids=[*map(str, range(len(HARD_TEXTS))), *HOSTILE])
def test_tokenizer_json_hostile_texts_have_our_ids_and_come_back(both, text):
    ours, theirs, _ = both
    encoding = theirs.encode(text)
    assert encoding.ids == ours.encode(text)
    assert theirs.decode(encoding.ids, skip_special_tokens=False) == text


@given(
    text=st.text(st.characters(exclude_categories=("Cs",))) | st.text("a' \n\r\tsSlL1\u0301\u3000|<>", max_size=60)
)
@settings(max_examples=500, deadline=None)
def test_tokenizer_json_any_text_has_our_ids(both, text):
    ours, theirs, _ = both
    assert theirs.encode(text).ids == ours.encode(text)


@pytest.mark.parametrize("step", [17, pytest.param(1, marks=pytest.mark.slow)])
def test_tokenizer_json_every_character_is_cut_as_ours(both, step):
    """Unicode tables of the regular expression engines agree, in and around words."""
    ours, theirs, _ = both
    codes = [*range(0x800), *range(0x800, 0xD800, step), *range(0xE000, 0x30000, step)]
    characters = list(map(chr, codes))
    for start in range(0, len(characters), 4096):
        text = "".join(f"a{c}b1{c}2 {c} ?{c}!'{c}\n" for c in characters[start : start + 4096])
        assert theirs.encode(text).ids == ours.encode(text)


def test_auto_tokenizer_loads_the_folder_without_a_network(both, monkeypatch):
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ours, _, folder = both
    theirs = AutoTokenizer.from_pretrained(folder)
    assert theirs.eos_token_id == theirs.bos_token_id == ours.end_of_text and len(theirs) == ours.vocab_size
    for text in (*HARD_TEXTS, HOSTILE["special"], HOSTILE["scripts"]):
        assert theirs.encode(text) == theirs(text)["input_ids"] == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == text
    assert theirs.decode([ours.end_of_text, *ours.encode("x")], skip_special_tokens=True) == "x"
    plain = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    assert plain.encode(HOSTILE["scripts"]) == ours.encode(HOSTILE["scripts"])
    assert plain.convert_tokens_to_ids(END_OF_TEXT) == ours.end_of_text


def vocabulary(tokens):
    """All bytes in any order, then the tokens: not what training gives, but what a file may hold."""
    return {token: rank for rank, token in enumerate(dict.fromkeys([*(bytes([i]) for i in range(256)), *tokens]))}


@given(
    tokens=st.lists(st.text("ab ", min_size=2, max_size=6).map(str.encode), max_size=30),
    text=st.text("ab ", max_size=80),
)
@settings(max_examples=300, deadline=None)
def test_tokenizer_json_vocabulary_in_any_order_has_the_ids_of_tiktoken(tokens, text):
    """Ranks that no training gives: tokens before their parts, and tokens that no merge can reach."""
    from tokenizers import Tokenizer as HuggingFaceTokenizer

    ranks = vocabulary(tokens)
    special, pattern = {END_OF_TEXT: len(ranks) + 3}, TRAINED_PATTERNS["gpt-2"]
    theirs = HuggingFaceTokenizer.from_str(tokenizer_json(ranks, pattern, special))
    assert theirs.encode(text).ids == tokenizer_of(ranks, pattern, special, len(ranks) + 4).encode(text)
    assert theirs.token_to_id(END_OF_TEXT) == len(ranks) + 3


@given(tokens=st.lists(st.text("ab", min_size=2, max_size=9).map(str.encode), max_size=40), seed=st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_merges_long_tokens_end_in_the_same_merge(tokens, seed):
    """Two ways of finding it, by all pairs and by a heap, which one takes from LONG_TOKEN bytes on."""
    rng = random.Random(seed)
    long = bytes(rng.choices(b"ab", k=LONG_TOKEN))
    ranks = vocabulary([*tokens, long])
    pairs = dict(zip((left + right for left, right in merges(ranks)), merges(ranks), strict=True))
    expected = all_pairs(ranks, long)
    assert pairs.get(long) == expected


def all_pairs(ranks, token):
    parts = [bytes([value]) for value in token]
    while len(parts) > 2:
        found = [(ranks[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in ranks]
        if not found:
            return None
        i = min(found)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return tuple(parts)


def test_characters_are_those_of_transformers():
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    assert bytes_to_unicode() == CHARACTERS


def test_tokenizer_json_is_the_same_for_the_same_ranks(both):
    ours, _, folder = both
    description = json.loads((folder / "gristmill_tokenizer.json").read_text())
    again = tokenizer_json(ours.ranks, description["pattern"], description["special_tokens"])
    assert again == (folder / "tokenizer.json").read_text()
