"""Models made elsewhere in the format of this project: the same weights, whole or not at all."""

import dataclasses

import pytest
import torch

from model.hf.files import write_folder
from model.hf.gguf import write_gguf
from model.hf.importing import import_model
from model.hf.tokenizer import ExportedTokenizer
from model.network.decoder import Decoder
from model.network.heads import SequenceClassifier
from model.network.registry import load_classifier, load_decoder

IDS_BT = torch.tensor([[1, 5, 90, 3, 3, 61, 0, 17, 42, 8, 8, 2]])
GGUF_DECODERS = (
    "qwen3",
    "qwen3-tied",
    "qwen3-linear",
    "llama",
    "llama-biases",
    "gpt2",
    "gpt2-untied",
    "qwen2",
    "arcee",
)
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


def same_logits(one: torch.nn.Module, other: torch.nn.Module) -> None:
    with torch.no_grad():
        torch.testing.assert_close(one(IDS_BT), other(IDS_BT), rtol=0, atol=0)


def test_import_of_a_folder_keeps_every_weight(cfg, large_weights, tmp_path):
    decoder = large_weights(Decoder(cfg), seed=1)
    write_folder(tmp_path / "theirs", decoder)
    imported = import_model(tmp_path / "theirs", tmp_path / "ours")
    same_logits(load_decoder(tmp_path / "ours"), decoder)
    assert imported.kind == "decoder" and imported.stored == ("F32",)
    assert imported.n_parameters == sum(weight.numel() for weight in decoder.parameters())


def test_import_of_a_folder_in_shards_and_bfloat16(decoders, large_weights, tmp_path):
    decoder = large_weights(Decoder(decoders["qwen3"]), seed=1)
    write_folder(tmp_path / "theirs", decoder, dtype="bfloat16", max_shard_bytes=9000)
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    assert import_model(tmp_path / "theirs", tmp_path / "ours").stored == ("BF16",)
    with torch.no_grad():
        for weight in decoder.parameters():
            weight.copy_(weight.bfloat16())
    same_logits(load_decoder(tmp_path / "ours"), decoder)


def test_import_of_a_classifier_keeps_its_labels(decoders, large_weights, tmp_path):
    classifier = large_weights(SequenceClassifier(decoders["llama"], 3), seed=2)
    write_folder(tmp_path / "theirs", classifier, labels=("no", "perhaps", "yes"))
    imported = import_model(tmp_path / "theirs", tmp_path / "ours")
    loaded, labels = load_classifier(tmp_path / "ours")
    assert imported.kind == "sequence_classifier" and labels == ("no", "perhaps", "yes")
    for (name, one), (_, other) in zip(loaded.named_parameters(), classifier.named_parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("name", GGUF_DECODERS)
def test_import_of_our_gguf_export_is_the_exported_model(decoders, large_weights, tmp_path, name):
    cfg = dataclasses.replace(decoders[name], d_model=40 if name == "qwen2" else decoders[name].d_model)
    decoder = large_weights(Decoder(cfg), seed=4)
    write_gguf(tmp_path / "a.gguf", decoder, TOKENIZER, name="a name")
    imported = import_model(tmp_path / "a.gguf", tmp_path / "ours")
    assert (imported.family, imported.name) == (name.split("-")[0], "a name")
    loaded = load_decoder(tmp_path / "ours")
    assert loaded.cfg == decoder.cfg
    same_logits(loaded, decoder)
