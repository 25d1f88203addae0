"""Sentence embeddings: texts to vectors whose dot product is their cosine similarity (arXiv:1908.10084).

In: an encoder, its tokenizer, texts. Out: (N, D), a vector of length 1 for each text. Steps: ids between the tokens
that the model expects around a text ([CLS] and [SEP] of BERT), cut to what it reads; texts of similar length share a
pass, so that little is padded; the mean of the hidden states of each text's tokens, divided by its length.

Legend: N texts, B rows of a pass, T position, D d_model.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from model.data.examples import encoded, padded
from model.data.tokenizer import Tokenizer
from model.network.encoder import Encoder, MaskedLM
from model.network.heads import mean_of_real
from model.network.visible import ALL, Visible
from model.training.machine import precision
from model.training.memory import memory_explained

TOKENS_PER_PASS = {"cpu": 512, "cuda": 2**16}  # bench/embedding.py: more leave the caches of a CPU; a GPU wants many


def embed(
    model: Encoder | MaskedLM, tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int | None = None
) -> np.ndarray:
    """(N, D) float32, in the order of `texts`.

    `max_tokens`: what is read of a text, with the tokens around it; None = what the model can read. ValueError for a
    text that has no UTF-8 form, and for max_tokens that the model cannot read.
    """
    most = model.cfg.max_seq_len if max_tokens is None else max_tokens
    if not 1 <= most <= model.cfg.max_seq_len:
        raise ValueError(f"max_tokens={max_tokens} must be from 1 to {model.cfg.max_seq_len}, what the model reads")
    tokens, _ = encoded(tokenizer, texts, most)
    return embed_tokens(model, tokens)


@torch.inference_mode()
def embed_tokens(model: Encoder | MaskedLM, tokens: Sequence[np.ndarray]) -> np.ndarray:
    """As `embed`, of texts that are ids already, at least one each."""
    device = next(model.parameters()).device
    vectors_ND = np.empty((len(tokens), model.cfg.d_model), np.float32)
    with precision(device), memory_explained("embed fewer or shorter texts at once"):
        for places_B in _passes([len(ids) for ids in tokens], TOKENS_PER_PASS.get(device.type, 2**16)):
            batch = padded([tokens[place] for place in places_B])
            vectors_ND[places_B] = _embedded(model, batch["ids_BT"], batch["lengths_B"], device).cpu().numpy()
    return vectors_ND


def _embedded(model: Encoder | MaskedLM, ids_BT: Tensor, lengths_B: Tensor, device: torch.device) -> Tensor:
    """(B, D) float32."""
    n_tokens = ids_BT.size(1)
    has_padding = bool((lengths_B < n_tokens).any())  # on the host
    lengths_B = lengths_B.to(device)
    x_BTD = model.trunk(ids_BT.to(device), visible=Visible.padded(lengths_B, n_tokens) if has_padding else ALL)
    return F.normalize(mean_of_real(x_BTD.float(), lengths_B), dim=-1)


def _passes(lengths: Sequence[int], n_tokens: int) -> Iterator[np.ndarray]:
    """Places of the texts of each pass, the longest texts first: at most `n_tokens` with padding, or one text."""
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    while len(order):
        n_rows = max(1, n_tokens // lengths[order[0]])
        yield order[:n_rows]
        order = order[n_rows:]
