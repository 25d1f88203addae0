"""What a person sees of a materialisation: results first, sensible numbers, a schema and a sample without texts."""

import re

import dagster as dg
import pyarrow.parquet as pq

from pipeline.corpus.laws import REMOVED
from pipeline.defs.names import asset_name
from pipeline.store.layout import all_current, load_current
from pipeline.store.shards import read_table, shard_paths

TABLES = {"pages/web", "pages/local-texts", "documents", "corpus", "token_shards", "moods_examples"}


def shown(run) -> dict[str, dict[str, dg.MetadataValue]]:
    return {
        asset_name(event.asset_key): dict(event.event_specific_data.materialization.metadata)
        for event in run.get_asset_materialization_events()
    }


def test_metadata_begins_with_what_matters_and_ends_with_where_it_is(toy_graph):
    metadata = {asset: list(values) for asset, values in shown(toy_graph.first).items()}
    assert metadata["moods_evaluation"][:2] == ["accuracy", "macro_f1"]
    assert metadata["foundation_evaluation"][0] == "bits_per_byte"
    assert set(metadata["foundation_model"][:3]) == {"training_loss", "validation_loss", "validation_bits_per_byte"}
    assert metadata["documents"][:5] == ["dagster/row_count", "rows_in", "rows_out", "rows_dropped", "rows"]
    assert all(names[-2:] == ["fingerprint", "path"] for names in metadata.values())


def test_metadata_numbers_are_short_and_constants_are_no_numbers(toy_graph):
    metadata = shown(toy_graph.first)
    for values in metadata.values():
        for value in values.values():
            if isinstance(value, dg.FloatMetadataValue):
                assert len(re.sub(r"e.*|[^0-9]|^0\.0*", "", f"{value.value!r}").strip("0")) <= 4
    model = metadata["foundation_model"]
    assert model["steps"].value == "30"
    assert all(isinstance(model[name], dg.TextMetadataValue) for name in ("parameters", "flops", "tokens", "size"))
    assert re.fullmatch(r"[0-9.]+ [kM]?B \([0-9,]+ bytes\)", model["size"].value)
    assert metadata["tokenizer"]["vocabulary_size"].value == "300"


def test_metadata_only_tables_have_rows_a_schema_and_an_address(toy_graph, second_run):
    handles = all_current(toy_graph.layout)
    for asset, values in shown(second_run).items():
        names = {"dagster/row_count", "dagster/column_schema", "dagster/uri"}
        assert names & set(values) == (names if asset in TABLES else set())
        if asset in TABLES:
            assert values["dagster/uri"].value == handles[asset].directory.as_uri()
    for asset in TABLES - {"token_shards"}:
        schema = pq.read_schema(shard_paths(handles[asset].directory)[0])
        columns = shown(toy_graph.first)[asset]["dagster/column_schema"].schema.columns
        assert [(column.name, column.type) for column in columns] == [(f.name, str(f.type)) for f in schema]


def test_metadata_sample_has_five_rows_and_no_text(toy_graph):
    sample = shown(toy_graph.first)["documents"]["sample"].value
    assert sample.startswith("| source | url |") and len(sample.splitlines()) == 7
    for path in shard_paths(load_current(toy_graph.layout, "documents").directory):
        for text in read_table(path, columns=["text"])["text"].to_pylist():
            assert text.split(".")[0][:40] not in sample


def test_metadata_of_what_was_not_built_again_has_no_pictures(toy_graph, second_run):
    first, second = shown(toy_graph.first), shown(second_run)
    with_pictures = {asset for asset, values in first.items() if "data:image/png" in str(values)}
    assert {"documents", "foundation_model", "corpus_report"} <= with_pictures
    assert not [asset for asset, values in second.items() if "data:image/png" in str(values)]
    assert second["moods_evaluation"]["accuracy"] == first["moods_evaluation"]["accuracy"]


def test_metadata_of_corpus_says_what_all_stages_together_removed_of_a_source(toy_graph):
    values = shown(toy_graph.first)["corpus"]
    removed = {name: value.value for name, value in values.items() if name.startswith(REMOVED)}
    (check,) = (one for one in toy_graph.first.get_asset_check_evaluations() if one.check_name == "source_loss")
    assert removed == {f"{REMOVED}_local-texts": 0.08333, f"{REMOVED}_web": 0.0}
    assert check.metadata["observed"].value == 0.083333333
    assert "source `local-texts`" in check.description


def test_metadata_link_to_mlflow_names_no_port_of_mlflow(toy_graph):
    fingerprint = load_current(toy_graph.layout, "foundation_model").fingerprint
    link = shown(toy_graph.first)["foundation_model"]["mlflow"]
    assert isinstance(link, dg.UrlMetadataValue) and link.value.endswith(f"/runs/{fingerprint}")


def test_metadata_wide_texts_are_long_enough_for_the_dialog_of_the_ui(second_run):
    texts = [
        value.value
        for values in shown(second_run).values()
        for value in values.values()
        if isinstance(value, dg.MarkdownMetadataValue)
    ]
    wide = [text for text in texts if max(map(len, text.splitlines())) > 60]
    assert wide and all(len(text) >= 1000 for text in wide)
    assert any(len(text) < 1000 for text in texts)
