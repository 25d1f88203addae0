"""The work of a stage per shard: done in worker processes, and cached as a part that later builds reuse.

In: input shards and a function of one item of a shard. Out: a folder per shard (a part) below `work.parts`, whose
files are linked into the output. The key of a part is the recipe of the stage and the content of the shard.

What a bad minute of the machine did is never cached as content. Items that took too long, ended their worker or ran
out of memory are tried once more, each alone, at the end of the stage (earlier if more than MOST_WAITING shards have
some). What fails again is a failure of this build: the part is not finished, and the next build computes its shard
again. An item that fails in two builds, so four times, is at fault itself: it keeps its reason with the prefix
`repeatedly_`, and is tried again only after a limit of the stage was raised.
"""

import dataclasses
import json
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store.digests import content_digest
from pipeline.store.engine import Done, Failed
from pipeline.store.errors import CorruptShard
from pipeline.store.records import FAILED_AGAIN, Counts, Shards
from pipeline.store.shards import file_digest, link_or_copy, text_digest, write_text
from pipeline.store.store import RECORD, Work, as_written, check_unchanged, is_raised, read_record

MOST_WAITING = 2  # shards with failures that are held in memory until the end of the stage
Answers = list[Done | Failed]


@dataclass(frozen=True, slots=True)
class _InputShard:
    path: Path
    digest: str
    handle: Shards


@dataclass(slots=True)
class _Answered:
    """A shard and the answers for its items. `keys` identify the items in every build."""

    part: Path
    shard: _InputShard
    items: list[Any]
    answers: Answers
    keys: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """What `map_shards` does with each shard."""

    work: Work
    function: Callable[[Any], Any]
    write: Callable[[Path, list[Any], Answers], Counts]
    divide: Callable[[Any], Sequence[Any]] | None
    limits: Mapping[str, float | None]

    def map(self, items: Any) -> Iterator[Done | Failed]:
        return self.work.engine.map(self.function, items, **self.limits)  # type: ignore[arg-type]

    def must_wait(self, answers: Answers) -> bool:
        """Whether an answer is to be computed again."""
        return any(isinstance(one, Failed) and (one.is_transient or self.divide is not None) for one in answers)

    def finish(self, one: _Answered) -> None:
        """Write the part. Failures that were seen in an earlier build too are final."""
        before, failed = _failed_before(one.part, self.limits), {}
        for i, answer in enumerate(one.answers):
            if isinstance(answer, Failed) and answer.is_transient:
                if answer.errno is not None:
                    raise OSError(answer.errno, answer.detail)
                if one.keys[i] in before:
                    one.answers[i] = answer = dataclasses.replace(answer, reason=f"{FAILED_AGAIN}{answer.reason}")
                failed[one.keys[i]] = answer.reason
        one.part.mkdir(parents=True, exist_ok=True)
        for path in one.part.iterdir():
            if _is_result(path):
                path.unlink()  # of a build with failures, or of one that was killed
        counts = self.write(one.part, one.items, one.answers)
        counts.lost = dict(sorted(Counter(failed.values()).items()))
        check_unchanged(one.shard.handle)
        _finish_part(one.part, counts, failed, self.limits)

    def try_again(self, one: _Answered) -> None:
        """Compute the failed items again, each alone; batches are divided before that."""
        self._divide_failed(one)
        for i, answer in enumerate(one.answers):
            if isinstance(answer, Failed) and answer.is_transient:
                (one.answers[i],) = self.map([one.items[i]])

    def _divide_failed(self, one: _Answered) -> None:
        """Replace every failed batch by its items, with an answer each."""
        if self.divide is None:
            return
        items, answers, keys = [], [], []
        for key, item, answer in zip(one.keys, one.items, one.answers, strict=True):
            pieces = self.divide(item) if isinstance(answer, Failed) else [item]
            items += pieces
            answers += list(self.map(pieces)) if isinstance(answer, Failed) else [answer]
            keys += [f"{key}.{i}" for i in range(len(pieces))] if isinstance(answer, Failed) else [key]
        one.items, one.answers, one.keys = items, answers, keys


def map_shards(
    work: Work,
    inputs: Sequence[Shards],
    *,
    read: Callable[[Path], list[Any]],
    function: Callable[[Any], Any],
    write: Callable[[Path, list[Any], Answers], Counts],
    seconds: float | None = None,
    memory_mb: int | None = None,
    unit: str = "items",
    key: Callable[[str], str] = lambda name: "",
    divide: Callable[[Any], Sequence[Any]] | None = None,
) -> Counts:
    """Run `function` over the items of every input shard in worker processes, once per shard content.

    `read` lists the items of a shard; `write` puts their results (in order) below a part folder as files
    `kept.parquet`, `dropped.parquet`, `<folder>.<suffix>`, which appear in the output as `<shard>`,
    `dropped/<shard>`, `<folder>/<shard>`. Output shards have the names of the input shards. `key` maps the name of a
    shard to what else affects its result, such as the digest of a second input's shard. `divide` returns the items of
    a batch that failed; `write` then gets these in the place of the batch.
    """
    shards = _input_shards(inputs)
    parts = {name: work.parts / text_digest(work.recipe, one.digest, key(name)) for name, one in shards.items()}
    limits = {"seconds": seconds, "memory_mb": memory_mb}
    job = _Job(work=work, function=function, write=write, divide=divide, limits=limits)
    pending = [(parts[name], shards[name]) for name in shards if not _is_finished(parts[name], limits)]
    waiting: list[_Answered] = []
    for one in _answered(job, pending, read, unit):
        if not job.must_wait(one.answers):
            job.finish(one)
            continue
        waiting.append(one)
        if len(waiting) > MOST_WAITING:
            _finish_all(job, waiting)
    _finish_all(job, waiting)
    return _link_parts(work, parts)


def _answered(
    job: _Job, pending: Sequence[tuple[Path, _InputShard]], read: Callable[[Path], list[Any]], unit: str
) -> Iterator[_Answered]:
    """The pending shards with the answers for their items, in order."""
    rows = [_n_rows(shard.path) for _, shard in pending]
    opened: deque[list[Any]] = deque()  # items of the shards that are being processed, in order

    def items_of_all() -> Iterator[Any]:
        for _, shard in pending:
            opened.append(read(shard.path))
            yield from opened[-1]

    results = job.map(items_of_all()) if pending else iter(())
    done = 0
    for (part, shard), n_rows in zip(pending, rows, strict=True):
        if not opened:  # shards without items are opened together with the next shard that has some
            first = next(results, None)
            results = results if first is None else chain([first], results)
        items = opened.popleft()
        answers: Answers = []
        for answer in islice(results, len(items)):
            answers.append(answer)
            job.work.progress(done + n_rows * len(answers) // len(items), sum(rows), unit)
        done += n_rows
        yield _Answered(part, shard, items, answers, [str(i) for i in range(len(items))])
    next(results, None)  # lets the engine stop its workers


def _finish_all(job: _Job, waiting: list[_Answered]) -> None:
    for one in waiting:
        job.try_again(one)
        job.finish(one)
    waiting.clear()


def _input_shards(inputs: Sequence[Shards]) -> dict[str, _InputShard]:
    """Shards by name. Raises ValueError when two inputs have shards of the same name."""
    shards: dict[str, _InputShard] = {}
    for handle in inputs:
        record = read_record(handle.directory)
        assert record is not None  # a handle is made from a record
        for name, entry in sorted(record["files"].items()):
            if "/" in name or not name.endswith(".parquet"):
                continue
            if name in shards:
                raise ValueError(
                    f"{shards[name].path} and {handle.directory / name} have the same name, so one would replace"
                    " the other; rename one of the sources"
                )
            own = dataclasses.replace(handle, digest=record["digest"])
            shards[name] = _InputShard(handle.directory / name, entry["digest"], own)
    return shards


def _n_rows(path: Path) -> int:
    try:
        return pq.read_metadata(path).num_rows
    except (pa.ArrowException, OSError) as error:
        raise CorruptShard(f"{path}: not a readable Parquet shard ({error}); delete its folder and rerun") from error


def _finish_part(part: Path, counts: Counts, failed: Mapping[str, str], limits: Mapping[str, float | None]) -> None:
    """Write the record of a shard's result, which marks it as complete."""
    files = [path for path in sorted(part.iterdir()) if _is_result(path)]
    record = {
        "counts": dataclasses.asdict(counts),
        "files": {path.name: file_digest(path) for path in files},
        "content": {path.name: content_digest(path) for path in files},
        "failed": dict(failed),
        "limits": dict(limits),
    }
    write_text(part / RECORD, json.dumps(record))


def _part_record(part: Path) -> dict[str, Any] | None:
    """None if the part is missing or damaged, so that it is computed again."""
    try:
        record = json.loads((part / RECORD).read_text("utf-8"))
        whole = all(file_digest(part / name) == digest for name, digest in record["files"].items())
        Counts(**record["counts"])
        whole = whole and record["files"].keys() == record["content"].keys() and "limits" in record
        return record if whole and isinstance(record["failed"], dict) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _is_finished(part: Path, limits: Mapping[str, float | None]) -> bool:
    """Whether the cached result is what this build would compute."""
    record = _part_record(part)
    if record is None or not all(reason.startswith(FAILED_AGAIN) for reason in record["failed"].values()):
        return False
    return not record["failed"] or not is_raised(record["limits"], limits)


def _failed_before(part: Path, limits: Mapping[str, float | None]) -> set[str]:
    """Keys of the items that failed in an earlier build with the same limits."""
    record = _part_record(part)
    return set() if record is None or is_raised(record["limits"], limits) else set(record["failed"])


def _is_result(path: Path) -> bool:
    return path.name != RECORD and not path.name.startswith(".")


def _link_parts(work: Work, parts: Mapping[str, Path]) -> Counts:
    counts, directory = Counts(), work.directory
    for name, part in parts.items():
        record = json.loads((part / RECORD).read_text("utf-8"))
        counts.add(Counts(**record["counts"]))
        for file in sorted(map(Path, record["files"])):
            folder = directory if file.stem == "kept" else directory / file.stem
            target = folder / Path(name).with_suffix(file.suffix).name
            link_or_copy(part / file, target)
            work.digests[as_written(target)] = record["content"][str(file)]
    return counts
