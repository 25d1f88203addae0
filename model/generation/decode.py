"""Packs a trained decoder for generation: the same modules and the same forward pass, weights laid out for few rows.

In: a Decoder. Out: the same Decoder, whose linear layers and norms were replaced by those of model/network/packed.py.
A token of a few rows costs little but reading all weights, so layers that read the same input become one product. The
plain weights are given up: the model holds its weights once, but can't be trained on. A model that is still in
training generates as it is, without packing.
"""

from torch import nn

from model.network.block import Block
from model.network.decoder import Decoder
from model.network.norm import RMSNorm
from model.network.packed import (
    JointNorm,
    PackedEmbedding,
    PackedLinear,
    PackedNorm,
    PackedWeights,
    is_plain,
    pack_layers,
)


def pack(model: Decoder, n_rows: int = 1) -> Decoder:
    """`model` itself, packed in place for generating about `n_rows` rows at a time; any other number works too.

    A model that is packed for as many already stays as it is. Layers that an adapter wraps are not packed, nor those
    that would share their memory. Raises ValueError for a model in training mode, whose optimiser holds its weights.
    """
    if model.training:
        raise ValueError(
            "a model in training can't be packed: generate from it as it is, or call eval() when it is done"
        )
    is_for_one = n_rows == 1
    for block in model.trunk.layers:
        assert isinstance(block, Block)
        attention, mlp = block.self_attn, block.mlp
        pack_layers(attention, "q_proj", "k_proj", "v_proj", is_for_one=is_for_one)
        pack_layers(attention, "o_proj", is_for_one=is_for_one)
        up = ("gate_proj", "up_proj") if mlp.is_gated else ("up_proj",)
        pack_layers(mlp, *up, is_for_one=is_for_one)
        pack_layers(mlp, "down_proj", is_for_one=is_for_one)
        for module in (block, attention):
            _pack_norms(module)
        q_norm, k_norm = attention.q_norm, attention.k_norm
        if attention.qk_norm is None and isinstance(q_norm, PackedNorm) and isinstance(k_norm, PackedNorm):
            attention.qk_norm = JointNorm(q_norm, k_norm, attention.n_heads, attention.n_kv_heads)
    _pack_norms(model.trunk)
    _pack_head(model, is_for_one)
    return model


def _pack_head(model: Decoder, is_for_one: bool) -> None:
    head, embedding = model.lm_head, model.trunk.embed_tokens
    is_tied = model.cfg.tie_embeddings
    if not is_tied:
        pack_layers(model, "lm_head", is_for_one=is_for_one)
    elif is_plain(head) and is_plain(embedding, nn.Embedding, PackedEmbedding):  # else an adapter reads plain weights
        if not _is_shared(head, embedding):
            pack_layers(model, "lm_head", is_for_one=is_for_one)
            return
        if isinstance(head, PackedLinear) and head.weights.is_laid_out(is_for_one):
            return
        weights = PackedWeights([head], is_for_one=is_for_one, has_rows=True)
        model.add_module("lm_head", PackedLinear(weights, 0))
        model.trunk.add_module("embed_tokens", PackedEmbedding(weights))


def _is_shared(head: nn.Module, embedding: nn.Module) -> bool:
    """Whether both read one memory, which is no longer so where one of them was replaced."""
    if isinstance(head, PackedLinear) and isinstance(embedding, PackedEmbedding):
        return head.weights is embedding.weights
    return head.weight is embedding.weight


def _pack_norms(parent: nn.Module) -> None:
    for name, norm in parent.named_children():
        if isinstance(norm, RMSNorm) and is_plain(norm, RMSNorm):
            setattr(parent, name, PackedNorm(norm.weight, norm.eps))
