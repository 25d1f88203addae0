"""tokenize: token shards that decode to the corpus, in an order that only the seed decides."""

import random

import numpy as np
import pytest

from model.data.token_shards import SPLITS, read_description, read_token_shards
from pipeline.corpus.dedup.stage import DEDUP, DedupConfig
from pipeline.corpus.split.stage import SPLIT, SplitConfig
from pipeline.corpus.tokens.tokenize import TOKENIZE, TokenizeConfig, TokenizeRecipe
from pipeline.corpus.tokens.tokenizer import TOKENIZER, TokenizerConfig, load_tokenizer
from pipeline.corpus.tokens.tokenizer_files import write_tokenizer
from pipeline.store.engine import LocalProcesses
from pipeline.store.records import SPLIT_CORPUS, TokenizerFile
from pipeline.store.shards import read_table, shard_paths, text_digest
from pipeline.store.store import Outcome, Stage, Store, Work
from tests.children import python

SYLLABLES = ["ka", "lo", "mi", "tu", "re", "sha", "bel", "dor", "fin", "gra", "hup", "jin"]


def text_of(rng):
    own = ["".join(rng.choices(SYLLABLES, k=rng.randrange(1, 4))) for _ in range(rng.randrange(20, 200))]
    return " ".join(own) + rng.choice(["", "\n\n", " \u00e9\u4e2d<|endoftext|>", "  "])


@pytest.fixture
def documents():
    rng = random.Random(1)
    return [(f"s{i % 4}", "x", f"p{i:03d}", text_of(rng)) for i in range(90)]


@pytest.fixture
def build_inputs(store, written_documents):
    """(split corpus, tokenizer) of rows."""

    def build(rows, vocab_size=300, shards=()):
        deduplicated = store.build(DEDUP, DedupConfig(), written_documents(rows, shards=shards)).handle
        cfg = SplitConfig(validation_fraction=0.1, test_fraction=0.1)
        corpus = store.build(SPLIT, cfg, deduplicated).handle
        return corpus, store.build(TOKENIZER, TokenizerConfig(vocab_size=vocab_size), corpus).handle

    return build


def row(page_id, text, *, source="s", split="train", cluster_size=1):
    return {
        "page_id": page_id,
        "id": text_digest(text),
        "url": f"file:///{page_id}",
        "text": text,
        "source": source,
        "split": split,
        "cluster_size": cluster_size,
    }


def recipe(weights=None, **settings):
    return TokenizeRecipe(config=TokenizeConfig(**settings), weights=weights or {})


def token_files(handle):
    paths = [*handle.directory.rglob("*.arrow"), handle.directory / "tokens.json"]
    return {str(path.relative_to(handle.directory)): path.read_bytes() for path in paths}


def order_of(handle, split="train"):
    return [name for shard in read_token_shards(handle.directory, split) for name in shard.document_ids.to_pylist()]


def test_tokenize_shards_decode_to_the_corpus(store, build_inputs, documents):
    corpus, file = build_inputs(documents)
    built = store.build(TOKENIZE, recipe(shard_tokens=2000), corpus, file)
    tokenizer = load_tokenizer(file.directory)
    rows = [row for path in shard_paths(corpus.directory) for row in read_table(path, SPLIT_CORPUS).to_pylist()]
    for split in SPLITS:
        expected = {row["id"]: row["text"] for row in rows if row["split"] == split}
        sources = {row["id"]: row["source"] for row in rows}
        found = {}
        for shard in read_token_shards(built.handle.directory, split):
            for row, name in enumerate(shard.document_ids.to_pylist()):
                first, *ids = shard.tokens[shard.offsets[row] : shard.offsets[row + 1]].tolist()
                assert first == tokenizer.end_of_text
                found[name] = tokenizer.decode(ids)
                assert shard.sources is not None and shard.sources[row].as_py() == sources[name]
                assert shard.n_bytes[row] == len(found[name].encode())
        assert found == expected and expected


def test_tokenize_description_counts_what_lies_there(store, build_inputs, documents):
    corpus, file = build_inputs(documents)
    built = store.build(TOKENIZE, recipe(), corpus, file)
    description = read_description(built.handle.directory)
    assert description["tokenizer"] == file.digest
    assert (description["vocab_size"], description["end_of_text"]) == (300, 299)
    for split in SPLITS:
        shards = read_token_shards(built.handle.directory, split)
        assert description["splits"][split] == {
            "documents": sum(len(shard.document_ids) for shard in shards),
            "tokens": sum(len(shard.tokens) for shard in shards),
            "bytes": sum(int(shard.n_bytes.sum()) for shard in shards),
            **({"repeats": 0} if split == "train" else {}),
        }
    assert built.counts.rows_in == built.counts.kept == built.handle.rows == len(documents)


def test_tokenize_files_hold_at_most_shard_tokens_or_one_document(store, build_inputs, documents):
    corpus, file = build_inputs(documents)
    built = store.build(TOKENIZE, recipe(shard_tokens=300), corpus, file)
    shards = read_token_shards(built.handle.directory, "train")
    assert len(shards) > 10
    assert all(len(shard.tokens) <= 300 or len(shard.document_ids) == 1 for shard in shards)
    whole = store.build(TOKENIZE, recipe(), corpus, file).handle
    assert order_of(whole) == order_of(built.handle)
    assert len(read_token_shards(whole.directory, "train")) == 1


def test_tokenize_order_is_decided_by_the_seed_alone(store, build_inputs, documents):
    corpus, file = build_inputs(documents)
    first = order_of(store.build(TOKENIZE, recipe(), corpus, file).handle)
    assert first != order_of(store.build(TOKENIZE, recipe(seed=2), corpus, file).handle)
    moved, same_file = build_inputs([("other", *row[1:]) for row in reversed(documents)])
    assert order_of(store.build(TOKENIZE, recipe(), moved, same_file).handle) == first


def test_tokenize_a_new_document_moves_no_other(store, build_inputs, documents):
    corpus, file = build_inputs(documents)
    before = order_of(store.build(TOKENIZE, recipe(), corpus, file).handle)
    more, _ = build_inputs([*documents, ("s0", "x", "new", text_of(random.Random(99)))])
    after = order_of(store.build(TOKENIZE, recipe(), more, file).handle)
    common = set(before) & set(after)
    assert [name for name in before if name in common] == [name for name in after if name in common]


def test_tokenize_bytes_do_not_depend_on_workers(tmp_path, store, build_inputs, documents):
    inputs = build_inputs(documents)
    serial = store.build(TOKENIZE, recipe(), *inputs).handle
    parallel = Store(root=tmp_path / "other", engine=LocalProcesses(n_workers=2))
    assert token_files(parallel.build(TOKENIZE, recipe(), *inputs).handle) == token_files(serial)


def test_tokenize_arrays_are_views_of_the_mapped_file(store, build_inputs, documents):
    built = store.build(TOKENIZE, recipe(), *build_inputs(documents))
    (shard,) = read_token_shards(built.handle.directory, "train")
    assert shard.tokens.dtype == np.uint16
    assert not shard.tokens.flags.owndata and not shard.tokens.flags.writeable


def test_tokenize_one_changed_shard_is_encoded_again_and_no_other(store, build_inputs, documents):
    corpus, file = build_inputs(documents)
    store.build(TOKENIZE, recipe(), corpus, file)
    folder = store.root / "tokenize" / "parts"
    parts = set(folder.iterdir())
    changed, _ = build_inputs([*documents[:-1], (*documents[-1][:3], "quite another text")])
    store.build(TOKENIZE, recipe(seed=5), corpus, file)  # another order of the same tokens
    assert set(folder.iterdir()) == parts
    store.build(TOKENIZE, recipe(), changed, file)
    assert len(set(folder.iterdir()) - parts) <= 2  # the changed shard, and the one whose document changed sides


def test_tokenize_another_tokenizer_encodes_everything_again(store, build_inputs, documents):
    corpus, file = build_inputs(documents)
    first = store.build(TOKENIZE, recipe(), corpus, file).record["measures"]
    larger = store.build(TOKENIZER, TokenizerConfig(vocab_size=400), corpus).handle
    second = store.build(TOKENIZE, recipe(), corpus, larger).record["measures"]
    assert second["train_tokens"] < first["train_tokens"]


BUILD_AND_DIE = """
import os, signal, sys
from pathlib import Path
from pipeline.store.engine import LocalProcesses
from pipeline.store.store import Store, read_handle
from pipeline.corpus.tokens.tokenize import TOKENIZE, TokenizeConfig, TokenizeRecipe

calls = 0
def show(stage, done, total, unit):
    global calls
    calls += 1
    if calls == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)

store = Store(root=Path(sys.argv[3]), engine=LocalProcesses(n_workers=1), show=show)
inputs = [read_handle(Path(path)) for path in sys.argv[1:3]]
store.build(TOKENIZE, TokenizeRecipe(config=TokenizeConfig(shard_tokens=2000)), *inputs)
"""


@pytest.mark.parametrize("call", [2, 7])  # while shards are encoded, while they are gathered
def test_tokenize_killed_and_run_again_gives_the_same_bytes(tmp_path, store, build_inputs, documents, call):
    inputs = build_inputs(documents)
    root = tmp_path / "killed"
    folders = [str(one.directory) for one in inputs]
    assert python("-c", BUILD_AND_DIE, *folders, str(root), str(call)).returncode == -9
    assert not list((root / "tokenize").glob("*/record.json"))
    cfg = recipe(shard_tokens=2000)
    again = Store(root=root, engine=store.engine).build(TOKENIZE, cfg, *inputs).handle
    assert token_files(again) == token_files(store.build(TOKENIZE, cfg, *inputs).handle)


def test_tokenize_nothing_to_encode_is_refused(store, build_inputs, documents, written_documents):
    _, file = build_inputs(documents)
    deduplicated = store.build(DEDUP, DedupConfig(), written_documents([])).handle
    empty = store.build(SPLIT, SplitConfig(), deduplicated).handle
    with pytest.raises(ValueError, match="contains no documents"):
        store.build(TOKENIZE, recipe(), empty, file)


def test_tokenize_one_document_and_empty_shards_work(store, build_inputs):
    inputs = build_inputs([("b", "x", "one", "a text")], 257, shards=("a", "c"))
    built = store.build(TOKENIZE, recipe(), *inputs)
    assert built.handle.rows == 1
    assert read_description(built.handle.directory)["splits"]["train"] == {
        "documents": 1,
        "tokens": 7,
        "bytes": 6,
        "repeats": 0,
    }
    assert read_token_shards(built.handle.directory, "test") == []


def write_wide_tokenizer(cfg: TokenizerConfig, inputs: tuple, work: Work) -> Outcome:
    """A token for every byte and every pair of bytes: more than 16 bits count."""
    tokens = [bytes([a]) for a in range(256)] + [bytes([a, b]) for a in range(256) for b in range(256)]
    write_tokenizer(work.directory, {token: rank for rank, token in enumerate(tokens)}, "gpt-2")
    return Outcome(rows=len(tokens) + 1)


def test_tokenize_vocabulary_beyond_16_bits_has_wide_tokens(store, build_inputs, documents):
    stage = Stage(name="tokenizer", version=1, function=write_wide_tokenizer, handle=TokenizerFile)
    corpus, _ = build_inputs(documents)
    file = store.build(stage, TokenizerConfig()).handle
    (shard,) = read_token_shards(store.build(TOKENIZE, recipe(), corpus, file).handle.directory, "train")
    assert shard.tokens.dtype == np.uint32 and shard.tokens.max() == 65_792
    assert len(shard.tokens) < 0.7 * shard.n_bytes.sum()


def test_tokenize_output_for_fixed_documents_has_not_changed(store, split_corpus, byte_tokenizer):
    """Raise the version of the stage when this digest changes on purpose."""
    rows = [row(f"p{i:03d}", "a text " * (i % 9 + 1), source=f"s{i % 3}", cluster_size=i % 6 + 1) for i in range(60)]
    built = store.build(
        TOKENIZE, recipe({"s1": 0.4, "s2": 1.5}, rehydration="fineweb2"), split_corpus(rows), byte_tokenizer
    )
    files = {name: entry["digest"] for name, entry in built.record["files"].items() if name.startswith("train/")}
    assert (files, TOKENIZE.version) == ({"train/00000.arrow": "b1f4059e1b8862feffc548d1560046d8"}, 3)


def test_tokenize_config_out_of_range_is_refused():
    with pytest.raises(ValueError, match="shard_tokens is 0"):
        TokenizeConfig(shard_tokens=0)
