"""No text of a page or an example is in what Dagster keeps for ever: only ids, addresses and numbers."""

import json
import re

import pytest

from pipeline.commands.run import Watch
from pipeline.corpus.source_loss import removed_fractions
from pipeline.store.layout import load_current
from pipeline.store.progress import Display
from pipeline.store.shards import read_table, shard_paths
from tests.pipeline.test_definitions import metadata_of

RUN = 6  # words in a row, which invented stories share with nothing else


def runs_of(text: str) -> set[str]:
    words = re.findall(r"\w+", text.casefold())
    return {" ".join(words[i : i + RUN]) for i in range(len(words) - RUN + 1)}


def told(run) -> dict[str, str]:
    """Everything that the run's events keep, as text."""
    found = {f"{asset} {name}": str(value) for asset, of in metadata_of(run).items() for name, value in of.items()}
    for check in run.get_asset_check_evaluations():
        values = {name: value.value for name, value in check.metadata.items()}
        found[f"check {check.check_name}"] = json.dumps([check.description, values], default=str)
    return found


def test_metadata_holds_no_text_of_pages_or_examples(toy_graph):
    """samples.md and leaked texts were metadata, which `forget --purge` cannot take back (own review)."""
    texts = [
        text
        for asset in ("corpus", "moods_examples")
        for path in shard_paths(load_current(toy_graph.layout, asset).directory)
        for text in read_table(path, columns=["text"])["text"].to_pylist()
    ]
    known = set().union(*map(runs_of, texts))
    leaked = {name: sorted(runs_of(value) & known)[:2] for name, value in told(toy_graph.first).items()}
    assert not {name: runs for name, runs in leaked.items() if runs}


def test_metadata_of_a_run_that_builds_nothing_holds_no_picture(toy_graph, second_run):
    """Every run kept the pictures of all reports once more, 2.5 MB a run (own review)."""
    assert any("data:image/png" in value for value in told(toy_graph.first).values())
    again = told(second_run)
    assert not [name for name, value in again.items() if "data:image/png" in value]
    assert sum(map(len, again.values())) < 200_000


def test_metadata_of_the_corpus_says_what_all_its_stages_removed_of_a_source(toy_graph):
    """removed_fraction_<source> was that of dedup_lines alone: 0 while dedup dropped documents (own trials)."""
    told_of = metadata_of(toy_graph.first)["corpus"]
    removed = removed_fractions(load_current(toy_graph.layout, "corpus"))
    assert removed["local-texts"] > 0
    assert {name: told_of[f"removed_fraction_{name}"] for name in removed} == pytest.approx(removed, rel=1e-3)


def test_run_says_what_the_baseline_of_an_evaluation_took(toy_graph, tmp_path):
    """An evaluation that trains did not say that this is the baseline, nor how to leave it out (own trials, A15)."""
    with (tmp_path / "screen").open("w") as stream:
        watch = Watch(display=Display(stream), layout=toy_graph.layout, assets_of={})
        watch.finished_before = set()
        watch._outcome("moods_evaluation")
        watch._outcome("moods_model")
    (note,) = watch.notes
    assert "trained the baseline random_init" in note and "`random_init = false` in [moods_evaluation]" in note
