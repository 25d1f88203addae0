"""Parity with transformers' Qwen3, both ways."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM, Qwen3ForSequenceClassification

from model.config import DecoderConfig
from model.decoder import Decoder
from model.heads import SequenceClassifier
from model.hf.convert import config_from_hf, config_to_hf, weights_from_hf
from model.hf.files import read_folder, write_folder
from model.loss import IGNORE_INDEX, language_model_loss

CONFIG = DecoderConfig(
    vocab_size=97,
    n_layers=3,
    n_heads=4,
    n_kv_heads=2,
    d_model=24,
    d_head=10,
    d_ff=40,
    max_seq_len=64,
    rope_theta=500.0,
)


def large_weights(model: torch.nn.Module, seed: int) -> None:
    """Weights far from their start: with small ones a wrong rotation or norm hides below the tolerance."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.empty(weight.shape).normal_(std=0.2, generator=generator))
            if weight.ndim == 1:
                weight.add_(1.0)


def random_ids(rows: int, seq_len: int) -> torch.Tensor:
    return torch.randint(0, CONFIG.vocab_size, (rows, seq_len), generator=torch.Generator().manual_seed(7))


def their_model(seed: int, tied: bool) -> Qwen3ForCausalLM:
    ours = config_to_hf(CONFIG) | {"tie_word_embeddings": tied}
    del ours["architectures"], ours["torch_dtype"], ours["rope_theta"]
    model = Qwen3ForCausalLM(Qwen3Config(**ours)).eval()
    large_weights(model, seed)
    return model


@pytest.mark.parametrize("tied", [False, True])
def test_qwen3_of_transformers_read_by_us_gives_the_same_logits_and_loss(tmp_path, tied):
    theirs = their_model(seed=1, tied=tied)
    theirs.save_pretrained(tmp_path)
    ours = read_folder(tmp_path)
    ids_BT = random_ids(3, 50)
    expected = theirs(ids_BT, labels=ids_BT)
    torch.testing.assert_close(ours(ids_BT), expected.logits, atol=2e-4, rtol=2e-4)
    targets_BT = torch.cat([ids_BT[:, 1:], torch.full((3, 1), IGNORE_INDEX)], dim=1)
    loss_sum, n = language_model_loss(ours, {"ids_BT": ids_BT, "targets_BT": targets_BT})
    torch.testing.assert_close(loss_sum / n, expected.loss, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_our_decoder_read_by_transformers_gives_the_same_logits(tmp_path, tied):
    ours = Decoder(DecoderConfig(**{**_fields(CONFIG), "tie_embeddings": tied}))
    large_weights(ours, seed=2)
    write_folder(tmp_path, ours)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids_BT = random_ids(2, 64)
    torch.testing.assert_close(ours(ids_BT), theirs(ids_BT).logits, atol=2e-4, rtol=2e-4)


def test_export_then_import_gives_the_same_weights_and_config(tmp_path):
    ours = Decoder(CONFIG)
    large_weights(ours, seed=3)
    write_folder(tmp_path, ours)
    back = read_folder(tmp_path)
    assert back.cfg == ours.cfg
    for (name, weight), (name_back, weight_back) in zip(
        ours.named_parameters(), back.named_parameters(), strict=True
    ):
        assert name == name_back
        assert torch.equal(weight, weight_back), name


def test_sharded_folder_reads_like_a_whole_one(tmp_path):
    theirs = their_model(seed=4, tied=False)
    theirs.save_pretrained(tmp_path, max_shard_size="8KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    ids_BT = random_ids(1, 20)
    torch.testing.assert_close(read_folder(tmp_path)(ids_BT), theirs(ids_BT).logits, atol=2e-4, rtol=2e-4)


def test_classifier_logits_equal_transformers_on_padded_rows():
    ours = SequenceClassifier(CONFIG, n_classes=3)
    large_weights(ours, seed=5)
    config = config_to_hf(CONFIG) | {"num_labels": 3, "pad_token_id": 0}
    del config["architectures"], config["torch_dtype"], config["rope_theta"]
    theirs = Qwen3ForSequenceClassification(Qwen3Config(**config)).eval()
    theirs.load_state_dict(dict(ours.state_dict()))
    ids_BT, lengths_B = random_ids(3, 12).clamp(min=1), torch.tensor([12, 5, 1])
    for row, length in enumerate(lengths_B.tolist()):
        ids_BT[row, length:] = 0
    mask_BT = torch.arange(12)[None, :] < lengths_B[:, None]
    expected = theirs(ids_BT, attention_mask=mask_BT.long()).logits
    torch.testing.assert_close(ours(ids_BT, lengths_B), expected, atol=2e-4, rtol=2e-4)


def test_weight_without_a_place_is_named(tmp_path):
    write_folder(tmp_path, Decoder(CONFIG))
    weights = load_file(tmp_path / "model.safetensors")
    save_file(weights | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(40)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"no place .*q_proj\.bias"):
        read_folder(tmp_path)


def test_place_without_a_weight_is_named(tmp_path):
    write_folder(tmp_path, Decoder(CONFIG))
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing.*layers\.2\.mlp\.up_proj"):
        read_folder(tmp_path)


def test_tied_config_with_two_different_matrices_is_refused():
    decoder = Decoder(DecoderConfig(**{**_fields(CONFIG), "tie_embeddings": True}))
    weights = {name: weight.detach().clone() for name, weight in decoder.named_parameters()}
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1
    with pytest.raises(ValueError, match=r"lm_head\.weight differs"):
        weights_from_hf(decoder, weights)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "llama"}, "llama"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "yarn"),
        ({"layer_types": ["sliding_attention"]}, "sliding_attention"),
        ({"hidden_size": None}, "hidden_size"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_config_that_we_cannot_compute_is_refused_by_name(change, named):
    with pytest.raises(ValueError, match=named):
        config_from_hf(config_to_hf(CONFIG) | change)


def test_folder_with_pickled_weights_only_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config_to_hf(CONFIG)))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="neither"):
        read_folder(tmp_path)


def test_index_that_points_outside_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config_to_hf(CONFIG)))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(ValueError, match="outside"):
        read_folder(tmp_path)


def _fields(cfg: DecoderConfig) -> dict:
    return {name: getattr(cfg, name) for name in DecoderConfig.__dataclass_fields__}
