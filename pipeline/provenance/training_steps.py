"""Lists the content of training steps: documents with URLs, sources, licences and numbers of tokens.

In: the store, a finished Checkpoint and a range of its steps. Out: the documents of those steps in the order of the
batches, with sums. Steps: the order of the data is a pure function of (shards, seed, step) (model/data/batches.py);
the boundaries of the documents show whose tokens are in a row; the index of the corpus shows where those came from.
For a fine-tuned model the steps are those of its own training on labelled examples.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.provenance.exposure import Say, Training, corpus_of, finished_checkpoints, training_of
from pipeline.provenance.trace_index import ADDRESSES, KEYS, open_index
from pipeline.store.lineage import Folder, Record, inputs_of
from pipeline.store.records import PREVIEW_CHARACTERS
from pipeline.store.settings import read_recorded
from pipeline.store.store import RECORD, read_handle, read_record
from pipeline.training.finetune import Objective


@dataclass(frozen=True, kw_only=True, slots=True)
class StepDocument:
    """A document, or a labelled example, in a range of steps."""

    document_id: str
    n_tokens: int  # predicted ones; 0 = its last token only opened a row of the next document
    page_id: str | None = None  # None if the corpus was removed
    url: str | None = None
    source: str | None = None
    licence: str | None = None
    label: str | None = None  # of an example, which has neither page nor URL
    preview: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StepContent:
    first: int
    last: int
    n_steps: int  # of the whole training
    kind: str  # documents, or examples
    documents: tuple[StepDocument, ...]
    note: str = ""  # what is unknown, and why

    @property
    def n_tokens(self) -> int:
        return sum(document.n_tokens for document in self.documents)

    def sums(self, field: str) -> list[tuple[str, int, int]]:
        """(value, documents, tokens) of source, licence or label, most tokens first."""
        tokens: Counter[str] = Counter()
        documents: Counter[str] = Counter()
        for document in self.documents:
            value = getattr(document, field) or "not known"
            tokens[value] += document.n_tokens
            documents[value] += 1
        return [(value, documents[value], n) for value, n in sorted(tokens.items(), key=lambda i: (-i[1], i[0]))]


def content_of_steps(
    store: Path, model: Path, first: int, last: int, say: Say, kind_of: Callable[[Record], Objective]
) -> StepContent:
    """The content of the steps `first` to `last` (inclusive, from 1). `kind_of` finds the kind of a fine-tuned model.

    Raises ValueError for steps that were never trained, a folder without a model, and data that was removed.
    """
    handle, record = read_handle(model), read_record(model)
    assert record is not None
    if record["handle"] != "Checkpoint":
        raise ValueError(f"{model} is an output of `{handle.stage}`, expected a trained model")
    if not handle.rows:
        raise ValueError(f"{model} was not trained here, so that the data of its steps is not known")
    if not 1 <= first <= last <= handle.rows:
        given = f"step {first:,}" if first == last else f"steps {first:,} to {last:,}"
        raise ValueError(f"{given}: never trained in {model}; its steps go from 1 to {handle.rows:,}")
    folder = Folder(handle.stage, handle.fingerprint, model)
    own = inputs_of(store, record)
    if any(one.stage == "examples" for one in own):
        return _examples_of_steps(folder, record, own, first, last, kind_of)
    training = training_of(store, folder, {**finished_checkpoints(store), folder: record})
    if training is None or not (training.tokens.directory / RECORD).exists():
        where = f" ({training.tokens.directory})" if training else ""
        raise ValueError(
            f"the token shards{where} that {model} was trained on were removed, so its steps are unknown"
        )
    numbers, n_tokens = training.batches.documents_of_batches(first - 1, last)
    tokens: dict[str, int] = {}  # a document may be in the stream several times
    for document, n in zip(training.batches.stream.document_ids(numbers), n_tokens.tolist(), strict=True):
        tokens[document] = tokens.get(document, 0) + n
    return StepContent(
        first=first,
        last=last,
        n_steps=handle.rows,
        kind="documents",
        documents=tuple(_described(store, training, tokens, say)),
        note="" if corpus_of(training.tokens) else "the corpus of these tokens was removed, and with it the URLs",
    )


def _described(store: Path, training: Training, tokens: Mapping[str, int], say: Say) -> Iterator[StepDocument]:
    corpus = corpus_of(training.tokens)
    keys = open_index(store, corpus, KEYS, say) if corpus else None
    addresses = open_index(store, corpus, ADDRESSES, say) if corpus else None
    for document, n in tokens.items():
        rows = keys.rows_of("id", document) if keys else []
        if not (keys and addresses and rows):
            yield StepDocument(document_id=document, n_tokens=n)
            continue
        yield StepDocument(
            document_id=document,
            n_tokens=n,
            page_id=keys.value("page_id", rows[0]),
            url=addresses.value("url", rows[0]),
            source=addresses.value("source", rows[0]),
            licence=addresses.value("licence", rows[0]),
        )


def _examples_of_steps(
    model: Folder,
    record: Record,
    inputs: list[Folder],
    first: int,
    last: int,
    kind_of: Callable[[Record], Objective],
) -> StepContent:
    """Examples in training order, which depends on their lengths: they are encoded again as in training."""
    from model.data.examples import ExampleBatches
    from model.data.tokenizer import load_tokenizer
    from pipeline.corpus.examples.stage import EXAMPLE, read_examples
    from pipeline.training.finetune import ORDERED_SINCE, SplitReader

    (folder,) = (one for one in inputs if one.stage == "examples")
    if not (folder.directory / RECORD).exists():
        raise ValueError(f"the examples {folder.directory} that {model.directory} was trained on were removed")
    if record["version"] < ORDERED_SINCE:
        raise ValueError(
            f"{model.directory} was trained by version {record['version']} of `finetune`, whose batches had other"
            f" examples than those since version {ORDERED_SINCE}; train it again to trace its steps"
        )
    examples = read_handle(folder.directory)
    config = json.loads((model.directory / "config.json").read_text("utf-8"))
    tokenizer = load_tokenizer(model.directory / "tokenizer")
    kind = kind_of(record)
    cfg = read_recorded(kind.finetune, record["config"])
    encoder = kind.encoder(cfg, tokenizer, model.directory / "tokenizer")
    reader = SplitReader(kind=kind, cfg=cfg, examples=examples, tokenizer=encoder, max_tokens=config["max_tokens"])
    encoded = reader.read("train")
    rows = min(record["config"]["rows"], len(encoded.ids))
    batches = ExampleBatches(encoded, rows=rows, seed=cfg.seed, of_epoch=reader.of_epoch())
    n_tokens: Counter[str] = Counter()
    for k in range(first - 1, last):
        read, places = batches.examples_of(k), batches.places(k)
        for place, length in zip(places, read.lengths[places].tolist(), strict=True):
            n_tokens[read.ids[place]] += length
    table = read_examples(folder.directory, "train")
    row_of = {example: row for row, example in enumerate(table["id"].to_pylist())}
    labels = table.drop_columns(EXAMPLE.names).to_pylist()
    documents = [
        StepDocument(
            document_id=example,
            n_tokens=n,
            label=", ".join(map(str, labels[row_of[example]].values()))[:PREVIEW_CHARACTERS],
            preview=table["text"][row_of[example]].as_py()[:PREVIEW_CHARACTERS],
        )
        for example, n in n_tokens.items()
    ]
    return StepContent(first=first, last=last, n_steps=record["rows"], kind="examples", documents=tuple(documents))
