"""The tokenizer: without loss for any text, equal to what rustbpe itself would give, and strict about its files."""

import base64
import hashlib
import json
import os
import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.stages.dedup import DEDUP, DedupConfig
from pipeline.stages.laws import HARD_TEXTS
from pipeline.stages.shards import read_table
from pipeline.stages.split import SPLIT, SplitConfig
from pipeline.stages.tokenizer import (
    DESCRIPTION_FILE,
    END_OF_TEXT,
    PATTERNS,
    RANKS_FILE,
    TOKENIZER,
    TokenizerConfig,
    load_tokenizer,
    train_ranks,
)

SYLLABLES = ["ka", "lo", "mi", "tu", "re", "sha", "bel", "dor", "fin", "gra", "hup", "jin"]
SMALL = TokenizerConfig(vocab_size=300)


def prose(rng, n_words):
    return " ".join("".join(rng.choices(SYLLABLES, k=rng.randrange(1, 4))) for _ in range(n_words))


@pytest.fixture
def corpus(store, written_documents):
    rng = random.Random(1)
    rows = [(f"s{i % 3}", "x", f"p{i:03d}", prose(rng, 120) + " It's 2026, isn't it?\n\n") for i in range(60)]
    deduplicated = store.build(DEDUP, DedupConfig(), written_documents(rows)).handle
    return store.build(SPLIT, SplitConfig(), deduplicated).handle


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Trained on a little English, saved and loaded."""
    folder = tmp_path_factory.mktemp("tokenizer")
    ranks = train_ranks([" ".join(HARD_TEXTS[-1:] * 20), "the cat sat on the mat " * 50], 299, PATTERNS["qwen2"])
    save(folder, ranks)
    return load_tokenizer(folder)


def save(folder, ranks, **changes):
    raw = b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())
    (folder / RANKS_FILE).write_bytes(raw)
    description = {
        "pattern_name": "qwen2",
        "pattern": PATTERNS["qwen2"],
        "special_tokens": {END_OF_TEXT: len(ranks)},
        "vocab_size": len(ranks) + 1,
        "ranks_sha256": hashlib.sha256(raw).hexdigest(),
    }
    (folder / DESCRIPTION_FILE).write_text(json.dumps(description | changes))


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


@pytest.mark.parametrize("pattern", PATTERNS)
def test_tokenizer_patterns_stand_long_runs(tmp_path, pattern):
    ranks = train_ranks(["a b c " * 20], 260, PATTERNS[pattern])
    save(tmp_path, ranks, pattern_name=pattern, pattern=PATTERNS[pattern])
    text = "ab" + " " * 1_000_000 + "cd" + " " * 4095 + "e"
    loaded = load_tokenizer(tmp_path)
    assert loaded.decode(loaded.encode(text)) == text


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


@pytest.mark.parametrize("pattern", PATTERNS)
def test_tokenizer_gives_the_ids_of_rustbpe(tmp_path, pattern):
    import rustbpe

    rng = random.Random(4)
    texts = [prose(rng, 300) + " We'll see: 3.14 \u00e9t\u00e9\n\n  x" for _ in range(20)]
    ranks = train_ranks(texts, 400, PATTERNS[pattern])
    save(tmp_path, ranks, pattern_name=pattern, pattern=PATTERNS[pattern])
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter(texts), 400, pattern=PATTERNS[pattern])
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode_batch(texts) == [trainer.encode(text) for text in texts]


def test_tokenizer_qwen2_cuts_words_as_transformers_does():
    from tokenizers import Regex, pre_tokenizers

    splitter = pre_tokenizers.Split(Regex(PATTERNS["qwen2"]), "isolated")
    pieces = [piece for piece, _ in splitter.pre_tokenize_str("It's 42  words,\n\n we'LL  ")]
    assert pieces == ["It", "'s", " ", "4", "2", " ", " words", ",\n\n", " we", "'LL", "  "]


def test_tokenizer_stage_vocabulary_has_the_size_that_was_asked_for(store, corpus):
    built = store.build(TOKENIZER, SMALL, corpus)
    loaded = load_tokenizer(built.handle.directory)
    assert built.handle.rows == loaded.vocab_size == 300
    assert loaded.end_of_text == 299
    assert built.record["measures"]["bytes_per_token"] > 1.3


def test_tokenizer_stage_small_corpus_gives_a_smaller_vocabulary(store, corpus):
    built = store.build(TOKENIZER, TokenizerConfig(vocab_size=100_000), corpus)
    assert 300 < built.handle.rows < 100_000
    assert load_tokenizer(built.handle.directory).vocab_size == built.handle.rows


def test_tokenizer_stage_learns_from_the_train_split_only(store, written_documents):
    """A word that stands in one document, often, becomes a token when that document is for training."""
    rng = random.Random(2)
    words = {f"p{i:03d}": "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=12)) for i in range(60)}
    rows = [("s", "x", name, f"{prose(rng, 100)}{f' {word}' * 40}") for name, word in words.items()]
    deduplicated = store.build(DEDUP, DedupConfig(), written_documents(rows)).handle
    divided = store.build(SPLIT, SplitConfig(validation_fraction=0.2, test_fraction=0.2), deduplicated).handle
    built = store.build(TOKENIZER, TokenizerConfig(vocab_size=4000), divided).handle
    loaded = load_tokenizer(built.directory)
    table = read_table(divided.directory / "s.parquet", columns=["page_id", "split"]).to_pylist()
    sides = {row["page_id"]: row["split"] for row in table}
    whole = {name for name, word in words.items() if len(loaded.encode(f" {word}")) == 1}
    assert whole == {name for name in words if sides[name] == "train"} and len(whole) < 60


def test_tokenizer_stage_sample_has_the_bytes_that_were_asked_for(store, corpus):
    built = store.build(TOKENIZER, TokenizerConfig(vocab_size=300, sample_bytes=5000), corpus)
    assert built.record["measures"]["sample_bytes"] == 5000
    configs = (TokenizerConfig(sample_bytes=5000, seed=seed) for seed in (1, 2))
    assert len({store.build(TOKENIZER, cfg, corpus).handle.digest for cfg in configs}) == 2


def test_tokenizer_stage_without_training_text_is_refused(store, written_documents):
    deduplicated = store.build(DEDUP, DedupConfig(), written_documents([])).handle
    empty = store.build(SPLIT, SplitConfig(), deduplicated).handle
    with pytest.raises(ValueError, match="no document is in the train split"):
        store.build(TOKENIZER, SMALL, empty)


def test_tokenizer_stage_bytes_do_not_depend_on_threads(store, corpus):
    expected = store.build(TOKENIZER, SMALL, corpus).handle
    script = (
        "import sys; from pathlib import Path; from pipeline.stages.store import Store, read_handle\n"
        "from pipeline.stages.tokenizer import TOKENIZER, TokenizerConfig\n"
        "store = Store(root=Path(sys.argv[2]))\n"
        "print(store.build(TOKENIZER, TokenizerConfig(vocab_size=300), read_handle(Path(sys.argv[1]))).handle.digest)"
    )
    for n_threads in ("1", "4"):
        answer = subprocess.run(
            [sys.executable, "-c", script, str(corpus.directory), str(store.root.parent / f"other{n_threads}")],
            env=os.environ | {"RAYON_NUM_THREADS": n_threads},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert answer.stdout.strip() == expected.digest


def test_tokenizer_stage_output_for_a_fixed_corpus_has_not_changed(store, corpus):
    """Raise the version of the stage when this digest changes on purpose."""
    assert (store.build(TOKENIZER, SMALL, corpus).handle.digest, TOKENIZER.version) == (
        "1413d863f054f89f907d69eca572b6be",
        1,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / RANKS_FILE).unlink(), "tokenizer.tiktoken is missing"),
        (lambda folder: (folder / DESCRIPTION_FILE).unlink(), "tokenizer.json is missing"),
        (lambda folder: (folder / DESCRIPTION_FILE).write_text("{"), "not JSON"),
        (lambda folder: (folder / DESCRIPTION_FILE).write_text("[]"), "pattern_name is None"),
        (lambda folder: change_description(folder, vocab_size=299), "vocab_size differ"),
        (lambda folder: change_description(folder, pattern=r"(a+)+b"), "pattern differ"),
        (lambda folder: change_description(folder, pattern_name="mine"), "pattern_name is 'mine'"),
        (lambda folder: change_ranks(folder, lambda lines: lines[:-1]), "vocab_size, ranks_sha256 differ"),
        (lambda folder: change_ranks(folder, lambda lines: [*lines[:9], b"!!! 9", *lines[10:]]), "line 10"),
        (lambda folder: change_ranks(folder, lambda lines: [*lines[:9], *lines[10:]]), "line 10"),
        (lambda folder: change_ranks(folder, lambda lines: [*lines, lines[0].split()[0] + b" 299"]), "line 300"),
        (lambda folder: change_ranks(folder, lambda lines: lines[:200]), "byte values are no token"),
        (lambda folder: (folder / RANKS_FILE).write_bytes(b"\x80\x04garbage\nmore"), "line 1"),
    ],
)
def test_load_tokenizer_broken_files_are_refused(tmp_path, change, message):
    save(tmp_path, train_ranks(["the cat sat on the mat", prose(random.Random(1), 500)], 299, PATTERNS["qwen2"]))
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


@pytest.mark.parametrize(
    "fields", [{"vocab_size": 256}, {"sample_bytes": 0}, {"pattern": "gpt-4"}], ids=lambda fields: next(iter(fields))
)
def test_tokenizer_config_out_of_range_is_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        TokenizerConfig(**fields)
