"""What goes with a forgotten page, over the real stages from files to unique documents."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pipeline.corpus.clean.stage import CLEAN, CleanConfig
from pipeline.corpus.collect.sources import FilesSource
from pipeline.corpus.collect.stage import CollectConfig, collect
from pipeline.corpus.dedup.stage import DEDUP, DedupConfig
from pipeline.corpus.deny_list import Denial, change_denials, deny_list
from pipeline.corpus.examples.stage import LabelledFile
from pipeline.corpus.filter.rules import FilterConfig, FilterRecipe
from pipeline.corpus.filter.stage import FILTER
from pipeline.corpus.signals.stage import MEASURE, SignalsConfig
from pipeline.provenance.copies import CopyLimits, find_copies
from pipeline.provenance.forget import Findings, denials_of, find_pages, findings, known, texts_of
from pipeline.store.engine import Done
from pipeline.store.records import Handle
from pipeline.store.shards import read_table, shard_paths
from pipeline.store.store import Store
from pipeline.tasks.classification import KIND
from pipeline.tasks.classification import ClassificationExamplesConfig as ExamplesConfig

PEOPLE = ["miller", "baker", "farmer", "teacher", "sailor", "weaver", "shepherd", "doctor"]
THINGS = ["the grain", "the flour of the village", "some bread", "the wheel and the stone", "her candle", "a letter"]
SOURCES = ("letters", "mirror")
RECIPE = FilterRecipe(config=FilterConfig(rules=(), languages=(), pii=()))
LIMITS = CopyLimits()


def story(rng: random.Random, n_sentences: int = 20) -> str:
    return " ".join(
        f"The {rng.choice(PEOPLE)} number {rng.randrange(10_000)} gave {rng.choice(THINGS)} to the"
        f" {rng.choice(PEOPLE)} {rng.randrange(10_000)}."
        for _ in range(n_sentences)
    )


@dataclass(frozen=True, kw_only=True)
class Mill:
    """Two folders as sources, and what the stages make of them."""

    folder: Path
    store: Store
    denied: Path

    def handles(self) -> dict[str, Handle]:
        handles = {
            f"pages/{name}": collect(
                self.store,
                FilesSource(name=name, path=str(self.folder / name), url_key="link"),
                self.folder / "cache",
                CollectConfig(n_shards=3),
                denied=self.denied,
            ).handle
            for name in SOURCES
        }
        cleaned = self.store.build(CLEAN, CleanConfig(), *handles.values()).handle
        measured = self.store.build(MEASURE, SignalsConfig(), cleaned).handle
        listed = deny_list(self.store, self.denied)
        handles["documents"] = self.store.build(FILTER, RECIPE, cleaned, measured, *listed).handle
        handles["corpus"] = self.store.build(DEDUP, DedupConfig(), handles["documents"]).handle
        return handles

    def found(self, *queries: str, containing: float | None = None) -> Findings:
        outputs = known(self.handles())
        asked = [page for query in queries for page in find_pages(outputs, query)]
        return findings(outputs, asked, LIMITS, containing=containing, engine=self.store.engine)

    def deny(self, found: Findings) -> list[Denial]:
        rows = denials_of(known(self.handles()), found, date="2026-01-31", reason="asked for", asked_by=None)
        change_denials(self.denied, lambda before: ([], rows))
        return rows


class InThisProcess:
    """An engine without workers."""

    def map(self, function, items, **limits):
        return (Done(function(item)) for item in items)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Ten stories; the first has an equal copy elsewhere, near ones, an excerpt, and a book that holds it."""
    folder = tmp_path_factory.mktemp("mill")
    rng = random.Random(1)
    texts = [story(rng) for _ in range(10)]
    files = {f"letters/story{i}.txt": text for i, text in enumerate(texts)}
    words = texts[0].split()
    files |= {
        "mirror/same.txt": texts[0].upper(),
        "letters/nearly.txt": " ".join([*words[:-5], "and that was all of it"]),
        "letters/longer.txt": texts[0] + " The end of the story of the miller.",
        "mirror/excerpt.txt": " ".join(words[30:130]),
        "letters/book.txt": " ".join([texts[1], texts[0], texts[2], story(rng, 60)]),
        "letters/half.txt": " ".join(words[: len(words) // 2]) + " " + story(rng, 30),
    }
    talk = [{"text": story(rng, 6), "link": "https://talk.example/1"} for _ in range(3)]
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "letters" / "talk.jsonl").write_text("".join(json.dumps(line) + "\n" for line in talk))
    return folder


@pytest.fixture
def mill(folder, tmp_path) -> Mill:
    """With a list of its own; what is equal is built once for all tests."""
    store = Store(root=folder / "store", engine=InThisProcess())
    return Mill(folder=folder, store=store, denied=tmp_path / "denied.jsonl")


def names(relatives: Sequence) -> set[str]:
    return {relative.page.url.rpartition("/")[2] for relative in relatives}


def urls(handle: Handle) -> set[str]:
    return {
        url.rpartition("/")[2]
        for path in shard_paths(handle.directory)
        for url in read_table(path)["url"].to_pylist()
    }


def test_find_pages_by_address_end_page_id_and_document_ids(mill):
    handles = mill.handles()
    outputs = known(handles)
    (page,) = find_pages(outputs, "letters/story3.txt")
    assert (page.source, page.url) == ("letters", (mill.folder / "letters" / "story3.txt").as_uri())
    assert page.n_words == len(texts_of(outputs, [page])[page.page_id].split())
    for query in (page.url, page.page_id, page.document_id):
        assert find_pages(outputs, query) == [page]
    assert len(find_pages(outputs, "story3.txt")) == 1 and len(find_pages(outputs, ".txt")) == 16
    assert find_pages(outputs, "no such thing") == []
    assert len(find_pages(outputs, "https://talk.example/1")) == 3


def test_document_id_means_all_pages_of_that_text(mill):
    outputs = known(mill.handles())
    (page,) = find_pages(outputs, "story0.txt")
    assert page.document_id is not None
    assert {one.url.rpartition("/")[2] for one in find_pages(outputs, page.document_id)} == {"story0.txt", "same.txt"}


def test_forget_denies_copies_and_tells_what_holds_the_text(mill):
    found = mill.found("letters/story0.txt")
    assert names(found.copies) == {"same.txt", "nearly.txt", "longer.txt", "excerpt.txt"}
    assert {relative.page.url.rpartition("/")[2]: round(relative.held, 1) for relative in found.holders} == {
        "book.txt": 1.0,
        "half.txt": 0.6,
    }
    assert [round(relative.held, 1) for relative in found.holders] == [1.0, 0.6]
    why = {relative.page.url.rpartition("/")[2]: relative.why for relative in found.copies}
    assert why["same.txt"] == "the same text" and why["excerpt.txt"].startswith("excerpt: 100%")
    assert why["nearly.txt"].startswith("near copy")


@pytest.mark.parametrize(("containing", "gone"), [(0.9, {"book.txt"}), (0.4, {"book.txt", "half.txt"})])
def test_forget_containing_takes_longer_documents_along(mill, containing, gone):
    without, found = mill.found("story0.txt"), mill.found("story0.txt", containing=containing)
    assert names(found.copies) - names(without.copies) == gone
    assert names(found.holders) == names(without.holders) - gone


@pytest.mark.parametrize("asked", ["letters/story0.txt", "mirror/same.txt", "nearly.txt", "longer.txt"])
def test_forgotten_text_does_not_come_back_as_one_of_its_copies(mill, asked):
    """Whichever of a cluster is asked for, kept or dropped before: the next corpus has none that is like it."""
    outputs = known(mill.handles())
    text = texts_of(outputs, find_pages(outputs, asked))
    mill.deny(mill.found(asked))
    corpus = mill.handles()["corpus"]
    assert urls(corpus) >= {f"story{i}.txt" for i in range(3, 10)} | {"book.txt", "half.txt"}
    copies = find_copies(
        text, shard_paths(corpus.directory), LIMITS, engine=mill.store.engine, scratch=mill.folder / "scratch"
    )
    assert not [copy for copy in copies if copy.is_copy]
    assert not urls(corpus) & {"story0.txt", "same.txt", "nearly.txt", "longer.txt", "excerpt.txt"}


def test_what_dedup_dropped_for_a_copy_goes_too(mill, folder, tmp_path):
    """A chain: like the copy, and no longer like the text that was asked for."""
    mill = replace(mill, folder=tmp_path)
    for name in SOURCES:
        (tmp_path / name).mkdir()
    (tmp_path / "mirror" / "other.txt").write_text(story(random.Random(3)))
    (tmp_path / "letters" / "story5.txt").write_text((folder / "letters" / "story5.txt").read_text())
    words = (folder / "letters" / "story5.txt").read_text().split()
    further = [*words[:-20], *story(random.Random(9), 2).split()]
    (mill.folder / "letters" / "one.txt").write_text(" ".join([*words, *story(random.Random(7), 2).split()]))
    (mill.folder / "letters" / "two.txt").write_text(" ".join([*further, *story(random.Random(7), 2).split()]))
    found = mill.found("story5.txt")
    dropped_for = {
        (row["dropped_page_id"], row["kept_page_id"])
        for path in shard_paths(mill.handles()["corpus"].directory, "evidence")
        for row in read_table(path).to_pylist()
    }
    denied = {page.page_id for page in found.pages}
    assert {dropped for dropped, kept in dropped_for if kept in denied} <= denied
    mill.deny(found)
    again = urls(mill.handles()["corpus"])
    before = urls(mill.handles()["documents"])
    assert again <= before and "story5.txt" not in again


def test_pages_of_one_template_that_dedup_kept_are_told_and_stay(mill, tmp_path):
    """They are alike, and each says something of its own: who forgets one does not mean the others."""
    mill, rng = replace(mill, folder=tmp_path), random.Random(4)
    frame = [story(rng, 12), story(rng, 12)]
    for name in SOURCES:
        (tmp_path / name).mkdir()
        own = " ".join(f"{rng.choice(PEOPLE)}{rng.randrange(10_000)}" for _ in range(25))
        (tmp_path / name / f"{name}.txt").write_text(f"{frame[0]} {own} {frame[1]}")
    assert urls(mill.handles()["corpus"]) == {"letters.txt", "mirror.txt"}  # else this test would say nothing
    found = mill.found("letters.txt")
    (held,) = found.holders
    assert held.page.url.endswith("mirror.txt") and held.held > 0.8
    assert found.copies == ()


def test_page_id_of_a_shared_address_denies_this_page_alone(mill):
    outputs = known(mill.handles())
    page = find_pages(outputs, "https://talk.example/1")[1]
    (row,) = mill.deny(mill.found(page.page_id))
    assert (row.url, row.address, row.page_id) == (None, "https://talk.example/1", page.page_id)
    assert (
        len(find_pages(known({"documents": mill.handles()["documents"]}), "https://talk.example/1")) == 3
    )  # one denied
    left = [
        page_id
        for path in shard_paths(mill.handles()["documents"].directory)
        for page_id, url in zip(*(read_table(path)[name].to_pylist() for name in ("page_id", "url")), strict=True)
        if url == "https://talk.example/1"
    ]
    assert len(left) == 2 and page.page_id not in left


def test_forget_names_labelled_rows_with_the_text(mill, tmp_path):
    rng = random.Random(5)
    texts = [story(rng, 2) for _ in range(60)]
    outputs = known(mill.handles())
    page = find_pages(outputs, "letters/story0.txt")
    texts += [*texts_of(outputs, page).values(), " ".join(texts_of(outputs, page)[page[0].page_id].split()[:40])]
    lines = [{"text": text, "mood": ("sad", "glad")[i % 2]} for i, text in enumerate(texts)]
    (tmp_path / "moods.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    cfg = ExamplesConfig(text="text", label="mood")
    examples = KIND.build_examples(mill.store, LabelledFile(tmp_path / "moods.jsonl"), cfg, tmp_path).handle
    outputs = known({**mill.handles(), "moods_examples": examples})
    found = findings(outputs, page, LIMITS, containing=None, engine=mill.store.engine)
    assert {asset: len(ids) for asset, ids in found.examples.items()} == {"moods_examples": 1}
    assert found.near_examples == {"moods_examples": 1}


def test_forget_before_there_are_documents_denies_the_page_alone(mill):
    pages = {name: handle for name, handle in mill.handles().items() if name.startswith("pages/")}
    outputs = known(pages)
    found = findings(outputs, find_pages(outputs, "story0.txt"), LIMITS, containing=None, engine=mill.store.engine)
    assert [page.url.rpartition("/")[2] for page in found.pages] == ["story0.txt"]
    assert found.pages[0].document_id is None
