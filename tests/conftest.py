"""Shared by all tests: a toy project of tiny pages and labelled lines, and its whole graph, built once a session."""

import functools
import json
import multiprocessing
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.store.layout import Layout

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"  # read when torch and numpy load: two workers share two cores
# Workers of pools are forked from a process that has loaded what most stages need.
multiprocessing.set_forkserver_preload(["pyarrow.parquet", "psutil", "pytest", "pipeline.store.store"])

TESTS = Path(__file__).parent
FIRST_GROUPS = (
    "toy_graph",
    "tests/pipeline/commands/test_ui.py",
    "tests/model/training/test_distributed.py",
)  # the longest
FOREIGN_WARNINGS = (
    "ignore:The ``noload`` loader strategy is deprecated",  # MLflow 3.17 under SQLAlchemy 2.1
    "ignore:.*Any type hint is inferred as AnyType",  # of MLflow's own models, when it is imported
    "ignore:Operation with range is deprecated",  # MLflow 3.17 under pandas 3.1
)
ONSETS = ("b", "d", "f", "g", "h", "l", "m", "n", "p", "r", "s", "t", "w", "br", "cl", "st")
RIMES = ("al", "er", "in", "on", "ard", "eck", "ill", "oat", "umb", "ight")
WORDS = [f"{onset}{rime}{ending}" for onset in ONSETS for rime in RIMES for ending in ("", "er", "ing")]  # invented
MOODS = {
    "glad": ("bright", "happy", "laughing", "dancing", "golden"),
    "sad": ("gloomy", "weeping", "broken", "grey", "lonely"),
}


def pytest_configure(config):
    for line in FOREIGN_WARNINGS:
        config.addinivalue_line("filterwarnings", line)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `pytest -n 2` a worker gets whole files, and one of them all that use the toy graph: it is built once."""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return group_of(nodeid.partition("::")[0])

    config.option.loadscopereorder = False  # the order is that of pytest_collection_modifyitems
    return ByGroup(config, log)


def pytest_collection_modifyitems(config, items):
    """The longest groups come first, so that two workers end at about the same time."""
    if hasattr(config, "workerinput"):
        first = {group: i for i, group in enumerate(FIRST_GROUPS)}
        items.sort(key=lambda item: first.get(group_of(item.nodeid.partition("::")[0]), len(first)))


@functools.cache
def group_of(file: str) -> str:
    return "toy_graph" if "toy_graph" in (TESTS.parent / file).read_text(encoding="utf-8") else file


@pytest.fixture
def toy_layout(tmp_path) -> Layout:
    """A data folder with sources, a task and settings so small that the whole graph takes seconds."""
    return write_toy_project(tmp_path / "data")


@pytest.fixture(scope="session")
def write_project() -> Callable[[Path], Layout]:
    """`write_toy_project`, for fixtures that make a project of their own."""
    return write_toy_project


def write_toy_project(data: Path) -> Layout:
    layout = Layout(data)
    write_pages(data / "pages")
    write_labelled(data / "moods.jsonl")
    layout.sources_toml.write_text(TOY_SOURCES)
    layout.tasks_toml.write_text(TOY_TASKS)
    layout.config_toml.write_text(TOY_CONFIG)
    return layout


def story(rng: random.Random, n_sentences: int) -> str:
    """Stop words enough for the quality rules, and no five words in a row that another story has."""
    sentences = []
    for _ in range(n_sentences):
        a, b, c, d, e, f, g, h = rng.choices(WORDS, k=8)
        sentences.append(f"The {a} {b} of {c} and the {d} that have {e} with the {f} to be {g} {h}.")
    return " ".join(sentences)


def write_pages(folder: Path) -> None:
    """Web pages, plain and marked-up texts; one stands there twice, one nearly so, one is too short."""
    rng = random.Random(1)
    folder.mkdir(parents=True)
    for i in range(14):
        paragraphs = "".join(f"<p>{story(rng, 4)}</p>" for _ in range(4))
        page = f"<html><head><title>Story {i}</title></head><body><nav>Home</nav><article><h1>Story {i}</h1>"
        (folder / f"story-{i:02}.html").write_text(f"{page}{paragraphs}</article></body></html>")
    for i in range(16):
        (folder / f"tale-{i:02}.txt").write_text("\n\n".join(story(rng, 4) for _ in range(4)) + "\n")
    for i in range(6):
        (folder / f"note-{i:02}.md").write_text(f"# Note {i}\n\n{story(rng, 10)}\n")
    first = (folder / "tale-00.txt").read_text()
    (folder / "tale-copy.txt").write_text(first)
    (folder / "tale-nearly.txt").write_text(first + "The end of the tale.\n")
    (folder / "short.txt").write_text("Too short.\n")


def write_labelled(path: Path) -> None:
    rng = random.Random(2)
    lines = []
    for i in range(120):
        mood = ("glad", "sad")[i % 2]
        first, second = rng.choices(MOODS[mood], k=2)
        a, b, c, d = rng.choices(WORDS, k=4)
        lines.append({"text": f"the {first} {a} of {b} and the {second} {c} with {d}", "mood": mood})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


TOY_SOURCES = """
[web]
kind = "files"
path = "pages"
members = ["*.html"]
licence = "ours"
note = "Invented web pages"

[local-texts]
kind = "files"
path = "pages"
members = ["*.txt", "*.md"]
licence = "ours"
"""
TOY_TASKS = """
[moods]
kind = "classification"
base = "foundation_model"
data = { path = "moods.jsonl" }
text = "text"
label = "mood"

[moods.finetune]
epochs = 8
rows = 8
"""
TOY_CONFIG = """
["pages/web"]
n_shards = 2

["pages/local-texts"]
n_shards = 2

[documents.filter]
languages = []

[corpus.split]
validation_fraction = 0.1
test_fraction = 0.1

[tokenizer]
vocab_size = 300
compared_with = []

[foundation_model]
n_layers = 2
d_model = 32
n_heads = 2
seq_len = 32
rows = 4
n_steps = 30
checkpoint_every = 10
validate_every = 10
n_validation_batches = 2

[checks.moods_evaluation]
accuracy = 0.6
"""


@dataclass(frozen=True, kw_only=True)
class Built:
    """The toy graph after a run of its job `demo`."""

    layout: Layout
    instance: Any
    first: Any

    def run(self) -> Any:
        from pipeline.definitions import definitions

        quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
        job = definitions(self.layout).resolve_job_def("demo")
        return job.execute_in_process(instance=self.instance, run_config=quiet)


@pytest.fixture(scope="session")
def toy_graph(tmp_path_factory) -> Iterator[Built]:
    """Built once for all tests that only look at it. Whoever changes something works on a copy."""
    import dagster as dg

    folder = tmp_path_factory.mktemp("toy")
    layout = write_toy_project(folder / "data")
    with pytest.MonkeyPatch.context() as environment, dg.DagsterInstance.ephemeral(str(folder)) as instance:
        environment.delenv("MLFLOW_TRACKING_URI", raising=False)
        unbuilt = Built(layout=layout, instance=instance, first=None)
        yield replace(unbuilt, first=unbuilt.run())


@pytest.fixture(scope="session")
def second_run(toy_graph) -> Any:
    """A second run of the toy graph, which has nothing to do."""
    return toy_graph.run()
