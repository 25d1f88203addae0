"""The result of a check, and the checks for the output of any stage: no rows are lost, and some rows remain."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq

from model.token_shards import SPLITS, read_description, read_token_shards
from pipeline.store.chain import same_asset, side_inputs
from pipeline.store.lineage import Folder, folder_of
from pipeline.store.records import Handle, Shards
from pipeline.store.shards import DROPPED_FOLDER, shard_paths
from pipeline.store.store import read_record


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


def _lost_rows(folder: Folder, record: Mapping[str, Any]) -> int:
    """Numbers of rows that are unaccounted for: in the inputs, in the shards, in the dropped rows."""
    counts, directory, beside = record["counts"], folder.directory, side_inputs(folder.stage)
    inputs = [read_record(one.directory) or {} for one in folder.inputs(record) if one.stage not in beside]
    shards = [one["rows"] for one in inputs if one.get("handle") == Shards.__name__]
    given = sum(shards) if shards else counts["rows_in"]  # a stage may read files, and a deny list besides its rows
    dropped = sum(pq.read_metadata(path).num_rows for path in shard_paths(directory, DROPPED_FOLDER))
    if paths := shard_paths(directory):
        kept = sum(pq.read_metadata(path).num_rows for path in paths)
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


def not_empty(rows: int) -> Verdict:
    return Verdict(passed=rows > 0, rule="rows >= 1", observed=rows, limit=1)
