"""A kept tokenizer answers for every corpus, as long as the recipe is the one it was made with."""

import json
import shutil
from dataclasses import replace

import pytest

from pipeline.corpus.tokens.kept_tokenizer import keep_tokenizer, kept_tokenizer, release_tokenizer
from pipeline.corpus.tokens.tokenizer import TOKENIZER, TokenizerConfig, tokenizer_stage
from pipeline.store.errors import CorruptShard
from pipeline.store.records import SPLIT_CORPUS, Shards
from pipeline.store.shards import write_rows
from pipeline.store.store import Outcome, Stage

CFG = TokenizerConfig(vocab_size=270, compared_with=())


@pytest.fixture
def built(store, neutral_document):
    def documents(cfg, inputs, work):
        rows = [neutral_document | {"page_id": "p", "text": "a cat sat on a mat " * 9, "split": "train"}]
        write_rows(work.directory / "x.parquet", rows, SPLIT_CORPUS)
        return Outcome(rows=1)

    corpus = store.build(Stage(name="split", version=1, function=documents, handle=Shards), {}).handle
    return store.build(TOKENIZER, CFG, corpus)


@pytest.fixture
def path(store, built, tmp_path):
    path = tmp_path / "kept_tokenizer.json"
    keep_tokenizer(path, store.root, built.handle)
    return path


def test_kept_tokenizer_is_found_without_its_corpus(store, built, path):
    kept = kept_tokenizer(path, store.root, TOKENIZER, CFG)
    assert kept is not None and kept.unchanged and kept.handle == built.handle and kept.record["measures"]["kept"]
    assert kept_tokenizer(path, store.root, tokenizer_stage(store.root / "cache"), CFG) == kept


def test_kept_tokenizer_other_recipe_is_not_answered(store, path):
    assert kept_tokenizer(path, store.root, TOKENIZER, replace(CFG, vocab_size=280)) is None
    assert kept_tokenizer(path, store.root, replace(TOKENIZER, version=99), CFG) is None


def test_kept_tokenizer_released_or_never_kept_is_none(store, path):
    assert release_tokenizer(path) and not release_tokenizer(path)
    assert kept_tokenizer(path, store.root, TOKENIZER, CFG) is None


def test_kept_tokenizer_that_is_gone_is_refused(store, built, path):
    shutil.rmtree(built.handle.directory)
    with pytest.raises(ValueError, match=r"where there is none; delete kept_tokenizer\.json"):
        kept_tokenizer(path, store.root, TOKENIZER, CFG)


def test_kept_tokenizer_that_lost_bytes_is_refused(store, built, path):
    (built.handle.directory / "tokenizer.tiktoken").write_bytes(b"")
    with pytest.raises(CorruptShard, match=r"tokenizer\.tiktoken: 0 bytes"):
        kept_tokenizer(path, store.root, TOKENIZER, CFG)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"folder": 3}', b"\xff", b'{"folder": "../../elsewhere"}', b'{"folder": "split"}'],
)
def test_kept_tokenizer_file_that_names_none_is_refused(store, path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match="delete"):
        kept_tokenizer(path, store.root, TOKENIZER, CFG)


def test_kept_tokenizer_other_output_is_refused(store, built, path):
    corpus = built.record["inputs"][0]
    path.write_text(json.dumps({"folder": f"split/{corpus['fingerprint']}"}))
    with pytest.raises(ValueError, match="where there is none"):
        kept_tokenizer(path, store.root, TOKENIZER, CFG)
