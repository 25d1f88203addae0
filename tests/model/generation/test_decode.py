"""A packed decoder computes what the plain one does, holds its weights once, and loses nothing put around a layer."""

import copy
import dataclasses
import pickle

import pytest
import torch
from torch import nn

from model.generation.decode import pack
from model.generation.generate import generate
from model.generation.sample_config import SampleConfig
from model.hf.files import read_folder, write_folder
from model.network.decoder import Decoder
from model.network.linear import Linear
from model.network.registry import describe, save_model
from model.network.shape import DecoderConfig, RopeScaling

QWEN3 = DecoderConfig(
    vocab_size=61, n_layers=2, n_heads=4, n_kv_heads=2, d_model=32, d_head=8, d_ff=48, max_seq_len=24
)
LLAMA = dataclasses.replace(QWEN3, qk_norm=False, rope_scaling=RopeScaling(kind="linear", factor=2.0))
GPT2 = dataclasses.replace(
    LLAMA,
    rope_scaling=None,
    n_kv_heads=4,
    norm="layernorm",
    positions="learned",
    qkv_bias=True,
    output_bias=True,
    mlp="gelu_tanh",
    mlp_bias=True,
    tie_embeddings=True,
)
ARCEE = dataclasses.replace(LLAMA, mlp="relu2", mlp_bias=True)
WINDOW = dataclasses.replace(QWEN3, sliding_window=5, sliding_layers=(1,))
# Matrices that oneDNN may take in blocks.
SIZES = {"n_heads": 8, "n_kv_heads": 4, "d_head": 64, "d_model": 128, "d_ff": 1024, "vocab_size": 1040}
LARGE = dataclasses.replace(QWEN3, n_layers=1, **SIZES)
TIED = dataclasses.replace(LARGE, tie_embeddings=True)
CONFIGS = {
    "qwen3": QWEN3,
    "llama": LLAMA,
    "gpt2": GPT2,
    "arcee": ARCEE,
    "window": WINDOW,
    "large": LARGE,
    "tied": TIED,
}
GREEDY = SampleConfig(max_new_tokens=12, temperature=0)


def decoder_of(cfg: DecoderConfig) -> Decoder:
    """Biases are not 0, norms not 1, and logits of the order of 1."""
    generator = torch.Generator().manual_seed(0)
    model = Decoder(cfg).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            spread = 2 * weight.size(1) ** -0.5 if weight.ndim == 2 else 0.3
            is_scale = weight.ndim == 1 and name.endswith("weight")
            weight.copy_(torch.randn(weight.shape, generator=generator) * spread + is_scale)
    return model


class Adapter(nn.Module):
    """As LoRA: what the layer gives, and something beside it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.layer(x_BTD) + x_BTD.mean(dim=-1, keepdim=True)


def n_weight_bytes(model: Decoder) -> int:
    """Bytes of all distinct memories that the modules of `model` hold, parameters or not."""
    memories = {}

    def visit(value: object) -> None:
        if isinstance(value, torch.Tensor) and value.is_mkldnn:
            memories[torch.ops.mkldnn.data_ptr(value)] = torch.ops.mkldnn._nbytes(value)
        elif isinstance(value, torch.Tensor):
            memories[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, dict):
            for one in value.values():
                visit(one)
        elif hasattr(value, "__dict__") and not isinstance(value, nn.Module):
            visit(vars(value))

    for module in model.modules():
        visit(vars(module))
    return sum(memories.values())


@pytest.mark.parametrize("n_rows", [1, 3])
@pytest.mark.parametrize("cfg", CONFIGS.values(), ids=CONFIGS)
@torch.inference_mode()
def test_packed_decoder_equals_the_plain_one_in_every_step(cfg, n_rows):
    plain = decoder_of(cfg)
    packed = pack(copy.deepcopy(plain), n_rows)
    ids_BT = torch.randint(0, cfg.vocab_size, (n_rows, 16), generator=torch.Generator().manual_seed(1))
    cache = packed.new_cache(n_rows)
    parts = [ids_BT[:, :9], *ids_BT[:, 9:].split(1, dim=1)]
    logits_BTV = torch.cat([packed(part, cache=cache) for part in parts], dim=1)
    torch.testing.assert_close(logits_BTV, plain(ids_BT), atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("n_rows", [1, 8])
@pytest.mark.parametrize("cfg", [LARGE, TIED, GPT2], ids=["large", "tied", "gpt2"])
def test_packed_decoder_holds_its_weights_once_and_its_state_is_the_same(cfg, n_rows):
    plain = decoder_of(cfg)
    state, n_bytes = copy.deepcopy(plain.state_dict()), n_weight_bytes(plain)
    packed = pack(plain, n_rows)
    assert n_weight_bytes(packed) < 1.05 * n_bytes  # oneDNN fills its last panel up
    again = packed.state_dict()
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)


@torch.inference_mode()
def test_packed_again_for_another_number_of_rows_is_the_same_model():
    plain = decoder_of(TIED)
    packed, ids_BT = copy.deepcopy(plain), torch.arange(12).view(1, 12)
    for n_rows in (1, 8, 8, 1):
        torch.testing.assert_close(pack(packed, n_rows)(ids_BT), plain(ids_BT), atol=3e-5, rtol=1e-5)
    assert n_weight_bytes(packed) < 1.05 * n_weight_bytes(plain)


@pytest.mark.parametrize(("cfg", "n_rows"), [(QWEN3, 1), (LARGE, 4)], ids=["one row", "several rows"])
@pytest.mark.parametrize("when", ["before", "after"])
@torch.inference_mode()
def test_packed_decoder_honours_adapters(when, cfg, n_rows):
    """An adapter around any layer, put there before or after packing, has its effect."""
    names = ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
    for name in (*names, "self_attn.k_norm", "input_layernorm"):
        models = decoder_of(cfg), decoder_of(cfg)
        ids_BT = torch.arange(n_rows * 3).view(n_rows, 3)
        without_BTV = models[0](ids_BT)
        for model in models:
            if model is models[1] and when == "after":
                pack(model, n_rows)
            parent, _, child = name.rpartition(".")
            module = model.model.layers[-1].get_submodule(parent)
            setattr(module, child, Adapter(getattr(module, child)))
            if model is models[1] and when == "before":
                pack(model, n_rows)
        plain_BTV, packed_BTV = (model(ids_BT) for model in models)
        assert not torch.allclose(plain_BTV, without_BTV, atol=1e-2)
        torch.testing.assert_close(packed_BTV, plain_BTV, atol=3e-5, rtol=1e-5)


def put_a_hook(module: nn.Module, seen: list) -> None:
    module.register_forward_hook(lambda *args: seen.append(args[2].shape))


def put_a_hook_before(module: nn.Module, seen: list) -> None:
    module.register_forward_pre_hook(lambda *args: seen.append(args[1][0].shape))


def replace_the_method(module: nn.Module, seen: list) -> None:
    forward = module.forward
    module.forward = lambda x_BTD: (seen.append(x_BTD.shape), forward(x_BTD))[1]


@pytest.mark.parametrize("put", [put_a_hook, put_a_hook_before, replace_the_method])
@pytest.mark.parametrize("when", ["before", "after"])
@torch.inference_mode()
def test_what_is_put_around_any_layer_sees_each_pass_of_a_packed_decoder(when, put):
    """Norms and embeddings lost their hooks when they were packed, and joint layers a method that was replaced."""
    layer = "model.layers.0."
    names = ["self_attn.k_proj", "self_attn.k_norm", "mlp.up_proj", "mlp.down_proj", "input_layernorm"]
    for name in ("model.embed_tokens", "model.norm", "lm_head", *(layer + name for name in names)):
        model, seen = decoder_of(dataclasses.replace(QWEN3, tie_embeddings=True)), []
        if when == "after":
            pack(model)
        put(model.get_submodule(name), seen)
        pack(model)(torch.arange(5).view(1, 5))
        assert len(seen) == 1, name


@pytest.mark.parametrize("n_rows", [1, 8])
@torch.inference_mode()
def test_packed_decoder_is_copied_and_pickled_like_the_plain_one(n_rows):
    """oneDNN's blocks could be neither copied nor pickled."""
    plain, ids_BT = decoder_of(TIED), torch.arange(12).view(1, 12)
    packed = pack(copy.deepcopy(plain), n_rows)
    for again in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):  # noqa: S301
        assert torch.equal(again(ids_BT), packed(ids_BT))
        torch.testing.assert_close(pack(again, 9 - n_rows)(ids_BT), plain(ids_BT), atol=3e-5, rtol=1e-5)
        assert n_weight_bytes(again) < 1.05 * n_weight_bytes(plain)


@pytest.mark.parametrize("n_rows", [1, 8])
@torch.inference_mode()
def test_layers_that_do_not_go_together_are_left_apart(n_rows):
    """A bias at one of three projections broke the joint product, a new head replaced the embedding that it was tied
    to before."""
    models = [decoder_of(LARGE), decoder_of(TIED)]
    models[0].model.layers[0].self_attn.k_proj = Linear(128, 256).eval()
    models[1].lm_head = Linear(128, 1040, bias=False).eval()
    for model in models:
        ids_BT = torch.arange(12).view(2, 6)
        plain_BTV = model(ids_BT)
        torch.testing.assert_close(pack(model, n_rows)(ids_BT), plain_BTV, atol=3e-5, rtol=1e-5)


@torch.inference_mode()
def test_packed_head_reads_a_part_of_the_hidden_states():
    plain, x_BTD = decoder_of(LARGE), torch.randn(3, 5, 128, generator=torch.Generator().manual_seed(0))
    expected_BTV = plain.lm_head(x_BTD[:, 1:])
    torch.testing.assert_close(pack(plain, 8).lm_head(x_BTD[:, 1:]), expected_BTV, atol=3e-5, rtol=1e-5)


@torch.inference_mode()
def test_packed_decoder_in_bfloat16_rounds_as_the_plain_one():
    plain = decoder_of(QWEN3).to(torch.bfloat16)
    packed, ids_BT = pack(copy.deepcopy(plain), 2), torch.arange(20).view(2, 10)
    assert packed(ids_BT).dtype is torch.bfloat16
    torch.testing.assert_close(packed(ids_BT), plain(ids_BT), atol=0.25, rtol=0.05)


def test_pack_what_would_lose_weights_or_training_is_refused():
    model = decoder_of(QWEN3)
    state = model.state_dict()
    with pytest.raises(ValueError, match="training can't be packed"):
        pack(model.train())
    packed, ids_BT = pack(model.eval()), torch.arange(5).view(1, 5)
    zeros = {name: torch.zeros_like(weight) for name, weight in state.items()}
    before_BTV = packed(ids_BT)
    for spoil in (packed.train, packed.double, packed.trunk.double, lambda: packed.load_state_dict(zeros)):
        with pytest.raises(ValueError, match="packed model"):
            spoil()
        assert torch.equal(packed(ids_BT), before_BTV) and not packed.training  # nothing is changed half-way


def test_packed_model_is_neither_saved_nor_exported(tmp_path):
    """Its matrices are no parameters: a file without them was written, over an earlier one."""
    plain = decoder_of(QWEN3)
    write_folder(tmp_path / "export", plain)
    packed = pack(copy.deepcopy(plain))
    with pytest.raises(ValueError, match="can't be saved or exported"):
        save_model(tmp_path, packed, describe(QWEN3))
    with pytest.raises(ValueError, match="can't be saved or exported"):
        write_folder(tmp_path / "export", packed)
    ids_BT = torch.arange(5).view(1, 5)
    assert torch.equal(read_folder(tmp_path / "export")(ids_BT), plain(ids_BT))


def test_generate_in_the_middle_of_a_training_changes_no_bit_of_it():
    def trained(samples: bool) -> list[torch.Tensor]:
        model = decoder_of(QWEN3).train()
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for step in range(3):
            ids_BT = torch.randint(0, 61, (2, 12), generator=torch.Generator().manual_seed(step))
            loss = nn.functional.cross_entropy(model(ids_BT[:, :-1]).flatten(0, 1), ids_BT[:, 1:].flatten())
            loss.backward()
            if samples:
                assert len(generate(model, [[1, 2, 3]], GREEDY)[0]) == 12
            optimiser.step()
            optimiser.zero_grad()
        return list(model.parameters())

    pairs = zip(trained(samples=True), trained(samples=False), strict=True)
    assert all(torch.equal(one, other) and one.stride() == other.stride() for one, other in pairs)
