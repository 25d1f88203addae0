"""The estimate beside what autograd keeps and what a process takes; the micro-batch; out of memory in words."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from model.network.decoder import new_decoder
from model.network.shape import DecoderConfig
from model.network.size import n_hidden_matrix_parameters, n_parameters
from model.network.visible import CAUSAL, Visible
from model.training.config import TrainConfig
from model.training.memory import (
    MICRO_TOKENS,
    SAFE_SHARE,
    OutOfMemory,
    chosen_micro_batch,
    estimate,
    explained_out_of_memory,
    floats_per_token,
)

DECODER = DecoderConfig(
    vocab_size=50, n_layers=3, n_heads=4, n_kv_heads=4, d_model=64, d_head=16, d_ff=192, max_seq_len=64
)
GPT2 = {"norm": "layernorm", "positions": "learned", "qk_norm": False, "mlp": "gelu_tanh", "d_ff": 256}
TRAIN = TrainConfig(n_steps=1, rows=16, seq_len=64)
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def bytes_kept(cfg: DecoderConfig, train: TrainConfig, rows: int = 4) -> int:
    """What autograd keeps of a forward pass, each piece of memory once, without weights and tables."""
    model = new_decoder(cfg, 0)
    model.trunk.recompute_layers(train.activation_checkpointing)
    known = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in known:
            kept[place] = tensor
        return tensor

    ids_BT = torch.zeros(rows, train.seq_len, dtype=torch.int64)
    visible = Visible.within(ids_BT) if train.document_mask else CAUSAL
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        x_BTD = model.trunk(ids_BT, visible=visible)
    assert x_BTD.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_kv_heads": 1},
        {"qk_norm": False},
        {"mlp": "relu2"},
        {"d_ff": 64},
        {"n_heads": 8, "n_kv_heads": 8},
        GPT2,
    ],
    ids=str,
)
def test_estimate_of_activations_lies_within_a_half_of_what_autograd_keeps(changes):
    cfg = dataclasses.replace(DECODER, **changes)
    assert bytes_kept(cfg, TRAIN) / 1.1 < 4 * estimate(cfg, TRAIN, "cpu").row < 1.6 * bytes_kept(cfg, TRAIN)


def test_estimate_knows_what_activation_checkpointing_saves():
    """Kept between layers: their inputs; the estimate adds the one layer that is computed again."""
    train = dataclasses.replace(TRAIN, activation_checkpointing=True)
    again = 4 * 4 * floats_per_token(DECODER) * TRAIN.seq_len
    without = 4 * estimate(DECODER, train, "cpu").row - again
    assert bytes_kept(DECODER, train) / 1.1 < without < 2 * bytes_kept(DECODER, train) < bytes_kept(DECODER, TRAIN)


def test_estimate_counts_the_mask_between_documents():
    masked = dataclasses.replace(TRAIN, document_mask=True)
    kept = bytes_kept(DECODER, masked) - bytes_kept(DECODER, TRAIN)
    counted = 4 * (estimate(DECODER, masked, "cpu").row - estimate(DECODER, TRAIN, "cpu").row)
    assert 0 < kept <= counted


def test_estimate_for_a_gpu_counts_a_mask_only_where_attention_has_to_take_one():
    """Documents and windows are segments for flash attention, whose heads are a multiple of 8 wide."""
    masked = dataclasses.replace(TRAIN, document_mask=True)
    assert estimate(DECODER, masked, "cuda").row == estimate(DECODER, TRAIN, "cuda").row
    odd = dataclasses.replace(DECODER, d_head=20)
    assert estimate(odd, masked, "cuda").row > estimate(odd, TRAIN, "cuda").row


def test_estimate_of_the_state_is_four_numbers_a_weight_with_adamw_and_three_with_muon():
    cfg = dataclasses.replace(DECODER, vocab_size=1, n_layers=40)
    n_bytes = 4 * sum(weight.numel() for weight in new_decoder(cfg, 0).parameters())
    assert estimate(cfg, TRAIN, "cpu").state == pytest.approx(3 * n_bytes, rel=0.02)
    assert estimate(cfg, dataclasses.replace(TRAIN, muon_lr=None), "cpu").state == pytest.approx(4 * n_bytes)


@pytest.mark.parametrize(("rows_that_fit", "expected"), [(100, 16), (15.5, 8), (7.9, 4), (1.2, 1), (0, 1), (-1, 1)])
def test_micro_batch_is_the_largest_divisor_of_the_rows_that_fits(rows_that_fit, expected):
    """Only what is uncertain gets a reserve; weights and optimiser state are exact."""
    parts = estimate(DECODER, TRAIN, "cpu")
    free = parts.state + int((parts.logits + rows_that_fit * parts.row) / SAFE_SHARE) + 10
    assert chosen_micro_batch(DECODER, TRAIN, CPU, 16, free_bytes=free) == expected


def test_micro_batch_is_the_same_before_and_after_the_state_exists():
    """State that exists is no longer free memory, and must not be counted a second time."""
    parts = estimate(DECODER, TRAIN, "cpu")
    free = parts.state + int((parts.logits + 8.5 * parts.row) / SAFE_SHARE)
    for held_bytes in (0, parts.state // 2, parts.state):
        rest = free - held_bytes
        assert chosen_micro_batch(DECODER, TRAIN, CPU, 16, free_bytes=rest, held_bytes=held_bytes) == 8


def test_micro_batch_of_5_billion_parameters_on_a_gpu_of_139_gib_is_more_than_one():
    """The formula alone leaves room for seven rows; weights and momenta were counted twice, and then halved."""
    layers = {"n_layers": 24, "n_heads": 32, "n_kv_heads": 32, "d_model": 4096, "d_head": 128, "d_ff": 11008}
    cfg = DecoderConfig(vocab_size=50_304, max_seq_len=2048, **layers)
    train = TrainConfig(n_steps=1, rows=256, seq_len=2048)
    parts = estimate(cfg, train, "cuda")
    held_bytes = 4 * n_parameters(cfg) + 4 * n_hidden_matrix_parameters(cfg)  # weights and Muon's momentum
    free = 139 * 2**30 - held_bytes
    expected = int((SAFE_SHARE * (139 * 2**30 - parts.state) - parts.logits) // parts.row)
    chosen = chosen_micro_batch(cfg, train, GPU, 256, free_bytes=free, held_bytes=held_bytes)
    assert chosen == 1 << (expected.bit_length() - 1) and chosen > 1


def test_estimate_on_a_gpu_is_that_of_a_count_by_hand():
    """bfloat16 copies of the weights, 8 bytes per logit, three quarters of float32's activations."""
    shape = {"n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "d_model": 8, "d_head": 4, "d_ff": 16}
    cfg = DecoderConfig(vocab_size=100, max_seq_len=32, tie_embeddings=True, qk_norm=False, **shape)
    train = TrainConfig(n_steps=1, rows=4, seq_len=32)
    parts = estimate(cfg, train, "cuda")
    matrices = 2 * (64 + 32 + 32 + 64 + 3 * 128)  # per layer: queries, keys, values, output, feed-forward
    weights = matrices + 800 + 5 * 8  # the embedding, which is the head, and five norms
    assert parts.state == 4 * (2 * weights + matrices + 2 * (weights - matrices)) + 2 * weights
    assert parts.logits == 8 * 100 * 2**21 + 2 * 4 * 800  # 2^21 rows of 100 float32 logits are below 1 GiB
    per_token = 6 * 8 + 2 * (8 + 4) + 4 * 16  # norms, attention, feed-forward
    assert parts.row == 32 * (0.75 * 4 * 2 * per_token + 3 * 4 * 8)
    assert estimate(cfg, train, "cpu").state == parts.state - 2 * weights


def test_estimate_of_fsdp_is_a_shard_of_the_state_and_the_layers_that_are_whole():
    one, four = (estimate(DECODER, TRAIN, "cpu", n_shards) for n_shards in (1, 4))
    n_hidden = n_hidden_matrix_parameters(DECODER)
    n_whole = n_parameters(DECODER) - n_hidden + 2 * n_hidden // 3  # of three layers two
    assert (one.gathered, four.state, four.gathered) == (0, one.state // 4, 2 * 4 * n_whole)


def test_micro_batch_stays_below_what_pays():
    long = dataclasses.replace(TRAIN, seq_len=MICRO_TOKENS // 4)
    assert chosen_micro_batch(DECODER, long, CPU, 16, free_bytes=1 << 50) == 4


@pytest.mark.parametrize("allocate", [torch.empty, np.empty], ids=["torch", "numpy"])
def test_out_of_memory_names_settings_their_values_and_the_checkpoint(allocate):
    with (
        pytest.raises(
            OutOfMemory,
            match=r"micro_batch=4 \(now 8.*activation_checkpointing=True \(now F.*seq_len \(now 64.*step-3",
        ),
        explained_out_of_memory(TRAIN, 8, lambda: Path("step-3")),
    ):
        allocate(1 << 50)


def test_out_of_memory_offers_nothing_that_is_already_done():
    train = dataclasses.replace(TRAIN, activation_checkpointing=True)
    with pytest.raises(OutOfMemory) as caught, explained_out_of_memory(train, 1, lambda: None):
        torch.empty(1 << 50)
    assert "micro_batch=" not in str(caught.value) and "activation_checkpointing" not in str(caught.value)
    assert "the run starts again" in str(caught.value)


def test_other_errors_pass_through_unchanged():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), explained_out_of_memory(TRAIN, 8, Path):
        torch.ones(2, 3) @ torch.ones(2, 3)


PEAK = """
import json, sys, torch
from model.training.config import DecoderConfig, TrainConfig
from model.network.decoder import new_decoder
from model.training.memory import estimate
from model.training.step import new_state, train_step
torch.set_num_threads(1)
shape = {"n_layers": 6, "n_heads": 4, "n_kv_heads": 4, "d_model": 256, "d_head": 64, "d_ff": 704}
cfg = DecoderConfig(vocab_size=4096, max_seq_len=256, **shape)
train = TrainConfig(n_steps=9, rows=16, seq_len=256, micro_batch=16, activation_checkpointing=sys.argv[1] == "True")
def peak():  # not ru_maxrss, which a process takes over from the one that started it
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
small = TrainConfig(n_steps=9, rows=1, seq_len=8, micro_batch=1)
tiny = DecoderConfig(vocab_size=9, n_layers=1, n_heads=1, n_kv_heads=1, d_model=8, d_head=8, d_ff=8, max_seq_len=8)
def batch(c, t): ids = torch.zeros(t.rows, t.seq_len, dtype=torch.int64); return {"ids_BT": ids, "targets_BT": ids}
train_step(new_state(new_decoder(tiny, 0), small), batch(tiny, small), small)  # libraries are loaded
before = peak()
state = new_state(new_decoder(cfg, 0), train)
state.model.trunk.recompute_layers(train.activation_checkpointing)
for _ in range(2):
    train_step(state, batch(cfg, train), train)
print(json.dumps([peak() - before, estimate(cfg, train, "cpu").total(16)]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_estimate_lies_within_a_factor_of_two_of_a_training_process_peak(activation_checkpointing):
    answer = subprocess.run(
        [sys.executable, "-c", PEAK, str(activation_checkpointing)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    measured, estimated = json.loads(answer.stdout)
    assert measured / 2 < estimated < 2 * measured


def test_estimate_of_adapters_has_neither_gradients_nor_moments_of_the_base():
    n_trained, n_all = 1000, n_parameters(DECODER)
    parts, whole = (estimate(DECODER, TRAIN, "cpu", n_trained=n) for n in (n_trained, None))
    assert parts.state == 4 * (n_all + 4 * n_trained)
    assert whole.logits - parts.logits == 2 * 4 * DECODER.vocab_size * DECODER.d_model  # the head's gradient
    assert parts.row == whole.row


PEAKS_OF_STEPS = """
import json
import torch
from model.network.decoder import new_decoder
from model.network.lora import add_lora
from model.network.lora_config import LoraConfig
from model.network.shape import DecoderConfig
from model.training.config import TrainConfig
from model.training.memory import estimate
from model.training.step import new_state, train_step
from model.training.weights import n_trained_parameters
shape = {"n_layers": 8, "n_heads": 8, "n_kv_heads": 8, "d_model": 512, "d_head": 64, "d_ff": 2048}
cfg = DecoderConfig(vocab_size=20_000, max_seq_len=64, **shape)
train = TrainConfig(n_steps=2, rows=2, seq_len=64, micro_batch=2, muon_lr=None)
torch.set_num_threads(1)
def peak():  # of this process; ru_maxrss begins with what the parent had
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
before = peak()
for tuning in ("lora", "full"):  # the larger one last: a peak does not fall
    model = new_decoder(cfg, 0)
    if tuning == "lora":
        add_lora(model, LoraConfig(rank=4), 0)
    state = new_state(model, train)
    for k in range(2):
        ids = torch.randint(0, 20_000, (2, 65))
        train_step(state, {"ids_BT": ids[:, :-1], "targets_BT": ids[:, 1:]}, train)
    parts = estimate(cfg, train, "cpu", n_trained=n_trained_parameters(model))
    print(json.dumps([peak() - before, parts.total(2)]))
    del model, state
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_estimate_of_adapters_lies_within_a_half_of_the_peak_that_is_measured():
    """And that is less than half of what training all weights takes."""
    answer = subprocess.run([sys.executable, "-c", PEAKS_OF_STEPS], capture_output=True, encoding="utf-8", check=True)
    (lora, expected), (full, _) = map(json.loads, answer.stdout.splitlines())
    assert expected / 1.5 < lora < 1.5 * expected
    assert lora < full / 2
