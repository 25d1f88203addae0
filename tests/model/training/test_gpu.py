"""What has to hold on a GPU: precision, kernels, no waiting within a step, exact resume. Never run yet: no device."""

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.network.attention import attention_plan
from model.network.decoder import Decoder, new_decoder
from model.network.registry import describe
from model.network.shape import DecoderConfig
from model.network.visible import Visible
from model.training.checkpoint import complete_checkpoints
from model.training.compilation import compile_layers, strictly_compiled
from model.training.config import TrainConfig
from model.training.loss import language_model_loss
from model.training.machine import precision, product_dtype
from model.training.memory import estimate
from model.training.run import Job, run
from model.training.step import new_state, train_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GPU, CPU = torch.device("cuda"), torch.device("cpu")
CFG = DecoderConfig(
    vocab_size=1001, n_layers=2, n_heads=4, n_kv_heads=2, d_model=256, d_head=64, d_ff=704, max_seq_len=128,
    tie_embeddings=True,
)  # fmt: skip
TRAIN = TrainConfig(
    n_steps=12, rows=4, seq_len=128, micro_batch=2, checkpoint_every=5, validate_every=12, deterministic=True
)


class Made:
    """Batches by number."""

    def n_rows(self, k: int) -> int:
        return TRAIN.rows

    def batch(self, k: int, rank: int = 0, n_ranks: int = 1) -> dict[str, torch.Tensor]:
        ids_BT = torch.randint(0, 1001, (4, 129), generator=torch.Generator().manual_seed(k))
        return {"ids_BT": ids_BT[:, :-1], "targets_BT": ids_BT[:, 1:]}

    def documents_of_batch(self, k: int) -> list[str]:
        return []


class StopsAt:
    def __init__(self, step: int = 0) -> None:
        self.step = step

    def metrics(self, step: int, values) -> None:
        if step == self.step:
            raise KeyError("killed")

    def checkpoint(self, path: Path, step: int, values) -> None: ...


def scattered(device: torch.device) -> Decoder:
    """A decoder whose heads do not begin at zero."""
    model, generator = new_decoder(CFG, 0), torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.empty(weight.shape).normal_(std=0.02, generator=generator))
    return model.to(device)


@pytest.mark.parametrize("is_compiled", [False, True])
def test_step_on_the_gpu_has_about_the_loss_and_gradient_norm_of_a_cpu_in_float32(is_compiled):
    reports = []
    for device in (CPU, GPU):
        model = scattered(device)
        if is_compiled and device is GPU:
            compile_layers(model)
        with strictly_compiled():
            reports.append(train_step(new_state(model, TRAIN), Made().batch(0), TRAIN))
    assert float(reports[1].loss) == pytest.approx(float(reports[0].loss), rel=0.01)
    assert float(reports[1].gradient_norm) == pytest.approx(float(reports[0].gradient_norm), rel=0.05)


def test_causal_attention_of_a_training_takes_flash():
    """sdpa_kernel raises where flash would not take the arguments."""
    model, batch = scattered(GPU), {name: tensor.cuda() for name, tensor in Made().batch(0).items()}
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
        with precision(GPU):
            loss, _ = language_model_loss(model, batch)
        loss.backward()


def test_attention_within_documents_takes_varlen_and_has_the_loss_of_a_mask_on_a_cpu():
    documents_BT = (torch.arange(128) // 37).expand(4, 128).contiguous()
    sizes = {"n_rows": 4, "n_queries": 128, "n_keys": 128, "d_head": 64}
    plan = attention_plan(Visible.within(documents_BT), device=GPU, dtype=product_dtype(GPU), **sizes)
    assert plan.kernel == "varlen"
    losses = []
    for device in (CPU, GPU):
        batch = {name: tensor.to(device) for name, tensor in Made().batch(0).items()}
        with precision(device):
            loss, _ = language_model_loss(scattered(device), batch | {"documents_BT": documents_BT})
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


def test_step_waits_for_nothing_on_the_gpu():
    state = new_state(scattered(GPU), TRAIN)
    batches = [{name: tensor.cuda() for name, tensor in Made().batch(k).items()} for k in range(2)]
    train_step(state, batches[0], TRAIN)  # makes AdamW's moments
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_step(state, batches[1], TRAIN)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_deterministic_run_that_was_broken_off_ends_with_the_bits_of_one_that_was_not(tmp_path):
    def job() -> Job:
        return Job(model=new_decoder(CFG, 0).to(GPU), cfg=TRAIN, description=describe(CFG), batches=Made())

    run(tmp_path / "whole", job(), StopsAt())
    with pytest.raises(KeyError):
        run(tmp_path / "killed", job(), StopsAt(7))
    run(tmp_path / "killed", job(), StopsAt())
    whole, killed = (complete_checkpoints(tmp_path / name / "checkpoints")[-1] for name in ("whole", "killed"))
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes()


def test_memory_of_a_step_is_below_twice_the_estimate():
    torch.cuda.reset_peak_memory_stats()
    train_step(new_state(scattered(GPU), TRAIN), Made().batch(0), TRAIN)
    assert torch.cuda.max_memory_allocated() < 2 * estimate(CFG, TRAIN, "cuda").total(2)
