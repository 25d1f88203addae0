"""Work per shard: what a bad minute of the machine costs, and that it is never taken for content.

Places 2 of the trials of reliability and section 3.2 of the review: pages whose worker was killed, or that a busy
machine could not clean in time, were dropped, and every later build reused the shard without them.
"""

import errno
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pytest

from pipeline.store.engine import Done, Failed
from pipeline.store.errors import CorruptShard, DiskFull
from pipeline.store.parts import map_shards
from pipeline.store.records import Counts, Shards
from pipeline.store.shards import read_table, shard_paths, write_rows
from pipeline.store.store import LIMIT, Outcome, Stage, Store, read_handle, read_record
from pipeline.store.verdict import few_lost

ROW = pa.schema([pa.field("text", pa.string())])
TEXTS = (("a", "b", "c"), ("d", "e"), ("f",))


@dataclass(frozen=True, kw_only=True)
class Texts:
    shards: tuple[tuple[str, ...], ...] = TEXTS


@dataclass(frozen=True, kw_only=True)
class Grinding:
    seconds: Annotated[float, "Limit."] = field(default=1.0, metadata=LIMIT)
    batch: int = 1


class Flaky:
    """An engine in this process whose answer for some items fails, a number of times each."""

    def __init__(self, failures: dict[str, int] | None = None, answer: Failed | None = None):
        self.failures = dict(failures or {})
        self.answer = answer or Failed("timeout", "took more than 1 s")
        self.calls: list[list[str]] = []

    def map(self, function: Callable, items: Iterable, **limits: Any) -> Iterator[Done | Failed]:
        self.calls.append([])
        for item in items:
            self.calls[-1].append(item)
            at_fault = [text for text in item.split("+") if self.failures.get(text, 0) > 0]
            for text in at_fault:
                self.failures[text] -= 1
            yield self.answer if at_fault else Done(function(item))


def write_texts(cfg: Texts, inputs, work) -> Outcome:
    for i, texts in enumerate(cfg.shards):
        write_rows(work.directory / f"{i}.parquet", [{"text": text} for text in texts], ROW)
    return Outcome(rows=sum(map(len, cfg.shards)))


def grind(cfg: Grinding, inputs, work) -> Outcome:
    def read(path: Path) -> list[str]:
        texts = read_table(path)["text"].to_pylist()
        return ["+".join(texts[i : i + cfg.batch]) for i in range(0, len(texts), cfg.batch)]

    def write(part: Path, items: list[str], answers: list[Done | Failed]) -> Counts:
        counts, kept, dropped = Counts(), [], []
        for item, answer in zip(items, answers, strict=True):
            counts.rows_in += len(item.split("+"))
            if isinstance(answer, Failed):
                counts.drop(answer.reason)
                dropped.append({"text": item})
            else:
                kept += [{"text": text} for text in answer.value.split("+")]
        counts.kept = len(kept)
        write_rows(part / "kept.parquet", kept, ROW)
        if dropped:
            write_rows(part / "dropped.parquet", dropped, ROW)
        return counts

    divide = (lambda batch: batch.split("+")) if cfg.batch > 1 else None
    counts = map_shards(work, inputs, read=read, function=str.upper, write=write, seconds=cfg.seconds, divide=divide)
    return Outcome(rows=counts.kept, counts=counts, content=tuple(p.name for p in shard_paths(work.directory)))


STORED = Stage(name="texts", version=1, function=write_texts, handle=Shards)
GRIND = Stage(name="grind", version=1, function=grind, handle=Shards)


@pytest.fixture
def stored(tmp_path) -> Store:
    return Store(root=tmp_path / "store", engine=Flaky())


def with_engine(store: Store, engine: Any) -> Store:
    return replace(store, engine=engine)


def texts_of(handle: Shards) -> list[str]:
    return [text for path in shard_paths(handle.directory) for text in read_table(path)["text"].to_pylist()]


def whole(tmp_path: Path) -> Shards:
    store = Store(root=tmp_path / "never disturbed", engine=Flaky())
    return store.build(GRIND, Grinding(), store.build(STORED, Texts()).handle).handle


def test_item_that_fails_once_is_tried_again_alone_at_the_end_of_the_stage(stored, tmp_path):
    engine = Flaky({"b": 1, "d": 1})
    built = with_engine(stored, engine).build(GRIND, Grinding(), stored.build(STORED, Texts()).handle)
    assert engine.calls == [list("abcdef"), ["b"], ["d"]]
    assert built.counts == Counts(rows_in=6, kept=6) and built.record["transient"] == 0
    assert built.handle.digest == whole(tmp_path).digest


@pytest.mark.parametrize("reason", ["timeout", "crash", "out_of_memory"])
def test_item_that_fails_twice_is_lost_for_now_and_the_next_build_tries_it_again(stored, tmp_path, reason):
    texts = stored.build(STORED, Texts()).handle
    busy = Flaky({"b": 2}, Failed(reason, "busy"))
    lossy = with_engine(stored, busy).build(GRIND, Grinding(), texts)
    assert lossy.counts == Counts(rows_in=6, kept=5, dropped={reason: 1}, lost={reason: 1})
    assert lossy.record["transient"] == 1
    healthy = Flaky()
    built = with_engine(stored, healthy).build(GRIND, Grinding(), texts)
    assert not built.unchanged and built.counts == Counts(rows_in=6, kept=6)
    assert healthy.calls == [list("abc")]  # the shard of that item, and no other
    assert built.handle.fingerprint == lossy.handle.fingerprint and built.handle.digest != lossy.handle.digest
    assert built.handle.digest == whole(tmp_path).digest
    assert built.handle == read_handle(built.handle.directory) and not shard_paths(built.handle.directory, "dropped")
    assert stored.build(GRIND, Grinding(), texts).unchanged
    assert [path.name for path in (stored.root / "grind").iterdir() if path.is_dir() and path.name != "parts"] == [
        built.handle.fingerprint
    ]


def test_shard_that_lost_an_item_is_not_reused_by_another_output(stored):
    texts = stored.build(STORED, Texts()).handle
    with_engine(stored, Flaky({"b": 2})).build(GRIND, Grinding(), texts)
    more = stored.build(STORED, Texts(shards=(*TEXTS, ("g",)))).handle
    built = stored.build(GRIND, Grinding(), more)
    assert built.counts == Counts(rows_in=7, kept=7)


def test_item_that_fails_in_two_builds_is_at_fault_itself_until_a_limit_is_raised(stored):
    """A page that hangs whenever it is tried must not cost every later build its time."""
    texts = stored.build(STORED, Texts()).handle
    engine = Flaky({"b": 100})
    always = with_engine(stored, engine)
    assert always.build(GRIND, Grinding(), texts).record["transient"] == 1
    second = always.build(GRIND, Grinding(), texts)
    assert second.counts == Counts(
        rows_in=6, kept=5, dropped={"repeatedly_timeout": 1}, lost={"repeatedly_timeout": 1}
    )
    assert second.record["transient"] == 0
    engine.calls.clear()
    assert always.build(GRIND, Grinding(), texts).unchanged
    assert always.build(GRIND, Grinding(seconds=0.5), texts).unchanged and not engine.calls
    raised = stored.build(GRIND, Grinding(seconds=2.0), texts)
    assert not raised.unchanged and raised.counts == Counts(rows_in=6, kept=6)


def test_other_item_that_fails_in_the_second_build_is_not_final(stored):
    texts = stored.build(STORED, Texts()).handle
    with_engine(stored, Flaky({"b": 2})).build(GRIND, Grinding(), texts)
    second = with_engine(stored, Flaky({"c": 2})).build(GRIND, Grinding(), texts)
    assert second.record["counts"]["lost"] == {"timeout": 1}
    assert stored.build(GRIND, Grinding(), texts).counts == Counts(rows_in=6, kept=6)


def test_batch_that_fails_is_divided_and_only_the_item_at_fault_is_lost(stored):
    texts = stored.build(STORED, Texts()).handle
    engine = Flaky({"b": 100})
    lossy = with_engine(stored, engine)
    assert lossy.build(GRIND, Grinding(batch=3), texts).counts.lost == {"timeout": 1}
    assert engine.calls == [["a+b+c", "d+e", "f"], ["a", "b", "c"], ["b"]]
    again = lossy.build(GRIND, Grinding(batch=3), texts)
    assert again.counts.lost == {"repeatedly_timeout": 1} and texts_of(again.handle) == list("ACDEF")


def test_many_shards_with_failures_are_not_all_held_in_memory(stored):
    shards = tuple((f"{i}", f"{i}x") for i in range(9))
    texts = stored.build(STORED, Texts(shards=shards)).handle
    engine = Flaky({f"{i}": 1 for i in range(9)})
    built = with_engine(stored, engine).build(GRIND, Grinding(), texts)
    assert texts_of(built.handle) == [text.upper() for shard in shards for text in shard]
    assert engine.calls[1] == ["0"] and len(engine.calls) == 10


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EMFILE, errno.EIO])
def test_fault_of_the_system_in_a_worker_stops_the_stage_and_drops_nothing(stored, code):
    """A full disk was the reason `error` of a page, for ever."""
    texts = stored.build(STORED, Texts()).handle
    broken = with_engine(stored, Flaky({"b": 100}, Failed("error", "OSError: no luck", code)))
    with pytest.raises(DiskFull if code == errno.ENOSPC else OSError, match=r"no luck|no space left"):
        broken.build(GRIND, Grinding(), texts)
    assert stored.build(GRIND, Grinding(), texts).counts == Counts(rows_in=6, kept=6)
    once = with_engine(stored, Flaky({"e": 1}, Failed("error", "OSError: no luck", code)))
    assert once.build(replace(GRIND, version=2), Grinding(), texts).counts == Counts(rows_in=6, kept=6)


def test_error_of_a_function_is_content_and_not_tried_again(stored):
    texts = stored.build(STORED, Texts()).handle
    engine = Flaky({"b": 100}, Failed("error", "ValueError: not a page"))
    built = with_engine(stored, engine).build(GRIND, Grinding(), texts)
    assert built.counts == Counts(rows_in=6, kept=5, dropped={"error": 1}) and len(engine.calls) == 1
    assert stored.build(GRIND, Grinding(), texts).unchanged


def test_output_built_again_while_it_is_read_is_noticed(stored):
    """Else rows of the new content would be cached under the digest of the old one."""
    texts = stored.build(STORED, Texts()).handle
    lossy = with_engine(stored, Flaky({"b": 2})).build(GRIND, Grinding(), texts).handle

    class Meanwhile(Flaky):
        def map(self, function, items, **limits):
            if not self.calls:
                stored.build(GRIND, Grinding(), texts)
            return super().map(function, items, **limits)

    next_stage = replace(GRIND, name="next")
    with pytest.raises(ValueError, match="was built again while it was read; run again"):
        with_engine(stored, Meanwhile()).build(next_stage, Grinding(), lossy)
    fresh = read_handle(lossy.directory)
    assert texts_of(stored.build(next_stage, Grinding(), fresh).handle) == list("ABCDEF")


def test_output_written_elsewhere_is_built_again_in_its_place(stored, tmp_path):
    texts = stored.build(STORED, Texts()).handle
    out = tmp_path / "out"
    with_engine(stored, Flaky({"b": 2})).build(GRIND, Grinding(), texts, directory=out)
    assert stored.build(GRIND, Grinding(), texts, directory=out).counts == Counts(rows_in=6, kept=6)
    assert texts_of(read_handle(out)) == list("ABCDEF")


def test_part_that_is_not_a_record_of_ours_is_computed_again(stored):
    texts = stored.build(STORED, Texts()).handle
    built = stored.build(GRIND, Grinding(), texts)
    for text, path in zip(
        ("{", "[]", "{}"), sorted((stored.root / "grind" / "parts").glob("*/record.json")), strict=True
    ):
        path.write_text(text)
    (built.handle.directory / "record.json").unlink()
    assert stored.build(GRIND, Grinding(), texts).handle.digest == built.handle.digest
    (built.handle.directory / "0.parquet").unlink()
    with pytest.raises(CorruptShard):
        read_record(built.handle.directory)


@pytest.mark.parametrize(
    ("n_rows", "n_lost", "builds", "passed"),
    [
        (1000, 1, 1, True),
        (1000, 2, 1, False),
        (6, 1, 1, False),
        (6, 1, 2, True),
        (1000, 10, 2, True),
        (1000, 11, 2, False),
    ],
)
def test_more_than_a_thousandth_of_the_rows_lost_is_a_failed_check(tmp_path, n_rows, n_lost, builds, passed):
    """Nothing looked at such rows: they were counted drops like any other. One that fails in two builds is at fault
    itself, and so is a limit that many exceed."""
    texts = tuple(f"t{i}" for i in range(n_rows))
    engine = Flaky(dict.fromkeys(texts[:n_lost], 100))
    store = Store(root=tmp_path / "store", engine=engine)
    stored = store.build(STORED, Texts(shards=(texts,))).handle
    for _ in range(builds):
        handle = store.build(GRIND, Grinding(), stored).handle
    verdict = few_lost(handle)
    assert verdict.passed == passed
    assert (
        verdict.details["grind"].startswith(f"{n_lost} of {n_rows} rows: ")
        and ("advice" in verdict.details) != passed
    )


def test_no_row_lost_is_a_passed_check(stored):
    verdict = few_lost(stored.build(GRIND, Grinding(), stored.build(STORED, Texts()).handle).handle)
    assert verdict.passed and verdict.observed == 0 and not verdict.details
