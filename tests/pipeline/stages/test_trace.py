"""trace: what became of a page, over a tiny chain of the real stages."""

import random
import shutil
import time
from datetime import UTC, datetime

import pytest

from model.token_shards import read_token_shards
from pipeline.stages.clean import CLEAN, CleanConfig
from pipeline.stages.dedup import DEDUP, DedupConfig
from pipeline.stages.filter import FILTER
from pipeline.stages.records import PAGE, Shards
from pipeline.stages.rules import FilterConfig, FilterRecipe
from pipeline.stages.shards import text_digest, write_rows
from pipeline.stages.signals import MEASURE, SignalsConfig
from pipeline.stages.split import SPLIT, SplitConfig
from pipeline.stages.store import Outcome, Stage, Work, read_handle
from pipeline.stages.tokenize import TOKENIZE, TokenizeConfig
from pipeline.stages.tokenizer import TOKENIZER, TokenizerConfig
from pipeline.stages.trace import trace, trace_lines

PEOPLE = ["miller", "baker", "farmer", "teacher", "sailor", "weaver", "shepherd", "doctor"]
THINGS = ["the grain", "the flour of the village", "some bread", "the wheel and the stone", "her candle", "a letter"]
KEPT = ["collect", "clean", "filter", "dedup", "split", "tokenize"]


def story(rng):
    return " ".join(
        f"The {rng.choice(PEOPLE)} that we know gave {rng.choice(THINGS)} to the {rng.choice(PEOPLE)} on day"
        f" {rng.randrange(1000)}."
        for _ in range(20)
    )


def write_pages(cfg: CleanConfig, inputs: tuple, work: Work) -> Outcome:
    rng = random.Random(1)
    texts = {f"story{i:02d}.txt": story(rng) for i in range(30)}
    texts |= {"copy/story03.txt": texts["story03.txt"], "short.txt": "Too short to keep.", "picture.txt": "\x89PNG"}
    texts["near.txt"] = texts["story05.txt"].rsplit(" ", 10)[0]
    rows = []
    for name, text in texts.items():
        row = {field.name: None for field in PAGE}
        url = f"file:///pages/{name}"
        content = text.encode("latin-1")
        rows.append(
            row
            | {"id": text_digest(url, content), "source": "stories", "url": url, "media_type": "text/plain"}
            | {"content": content, "collected_at": datetime(2026, 1, 1, tzinfo=UTC)}
        )
    for i in range(3):
        write_rows(work.directory / f"stories-{i}.parquet", rows[i::3], PAGE)
    return Outcome(rows=len(rows))


@pytest.fixture
def handles(store):
    pages = store.build(Stage(name="collect", version=1, function=write_pages, handle=Shards), CleanConfig()).handle
    clean = store.build(CLEAN, CleanConfig(), pages).handle
    signals = store.build(MEASURE, SignalsConfig(), clean).handle
    recipe = FilterRecipe(config=FilterConfig(rules=("gopher_quality",), min_language_confidence=0.0))
    documents = store.build(FILTER, recipe, clean, signals).handle
    corpus = store.build(SPLIT, SplitConfig(), store.build(DEDUP, DedupConfig(), documents).handle).handle
    tokenizer = store.build(TOKENIZER, TokenizerConfig(vocab_size=300), corpus).handle
    tokens = store.build(TOKENIZE, TokenizeConfig(), corpus, tokenizer).handle
    return {
        "pages/stories": pages,
        "documents": documents,
        "corpus": corpus,
        "tokenizer": tokenizer,
        "token_shards": tokens,
    }


def told(steps):
    return [(step.stage, step.outcome, step.reason) for step in steps]


def test_trace_kept_page_leads_to_its_tokens(handles):
    steps = trace(handles, "file:///pages/story01.txt")
    assert [step.stage for step in steps] == KEPT
    assert len({step.page_id for step in steps}) == 1
    last = steps[-1]
    assert steps[-2].outcome == last.outcome == last.where.split("/")[0]
    (shard,) = read_token_shards(handles["token_shards"].directory, last.outcome)
    assert shard.document_ids[last.row].as_py() == last.document_id
    assert shard.offsets[last.row + 1] - shard.offsets[last.row] == last.n_tokens > 100


def test_trace_by_end_of_url_page_id_and_document_id_is_the_same(handles):
    steps = trace(handles, "pages/story01.txt")
    assert trace(handles, steps[0].page_id) == trace(handles, steps[-1].document_id) == steps
    assert trace(handles, "file:///pages/story01.txt") == steps


@pytest.mark.parametrize(
    ("query", "stage", "reason"),
    [("picture.txt", "clean", "binary"), ("short.txt", "filter", "too_few_words")],
)
def test_trace_dropped_page_ends_where_it_went_with_the_reason(handles, query, stage, reason):
    steps = trace(handles, query)
    assert [step.stage for step in steps] == KEPT[: KEPT.index(stage) + 1]
    assert told(steps)[-1] == (stage, "dropped", reason)
    assert steps[-1].where.startswith("dropped/stories-")


@pytest.mark.parametrize(
    ("query", "reason", "kept"),
    [("story03.txt", "exact_duplicate", "story03.txt"), ("near.txt", "near_duplicate", "story05.txt")],
)
def test_trace_duplicate_names_the_one_it_went_for(handles, query, reason, kept):
    (step,) = [step for step in trace(handles, query) if step.outcome == "dropped"]
    assert step.reason == reason
    assert step.kept_url is not None and step.kept_url.endswith(kept) and step.kept_url != step.url
    assert step.similarity is not None and step.score is not None and min(step.similarity, step.score) > 0.8


def test_trace_document_id_of_copies_tells_of_each(handles):
    steps = trace(handles, "pages/story03.txt")
    steps = trace(handles, steps[-1].document_id)
    assert sorted({step.url for step in steps}) == ["file:///pages/copy/story03.txt", "file:///pages/story03.txt"]
    lines = list(trace_lines(steps))
    assert sum(not line.startswith(" ") for line in lines) == 2
    assert any("exact_duplicate" in line and "story03.txt" in line for line in lines)


def test_trace_page_that_was_collected_since_is_told_too(store, handles):
    """The token shards were made from an older collection; the page is in none of their stages."""
    older = {name: handle for name, handle in handles.items() if name != "pages/stories"}
    newer = Stage(name="collect", version=2, function=write_newer_page, handle=Shards)
    steps = trace({**older, "pages/stories": store.build(newer, CleanConfig()).handle}, "newer.txt")
    assert told(steps) == [("collect", "kept", None)]


def write_newer_page(cfg: CleanConfig, inputs: tuple, work: Work) -> Outcome:
    row = {field.name: None for field in PAGE} | {"content": b"x", "collected_at": datetime(2026, 1, 1, tzinfo=UTC)}
    row |= {"id": "f" * 32, "source": "stories", "url": "file:///pages/newer.txt", "media_type": "text/plain"}
    write_rows(work.directory / "stories-9.parquet", [row], PAGE)
    return Outcome(rows=1)


def test_trace_is_quick(handles):
    trace(handles, "story01.txt")  # imports duckdb
    started = time.perf_counter()
    trace(handles, "story02.txt")
    assert time.perf_counter() - started < 1


def test_trace_unknown_page_is_an_error_that_says_what_is_expected(handles):
    with pytest.raises(ValueError, match=r"'nowhere\.txt' is neither a URL"):
        trace(handles, "nowhere.txt")


def test_trace_end_of_many_urls_asks_for_more(handles):
    with pytest.raises(ValueError, match=r"'\.txt' is the end of 34 URLs"):
        trace(handles, ".txt")


def test_trace_quotes_in_a_query_are_just_text(handles):
    with pytest.raises(ValueError, match="neither"):
        trace(handles, "'; DROP TABLE x; --")


def test_trace_before_anything_was_collected_says_so():
    with pytest.raises(ValueError, match="nothing has been collected"):
        trace({}, "x")


def test_trace_folder_with_signs_of_a_glob_is_not_mistaken_for_another(tmp_path, store, handles):
    """As a pattern the name of the copy means the original."""
    copy = tmp_path / "sto[r]e"
    shutil.copytree(store.root, copy)
    tokens = read_handle(copy / handles["token_shards"].directory.relative_to(store.root))
    assert [step.stage for step in trace({"token_shards": tokens}, "story01.txt")] == KEPT
