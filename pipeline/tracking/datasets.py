"""Describes the datasets of an MLflow run: its inputs under the names of their assets, with columns and counts.

In: the handles that a build reads. Out: one description per dataset, as JSON for the journal and as an MLflow
dataset. The digest is the content digest, so that equal data is one dataset. Models and tokenizers are not datasets.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store.layout import Layout, all_entries
from pipeline.store.lineage import Folder
from pipeline.store.records import Columns, Handle, Shards
from pipeline.store.store import read_record

TYPES = {  # Arrow's type names -> MLflow's, if they differ
    "large_string": "string",
    "int8": "integer",
    "int16": "integer",
    "int32": "integer",
    "int64": "long",
    "uint16": "integer",
    "uint32": "long",
    "uint64": "long",
    "bool": "boolean",
}


def datasets(layout: Layout, inputs: Sequence[Handle]) -> list[dict[str, Any]]:
    return [dataset_of(layout, one) for one in inputs if isinstance(one, Shards | Columns)]


def dataset_of(layout: Layout, handle: Handle) -> dict[str, Any]:
    """Name, digest, folder (relative to the data folder), columns and counts of an input."""
    inside = handle.directory.is_relative_to(layout.data)
    record = read_record(handle.directory) or {"measures": {}, "bytes": None}
    columns = columns_of(handle.directory)
    profile = {"rows": handle.rows, "columns": len(columns), "bytes": record["bytes"], **record["measures"]}
    return {
        "name": asset_of(layout, handle),
        "digest": handle.digest,
        "source": str(handle.directory.relative_to(layout.data) if inside else handle.directory),
        "schema": columns,
        "profile": {**profile, "fingerprint": handle.fingerprint},
    }


def asset_of(layout: Layout, handle: Handle | Folder) -> str:
    """The asset whose output this is or was; the stage, for an output that is not an asset."""
    for entry in all_entries(layout):
        if any(handle.directory == layout.store / folder for folder in (entry["folder"], *entry["earlier"])):
            return entry["asset"]
    return handle.stage


def columns_of(directory: Path) -> list[dict[str, Any]]:
    """The columns of the first shard, in MLflow's format; none for a folder without shards."""
    for path in sorted([*directory.glob("*.parquet"), *directory.glob("train/*.arrow")]):
        if path.suffix == ".parquet":
            schema = pq.read_schema(path)
        else:
            with pa.memory_map(str(path)) as file:
                schema = pa.ipc.open_file(file).schema
        return [{"name": one.name, "required": not one.nullable, **_type(one.type)} for one in schema]
    return []


def dataset_inputs(layout: Layout, described: Sequence[dict[str, Any]], context: str) -> list[Any]:
    """The MLflow datasets; `context` is training or evaluation."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    return [
        DatasetInput(
            Dataset(
                name=one["name"],
                digest=one["digest"],
                source_type="local",
                source=json.dumps({"uri": (layout.data / one["source"]).as_uri()}),
                schema=json.dumps({"mlflow_colspec": one["schema"]}) if one["schema"] else None,
                profile=json.dumps(one["profile"]),
            ),
            tags=[InputTag("mlflow.data.context", context)],
        )
        for one in described
    ]


def _type(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return {"type": "array", "items": _type(kind.value_type)}
    if pa.types.is_struct(kind):
        return {"type": "object", "properties": {one.name: _type(one.type) for one in kind}}
    if pa.types.is_map(kind):
        return {"type": "map", "values": _type(kind.item_type)}
    if pa.types.is_timestamp(kind):
        return {"type": "datetime"}
    return {"type": TYPES.get(str(kind), str(kind))}
