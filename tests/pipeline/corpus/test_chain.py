"""Laws that hold for clean, signals and filter alike: workers and kill -9 change no byte."""

import os
import pickle
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.corpus.clean import stage as clean_module
from pipeline.corpus.clean.stage import CLEAN, CleanConfig, Cleaned, PageItem, clean_page
from pipeline.corpus.collect.sources import FilesSource
from pipeline.corpus.collect.stage import CollectConfig, collect
from pipeline.corpus.filter.rules import FilterConfig, FilterRecipe
from pipeline.corpus.filter.stage import FILTER
from pipeline.corpus.signals.stage import MEASURE, SignalsConfig
from pipeline.store.engine import Done, LocalProcesses
from pipeline.store.records import DOCUMENT, DROPPED, Counts, Handle, Shards
from pipeline.store.shards import read_table, shard_paths
from pipeline.store.store import Built, Store
from tests.children import python

STAGES = ("clean", "signals", "filter")
N_PAGES = 24
WORDING = "the mill and that miller have of grain to be with water wheel stone river flour sack road house bridge"


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    """Web pages and texts, with things to mask and pages to drop among them."""
    folder = tmp_path_factory.mktemp("pages")
    rng = random.Random(1)
    for i in range(N_PAGES):
        sentences = [" ".join(rng.choices(WORDING.split(), k=12)).capitalize() + "." for _ in range(12)]
        text = " ".join([*sentences, f"Write to miller{i}@mill.example."]) if i % 5 else "Too short."
        if i % 3:
            (folder / f"{i:02}.txt").write_text(text)
        else:
            (folder / f"{i:02}.html").write_text(f"<html><body><nav>Home</nav><p>{text}</p></body></html>")
    return folder


def store_at(path: Path, n_workers: int) -> Store:
    return Store(root=path, engine=LocalProcesses(n_workers=n_workers))


def collected(store: Store, pages: Path) -> Shards:
    source = FilesSource(name="mill", path=str(pages))
    return collect(store, source, store.root / "cache", CollectConfig(n_shards=3)).handle


def chain(store: Store, pages: Path, last: str = "filter") -> dict[str, Built]:
    """The stages up to `last`."""
    built = {"clean": store.build(CLEAN, CleanConfig(), collected(store, pages))}
    if last != "clean":
        built["signals"] = store.build(MEASURE, SignalsConfig(), built["clean"].handle)
    if last == "filter":
        recipe = FilterRecipe(config=FilterConfig(languages=()))
        built["filter"] = store.build(FILTER, recipe, built["clean"].handle, built["signals"].handle)
    return built


def bytes_of(handle: Handle) -> dict[str, bytes]:
    return {str(p.relative_to(handle.directory)): p.read_bytes() for p in handle.directory.rglob("*.parquet")}


@pytest.fixture(scope="module")
def undisturbed(pages, tmp_path_factory) -> dict[str, Built]:
    return chain(store_at(tmp_path_factory.mktemp("one"), 1), pages)


@pytest.fixture(scope="module")
def by_four(pages, tmp_path_factory) -> dict[str, Built]:
    return chain(store_at(tmp_path_factory.mktemp("four"), 4), pages)


@pytest.mark.parametrize("stage", STAGES)
def test_chain_four_workers_give_the_bytes_of_one(undisturbed, by_four, stage):
    one, four = undisturbed[stage], by_four[stage]
    assert bytes_of(one.handle) == bytes_of(four.handle) and one.handle.digest == four.handle.digest
    assert one.counts == four.counts and one.counts.is_conserved() and one.counts.kept


def test_chain_sample_has_something_to_mask_and_to_drop(undisturbed):
    """Else the other laws would say little."""
    counts = undisturbed["filter"].counts
    assert counts.dropped and counts.kept > N_PAGES // 2
    texts = [row["text"] for row in rows_of(undisturbed["filter"].handle)]
    assert texts and all("[EMAIL]" in text for text in texts)


def rows_of(handle: Handle, schema: Any = None, folder: str = "") -> list[dict]:
    return [row for path in shard_paths(handle.directory, folder) for row in read_table(path, schema).to_pylist()]


def killed_in(stage: str, root: str, pages: str) -> None:
    """Run the chain in a process that kills itself in the middle of a stage."""

    def show(name: str, done: int, total: int | None, unit: str) -> None:
        if name == stage and total and done > 0 and done * 2 >= total:
            os.kill(os.getpid(), signal.SIGKILL)

    chain(replace(store_at(Path(root), 2), show=show), Path(pages))


KILLED = """
from tests.pipeline.corpus.test_chain import killed_in
killed_in({stage!r}, {store!r}, {pages!r})
"""


@pytest.mark.parametrize("stage", STAGES)
def test_chain_killed_in_a_stage_and_run_again_gives_the_same_bytes(undisturbed, pages, tmp_path, stage):
    store = tmp_path / "store"
    killed = python("-c", KILLED.format(stage=stage, store=str(store), pages=str(pages)))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again = chain(store_at(store, 2), pages)
    assert not again[stage].unchanged
    for name in STAGES:
        assert again[name].unchanged == (STAGES.index(name) < STAGES.index(stage))
        assert bytes_of(again[name].handle) == bytes_of(undisturbed[name].handle)
        assert again[name].counts == undisturbed[name].counts


def page_that_kills(page: PageItem) -> Cleaned:
    if page.url.endswith("07.txt"):
        os.kill(os.getpid(), signal.SIGKILL)
    return clean_page(page)


def test_chain_page_whose_worker_is_killed_is_one_drop_and_the_rest_is_as_before(
    undisturbed, pages, tmp_path, monkeypatch
):
    monkeypatch.setattr(clean_module, "clean_page", page_that_kills)
    outputs = []
    for n_workers in (1, 3):
        store = store_at(tmp_path / str(n_workers), n_workers)
        built = chain(store, pages, last="clean")["clean"]
        outputs.append(bytes_of(built.handle))
        (lost,) = rows_of(built.handle, DROPPED, "dropped")
        assert (lost["url"].rpartition("/")[2], lost["reason"]) == ("07.txt", "crash")
        assert built.counts == Counts(rows_in=N_PAGES, kept=N_PAGES - 1, dropped={"crash": 1}, lost={"crash": 1})
        others = [row for row in rows_of(undisturbed["clean"].handle, DOCUMENT) if row["url"] != lost["url"]]
        assert rows_of(built.handle, DOCUMENT) == others
    assert outputs[0] == outputs[1]


class Scales:
    """An engine without workers that weighs what would travel to them."""

    def __init__(self):
        self.n_bytes = 0

    def map(self, function: Callable, items: Any, **limits: Any) -> Iterator[Done]:
        for item in items:
            self.n_bytes += len(pickle.dumps(item))
            yield Done(function(item))


def test_chain_a_text_travels_to_a_worker_once(tmp_path):
    """A slice of a table took the whole shard along, so that the cost grew with the square of a shard's size."""
    pages = tmp_path / "pages"
    pages.mkdir()
    for i in range(40):
        (pages / f"{i}.txt").write_text(f"The mill of the village has the number {i}. " * 2_500)
    store = Store(root=tmp_path / "store", engine=Scales())
    cleaned = store.build(CLEAN, CleanConfig(), collected(store, pages)).handle
    scales = Scales()
    replace(store, engine=scales).build(MEASURE, SignalsConfig(), cleaned)
    n_bytes = sum(len(row["text"]) for row in rows_of(cleaned))
    assert n_bytes > 4_000_000 and scales.n_bytes < 1.1 * n_bytes
