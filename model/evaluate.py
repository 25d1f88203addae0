"""How well a decoder predicts held-out documents: log-loss, bits per byte, perplexity; and what the model of a task
answers.

In: a decoder and token shards. Out: per document the summed log-loss in nats, the number of predicted tokens and the
bytes of its text. Every token of a document but its first (end-of-text, which only opens it) is predicted exactly
once, and no document sees another.

Steps: documents become windows, windows of similar length pass together, only the targets that no earlier window
predicted go through the head. The first C = max_seq_len tokens of a document are predicted from all that precede
them, later ones from at least C - stride + 1 and at most C tokens. A smaller stride costs time and lowers the loss.

Legend: B windows in a pass, T position, N targets, D d_model.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from model.data.batches import Batches
from model.data.examples import TYPES, EncodedExamples
from model.data.token_shards import TokenShard, check_vocabulary
from model.network.decoder import Decoder
from model.training.cross_entropy import target_losses
from model.training.distributed import n_processes, rank, total
from model.training.draws import with_row_seeds
from model.training.loss import LossFunction
from model.training.machine import precision
from model.training.memory import memory_explained
from model.training.step import micro_batches, on_device

TOKENS_PER_PASS = {"cpu": 1 << 11, "cuda": 1 << 16}  # padding included; a small pass stays in a CPU's cache
NONE = np.zeros(0, np.int64)
Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentLosses:
    """One row per document, in the order of the shards."""

    document_ids: list[str]
    nats: np.ndarray  # float64, summed over the predicted tokens
    n_tokens: np.ndarray  # int64, predicted tokens
    n_bytes: np.ndarray  # int64, UTF-8 bytes of the text

    @property
    def bits_per_byte(self) -> float:
        return float(self.nats.sum() / math.log(2) / self.n_bytes.sum())

    @property
    def perplexity(self) -> float:
        """Per token, so that it depends on the tokenizer, unlike bits per byte."""
        return float(np.exp(self.nats.sum() / self.n_tokens.sum()))


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows as columns. One reads the tokens start to end - 1 of its document and predicts the token after each of
    them; the targets before `fresh` were predicted by the window before."""

    document: np.ndarray  # int64 (N,), like all columns
    start: np.ndarray
    end: np.ndarray
    fresh: np.ndarray

    def __len__(self) -> int:
        return len(self.document)

    def of(self, which: np.ndarray | slice) -> "Windows":
        return Windows(self.document[which], self.start[which], self.end[which], self.fresh[which])


def windows_of_documents(n_tokens: np.ndarray, max_seq_len: int, stride: int) -> Windows:
    """Windows over documents of `n_tokens` tokens, in which every token but a document's first is a fresh target
    exactly once."""
    last = n_tokens - 1  # index of the last target
    n_windows = np.where(last > 0, 1 + -(-(last - max_seq_len).clip(min=0) // stride), 0)
    document = np.repeat(np.arange(len(n_tokens)), n_windows)
    number = np.arange(len(document)) - (n_windows.cumsum() - n_windows)[document]  # of the window in its document
    start = number * stride
    fresh = np.where(number == 0, 1, start - stride + max_seq_len + 1)
    return Windows(document, start, np.minimum(start + max_seq_len, last[document]), fresh)


@torch.inference_mode()
def document_losses(
    model: Decoder, shards: Sequence[TokenShard], *, stride: int | None = None, tokens_per_pass: int | None = None
) -> DocumentLosses:
    """Losses of all documents of `shards`; `stride` in tokens, default half of max_seq_len.

    `tokens_per_pass` changes speed and memory, not the result. Passes run on the model's device in its precision, and
    nothing is read from the device before the end. Raises OutOfMemory, a ValueError, when it has no room.
    """
    max_seq_len, device = model.cfg.max_seq_len, next(model.parameters()).device
    stride = max(1, max_seq_len // 2) if stride is None else stride
    if not 1 <= stride <= max_seq_len:
        raise ValueError(f"stride={stride} must lie between 1 and max_seq_len={max_seq_len}")
    check_vocabulary(shards, model.cfg.vocab_size)
    tokens_per_pass = tokens_per_pass or TOKENS_PER_PASS.get(device.type, TOKENS_PER_PASS["cuda"])
    lengths = [np.diff(shard.offsets) for shard in shards]
    windows = windows_of_documents(np.concatenate([NONE, *lengths]), max_seq_len, stride)
    windows = windows.of(np.argsort(windows.start - windows.end, kind="stable"))  # similar lengths: little padding
    documents = Documents(shards)
    sums: list[Tensor] = []  # per pass, float64 on the device
    with memory_explained(f"{tokens_per_pass:,} tokens passed at once; give a smaller tokens_per_pass"):
        for rows in passes_of(windows.end - windows.start, tokens_per_pass):
            sums.append(_window_losses(model, documents, windows.of(rows)))
        nats_N = torch.cat(sums).cpu().numpy() if sums else NONE
    n_documents = len(documents.first)
    return DocumentLosses(
        document_ids=[i for shard in shards for i in shard.document_ids.to_pylist()],
        nats=np.bincount(windows.document, nats_N, n_documents),
        n_tokens=np.bincount(windows.document, windows.end - windows.fresh + 1, n_documents).astype(np.int64),
        n_bytes=np.concatenate([NONE, *(shard.n_bytes for shard in shards)]),
    )


class Documents:
    """Tokens of documents by number, read from the shards when asked for."""

    def __init__(self, shards: Sequence[TokenShard]) -> None:
        self.shards = shards
        self.shard = np.repeat(np.arange(len(shards)), [len(shard.document_ids) for shard in shards])
        self.first = np.concatenate([NONE, *(shard.offsets[:-1] for shard in shards)])  # in the shard's tokens

    def tokens(self, document: int, start: int, end: int) -> np.ndarray:
        first = self.first[document]
        return self.shards[self.shard[document]].tokens[first + start : first + end]


def passes_of(lengths: np.ndarray, tokens_per_pass: int) -> Iterator[slice]:
    """Consecutive windows of descending `lengths` that pass together, padded to the first one's."""
    first = 0
    while first < len(lengths):
        end = first + max(1, tokens_per_pass // int(lengths[first]))
        yield slice(first, end)
        first = end


def _window_losses(model: Decoder, documents: Documents, windows: Windows) -> Tensor:
    """Summed losses of the fresh targets of each window, float64 (B,)."""
    lengths, device = windows.end - windows.start, next(model.parameters()).device
    tokens_BT = np.zeros((len(windows), lengths.max() + 1), np.int64)  # padded right, out of a causal model's sight
    for row, (document, start, end) in enumerate(zip(windows.document, windows.start, windows.end, strict=True)):
        tokens_BT[row, : end - start + 1] = documents.tokens(document, start, end + 1)
    place_T = np.arange(lengths.max())
    is_fresh_BT = (place_T < lengths[:, None]) & (place_T >= (windows.fresh - windows.start - 1)[:, None])
    arrays = {
        "ids_BT": np.ascontiguousarray(tokens_BT[:, :-1]),
        "targets_N": tokens_BT[:, 1:][is_fresh_BT],
        "places_N": np.flatnonzero(is_fresh_BT),
    }
    batch = on_device({name: torch.from_numpy(array) for name, array in arrays.items()}, device)
    with precision(device):
        x_ND = model.trunk(batch["ids_BT"]).flatten(0, 1)[batch["places_N"]]
        losses_N = target_losses(x_ND, model.lm_head.weight, batch["targets_N"], bias_V=model.lm_head.bias)
    losses_BT = losses_N.new_zeros(is_fresh_BT.shape, dtype=torch.float64)
    losses_BT.view(-1)[batch["places_N"]] = losses_N.double()
    return losses_BT.sum(dim=1)


@torch.inference_mode()
def mean_loss(
    model: nn.Module, batches: Batches, n_batches: int, loss_function: LossFunction, micro_batch: int
) -> float:
    """Loss per target over the first `n_batches` batches, in nats; several processes share the rows."""
    device = next(model.parameters()).device
    sums = torch.zeros(2, dtype=torch.float64, device=device)  # loss and targets; read once, at the end
    for k in range(n_batches):
        batch = with_row_seeds(batches.batch(k, rank(), n_processes()), 0, k, batches.n_rows(k))
        for micro in micro_batches(batch, micro_batch):
            with precision(device):
                loss_sum, n_targets = loss_function(model, on_device(micro, device))
            sums += torch.stack([loss_sum.double(), n_targets.double()])
    loss, n_targets = total(sums).tolist()
    return loss / n_targets


# Fine-tuned models.


@torch.inference_mode()
def outputs_of_texts(
    model: nn.Module,
    tokens: Sequence[np.ndarray],
    function: Callable[[Tensor], Tensor],
    *,
    types: Sequence[np.ndarray] | None = None,
    tokens_per_pass: int | None = None,
) -> np.ndarray:
    """`function` of the outputs (B, ...) of `model` for each text, float64 (N, ...), in the order of `tokens`.

    Texts of similar length share a pass. `function` gets the outputs of one pass at a time, in double precision, and
    no others are kept. `types` are the segments of the tokens of each text, for pairs of texts. `tokens_per_pass`
    changes speed and memory, not the result.
    """
    parts, order = [], []
    for places, outputs in _passes(model, tokens, types, tokens_per_pass):
        parts.append(function(outputs))
        order.append(places)
    in_order = torch.cat(parts).cpu().numpy()  # read once: the host prepares texts while the device computes
    answers = np.empty_like(in_order)
    answers[np.concatenate(order)] = in_order
    return answers


@torch.inference_mode()
def answers_of_texts(
    model: nn.Module,
    tokens: Sequence[np.ndarray],
    function: Callable[[Tensor, np.ndarray], Sequence[Answer]],
    *,
    types: Sequence[np.ndarray] | None = None,
    tokens_per_pass: int | None = None,
) -> list[Answer]:
    """As `outputs_of_texts`, for answers that are no rows of one array, such as the spans that a text has.

    `function` gets the outputs of one pass and the numbers of its texts (B,), and returns an answer for each of them.
    Outputs per token are (B, T, ...), of which those after the end of a text mean nothing.
    """
    answers: list[Any] = [None] * len(tokens)
    for places, outputs in _passes(model, tokens, types, tokens_per_pass):
        for place, answer in zip(places, function(outputs, places), strict=True):
            answers[place] = answer
    return answers


def _passes(
    model: nn.Module, tokens: Sequence[np.ndarray], types: Sequence[np.ndarray] | None, tokens_per_pass: int | None
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Numbers of the texts in a pass, and the outputs of `model` for them, float64 (B, ...)."""
    device = next(model.parameters()).device
    tokens_per_pass = tokens_per_pass or TOKENS_PER_PASS.get(device.type, TOKENS_PER_PASS["cuda"])
    lengths = np.array([len(ids) for ids in tokens], np.int64)
    order = np.argsort(-lengths, kind="stable")
    token_targets = {} if types is None else {TYPES: types}
    texts = EncodedExamples([], list(tokens), {}, token_targets=token_targets)
    for rows in passes_of(lengths[order], tokens_per_pass):
        places = order[rows]
        with precision(device), memory_explained(f"{tokens_per_pass:,} tokens passed at once; predict fewer"):
            batch = on_device(texts.batch(places), device)
            outputs = model(**batch).double()
        yield places, outputs


def most_likely(labels: Sequence[str], probabilities_NC: np.ndarray) -> list[dict[str, Any]]:
    """The most likely label of each text with its probability, and the probabilities of all labels."""
    return [
        {"label": labels[row_C.argmax()], "probability": float(row_C.max()), "probabilities": row_C}
        for row_C in probabilities_NC
    ]


def classification_metrics(probabilities_NC: np.ndarray, classes_N: np.ndarray) -> dict[str, float]:
    """loss (nats per example), accuracy, and macro_f1, the mean over the classes that an example has."""
    chosen_N, of_class_N = probabilities_NC.argmax(axis=1), probabilities_NC[np.arange(len(classes_N)), classes_N]
    f1s = []
    for one in np.unique(classes_N):
        is_one, is_chosen = classes_N == one, chosen_N == one
        f1s.append(2 * (is_one & is_chosen).sum() / (is_one.sum() + is_chosen.sum()))
    return {
        "loss": float(-np.log(np.maximum(of_class_N, 1e-300)).mean()),
        "accuracy": float((chosen_N == classes_N).mean()),
        "macro_f1": float(np.mean(f1s)),
    }
