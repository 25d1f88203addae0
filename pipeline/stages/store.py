"""Identity, memory and safety of outputs: `Store.build` makes each thing once.

In: a stage, its config and the handles it reads. Out: a finished folder `<root>/<stage>/<fingerprint>/` with
record.json in it, which is written last: present = complete.

- fingerprint = hash(stage name and version, versions of the libraries that decide its output, config literals,
  digests of the inputs). Paths, machine, worker count and time never count.
- digest = hash of the content. Inputs count by digest, not by fingerprint, so that a stage that ran again and
  came out equal ends the rebuild there.
- `map_shards` keeps the result of every shard under its own key, so that one changed input file costs one shard.
- Two builds of the same thing at once: one builds, the other waits and reuses.
"""

import dataclasses
import errno
import fnmatch
import functools
import importlib.metadata
import json
import logging
import math
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from pipeline.stages.engine import Done, Engine, Failed, LocalProcesses
from pipeline.stages.errors import CorruptShard, DiskFull
from pipeline.stages.records import HANDLES, Counts, Handle, Shards
from pipeline.stages.shards import file_digest, link_or_copy, shard_paths, text_digest, write_text

RECORD = "record.json"
log = logging.getLogger(__name__)

Config = Any  # a frozen dataclass of literals
Show = Callable[[str, int, int | None, str], None]  # stage, items done, items in all if known, unit


class Observer(Protocol):
    """Where a training stage tells how it goes; MLflow is one such place, and stages do not know it."""

    def started(self, fingerprint: str, params: Mapping[str, object], inputs: Sequence[Handle]) -> None: ...
    def metrics(self, step: int, values: Mapping[str, float]) -> None: ...
    def checkpoint(self, path: Path, step: int, values: Mapping[str, float]) -> None: ...


class Silent:
    """An observer that nobody listens to."""

    def started(self, fingerprint: str, params: Mapping[str, object], inputs: Sequence[Handle]) -> None: ...
    def metrics(self, step: int, values: Mapping[str, float]) -> None: ...
    def checkpoint(self, path: Path, step: int, values: Mapping[str, float]) -> None: ...


def _show_nothing(stage: str, done: int, total: int | None, unit: str) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a stage function returns beside the files it wrote below `work.directory`."""

    rows: int
    counts: Counts | None = None
    measures: Mapping[str, float] = field(default_factory=dict)  # numbers worth a plot over time
    content: tuple[str, ...] = (
        "*",
    )  # patterns (`*` also spans folders) of the files whose bytes are the identity of the output
    digests: Mapping[str, str] = field(default_factory=dict)  # file -> digest, where bytes hold a time of day


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Where and with what one build happens; nothing of it counts as identity."""

    stage: str
    fingerprint: str
    recipe: str  # fingerprint without the inputs: the key of what is remembered a shard
    directory: Path
    parts: Path
    engine: Engine
    show: Show
    observer: Observer

    def progress(self, done: int, total: int | None, unit: str) -> None:
        self.show(self.stage, done, total, unit)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One step of the pipeline: raise `version` whenever its output changes for equal input and config."""

    name: str
    version: int
    function: Callable[[Config, tuple[Any, ...], Work], Outcome]
    handle: type[Handle]
    libraries: tuple[str, ...] = ()  # distributions whose version decides the output


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """A finished output, whether this call made it or found it, and its record."""

    handle: Any
    unchanged: bool
    record: dict[str, Any]

    @property
    def counts(self) -> Counts | None:
        counts = self.record["counts"]
        return Counts(**counts) if counts else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Store:
    """All outputs below one folder; `engine`, `show` and `observer` are how work is done and watched."""

    root: Path
    engine: Engine = field(default_factory=LocalProcesses)
    show: Show = _show_nothing
    observer: Observer = field(default_factory=Silent)

    def build(self, stage: Stage, cfg: Config, *inputs: Handle, directory: Path | None = None) -> Built:
        """The output of `stage` for `cfg` and `inputs`, made now or found finished.

        `directory` puts it there instead of below the root (command line: --out).
        Raises DiskFull when no room is left, CorruptShard when a finished output lost bytes.
        """
        recipe = recipe_of(stage, cfg)
        fingerprint = text_digest(recipe, *(handle.digest for handle in inputs))
        where = directory or self.root / stage.name / fingerprint
        if record := read_record(where, fingerprint):
            return Built(handle=handle_of(where, record), unchanged=True, record=record)
        where.parent.mkdir(parents=True, exist_ok=True)
        with _only_builder(where.parent / f".{where.name}.lock"):
            if record := read_record(where, fingerprint):  # another run finished it while this one waited
                return Built(handle=handle_of(where, record), unchanged=True, record=record)
            where.mkdir(exist_ok=True)
            work = Work(
                stage=stage.name,
                fingerprint=fingerprint,
                recipe=recipe,
                directory=where,
                parts=self.root / stage.name / "parts",
                engine=self.engine,
                show=self.show,
                observer=self.observer,
            )
            record = _run(stage, cfg, inputs, work)
        return Built(handle=handle_of(where, record), unchanged=False, record=record)


def recipe_of(stage: Stage, cfg: Config) -> str:
    """Canonical text of everything that decides a stage's output, save its inputs."""
    libraries = {name: importlib.metadata.version(name) for name in sorted(stage.libraries)}
    return json.dumps([stage.name, stage.version, libraries, literals(cfg)], sort_keys=True)


def literals(value: Any, where: str = "config") -> Any:
    """`value` as JSON literals; what is not written alike everywhere is refused with its place."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): literals(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [literals(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError(f"{where} is {value!r}: a config holds text, numbers, booleans, lists and tables only")


def read_record(directory: Path, fingerprint: str | None = None) -> dict[str, Any] | None:
    """The record of a finished folder, or None where there is none.

    Raises ValueError when the folder holds something else than `fingerprint`, CorruptShard when one of its
    files is missing or has another size than recorded.
    """
    path = directory / RECORD
    if not path.exists():
        return None
    record = json.loads(path.read_text())
    if fingerprint is not None and record["fingerprint"] != fingerprint:
        raise ValueError(
            f"{directory} holds a finished `{record['stage']}` made from other inputs or settings;"
            " choose another folder or delete this one"
        )
    for name, entry in record["files"].items():
        file = directory / name
        size = file.stat().st_size if file.exists() else None
        if size != entry["bytes"]:
            raise CorruptShard(
                f"{file}: {'missing' if size is None else f'{size} bytes'}, expected {entry['bytes']} bytes;"
                f" delete {directory} and rerun to rebuild it"
            )
    return record


def handle_of(directory: Path, record: Mapping[str, Any]) -> Any:
    return HANDLES[record["handle"]](
        stage=record["stage"],
        directory=directory,
        fingerprint=record["fingerprint"],
        digest=record["digest"],
        rows=record["rows"],
    )


def read_handle(directory: Path) -> Any:
    """The handle of a finished folder. ValueError when `directory` is not one."""
    record = read_record(directory)
    if record is None:
        raise ValueError(f"{directory} is not a finished output: it has no {RECORD}")
    return handle_of(directory, record)


def _run(stage: Stage, cfg: Config, inputs: tuple[Handle, ...], work: Work) -> dict[str, Any]:
    for leftover in work.directory.rglob(".*.part"):  # of a build that was killed while it wrote
        leftover.unlink()
    started = time.perf_counter()
    try:
        outcome = stage.function(cfg, inputs, work)
        files = {
            str(path.relative_to(work.directory)): path.stat().st_size
            for path in sorted(work.directory.rglob("*"))
            if path.is_file() and not path.name.startswith(".")
        }
        identity = {
            name: outcome.digests.get(name) or file_digest(work.directory / name)
            for name in files
            if any(fnmatch.fnmatch(name, pattern) for pattern in outcome.content)
        }
        record = {
            "stage": stage.name,
            "version": stage.version,
            "handle": stage.handle.__name__,
            "fingerprint": work.fingerprint,
            "digest": text_digest(*(part for item in sorted(identity.items()) for part in item)),
            "config": literals(cfg),
            "libraries": {name: importlib.metadata.version(name) for name in stage.libraries},
            "inputs": [{"stage": i.stage, "fingerprint": i.fingerprint, "digest": i.digest} for i in inputs],
            "rows": outcome.rows,
            "counts": dataclasses.asdict(outcome.counts) if outcome.counts else None,
            "measures": dict(outcome.measures),
            "files": {name: {"bytes": size, "digest": identity.get(name)} for name, size in files.items()},
            "bytes": sum(files.values()),
            "seconds": round(time.perf_counter() - started, 3),
            "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "commit": _commit(),
        }
        write_text(work.directory / RECORD, json.dumps(record, indent=1))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(work.directory).free
        raise DiskFull(
            f"no room to write `{stage.name}` in {work.directory} ({free / 1e6:.0f} MB free); free some, or run"
            " `gristmill gc`, and run again: what was finished is kept"
        ) from error
    return record


def map_shards(
    work: Work,
    inputs: Sequence[Shards],
    *,
    read: Callable[[Path], list[Any]],
    function: Callable[[Any], Any],
    write: Callable[[Path, list[Any], list[Done | Failed]], Counts],
    seconds: float | None = None,
    unit: str = "items",
) -> Counts:
    """Run `function` over the items of every input shard in worker processes, once a shard content.

    `read` lists the items of a shard; `write` puts their results (in order) below a part folder as files
    `kept.parquet`, `dropped.parquet`, `<folder>.<suffix>`, which appear in the output as `<shard>`,
    `dropped/<shard>`, `<folder>/<shard>`. Output shards are named as the input shards are.
    """
    shards = {
        path.name: (path, read_record(handle.directory)["files"][path.name]["digest"])  # type: ignore[index]
        for handle in inputs
        for path in shard_paths(handle.directory)
    }
    parts = {name: work.parts / text_digest(work.recipe, digest) for name, (_, digest) in shards.items()}
    pending = [name for name in shards if not (parts[name] / RECORD).exists()]
    rows = {name: pq.read_metadata(shards[name][0]).num_rows for name in pending}
    opened: deque[tuple[str, list[Any]]] = deque()  # shards whose items are with the workers, in order

    def items_of_all() -> Iterator[Any]:
        for name in pending:
            opened.append((name, read(shards[name][0])))
            yield from opened[-1][1]

    results = work.engine.map(function, items_of_all(), seconds=seconds) if pending else iter(())
    done = 0
    for name in pending:
        if not opened:  # a shard without items is opened together with the next one's first item
            first = next(results, None)
            results = results if first is None else chain([first], results)
        _, items = opened.popleft()
        answers = []
        for answer in islice(results, len(items)):
            answers.append(answer)
            work.progress(done + rows[name] * len(answers) // len(items), sum(rows.values()), unit)
        done += rows[name]
        parts[name].mkdir(parents=True, exist_ok=True)
        counts = write(parts[name], items, answers)
        write_text(parts[name] / RECORD, json.dumps(dataclasses.asdict(counts)))
    next(results, None)  # lets the engine close its workers
    return _link_parts(work.directory, parts)


def _link_parts(directory: Path, parts: Mapping[str, Path]) -> Counts:
    counts = Counts()
    for name, part in parts.items():
        counts.add(Counts(**json.loads((part / RECORD).read_text())))
        for file in sorted(part.iterdir()):
            if file.name == RECORD or file.name.startswith("."):
                continue
            folder = directory if file.stem == "kept" else directory / file.stem
            link_or_copy(file, folder / Path(name).with_suffix(file.suffix).name)
    return counts


@contextmanager
def _only_builder(path: Path) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("%s: another run is building it; waiting for that one", path.with_suffix(""))
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@functools.cache
def _commit() -> str | None:
    """Commit of the code that runs, None outside a git checkout."""
    answer = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return answer.stdout.strip() or None
