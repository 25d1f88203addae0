"""Finds and removes outputs that still contain the text of denied pages: `gristmill forget --purge`.

In: a layout and its deny list. Out: `Holders`: outputs and cached shard results with a row of a denied page, outputs
that were built from these and quote them, and which of them are current outputs of assets.

`gristmill gc` keeps what a registered model was built from. Here such outputs are removed: the model is kept, its
training text is not. Current outputs of assets are left, because the next materialisation rebuilds them, so purge
after it. Trained models and tokenizers are never removed, nor are the user's own files and downloads; a model that
answers from documents has their passages, and is removed like other data. What MLflow and Dagster quote of the texts
is found with the texts that are collected here (quotations.py).
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.deny_list import Keys
from pipeline.corpus.examples.stage import document_id
from pipeline.provenance.quotations import Forgotten
from pipeline.store.disk import PARTS, Garbage, bytes_freed
from pipeline.store.layout import INDEXES, Layout, all_entries
from pipeline.store.lineage import inputs_of
from pipeline.store.record_file import RECORD, load_record
from pipeline.store.records import DENIED, Columns, DenyList, Report, Shards
from pipeline.store.shards import read_table

ARROW_IDS = ("document_id", "id", "page_id")
EXAMPLES = "examples"  # stage
ABOUT = "document"  # column of questions: the id of the document that answers
OF_DATA = (Shards.__name__, Columns.__name__, DenyList.__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Holders:
    """`garbage` can be removed; `current` are current outputs of assets, which a materialisation rebuilds."""

    garbage: Garbage
    current: dict[Path, str]  # folder -> asset
    forgotten: Forgotten  # the texts of denied pages that were found, and all ids of their documents


def find_holders(layout: Layout, keys: Keys) -> Holders:
    """Everything in the store that contains the text of a denied page."""
    stages = sorted(path for path in layout.store.glob("*") if path.is_dir() and path.name != INDEXES)
    folders = [path for stage in stages for path in sorted(stage.iterdir()) if path.is_dir() and path.name != PARTS]
    forgotten = Forgotten(texts=set(), ids=set(keys.document_id))
    holding = [folder for folder in folders if _holds(folder, keys, forgotten)]
    records = {folder.name: load_record(folder) for folder in folders if _is_finished(folder)}
    holding += [folder for folder in folders if folder not in holding and _quotes(folder, holding, records)]
    parts = [part for stage in stages for part in sorted((stage / PARTS).glob("*")) if part.is_dir()]
    parts = [part for part in parts if _holds(part, keys, forgotten)]
    assets = _assets(layout, records)
    old = [folder for folder in holding if folder not in assets]
    indexes = [index for folder in old if (index := layout.store / INDEXES / folder.name).is_dir()]
    return Holders(
        garbage=Garbage(
            outputs=tuple(folder for folder in old if _is_finished(folder)),
            unfinished=(*(folder for folder in old if not _is_finished(folder)), *indexes),
            parts=tuple(parts),
            n_bytes=bytes_freed([*old, *indexes, *parts]),
        ),
        current={folder: assets[folder] for folder in holding if folder in assets},
        forgotten=forgotten,
    )


def _holds(folder: Path, keys: Keys, forgotten: Forgotten) -> bool:
    """Whether a table or token shard of `folder` has a row of a denied page, which is added to `forgotten`.

    A text gets a new id in each stage that changes it, and token shards contain only document ids. A labelled row is
    no page, and denied for its text.
    """
    found = False
    for path in sorted(folder.rglob("*.parquet")):
        names = pq.read_schema(path).names
        columns = [name for name in ("page_id", "id", "url", "reason") if name in names]
        if not {"page_id", "id"} & set(columns):
            continue
        places = _places(read_table(path, columns=columns), keys, forgotten.ids)
        if "text" in names and (places or folder.parent.name == EXAMPLES):
            table = read_table(path, columns=["id", "text"])
            texts = table["text"].to_pylist()
            if folder.parent.name == EXAMPLES:
                places = [place for place, text in enumerate(texts) if document_id(text) in forgotten.ids]
                places += _about(path, forgotten.ids) if ABOUT in names else []
            forgotten.texts.update(texts[place] for place in places)
            forgotten.ids.update(table["id"][place].as_py() for place in places)
        found = found or bool(places)
    arrow = sorted(folder.rglob("*.arrow"))
    return found or any(not _arrow_ids(path).isdisjoint(forgotten.ids | keys.page_id) for path in arrow)


def _about(path: Path, ids: Collection[str]) -> list[int]:
    """Rows of questions about forgotten documents; those that were made have their words."""
    return [place for place, one in enumerate(read_table(path, columns=[ABOUT])[ABOUT].to_pylist()) if one in ids]


def _places(table: pa.Table, keys: Keys, ids: Collection[str]) -> list[int]:
    """Rows of denied pages, except those that record that a page was denied."""
    found = []
    for place, row in enumerate(table.to_pylist()):
        page_id = row.get("page_id", row.get("id"))
        is_denied = page_id in keys.page_id or row.get("url") in keys.url or row.get("id") in ids
        if is_denied and row.get("reason") != DENIED:
            found.append(place)
    return found


def _arrow_ids(path: Path) -> set[str]:
    """Ids of documents and pages in a token shard, or in the cached result of `tokenize` for one."""
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
        return {value for name in ARROW_IDS if name in table.column_names for value in table[name].to_pylist()}


def _quotes(folder: Path, holding: Collection[Path], records: dict[str, dict]) -> bool:
    """Whether a finished report was built from one of the folders with the text."""
    record = records.get(folder.name)
    if record is None or record["handle"] != Report.__name__:
        return False
    names = {path.name for path in holding}
    return any(one["fingerprint"] in names for one in record["inputs"])


def _assets(layout: Layout, records: dict[str, dict]) -> dict[Path, str]:
    """Folder -> asset whose current output it is, or was built from it. The data of models do not count."""
    assets: dict[Path, str] = {}
    for entry in all_entries(layout):
        waiting = [layout.store / entry["folder"]]
        while waiting:
            folder = waiting.pop()
            record = records.get(folder.name)
            if record is None or folder in assets:
                continue
            assets[folder] = entry["asset"]
            if record["handle"] in OF_DATA:
                waiting += [one.directory for one in inputs_of(layout.store, record)]
    return assets


def _is_finished(folder: Path) -> bool:
    return (folder / RECORD).exists()
