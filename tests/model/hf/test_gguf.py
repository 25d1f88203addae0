"""GGUF files read back by the package gguf: every tensor, every field. bench/llama_cpp.py runs them in llama.cpp."""

import dataclasses

import gguf
import numpy as np
import pytest
import torch

from model.hf.gguf import write_gguf
from model.hf.tokenizer import ExportedTokenizer
from model.network.decoder import Decoder
from model.network.shape import RopeScaling

TOKENIZER = ExportedTokenizer(
    files={},
    tokens={**{chr(ord("a") + i): i for i in range(26)}, "ab": 26, "<|endoftext|>": 96},
    control=frozenset({96}),
    merges=("a b",),
    special_ids={"bos_token": 96, "eos_token": 96, "pad_token": 96},
    pattern_name="qwen2",
    opens_with_bos=True,
    chat_template=None,
)
GPT2_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
LLAMA_LAYER = {**GPT2_LAYER, "ffn_gate": "mlp.gate_proj", "attn_v": "self_attn.v_proj"}


def written(path, cfg, large_weights, tokenizer=TOKENIZER, dtype="float32"):
    decoder = large_weights(Decoder(cfg), seed=4)
    write_gguf(path / "model.gguf", decoder, tokenizer, name="a name", dtype=dtype)
    return decoder, gguf.GGUFReader(path / "model.gguf")


def fields_of(reader: gguf.GGUFReader) -> dict[str, object]:
    return {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}


def rotated_as_llama_cpp_wants(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Row 2i of a head is row i of ours, row 2i + 1 is row i + K/2: loops, to be another implementation."""
    d_head = len(weight) // n_heads
    rows = []
    for head in range(n_heads):
        for i in range(d_head // 2):
            rows += [weight[head * d_head + i], weight[head * d_head + i + d_head // 2]]
    return np.stack(rows)


def expected_tensors(decoder: Decoder, architecture: str) -> dict[str, np.ndarray]:
    ours = {name: weight.detach().numpy() for name, weight in decoder.named_parameters()}
    cfg = decoder.cfg
    found = {
        "token_embd.weight": ours["model.embed_tokens.weight"],
        "output_norm.weight": ours["model.norm.weight"],
        "output_norm.bias": ours.get("model.norm.bias"),
        "position_embd.weight": ours.get("model.embed_positions.weight"),
        "output.weight": ours.get("lm_head.weight"),
    }
    table = GPT2_LAYER if architecture == "gpt2" else LLAMA_LAYER
    for layer in range(cfg.n_layers):
        prefix = f"model.layers.{layer}."
        for end in ("weight", "bias"):
            for theirs, name in table.items():
                found[f"blk.{layer}.{theirs}.{end}"] = ours.get(f"{prefix}{name}.{end}")
            for letter in "qk":
                norm = ours.get(f"{prefix}self_attn.{letter}_norm.{end}")
                found[f"blk.{layer}.attn_{letter}_norm.{end}"] = norm
            heads = [ours.get(f"{prefix}self_attn.{letter}_proj.{end}") for letter in "qkv"]
            if architecture == "gpt2":
                found[f"blk.{layer}.attn_qkv.{end}"] = np.concatenate(heads)
            elif heads[0] is not None:
                if architecture in ("llama", "arcee"):
                    heads[:2] = [
                        rotated_as_llama_cpp_wants(weight, n)
                        for weight, n in zip(heads, (cfg.n_heads, cfg.n_kv_heads), strict=False)
                    ]
                found[f"blk.{layer}.attn_q.{end}"], found[f"blk.{layer}.attn_k.{end}"] = heads[:2]
    return {name: weight for name, weight in found.items() if weight is not None}


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("gpt2", "gpt2"),
        ("gpt2-untied", "gpt2"),
        ("llama", "llama"),
        ("llama-biases", "llama"),
        ("llama-scaled", "llama"),
        ("mistral-narrow", "llama"),
        ("qwen3", "qwen3"),
        ("qwen3-tied", "qwen3"),
        ("qwen3-linear", "qwen3"),
        ("arcee", "arcee"),
    ],
)
def test_gguf_read_back_holds_every_weight_and_every_size(name, architecture, decoders, large_weights, tmp_path):
    cfg = decoders[name]
    decoder, reader = written(tmp_path, cfg, large_weights)
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    scaling = tensors.pop("rope_freqs.weight", None)
    assert (scaling is not None) == (name == "llama-scaled")
    expected = expected_tensors(decoder, architecture)
    assert tensors.keys() == expected.keys()
    for tensor, value in expected.items():
        assert tensors[tensor].dtype == np.float32
        assert np.array_equal(tensors[tensor], value), tensor
    fields = fields_of(reader)
    sizes = {
        "context_length": cfg.max_seq_len,
        "embedding_length": cfg.d_model,
        "block_count": cfg.n_layers,
        "feed_forward_length": cfg.d_ff,
        "attention.head_count": cfg.n_heads,
        "attention.head_count_kv": cfg.n_kv_heads,
        "attention.key_length": cfg.d_head,
        "attention.value_length": cfg.d_head,
        "vocab_size": cfg.vocab_size,
    }
    epsilon = "attention.layer_norm_epsilon" if cfg.norm == "layernorm" else "attention.layer_norm_rms_epsilon"
    rotary = {} if cfg.positions == "learned" else {"rope.dimension_count": cfg.d_head, "rope.freq_base": 500.0}
    linear = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0} if name == "qwen3-linear" else {}
    for key, value in {**sizes, **rotary, **linear, epsilon: pytest.approx(cfg.norm_eps)}.items():
        assert fields.pop(f"{architecture}.{key}") == value, key
    assert not [key for key in fields if key.startswith(architecture)]  # nothing else is claimed
    assert fields["general.architecture"] == architecture
    assert (fields["general.name"], fields["general.file_type"]) == ("a name", gguf.LlamaFileType.ALL_F32)


def test_llama3_scaling_is_a_factor_a_frequency(decoders, large_weights, tmp_path):
    """By the paper's words: whole below one turn within the old context, none above four, blended between."""
    scaling = RopeScaling(kind="llama3", factor=8.0, original_max_seq_len=64)
    cfg = dataclasses.replace(decoders["llama"], d_head=12, rope_theta=100.0, rope_scaling=scaling)
    _, reader = written(tmp_path, cfg, large_weights)
    (factors,) = (tensor.data for tensor in reader.tensors if tensor.name == "rope_freqs.weight")
    expected = []
    for i in range(6):
        turns = 64 * 100.0 ** (-2 * i / 12) / (2 * np.pi)
        share = min(max((turns - 1) / 3, 0), 1)
        expected.append(1 / (share + (1 - share) / 8.0))
    assert {1.0, 8.0} < set(np.round(expected, 6))  # all three kinds occur
    np.testing.assert_allclose(factors, expected, rtol=1e-5)


def test_gguf_tokenizer_fields_are_those_of_the_tokenizer(decoders, large_weights, tmp_path):
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    tokenizer = dataclasses.replace(TOKENIZER, chat_template=template)
    fields = fields_of(written(tmp_path, decoders["qwen3"], large_weights, tokenizer)[1])
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert len(tokens) == len(kinds) == 97
    assert tokens[:3] == ["a", "b", "c"] and tokens[26] == "ab" and tokens[96] == "<|endoftext|>"
    normal, unused, control = gguf.TokenType.NORMAL, gguf.TokenType.UNUSED, gguf.TokenType.CONTROL
    assert kinds == [normal] * 27 + [unused] * 69 + [control]
    assert fields["tokenizer.ggml.merges"] == ["a b"]
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == ("gpt2", "qwen2")
    assert {fields[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "eot", "padding")} == {96}
    assert (fields["tokenizer.ggml.add_bos_token"], fields["tokenizer.ggml.add_space_prefix"]) == (True, False)
    assert fields["tokenizer.chat_template"] == template


def test_gguf_of_a_chat_model_names_the_token_that_ends_an_answer(decoders, large_weights, tmp_path):
    tokenizer = dataclasses.replace(TOKENIZER, stops=(26, 96))
    fields = fields_of(written(tmp_path, decoders["qwen3"], large_weights, tokenizer)[1])
    assert (fields["tokenizer.ggml.eos_token_id"], fields["tokenizer.ggml.eot_token_id"]) == (96, 26)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_gguf_keeps_norms_biases_and_positions_in_float32(dtype, decoders, large_weights, tmp_path):
    decoder, reader = written(tmp_path, decoders["gpt2"], large_weights, dtype=dtype)
    narrow = gguf.GGMLQuantizationType.F16 if dtype == "float16" else gguf.GGMLQuantizationType.BF16
    kinds = {tensor.name: tensor.tensor_type for tensor in reader.tensors}
    for name, kind in kinds.items():
        is_narrow = name.endswith(".weight") and "norm" not in name and name != "position_embd.weight"
        assert kind == (narrow if is_narrow else gguf.GGMLQuantizationType.F32), name
    (up,) = (tensor for tensor in reader.tensors if tensor.name == "blk.1.ffn_up.weight")
    expected = decoder.model.layers[1].mlp.up_proj.weight.detach().to(getattr(torch, dtype)).float().numpy()
    assert np.array_equal(gguf.dequantize(up.data, up.tensor_type), expected)


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        ("qwen3-window", {}, r"'qwen3' has no sliding_window=9"),
        ("mistral", {}, r"'llama' has no sliding_window=9"),
        ("qwen3-biases", {}, r"'qwen3' has no output_bias, no qkv_bias"),
        ("arcee-biases", {}, r"'arcee' has no mlp_bias, no output_bias, no qkv_bias"),
        ("qwen2", {}, r"'qwen2' has no n_heads \* d_head = 40 beside d_model=24"),
        ("qwen3", {"rope_scaling": RopeScaling(kind="llama3", factor=2.0, original_max_seq_len=8)}, "llama3"),
        ("qwen3", {"norm": "layernorm"}, "no family"),
    ],
)
def test_decoder_that_llama_cpp_cannot_compute_is_refused_by_name(name, change, named, decoders, tmp_path):
    decoder = Decoder(dataclasses.replace(decoders[name], **change))
    with pytest.raises(ValueError, match=named):
        write_gguf(tmp_path / "model.gguf", decoder, TOKENIZER, name="x")
    assert not list(tmp_path.iterdir())


def test_window_as_long_as_the_context_hides_nothing_and_is_exported(decoders, large_weights, tmp_path):
    cfg = dataclasses.replace(decoders["qwen3-window"], sliding_window=64)
    assert fields_of(written(tmp_path, cfg, large_weights)[1])["general.architecture"] == "qwen3"


def test_tokenizer_whose_splits_llama_cpp_does_not_know_is_refused(decoders, tmp_path):
    tokenizer = dataclasses.replace(TOKENIZER, pattern_name="mine")
    with pytest.raises(ValueError, match=r"supports gpt-2, qwen2.*has 'mine'"):
        write_gguf(tmp_path / "model.gguf", Decoder(decoders["qwen3"]), tokenizer, name="x")
    assert not list(tmp_path.iterdir())


def test_earlier_export_is_replaced_and_files_of_others_are_not(decoders, large_weights, tmp_path):
    path = tmp_path / "model.gguf"
    for name in ("qwen3", "llama"):
        written(tmp_path, decoders[name], large_weights)
    assert fields_of(gguf.GGUFReader(path))["general.architecture"] == "llama"
    assert list(tmp_path.iterdir()) == [path]
    foreign = gguf.GGUFWriter(tmp_path / "foreign.gguf", "llama")
    foreign.add_quantized_by("somebody else")
    foreign.write_header_to_file()
    foreign.write_kv_data_to_file()
    foreign.write_tensors_to_file()
    foreign.close()
    for other in (b"years of work", (tmp_path / "foreign.gguf").read_bytes(), path.read_bytes()[:40], b""):
        path.write_bytes(other)
        with pytest.raises(ValueError, match="no earlier export"):
            write_gguf(path, Decoder(decoders["llama"]), TOKENIZER, name="x")
        assert path.read_bytes() == other
    with pytest.raises(ValueError, match=r"must end in \.gguf"):
        write_gguf(tmp_path / "out", Decoder(decoders["llama"]), TOKENIZER, name="x")
