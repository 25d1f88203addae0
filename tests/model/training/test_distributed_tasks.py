"""Two processes fine-tune a task as one does: each head, by adapters, with all weights, or the head alone.

Two children run two_task_processes.py (gloo, on the CPU), and what they leave on disk is compared with the training
of this process. Sums of float32 in another order differ by about 1e-7 of their size, so that after a few small steps
logits differ by about 1e-6.
"""

import itertools
from pathlib import Path

import pytest
import torch

from model.network.decoder import new_decoder
from model.network.encoder import new_masked_lm
from model.network.heads import SpanClassifier
from model.network.registry import describe, load_base_network, load_model, save_model
from model.network.shape import DecoderConfig, EncoderConfig, switches_of
from model.training.adapters import load_adapters
from model.training.curve import read_curve
from tests.model.training.test_distributed import both, ended_well
from tests.model.training.two_task_processes import KINDS, new_model, train

SIZES = {"vocab_size": 40, "n_layers": 2, "n_heads": 2, "d_model": 16, "d_head": 8, "d_ff": 24, "max_seq_len": 16}
RUNS = [
    *itertools.product(("decoder", "encoder"), KINDS, ("lora",)),
    *itertools.product(("encoder",), ("tokens", "span"), ("full",)),
    *itertools.product(("decoder",), ("label_sets", "tokens"), ("head",)),
]
CHILD = str(Path(__file__).with_name("two_task_processes.py"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Folders one/<run> and two/<run>, by the number of processes."""
    directory = tmp_path_factory.mktemp("tasks")
    torch.manual_seed(0)
    encoder_cfg = EncoderConfig(**SIZES, n_kv_heads=2, tie_embeddings=True, **switches_of("bert"))
    bases = {
        "decoder": new_decoder(DecoderConfig(**SIZES, n_kv_heads=1), 0),
        "encoder": new_masked_lm(encoder_cfg, 0),
    }
    for (name, base), number in itertools.product(bases.items(), ("one", "two")):
        for weight in base.parameters():
            torch.nn.init.normal_(weight, std=0.2, generator=torch.Generator().manual_seed(weight.numel()))
        save_model(directory / number / name, base, describe(base.cfg))
    for run in RUNS:
        train(directory / "one" / "-".join(run), *run)
    ended_well(both(directory / "two", *(":".join(["train", "-".join(run), *run]) for run in RUNS), child=CHILD))
    return directory


def outputs_of(model) -> torch.Tensor:
    """Logits of texts and of real tokens; log probabilities of the places of a span. What is added to all places of a
    text changes none of these, so that its gradient is rounding alone."""
    ids_BT, lengths = torch.arange(1, 37).view(3, 12), [12, 5, 9]
    with torch.inference_mode():
        logits = model.eval()(ids_BT, torch.tensor(lengths))
    if logits.dim() == 2:
        return logits
    rows = [of_row[:length] for of_row, length in zip(logits, lengths, strict=True)]
    return torch.cat([row.log_softmax(0) for row in rows] if isinstance(model, SpanClassifier) else rows)


@pytest.mark.parametrize("run", RUNS, ids="-".join)
def test_two_processes_train_the_model_of_one(runs, run):
    name, kind = "-".join(run), KINDS[run[1]][0]
    before = outputs_of(new_model(runs / "one" / run[0], run[1]))
    one, two = (outputs_of(load_model(runs / number / name, "cpu", kind)[0]) for number in ("one", "two"))
    assert (one - before).abs().max() > 1e-3
    torch.testing.assert_close(two, one, atol=2e-5, rtol=0)
    losses = [[line["validation_loss"] for line in read_curve(runs / n / name) if "validation_loss" in line]
              for n in ("one", "two")]  # fmt: skip
    assert len(losses[0]) > 2 and losses[1] == pytest.approx(losses[0], abs=1e-5)


@pytest.mark.parametrize("run", [run for run in RUNS if run[2] == "lora"], ids="-".join)
def test_adapters_of_two_processes_merged_are_the_model_beside_them(runs, run):
    folder, base = runs / "two" / "-".join(run), runs / "two" / run[0]
    model = new_model(base, run[1])
    load_adapters(folder / "adapter", model, base)
    merged = load_model(folder, "cpu", KINDS[run[1]][0])[0]
    torch.testing.assert_close(outputs_of(merged), outputs_of(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("run", [run for run in RUNS if run[2] == "head"], ids="-".join)
def test_a_head_trained_by_two_processes_leaves_the_trunk_as_it_was(runs, run):
    model = load_model(runs / "two" / "-".join(run), "cpu", KINDS[run[1]][0])[0]
    base = load_base_network(runs / "two" / run[0])
    weights = base.trunk.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in model.trunk.state_dict().items())
