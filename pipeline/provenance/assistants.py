"""Finds the models that answer from documents and have a passage of some pages among theirs.

In: the store, and page ids. Out: the folders of such models, the newest first. They leave out what the deny list of
their data folder names from the next answer on, and are built without it by the next run.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pipeline.store.record_file import read_record
from pipeline.store.shards import read_table

PAGES, PASSAGES = Path("passages", "pages.parquet"), "passages.parquet"  # in the folder of such a model


@dataclass(frozen=True, kw_only=True, slots=True)
class Holding:
    directory: Path
    fingerprint: str
    n_passages: int  # of the pages


def holding_models(store: Path, page_ids: Collection[str]) -> list[Holding]:
    """Finished models with passages of the pages."""
    wanted, found = set(page_ids), []
    for path in sorted(store.glob(f"*/*/{PAGES}")):
        directory = path.parents[1]
        record = read_record(directory)
        pages = read_table(path, columns=["id", "page_id"]).to_pylist() if record else []
        documents = {one["id"] for one in pages if one["page_id"] in wanted}
        if record and documents:
            rows = read_table(path.with_name(PASSAGES), columns=["document"])["document"].to_pylist()
            found.append((record["finished_at"], directory, sum(one in documents for one in rows)))
    return [
        Holding(directory=directory, fingerprint=directory.name, n_passages=n)
        for _, directory, n in sorted(found, reverse=True)
    ]
