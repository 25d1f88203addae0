"""What every source lost to the stages of a corpus, with examples of what was dropped and what was kept instead.

In: the output of the last of these stages. Out: the verdict of source_loss (laws.py), whose details name the sources
that lost too much, the share that each stage removed, and a few pairs `dropped URL -> kept URL`, so that a person can
see whether the stage or the source is at fault.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpus.laws import REMOVED, lost_in_all, lost_shares, source_loss
from pipeline.store.chain import removing_stages
from pipeline.store.lineage import lineage
from pipeline.store.records import Handle
from pipeline.store.shards import DROPPED_FOLDER, EVIDENCE_FOLDER, read_table, shard_paths
from pipeline.store.verdict import Verdict

DEFAULT_LIMITS = {REMOVED: 0.5}  # share of its documents or its text
MOST_PAIRS = 3  # per source and stage


def lost_sources(corpus: Handle, limits: Mapping[str, float]) -> Verdict:
    """The verdict. `limits` override the defaults. Raises ValueError if an output of a stage was removed."""
    directories, records = _removing(corpus)

    def examples(source: str) -> list[str]:
        return [text for directory in directories for text in _pairs(directory, source)]

    return source_loss(records, {**DEFAULT_LIMITS, **limits}, examples)


def removed_fractions(corpus: Handle) -> dict[str, float]:
    """Source -> the share of it that all stages together removed."""
    return {source: lost_in_all(shares.values()) for source, shares in lost_shares(_removing(corpus)[1]).items()}


def _removing(corpus: Handle) -> tuple[list[Path], list[Mapping[str, Any]]]:
    """Directories of the removing stages in their order, and their records with the share of every source."""
    removing = removing_stages()
    directories: dict[str, Path] = {}
    records: dict[str, Mapping[str, Any]] = {}
    for folder, record in lineage([corpus]).items():
        if folder.stage in removing and record is None:
            raise ValueError(
                f"{folder.directory} was removed, so the losses of the sources are not known; rebuild the corpus"
            )
        if folder.stage in removing and record is not None:
            directories[folder.stage], records[folder.stage] = (
                folder.directory,
                _with_shares(folder.directory, record),
            )
    stages = [stage for stage in removing if stage in records]
    return [directories[stage] for stage in stages], [records[stage] for stage in stages]


def _with_shares(directory: Path, record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The record; if its stage does not measure the removed share per source, the shares of documents are added."""
    if any(name.startswith(f"{REMOVED}_") for name in record["measures"]):
        return record
    kept, dropped = (
        Counter(source for path in shard_paths(directory, folder) for source in _sources(path))
        for folder in ("", DROPPED_FOLDER)
    )
    shares = {f"{REMOVED}_{source}": dropped[source] / n for source, n in sorted((kept + dropped).items())}
    return {**record, "measures": {**record["measures"], **shares}}


def _sources(path: Path) -> list[str]:
    return read_table(path, columns=["source"])["source"].to_pylist()


def _pairs(directory: Path, source: str) -> Iterator[str]:
    """The first dropped documents of a source, each with the document that was kept instead."""
    dropped = _first_rows(directory, DROPPED_FOLDER, ["page_id", "url", "source"], "source", {source}, MOST_PAIRS)
    kept_for = _kept_pages(directory, {row["page_id"] for row in dropped})
    kept = _first_rows(directory, "", ["page_id", "url"], "page_id", set(kept_for.values()), MOST_PAIRS)
    urls = {row["page_id"]: row["url"] for row in kept}
    for row in dropped:
        if (url := urls.get(kept_for.get(row["page_id"], ""))) is not None:
            yield f"{row['url']} -> {url}"


def _kept_pages(directory: Path, page_ids: Collection[str]) -> dict[str, str]:
    """Dropped page -> the page kept instead, if the evidence of the stage names one."""
    found: dict[str, str] = {}
    for path in shard_paths(directory, EVIDENCE_FOLDER):
        table = read_table(path)
        own = "dropped_page_id" if "dropped_page_id" in table.column_names else "page_id"
        if "kept_page_id" not in table.column_names:
            continue
        for row in _rows_with(table.select([own, "kept_page_id"]), own, page_ids):
            if row["kept_page_id"] is not None:
                found[row[own]] = row["kept_page_id"]
    return found


def _first_rows(
    directory: Path, folder: str, columns: list[str], column: str, values: Collection[str], most: int
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for path in shard_paths(directory, folder):
        if len(found) >= most or not values:
            break
        found += _rows_with(read_table(path, columns=columns), column, values)
    return found[:most]


def _rows_with(table: pa.Table, column: str, values: Collection[str]) -> list[dict[str, Any]]:
    wanted = pa.array(sorted(values), pa.string())
    return table.filter(pc.call_function("is_in", [table[column]], pc.SetLookupOptions(wanted))).to_pylist()
