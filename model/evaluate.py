"""How well a decoder predicts: log-loss, bits per byte and perplexity over held-out documents.

In: a decoder and token shards. Out: per document the summed log-loss in nats, the number of predicted tokens and the
bytes of its text. Every token of a document but its first (end-of-text, which only opens it) is predicted exactly
once, and no document sees another.

Context: the first C = max_seq_len tokens are predicted from all that came before them in the document; later ones in
windows that start `stride` tokens apart, from at least C - stride + 1 and at most C tokens. A smaller stride
is slower and kinder to the model.

Legend: B rows, T position, V vocab.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.data.batches import Batches
from model.data.token_shards import TokenShard, check_vocabulary
from model.network.decoder import Decoder
from model.training.distributed import n_processes, rank, total
from model.training.loss import IGNORE_INDEX, LossFunction
from model.training.machine import precision
from model.training.step import micro_batches


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
        """Of a token; depends on the tokenizer, unlike bits per byte."""
        return float(np.exp(self.nats.sum() / self.n_tokens.sum()))


@dataclass(frozen=True, slots=True)
class Window:
    """Inputs tokens[start:end], targets one further; targets before `fresh` were predicted by the window before."""

    document: int
    start: int
    end: int
    fresh: int


def windows_of_document(document: int, n_tokens: int, max_seq_len: int, stride: int) -> list[Window]:
    """Windows in which each of the tokens 1 to n_tokens - 1 is a fresh target exactly once."""
    windows: list[Window] = []
    last = n_tokens - 1  # index of the last target
    start, predicted = 0, 0
    while predicted < last:
        end = min(start + max_seq_len, last)
        windows.append(Window(document, start, end, predicted + 1))
        predicted, start = end, start + stride
    return windows


@torch.inference_mode()
def document_losses(
    model: Decoder, shards: Sequence[TokenShard], *, stride: int | None = None, rows: int = 16
) -> DocumentLosses:
    """Losses of all documents of `shards`; `stride` in tokens, default half of max_seq_len.

    `rows` windows pass at once; it changes speed and memory, not the result.
    """
    max_seq_len = model.cfg.max_seq_len
    stride = max(1, max_seq_len // 2) if stride is None else stride
    if not 1 <= stride <= max_seq_len:
        raise ValueError(f"stride={stride} must lie between 1 and max_seq_len={max_seq_len}")
    check_vocabulary(shards, model.cfg.vocab_size)
    texts = [shard.tokens[a:b] for shard in shards for a, b in zip(shard.offsets, shard.offsets[1:], strict=False)]
    windows = [w for i, text in enumerate(texts) for w in windows_of_document(i, len(text), max_seq_len, stride)]
    windows.sort(key=lambda window: window.end - window.start)  # rows of like length: little padding
    nats = np.zeros(len(texts))
    n_tokens = np.zeros(len(texts), dtype=np.int64)
    for first in range(0, len(windows), rows):
        part = windows[first : first + rows]
        losses_B, counts_B = _window_losses(model, texts, part)
        documents = [window.document for window in part]
        np.add.at(nats, documents, losses_B)
        np.add.at(n_tokens, documents, counts_B)
    return DocumentLosses(
        document_ids=[i for shard in shards for i in shard.document_ids.to_pylist()],
        nats=nats,
        n_tokens=n_tokens,
        n_bytes=np.concatenate([shard.n_bytes for shard in shards]) if shards else np.zeros(0, dtype=np.int64),
    )


def _window_losses(model: Decoder, texts: list[np.ndarray], windows: list[Window]) -> tuple[np.ndarray, np.ndarray]:
    device = model.model.embed_tokens.weight.device
    width = max(window.end - window.start for window in windows)
    ids_BT = torch.zeros(len(windows), width, dtype=torch.int64)  # padded right, which a causal model never sees
    targets_BT = torch.full((len(windows), width), IGNORE_INDEX)
    for row, window in enumerate(windows):
        tokens = torch.from_numpy(texts[window.document][window.start : window.end + 1].astype(np.int64))
        ids_BT[row, : len(tokens) - 1] = tokens[:-1]
        skipped = window.fresh - window.start - 1
        targets_BT[row, skipped : len(tokens) - 1] = tokens[1 + skipped :]
    targets_BT = targets_BT.to(device)
    x_BTD = model.trunk(ids_BT.to(device))
    losses: list[Tensor] = []
    for x_TD, targets_T in zip(x_BTD, targets_BT, strict=True):  # a row's logits at a time
        logits_TV = F.linear(x_TD, model.lm_head.weight).float()
        losses.append(
            F.cross_entropy(logits_TV, targets_T, ignore_index=IGNORE_INDEX, reduction="none").double().sum()
        )
    counts_B = (targets_BT != IGNORE_INDEX).sum(dim=1)
    return torch.stack(losses).cpu().numpy(), counts_B.cpu().numpy()


@torch.inference_mode()
def mean_loss(
    model: nn.Module, batches: Batches, n_batches: int, loss_function: LossFunction, micro_batch: int
) -> float:
    """Loss a target over the first `n_batches` batches, in nats; several processes share the rows out."""
    device = next(model.parameters()).device
    loss, n_targets = 0.0, 0
    for k in range(n_batches):
        for micro in micro_batches(batches.batch(k, rank(), n_processes()), micro_batch):
            on_device = {name: tensor.to(device) for name, tensor in micro.items()}
            with precision(device):
                loss_sum, n = loss_function(model, on_device)
            loss += float(loss_sum)
            n_targets += int(n)
    loss, n_targets = total(torch.tensor([loss, n_targets], dtype=torch.float64, device=device)).tolist()
    return loss / n_targets
