"""Assets called as functions."""

import dagster as dg

from pipeline.assets import clean, tokenize
from pipeline.layout import load_current
from pipeline.resources import Mill
from pipeline.run_config import ConfigFile


def test_documents_called_with_a_setting_builds_with_it(toy_graph):
    mill = Mill(layout=toy_graph.layout)
    pages = {f"pages_{name.replace('-', '_')}": load_current(toy_graph.layout, f"pages/{name}") for name in SOURCES}
    asset = clean.documents(SOURCES, ConfigFile("config.toml"))
    context = dg.build_asset_context(asset_config={"filter": {"languages": [], "min_words": 200}})
    result = asset(context, mill=mill, **pages)
    assert 0 < result.value.rows < load_current(toy_graph.layout, "documents").rows
    assert result.data_version == dg.DataVersion(result.value.digest)


SOURCES = ["web", "local-texts"]


def test_tokenizer_called_twice_says_unchanged(toy_graph):
    asset = tokenize.tokenizer(ConfigFile("config.toml", {"tokenizer": {"vocab_size": 290}}))
    corpus = load_current(toy_graph.layout, "corpus")
    first, second = (
        asset(dg.build_asset_context(), mill=Mill(layout=toy_graph.layout), corpus=corpus) for _ in range(2)
    )
    assert first.value == second.value
    assert first.value.rows == 290
    assert (first.metadata["unchanged"], second.metadata["unchanged"]) == (False, True)
