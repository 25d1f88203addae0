"""The result of a check, and the checks for the output of any stage: no rows are lost, and some rows remain."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from model.data.token_shards import SPLITS, read_description, read_token_shards
from pipeline.store.chain import divided_by, same_asset, side_inputs
from pipeline.store.lineage import Folder, folder_of
from pipeline.store.records import FAILED_AGAIN, Handle, Shards
from pipeline.store.shards import DROPPED_FOLDER, read_table, shard_paths
from pipeline.store.store import read_record

MOST_LOST = 0.001  # share of the rows of a stage that a bad minute of the machine may take
MOST_REASONS = 5  # drop reasons of a stage that the check `not_empty` names
MOST_FINAL, FEW = 0.01, 3  # share, and number, of rows that may fail whenever they are tried


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The observed value and its limit; `rule` describes how they must compare, `failure` what is wrong if they do
    not, in a sentence with the numbers."""

    passed: bool
    rule: str
    observed: float
    limit: float
    details: Mapping[str, Any] = field(default_factory=dict)
    failure: str = ""

    def sentence(self) -> str:
        """What people read about the check."""
        if self.failure and not self.passed:
            return self.failure
        return f"{self.rule}: observed {self.observed:.6g}, limit {self.limit:.6g}"


def conservation(handle: Handle) -> Verdict:
    """Checks that rows in = kept + dropped, counted in the shards of each stage that the asset of `handle` runs."""
    stages, lost = same_asset(handle.stage), {}
    folder: Folder | None = folder_of(handle)
    while folder is not None and folder.stage in stages:
        record = read_record(folder.directory)
        assert record is not None
        lost[folder.stage] = _lost_rows(folder, record)
        folder = next(iter(folder.inputs(record)), None)
    total = sum(abs(rows) for rows in lost.values())
    return Verdict(passed=not total, rule="rows in - kept - dropped = 0", observed=total, limit=0, details=lost)


def few_lost(handle: Handle) -> Verdict:
    """Checks how many rows each stage of the asset of `handle` lost to timeouts, crashes and lack of memory.

    Rows that the next build tries again are limited to MOST_LOST. Rows that failed in two builds are at fault
    themselves, as those are that cannot be read; many of them mean that a limit is too low.
    """
    stages, folders, details = same_asset(handle.stage), [folder_of(handle)], {}
    worst, passed = 0.0, True
    for folder in folders:
        record = read_record(folder.directory) or {}
        folders += [one for one in folder.inputs(record) if one.stage in stages and one not in folders]
        counts: Mapping[str, Any] = record.get("counts") or {"rows_in": 0}
        lost = counts.get("lost", {})
        if not lost:
            continue
        final = sum(rows for reason, rows in lost.items() if reason.startswith(FAILED_AGAIN))
        transient, n_rows = sum(lost.values()) - final, max(counts["rows_in"], 1)
        passed = passed and transient <= MOST_LOST * n_rows and final <= max(FEW, MOST_FINAL * n_rows)
        worst = max(worst, transient / n_rows, final / n_rows if final > FEW else 0.0)
        reasons = ", ".join(f"{reason} {rows}" for reason, rows in lost.items())
        details[folder.stage] = f"{transient + final} of {n_rows} rows: {reasons}"
    if not passed:
        details["advice"] = "run again, on an idle machine: these rows alone are tried again; or raise the limits"
    return Verdict(
        passed=passed,
        rule="rows lost to timeout, crash or memory <= limit (1 % if they failed in two builds)",
        observed=worst,
        limit=MOST_LOST,
        details=details,
    )


def _lost_rows(folder: Folder, record: Mapping[str, Any]) -> int:
    """Numbers of rows that are unaccounted for: in the inputs, in the shards, in the dropped rows."""
    counts, directory, beside = record["counts"], folder.directory, side_inputs(folder.stage)
    inputs = [read_record(one.directory) or {} for one in folder.inputs(record) if one.stage not in beside]
    shards = [one["rows"] for one in inputs if one.get("handle") == Shards.__name__]
    given = sum(shards) if shards else counts["rows_in"]  # a stage may read files, and a deny list besides its rows
    dropped = sum(pq.read_metadata(path).num_rows for path in shard_paths(directory, DROPPED_FOLDER))
    if paths := shard_paths(directory):
        kept = sum(_rows_of_input(folder.stage, path) for path in paths)
    else:  # token shards, which may contain a document several times
        rows = sum(len(shard.document_ids) for split in SPLITS for shard in read_token_shards(directory, split))
        kept = rows - read_description(directory)["splits"]["train"]["repeats"]
    told = sum(counts["dropped"].values())
    return (
        abs(given - kept - dropped)
        + abs(counts["rows_in"] - given)
        + abs(counts["kept"] - kept)
        + abs(told - dropped)
    )


def _rows_of_input(stage: str, shard: Path) -> int:
    """The rows of its input that a stage made the rows of a shard of."""
    column = divided_by(stage)
    return len(read_table(shard, columns=[column])[column].unique()) if column else pq.read_metadata(shard).num_rows


def not_empty(handle: Handle) -> Verdict:
    """Checks that the asset of `handle` has rows, and says why none are left."""
    failure = "" if handle.rows else _why_empty(handle)
    return Verdict(passed=handle.rows > 0, rule="rows >= 1", observed=handle.rows, limit=1, failure=failure)


def _why_empty(handle: Handle) -> str:
    """For instance "no row is left of 60: filter dropped 60 (duplicate_5_gram 58, language 2)"."""
    stages, folders, told, n_rows = same_asset(handle.stage), [folder_of(handle)], [], 0
    for folder in folders:  # the last stage first
        record = read_record(folder.directory) or {}
        folders += [one for one in folder.inputs(record) if one.stage in stages and one not in folders]
        counts: Mapping[str, Any] = record.get("counts") or {"rows_in": 0, "dropped": {}}
        n_rows = max(n_rows, counts["rows_in"])
        if dropped := counts["dropped"]:
            most = sorted(dropped.items(), key=lambda reason: -reason[1])
            reasons = ", ".join(f"{reason} {rows:,}" for reason, rows in most[:MOST_REASONS])
            more = ", ..." if len(most) > MOST_REASONS else ""
            told.insert(0, f"{folder.stage} dropped {sum(dropped.values()):,} ({reasons}{more})")
    if not n_rows:
        return "there is no row, because nothing came in"
    return f"no row is left of {n_rows:,}" + (f": {', '.join(told)}" if told else "")
