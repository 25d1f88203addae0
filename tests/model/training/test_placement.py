"""Trained models on the device that computes. A CPU build of torch has one other device, "meta": what has moved there
keeps its shape and loses its numbers, so that a path which forgets to move something fails in another way."""

import math

import numpy as np
import pytest
import torch

from model import evaluate
from model.cli import main
from model.data.token_shards import read_token_shard, read_token_shards, write_token_shard
from model.generation.decode import pack
from model.generation.generate import generate
from model.generation.sample_config import SampleConfig
from model.network.decoder import Decoder
from model.network.registry import load_decoder
from model.network.shape import DecoderConfig
from model.training import placement
from model.training.machine import precision, product_dtype, training_device
from model.training.memory import OutOfMemory, memory_explained
from model.training.placement import for_evaluation, for_generation
from model.training.weights import named_weights

CONFIG = DecoderConfig(
    vocab_size=29, n_layers=2, n_heads=2, n_kv_heads=1, d_model=16, d_head=8, d_ff=24, max_seq_len=16
)
GREEDY = SampleConfig(max_new_tokens=8, temperature=0.0)


@pytest.fixture
def decoder(trained) -> Decoder:
    return load_decoder(trained)


@pytest.fixture
def shards(corpus):
    return read_token_shards(corpus / "shards", "validation")


@pytest.fixture
def on_meta(monkeypatch):
    monkeypatch.setattr(placement, "training_device", lambda: torch.device("meta"))


@pytest.mark.parametrize("place", [for_evaluation, for_generation])
def test_model_on_a_cpu_keeps_its_weights_to_the_bit(place, decoder):
    before = {name: weight.clone() for name, weight in named_weights(decoder).items()}
    placed = place(decoder)
    assert all(torch.equal(weight, before[name]) for name, weight in named_weights(placed).items())
    assert {weight.dtype for weight in placed.parameters()} == {torch.float32}


def test_evaluation_moves_model_and_tokens_to_the_device_and_reads_only_its_results(on_meta, decoder, shards):
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        evaluate.document_losses(for_evaluation(decoder), shards)


def test_generation_moves_model_and_prompt_to_the_device(on_meta, decoder):
    with pytest.raises(RuntimeError, match="meta tensor"):
        generate(for_generation(decoder), [[1, 2], [3]], GREEDY)


@pytest.mark.parametrize("command", ["evaluate", "sample"])
def test_commands_run_on_the_device(command, on_meta, trained, corpus, capsys):
    argument = str(corpus / "shards") if command == "evaluate" else "ka"
    try:
        assert main([command, str(trained), argument]) == 1
    except RuntimeError as error:
        assert "meta tensor" in str(error)
    else:
        assert "meta tensor" in capsys.readouterr().err


def test_weights_in_bfloat16_generate_and_predict_what_those_in_float32_do(monkeypatch, decoder, shards):
    """What a GPU would do, in its number format, by a CPU that emulates it."""
    expected = evaluate.document_losses(decoder, shards).bits_per_byte
    monkeypatch.setattr(evaluate, "precision", lambda device: torch.autocast("cpu", torch.bfloat16))
    assert evaluate.document_losses(decoder, shards).bits_per_byte == pytest.approx(expected, rel=0.005)
    ids_BT = torch.arange(12)[None]
    logits_BTV = decoder(ids_BT)
    monkeypatch.setattr(placement, "product_dtype", lambda device: torch.bfloat16)
    narrow = for_generation(decoder)
    assert {weight.dtype for weight in narrow.parameters()} == {torch.bfloat16}
    assert (narrow(ids_BT).float() - logits_BTV).abs().max() < 0.02 * logits_BTV.abs().max()
    for model in (narrow, pack(narrow)):
        (text,) = generate(model, [[1, 2, 3]], GREEDY)
        assert len(text) == 8


def test_device_without_room_is_an_error_of_one_line(capsys):
    with (
        pytest.raises(OutOfMemory, match=r"^out of memory \(.*\): take less$") as error,
        memory_explained("take less"),
    ):
        torch.empty(10**15)
    assert "\n" not in str(error.value)
    with pytest.raises(RuntimeError, match="size") as other, memory_explained("take less"):
        torch.zeros(2) + torch.zeros(3)
    assert not isinstance(other.value, OutOfMemory)


@pytest.mark.gpu
def test_gpu_evaluates_and_generates_what_the_cpu_does(tmp_path):
    torch.manual_seed(0)
    model = Decoder(CONFIG).eval()
    for weight in model.parameters():
        weight.data.normal_(std=0.3)
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 29, n) for n in (40, 9, 17)]
    write_token_shard(tmp_path / "0.arrow", ["a", "b", "c"], [90, 20, 40], texts, vocab_size=29)
    shards = [read_token_shard(tmp_path / "0.arrow")]
    expected, written = evaluate.document_losses(model, shards), generate(model, [[1, 2, 3]], GREEDY)
    device = training_device()
    assert device.type == "cuda" and isinstance(precision(device), torch.autocast)
    losses = evaluate.document_losses(for_evaluation(model), shards)
    assert losses.bits_per_byte == pytest.approx(expected.bits_per_byte, rel=0.02)
    assert np.array_equal(losses.n_tokens, expected.n_tokens) and math.isfinite(losses.perplexity)
    on_gpu = for_generation(model)
    assert next(on_gpu.parameters()).dtype is product_dtype(device)
    assert generate(pack(on_gpu), [[1, 2, 3]], GREEDY)[0][0] == written[0][0]
