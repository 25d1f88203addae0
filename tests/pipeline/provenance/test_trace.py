"""trace: what became of a page, over a tiny chain of the real stages."""

import json
import multiprocessing
import random
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest

from pipeline.commands.trace_lines import page_lines
from pipeline.corpus.clean.stage import CLEAN, CleanConfig
from pipeline.corpus.decontaminate.stage import DECONTAMINATE, DecontaminateRecipe
from pipeline.corpus.dedup.stage import DEDUP, DedupConfig
from pipeline.corpus.dedup_lines.stage import DEDUP_LINES, DedupLinesConfig
from pipeline.corpus.examples.stage import LabelledFile, read_examples
from pipeline.corpus.filter.rules import FilterConfig, FilterRecipe
from pipeline.corpus.filter.stage import FILTER
from pipeline.corpus.signals.stage import MEASURE, SignalsConfig
from pipeline.corpus.split.stage import SPLIT, SplitConfig
from pipeline.corpus.tokens.tokenize import TOKENIZE, TokenizeConfig, TokenizeRecipe
from pipeline.corpus.tokens.tokenizer import TOKENIZER, TokenizerConfig
from pipeline.provenance.trace import trace, trace_text
from pipeline.store.engine import Done
from pipeline.store.records import PAGE, SPLITS, Checkpoint, Shards
from pipeline.store.shards import text_digest, write_rows
from pipeline.store.store import Outcome, Stage, Store, Work, read_handle
from pipeline.tasks.classification import KIND
from pipeline.tasks.classification import ClassificationExamplesConfig as ExamplesConfig
from pipeline.training.pretrain import PretrainConfig, pretrain_recipe
from tests.pipeline.training.steps import documents_of_step

PEOPLE = ["miller", "baker", "farmer", "teacher", "sailor", "weaver", "shepherd", "doctor"]
THINGS = ["the grain", "the flour of the village", "some bread", "the wheel and the stone", "her candle", "a letter"]
TRAIN = pretrain_recipe(PretrainConfig(rows=2, seq_len=64, seed=3, n_steps=20)).train
HELD_OUT = SplitConfig(validation_fraction=0.1, test_fraction=0.1, max_overlap=1.0)
KEPT = ["collect", "clean", "filter", "dedup", "dedup_lines", "decontaminate", "split", "tokenize"]
FOOTER = (
    "This story was brought to you by the mill of the village, where bread is fresh on every day of the week, and"
    " where all who come through the door are asked for one story of their own before they are given a loaf."
)


def story(rng):
    return " ".join(
        f"The {rng.choice(PEOPLE)} that we know gave {rng.choice(THINGS)} to the {rng.choice(PEOPLE)} on day"
        f" {rng.randrange(1000)}."
        for _ in range(20)
    )


def write_labelled(path: Path) -> Path:
    rng = random.Random(2)
    lines = []
    for i in range(120):
        words = ["".join(rng.choices("aeioubdgklmnprst", k=7)) for _ in range(16)]
        lines.append(json.dumps({"text": " ".join(words), "mood": ("glad", "sad")[i % 2]}))
    path.write_text("\n".join(lines))
    return path


def write_pages(cfg: dict, inputs: tuple, work: Work) -> Outcome:
    """Some stories with the same footer; copies; one with an example of the test split in its middle."""
    rng = random.Random(1)
    texts = {f"story{i:02d}.txt": story(rng) for i in range(30)}
    texts |= {"copy/story03.txt": texts["story03.txt"], "short.txt": "Too short to keep.", "picture.txt": "\x89PNG"}
    texts["near.txt"] = texts["story05.txt"].rsplit(" ", 10)[0]
    texts |= {f"foot{i}.txt": f"{story(rng)}\n\n{FOOTER}" for i in range(12)}
    texts["leak.txt"] = f"{story(rng)} {cfg['leak']} {story(rng)}"
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


class InThisProcess:
    def map(self, function, items, **limits):
        return (Done(function(item)) for item in items)


@dataclass(frozen=True)
class Chain:
    """The outputs of every stage, as the assets hold them, and the store that they lie in."""

    store: Store
    handles: dict

    def trace(self, query, handles=None):
        pages, _ = trace(self.store.root, self.handles if handles is None else handles, query)
        return pages

    def text(self, text, seconds=600.0):
        return trace_text(self.store.root, self.handles, text, seconds=seconds)

    def one(self, query):
        (page,) = self.trace(query)
        return page


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> Chain:
    store = Store(root=tmp_path_factory.mktemp("chain") / "store", engine=InThisProcess())
    labelled = LabelledFile(write_labelled(tmp_path_factory.mktemp("labelled") / "moods.jsonl"))
    examples = KIND.build_examples(
        store, labelled, ExamplesConfig(text="text", label="mood"), tmp_path_factory.mktemp("c")
    )
    leak = {"leak": read_examples(examples.handle.directory, "test")["text"][0].as_py()}
    pages = store.build(Stage(name="collect", version=1, function=write_pages, handle=Shards), leak).handle
    clean = store.build(CLEAN, CleanConfig(), pages).handle
    signals = store.build(MEASURE, SignalsConfig(), clean).handle
    recipe = FilterRecipe(config=FilterConfig(rules=("gopher_quality",), min_language_confidence=0.0))
    documents = store.build(FILTER, recipe, clean, signals).handle
    unique = store.build(DEDUP, DedupConfig(family_overlap=1.0), documents).handle
    lined = store.build(DEDUP_LINES, DedupLinesConfig(min_fraction=0.2, min_edge_fraction=0.2), unique).handle
    recipe = DecontaminateRecipe(tasks=("moods",))
    corpus = store.build(SPLIT, HELD_OUT, store.build(DECONTAMINATE, recipe, lined, examples.handle).handle).handle
    tokenizer = store.build(TOKENIZER, TokenizerConfig(vocab_size=300), corpus).handle
    tokens = store.build(TOKENIZE, TokenizeRecipe(config=TokenizeConfig()), corpus, tokenizer).handle
    model = store.build(MODEL, {"train": {"rows": 2, "seq_len": 64, "seed": 3, "n_steps": 20}}, tokens, tokenizer)
    handles = {"pages/stories": pages, "documents": documents, "corpus": corpus, "tokenizer": tokenizer}
    tuned = store.build(TUNED, {"epochs": 2}, model.handle, examples.handle).handle
    handles |= {"token_shards": tokens, "foundation_model": model.handle}
    return Chain(store, handles | {"moods_examples": examples.handle, "moods_model": tuned})


@pytest.fixture
def copied(chain, tmp_path) -> Chain:
    """The chain in another place, to be changed; without an index."""
    shutil.copytree(chain.store.root, tmp_path / "copy", ignore=shutil.ignore_patterns("trace"))
    store = Store(root=tmp_path / "copy")
    return Chain(store, {n: read_handle(moved(chain, store, h)) for n, h in chain.handles.items()})


def moved(chain, store, handle):
    return store.root / handle.directory.relative_to(chain.store.root)


def write_model(cfg: dict, inputs: tuple, work: Work) -> Outcome:
    (work.directory / "model.safetensors").write_bytes(b"weights")
    return Outcome(rows=20)


MODEL = Stage(name="pretrain", version=1, function=write_model, handle=Checkpoint)
TUNED = Stage(name="finetune", version=1, function=write_model, handle=Checkpoint)


def told(page):
    return [(step.stage, step.outcome, step.reason) for step in page.steps]


def read_whole(chain):
    """Stage -> page id -> (outcome, reason, file, row, URL, id), by reading all rows of all shards."""
    verdicts = {}
    for stage in KEPT[:-1]:
        (folder,) = [path.parent for path in chain.store.root.glob(f"{stage}/*/record.json")]
        own = verdicts.setdefault(stage, {})
        for part in ("", "dropped"):
            for path in sorted((folder / part).glob("*.parquet")):
                for row, values in enumerate(pq.read_table(path).to_pylist()):
                    outcome = "dropped" if part else values.get("split", "kept")
                    page = values["page_id"] if "page_id" in values else values["id"]
                    where = f"{part}/{path.name}".lstrip("/")
                    own[page] = (outcome, values.get("reason"), where, row, values["url"], values["id"])
    return verdicts


def test_trace_of_every_page_says_what_reading_all_shards_says(chain):
    verdicts = read_whole(chain)
    assert len(verdicts["collect"]) == 47
    for page_id, (*_, url, _) in verdicts["collect"].items():
        page = chain.one(page_id)
        expected = [(stage, *verdicts[stage][page_id][:4]) for stage in KEPT[:-1] if page_id in verdicts[stage]]
        steps = [s for s in page.steps if s.stage != "tokenize"]
        assert [(s.stage, s.outcome, s.reason, s.where, s.row) for s in steps] == expected
        assert page.url == url
        assert [s.document_id or page_id for s in steps] == [verdicts[s.stage][page_id][5] for s in steps]


def test_trace_token_rows_are_those_that_hold_the_document(chain):
    directory = chain.handles["token_shards"].directory
    stored = {}
    for path in (path for side in SPLITS for path in directory.glob(f"{side}/*.arrow")):
        for row, values in enumerate(ipc.open_file(path).read_all().to_pylist()):
            stored[values["document_id"]] = (f"{path.parent.name}/{path.name}", row, len(values["tokens"]))
    for page_id in read_whole(chain)["split"]:
        page = chain.one(page_id)
        step = page.steps[-1]
        assert step.stage == "tokenize" and page.steps[-2].outcome == step.outcome
        assert (step.where, step.row, step.n_tokens) == stored[step.document_id]


def test_trace_by_end_of_url_page_id_and_document_id_is_the_same(chain):
    page = chain.one("pages/story01.txt")
    assert [step.stage for step in page.steps] == KEPT
    assert [s.page_id for s in chain.one(page.page_id).steps] == [page.page_id] * 8
    for query in (page.page_id, page.document_ids[-1], "file:///pages/story01.txt"):
        assert told(chain.one(query)) == told(page)


@pytest.mark.parametrize(
    ("query", "stage", "reason"),
    [("picture.txt", "clean", "binary"), ("short.txt", "filter", "too_few_words")],
)
def test_trace_dropped_page_ends_where_it_went_with_the_reason(chain, query, stage, reason):
    page = chain.one(query)
    assert [step.stage for step in page.steps] == KEPT[: KEPT.index(stage) + 1]
    assert told(page)[-1] == (stage, "dropped", reason)
    assert page.models == ()


def test_trace_filtered_page_shows_value_and_limit(chain):
    step = chain.one("short.txt").steps[-1]
    assert step.score == 4
    assert step.evidence["rule"] == {"signal": "n_words", "value": 4, "at_least": 50}


@pytest.mark.parametrize(
    ("query", "reason", "kept"),
    [("story03.txt", "exact_duplicate", "story03.txt"), ("near.txt", "near_duplicate", "story05.txt")],
)
def test_trace_duplicate_names_the_one_it_went_for(chain, query, reason, kept):
    (step,) = [step for page in chain.trace(query) for step in page.steps if step.outcome == "dropped"]
    (row,) = step.evidence["evidence"]
    assert step.reason == reason
    assert row["kept_url"].endswith(kept) and row["kept_url"] != step.url
    assert min(row["similarity"], step.score) > 0.8
    assert ("rule" in step.evidence) == (reason == "near_duplicate")


def test_trace_lines_that_went_are_named_with_how_many_documents_hold_them(chain):
    page = chain.one("foot3.txt")
    (before, after) = (step for step in page.steps if step.stage in ("dedup", "dedup_lines"))
    (row,) = after.evidence["evidence"]
    assert FOOTER.startswith(row["preview"]) and row["documents"] == 12
    assert before.document_id != after.document_id == page.steps[-1].document_id
    lines = [line for line in page_lines(page, {}) if "brought to you" in line]
    assert len(lines) == 1 and "in 12 of the" in lines[0]


def test_trace_evaluation_text_names_task_and_example(chain):
    page = chain.one("leak.txt")
    (step,) = [step for step in page.steps if step.stage == "decontaminate"]
    (row,) = step.evidence["evidence"]
    assert (row["task"], row["example_split"], row["example_share"]) == ("moods", "test", 1.0)
    _, (example,) = trace(chain.store.root, chain.handles, row["example_id"])
    assert (example.split, example.example_id) == ("test", row["example_id"])
    assert any(row["example_id"] in line and "moods" in line for line in page_lines(page, {}))


def test_trace_example_by_its_text_shows_split_label_and_models(chain):
    for split in ("train", "validation", "test"):
        table = read_examples(chain.handles["moods_examples"].directory, split)
        text, label = table["text"][0].as_py(), table["label"][0].as_py()
        (example,) = trace(chain.store.root, chain.handles, f"  {text.upper()}")[1]
        assert (example.asset, example.split, example.label) == ("moods_examples", split, label)
        assert example.models == (chain.handles["moods_model"].directory,)


def story_text(chain, number):
    (folder,) = chain.store.root.glob("filter/*/record.json")
    for path in folder.parent.glob("*.parquet"):
        for row in pq.read_table(path, columns=["url", "text"]).to_pylist():
            if row["url"].endswith(f"story{number:02d}.txt"):
                return row["text"]
    raise AssertionError(number)


def test_trace_whole_text_finds_the_documents_that_equal_it(chain):
    pages, _ = chain.text(story_text(chain, 7).upper().replace(" ", "\n\n"))
    assert [(page.url, page.match.how) for page in pages] == [("file:///pages/story07.txt", "equal")]
    pages, _ = chain.text(story_text(chain, 3))
    assert sorted(page.url for page in pages) == ["file:///pages/copy/story03.txt", "file:///pages/story03.txt"]


def test_trace_passage_finds_its_document_first_with_what_it_holds_of_it(chain):
    words = story_text(chain, 9).split()
    passage = " ".join([*words[40:140], "and", "then", "the", "rain", "came", "over", "all", "the", "fields"])
    pages, _ = chain.text(passage.lower())
    best = pages[0]
    assert (best.url, best.match.how) == ("file:///pages/story09.txt", "passage")
    runs = {tuple(passage.lower().replace(".", "").split()[i : i + 5]) for i in range(105)}
    text = " ".join(words).lower().replace(".", "").split()
    held = {tuple(text[i : i + 5]) for i in range(len(text) - 4)}
    assert best.match.containment == pytest.approx(len(runs & held) / len(runs))
    assert [page.match.containment for page in pages] == sorted((p.match.containment for p in pages), reverse=True)


@pytest.mark.parametrize("between", ["  ", " -- ", ", "])
def test_trace_short_text_is_searched_in_any_case_and_with_anything_between_its_words(chain, between):
    words = story_text(chain, 11).split()
    pages, _ = chain.text(between.join(words[:17]).upper())
    assert [page.url for page in pages] == ["file:///pages/story11.txt"]


def test_trace_text_of_a_file_or_of_the_query_itself_is_the_same(chain, tmp_path):
    text = story_text(chain, 7)
    (tmp_path / "copy of story07").write_text(text)
    for query in (str(tmp_path / "copy of story07"), text):
        assert [page.url for page in chain.trace(query)] == ["file:///pages/story07.txt"]


@pytest.mark.parametrize(
    "text",
    [
        "'; DROP TABLE x; --",
        "what nobody ever wrote",
        "100% of 'them' -- \"quoted\" (.*) [a-z]+ \\",
        "a \0 b \0 c",
        "\udcff x y",
    ],
)
def test_trace_text_that_stands_nowhere_is_refused(chain, text):
    with pytest.raises(ValueError, match="no document contains the text"):
        chain.text(text)


def test_trace_text_of_a_megabyte_is_looked_for_as_a_whole(chain):
    pages, _ = chain.text(story_text(chain, 7) + " stone and water" * 60_000)
    assert pages[0].url == "file:///pages/story07.txt" and pages[0].match.containment > 0.9


@pytest.mark.parametrize("text", ["", " \n\t "])
def test_trace_empty_text_is_refused(chain, text):
    with pytest.raises(ValueError, match="is empty"):
        chain.text(text)


def test_trace_kept_copy_says_how_many_it_stands_for(chain):
    page = chain.one("file:///pages/story05.txt")
    assert [step.evidence["cluster_size"] for step in page.steps if step.stage == "dedup"] == [2]


def test_trace_document_id_of_copies_tells_of_each(chain):
    document = chain.trace("pages/story03.txt")[0].document_ids[-1]
    pages = chain.trace(document)
    assert sorted(page.url for page in pages) == ["file:///pages/copy/story03.txt", "file:///pages/story03.txt"]


def test_trace_page_that_was_collected_since_is_told_too(copied):
    """The token shards were made from an older collection; the page is in none of their stages."""
    newer = Stage(name="collect", version=2, function=write_newer_page, handle=Shards)
    handles = {**copied.handles, "pages/stories": copied.store.build(newer, CleanConfig()).handle}
    (page,) = copied.trace("newer.txt", handles)
    assert told(page) == [("collect", "kept", None)]


def write_newer_page(cfg: CleanConfig, inputs: tuple, work: Work) -> Outcome:
    row: Any = {field.name: None for field in PAGE} | {
        "content": b"x",
        "collected_at": datetime(2026, 1, 1, tzinfo=UTC),
    }
    row |= {"id": "f" * 32, "source": "stories", "url": "file:///pages/newer.txt", "media_type": "text/plain"}
    write_rows(work.directory / "stories-9.parquet", [row], PAGE)
    return Outcome(rows=1)


def test_trace_models_name_the_steps_that_read_the_page(chain):
    pages = {
        step.document_id: page for page in map(chain.one, read_whole(chain)["split"]) for step in page.steps[-1:]
    }
    seen = {document: page.models[0].documents[0].steps.tolist() for document, page in pages.items()}
    trained = [chain.handles[name].directory for name in ("moods_model", "foundation_model")]
    assert all([model.directory for model in page.models] == trained for page in pages.values())
    for step in range(1, 21):
        documents = documents_of_step(chain.handles["token_shards"].directory, TRAIN, step)
        assert sorted(documents) == sorted(document for document, steps in seen.items() if step in steps)
    held_out = [page for page in pages.values() if page.steps[-1].outcome != "train"]
    assert held_out and not any(page.models[0].was_trained_on for page in held_out)


@pytest.mark.parametrize(
    "query",
    ["nowhere.txt", "';DROP", "%", "*.txt", "[s]tory01.txt", "\0", "\udcff", "x" * 1_000_000, ""],
)
def test_trace_of_what_names_nothing_says_what_is_expected(chain, query):
    with pytest.raises(ValueError, match="is not a URL"):
        chain.trace(query)


def test_trace_end_of_many_urls_asks_for_more(chain):
    with pytest.raises(ValueError, match=r"'\.txt' is the end of 47 URLs"):
        chain.trace(".txt")


def test_trace_before_anything_was_collected_says_so(tmp_path):
    with pytest.raises(ValueError, match="nothing has been collected"):
        trace(tmp_path, {}, "x")


def test_trace_folder_with_signs_of_a_glob_is_not_mistaken_for_another(chain, tmp_path):
    """As a pattern the name of the copy means the original."""
    copy = Store(root=tmp_path / "sto[r]e")
    shutil.copytree(chain.store.root, copy.root)
    tokens = read_handle(moved(chain, copy, chain.handles["token_shards"]))
    ((page,), _) = trace(copy.root, {"token_shards": tokens}, "story01.txt")
    assert [step.stage for step in page.steps] == KEPT


@pytest.mark.parametrize("stage", ["collect", "clean", "filter", "dedup", "dedup_lines", "decontaminate", "split"])
def test_trace_says_which_outputs_were_removed(copied, stage):
    page = copied.one("pages/story01.txt")
    (folder,) = [path.parent for path in copied.store.root.glob(f"{stage}/*/record.json")]
    shutil.rmtree(folder)
    handles = {name: handle for name, handle in copied.handles.items() if handle.directory != folder}
    (after,) = copied.trace("pages/story01.txt", handles)
    assert (stage, "removed", None) in told(after)
    left = [step for step in told(page) if KEPT.index(step[0]) > KEPT.index(stage)]
    assert [step for step in told(after) if KEPT.index(step[0]) > KEPT.index(stage)] == left


@pytest.mark.parametrize("damage", ["cut", "garbage", "other", "gone"])
def test_trace_damaged_index_is_made_again(copied, damage):
    page = told(copied.one("pages/story01.txt"))
    for path in (copied.store.root / "trace").glob("*/*.arrow"):
        content = path.read_bytes()
        if damage == "cut":
            path.write_bytes(content[:-100])
        elif damage == "garbage":
            path.write_bytes(bytes(len(content)))
        elif damage == "other":  # of the right size and form, with other numbers in it
            path.write_bytes(content[:300] + bytes(len(content) - 1200) + content[-900:])
        else:
            path.unlink()
    assert told(copied.one("pages/story01.txt")) == page


def ask(root, queries, answers):
    store = Store(root=root)
    handles = {str(path): read_handle(path.parent) for path in sorted(root.glob("*/*/record.json"))}
    answers.put([told(trace(store.root, handles, query)[0][0]) for query in queries])


def test_trace_by_several_processes_at_once_builds_one_index(copied):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    runs = [context.Process(target=ask, args=(copied.store.root, ["pages/story01.txt"], answers)) for _ in range(4)]
    for run in runs:
        run.start()
    told_by_each = [answers.get(timeout=600) for _ in runs]
    for run in runs:
        run.join()
    assert told_by_each == [[told(copied.one("pages/story01.txt"))]] * 4


def test_trace_while_a_build_is_unfinished_tells_of_what_is_finished(copied):
    unfinished = copied.store.root / "dedup" / ("0" * 32)
    unfinished.mkdir()
    (unfinished / "stories-0.parquet").write_bytes(b"half")
    assert [step.stage for step in copied.one("pages/story01.txt").steps] == KEPT


@pytest.mark.parametrize("weight", [2.0, 0.4])
def test_trace_weights_of_a_source_show_as_places_or_as_a_drop(copied, weight):
    store = Store(root=copied.store.root, engine=InThisProcess())
    recipe = TokenizeRecipe(config=TokenizeConfig(), weights={"stories": weight})
    tokens = store.build(TOKENIZE, recipe, copied.handles["corpus"], copied.handles["tokenizer"]).handle
    told_of = {"train": [], "validation": [], "test": []}
    for page_id, (side, *_) in read_whole(copied)["split"].items():
        (page,) = copied.trace(page_id, {**copied.handles, "token_shards": tokens})
        told_of[side].append([(s.outcome, s.reason) for s in page.steps if s.stage == "tokenize"])
    kept, left_out = [("train", None)], [("dropped", "down_weighted")]
    assert told_of["validation"] and all(one == [("validation", None)] for one in told_of["validation"])
    if weight > 1:
        assert all(one == kept * 2 for one in told_of["train"])
    else:
        assert all(one in (kept, left_out) for one in told_of["train"])
        assert 0 < told_of["train"].count(kept) < told_of["train"].count(left_out)
