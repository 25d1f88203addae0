"""decontaminate and split: killed anywhere and run again, and documents that are far larger than others."""

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.corpus.decontaminate.stage import DECONTAMINATE, DecontaminateRecipe
from pipeline.corpus.examples.stage import EXAMPLE
from pipeline.corpus.split.stage import SPLIT, SplitConfig
from pipeline.store.engine import Done
from pipeline.store.records import CORPUS, Counts, Shards
from pipeline.store.shards import text_digest, write_rows
from pipeline.store.store import Built, Outcome, Stage, Store
from tests.children import python

VOCABULARY = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "rt", "lk", "st", "mble")]
ROOT = Path(__file__).parents[3]
N_SHARDS = 6


class Here:
    """An engine without workers."""

    def map(self, function: Callable, items: Any, **limits: Any) -> Iterator[Done]:
        return (Done(function(item)) for item in items)


def prose(rng: random.Random, n: int) -> str:
    return " ".join(rng.choices(VOCABULARY, k=n))


def stage(name: str, write: Callable[[Any], int]) -> Stage:
    def function(cfg: Any, inputs: tuple, work: Any) -> Outcome:
        n_rows = write(work.directory)
        return Outcome(rows=n_rows, counts=Counts(rows_in=n_rows, kept=n_rows))

    return Stage(name=name, version=1, function=function, handle=Shards)


def document(name: str, text: str) -> dict[str, Any]:
    row = {field.name: None if field.nullable else 0 for field in CORPUS} | {"pii": []}
    texts = ("id", "page_id", "source", "url", "media_type", "extractor", "language", "cluster_id", "family_id")
    row |= dict.fromkeys(texts, name) | {"source": "s", "url": f"x://s/{name}"}
    return row | {"text": text, "n_words": len(text.split())}


def example(text: str) -> dict[str, Any]:
    return {"id": text_digest(text), "text": text, "label": "x", "split": "test", "group_id": "g"}


def write_toy_corpus(directory: Path) -> int:
    rng = random.Random(1)
    items = [prose(rng, 10) for _ in range(40)]
    for shard in range(N_SHARDS):
        rows = [
            document(f"{shard}-{i}", f"{prose(rng, 120)} {items[i]} {prose(rng, 120)}") for i in range(shard, 40, 6)
        ]
        rows += [document(f"{shard}-clean-{i}", prose(rng, 60)) for i in range(10)]
        write_rows(directory / f"{shard}.parquet", [*rows, document(f"{shard}-whole", items[shard])], CORPUS)
    return 40 + 11 * N_SHARDS


def write_toy_examples(directory: Path) -> int:
    rng = random.Random(1)
    write_rows(directory / "examples.parquet", [example(prose(rng, 10)) for _ in range(40)], EXAMPLE)
    return 40


def chain(store: Store) -> list[Built]:
    corpus = store.build(stage("dedup", write_toy_corpus), {}).handle
    examples = store.build(stage("examples", write_toy_examples), {}).handle
    clean = store.build(DECONTAMINATE, DecontaminateRecipe(tasks=("toy",)), corpus, examples)
    return [clean, store.build(SPLIT, SplitConfig(validation_fraction=0.1, test_fraction=0.1), clean.handle)]


def bytes_of(built: Built) -> dict[str, bytes]:
    folder = built.handle.directory
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.parquet")}


def killed_at(root: str, step: int, seconds: float) -> None:
    """Run the chain in a process that kills itself at the given report of progress, or after a time."""
    seen = [0]

    def show(name: str, done: int, total: int | None, unit: str) -> None:
        seen[0] += name in (DECONTAMINATE.name, SPLIT.name)
        if seen[0] == step:
            os.kill(os.getpid(), signal.SIGKILL)

    if seconds:
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
    chain(Store(root=Path(root), engine=Here(), show=show))
    os.kill(os.getpid(), signal.SIGKILL)  # a time too long is a kill after the end


KILLED = """
from tests.pipeline.corpus.test_corpus_killed import killed_at
killed_at({store!r}, {step}, {seconds})
"""


def kill(store: Path, *, step: int = 0, seconds: float = 0.0) -> None:
    killed = python("-c", KILLED.format(store=str(store), step=step, seconds=seconds))
    assert killed.returncode == -signal.SIGKILL, killed.stderr


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> list[Built]:
    built = chain(Store(root=tmp_path_factory.mktemp("undisturbed"), engine=Here()))
    assert built[0].counts == Counts(rows_in=106, kept=100, dropped={"contaminated": 6})
    assert built[0].record["measures"]["cut_documents"] == 40
    return built


def test_decontaminate_and_split_killed_again_and_again_give_the_same_bytes(undisturbed, tmp_path):
    """Each run goes on from the one before: while documents are read, while they are written, in the split."""
    for step in (3, 4 + N_SHARDS, N_SHARDS + 2):
        kill(tmp_path, step=step)
    again = chain(Store(root=tmp_path, engine=Here()))
    assert [built.unchanged for built in again] == [True, False]
    for one, other in zip(again, undisturbed, strict=True):
        assert bytes_of(one) == bytes_of(other)
        assert one.counts == other.counts and one.handle.digest == other.handle.digest


@pytest.mark.slow
def test_decontaminate_and_split_killed_at_any_moment_give_the_same_bytes(undisturbed, tmp_path):
    rng = random.Random(2)
    for i in range(20):
        store = tmp_path / str(i)
        kill(store, seconds=rng.uniform(0.05, 1.5))
        for one, other in zip(chain(Store(root=store, engine=Here())), undisturbed, strict=True):
            assert bytes_of(one) == bytes_of(other)


LARGE = """
import resource, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.pipeline.corpus.test_corpus_killed import build_large
print(build_large(Path({store!r})), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def build_large(root: Path) -> int:
    """Characters that `decontaminate` takes out of a document of 100 MB with two examples in it."""
    rng = random.Random(3)
    items = [prose(rng, 10), prose(rng, 50)]
    parts = [prose(rng, 100_000), items[0], prose(rng, 100_000), items[1], prose(rng, 100_000)]
    text = " ".join([*parts[:-1], *[parts[-1]] * (100_000_000 // len(parts[-1]))])

    def write(directory: Path) -> int:
        write_rows(directory / "a.parquet", [document("large", text), document("small", prose(rng, 100))], CORPUS)
        return 2

    def write_items(directory: Path) -> int:
        write_rows(directory / "examples.parquet", [example(item) for item in items], EXAMPLE)
        return 2

    store = Store(root=root, engine=Here())
    corpus = store.build(stage("dedup", write), {}).handle
    built = store.build(
        DECONTAMINATE,
        DecontaminateRecipe(tasks=("toy",)),
        corpus,
        store.build(stage("examples", write_items), {}).handle,
    )
    assert built.counts == Counts(rows_in=2, kept=2)
    return built.record["measures"]["removed_characters"]


@pytest.mark.slow
def test_decontaminate_a_document_of_100_mb_loses_what_stands_in_it(tmp_path):
    script = LARGE.format(root=str(ROOT), store=str(tmp_path))
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=400, check=True)
    n_characters, peak_kb = map(int, answer.stdout.split())
    assert 4 * 200 + 60 * 4 < n_characters < 4 * 230 + 60 * 9
    assert peak_kb < 2_000_000  # to make the corpus takes as much
