"""Stage `passages`: cuts documents into passages, which are what an assistant searches and quotes.

In: documents of `clean`, or a whole corpus, the encoder that will embed the passages, whose tokens are counted, and
the deny list. Out: passage shards of the same names, and in dropped/ the documents that gave none: denied, no_text,
or what a worker could not finish. Nothing of a document is lost but white space (model/retrieval/passages.py).

The work is cached per shard. Another encoder with the same tokenizer gives the same passages.
"""

import functools
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pyarrow.parquet as pq
from annotated_types import Ge, Le

from model.data.tokenizer import TOKENIZER, load_tokenizer
from pipeline.corpus.deny_list import Keys, denied_pages, denied_rows, read_keys
from pipeline.store.engine import Done, Failed
from pipeline.store.parts import map_shards
from pipeline.store.records import DENIED, DROPPED, PASSAGE, Checkpoint, Counts, DenyList, Shards, dropped_row
from pipeline.store.settings import check_values
from pipeline.store.shards import DROPPED_FOLDER, file_digest, read_table, shard_paths, text_digest, write_rows
from pipeline.store.store import UNICODE, Outcome, Stage, Work

ENCODERS = ("encoder", "masked_lm")  # kinds of network, in config.json
COLUMNS = ["id", "page_id", "source", "url", "title", "text"]  # of a document
Cuts = list[tuple[int, int, tuple[str, ...]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class PassagesConfig:
    """How documents are cut into passages."""

    passage_tokens: Annotated[
        int,
        Ge(16),
        Le(4096),
        "Largest number of tokens of a passage, in the tokens of the embedder. Short passages are found more"
        " precisely, long ones say more; what the embedder cannot read of one is searched by its words alone.",
    ] = 160

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True, slots=True)
class _Item:
    """A document as sent to a worker."""

    row: dict[str, Any]
    tokenizer: str  # folder
    most_tokens: int
    is_denied: bool


def cut_documents(cfg: PassagesConfig, inputs: tuple[Any, ...], work: Work) -> Outcome:
    """The stage function. Inputs: shards of documents, the embedder, and the deny list if anything is denied."""
    embedder = next(one for one in inputs if isinstance(one, Checkpoint))
    check_encoder(embedder)
    denials = read_keys([one for one in inputs if isinstance(one, DenyList)])
    documents = [one for one in inputs if isinstance(one, Shards)]
    tokenizer, paths = _digest(embedder.directory / TOKENIZER), _by_name(documents)
    counts = map_shards(
        work,
        documents,
        read=lambda path: _documents(path, embedder, cfg.passage_tokens, denials),
        function=cuts_of,
        write=partial(_write, stage=work.stage),
        unit="documents",
        key=lambda name: text_digest(tokenizer, denied_pages(paths[name], denials)),
    )
    shards = shard_paths(work.directory)
    return Outcome(
        rows=sum(pq.read_metadata(path).num_rows for path in shards),
        counts=counts,
        content=tuple(path.name for path in shards),
    )


def check_encoder(embedder: Checkpoint) -> None:
    """Raises ValueError if the model that a task names as its embedder is no encoder."""
    kind = json.loads((embedder.directory / "config.json").read_text("utf-8")).get("kind")
    if kind not in ENCODERS:
        raise ValueError(
            f"the key embedder of the task names {embedder.directory}, a model of kind {kind!r}, which makes no"
            " vectors of texts; it needs an encoder, for instance the open model minilm"
        )


PASSAGES = Stage(
    name="passages",
    version=1,
    function=cut_documents,
    handle=Shards,
    libraries=("regex", "tiktoken", "tokenizers", UNICODE),
    by_shard=True,
)


def cuts_of(item: _Item) -> Cuts:
    """The passages of one document. Runs in a worker process."""
    from model.retrieval.passages import cut

    return [] if item.is_denied else cut(item.row["text"], _counter(item.tokenizer), item.most_tokens)


@functools.lru_cache(maxsize=2)
def _counter(directory: str) -> Any:
    """The number of tokens of a text, by the tokenizer of the model in `directory`."""
    tokenizer = load_tokenizer(Path(directory) / TOKENIZER)
    return lambda text: len(tokenizer.encode(text))


def _documents(path: Path, embedder: Checkpoint, most_tokens: int, denials: Keys) -> list[_Item]:
    table = read_table(path, columns=COLUMNS)
    rows = zip(table.to_pylist(), denied_rows(table, denials), strict=True)
    return [_Item(row, str(embedder.directory), most_tokens, is_denied) for row, is_denied in rows]


def _write(part: Path, items: list[_Item], answers: list[Done | Failed], stage: str) -> Counts:
    counts, kept, dropped = Counts(rows_in=len(items)), [], []
    for item, answer in zip(items, answers, strict=True):
        if isinstance(answer, Done) and answer.value:
            counts.kept += 1
            kept += [_passage_row(item.row, *cut) for cut in answer.value]
        else:
            reason = answer.reason if isinstance(answer, Failed) else DENIED if item.is_denied else "no_text"
            counts.drop(reason)
            dropped.append(dropped_row(item.row, stage, reason))
    write_rows(part / "kept.parquet", kept, PASSAGE)
    if dropped:
        write_rows(part / f"{DROPPED_FOLDER}.parquet", dropped, DROPPED)
    return counts


def _passage_row(document: dict[str, Any], start: int, end: int, headings: tuple[str, ...]) -> dict[str, object]:
    names = ("id", "page_id", "source", "url", "title")
    own = {name: document[name] for name in names}
    return {**own, "headings": list(headings), "start": start, "end": end, "text": document["text"][start:end]}


def _by_name(inputs: list[Shards]) -> dict[str, Path]:
    return {path.name: path for one in inputs for path in shard_paths(one.directory)}


def _digest(tokenizer: Path) -> str:
    return text_digest(
        *(f"{path.name} {file_digest(path)}" for path in sorted(tokenizer.iterdir()) if path.is_file())
    )
