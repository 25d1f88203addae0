"""Computes what a materialisation of the whole graph would rebuild, and why, without building anything.

In: a layout. Out: one PlannedAsset per asset, in the order in which Dagster would build them. Steps: the bodies of
the assets run as usual, but with a store that compares instead of building: the recipe and the inputs of each stage
with those of the current output of the asset. Settings are those of config.toml; changes in the launchpad are not
known here.

The output of a changed stage is not known before it ran. Everything that reads it counts as rebuilt, although equal
content would end the rebuild there, and its earlier output is used in its place: a plan is an upper bound. Seconds
and bytes are those of the last build, in proportion to the shards that changed if a stage works per shard, and to the
work that the settings imply if it trains.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import dagster as dg

from pipeline.definitions import definitions
from pipeline.defs.names import asset_name
from pipeline.defs.resources import Mill
from pipeline.store.layout import Layout, all_current, all_entries, asset_records
from pipeline.store.records import Handle
from pipeline.store.store import (
    BEGUN,
    FORMAT,
    RECORD,
    Built,
    Config,
    Stage,
    Store,
    fingerprint_of,
    handle_of,
    is_final,
    libraries_of,
    literals,
    read_record,
)
from pipeline.training.continuing import ResolvedContinue
from pipeline.training.pretrain import ResolvedPretrain

Record = Mapping[str, Any]
Training = ResolvedPretrain | ResolvedContinue  # recipes from whose settings the work follows
NO_RECORD = {"seconds": 0.0, "bytes": 0, "counts": None, "measures": {}, "finished_at": ""}
MOST_REASONS = 4  # reasons per stage that are listed one by one


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedBuild:
    """The plan for the output of one stage. Without reasons it is up to date."""

    stage: str
    reasons: tuple[str, ...] = ()
    last: Record | None = None  # record of the existing output
    share: float = 1.0  # of the work of the last build, approximately
    bytes_share: float = 1.0  # of its bytes
    n_tokens: int | None = None  # to train on
    fingerprint: str | None = None  # of the new output, if known in advance
    config: Any = None  # config of the stage, if known in advance
    resumes: bool = False  # there is an unfinished build

    @property
    def seconds(self) -> float | None:
        """None if it was never built, so that nothing is known."""
        return None if self.last is None else self.last["seconds"] * self.share

    @property
    def n_bytes(self) -> float | None:
        return None if self.last is None else self.last["bytes"] * self.bytes_share


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedAsset:
    """The stages of one asset in order. `fault` is what will stop it, for instance a missing path."""

    asset: str
    builds: tuple[PlannedBuild, ...]
    reads: tuple[str, ...] = ()  # assets
    fault: str | None = None

    @property
    def rebuilt(self) -> tuple[PlannedBuild, ...]:
        return tuple(build for build in self.builds if build.reasons)

    @property
    def n_documents(self) -> int | None:
        """Number of input rows of its first counted stage in the last build."""
        counted = [build.last["counts"] for build in self.builds if build.last and build.last["counts"]]
        return counted[0]["rows_in"] if counted else None

    @property
    def n_tokens(self) -> int | None:
        """Tokens of its shards in the last build, or tokens to train on."""
        if planned := [build.n_tokens for build in self.rebuilt if build.n_tokens is not None]:
            return planned[0]
        measures = {name: value for b in self.builds if b.last for name, value in b.last["measures"].items()}
        if "tokens" in measures:
            return int(measures["tokens"])
        sides = [
            measures[f"{side}_tokens"] for side in ("train", "validation", "test") if f"{side}_tokens" in measures
        ]
        return int(sum(sides)) if sides else None


@dataclass(kw_only=True, slots=True)
class Changes:
    """What is known about outputs that will be rebuilt. A tokenizer is asked about by its folder in that of its
    model, and changes with the model."""

    shares: dict[Path, float] = field(default_factory=dict)  # folder -> the share of its shards that changes
    names: dict[Path, str] = field(default_factory=dict)  # folder -> asset whose output it is

    def share(self, folder: Path) -> float | None:
        return self.shares.get(folder, self.shares.get(folder.parent))

    def name(self, folder: Path) -> str | None:
        return self.names.get(folder, self.names.get(folder.parent))


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanningStore(Store):
    """Compares instead of building. `before` are the records of the asset's stages; `plan` collects the result."""

    before: Mapping[str, Record]
    changes: Changes
    plan: list[PlannedBuild]

    def build(self, stage: Stage, cfg: Config, *inputs: Handle, directory: Path | None = None) -> Built:
        del directory
        cfg = stage.resolve(cfg, inputs)
        where = self.where(stage.name, fingerprint_of(stage, cfg, inputs))
        is_known = all(self.changes.share(one.directory) is None for one in inputs)
        record = read_record(where) if is_known else None
        if record is not None and is_final(record, cfg):
            self.plan.append(PlannedBuild(stage=stage.name, last=record, config=cfg))
            return Built(handle=handle_of(where, record), unchanged=True, record=record)
        last = self.before.get(stage.name)
        share = _share(stage, cfg, inputs, last, self.changes)
        planned = PlannedBuild(
            stage=stage.name,
            reasons=tuple(_reasons(stage, cfg, inputs, last, self.changes)),
            last=last,
            share=share,
            bytes_share=share if stage.by_shard else 1.0,
            n_tokens=cfg.train.n_steps * cfg.train.tokens_per_step if isinstance(cfg, Training) else None,
            fingerprint=where.name if is_known else None,
            config=cfg,
            resumes=is_known and (where / BEGUN).exists(),
        )
        self.plan.append(planned)
        handle = self._stand_in(stage, where, last)
        self.changes.shares[handle.directory] = planned.share if stage.by_shard or last is None else 1.0
        return Built(handle=handle, unchanged=False, record=dict(last or NO_RECORD))

    def _stand_in(self, stage: Stage, where: Path, last: Record | None) -> Any:
        """The last output; if there is none, the address of the future one."""
        if last is not None:
            return handle_of(self.where(last["stage"], last["fingerprint"]), last)
        return stage.handle(stage=stage.name, directory=where, fingerprint=where.name, digest="", rows=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanningMill(Mill):
    """The mill for planning an asset."""

    planner: PlanningStore

    def store(self, context: dg.AssetExecutionContext, shown_as: str = "", n_workers: int = 0) -> Store:
        return self.planner

    def build(
        self, context: dg.AssetExecutionContext, stage: Stage, cfg: Config, *inputs: Handle, **tracking: Any
    ) -> Built:
        return self.planner.build(stage, cfg, *inputs)

    def materialised(self, *builds: Built) -> dg.MaterializeResult[Any]:
        return dg.MaterializeResult(value=builds[-1].handle)


def plan(layout: Layout, code: dg.Definitions | None = None) -> list[PlannedAsset]:
    """The plans of all assets of the graph; `code` is the loaded graph, if it is loaded already.

    Raises ValueError when one of the four TOML files is invalid.
    """
    graph = (code or definitions(layout)).resolve_asset_graph()
    current = all_current(layout)
    changes = Changes(names={layout.store / entry["folder"]: entry["asset"] for entry in all_entries(layout)})
    handles: dict[str, Handle] = {}  # of assets that were built at least once
    assets = []
    for key in graph.toposorted_asset_keys:
        records = asset_records(layout, asset_name(key)) if asset_name(key) in current else []
        before = {record["stage"]: record for record in reversed(records)}
        store = PlanningStore(root=layout.store, before=before, changes=changes, plan=[])
        asset, handle = _planned_asset(graph.get(key).assets_def, asset_name(key), store, layout, handles)
        assets.append(asset)
        if handle is not None and (handle.directory / RECORD).exists():
            handles[asset.asset] = handle
            changes.names.setdefault(handle.directory, asset.asset)
    return assets


def _planned_asset(
    definition: dg.AssetsDefinition, name: str, store: PlanningStore, layout: Layout, handles: Mapping[str, Handle]
) -> tuple[PlannedAsset, Handle | None]:
    """The plan of one asset, and the handle that it would return."""
    inputs = {parameter: asset_name(key) for parameter, key in definition.keys_by_input_name.items()}
    reads = tuple(inputs.values())
    if missing := sorted({one for one in reads if one not in handles}):
        reason = f"needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not built yet"
        configs = _configs(definition, store, layout, {p: handles.get(one) for p, one in inputs.items()})
        stages = {**configs, **store.before} or {name: None}
        builds = [
            PlannedBuild(stage=one, reasons=(reason,), last=store.before.get(one), config=configs.get(one))
            for one in stages
        ]
        return PlannedAsset(asset=name, builds=tuple(builds), reads=reads), None
    mill = PlanningMill(layout=layout, planner=store)
    given: dict[str, Any] = {parameter: handles[one] for parameter, one in inputs.items()}
    try:
        result: Any = definition(dg.build_asset_context(), mill=mill, **given)
    except ValueError as error:
        fault = _place(layout, name) + " ".join(str(error).split())
        return PlannedAsset(asset=name, builds=tuple(store.plan), reads=reads, fault=fault), None
    return PlannedAsset(asset=name, builds=tuple(store.plan), reads=reads), result.value


def _place(layout: Layout, asset: str) -> str:
    """File and table that declare an asset without inputs."""
    folder, _, table = asset.rpartition("/")
    if file := {"pages": layout.sources_toml, "base": layout.models_toml}.get(folder):
        return f"{file}: [{table}]: "
    stem = next((asset.removesuffix(end) for end in ("_examples", "_pages") if asset.endswith(end)), "")
    return f"{layout.tasks_toml}: [{stem}]: " if stem else ""


def refuse_faults(planned: Sequence[PlannedAsset], assets: Collection[str]) -> None:
    """Raises ValueError when one of `assets` cannot be built, because a file is missing or lacks a column.

    The commands check this before anything runs, for the assets that they build. A code location of Dagster is
    not loaded while something is missing: see pipeline/definitions.py.
    """
    if faults := [one.fault for one in planned if one.fault and one.asset in assets]:
        raise ValueError(faults[0] + (f" ({len(faults) - 1} more: see `gristmill plan`)" if faults[1:] else ""))


def _configs(
    definition: dg.AssetsDefinition, store: PlanningStore, layout: Layout, given: Mapping[str, Handle | None]
) -> dict[str, Any]:
    """Stage -> config of an asset whose inputs were never built, as far as its body runs without reading them."""
    trial = replace(store, changes=Changes(), plan=[])
    stood_in: dict[str, Any] = {}
    for parameter, handle in given.items():
        annotated = definition.node_def.input_dict[parameter].dagster_type.typing_type
        cls = annotated if isinstance(annotated, type) and issubclass(annotated, Handle) else Handle
        nothing = cls(stage="", directory=layout.store / ".none", fingerprint="", digest="", rows=0)
        stood_in[parameter] = handle or nothing
    with suppress(ValueError, OSError, AssertionError):  # the body read an input
        definition(dg.build_asset_context(), mill=PlanningMill(layout=layout, planner=trial), **stood_in)
    return {build.stage: build.config for build in trial.plan}


def _reasons(
    stage: Stage, cfg: Config, inputs: tuple[Handle, ...], last: Record | None, changes: Changes
) -> Iterator[str]:
    if last is None:
        yield "never built"
        return
    found = list(_differences(stage, cfg, inputs, last, changes))
    if not found and (lost := (last["counts"] or {}).get("lost")):
        rows = ", ".join(f"{reason} {n}" for reason, n in lost.items())
        found = [f"{sum(lost.values())} rows that workers could not finish are tried again ({rows})"]
    yield from found[:MOST_REASONS]
    if len(found) > MOST_REASONS:
        yield f"and {len(found) - MOST_REASONS} more"
    if not found:
        yield "its output was removed, or never finished"


def _differences(
    stage: Stage, cfg: Config, inputs: tuple[Handle, ...], last: Record, changes: Changes
) -> Iterator[str]:
    if (known := last.get("format", 1)) != FORMAT:
        yield f"fingerprints and digests are computed in a new way: format {known} -> {FORMAT}"
    if last["version"] != stage.version:
        yield f"code of `{stage.name}`: version {last['version']} -> {stage.version}"
    for library, version in libraries_of(stage).items():
        if (known := last["libraries"].get(library)) != version:
            yield f"{library} {known} -> {version}"
    old, new = _flat(last["config"]), _flat(literals(cfg))
    for setting in sorted({*old, *new}):
        if old.get(setting) != new.get(setting):
            yield f"{setting} {_short(old.get(setting))} -> {_short(new.get(setting))}"
    before = [one["digest"] for one in last["inputs"]]
    for i, one in enumerate(inputs):
        name = changes.name(one.directory) or f"`{one.stage}`"
        if (share := changes.share(one.directory)) is not None:
            yield f"{name} is rebuilt" + (f" ({share:.0%} of it)" if share < 1 else "")
        elif i >= len(before) or before[i] != one.digest:
            yield f"{name} has changed"
    if len(before) > len(inputs):
        yield f"{len(before) - len(inputs)} of its inputs were removed"


def _flat(value: Any, where: str = "") -> dict[str, Any]:
    """Dotted path -> literal."""
    if not isinstance(value, Mapping):
        return {where: value}
    return {
        path: leaf
        for key, item in value.items()
        for path, leaf in _flat(item, f"{where}.{key}".removeprefix(".")).items()
    }


def _short(value: Any, most: int = 40) -> str:
    text = "nothing" if value in (None, "") else str(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _share(stage: Stage, cfg: Config, inputs: tuple[Handle, ...], last: Record | None, changes: Changes) -> float:
    """Approximate share of the work of the last build."""
    if last is None:
        return 1.0
    if isinstance(cfg, Training) and last["version"] == stage.version:
        return _training_work(literals(cfg)) / _training_work(last["config"])
    is_same_recipe = (last.get("format", 1), last["version"]) == (FORMAT, stage.version)
    is_same_recipe = is_same_recipe and last["config"] == literals(cfg)
    if not (stage.by_shard and is_same_recipe and last["libraries"] == libraries_of(stage)):
        return 1.0
    before = {one["digest"] for one in last["inputs"]}
    sizes = [(max(one.rows, 1), 0.0 if one.digest in before else 1.0, one.directory) for one in inputs]
    known = [changes.share(directory) for _, _, directory in sizes]
    changed = sum(rows * (share if now is None else now) for (rows, share, _), now in zip(sizes, known, strict=True))
    return changed / sum(rows for rows, _, _ in sizes) if sizes else 1.0


def _training_work(config: Record) -> float:
    """Multiplications of the layers over all steps, without the head, whose size is not known in advance; tokens of a
    training that has the network of its base."""
    train = config["train"]
    n_tokens = train["n_steps"] * train["rows"] * train["seq_len"]
    if (shape := config.get("network")) is None:
        return n_tokens
    matrices = shape["d_model"] * (2 * (shape["n_heads"] + shape["n_kv_heads"]) * shape["d_head"] + 3 * shape["d_ff"])
    return n_tokens * shape["n_layers"] * matrices
