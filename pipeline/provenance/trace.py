"""Traces a page: the decision of every stage with its evidence, and the models that were trained on it.

In: the store, the current handles of the assets, and a URL (or its end), page id or document id. Out: one PageTrace
per page, with its TraceSteps in the order of the stages. Steps: the records of the newest token shards (or of the
latest output) lead back to every earlier stage; indexes find the page in each (trace_index.py), its rows give the
reasons (trace_evidence.py), and the records of checkpoints show which models read its tokens and when (exposure.py).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from model.data.token_shards import read_token_shard
from pipeline.provenance.exposure import ModelExposure, Say, models_of, n_tokens_of, token_places
from pipeline.provenance.trace_chain import TraceChain, TracedRow, chain_of, read_row
from pipeline.provenance.trace_evidence import DROPPED_COLUMNS, evidence_of, kept_facts
from pipeline.provenance.trace_text import ExampleTrace, TextMatch, find_examples, find_text, is_text, text_file
from pipeline.store.chain import output_of, traced_stages
from pipeline.store.errors import CorruptShard
from pipeline.store.records import Handle

MOST_PAGES = 20  # that a query may match
MOST_SHOWN = 60  # characters of a query in a message
SEARCH_SECONDS = 20.0  # time limit for reading all texts if no index finds the text
KEPT, DROPPED, REMOVED = "kept", "dropped", "removed"


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceStep:
    """What one stage did to one page. `where` is the file with the page, below the folder of the stage."""

    stage: str
    outcome: str  # kept, dropped; train, validation, test after split; removed if the output was removed
    page_id: str
    url: str
    document_id: str | None = None  # None before there is a text
    directory: Path | None = None  # of the output
    where: str | None = None
    row: int | None = None
    reason: str | None = None
    score: float | None = None
    n_tokens: int | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class PageTrace:
    page_id: str
    url: str
    steps: tuple[TraceStep, ...]
    models: tuple[ModelExposure, ...] = ()

    match: TextMatch | None = None  # how it was found, for a query by text

    @property
    def document_ids(self) -> list[str]:
        """Ids in all stages, each once, in order."""
        return list(dict.fromkeys(step.document_id for step in self.steps if step.document_id))


def say_nothing(text: str) -> None: ...


def trace(
    store: Path, handles: Mapping[str, Handle], query: str, say: Say = say_nothing, seconds: float = SEARCH_SECONDS
) -> tuple[list[PageTrace], list[ExampleTrace]]:
    """The traces of the pages that `query` matches, and the labelled examples that it matches.

    `query` is interpreted as the first of these that fits: an id, a URL or the end of one; the path of a file with a
    text; a text of several words. Raises ValueError when it matches nothing, or too many pages.
    """
    if pages := find_pages(store, handles, query, say):
        return pages, find_examples(store, handles, query, say)
    text = text_file(query)
    if text is None and not is_text(query):
        if examples := find_examples(store, handles, query, say):
            return [], examples
        raise ValueError(
            f"{_shown(query)} is not a URL, the end of one, a page id or a document id of the data, and no source has"
            " a file of that name; a text to look for has several words, or comes from a file or through `-`"
        )
    return trace_text(store, handles, query if text is None else text, say, seconds)


def trace_text(
    store: Path, handles: Mapping[str, Handle], text: str, say: Say = say_nothing, seconds: float = SEARCH_SECONDS
) -> tuple[list[PageTrace], list[ExampleTrace]]:
    """The pages and examples that contain `text`, best first. Raises ValueError when there is none."""
    text = text.encode(errors="replace").decode()  # no document contains a lone surrogate
    examples = find_examples(store, handles, text, say)
    for chain in chains_of(store, handles, say):
        if matches := find_text(chain, text, say, seconds if not examples else 0.0):
            pages = traced(chain, {match.page_id: match.url for match in matches})
            by_page = {match.page_id: match for match in matches}
            found = [replace(page, match=by_page[page.page_id]) for page in pages]
            return sorted(found, key=lambda page: -by_page[page.page_id].containment), examples
    if examples:
        return [], examples
    raise ValueError(f"no document contains the text {_shown(text)}")


def _shown(query: str) -> str:
    return repr(query if len(query) <= MOST_SHOWN else f"{query[:MOST_SHOWN]}...")


def find_pages(store: Path, handles: Mapping[str, Handle], query: str, say: Say = say_nothing) -> list[PageTrace]:
    """As `trace`, but empty if the query matches nothing."""
    chains = []
    for chain in chains_of(store, handles, say):
        chains.append(chain)
        if pages := chain.pages(query, MOST_PAGES):
            return traced(chain, pages)
    if any(chain.mended() for chain in chains):  # the page may have been in a damaged index
        return find_pages(store, handles, query, say)
    return []


def chains_of(store: Path, handles: Mapping[str, Handle], say: Say) -> Iterator[TraceChain]:
    """The chain of the newest output; then chains of outputs that were built since and are not in it yet."""
    stages = traced_stages()
    data = [handle for handle in handles.values() if handle.stage in stages]
    if not data:
        raise ValueError("nothing has been collected yet, so there is nothing to trace; materialise `pages/<source>`")
    newest = max(data, key=lambda handle: stages.index(handle.stage))
    yield (of_newest := chain_of(store, [newest], say))
    of_all = chain_of(store, data, say)
    if of_all.folders.keys() != of_newest.folders.keys():
        yield of_all


def traced(chain: TraceChain, pages: Mapping[str, str]) -> list[PageTrace]:
    """`pages`: page id -> URL."""
    try:
        steps = {page_id: tuple(_page_steps(chain, page_id, url)) for page_id, url in pages.items()}
    except _Lost as lost:
        if chain.mended():
            return traced(chain, pages)
        raise CorruptShard(str(lost)) from None
    seen = _models(chain, pages)
    return [
        PageTrace(page_id=page_id, url=url, steps=steps[page_id], models=tuple(seen.get(page_id, ())))
        for page_id, url in pages.items()
    ]


class _Lost(Exception):
    """A page that one stage kept and the next neither kept nor dropped, because an index or output is damaged."""


def _page_steps(chain: TraceChain, page_id: str, url: str) -> Iterator[TraceStep]:
    places = list(chain.places(page_id))
    _check_conserved(chain, places, url)
    facts = kept_facts(places)
    told = {place.folder: _step(chain, places, place, url, facts) for place in places}
    steps, order = [told[folder] for folder in chain.documents() if folder in told], traced_stages().index
    is_left = bool(steps) and all(step.outcome != DROPPED for step in steps)
    for folder in chain.gone:
        if is_left or (steps and order(folder.stage) < order(steps[-1].stage)):
            steps.append(TraceStep(stage=folder.stage, outcome=REMOVED, page_id=page_id, url=url))
    documents = [step.document_id for step in steps if step.document_id and step.outcome != DROPPED]
    for folder in chain.of(output_of("token_shards")):
        steps += _token_steps(chain, folder, page_id, url, documents[-1:])
    yield from sorted(steps, key=lambda step: order(step.stage))


def _check_conserved(chain: TraceChain, places: Sequence[TracedRow], url: str) -> None:
    there = {place.folder for place in places}
    for folder in chain.documents():
        kept_by = [place for place in places if place.is_kept and place.folder in chain.inputs(folder)]
        if kept_by and folder not in there:
            raise _Lost(
                f"{folder.directory} neither kept nor dropped {url}, which `{kept_by[0].folder.stage}` kept; delete"
                " that folder and rerun to rebuild it"
            )


def _step(
    chain: TraceChain, places: Sequence[TracedRow], place: TracedRow, url: str, facts: Mapping[str, Any]
) -> TraceStep:
    evidence = evidence_of(chain, places, place, facts)
    outcome = evidence.get("split", KEPT) if place.is_kept else DROPPED
    return TraceStep(
        stage=place.folder.stage,
        outcome=outcome,
        page_id=place.page_id,
        url=url,
        document_id=place.document_id,
        directory=place.folder.directory,
        where=place.where,
        row=place.row,
        reason=evidence.get("reason"),
        score=evidence.get("score"),
        evidence=evidence,
    )


def _token_steps(
    chain: TraceChain, folder: Any, page_id: str, url: str, documents: Iterable[str]
) -> Iterator[TraceStep]:
    """`documents`: the last known ids, for shards whose corpus was removed."""
    for _, document, where, row in token_places(chain.store, folder, [page_id], documents, chain.say):
        path = folder.directory / where
        dropped = read_row(path, row, DROPPED_COLUMNS) if path.suffix == ".parquet" else {}
        yield TraceStep(
            stage=folder.stage,
            outcome=where.partition("/")[0],
            page_id=page_id,
            url=url,
            document_id=document,
            directory=folder.directory,
            where=where,
            row=row,
            reason=dropped.get("reason"),
            score=dropped.get("score"),
            n_tokens=None if dropped else n_tokens_of(read_token_shard(path), row),
            evidence=dropped,
        )


def _models(chain: TraceChain, pages: Iterable[str]) -> dict[str, list[ModelExposure]]:
    """Page id -> the models whose token shards contain it."""
    found: dict[str, list[ModelExposure]] = {}
    for model in models_of(chain.store, page_ids=list(pages), say=chain.say):
        for page_id in pages:
            if own := tuple(seen for seen in model.documents if seen.page_id == page_id):
                found.setdefault(page_id, []).append(replace(model, documents=own))
    return found
