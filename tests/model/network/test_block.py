"""A layer against the layers of transformers' encoders: post-norm (BERT), and pre-norm with a two-sided window, a
gate of exact GELU and no biases at all (ModernBERT). Decoders: tests/model/hf/test_parity.py."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, ModernBertConfig, ModernBertModel

from model.network.attention import attention_plan
from model.network.block import Block
from model.network.rope import frequencies, rotary_tables
from model.network.shape import DecoderShape
from model.network.visible import Visible

SHAPE = DecoderShape(
    n_layers=1, n_heads=4, n_kv_heads=4, d_model=32, d_head=8, d_ff=48, max_seq_len=16, norm_eps=1e-5, qk_norm=False
)
BERT = dataclasses.replace(
    SHAPE, norm="layernorm", norm_position="post", qkv_bias=True, output_bias=True, mlp="gelu", mlp_bias=True
)
MODERN_BERT = dataclasses.replace(SHAPE, norm="layernorm_no_bias", mlp="geglu")
SIZES = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 40}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2, "pad_token_id": 0}


def with_large_weights(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(
                torch.empty(weight.shape).normal_(1.0 if weight.ndim == 1 else 0.0, 0.3, generator=generator)
            )
    return model.eval()


@torch.no_grad()
def in_and_out(model: nn.Module, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """What goes through one layer of a model that reads 13 tokens."""
    seen = []
    hook = layer.register_forward_hook(lambda _, inputs, out: seen.extend([inputs[0], out]))
    model(torch.randint(3, 40, (2, 13), generator=torch.Generator().manual_seed(1)))
    hook.remove()
    return seen[0], seen[1]


def our_output(cfg: DecoderShape, weights: dict[str, Tensor], x_BTD: Tensor, visible: Visible) -> Tensor:
    block = Block(cfg, 0)
    block.load_state_dict(weights)
    n = x_BTD.size(1)
    rotary = None
    if cfg.positions == "rotary":
        rotary = tuple(table[:n] for table in rotary_tables(frequencies(cfg.d_head, cfg.rope_theta), n))
    sizes = {"n_rows": 2, "n_queries": n, "n_keys": n, "d_head": cfg.d_head}
    plan = attention_plan(visible, device=x_BTD.device, dtype=x_BTD.dtype, **sizes)
    with torch.no_grad():
        return block(x_BTD, rotary, plan, None)


def test_block_with_post_norm_equals_that_of_bert():
    theirs = with_large_weights(
        BertModel(BertConfig(**SIZES, num_hidden_layers=1, layer_norm_eps=1e-5, max_position_embeddings=16))
    )
    layer = theirs.encoder.layer[0]
    names = {
        "self_attn.q_proj": "attention.self.query",
        "self_attn.k_proj": "attention.self.key",
        "self_attn.v_proj": "attention.self.value",
        "self_attn.o_proj": "attention.output.dense",
        "input_layernorm": "attention.output.LayerNorm",
        "mlp.up_proj": "intermediate.dense",
        "mlp.down_proj": "output.dense",
        "post_attention_layernorm": "output.LayerNorm",
    }
    state = layer.state_dict()
    weights = {f"{our}.{end}": state[f"{their}.{end}"] for our, their in names.items() for end in ("weight", "bias")}
    assert len(weights) == len(state)
    x_BTD, expected_BTD = in_and_out(theirs, layer)
    cfg = dataclasses.replace(BERT, positions="learned")
    torch.testing.assert_close(our_output(cfg, weights, x_BTD, Visible.all()), expected_BTD)


def test_block_with_a_window_on_both_sides_equals_that_of_modern_bert():
    config = ModernBertConfig(**SIZES, **IDS, num_hidden_layers=2, local_attention=6, max_position_embeddings=16)
    theirs = with_large_weights(ModernBertModel(config))
    layer = theirs.layers[1]
    assert layer.attention_type == "sliding_attention"
    state = layer.state_dict()
    q, k, v = state["attn.Wqkv.weight"].chunk(3)
    gate, up = state["mlp.Wi.weight"].chunk(2)
    weights = {
        "input_layernorm.weight": state["attn_norm.weight"],
        "self_attn.q_proj.weight": q,
        "self_attn.k_proj.weight": k,
        "self_attn.v_proj.weight": v,
        "self_attn.o_proj.weight": state["attn.Wo.weight"],
        "post_attention_layernorm.weight": state["mlp_norm.weight"],
        "mlp.gate_proj.weight": gate,
        "mlp.up_proj.weight": up,
        "mlp.down_proj.weight": state["mlp.Wo.weight"],
    }
    x_BTD, expected_BTD = in_and_out(theirs, layer)
    ours_BTD = our_output(MODERN_BERT, weights, x_BTD, Visible.all().windowed(3, 3))
    torch.testing.assert_close(ours_BTD, expected_BTD, atol=1e-5, rtol=1e-5)
    for wrong in (Visible.all(), Visible.all().windowed(2, 2), Visible.all().windowed(3, 4), Visible.causal()):
        assert not torch.allclose(our_output(MODERN_BERT, weights, x_BTD, wrong), expected_BTD, atol=1e-2)


@pytest.mark.parametrize("field", ["norm_position", "mlp", "norm"])
def test_layer_of_an_unknown_kind_is_refused(field):
    with pytest.raises(ValueError, match=f"{field}='middle' must be one of "):
        dataclasses.replace(SHAPE, **{field: "middle"})
