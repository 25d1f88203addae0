"""corpus_report: what it says of a corpus equals what lies in the folders, over hand-made outputs of every stage."""

import json
import os
import re
import shutil
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest

from pipeline.corpus.collect.source_rules import SourceRules
from pipeline.corpus.filter.rules import FilterConfig, FilterRecipe
from pipeline.corpus.report.corpus_chain import read_chain
from pipeline.corpus.report.corpus_results import corpus_results
from pipeline.corpus.report.data_card import data_card
from pipeline.corpus.report.stage import CORPUS_REPORT, CorpusReportConfig, corpus_report_recipe, measured_tables
from pipeline.store.records import (
    DOCUMENT,
    DROPPED,
    FILTERED,
    PAGE,
    SIGNALS,
    SPLIT_CORPUS,
    Columns,
    Counts,
    Shards,
)
from pipeline.store.shards import DROPPED_FOLDER, text_digest, write_rows
from pipeline.store.store import NOT_IDENTITY, Outcome, Stage, Store, recipe_of

DIGEST = "02c36029bc7d0389aeaca1c8b9e88f1d"
PII = ("email", "ip_address")
OF_THE_RULES = ("signals", "histograms", "rule_sets")


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page and its fate: a split, or the stage and the reason that dropped it; `lost` is no reason but a fault."""

    source: str
    name: str
    text: str = "The miller gave her the flour and she said that he may have it."
    fate: str = "train"
    url: str | None = None
    licence: str | None = "MIT"
    language: str = "en"
    pii: dict[str, int] = field(default_factory=dict)
    n_masked: int = 0
    n_mojibake: int = 0
    cluster_size: int = 1
    signals: dict[str, float] = field(default_factory=dict)

    @property
    def n_words(self) -> int:
        return len(self.text.split())

    def columns(self) -> dict[str, Any]:
        """Every column of every schema that this page has something to say about."""
        return {
            "id": f"id-{self.name}",
            "page_id": f"page-{self.name}",
            "source": self.source,
            "url": self.url or f"https://{self.source}.example/{self.name}",
            "media_type": "text/html",
            "extractor": "trafilatura",
            "licence": self.licence,
            "text": self.text,
            "content": self.text.encode(),
            "collected_at": datetime(2026, 1, 1, tzinfo=UTC),
            "language": self.language,
            "language_confidence": 0.99,
            "n_words": self.n_words,
            "mean_word_length": 4.5,
            "alphabetic_word_fraction": 1.0,
            "alphabetic_chunk_fraction": 1.0,
            "n_stop_words": 8,
            "pii": list(self.pii.items()),
            "n_masked": self.n_masked,
            "n_mojibake": self.n_mojibake,
            "cluster_id": f"page-{self.name}",
            "cluster_size": self.cluster_size,
            "family_id": f"page-{self.name}",
            "split": self.fate,
            **self.signals,
        }


ORDER = ("collect", "clean", "filter", "dedup")
BEFORE = {"collect": 0, "clean": 1, "signals": 2, "filter": 2, "dedup": 3, "split": 4}  # stages that drop
SCHEMAS = {"collect": PAGE, "clean": DOCUMENT, "signals": SIGNALS, "filter": FILTERED, "split": SPLIT_CORPUS}
LONG = "She and her mother were there. " * 20
PAGES = (
    *(Page(source="books", name=f"book{i}", text=f"{i} {LONG}", fate="train", licence=None) for i in range(6)),
    Page(source="books", name="book6", text=f"6 {LONG}", fate="test", licence=None, cluster_size=3),
    Page(source="books", name="copy1", text=f"6 {LONG}", fate="dedup exact_duplicate", licence=None),
    Page(source="books", name="copy2", text=f"6 {LONG} The end.", fate="dedup near_duplicate", licence=None),
    Page(source="news", name="a", pii={"email": 2, "phone": 1}, n_masked=2, n_mojibake=3),
    Page(source="news", name="b", text="They be working and he ain't happy with the colour.", fate="validation"),
    Page(source="news", name="c", text="Der Mehlsack", language="de", signals={"n_stop_words": 0}),
    Page(
        source="news",
        name="d",
        text="Too short",
        fate="filter too_few_words",
        signals={"alphabetic_word_fraction": 0.5},
    ),
    Page(source="news", name="e", text="x", fate="filter wrong_language", language="fr"),
    Page(source="news", name="f", text="", fate="clean no_text", url="file:///home/somebody/secret/f.html"),
    Page(source="news", name="g", text="", fate="collect too_large"),
)


@dataclass(frozen=True, kw_only=True)
class Written:
    """The config of the stages below: what `collect` and `filter` put into their records, and the pages."""

    pages: tuple[str, ...] = field(metadata=NOT_IDENTITY)
    digest: str
    source: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, Any] = field(default_factory=dict)


def write_stage(cfg: Written, inputs: tuple, work: Any) -> Outcome:
    """What the stage of that name would leave of the pages."""
    pages = [Page(**json.loads(page)) for page in cfg.pages]
    if "name" in cfg.source:
        pages = [page for page in pages if page.source == cfg.source["name"]]
    name = work.stage
    passed = [page for page in pages if stage_that_drops(page) not in ORDER[: BEFORE[name]]]
    dropped = [page for page in passed if stage_that_drops(page) == name]
    kept = [page for page in passed if stage_that_drops(page) != name]
    for source in sorted({page.source for page in pages}):
        shard, schema = f"{source}-00000.parquet", SCHEMAS.get(name, SPLIT_CORPUS)
        write_rows(work.directory / shard, [row_of(page, schema) for page in kept if page.source == source], schema)
        lost = [
            row_of(page, DROPPED) | {"stage": name, "reason": page.fate.split()[1], "preview": page.text[:200]}
            for page in dropped
            if page.source == source and not page.fate.endswith(" lost")
        ]
        if lost:
            write_rows(work.directory / DROPPED_FOLDER / shard, lost, DROPPED)
    counts = Counts(rows_in=len(passed), kept=len(kept))
    for page in dropped:
        counts.drop(page.fate.split()[1])
    return Outcome(rows=len(kept), counts=counts, content=tuple(f"{page.source}-00000.parquet" for page in pages))


def stage_that_drops(page: Page) -> str | None:
    return page.fate.split()[0] if " " in page.fate else None


def row_of(page: Page, schema: pa.Schema) -> dict[str, Any]:
    said = page.columns()
    if schema is PAGE:
        said["id"] = said["page_id"]
    return {one.name: said.get(one.name, neutral(one)) for one in schema}


def neutral(one: pa.Field) -> Any:
    empty = [] if pa.types.is_nested(one.type) else "" if "string" in str(one.type) else 0
    return None if one.nullable else empty


def chain(store: Store, pages=PAGES, recipe=None):
    """Handles of `filter` and `split`, and of what they were made from."""
    recipe = recipe or FilterRecipe(config=FilterConfig(pii=PII), sources={"news": SourceRules(pii=("email",))})
    lines = tuple(json.dumps(asdict(page)) for page in pages)
    made: dict[str, Any] = {}

    def build(name, *inputs, **config):
        handle = Columns if name == "signals" else Shards
        stage = Stage(name=name, version=1, function=write_stage, handle=handle)
        return store.build(stage, Written(pages=lines, digest=text_digest(*lines), **config), *inputs).handle

    sources = sorted({page.source for page in pages})
    collected = [build("collect", source={"name": one, "members": ["*.html"]}) for one in sources]
    made["clean"] = build("clean", *collected)
    made["signals"] = build("signals", made["clean"])
    config = {"config": asdict(recipe.config), "sources": {k: asdict(v) for k, v in recipe.sources.items()}}
    made["documents"] = build("filter", made["clean"], made["signals"], **config)
    made["dedup"] = build("dedup", made["documents"])
    made["corpus"] = build("split", made["dedup"])
    return made


def reported(store: Store, made, cfg=None):
    handles = made["documents"], made["corpus"]
    return store.build(CORPUS_REPORT, corpus_report_recipe(cfg or CorpusReportConfig(), *handles), *handles)


@dataclass(frozen=True)
class Said:
    """What a report says, without its figures, which take most of the time."""

    tables: dict[str, Any]
    results: dict[str, float]
    card: str


def said(store: Store, pages=PAGES, cfg=None, made=None) -> Said:
    made, cfg = made or chain(store, pages), cfg or CorpusReportConfig()
    found = read_chain(made["documents"], made["corpus"])
    tables = measured_tables(cfg, found, store.root / "scratch", lambda done: None)
    results = {one["metric"]: one["value"] for one in corpus_results(tables)}
    return Said(json.loads(json.dumps(tables)), results, data_card(cfg, found, tables))


def kept_pages(pages=PAGES):
    return [page for page in pages if stage_that_drops(page) is None]


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> Said:
    """Of PAGES, for tests that only look."""
    return said(Store(root=tmp_path_factory.mktemp("example")))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The finished folder of the same."""
    store = Store(root=tmp_path_factory.mktemp("built"))
    return reported(store, chain(store))


# What it counts.


def test_report_sources_languages_licences_and_splits_are_those_of_the_pages(example):
    tables, kept = example.tables, kept_pages()
    for row in tables["sources"]:
        own = [page for page in kept if page.source == row["source"]]
        assert (row["documents"], row["words"]) == (len(own), sum(page.n_words for page in own))
        assert row["bytes"] == sum(len(page.text.encode()) for page in own)
        assert row["without_licence"] == sum(page.licence is None for page in own)
        assert row["mojibake"] == sum(page.n_mojibake for page in own)
    for table, column in (("languages", "language"), ("licences", "licence")):
        counted = Counter(getattr(page, column) for page in kept)
        assert {row[column]: row["documents"] for row in tables[table]} == counted
    assert {(row["source"], row["split"]): row["documents"] for row in tables["splits"]} == Counter(
        (page.source, page.fate) for page in kept
    )
    assert len(kept) == example.results["documents"]


def test_report_funnel_reconciles_source_by_source(example):
    tables = example.tables
    for row in tables["funnel"]:
        assert row["rows_in"] == row["kept"] + row["dropped"] and row["unaccounted"] == 0
    dropped = Counter(
        (page.fate.split()[0], page.source, page.fate.split()[1]) for page in PAGES if stage_that_drops(page)
    )
    assert {(row["stage"], row["source"], row["reason"]): row["documents"] for row in tables["dropped"]} == dropped
    seen = {row["source"]: row["rows_in"] for row in tables["funnel"] if row["stage"] == "collect"}
    assert seen == Counter(page.source for page in PAGES)
    assert example.results["dropped_share_filter"] == 2 / 14


def test_report_personal_data_left_in_the_text_is_told_apart_from_masked(example):
    tables = example.tables
    assert {(row["source"], row["kind"]): row["found"] for row in tables["pii"]} == {
        ("news", "email"): 2,
        ("news", "phone"): 1,
    }
    assert "- Personal data was found and left in the text: `phone` 1." in example.card
    words = sum(page.n_words for page in kept_pages())
    assert example.results["pii_unmasked_per_million_words"] == 1_000_000 / words


def test_report_terms_are_counted_before_and_after_cleaning(example):
    sides = {(row["axis"], row["side"]): row for row in example.tables["terms"]}
    english = [page.text for page in kept_pages() if page.language == "en"]
    she = sum(text.lower().split().count(word) for text in english for word in ("she", "her"))
    assert sides["pronouns", "she"]["count"] == she
    assert sides["pronouns", "she"]["before"] == she + 2 * (20 + 20)  # the two copies that went
    assert sides["dialect", "African-American English"]["by_source"] == {"news": 1}
    assert sides["spelling", "British"]["count"] == 1


@pytest.mark.parametrize(
    ("text", "axis", "side", "count"),
    [
        ("Would they be using it? He asks that they be working.", "dialect", "African-American English", 0),
        ("They be nothing, and he has done finished work.", "dialect", "African-American English", 0),
        ("She be singing. We done talked; finna go.", "dialect", "African-American English", 3),
        ("He ain\u2019t here and y'all know it.", "dialect", "several vernaculars", 2),
        ("Heralds, sheep and hers truly: SHE.", "pronouns", "she", 2),
        ("organise, organization and centred", "spelling", "British", 1),
    ],
)
def test_report_term_lists_take_words_and_leave_look_alikes(store, text, axis, side, count):
    tables = said(store, [Page(source="web", name="a", text=text)]).tables
    assert [row["count"] for row in tables["terms"] if (row["axis"], row["side"]) == (axis, side)] == [count]


def test_report_occupations_find_the_next_pronoun_of_the_sentence(store):
    text = "The nurse said that she slept. A doctor left. He sang. Two engineers and their friends gave him tea."
    assert said(store, [Page(source="web", name="a", text=text)]).tables["occupations"] == [
        {"occupation": "engineer", "she": 0, "he": 1},
        {"occupation": "nurse", "she": 1, "he": 0},
    ]


def test_report_rule_sets_drop_what_the_rules_drop(example):
    rows = example.tables["rule_sets"]
    by_set = Counter()
    for row in rows:
        by_set[row["rule_set"], row["reason"]] += row["documents"]
    # of the pages that came through `clean`: those with few words, and the one whose words are half signs
    n = sum(stage_that_drops(page) not in ("collect", "clean") for page in PAGES)
    few = sum(page.n_words < 50 and stage_that_drops(page) not in ("collect", "clean") for page in PAGES)
    assert by_set["gopher_quality", "too_few_words"] == few
    assert by_set["gopher_quality", None] == n - few
    assert by_set["gopher_repetition", None] == n


def test_report_histograms_hold_every_measured_document_and_reach_the_limits(example):
    for row in example.tables["histograms"]:
        assert sum(row["kept"]) == 12 and sum(row["dropped"]) == 2
        assert row["edges"] == sorted(row["edges"]) and len(row["kept"]) == len(row["edges"]) + 1
        if not row["whole"]:
            assert max([*row["low"], *row["high"]], default=0) <= row["edges"][-1]
    signals = {row["signal"]: row for row in example.tables["signals"]}
    assert (signals["n_words"]["min"], signals["n_words"]["max"]) == (2, 123)


def test_report_duplicates_are_counted_by_cluster(example):
    sizes = {row["size"]: (row["kept"], row["documents"]) for row in example.tables["cluster_sizes"]}
    assert sizes == {"1": (9, 9), "3": (1, 3)}


# What it says.


def test_report_card_flags_a_missing_licence_and_keeps_the_documents(example):
    assert "- **No licence is declared for 7 documents** (70.0 %), of books. They were kept." in example.card
    assert example.results["share_without_licence"] == 0.7


def test_report_card_names_sources_of_which_nothing_is_left(store):
    pages = [Page(source="web", name="a"), Page(source="gone", name="b", fate="clean no_text")]
    assert "- No document is left of gone." in said(store, pages).card


def test_report_card_has_every_section_and_shows_every_figure(built):
    card = (built.handle.directory / "data_card.md").read_text()
    assert built.handle.rows == 10
    for section in ("Motivation", "Composition", "Collection", "Processing", "Licences", "Personal data", "Toxicity"):
        assert f". {section}\n" in card
    figures = sorted(path.name for path in (built.handle.directory / "figures").iterdir())
    assert len(figures) == 8
    for name in figures:
        assert f"](figures/{name})" in card
        assert (built.handle.directory / "figures" / name).read_bytes().startswith(b"\x89PNG")


def test_report_card_tells_no_folder_of_this_machine(built):
    for name in ("data_card.md", "report.md", "results.json"):
        assert "secret" not in (built.handle.directory / name).read_text()
    assert "`file:.../f.html`" in (built.handle.directory / "data_card.md").read_text()


def test_report_card_keeps_what_is_hostile_as_words(store):
    hostile = "MIT | <script>alert(1)</script>\n# Heading ![x](http://evil.example/) `code` \u202e**bold**"
    page = Page(source="web", name="a", licence=hostile, url="https://evil|`x`.example/\n|a|b|", fate="train")
    card = said(store, [page, replace(page, name="b", fate="filter bad|`reason`")]).card
    assert "<script>" not in card and "\n# Heading" not in card and "\u202e" not in card
    assert not re.search(r"(?<!\\)\]\(http", card)
    lines = card.splitlines()
    for place, line in enumerate(lines):
        if line.startswith("| ") and place and lines[place - 1].startswith("| "):
            unescaped = line.replace("\\|", "")
            assert unescaped.count("|") == lines[place - 1].replace("\\|", "").count("|")


def test_report_title_purpose_and_contact_are_shown(store):
    cfg = CorpusReportConfig(title="Mill texts", purpose="to try", contact="mill@example.org")
    card = said(store, cfg=cfg).card
    assert card.startswith("# Data card: Mill texts\n")
    assert "Purpose: to try." in card and "Contact: mill@example.org" in card


def test_report_of_a_stage_that_loses_documents_says_so(store):
    lost = Page(source="news", name="z", fate="dedup lost")
    report = said(store, [*PAGES, lost])
    assert report.results["unaccounted_documents"] == 1
    assert "**1 document unaccounted for**" in report.card


# What is not there.


def test_report_of_an_empty_corpus_says_so(store):
    built = reported(store, chain(store, [Page(source="web", name="a", fate="filter too_few_words")]))
    assert built.handle.rows == 0
    assert "**The corpus is empty.**" in (built.handle.directory / "data_card.md").read_text()
    results = json.loads((built.handle.directory / "results.json").read_text())
    assert all(one["value"] == 0 for one in results if not one["metric"].startswith("dropped"))


def test_report_of_no_pages_at_all_says_so(store):
    assert "There are no documents" in said(store, []).card


def test_report_of_one_document_is_a_report(store):
    built = reported(store, chain(store, [Page(source="web", name="a")]))
    assert built.handle.rows == 1
    assert "**1 document, 14 words" in (built.handle.directory / "report.md").read_text()


@pytest.mark.parametrize("gone", [("collect",), ("signals",), ("collect", "clean", "signals", "dedup")])
def test_report_names_outputs_that_were_removed_and_counts_the_rest(store, gone):
    made = chain(store)
    for stage in gone:
        shutil.rmtree(store.root / stage)
    report = said(store, made=made)
    stages = {row["stage"] for row in report.tables["funnel"]}
    assert stages == {"collect", "clean", "filter", "dedup", "split"} - set(gone)
    for stage in set(gone) - {"collect"} if "clean" in gone and len(gone) > 1 else gone:
        assert f"`{stage}`" in report.card.split("were removed since")[0].splitlines()[-1]
    assert report.results["documents"] == 10 and report.results["unaccounted_documents"] == 0


def test_report_of_a_corpus_that_was_made_from_other_documents_is_refused(store):
    made, other = chain(store), chain(store, PAGES[:3])
    with pytest.raises(ValueError, match=r"was made from other documents .* materialise `corpus` first"):
        reported(store, {**made, "documents": other["documents"]})


def test_report_of_the_wrong_stages_is_refused(store):
    made = chain(store)
    with pytest.raises(ValueError, match="is an output of `clean`, expected one of `filter`"):
        reported(store, {**made, "documents": made["clean"]})


# Its identity.


def test_report_is_made_anew_when_only_what_was_dropped_has_changed(store):
    """The kept documents are the same, so the digests of both inputs are too."""
    made = chain(store)
    pages = [replace(page, fate="filter few_stop_words") if page.name == "e" else page for page in PAGES]
    other = chain(store, pages)
    assert (other["documents"].digest, other["corpus"].digest) == (made["documents"].digest, made["corpus"].digest)
    recipes = [corpus_report_recipe(CorpusReportConfig(), one["documents"], one["corpus"]) for one in (made, other)]
    assert recipe_of(CORPUS_REPORT, recipes[0]) != recipe_of(CORPUS_REPORT, recipes[1])


def test_report_bytes_do_not_depend_on_folder_time_or_threads(tmp_path, built):
    store = Store(root=tmp_path / "elsewhere")
    made = chain(store)
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(usable)})
    try:
        assert reported(store, made).handle.digest == built.handle.digest
    finally:
        os.sched_setaffinity(0, usable)


def test_report_of_the_same_pages_is_the_same_as_ever(example, built):
    """Raise the stage's version when this changes. Tables that follow the rules of `filter` are left out."""
    tables = {name: rows for name, rows in example.tables.items() if name not in OF_THE_RULES}
    first_page = (built.handle.directory / "report.md").read_text()
    assert text_digest(json.dumps(tables), first_page) == DIGEST


def test_report_of_a_build_that_was_killed_goes_on(store):
    made = chain(store)
    whole = reported(store, made)
    assert reported(store, made).unchanged
    folder = whole.handle.directory
    (folder / "record.json").unlink()
    (folder / "data_card.md").unlink()
    (folder / ".scratch").mkdir()
    (folder / ".scratch" / "report.duckdb").write_text("half a database")
    (folder / ".begun").write_text(whole.handle.fingerprint)
    assert reported(store, made).handle == whole.handle
    assert not (folder / ".scratch").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"histogram_bins": 4}, "histogram_bins is 4, expected a whole number from 5 to 200"),
        ({"top_domains": 0}, "top_domains is 0, expected a whole number from 1 to 1,000"),
        ({"min_occupation_count": 0}, "min_occupation_count is 0, expected a whole number of at least 1"),
        ({"title": " "}, "title=' ' is blank"),
    ],
)
def test_report_config_out_of_range_is_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        CorpusReportConfig(**setting)
