"""What became of a page: at which stage it was kept or dropped, why, for which other one, and where its tokens lie.

In: the handles that the assets hold now, and a URL (or its end), page id or document id. Out: TraceSteps in the order
of the stages, page after page. Steps: the records of the newest token shards (or of what there is) lead back to every
earlier stage; DuckDB looks for the page in the columns that it needs and never reads a text.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from model.token_shards import SPLITS, read_token_shard
from pipeline.stages.lineage import Folder, lineage
from pipeline.stages.records import Handle
from pipeline.stages.shards import DROPPED_FOLDER, EVIDENCE_FOLDER, duckdb_files, shard_paths

STAGES = ("collect", "clean", "filter", "dedup", "split", "tokenize")
MOST_PAGES = 20  # that a query may mean

FIND = """
SELECT {page_id} AS page_id, id, url, filename, file_row_number AS row, {extra}
FROM read_parquet($files, filename = true, file_row_number = true, hive_partitioning = false) WHERE {where}
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceStep:
    """What one stage did to one page. `where` is the file, below the stage's folder, that holds it now."""

    stage: str
    outcome: str  # kept, dropped; train, validation or test once the split is known
    page_id: str
    url: str
    document_id: str | None = None  # None while there is no text
    where: str
    row: int
    reason: str | None = None
    score: float | None = None
    kept_url: str | None = None  # the document for which a duplicate went
    similarity: float | None = None
    containment: float | None = None
    n_tokens: int | None = None

    def __str__(self) -> str:
        text = f"{self.stage:<9} {self.outcome:<10} {self.where} row {self.row:,}"
        if self.reason is not None:
            text += f": {self.reason}" + ("" if self.score is None else f" ({self.score:.4g})")
        if self.kept_url is not None:
            text += f" of {self.kept_url} (similarity {self.similarity:.3f}, containment {self.containment:.3f})"
        return text if self.n_tokens is None else f"{text}: {self.n_tokens:,} tokens"


def trace(handles: Mapping[str, Handle], query: str) -> list[TraceStep]:
    """Every stage's word on the pages that `query` means. ValueError when it means none, or too many."""
    data = [handle for handle in handles.values() if handle.stage in STAGES]
    if not data:
        raise ValueError("nothing has been collected yet, so there is nothing to trace; materialise `pages/<source>`")
    newest = max(data, key=lambda handle: STAGES.index(handle.stage))
    steps: list[TraceStep] = []
    # what the newest output was made from; then also what was built since and is not in it yet
    for sources in ([newest], data):
        if steps := _steps(_still_there(sources), query):
            break
    if not steps:
        raise ValueError(f"{query!r} is neither a URL, nor the end of one, nor a page id or document id of the data")
    return steps


def trace_lines(steps: Iterable[TraceStep]) -> Iterator[str]:
    """For people: a heading a page, then a line a stage."""
    for page_id, own in groupby(steps, key=lambda step: step.page_id):
        of_page = list(own)
        documents = {step.document_id: None for step in of_page if step.document_id}
        yield f"{of_page[0].url}  (page {page_id}" + "".join(f", document {one}" for one in documents) + ")"
        yield from (f"  {step}" for step in of_page)


def _still_there(handles: Iterable[Handle]) -> list[Folder]:
    """The folders of `handles` and of everything that they were made from and that is still there, by stage."""
    folders = [folder for folder, record in lineage(handles).items() if record and folder.stage in STAGES]
    return sorted(folders, key=lambda folder: STAGES.index(folder.stage))


def _steps(folders: list[Folder], query: str) -> list[TraceStep]:
    import duckdb

    with duckdb.connect() as database:
        tables = [folder for folder in folders if folder.stage != "tokenize"]
        pages = _pages(database, tables, query)
        steps = [step for folder in tables for step in _table_steps(database, folder, list(pages))]
    known = {(step.page_id, step.document_id) for step in steps if step.stage == "split"}
    for folder in folders:
        if folder.stage == "tokenize":
            steps += _token_steps(folder, {document: page for page, document in known if document}, pages)
    order = {page_id: i for i, page_id in enumerate(pages)}
    return sorted(steps, key=lambda step: order[step.page_id])


def _pages(database: Any, folders: list[Folder], query: str) -> dict[str, str]:
    """Page id -> URL of the pages that `query` names; those whose URL ends in it where it names none."""
    where = "id = $query OR {page_id} = $query OR ends_with(url, $query)"
    exact: dict[str, str] = {}
    endings: dict[str, str] = {}
    for folder in folders:
        for rows in (_found(database, folder, part, where, query=query) for part in ("", DROPPED_FOLDER)):
            for row in rows:
                is_exact = query in (row["id"], row["page_id"], row["url"])
                (exact if is_exact else endings)[row["page_id"]] = row["url"]
    found = exact or endings
    if len(found) > MOST_PAGES:
        first = ", ".join(sorted(found.values())[:3])
        raise ValueError(f"{query!r} is the end of {len(found)} URLs, such as {first}; give more of it")
    return dict(sorted(found.items(), key=lambda item: (item[1], item[0])))


def _table_steps(database: Any, folder: Folder, pages: list[str]) -> Iterator[TraceStep]:
    where = "{page_id} IN (SELECT unnest($pages))"
    extra = "split" if folder.stage == "split" else "'kept' AS split"
    for row in _found(database, folder, "", where, extra, pages=pages):
        yield _step(folder, row, row["split"])
    counterparts = _counterparts(database, folder, pages)
    for row in _found(database, folder, DROPPED_FOLDER, where, "reason, score", pages=pages):
        step = _step(folder, row, "dropped")
        yield replace(step, reason=row["reason"], score=row["score"], **counterparts.get(step.page_id, {}))


def _step(folder: Folder, row: Mapping[str, Any], outcome: str) -> TraceStep:
    return TraceStep(
        stage=folder.stage,
        outcome=outcome,
        page_id=row["page_id"],
        url=row["url"],
        document_id=None if row["id"] == row["page_id"] else row["id"],
        where=str(Path(row["filename"]).relative_to(folder.directory)),
        row=row["row"],
    )


def _counterparts(database: Any, folder: Folder, pages: list[str]) -> dict[str, dict[str, Any]]:
    """Of each page that went as a duplicate, the evidence: fields of TraceStep."""
    if not (evidence := shard_paths(folder.directory, EVIDENCE_FOLDER)):
        return {}
    rows = database.execute(
        "SELECT dropped_page_id, url, similarity, containment FROM read_parquet($evidence)"
        " JOIN read_parquet($kept) ON page_id = kept_page_id WHERE dropped_page_id IN (SELECT unnest($pages))",
        {"evidence": duckdb_files(evidence), "kept": duckdb_files(shard_paths(folder.directory)), "pages": pages},
    ).fetchall()
    return {
        page_id: {"kept_url": url, "similarity": similarity, "containment": containment}
        for page_id, url, similarity, containment in rows
    }


def _found(
    database: Any, folder: Folder, part: str, where: str, extra: str = "NULL AS extra", **values: Any
) -> list[dict[str, Any]]:
    """Rows of the shards of a folder, or of a part of it, ordered by file and row."""
    if not (paths := shard_paths(folder.directory, part)):
        return []
    page_id = "id" if folder.stage == "collect" and not part else "page_id"
    query = FIND.format(page_id=page_id, extra=extra, where=where.format(page_id=page_id))
    answer = database.execute(f"{query} ORDER BY filename, row", {"files": duckdb_files(paths), **values})
    names = [column[0] for column in answer.description]
    return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]


def _token_steps(folder: Folder, documents: Mapping[str, str], pages: Mapping[str, str]) -> Iterator[TraceStep]:
    """`documents`: document id -> page id."""
    for side in SPLITS:
        for path in sorted((folder.directory / side).glob("*.arrow")):
            shard = read_token_shard(path)
            for document, page_id in sorted(documents.items()):
                if (row := shard.document_ids.index(document).as_py()) >= 0:
                    yield TraceStep(
                        stage=folder.stage,
                        outcome=side,
                        page_id=page_id,
                        url=pages[page_id],
                        document_id=document,
                        where=f"{side}/{path.name}",
                        row=row,
                        n_tokens=int(shard.offsets[row + 1] - shard.offsets[row]),
                    )
