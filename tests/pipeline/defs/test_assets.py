"""Assets called as functions."""

from collections import Counter
from dataclasses import replace

import dagster as dg

from pipeline.corpus.collect.sources import read_sources
from pipeline.defs import documents as clean
from pipeline.defs import tokens as tokenize
from pipeline.defs.resources import Mill
from pipeline.defs.run_config import ConfigFile
from pipeline.store.layout import load_current
from pipeline.store.shards import read_table, shard_paths


def test_documents_called_with_a_setting_builds_with_it(toy_graph):
    mill = Mill(layout=toy_graph.layout)
    sources = read_sources(toy_graph.layout.sources_toml)
    pages = {f"pages_{name.replace('-', '_')}": load_current(toy_graph.layout, f"pages/{name}") for name in sources}
    asset = clean.documents(sources, ConfigFile("config.toml"))
    context = dg.build_asset_context(asset_config={"filter": {"languages": [], "min_words": 200}})
    result = asset(context, mill=mill, **pages)
    assert 0 < result.value.rows < load_current(toy_graph.layout, "documents").rows
    assert result.data_version == dg.DataVersion(result.value.digest)


def test_documents_of_a_source_with_its_own_rules_are_judged_by_them(toy_graph):
    mill, sources = Mill(layout=toy_graph.layout), read_sources(toy_graph.layout.sources_toml)
    pages = {f"pages_{name.replace('-', '_')}": load_current(toy_graph.layout, f"pages/{name}") for name in sources}
    before = documents_by_source(load_current(toy_graph.layout, "documents"))
    for name, source in sources.items():
        own = sources | {name: replace(source, rules=("gopher_quality",), languages=("fr",))}
        context = dg.build_asset_context(asset_config={})
        result = clean.documents(own, ConfigFile("config.toml"))(context, mill=mill, **pages)
        assert documents_by_source(result.value) == before | {name: 0}


def documents_by_source(documents):
    counts = Counter({"web": 0, "local-texts": 0})
    for path in shard_paths(documents.directory):
        counts.update(read_table(path, columns=["source"])["source"].to_pylist())
    return dict(counts)


def test_tokenizer_called_twice_says_unchanged(toy_graph):
    asset = tokenize.tokenizer(ConfigFile("config.toml", {"tokenizer": {"vocab_size": 290, "compared_with": []}}))
    corpus = load_current(toy_graph.layout, "corpus")
    first, second = (
        asset(dg.build_asset_context(), mill=Mill(layout=toy_graph.layout), corpus=corpus) for _ in range(2)
    )
    assert first.value == second.value
    assert first.value.rows == 290
    assert (first.metadata["unchanged"], second.metadata["unchanged"]) == (False, True)
