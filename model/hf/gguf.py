"""A GGUF file, which llama.cpp and programs built on it open: weights, sizes and tokenizer in one.

In: a Decoder and its tokenizer. Out: NAME.gguf, written under another name and renamed. Each family becomes the
architecture of llama.cpp that computes the same. Switches that this architecture ignores or lacks (sliding windows,
some biases, scaled positions in Qwen) are refused by name, because the file would load and write nonsense.

Layout and names follow the GGUF specification of ggml and the package `gguf`, which writes the bytes. llama.cpp's
architectures llama and arcee rotate neighbouring pairs (2i, 2i + 1), Hugging Face and we the pairs (i, i + K/2), so
the rows of query and key matrices are permuted. Biases, norms and learned positions stay float32, as it expects.

Legend: H heads, K d_head, D d_model.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from model.data.tokenizer_json import DIGITS_FIRST
from model.hf.config import family_of
from model.hf.family import LAYER, QKV, WeightRule
from model.hf.tokenizer import ExportedTokenizer
from model.hf.weights import narrowed, to_theirs
from model.network.decoder import Decoder
from model.network.rope import frequencies, scaled
from model.network.shape import DecoderConfig
from model.training.files import flush
from model.training.weights import named_weights

if TYPE_CHECKING:
    from gguf import GGUFReader, GGUFWriter

EXPORTED_BY = "gristmill"  # value of general.quantized_by; only such a file is replaced
# Name of the split pattern -> llama.cpp's name of the code that splits like it.
SPLITS = {
    "gpt-2": "gpt-2",
    "qwen2": "qwen2",
    "gpt2": "gpt-2",
    "cl100k_base": "llama-bpe",
    "o200k_base": "gpt-4o",
    "llama3": "llama-bpe",
    "tekken": "tekken",
    DIGITS_FIRST: "smollm",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    name: str
    biases: frozenset[str] = frozenset()  # our switches that it supports; the others must be off
    pairs_neighbours: bool = False  # rotates (2i, 2i + 1)
    has_rope_factors: bool = False  # one factor per frequency, for llama3 scaling
    needs_square_heads: bool = False  # n_heads * d_head equals d_model


ALL_BIASES = frozenset(("qkv_bias", "output_bias", "mlp_bias"))
LLAMA = Architecture(name="llama", biases=ALL_BIASES, pairs_neighbours=True, has_rope_factors=True)
ARCHITECTURES = {  # by the family's model_type
    "gpt2": Architecture(name="gpt2", biases=ALL_BIASES),
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": Architecture(name="qwen2", biases=frozenset(("qkv_bias",)), needs_square_heads=True),
    "qwen3": Architecture(name="qwen3"),
    "arcee": Architecture(name="arcee", pairs_neighbours=True, has_rope_factors=True),
}
BLOCK = "blk.{}."
SEPARATE_QKV = tuple(WeightRule(ours=(ours,), theirs=f"{BLOCK}attn_{x}") for x, ours in zip("qkv", QKV, strict=True))
JOINED_QKV = (WeightRule(ours=QKV, theirs=BLOCK + "attn_qkv"),)
RULES = (
    WeightRule(ours=("model.embed_tokens",), theirs="token_embd"),
    WeightRule(ours=("model.embed_positions",), theirs="position_embd"),
    WeightRule(ours=("model.norm",), theirs="output_norm"),
    WeightRule(ours=("lm_head",), theirs="output"),
    WeightRule(ours=(LAYER + "input_layernorm",), theirs=BLOCK + "attn_norm"),
    WeightRule(ours=(LAYER + "self_attn.q_norm",), theirs=BLOCK + "attn_q_norm"),
    WeightRule(ours=(LAYER + "self_attn.k_norm",), theirs=BLOCK + "attn_k_norm"),
    WeightRule(ours=(LAYER + "self_attn.o_proj",), theirs=BLOCK + "attn_output"),
    WeightRule(ours=(LAYER + "post_attention_layernorm",), theirs=BLOCK + "ffn_norm"),
    WeightRule(ours=(LAYER + "mlp.gate_proj",), theirs=BLOCK + "ffn_gate"),
    WeightRule(ours=(LAYER + "mlp.up_proj",), theirs=BLOCK + "ffn_up"),
    WeightRule(ours=(LAYER + "mlp.down_proj",), theirs=BLOCK + "ffn_down"),
)


def write_gguf(
    path: Path, decoder: Decoder, tokenizer: ExportedTokenizer, *, name: str, dtype: str = "float32"
) -> Path:
    """Write the decoder to `path`, which ends in .gguf, with matrices in `dtype`.

    Raises ValueError when llama.cpp has no architecture or no split pattern for it, when a weight does not fit into
    `dtype`, or when `path` is anything but an earlier export.
    """
    import gguf

    cfg, architecture = decoder.cfg, architecture_of(decoder.cfg)
    tensors = {}
    for weight_name, weight in tensors_of(decoder, architecture).items():
        is_matrix = weight.ndim == 2 and not weight_name.startswith("position_embd")
        tensors[weight_name] = narrowed(weight_name, weight, getattr(torch, dtype)) if is_matrix else weight
    _check_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    writer = gguf.GGUFWriter(part, architecture.name)
    try:
        _add_sizes(writer, cfg, name, dtype)
        _add_tokenizer(writer, tokenizer, cfg.vocab_size)
        for tensor_name, tensor in tensors.items():
            if tensor.dtype == torch.bfloat16:  # numpy has none: the bytes and their kind
                bits = tensor.contiguous().view(torch.uint8).numpy()
                writer.add_tensor(tensor_name, bits, raw_dtype=gguf.GGMLQuantizationType.BF16)
            else:
                writer.add_tensor(tensor_name, np.ascontiguousarray(tensor.numpy()))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        flush(part)
    except BaseException:
        writer.close()
        part.unlink(missing_ok=True)
        raise
    os.replace(part, path)  # noqa: PTH105
    return path


def architecture_of(cfg: DecoderConfig) -> Architecture:
    """llama.cpp's architecture for these switches. ValueError names the switches that it would ignore."""
    family = family_of(cfg).model_type
    if sees_window(cfg) and family == "mistral":
        family = "llama"  # the architecture that the message names
    architecture = ARCHITECTURES[family]
    lacks = [name for name in sorted(ALL_BIASES - architecture.biases) if getattr(cfg, name)]
    if sees_window(cfg):
        lacks.append(f"sliding_window={cfg.sliding_window}")
    if cfg.rope_scaling is not None and cfg.rope_scaling.kind == "llama3" and not architecture.has_rope_factors:
        lacks.append("rope_scaling of kind 'llama3'")
    if architecture.needs_square_heads and cfg.n_heads * cfg.d_head != cfg.d_model:
        lacks.append(f"n_heads * d_head = {cfg.n_heads * cfg.d_head} beside d_model={cfg.d_model}")
    if lacks:
        raise ValueError(
            f"llama.cpp's architecture {architecture.name!r} has no {', no '.join(lacks)}; export with --format hf"
        )
    return architecture


def sees_window(cfg: DecoderConfig) -> bool:
    """Whether the window hides anything within the context."""
    return cfg.sliding_window is not None and cfg.sliding_window < cfg.max_seq_len


def tensors_of(decoder: Decoder, architecture: Architecture) -> dict[str, Tensor]:
    """All tensors of the file by name, in float32."""
    cfg = decoder.cfg
    weights = named_weights(decoder)
    if architecture.pairs_neighbours:
        for name, weight in weights.items():
            if ".q_proj." in name or ".k_proj." in name:
                weights[name] = neighbours_paired(weight, cfg.d_head)
    qkv = JOINED_QKV if architecture.name == "gpt2" else SEPARATE_QKV
    tensors = to_theirs(weights, (*RULES, *qkv), cfg.n_layers)
    n_joined = 2 * sum(name.endswith(("attn_qkv.weight", "attn_qkv.bias")) for name in tensors)
    assert len(tensors) + n_joined == len(weights), "no rule names some weight of the decoder"
    if cfg.rope_scaling is not None and cfg.rope_scaling.kind == "llama3":
        unscaled = frequencies(cfg.d_head, cfg.rope_theta)
        tensors["rope_freqs.weight"] = unscaled / scaled(unscaled, cfg.rope_scaling)  # llama.cpp divides by it
    return tensors


def neighbours_paired(weight: Tensor, d_head: int) -> Tensor:
    """Rows (H * K, ...) in the order 0, K/2, 1, K/2 + 1, ... within each head."""
    halves = weight.unflatten(0, (-1, 2, d_head // 2))
    return halves.transpose(1, 2).flatten(0, 2)


def _add_sizes(writer: "GGUFWriter", cfg: DecoderConfig, name: str, dtype: str) -> None:
    import gguf

    kinds = {"float32": "ALL_F32", "float16": "MOSTLY_F16", "bfloat16": "MOSTLY_BF16"}
    writer.add_name(name)
    writer.add_quantized_by(EXPORTED_BY)
    writer.add_file_type(gguf.LlamaFileType[kinds[dtype]])
    writer.add_context_length(cfg.max_seq_len)
    writer.add_embedding_length(cfg.d_model)
    writer.add_block_count(cfg.n_layers)
    writer.add_feed_forward_length(cfg.d_ff)
    writer.add_head_count(cfg.n_heads)
    writer.add_head_count_kv(cfg.n_kv_heads)
    writer.add_key_length(cfg.d_head)
    writer.add_value_length(cfg.d_head)
    writer.add_vocab_size(cfg.vocab_size)
    if cfg.norm == "layernorm":
        writer.add_layer_norm_eps(cfg.norm_eps)
    else:
        writer.add_layer_norm_rms_eps(cfg.norm_eps)
    if cfg.positions == "rotary":
        writer.add_rope_dimension_count(cfg.d_head)
        writer.add_rope_freq_base(cfg.rope_theta)
    if cfg.rope_scaling is not None and cfg.rope_scaling.kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(cfg.rope_scaling.factor)


def _add_tokenizer(writer: "GGUFWriter", tokenizer: ExportedTokenizer, vocab_size: int) -> None:
    import gguf

    split = SPLITS.get(tokenizer.pattern_name or "")
    if split is None:
        raise ValueError(
            f"llama.cpp needs the name of the pattern that splits text and supports {', '.join(SPLITS)}; the"
            f" tokenizer has {tokenizer.pattern_name!r} (gristmill_tokenizer.json names it for a tokenizer made here)"
        )
    names: Mapping[int, str] = {token_id: token for token, token_id in tokenizer.tokens.items()}
    kinds: list[Any] = [gguf.TokenType.NORMAL] * vocab_size
    for token_id in range(vocab_size):
        if token_id in tokenizer.control:
            kinds[token_id] = gguf.TokenType.CONTROL
        elif token_id not in names:  # a gap, or a row of the embedding that no token has
            kinds[token_id] = gguf.TokenType.UNUSED
    writer.add_tokenizer_model("gpt2")  # byte-level BPE of any vocabulary
    writer.add_tokenizer_pre(split)
    writer.add_token_list([names.get(token_id, f"[UNUSED{token_id}]") for token_id in range(vocab_size)])
    writer.add_token_types(kinds)
    writer.add_token_merges(list(tokenizer.merges))
    writer.add_add_bos_token(tokenizer.opens_with_bos)
    writer.add_add_space_prefix(False)
    for token, token_id in tokenizer.special_ids.items():
        getattr(writer, f"add_{token}_id")(token_id)
    if tokenizer.end_of_turn is not None:
        writer.add_eot_token_id(tokenizer.end_of_turn)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def _check_replaceable(path: Path) -> None:
    if path.suffix != ".gguf":
        raise ValueError(f"{path}: the name of a GGUF file must end in .gguf, by which other programs recognise it")
    if not path.exists():
        return
    import gguf

    try:
        reader: GGUFReader | None = gguf.GGUFReader(path)
    except (ValueError, OSError, IndexError):  # no GGUF file, or half of one
        reader = None
    made_by = reader.get_field("general.quantized_by") if reader is not None else None
    if made_by is None or made_by.contents() != EXPORTED_BY:
        raise ValueError(f"{path} exists and is no earlier export, so it is not replaced; remove it, or name another")
