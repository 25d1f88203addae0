"""The asset `tokenizer`: its report in the UI, and a kept one that outlives its corpus."""

import dagster as dg
import pyarrow as pa
import pytest

from pipeline.corpus.tokens.kept_tokenizer import keep_tokenizer, release_tokenizer
from pipeline.defs import tokens as tokenize
from pipeline.defs.resources import Mill
from pipeline.defs.run_config import ConfigFile
from pipeline.store.layout import Layout
from pipeline.store.records import Shards
from pipeline.store.shards import write_table
from pipeline.store.store import Outcome, Stage, Store


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path / "data")


@pytest.fixture
def materialise(layout):
    """What the asset answers for a corpus of one text."""

    def answer(text, **changes):
        def documents(cfg, inputs, work):
            row = {"page_id": "p", "source": "web", "language": "en", "split": "train", "text": text}
            write_table(work.directory / "x.parquet", pa.Table.from_pylist([row]))
            return Outcome(rows=1)

        split = Stage(name="split", version=1, function=documents, handle=Shards)
        corpus = Store(root=layout.store).build(split, {"text": text}).handle
        table = {"vocab_size": 262, "compared_with": [], **changes}
        asset = tokenize.tokenizer(ConfigFile("config.toml", {"tokenizer": table}))
        return asset(dg.build_asset_context(), mill=Mill(layout=layout), corpus=corpus)

    return answer


def test_tokenizer_materialisation_shows_its_report_and_numbers_to_plot(materialise):
    metadata = materialise("the cat sat on the mat. " * 20).metadata
    assert "| web | 1 |" in metadata["report"].md_str
    assert metadata["bytes_per_token"] == metadata["bytes_per_token_of_web"] > 1.5
    assert metadata["vocab_size"] == metadata["vocabulary_size"] == "262"


def test_tokenizer_kept_one_is_the_answer_for_every_corpus(materialise, layout):
    first = materialise("the cat sat on the mat. " * 20)
    keep_tokenizer(layout.kept_tokenizer, layout.store, first.value)
    second = materialise("a dog ran in the fog. " * 20)
    assert second.value == first.value and second.data_version == first.data_version
    assert second.metadata["kept"] == 1 and second.metadata["unchanged"]
    assert materialise("a dog ran in the fog. " * 20, vocab_size=265).value.rows == 265
    release_tokenizer(layout.kept_tokenizer)
    assert materialise("a dog ran in the fog. " * 20).value.digest != first.value.digest
