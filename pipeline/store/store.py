"""The store of outputs: `Store.build` builds each output once, caches it by fingerprint and writes it atomically.

In: a stage, its config and the handles it reads. Out: a finished folder `<root>/<stage>/<fingerprint>/` that contains
record.json. The record is written last, so a folder with a record is complete.

- fingerprint = hash(stage name and version, versions of the libraries that affect its output, config literals,
  digests of the inputs). Paths, machine, worker count and time are not part of it.
- digest = hash of the content as data (digests.py). Inputs enter a fingerprint by digest, so that a stage that is
  rebuilt with the same content causes no further rebuilds.
- `map_shards` caches the result of every shard under its own key, so that one changed input file costs one shard.
- If two processes build the same output at once, one of them builds and the other waits and reuses the result.
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
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from pipeline.store.checksums import check_output, checksums, remember_written
from pipeline.store.digests import content_digest
from pipeline.store.engine import Done, Engine, Failed, LocalProcesses
from pipeline.store.errors import CorruptShard, DiskFull
from pipeline.store.leases import Lease, leased
from pipeline.store.record_file import RECORD, read_record
from pipeline.store.records import HANDLES, Checkpoint, Counts, Handle, Shards
from pipeline.store.shards import file_digest, link_or_copy, text_digest, write_text

if TYPE_CHECKING:
    from model.launch import Ended

FORMAT = 2  # of fingerprints and digests; raise it when they are computed in another way, and all is built once more
BEGUN = ".begun"  # contains the fingerprint of a build until its record is written
NOT_IDENTITY = {"identity": False}  # metadata of a config field that does not affect the output
log = logging.getLogger(__name__)

Config = Any  # a frozen dataclass of literals
Launch = Callable[[Path], "Ended"]  # runs the training described by a file in other processes and waits for them
Show = Callable[[str, int, int | None, str], None]  # stage, items done, total number of items if known, unit


class Observer(Protocol):
    """Receives the progress of a training stage, for example for MLflow; stages do not depend on MLflow."""

    def started(self, fingerprint: str, params: Mapping[str, object], inputs: Sequence[Handle]) -> None: ...
    def metrics(self, step: int, values: Mapping[str, float]) -> None: ...
    def checkpoint(self, path: Path, step: int, values: Mapping[str, float]) -> None: ...


class Silent:
    """An observer that ignores all calls."""

    def started(self, fingerprint: str, params: Mapping[str, object], inputs: Sequence[Handle]) -> None: ...
    def metrics(self, step: int, values: Mapping[str, float]) -> None: ...
    def checkpoint(self, path: Path, step: int, values: Mapping[str, float]) -> None: ...


def _show_nothing(stage: str, done: int, total: int | None, unit: str) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The return value of a stage function, which writes its files below `work.directory`."""

    rows: int
    counts: Counts | None = None
    measures: Mapping[str, float] = field(default_factory=dict)  # numbers worth a plot over time
    content: tuple[str, ...] = (
        "*",
    )  # patterns (`*` also spans folders) of the files whose content identifies the output
    volatile: tuple[str, ...] = ()  # columns of its tables that do not, such as a time of day


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """The environment of one build; nothing in it is part of the fingerprint."""

    stage: str
    fingerprint: str
    recipe: str  # fingerprint without the inputs: the key of results cached per shard
    libraries: Mapping[str, str]  # distribution -> version, of those that affect the output
    directory: Path
    parts: Path
    engine: Engine
    show: Show
    observer: Observer
    launch: Launch | None = None  # for a training; None = in this process
    digests: dict[tuple[Path, int], str] = field(default_factory=dict)  # (file, inode) -> digest, where it is known

    def progress(self, done: int, total: int | None, unit: str) -> None:
        self.show(self.stage, done, total, unit)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One step of the pipeline. Raise `version` whenever its output changes for equal input and config."""

    name: str
    version: int
    function: Callable[[Config, tuple[Any, ...], Work], Outcome]
    handle: type[Handle]
    libraries: tuple[str, ...] = ()  # distributions whose version affects the output
    variant: str = ""  # which of several functions with this name runs, for instance that of a kind of task
    by_shard: bool = False  # results are cached per shard, so that a rebuild processes changed shards only


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """A finished output with its record, built by this call or found in the store."""

    handle: Any
    unchanged: bool
    record: dict[str, Any]

    @property
    def counts(self) -> Counts | None:
        counts = self.record["counts"]
        return Counts(**counts) if counts else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Store:
    """All outputs below one folder. `engine` runs the work; `show` and `observer` receive its progress."""

    root: Path
    engine: Engine = field(default_factory=LocalProcesses)
    show: Show = _show_nothing
    observer: Observer = field(default_factory=Silent)
    launch: Launch | None = None  # starts the processes of a training; None = it runs in this process
    lease: Lease | None = None  # of a run that reads what it built until it ends; None = one for each build

    def where(self, stage: str, fingerprint: str) -> Path:
        """The folder of one output."""
        return output_folder(self.root, stage, fingerprint)

    def build(self, stage: Stage, cfg: Config, *inputs: Handle, directory: Path | None = None) -> Built:
        """The output of `stage` for `cfg` and `inputs`, built now or found finished.

        With `directory` the output is written there instead of below the root (command line: --out).
        Raises DiskFull when the disk is full, CorruptShard when files of a finished output are damaged.
        """
        fingerprint = fingerprint_of(stage, cfg, inputs)
        where = directory or self.where(stage.name, fingerprint)
        with room_for(stage.name, where), nullcontext(self.lease) if self.lease else leased(self.root) as lease:
            lease.take([self.where(stage.name, fingerprint), *(one.directory for one in inputs)])
            return self._found_or_built(stage, cfg, inputs, fingerprint, directory)

    def _found_or_built(
        self, stage: Stage, cfg: Config, inputs: tuple[Handle, ...], fingerprint: str, directory: Path | None
    ) -> Built:
        recipe, where = recipe_of(stage, cfg), directory or self.where(stage.name, fingerprint)
        if record := read_record(where, fingerprint):
            check_output(where, record)
            return Built(handle=handle_of(where, record), unchanged=True, record=record)
        with _only_builder(where):
            if record := read_record(where, fingerprint):  # another run finished it while this one waited
                return Built(handle=handle_of(where, record), unchanged=True, record=record)
            for one in inputs:
                verify(one.directory, whole=isinstance(one, Checkpoint))
            _begin(where, fingerprint, ours=directory is None)
            work = Work(
                stage=stage.name,
                fingerprint=fingerprint,
                recipe=recipe,
                libraries=libraries_of(stage),
                directory=where,
                parts=self.root / stage.name / "parts",
                engine=self.engine,
                show=self.show,
                observer=self.observer,
                launch=self.launch,
            )
            record = _run(stage, cfg, inputs, work)
        return Built(handle=handle_of(where, record), unchanged=False, record=record)


def output_folder(root: Path, stage: str, fingerprint: str) -> Path:
    """The folder of an output in the store below `root`. All outputs of a store have this layout."""
    return root / stage / fingerprint


def fingerprint_of(stage: Stage, cfg: Config, inputs: Sequence[Handle]) -> str:
    """Hash of everything that affects a stage's output."""
    return text_digest(recipe_of(stage, cfg), *(handle.digest for handle in inputs))


def recipe_of(stage: Stage, cfg: Config) -> str:
    """Canonical text of everything that affects a stage's output, except its inputs."""
    return recipe_text(stage.name, stage.version, libraries_of(stage), literals(cfg), stage.variant)


def recipe_text(name: str, version: int, libraries: Mapping[str, str], config: Any, variant: str = "") -> str:
    """`config` as literals, so that the recipe of a finished output can be computed from its record."""
    recipe = [FORMAT, name, version, libraries, config, *([variant] if variant else [])]
    return json.dumps(recipe, sort_keys=True)


def libraries_of(stage: Stage) -> dict[str, str]:
    """Distribution -> version, of those that affect the stage's output."""
    return {name: importlib.metadata.version(name) for name in sorted(stage.libraries)}


def literals(value: Any, where: str = "config") -> Any:
    """`value` as JSON literals. ValueError with the place of a value that has no unique text form."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [f for f in dataclasses.fields(value) if f.metadata.get("identity", True)]
        value = {f.name: getattr(value, f.name) for f in fields}
    if isinstance(value, Mapping):
        return {str(key): literals(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [literals(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError(f"{where} is {value!r}: a config may contain only text, numbers, booleans, lists and tables")


def handle_of(directory: Path, record: Mapping[str, Any]) -> Any:
    return HANDLES[record["handle"]](
        stage=record["stage"],
        directory=directory,
        fingerprint=record["fingerprint"],
        digest=record["digest"],
        rows=record["rows"],
    )


def read_handle(directory: Path) -> Any:
    """The handle of a finished folder. Raises ValueError when `directory` is not one."""
    record = read_record(directory)
    if record is None:
        raise ValueError(f"{directory} is not a finished output: it has no {RECORD}")
    return handle_of(directory, record)


def verify(directory: Path, *, whole: bool = False) -> None:
    """Raises CorruptShard when a file of the finished output in `directory`, which is read next, was changed.

    Looks at a sample of the bytes, or at the `whole` model if it is one. A folder without a record is not judged.
    """
    if record := read_record(directory):
        check_output(directory, record, is_read=True, whole=whole)


def _begin(directory: Path, fingerprint: str, *, ours: bool) -> None:
    """Prepare `directory` for a build: create it, or continue in what a killed build of the same output left.

    Raises ValueError when a folder that is not `ours` contains other files, because they would become a part of the
    output.
    """
    directory.mkdir(parents=True, exist_ok=True)
    marker = directory / BEGUN
    begun = marker.read_text("utf-8") if marker.exists() else None
    if not ours and begun != fingerprint and any(path.name != BEGUN for path in directory.iterdir()):
        raise ValueError(
            f"{directory} is not empty"
            + (" and contains an unfinished build with other inputs or settings" if begun else "")
            + "; choose another folder or delete this one"
        )
    for leftover in directory.rglob(".*.part"):  # left by a build that was killed while writing
        leftover.unlink(missing_ok=True)  # one of its workers may still write its last file
    write_text(marker, fingerprint)


def _run(stage: Stage, cfg: Config, inputs: tuple[Handle, ...], work: Work) -> dict[str, Any]:
    started = time.perf_counter()
    outcome = stage.function(cfg, inputs, work)
    files = {
        str(path.relative_to(work.directory)): path.stat().st_size
        for path in sorted(work.directory.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(work.directory).parts)
    }
    identity = {
        name: work.digests.get(_as_written(work.directory / name))
        or content_digest(work.directory / name, outcome.volatile)
        for name in files
        if any(fnmatch.fnmatch(name, pattern) for pattern in outcome.content)
    }
    record = {
        "format": FORMAT,
        "stage": stage.name,
        "version": stage.version,
        "variant": stage.variant,
        "handle": stage.handle.__name__,
        "fingerprint": work.fingerprint,
        "digest": text_digest(*(part for item in sorted(identity.items()) for part in item)),
        "config": literals(cfg),
        "libraries": libraries_of(stage),
        "inputs": [{"stage": i.stage, "fingerprint": i.fingerprint, "digest": i.digest} for i in inputs],
        "rows": outcome.rows,
        "counts": dataclasses.asdict(outcome.counts) if outcome.counts else None,
        "measures": dict(outcome.measures),
        "volatile": list(outcome.volatile),
        "files": {
            name: {"bytes": size, "digest": identity.get(name), "blocks": checksums(work.directory / name)}
            for name, size in files.items()
        },
        "bytes": sum(files.values()),
        "seconds": round(time.perf_counter() - started, 3),
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": code_commit(),
    }
    write_text(work.directory / RECORD, json.dumps(record, indent=1))
    remember_written(work.directory, list(files))
    (work.directory / BEGUN).unlink()
    return record


@contextmanager
def room_for(stage: str, directory: Path) -> Iterator[None]:
    """Turns the system's "no space left" into DiskFull with advice."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or isinstance(error, DiskFull):
            raise
        there = next(path for path in (directory, *directory.parents) if path.exists())
        raise DiskFull(
            f"no space left to write `{stage}` in {directory} ({shutil.disk_usage(there).free / 1e6:.0f} MB free);"
            " free some space, or run `gristmill gc`, and run again: finished work is kept"
        ) from error


def map_shards(
    work: Work,
    inputs: Sequence[Shards],
    *,
    read: Callable[[Path], list[Any]],
    function: Callable[[Any], Any],
    write: Callable[[Path, list[Any], list[Done | Failed]], Counts],
    seconds: float | None = None,
    memory_mb: int | None = None,
    unit: str = "items",
    key: Callable[[str], str] = lambda name: "",
) -> Counts:
    """Run `function` over the items of every input shard in worker processes, once per shard content.

    `read` lists the items of a shard; `write` puts their results (in order) below a part folder as files
    `kept.parquet`, `dropped.parquet`, `<folder>.<suffix>`, which appear in the output as `<shard>`,
    `dropped/<shard>`, `<folder>/<shard>`. Output shards have the names of the input shards. `key` maps the name of a
    shard to what else affects its result, such as the digest of a second input's shard.
    """
    shards = _input_shards(inputs)
    parts = {name: work.parts / text_digest(work.recipe, digest, key(name)) for name, (_, digest) in shards.items()}
    pending = [name for name in shards if _read_part(parts[name]) is None]
    rows = {name: _n_rows(shards[name][0]) for name in pending}
    opened: deque[tuple[str, list[Any]]] = deque()  # shards whose items are being processed, in order

    def items_of_all() -> Iterator[Any]:
        for name in pending:
            opened.append((name, read(shards[name][0])))
            yield from opened[-1][1]

    results = work.engine.map(function, items_of_all(), seconds=seconds, memory_mb=memory_mb) if pending else iter(())
    done = 0
    for name in pending:
        if not opened:  # shards without items are opened together with the next shard that has some
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
        _finish_part(parts[name], counts)
    next(results, None)  # lets the engine stop its workers
    return _link_parts(work, parts)


def _input_shards(inputs: Sequence[Shards]) -> dict[str, tuple[Path, str]]:
    """Shard name -> path and content digest. Raises ValueError when two inputs have shards of the same name."""
    shards: dict[str, tuple[Path, str]] = {}
    for handle in inputs:
        record = read_record(handle.directory)
        assert record is not None  # a handle is made from a record
        for name, entry in sorted(record["files"].items()):
            if "/" in name or not name.endswith(".parquet"):
                continue
            if name in shards:
                raise ValueError(
                    f"{shards[name][0]} and {handle.directory / name} have the same name, so one would replace"
                    " the other; rename one of the sources"
                )
            shards[name] = (handle.directory / name, entry["digest"])
    return shards


def _n_rows(path: Path) -> int:
    try:
        return pq.read_metadata(path).num_rows
    except (pa.ArrowException, OSError) as error:
        raise CorruptShard(f"{path}: not a readable Parquet shard ({error}); delete its folder and rerun") from error


def _finish_part(part: Path, counts: Counts) -> None:
    """Write the record of a shard's result, which marks it as complete."""
    files = [path for path in sorted(part.iterdir()) if _is_result(path)]
    record = {
        "counts": dataclasses.asdict(counts),
        "files": {path.name: file_digest(path) for path in files},
        "content": {path.name: content_digest(path) for path in files},
    }
    write_text(part / RECORD, json.dumps(record))


def _read_part(part: Path) -> Counts | None:
    """Counts of a cached shard result; None if it is missing or damaged, so that it is computed again."""
    try:
        record = json.loads((part / RECORD).read_text("utf-8"))
        whole = all(file_digest(part / name) == digest for name, digest in record["files"].items())
        return Counts(**record["counts"]) if whole and record["files"].keys() == record["content"].keys() else None
    except (OSError, ValueError, KeyError):
        return None


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
            work.digests[_as_written(target)] = record["content"][str(file)]
    return counts


def _as_written(path: Path) -> tuple[Path, int]:
    """A file that was replaced since has another inode."""
    return path, path.stat().st_ino


@contextmanager
def _only_builder(directory: Path) -> Iterator[None]:
    directory.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory.parent / f".{directory.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("%s: another run is building it; waiting for that run", directory)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@functools.cache
def code_commit() -> str | None:
    """Commit of the running code; None outside a git checkout or without git."""
    if shutil.which("git") is None:
        return None
    answer = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    return answer.stdout.strip() or None
