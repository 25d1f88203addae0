"""Fixtures that several stages' tests share."""

import pyarrow as pa
import pytest

from pipeline.stages.records import SPLIT_CORPUS, Shards, TokenizerFile
from pipeline.stages.shards import write_table
from pipeline.stages.store import Store
from pipeline.stages.tokenizer import TOKENIZER, TokenizerConfig


@pytest.fixture(scope="session")
def byte_tokenizer(tmp_path_factory) -> TokenizerFile:
    """A tokenizer whose tokens are the 256 bytes and end of text (id 256)."""
    folder = tmp_path_factory.mktemp("byte_tokenizer")
    values = {pa.string(): "x", pa.large_string(): "some text", pa.int64(): 1, pa.float32(): 1.0}
    row = {field.name: [values[field.type]] for field in SPLIT_CORPUS} | {"split": ["train"]}
    (folder / "corpus").mkdir()
    write_table(folder / "corpus" / "x.parquet", pa.table(row, schema=SPLIT_CORPUS))
    corpus = Shards(stage="split", directory=folder / "corpus", fingerprint="c", digest="c", rows=1)
    return Store(root=folder / "store").build(TOKENIZER, TokenizerConfig(vocab_size=257), corpus).handle
