"""The decoder that a GGUF file holds: its config, and its weights by our names.

In: a GgufFile (model/hf/gguf_read.py). Out: a DecoderConfig from the metadata and the tensors, and the weights in
float32, one at a time. The names and the architectures are those of model/hf/gguf.py, which writes such files. What
the metadata ask for and our decoder does not compute is refused by its name.

llama.cpp's architectures llama and arcee rotate neighbouring pairs (2i, 2i + 1), we the pairs (i, i + K/2), so the
rows of their query and key matrices are put back in our order. A file may hold a tied embedding twice in different
number formats, as published files of Qwen2.5 do: then the copy of the head, which is the more exact one, serves both.

Legend: H heads, K d_head.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.hf.gguf import ARCHITECTURES, JOINED_QKV, RULES, SEPARATE_QKV
from model.hf.gguf_read import GgufFile
from model.hf.weights import names_by, to_theirs
from model.network.decoder import Decoder
from model.network.rope import frequencies, scaled
from model.network.shape import FAMILY_SWITCHES, DecoderConfig, RopeScaling
from model.network.size_check import check_size
from model.training.files import check_same_shapes

EMBEDDING, HEAD, ROPE_FACTORS = "token_embd.weight", "output.weight", "rope_freqs.weight"
FLOATS = ("F32", "F16", "BF16")
TIED_DIFFERENCE = 0.5  # relative, of two matrices: copies in Q5_0 and Q8_0 differ by 0.044, separate ones by over 1
COMPARED_ROWS = 512
ROPE_THETA, LARGEST = 10_000.0, 1e15  # llama.cpp's default; of any number
LLAMA3_CONTEXT = 8192  # tokens that Llama 3.1 to 3.3 were trained on first
# Architecture -> family; llama.cpp runs Mistral as a llama.
FAMILY_OF = {ARCHITECTURES[family].name: family for family in ("llama", "qwen2", "qwen3", "gpt2", "arcee")}
# Switch -> the tensor that shows that it is on.
SHOWN_BY = {
    "qkv_bias": ("blk.0.attn_q.bias", "blk.0.attn_qkv.bias"),
    "output_bias": ("blk.0.attn_output.bias",),
    "mlp_bias": ("blk.0.ffn_up.bias",),
}


def decoder_in(file: GgufFile) -> tuple[str, DecoderConfig]:
    """Family and config. ValueError names what we cannot compute, or a tensor that does not belong."""
    name = file.fields.get("general.architecture")
    if not isinstance(name, str) or name not in FAMILY_OF:
        raise ValueError(
            f"{file.path}: architecture {str(name)[:40]!r} is not supported, only {', '.join(FAMILY_OF)}"
        )
    if file.fields.get("split.count", 1) not in (0, 1):
        raise ValueError(f"{file.path}: one of several files of a model; join them with llama-gguf-split --merge")
    try:
        cfg = _config(file, name)
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from error
    check_size(cfg, {name: tensor.shape for name, tensor in file.tensors.items()}, file.path)
    given = {name: torch.empty(tensor.shape, device="meta") for name, tensor in file.tensors.items()}
    given.pop(ROPE_FACTORS, None)
    if cfg.tie_embeddings:
        given.pop(HEAD, None)
    check_same_shapes(str(file.path), to_theirs(expected_weights(cfg), _rules(name), cfg.n_layers), given)
    return FAMILY_OF[name], cfg


def expected_weights(cfg: DecoderConfig) -> dict[str, Tensor]:
    """The weights by our names, on the meta device."""
    with torch.device("meta"):
        return {name: weight.detach() for name, weight in Decoder(cfg).named_parameters()}


def weights_in(file: GgufFile, cfg: DecoderConfig) -> Iterator[tuple[str, Tensor]]:
    """The weights by our names, in float32, read one tensor of the file at a time."""
    name = file.fields["general.architecture"]
    ours_of = {theirs: ours for theirs, ours, _ in names_by(_rules(name), cfg.n_layers)}
    if cfg.tie_embeddings and HEAD in file.tensors:
        ours_of[HEAD] = ours_of.pop(EMBEDDING)
    for theirs in [name for name in file.tensors if name in ours_of]:
        weights = torch.from_numpy(file.read(theirs)).chunk(len(ours_of[theirs]))
        for ours, weight in zip(ours_of[theirs], weights, strict=True):
            is_turned = ARCHITECTURES[FAMILY_OF[name]].pairs_neighbours and (".q_proj." in ours or ".k_proj." in ours)
            yield ours, halves_paired(weight, cfg.d_head) if is_turned else weight


def halves_paired(weight: Tensor, d_head: int) -> Tensor:
    """Rows (H * K, ...) of heads in the order 0, K/2, 1, K/2 + 1, ... put back: 0, 1, 2, ..."""
    pairs = weight.unflatten(0, (-1, d_head // 2, 2))
    return pairs.transpose(1, 2).flatten(0, 2)


def _rules(architecture: str) -> tuple[Any, ...]:
    return (*RULES, *(JOINED_QKV if architecture == "gpt2" else SEPARATE_QKV))


def _config(file: GgufFile, name: str) -> DecoderConfig:
    fields, family = _Fields(file.fields, name), FAMILY_OF[name]
    switches = FAMILY_SWITCHES[family]
    n_layers, n_heads, d_model = map(fields.size, ("block_count", "attention.head_count", "embedding_length"))
    if n_layers > len(file.tensors):
        raise ValueError(
            f"{name}.block_count={n_layers} layers, but the file holds {len(file.tensors)} tensors in all"
        )
    d_head = fields.size("attention.key_length", d_model // max(1, n_heads))
    fields.refuse_others({"attention.value_length": d_head, "rope.dimension_count": d_head, "expert_count": 0})
    norm = "layer_norm_epsilon" if switches["norm"] == "layernorm" else "layer_norm_rms_epsilon"
    shown = {switch: any(tensor in file.tensors for tensor in names) for switch, names in SHOWN_BY.items()}
    if EMBEDDING not in file.tensors:
        raise ValueError(f"the tensor {EMBEDDING} is missing")
    cfg = DecoderConfig(
        vocab_size=file.tensors[EMBEDDING].shape[0],
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=fields.size("attention.head_count_kv", n_heads),
        d_model=d_model,
        d_head=d_head,
        d_ff=fields.size("feed_forward_length"),
        max_seq_len=fields.size("context_length"),
        norm_eps=fields.number(f"attention.{norm}"),
        tie_embeddings=_is_tied(file),
        rope_theta=fields.number("rope.freq_base", ROPE_THETA),
        **{**shown, **switches},
    )
    return replace(cfg, rope_scaling=_rope_scaling(file, fields, cfg), **_window(fields, cfg))


def _is_tied(file: GgufFile) -> bool:
    """Whether one matrix serves embedding and head: the file has one, or two that differ by rounding alone."""
    one, other = file.tensors[EMBEDDING], file.tensors.get(HEAD)
    if other is None:
        return True
    if one.shape != other.shape or len(one.shape) != 2:
        return False
    rows = np.linspace(0, one.shape[0] - 1, min(COMPARED_ROWS, one.shape[0]), dtype=int).tolist()
    embedding, head = (np.concatenate([file.rows(name, row, 1) for row in rows]) for name in (EMBEDDING, HEAD))
    is_exact = one.stored in FLOATS and other.stored in FLOATS
    difference = np.linalg.norm(embedding - head) / max(np.linalg.norm(head), np.finfo(np.float32).tiny)
    return bool(difference == 0 if is_exact else difference < TIED_DIFFERENCE)


def _window(fields: "_Fields", cfg: DecoderConfig) -> dict[str, Any]:
    """Of Mistral's files, which have one for all layers; no other architecture of ours reads it."""
    window = fields.size("attention.sliding_window", 0)
    if not window or window >= cfg.max_seq_len:
        return {}
    if fields.architecture != "llama":
        raise ValueError(
            f"{fields.architecture}.attention.sliding_window={window} is not supported: the file does not list the"
            " layers that it is for"
        )
    return {"sliding_window": window, "sliding_layers": tuple(range(cfg.n_layers))}


def _rope_scaling(file: GgufFile, fields: "_Fields", cfg: DecoderConfig) -> RopeScaling | None:
    kind = fields.values.get(f"{fields.architecture}.rope.scaling.type", "none")
    factor = fields.number("rope.scaling.factor", fields.number("rope.scale_linear", 1.0))
    if kind not in ("none", "linear"):
        raise ValueError(
            f"{fields.architecture}.rope.scaling.type={str(kind)[:40]!r} is not supported, only 'linear'"
        )
    if ROPE_FACTORS in file.tensors:
        return _llama3_scaling(file, fields, cfg)
    return RopeScaling(kind="linear", factor=factor) if factor not in (0.0, 1.0) else None


def _llama3_scaling(file: GgufFile, fields: "_Fields", cfg: DecoderConfig) -> RopeScaling:
    """The scaling of Llama 3 (arXiv:2407.21783) with the file's factors. A file has no other trace of its numbers."""
    factors = torch.from_numpy(file.read(ROPE_FACTORS)).flatten()
    plain = frequencies(cfg.d_head, cfg.rope_theta)
    for context in (fields.size("rope.scaling.original_context_length", LLAMA3_CONTEXT), LLAMA3_CONTEXT):
        if factors.shape == plain.shape and 1 <= factors.max() < math.inf:
            scaling = RopeScaling(kind="llama3", factor=float(factors.max()), original_max_seq_len=context)
            if torch.allclose(plain / scaled(plain, scaling), factors, rtol=1e-3):
                return scaling
    raise ValueError(f"{ROPE_FACTORS}: only the factors of Llama 3 are supported")


class _Fields:
    """The metadata of one architecture, read as numbers."""

    def __init__(self, values: Mapping[str, Any], architecture: str) -> None:
        self.values, self.architecture = values, architecture

    def number(self, name: str, default: float | None = None) -> float:
        value = self.values.get(f"{self.architecture}.{name}", default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not -LARGEST < value < LARGEST:
            raise ValueError(f"{self.architecture}.{name}={str(value)[:40]} must be one number")
        return float(str(np.float32(value)))  # 0.00001, which float32 stores as 0.00000999999974

    def size(self, name: str, default: int | None = None) -> int:
        value = self.values.get(f"{self.architecture}.{name}", default)
        if type(value) is not int:
            raise ValueError(f"{self.architecture}.{name}={str(value)[:40]} must be one whole number")
        return value

    def refuse_others(self, allowed: Mapping[str, int]) -> None:
        for name, value in allowed.items():
            if (found := self.size(name, value)) != value:
                raise ValueError(f"{self.architecture}.{name}={found} is not supported, only {value}")
