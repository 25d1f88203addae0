"""How well an encoder restores masked tokens of held-out documents.

In: a masked language model and token shards. Out: per document the summed log-loss of its tokens in nats and how many
of them the model gets right. Every token of a document but its first (which opens it) is predicted exactly once.

Steps: a document becomes pieces that fit the context, each opened by the opening token; the tokens of a piece are
dealt at random, but always alike, into N_GROUPS groups; each group is masked in turn, while the model sees the
others. With as many groups as tokens only one token is masked at a time, and the sum is the pseudo-log-likelihood of
arXiv:1910.14659, at that many times the cost. With 7 groups a seventh is masked, about as many as in training.

Legend: B pieces in a pass, T position, N masked tokens, D d_model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from model.data.masking import MaskVocabulary
from model.data.token_shards import TokenShard, check_vocabulary
from model.evaluate import NONE, TOKENS_PER_PASS, Documents, passes_of
from model.network.encoder import MaskedLM
from model.network.visible import Visible
from model.training.cross_entropy import chunk_rows
from model.training.draws import row_seeds, uniform_of_rows
from model.training.machine import precision
from model.training.memory import memory_explained

N_GROUPS = 7


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskedLosses:
    """One row per document, in the order of the shards."""

    document_ids: list[str]
    nats: np.ndarray  # float64, summed over the predicted tokens
    n_right: np.ndarray  # int64, tokens that the model finds likeliest
    n_tokens: np.ndarray  # int64, predicted tokens

    @property
    def perplexity(self) -> float:
        return float(np.exp(self.nats.sum() / self.n_tokens.sum()))

    @property
    def accuracy(self) -> float:
        return float(self.n_right.sum() / self.n_tokens.sum())


@torch.inference_mode()
def masked_document_losses(
    model: MaskedLM,
    shards: Sequence[TokenShard],
    vocabulary: MaskVocabulary,
    *,
    n_groups: int = N_GROUPS,
    tokens_per_pass: int | None = None,
) -> MaskedLosses:
    """Losses of all documents of `shards`. `tokens_per_pass` changes speed and memory, not the result.

    Raises OutOfMemory, a ValueError, when it has no room.
    """
    check_vocabulary(shards, vocabulary.vocab_size)
    device, documents = next(model.parameters()).device, Documents(shards)
    tokens_per_pass = tokens_per_pass or TOKENS_PER_PASS.get(device.type, TOKENS_PER_PASS["cuda"])
    lengths = np.concatenate([NONE, *(np.diff(shard.offsets) for shard in shards)])
    document, start, end = pieces_of_documents(lengths, model.cfg.max_seq_len)
    seeds_N = row_seeds(0, 0, range(len(document)))
    order = np.argsort(start - end, kind="stable")  # similar lengths: little padding
    sums: list[Tensor] = []  # per pass (2, B), float64 on the device: nats and right tokens of each piece
    with memory_explained(f"{tokens_per_pass:,} tokens passed at once; give a smaller tokens_per_pass"):
        for rows in passes_of((end - start)[order] + 1, tokens_per_pass):
            which = order[rows]
            ids_BT, lengths_B = _padded(documents, document[which], start[which], end[which], vocabulary.opening)
            groups_BT = groups_of(seeds_N[which], lengths_B, ids_BT.size(1), n_groups)
            ids_BT, lengths_B, groups_BT = (x.to(device) for x in (ids_BT, lengths_B, groups_BT))
            sums.append(_piece_sums(model, ids_BT, lengths_B, groups_BT, n_groups, vocabulary.mask_id))
        found = torch.cat(sums, dim=1).cpu().numpy() if sums else np.zeros((2, 0))
    nats, n_right = (np.bincount(document[order], one, len(lengths)) for one in found)
    return MaskedLosses(
        document_ids=[i for shard in shards for i in shard.document_ids.to_pylist()],
        nats=nats,
        n_right=n_right.astype(np.int64),
        n_tokens=np.bincount(document, end - start, len(lengths)).astype(np.int64),
    )


def pieces_of_documents(n_tokens: np.ndarray, max_seq_len: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Document, start and end of pieces that hold every token but a document's first once, and of which each has room
    for the opening token."""
    most = max_seq_len - 1
    n_pieces = -(-(n_tokens - 1).clip(min=0) // most)
    document = np.repeat(np.arange(len(n_tokens)), n_pieces)
    number = np.arange(len(document)) - (n_pieces.cumsum() - n_pieces)[document]
    start = 1 + number * most
    return document, start, np.minimum(start + most, n_tokens[document])


def groups_of(seeds_B: Tensor, lengths_B: Tensor, n_cells: int, n_groups: int) -> Tensor:
    """The group of each token, int64 (B, T), -1 for the opening token and padding: a random order, dealt in turn."""
    place_T = torch.arange(n_cells)
    is_token_BT = (place_T >= 1) & (place_T < lengths_B.unsqueeze(1))
    order_BT = uniform_of_rows(seeds_B, n_cells).masked_fill(~is_token_BT, 2.0).argsort(dim=1, stable=True)
    rank_BT = order_BT.argsort(dim=1)
    return torch.where(is_token_BT, rank_BT % n_groups, -1)


def _padded(
    documents: Documents, document: np.ndarray, start: np.ndarray, end: np.ndarray, opening: int
) -> tuple[Tensor, Tensor]:
    """Ids (B, T) with the opening token before each piece, padded on the right, and the length of each row."""
    lengths = end - start + 1
    ids_BT = np.full((len(document), int(lengths.max())), opening, np.int64)
    for row, (one, first, last) in enumerate(zip(document, start, end, strict=True)):
        ids_BT[row, 1 : last - first + 1] = documents.tokens(one, first, last)
    return torch.from_numpy(ids_BT), torch.from_numpy(lengths)


def _piece_sums(
    model: MaskedLM, ids_BT: Tensor, lengths_B: Tensor, groups_BT: Tensor, n_groups: int, mask_id: int
) -> Tensor:
    """Nats and right tokens of each piece, float64 (2, B), over all groups."""
    visible, n_rows = Visible.padded(lengths_B, ids_BT.size(1)), chunk_rows(model.cfg.vocab_size, ids_BT.device.type)
    sums_2B = torch.zeros(2, len(ids_BT), dtype=torch.float64, device=ids_BT.device)
    for group in range(min(n_groups, int(lengths_B.max()) - 1)):
        is_masked_BT = groups_BT == group
        with precision(ids_BT.device):
            x_BTD = model.trunk(ids_BT.masked_fill(is_masked_BT, mask_id), visible=visible)
            row_N, targets_N = is_masked_BT.nonzero()[:, 0], ids_BT[is_masked_BT]
            parts = zip(x_BTD[is_masked_BT].split(n_rows), targets_N.split(n_rows), strict=True)
            found = [_losses_and_hits(model, x_ND, targets) for x_ND, targets in parts]
        sums_2B.index_add_(1, row_N, torch.cat(found, dim=1))
    return sums_2B


def _losses_and_hits(model: MaskedLM, x_ND: Tensor, targets_N: Tensor) -> Tensor:
    """-ln p(target), and 1 where it is the likeliest token, float64 (2, N)."""
    logits_NV = model.lm_head(model.transformed(x_ND)).float()
    losses_N = F.cross_entropy(logits_NV, targets_N, reduction="none")
    return torch.stack([losses_N, (logits_NV.argmax(dim=1) == targets_N).float()]).double()
