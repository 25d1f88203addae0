"""Adapters against peft: its model on the exported base, and ours with the adapters that it has written."""

import copy
import dataclasses
import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from model.hf.adapter import read_adapter, write_adapter
from model.hf.files import write_folder
from model.network.decoder import Decoder
from model.network.encoder import MaskedLM
from model.network.heads import SequenceClassifier, SpanClassifier, TokenClassifier
from model.network.lora import lora_layers, merge_lora
from model.network.lora_config import LoraConfig
from model.network.registry import describe, kind_of, save_model, write_model
from model.training.adapters import start_adapters
from model.training.files import WEIGHTS, read_json, sha256
from model.training.weights import trained_weights
from tests.model.hf.conftest import QWEN3
from tests.model.hf.encoders import ENCODERS

# peft asks transformers for a property under its old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TOLERANCE = 1e-4
FAMILIES = ("qwen3", "llama-biases", "gpt2", "qwen2")
IDS_BT = torch.randint(2, 97, (3, 40), generator=torch.Generator().manual_seed(7))  # 1 is padding to RoBERTa
LENGTHS_B = torch.tensor([40, 13, 1])


def equal(got: torch.Tensor, expected: torch.Tensor) -> bool:
    return got.shape == expected.shape and bool((got - expected).abs().max() <= TOLERANCE * expected.abs().max())


def written_adapter(folder: Path, base: nn.Module, lora: LoraConfig, large_weights, labels=None) -> nn.Module:
    """Saves `base` as folder/base, exports it as folder/exported, writes adapters of it as folder/adapter and in
    peft's files as folder/peft. Returns the model with adapters."""
    description = describe(base.cfg, labels, kind=kind_of(base))  # type: ignore[arg-type]
    (folder / "base").mkdir()
    save_model(folder / "base", base, description)
    write_folder(folder / "exported", base, labels=labels)  # type: ignore[arg-type]
    model = copy.deepcopy(base)
    description = start_adapters(model, description, lora, folder / "base", seed=0)
    trained = nn.Module()
    for i, weight in enumerate(weight for weight in model.parameters() if weight.requires_grad):
        trained.register_parameter(str(i), weight)
    large_weights(trained, 5)
    write_model(folder / "adapter", trained_weights(model), description)
    write_adapter(folder / "peft", folder / "adapter")
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("targets", [(), ("q_proj", "k_proj", "v_proj", "up_proj")], ids=["all", "some"])
def test_peft_on_the_exported_base_gives_the_logits_of_our_adapters(
    family, targets, decoders, large_weights, tmp_path
):
    base = large_weights(Decoder(decoders[family]), 2)
    model = written_adapter(tmp_path, base, LoraConfig(rank=3, alpha=0.4, targets=targets), large_weights)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "peft").eval()
    expected_BTV = theirs(IDS_BT).logits
    assert equal(model(IDS_BT), expected_BTV) and not equal(base(IDS_BT), expected_BTV)
    again = copy.deepcopy(base)
    read_adapter(tmp_path / "peft", again, sha256(tmp_path / "base" / WEIGHTS))
    assert equal(again(IDS_BT), expected_BTV)
    if family != "gpt2":  # no layers are joined: the adapters are the same to the bit
        for (_, got), (_, expected) in zip(lora_layers(again), lora_layers(model), strict=True):
            assert torch.equal(got.lora_b, expected.lora_b) and torch.equal(got.lora_a, expected.lora_a)
    merge_lora(again)
    assert equal(again(IDS_BT), expected_BTV)


PEFT_CONFIGS = {
    "default": {},
    "all": {"target_modules": "all-linear", "r": 3, "lora_alpha": 1},
    "patterns": {
        "target_modules": "all-linear",
        "r": 3,
        "rank_pattern": {"{last}": 5},
        "alpha_pattern": {"{last}": 2},
    },
    "rslora": {"use_rslora": True, "layers_to_transform": [1]},
}


@torch.no_grad()
@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
@pytest.mark.parametrize("name", PEFT_CONFIGS)
def test_adapters_of_peft_give_its_logits_in_ours(family, name, decoders, large_weights, tmp_path):
    base, last = large_weights(Decoder(decoders[family]), 2), {"gpt2": "c_fc", "qwen3": "up_proj"}[family]
    settings = json.loads(json.dumps(PEFT_CONFIGS[name]).replace("{last}", last))
    write_folder(tmp_path / "exported", base)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32)
    theirs = peft.get_peft_model(
        theirs, peft.LoraConfig(**{"r": 4, "lora_alpha": 2, **settings, "fan_in_fan_out": family == "gpt2"})
    )
    large_weights(trained_part(theirs), 4)
    theirs.eval().save_pretrained(tmp_path / "peft")
    expected_BTV = theirs(IDS_BT).logits
    assert not equal(base(IDS_BT), expected_BTV)
    read_adapter(tmp_path / "peft", base)
    assert equal(base(IDS_BT), expected_BTV)


def trained_part(theirs: nn.Module) -> nn.Module:
    trained = nn.Module()
    for i, weight in enumerate(weight for weight in theirs.parameters() if weight.requires_grad):
        trained.register_parameter(str(i), weight)
    return trained


@torch.no_grad()
def test_classifier_has_its_head_in_the_files_of_peft_and_gets_it_back(decoders, large_weights, tmp_path):
    base = large_weights(SequenceClassifier(decoders["qwen3"], 3), 2)
    model = written_adapter(tmp_path, base, LoraConfig(rank=2), large_weights, labels=("a", "b", "c"))
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "exported", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "peft").eval()
    theirs.config.pad_token_id = 0
    expected_1C = theirs(IDS_BT[:1]).logits
    assert (
        equal(model(IDS_BT[:1], LENGTHS_B[:1]), expected_1C) and theirs.peft_config["default"].task_type == "SEQ_CLS"
    )
    read_adapter(tmp_path / "peft", base)
    assert equal(base(IDS_BT, LENGTHS_B), model(IDS_BT, LENGTHS_B)) and base.score.weight.requires_grad


@torch.no_grad()
@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_adapters_of_encoders_have_the_logits_of_peft_both_ways(family, large_weights, tmp_path):
    """ModernBERT joins queries, keys and values, and gate and up."""
    base = large_weights(MaskedLM(ENCODERS[family]), 2)
    model = written_adapter(tmp_path, base, LoraConfig(rank=2), large_weights)
    theirs = AutoModelForMaskedLM.from_pretrained(tmp_path / "exported", dtype=torch.float32)
    expected_BTV = peft.PeftModel.from_pretrained(copy.deepcopy(theirs), tmp_path / "peft").eval()(IDS_BT).logits
    assert equal(model(IDS_BT), expected_BTV) and not equal(base(IDS_BT), expected_BTV)
    targets = {"modernbert": ["Wqkv", "Wo"]}.get(family, ["query", "value"])
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(r=3, target_modules=targets))
    large_weights(trained_part(theirs), 4)
    theirs.eval().save_pretrained(tmp_path / "theirs")
    read_adapter(tmp_path / "theirs", base)
    assert equal(base(IDS_BT), theirs(IDS_BT).logits)


@torch.no_grad()
def test_classifier_on_an_encoder_has_both_layers_of_its_head_in_the_files_of_peft(large_weights, tmp_path):
    base = large_weights(SequenceClassifier(ENCODERS["bert"], 3), 2)
    model = written_adapter(tmp_path, base, LoraConfig(rank=2), large_weights, labels=("a", "b", "c"))
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "exported", dtype=torch.float32)
    expected_1C = peft.PeftModel.from_pretrained(theirs, tmp_path / "peft").eval()(IDS_BT[:1]).logits
    assert equal(model(IDS_BT[:1], LENGTHS_B[:1]), expected_1C)


@torch.no_grad()
@pytest.mark.parametrize("family", ["bert", "modernbert", "llama", "gpt2"])
def test_taggers_and_span_models_have_their_heads_in_the_files_of_peft(family, decoders, large_weights, tmp_path):
    cfg = (ENCODERS | decoders)[family]
    length = LENGTHS_B[:1]
    for make, reader, labels, task_type in (
        (lambda: TokenClassifier(cfg, 3), AutoModelForTokenClassification, ("a", "b", "c"), "TOKEN_CLS"),
        (lambda: SpanClassifier(cfg), AutoModelForQuestionAnswering, None, "QUESTION_ANS"),
    ):
        (folder := tmp_path / task_type).mkdir()
        base = large_weights(make(), 2)
        model = written_adapter(folder, base, LoraConfig(rank=2), large_weights, labels=labels)
        theirs = reader.from_pretrained(folder / "exported", dtype=torch.float32)
        theirs = peft.PeftModel.from_pretrained(theirs, folder / "peft").eval()
        assert theirs.peft_config["default"].task_type == task_type
        out = theirs(IDS_BT[:1])
        expected = out.logits if labels else torch.stack([out.start_logits, out.end_logits], dim=2)
        assert equal(model(IDS_BT[:1], length), expected) and not equal(base(IDS_BT[:1], length), expected)
        read_adapter(folder / "peft", base)
        assert equal(base(IDS_BT[:1], length), expected)


@pytest.fixture
def folder(decoders, large_weights, tmp_path) -> Path:
    """With base/, adapter/ and peft/ of a small Qwen3."""
    cfg = dataclasses.replace(decoders["qwen3"], n_layers=1)
    written_adapter(tmp_path, large_weights(Decoder(cfg), 2), LoraConfig(rank=2), large_weights)
    return tmp_path


def read_into(folder: Path, **changes) -> nn.Module:
    """A new model with the adapters in folder/peft, whose config has `changes`."""
    model = Decoder(dataclasses.replace(QWEN3, n_layers=1))
    path = folder / "peft" / "adapter_config.json"
    path.write_text(json.dumps(read_json(path) | changes))
    read_adapter(folder / "peft", model)
    return model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "use_dora=True is not supported; merge these adapters in peft"),
        ({"bias": "all"}, "bias='all' is not supported, expected 'none'"),
        ({"peft_type": "IA3"}, "peft_type='IA3' is not supported, expected 'LORA'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' is not supported"),
        ({"trainable_token_indices": [1]}, r"trainable_token_indices=\[1\] is not supported"),
        ({"alpha_pattern": {"(a+)+$": 1}}, "alpha_pattern has regular expressions"),
        ({"alpha_pattern": [1]}, r"alpha_pattern=\[1\] must have a number for each name of a layer"),
        ({"alpha_pattern": {"q_proj": "2"}}, "alpha_pattern=.* must have a number for each name of a layer"),
        ({"lora_alpha": None}, "lora_alpha=None must be a number"),
    ],
)
def test_what_our_adapters_cannot_compute_is_refused(folder, changes, message):
    with pytest.raises(ValueError, match=rf"adapter_config\.json: {message}"):
        read_into(folder, **changes)


def test_files_that_are_not_adapters_of_this_model_are_refused(folder):
    path = folder / "peft" / "adapter_model.safetensors"
    tensors = load_file(path)
    first = next(name for name in sorted(tensors) if name.endswith("lora_A.weight"))
    without = {name: tensor for name, tensor in tensors.items() if name != first}
    foreign = {**tensors, "base_model.model.lm_head.lora_A.weight": torch.zeros(2, 4)}
    whole = {**tensors, "base_model.model.lm_head.weight": torch.zeros(2, 4)}
    narrow = {**tensors, first: torch.zeros(2, 3)}
    for content, message in (
        (without, "1 of 2 tensors are missing"),
        (foreign, r"lm_head is no linear layer of a block"),
        (whole, "modules_to_save: lm_head.weight has shape"),
        (narrow, r"lora_A.weight has shape \(2, 3\), expected"),
        ({**tensors, first: torch.tensor(1.0)}, r"lora_A.weight has shape \(\), expected \(1, "),
        ({**tensors, first: tensors[first][:0]}, r"lora_A.weight has shape \(0, \d+\), expected \(1, "),
        ({**tensors, first: tensors[first] * torch.nan}, "lora_A.weight has numbers that are not finite"),
        ({**tensors, first: tensors[first].to(torch.int8)}, "lora_A.weight has numbers that are not finite floats"),
        ({"x": torch.zeros(1)}, "holds no adapters"),
    ):
        save_file(content, path)
        with pytest.raises(ValueError, match=message):
            read_into(folder)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        read_into(folder)
    path.rename(path.with_name("adapter_model.bin"))
    with pytest.raises(ValueError, match=r"no adapter_model.safetensors; adapter_model.bin is pickled, may run code"):
        read_into(folder)
    with pytest.raises(ValueError, match=r"is not a folder of peft's: it has no adapter_config\.json"):
        read_adapter(folder / "base", Decoder(QWEN3))


def test_adapters_of_another_base_are_refused_by_its_sha256(folder):
    with pytest.raises(
        ValueError, match=f"belong to a base with the sha256 {sha256(folder / 'base' / WEIGHTS)}, not"
    ):
        read_adapter(folder / "peft", Decoder(dataclasses.replace(QWEN3, n_layers=1)), "0" * 64)
    read_into(folder)  # without a base to compare with


def test_half_of_a_joined_layer_cannot_be_written(decoders, large_weights, tmp_path):
    base = large_weights(Decoder(decoders["gpt2"]), 2)
    with pytest.raises(ValueError, match=r"k_proj has no adapter, but .* are one layer in this family's files"):
        written_adapter(tmp_path, base, LoraConfig(targets=("q_proj", "v_proj")), large_weights)
    assert not (tmp_path / "peft").exists()
