"""Finds which models were trained on which documents, and in which training steps.

In: the store, and pages or documents. Out: for every finished Checkpoint in the store whose token shards contain one
of them, the places of the documents and the steps that read them. Steps: the record of a checkpoint names its token
shards, and a fine-tuned one names its base; the corpus of the shards maps page ids to document ids; the index of the
shards gives their rows; the inverse of the data order gives the steps (model/data/batches.py).
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from model.data.batches import TokenBatches, token_batches
from model.data.mixture import mixed_batches, mixture_of
from model.data.token_shards import TokenShard, read_token_shard, read_token_shards
from model.training.config import TrainConfig
from pipeline.provenance.trace_index import KEYS, Say, open_index
from pipeline.store.chain import TOKENS, output_of, side_inputs
from pipeline.store.lineage import Folder, Record, inputs_of
from pipeline.store.record_file import RECORD, load_record, read_record

TRAIN = "train"
# fields of a TrainConfig that affect the order of the data; defaults for records that do not have them
ORDER = {"seed": 0, "packing": "concatenated", "batch_warmup_fraction": 0.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """One place of a document in token shards; a document may have several."""

    page_id: str | None  # None if the corpus of the shards was removed
    document_id: str  # at the time of tokenizing
    side: str  # train, validation or test
    where: str  # file below the folder of the token shards
    row: int
    n_tokens: int  # including the end-of-text token at its start
    steps: np.ndarray  # int64, sorted, from 1: steps with a token of it; empty = never reached


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelExposure:
    """A finished checkpoint, and the documents that are in its token shards."""

    stage: str
    fingerprint: str
    directory: Path
    n_steps: int  # of the training on `tokens`
    base: str | None  # fingerprint of the checkpoint of that training; None = this checkpoint
    base_directory: Path | None
    tokens: Path
    documents: tuple[Seen, ...]

    @property
    def was_trained_on(self) -> bool:
        return any(len(document.steps) for document in self.documents)


@dataclass(frozen=True)
class Training:
    """A finished checkpoint that was trained on token shards itself."""

    folder: Folder
    record: Record
    tokens: Folder

    @property
    def n_steps(self) -> int:
        return self.record["config"]["train"]["n_steps"]

    @cached_property
    def batches(self) -> TokenBatches:
        train = self.record["config"]["train"]
        order = {name: train.get(name, default) for name, default in ORDER.items()}
        cfg = TrainConfig(n_steps=self.n_steps, rows=train["rows"], seq_len=train["seq_len"], **order)
        shards, mixture = read_token_shards(self.tokens.directory, TRAIN), self.record["config"].get("mixture")
        return mixed_batches(shards, mixture_of(mixture), cfg) if mixture else token_batches(shards, cfg)

    def steps(self, where: str, row: int) -> np.ndarray:
        """Steps that read document `row` of the file `where`; none for held-out files."""
        side, _, name = where.partition("/")
        if side != TRAIN:
            return np.zeros(0, np.int64)
        number = [shard.path.name for shard in self.batches.stream.shards].index(name)
        return self.batches.steps_of_document(number, row, self.n_steps)


def _say_nothing(text: str) -> None: ...


def models_of(
    store: Path, *, page_ids: Collection[str] = (), document_ids: Collection[str] = (), say: Say = _say_nothing
) -> list[ModelExposure]:
    """Every finished checkpoint in `store` whose token shards contain one of the documents, by stage and fingerprint.

    `page_ids` are looked up in the corpus of each folder of token shards; `document_ids` are ids at the time of
    tokenizing. A fine-tuned checkpoint was trained on the documents of its base, unless it began with random weights;
    one that was trained further is listed once for its own training, and once for that of each base.
    """
    checkpoints = finished_checkpoints(store)
    places: dict[Folder, list[tuple[str | None, str, str, int]]] = {}
    exposures = []
    for folder in sorted(checkpoints, key=lambda folder: (folder.stage, folder.fingerprint)):
        for training in trainings_of(store, folder, checkpoints):
            if not (training.tokens.directory / RECORD).exists():
                continue
            if training.tokens not in places:
                places[training.tokens] = list(token_places(store, training.tokens, page_ids, document_ids, say))
            if seen := [_seen(training, *place) for place in places[training.tokens] if _is_token_file(place[2])]:
                exposures.append(_exposure(folder, training, seen))
    return exposures


def _exposure(folder: Folder, training: Training, seen: Sequence[Seen]) -> ModelExposure:
    is_own = training.folder == folder
    return ModelExposure(
        stage=folder.stage,
        fingerprint=folder.fingerprint,
        directory=folder.directory,
        n_steps=training.n_steps,
        base=None if is_own else training.folder.fingerprint,
        base_directory=None if is_own else training.folder.directory,
        tokens=training.tokens.directory,
        documents=tuple(seen),
    )


def unexplained_models(store: Path) -> list[tuple[Path, str]]:
    """Finished checkpoints whose training documents are unknown, each with the reason."""
    checkpoints = finished_checkpoints(store)
    found = []
    for folder in sorted(checkpoints, key=lambda folder: (folder.stage, folder.fingerprint)):
        training = training_of(store, folder, checkpoints)
        if training is None and is_from_random_weights(store, folder, checkpoints):
            continue
        if training is None:
            found.append((folder.directory, "its base checkpoint was removed, or came from elsewhere"))
        elif not (training.tokens.directory / RECORD).exists():
            found.append((folder.directory, f"its token shards {training.tokens.directory} were removed"))
    return found


def finished_checkpoints(store: Path) -> dict[Folder, Record]:
    """Every finished Checkpoint folder in `store`."""
    found = {}
    for path in sorted(store.glob(f"*/*/{RECORD}")):
        if b'"Checkpoint"' in path.read_bytes() and (record := load_record(path.parent))["handle"] == "Checkpoint":
            found[Folder(record["stage"], record["fingerprint"], path.parent)] = record
    return found


def trainings_of(store: Path, folder: Folder, checkpoints: Mapping[Folder, Record]) -> Iterator[Training]:
    """The trainings on token shards that a checkpoint's weights come from: its own, if it has one, then those of its
    base and of the base of that.

    None that is not known, and none if the weights began at random, so that they learned nothing from the base.
    """
    bases = [folder]
    while bases and not begins_at_random(record := checkpoints[folder := bases[0]]):
        inputs = inputs_of(store, record)
        if tokens := [one for one in inputs if one.stage == output_of(TOKENS)]:
            yield Training(folder, record, tokens[0])
        bases = [one for one in inputs if one in checkpoints]


def training_of(store: Path, folder: Folder, checkpoints: Mapping[Folder, Record]) -> Training | None:
    """The last training on token shards that a checkpoint's weights come from."""
    return next(trainings_of(store, folder, checkpoints), None)


def is_from_random_weights(store: Path, folder: Folder, checkpoints: Mapping[Folder, Record]) -> bool:
    """Whether a checkpoint, or one of its bases, took no weights from its base."""
    while not begins_at_random(record := checkpoints[folder]):
        bases = [one for one in inputs_of(store, record) if one in checkpoints]
        if not bases:
            return False
        folder = bases[0]
    return True


def begins_at_random(record: Record) -> bool:
    """Whether a fine-tuning took only shape and tokenizer from its base, as for the baseline random_init."""
    return record["config"].get("initialisation") == "random"


def corpus_of(tokens: Folder) -> Folder | None:
    """The corpus that token shards were made from; None if it was removed."""
    beside = side_inputs(tokens.stage)
    inputs = tokens.inputs(read_record(tokens.directory))
    there = [one for one in inputs if one.stage not in beside and (one.directory / RECORD).exists()]
    return there[0] if there else None


def token_places(
    store: Path, tokens: Folder, page_ids: Iterable[str], document_ids: Iterable[str], say: Say
) -> Iterator[tuple[str | None, str, str, int]]:
    """(page id, document id, file, row) of each place of the documents in token shards, pages first.

    A file in dropped/ contains the documents that the weights of the sources left out.
    """
    wanted: dict[str, str | None] = {}  # document id -> page id
    if (corpus := corpus_of(tokens)) is not None:
        keys = open_index(store, corpus, KEYS, say)
        for column, values in (("page_id", page_ids), ("id", document_ids)):
            for value in values:
                for row in keys.rows_of(column, value):
                    wanted.setdefault(keys.value("id", row), keys.value("page_id", row))
    for document in document_ids:
        wanted.setdefault(document, None)
    index = open_index(store, tokens, KEYS, say)
    for document, page_id in sorted(wanted.items(), key=lambda item: (item[1] is None, item[1] or "", item[0])):
        for row in index.rows_of("id", document):
            yield page_id, document, *index.place(row)


def _is_token_file(where: str) -> bool:
    return where.endswith(".arrow")


def n_tokens_of(shard: TokenShard, row: int) -> int:
    return int(shard.offsets[row + 1] - shard.offsets[row])


def _seen(training: Training, page_id: str | None, document_id: str, where: str, row: int) -> Seen:
    return Seen(
        page_id=page_id,
        document_id=document_id,
        side=where.partition("/")[0],
        where=where,
        row=row,
        n_tokens=n_tokens_of(read_token_shard(training.tokens.directory / where), row),
        steps=training.steps(where, row),
    )
