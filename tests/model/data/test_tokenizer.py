"""A tokenizer: without loss for any text, equal to what rustbpe itself would give, strict when its files are read."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.tokenizer import DESCRIPTION_FILE, RANKS_FILE, load_model_tokenizer, load_tokenizer
from model.data.vocabularies import END_OF_TEXT, TRAINED_PATTERNS
from pipeline.corpus.laws import HARD_TEXTS
from pipeline.corpus.tokens.tokenizer import train_ranks
from pipeline.corpus.tokens.tokenizer_files import write_tokenizer

SYLLABLES = ["ka", "lo", "mi", "tu", "re", "sha", "bel", "dor", "fin", "gra", "hup", "jin"]


def prose(rng, n_words):
    return " ".join("".join(rng.choices(SYLLABLES, k=rng.randrange(1, 4))) for _ in range(n_words))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Trained on a little English, saved and loaded."""
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = [" ".join(HARD_TEXTS[-1:] * 20), "the cat sat on the mat " * 50]
    write_tokenizer(folder, train_ranks(texts, 299, TRAINED_PATTERNS["qwen2"]), "qwen2")
    return load_tokenizer(folder)


@given(text=st.text(st.characters(exclude_categories=("Cs",))))
@settings(max_examples=300, deadline=None)
def test_tokenizer_any_text_comes_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert all(0 <= token < tokenizer.vocab_size - 1 for token in ids)


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_tokenizer_hard_texts_come_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        " " * 1_000_000,
        "x" + " " * 1_000_000 + "y",
        "\n" * 300_000,
        " \n" * 500_000,
        "a" * 1_000_000,
        "^" * 1_000_000,
        "\u3000" * 1_000_000,
        "1" * 200_000,
        "\x1c" * 300_000,
    ],
    ids=["spaces", "inner", "lines", "mixed", "letters", "signs", "wide", "digits", "separators"],
)
def test_tokenizer_long_runs_come_back(tokenizer, text):
    """tiktoken 0.14 panics on a million spaces, with an exception that is no Exception."""
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("pattern", TRAINED_PATTERNS)
def test_tokenizer_patterns_stand_long_runs(tmp_path, pattern):
    ranks = train_ranks(["a b c " * 20], 260, TRAINED_PATTERNS[pattern])
    write_tokenizer(tmp_path, ranks, pattern)
    text = "ab" + " " * 1_000_000 + "cd" + " " * 4095 + "e"
    loaded = load_tokenizer(tmp_path)
    assert loaded.decode(loaded.encode(text)) == text


def test_tokenizer_word_of_many_megabytes_is_cut_and_comes_back(tokenizer, monkeypatch):
    """The one exception from equal ids: tiktoken needs gigabytes for such a word."""
    monkeypatch.setattr("model.data.tokenizer_tiktoken.LONGEST_WORD", 3000)
    text = "ab " * 40_000 + "x" * 10_000 + "\n" * 100_000
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert ids[: len(tokenizer.encode("ab " * 39_000))] == tokenizer.encode("ab " * 39_000)


@pytest.mark.parametrize("text", [" " * 99_999 + "x", "x" + " " * 100_000, "x" + " " * 100_001 + "\ny" * 9])
def test_tokenizer_ids_are_the_same_on_both_sides_of_the_limit(tokenizer, text):
    """Cutting a text into words first, for tiktoken would panic on it, gives the ids that tiktoken gives."""
    import tiktoken

    plain = tiktoken.Encoding(
        "plain", pat_str=TRAINED_PATTERNS["qwen2"], mergeable_ranks=tokenizer.ranks, special_tokens={}
    )
    assert tokenizer.encode(text) == plain.encode_ordinary(text)


def test_tokenizer_end_of_text_in_a_text_is_text(tokenizer):
    ids = tokenizer.encode(f"before {END_OF_TEXT} after")
    assert tokenizer.end_of_text not in ids
    assert tokenizer.decode([tokenizer.end_of_text]) == END_OF_TEXT


def test_tokenizer_lone_surrogate_is_refused_with_its_place(tokenizer):
    with pytest.raises(ValueError, match="character 2"):
        tokenizer.encode("ab\ud800")


def test_tokenizer_id_outside_the_vocabulary_is_refused(tokenizer):
    with pytest.raises(ValueError, match="is outside 0 to"):
        tokenizer.decode([tokenizer.vocab_size])


def test_tokenizer_batch_equals_one_by_one(tokenizer):
    texts = [*HARD_TEXTS, "a" * 200_000 + " " * 10_000, "the cat"]
    for n_threads in (1, 2, 8):
        assert tokenizer.encode_batch(texts, n_threads) == [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_batch([]) == []


@pytest.mark.parametrize("pattern", TRAINED_PATTERNS)
def test_tokenizer_gives_the_ids_of_rustbpe(tmp_path, pattern):
    import rustbpe

    rng = random.Random(4)
    texts = [prose(rng, 300) + " We'll see: 3.14 \u00e9t\u00e9\n\n  x" for _ in range(20)]
    ranks = train_ranks(texts, 400, TRAINED_PATTERNS[pattern])
    write_tokenizer(tmp_path, ranks, pattern)
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter(texts), 400, pattern=TRAINED_PATTERNS[pattern])
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode_batch(texts) == [trainer.encode(text) for text in texts]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / RANKS_FILE).unlink(), "tokenizer.tiktoken is missing"),
        (
            lambda folder: (folder / DESCRIPTION_FILE).unlink(),
            r"tokenizer.json is missing \(it was made by an earlier",
        ),
        (lambda folder: (folder / DESCRIPTION_FILE).write_text("{"), "not JSON"),
        (lambda folder: (folder / DESCRIPTION_FILE).write_text("[]"), "has no `format`"),
        (lambda folder: (folder / DESCRIPTION_FILE).write_text("[" * 100_000), "not JSON"),
        (lambda folder: (folder / DESCRIPTION_FILE).write_bytes(b"\x93\xff\x00"), "not JSON"),
        (lambda folder: (folder / DESCRIPTION_FILE).write_text('{"model": {"type": "BPE"}}'), "has no `format`"),
        (lambda folder: change_description(folder, format=3), "format is 3, this version reads 2"),
        (lambda folder: change_description(folder, vocabulary="gpt2"), "has sha256 .*, but gpt2 has 306cd27f"),
        (lambda folder: change_description(folder, vocabulary=["gpt2"]), "vocabulary is "),
        (lambda folder: change_description(folder, extra=1), "extra differ"),
        (lambda folder: change_description(folder, vocab_size=299), "vocab_size differ"),
        (lambda folder: change_description(folder, pattern=r"(a+)+b"), "pattern differ"),
        (
            lambda folder: change_description(folder, pattern_name="mine"),
            "pattern_name 'mine', expected 'trained' with",
        ),
        (
            lambda folder: change_ranks(folder, lambda lines: lines[:-1]),
            "ranks_sha256, special_tokens, vocab_size differ",
        ),
        (lambda folder: change_ranks(folder, lambda lines: [*lines[:9], b"!!! 9", *lines[10:]]), "line 10"),
        (lambda folder: change_ranks(folder, lambda lines: [*lines[:9], *lines[10:]]), "line 10"),
        (lambda folder: change_ranks(folder, lambda lines: [*lines, lines[0].split()[0] + b" 299"]), "line 300"),
        (lambda folder: change_ranks(folder, lambda lines: lines[:200]), "byte values are no token"),
        (lambda folder: change_ranks(folder, lambda lines: [*lines, b" 299"]), "line 300: a token of no bytes"),
        (lambda folder: change_ranks(folder, lambda lines: [*lines[:-1], lines[-1][:-9]]), "line 299"),
        (lambda folder: (folder / RANKS_FILE).write_bytes(b""), "256 of 256 byte values are no token"),
        (lambda folder: (folder / RANKS_FILE).write_bytes(b"\x80\x04garbage\nmore"), "line 1"),
    ],
)
def test_load_tokenizer_broken_files_are_refused(tmp_path, change, message):
    texts = ["the cat sat on the mat", prose(random.Random(1), 500)]
    write_tokenizer(tmp_path, train_ranks(texts, 299, TRAINED_PATTERNS["qwen2"]), "qwen2")
    load_tokenizer(tmp_path)
    change(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path)


def change_description(folder, **changes):
    path = folder / DESCRIPTION_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_ranks(folder, change):
    path = folder / RANKS_FILE
    path.write_bytes(b"\n".join(change(path.read_bytes().splitlines())) + b"\n")


@pytest.mark.parametrize("vocab_size", [299, 301])
def test_load_model_tokenizer_of_another_vocabulary_is_refused(tmp_path, vocab_size):
    texts = ["the cat sat on the mat", prose(random.Random(1), 500)]
    write_tokenizer(tmp_path / "tokenizer", train_ranks(texts, 299, TRAINED_PATTERNS["qwen2"]), "qwen2")
    assert load_model_tokenizer(tmp_path, 300).vocab_size == 300
    with pytest.raises(ValueError, match=f"has 300 tokens, the model {vocab_size}, so that they do not belong"):
        load_model_tokenizer(tmp_path, vocab_size)
