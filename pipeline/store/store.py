"""The store of outputs: `Store.build` builds each output once, caches it by fingerprint and writes it atomically.

In: a stage, its config and the handles it reads. Out: a finished folder `<root>/<stage>/<fingerprint>/` that contains
record.json. The record is written last, so a folder with a record is complete.

- fingerprint = hash(stage name and version, versions of the libraries that affect its output, config literals,
  digests of the inputs). Paths, machine, worker count and time are not part of it.
- digest = hash of the content as data (digests.py). Inputs enter a fingerprint by digest, so that a stage that is
  rebuilt with the same content causes no further rebuilds.
- `map_shards` (parts.py) caches the result of every shard under its own key, so that one changed input file costs one
  shard. An output that lost items to a bad minute of the machine is built once more by the next build.
- If two processes build the same output at once, one of them builds and the other waits and reuses the result.
"""

import dataclasses
import errno
import fnmatch
import functools
import importlib.metadata
import json
import math
import os
import shutil
import subprocess
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from model.training.machine import device_kind
from pipeline.store.checksums import check_output, checksums, record_written
from pipeline.store.digests import content_digest
from pipeline.store.engine import Engine, LocalProcesses
from pipeline.store.errors import DiskFull
from pipeline.store.leases import Lease, leased
from pipeline.store.locks import only_one
from pipeline.store.record_file import RECORD, load_record, read_record
from pipeline.store.records import HANDLES, Checkpoint, Counts, Handle
from pipeline.store.shards import flush_folder, text_digest, write_durably, write_text

if TYPE_CHECKING:
    from model.training.launch import LaunchResult

FORMAT = 2  # of fingerprints and digests; raise it when they are computed in another way, and all is built once more
BEGUN = ".begun"  # contains the fingerprint of a build until its record is written
DEVICE = "device"  # in the libraries of a stage that computes with torch: cpu and cuda give other bytes
UNICODE = "Unicode"  # in the libraries of a stage that classifies or normalises text: the tables that Python has
NOT_IDENTITY = {"identity": False}  # metadata of a config field that does not affect the output
AS_SET = {"set": True}  # of one whose values have no order
LIMIT = NOT_IDENTITY | {"limit": True}  # of one that limits what an item may take: what it costs is no content
RETRY, OLD = ".retry", ".old"  # suffixes of folders while an output with failures is replaced

Config = Any  # a frozen dataclass of literals
# Runs the training described by a file in other processes and waits for them.
Launch = Callable[[Path], "LaunchResult"]
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
    libraries: tuple[str, ...] = ()  # distributions whose version affects the output, UNICODE and DEVICE
    # the config with what it leaves open, which follows from the inputs; the fingerprint is computed from it
    resolve: Callable[[Config, tuple[Any, ...]], Config] = lambda cfg, inputs: cfg
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
        cfg = stage.resolve(cfg, inputs)
        fingerprint = fingerprint_of(stage, cfg, inputs)
        where = directory or self.where(stage.name, fingerprint)
        with room_for(stage.name, where), nullcontext(self.lease) if self.lease else leased(self.root) as lease:
            own = self.where(stage.name, fingerprint)
            lease.take([own, own.with_name(f"{own.name}{RETRY}"), *(one.directory for one in inputs)])
            return self._found_or_built(stage, cfg, inputs, fingerprint, directory)

    def _found_or_built(
        self, stage: Stage, cfg: Config, inputs: tuple[Handle, ...], fingerprint: str, directory: Path | None
    ) -> Built:
        where = directory or self.where(stage.name, fingerprint)
        before = read_record(where, fingerprint)
        if before is not None and is_final(before, cfg):
            check_output(where, before)
            return Built(handle=handle_of(where, before), unchanged=True, record=before)
        lock, waiting = (
            where.parent / f".{where.name}.lock",
            f"{where}: another run is building it; waiting for that run",
        )
        with only_one(lock, waiting):
            record = read_record(where, fingerprint)
            if record is not None and record != before:  # another run finished it while this one waited
                return Built(handle=handle_of(where, record), unchanged=True, record=record)
            for one in inputs:
                verify(one.directory, whole=isinstance(one, Checkpoint))
            if record is None:
                _begin(where, fingerprint, ours=directory is None)
                record = self._run(stage, cfg, inputs, where, fingerprint)
            else:
                fresh = where.with_name(f"{where.name}{RETRY}")
                _begin(fresh, fingerprint, ours=True)
                record = self._run(stage, cfg, inputs, fresh, fingerprint)
                _replace(where, fresh)
        return Built(handle=handle_of(where, record), unchanged=False, record=record)

    def _run(
        self, stage: Stage, cfg: Config, inputs: tuple[Handle, ...], directory: Path, fingerprint: str
    ) -> dict[str, Any]:
        work = Work(
            stage=stage.name,
            fingerprint=fingerprint,
            recipe=recipe_of(stage, cfg),
            libraries=libraries_of(stage),
            directory=directory,
            parts=self.root / stage.name / "parts",
            engine=self.engine,
            show=self.show,
            observer=self.observer,
            launch=self.launch,
        )
        return _run(stage, cfg, inputs, work)


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
    recipe = [FORMAT, name, version, libraries, _with_one_number_type(config), *([variant] if variant else [])]
    return json.dumps(recipe, sort_keys=True)


def _with_one_number_type(value: Any) -> Any:
    """Literals with 1 for 1.0, which mean the same in every setting."""
    if isinstance(value, Mapping):
        return {key: _with_one_number_type(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_one_number_type(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def libraries_of(stage: Stage) -> dict[str, str]:
    """Library -> version, of those that affect the stage's output.

    The local part of a version is left out: torch 2.13.0+cpu and 2.13.0+cu130 are one version built for two machines.
    """
    return {name: _version_of(name).partition("+")[0] for name in sorted(stage.libraries)}


def _version_of(library: str) -> str:
    if library == UNICODE:
        return unicodedata.unidata_version
    return device_kind() if library == DEVICE else importlib.metadata.version(library)


def literals(value: Any, where: str = "config") -> Any:
    """`value` as JSON literals. ValueError with the place of a value that has no unique text form.

    A dataclass that is one of several kinds, such as a source, is told by its `kind` too.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [f for f in dataclasses.fields(value) if f.metadata.get("identity", True)]
        kind = getattr(type(value), "kind", None)
        value = ({"kind": kind} if isinstance(kind, str) else {}) | {
            f.name: _without_order(f, getattr(value, f.name)) for f in fields
        }
    if isinstance(value, Mapping):
        return {str(key): literals(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [literals(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError(f"{where} is {value!r}: a config may contain only text, numbers, booleans, lists and tables")


def _without_order(one: "dataclasses.Field[Any]", value: Any) -> Any:
    return sorted(set(value)) if one.metadata.get("set") and value is not None else value


def limits_of(cfg: Config) -> dict[str, float | None]:
    """The limits of a config, and of the configs in it, which are not part of its identity."""
    limits: dict[str, float | None] = {}
    for one in dataclasses.fields(cfg) if dataclasses.is_dataclass(cfg) else ():
        value = getattr(cfg, one.name)
        limits |= {one.name: value} if one.metadata.get("limit") else limits_of(value)
    return limits


def is_raised(before: Mapping[str, float | None], now: Mapping[str, float | None]) -> bool:
    """Whether one of the limits is higher than before; None is no limit."""
    return any(
        before.get(name) is not None and (limit is None or limit > before[name])  # type: ignore[operator]
        for name, limit in now.items()
    )


def is_final(record: Mapping[str, Any], cfg: Config) -> bool:
    """Whether a finished output is what a build would give now: no item was lost that would be tried again."""
    lost = (record["counts"] or {}).get("lost", {})
    return not lost or (record["transient"] == 0 and not is_raised(record["limits"], limits_of(cfg)))


def check_unchanged(handle: Handle) -> None:
    """Raises ValueError if the folder of an input has other content than when its handle was read.

    That happens only if an output from which items were lost (see parts.py) is built again while it is read.
    """
    if not (handle.directory / RECORD).exists():  # it is replaced right now, and what was read is the earlier content
        return
    if load_record(handle.directory)["digest"] != handle.digest:
        raise ValueError(f"{handle.directory} was built again while it was read; run again")


def handle_of(directory: Path, record: Mapping[str, Any]) -> Any:
    return HANDLES[record["handle"]](
        stage=record["stage"],
        directory=directory,
        fingerprint=record["fingerprint"],
        digest=record["digest"],
        rows=record["rows"],
    )


def read_handle(directory: Path) -> Any:
    """The handle of a finished folder. Raises ValueError if `directory` is none, CorruptShard if it was changed."""
    record = read_record(directory)
    if record is None:
        raise ValueError(f"{directory} is not a finished output: it has no {RECORD}")
    check_output(directory, record)
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
    begun = marker.read_text("utf-8", errors="replace") if marker.exists() else None
    if not ours and begun != fingerprint and any(path.name != BEGUN for path in directory.iterdir()):
        raise ValueError(
            f"{directory} is not empty"
            + (" and contains an unfinished build with other inputs or settings" if begun else "")
            + "; choose another folder or delete this one"
        )
    for leftover in directory.rglob(".*.part"):  # left by a build that was killed while writing
        leftover.unlink(missing_ok=True)  # one of its workers may still write its last file
    write_text(marker, fingerprint)


def _replace(directory: Path, fresh: Path) -> None:
    """Put the output in `fresh` in the place of an earlier one, whose files may still be open elsewhere."""
    old = directory.with_name(f"{directory.name}{OLD}")
    shutil.rmtree(old, ignore_errors=True)
    directory.rename(old)
    fresh.rename(directory)
    shutil.rmtree(old)


def _run(stage: Stage, cfg: Config, inputs: tuple[Handle, ...], work: Work) -> dict[str, Any]:
    started = time.perf_counter()
    outcome = stage.function(cfg, inputs, work)
    files = {
        str(path.relative_to(work.directory)): path.stat().st_size
        for path in sorted(work.directory.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(work.directory).parts)
    }
    identity = {
        name: work.digests.get(as_written(work.directory / name))
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
        "transient": outcome.counts.n_transient if outcome.counts else 0,
        "limits": limits_of(cfg),
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
    for handle in inputs:
        check_unchanged(handle)
    for folder in sorted({(work.directory / name).parent for name in files}):
        flush_folder(folder)  # before the record, which says that the files are there
    write_durably(work.directory / RECORD, json.dumps(record, indent=1))
    record_written(work.directory, list(files))
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
        place = Path(os.fsdecode(error.filename)) if error.filename else directory  # also of a temporary file
        there = next(path for path in (place, *place.parents) if path.exists())
        raise DiskFull(
            f"no space left to write `{stage}` in {place} ({shutil.disk_usage(there).free / 1e6:.0f} MB free);"
            " free some space, or run `gristmill gc`, and run again: finished work is kept"
        ) from error


def as_written(path: Path) -> tuple[Path, int]:
    """The key of `Work.digests`: a file that was replaced since has another inode."""
    return path, path.stat().st_ino


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
