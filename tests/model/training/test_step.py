"""One step and the loop: accumulation, padding, loss against torch, signals, loss that is not finite."""

import dataclasses
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from model.data.batch_layout import IGNORE_INDEX
from model.network.decoder import Decoder
from model.network.heads import SequenceClassifier, classifier_from
from model.network.shape import DecoderConfig
from model.training.config import TrainConfig
from model.training.draws import uniform_of_rows
from model.training.loop import Interrupted, fit
from model.training.loss import classification_loss, language_model_loss
from model.training.reports import Diverged
from model.training.spikes import with_step
from model.training.step import TrainState, new_state, train_step

CONFIG = DecoderConfig(
    vocab_size=37, n_layers=2, n_heads=2, n_kv_heads=1, d_model=16, d_head=8, d_ff=24, max_seq_len=12
)
TRAIN = TrainConfig(n_steps=6, rows=4, seq_len=12, micro_batch=4, checkpoint_every=2, validate_every=3)


def randomised(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.empty(weight.shape).normal_(std=0.2, generator=generator))
    return model


def decoder() -> Decoder:
    torch.manual_seed(0)
    model = Decoder(CONFIG)
    randomised(model)
    return model


def token_batch(k: int = 0, masked: bool = False) -> dict[str, torch.Tensor]:
    ids_BT = torch.randint(0, 37, (4, 13), generator=torch.Generator().manual_seed(k))
    targets_BT = ids_BT[:, 1:].clone()
    if masked:  # rows with 12, 9, 1 and 4 supervised targets
        targets_BT[1, :3] = targets_BT[2, :11] = targets_BT[3, 4:] = IGNORE_INDEX
    return {"ids_BT": ids_BT[:, :-1], "targets_BT": targets_BT}


class Numbered:
    """Batches whose number is their seed."""

    def n_rows(self, k: int) -> int:
        return 4

    def batch(self, k: int, rank: int = 0, n_ranks: int = 1) -> dict[str, torch.Tensor]:
        return token_batch(k)

    def documents_of_batch(self, k: int) -> list[str]:
        return [f"document-{k}-{row}" for row in range(4)]


@pytest.mark.parametrize("n_rows", [1, 2, 4])
def test_update_sees_the_gradient_of_the_mean_over_all_targets_however_rows_are_cut(n_rows):
    """Rows hold unequal numbers of targets: a mean of micro-batch means would be another gradient."""
    model, batch = decoder(), token_batch(masked=True)
    F.cross_entropy(model(batch["ids_BT"]).flatten(0, 1), batch["targets_BT"].flatten()).backward()
    expected = [weight.grad.clone() for weight in model.parameters()]
    model.zero_grad()
    cfg = dataclasses.replace(TRAIN, micro_batch=n_rows, gradient_clip=None)
    state = new_state(model, cfg)
    seen: list[torch.Tensor] = []
    state.optimizer.step = lambda factor: seen.extend(weight.grad.clone() for weight in model.parameters())
    assert train_step(state, batch, cfg).n_tokens == 48
    for gradient, mean_gradient in zip(seen, expected, strict=True):
        torch.testing.assert_close(gradient, mean_gradient, atol=1e-6, rtol=1e-4)


def test_step_reports_the_mean_loss_and_norm_of_the_supervised_targets():
    model, batch = decoder(), token_batch(masked=True)
    expected = F.cross_entropy(model(batch["ids_BT"]).flatten(0, 1), batch["targets_BT"].flatten())
    expected.backward()
    norm = torch.stack([w.grad.square().sum() for w in model.parameters()]).sum().sqrt()
    model.zero_grad()
    report = train_step(new_state(model, TRAIN), batch, TRAIN)
    torch.testing.assert_close(report.loss, expected.detach())
    torch.testing.assert_close(report.gradient_norm, norm)
    assert report.step == 1
    assert report.learning_rate == pytest.approx(TRAIN.muon_lr)


def test_gradient_clip_bounds_the_norm_and_spares_the_direction():
    seen = []
    for clip in (0.01, None):
        model = decoder()
        state = new_state(model, dataclasses.replace(TRAIN, gradient_clip=clip))
        state.optimizer.step = lambda factor, m=model: seen.append(
            torch.cat([w.grad.flatten() for w in m.parameters()])
        )
        train_step(state, token_batch(), state.optimizer.cfg)
    clipped, free = seen
    assert clipped.norm() == pytest.approx(0.01, rel=1e-3)
    torch.testing.assert_close(clipped / clipped.norm(), free / free.norm())


def test_classifier_padding_changes_neither_its_row_nor_the_others():
    classifier = SequenceClassifier(CONFIG, n_classes=3)
    randomised(classifier)
    ids_BT = torch.randint(1, 37, (3, 12), generator=torch.Generator().manual_seed(2))
    lengths_B = torch.tensor([12, 4, 7])
    logits_BC = classifier(ids_BT, lengths_B)
    other = ids_BT.clone()
    other[1, 4:] = 0
    assert torch.equal(classifier(other, lengths_B), logits_BC)
    alone = torch.cat(
        [classifier(ids_BT[r : r + 1, :n], lengths_B[r : r + 1]) for r, n in enumerate(lengths_B.tolist())]
    )
    torch.testing.assert_close(alone, logits_BC, atol=1e-5, rtol=1e-5)


def test_classifier_learns_a_repeated_batch():
    cfg = TrainConfig(n_steps=40, rows=4, seq_len=12, micro_batch=2, schedule="linear")
    state = new_state(classifier_from(decoder(), n_classes=2, seed=0), cfg)
    labels = {"lengths_B": torch.tensor([12, 3, 8, 5]), "labels_B": torch.tensor([0, 1, 1, 0])}
    batch = {"ids_BT": token_batch()["ids_BT"]} | labels
    losses = [float(train_step(state, batch, cfg, classification_loss).loss) for _ in range(40)]
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)
    assert losses[-1] < 0.05


def test_decoder_learns_a_repeated_batch():
    cfg = dataclasses.replace(TRAIN, n_steps=40)
    state = new_state(decoder(), cfg)
    losses = [float(train_step(state, token_batch(), cfg).loss) for _ in range(40)]
    assert losses[-1] < 0.3 < 3 < losses[0]


def run_fit(cfg: TrainConfig = TRAIN, *, model=None, events=None, on_report=lambda step: None, batches=None):
    events = [] if events is None else events
    state = new_state(model or decoder(), cfg)

    def report(step, values):
        events.append(("report", step, values.get("loss")))
        on_report(step)

    def save() -> Path:
        events.append(("save", state.step))
        return Path(f"step-{state.step}")

    fit(
        state,
        batches or Numbered(),
        cfg,
        report=report,
        save=save,
        validate=lambda: events.append(("validate", state.step)),
        last_good=lambda: Path("step-2"),
    )
    return events


def test_fit_saves_before_it_validates_and_ends_with_both():
    events = [event[:2] for event in run_fit()]
    reports = [("report", step) for step in range(1, 7)]
    assert events == [
        *reports[:2],
        ("save", 2),
        reports[2],
        ("save", 3),
        ("validate", 3),
        reports[3],
        ("save", 4),
        *reports[4:],
        ("save", 6),
        ("validate", 6),
    ]  # fmt: skip  (step 3 ends the stable phase)


def test_fit_reports_every_step_alike_when_it_reads_the_device_rarely():
    often = [e for e in run_fit() if e[0] == "report"]
    rarely = [e for e in run_fit(dataclasses.replace(TRAIN, log_every=5)) if e[0] == "report"]
    assert often == rarely


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_fit_after_a_signal_saves_the_step_and_raises_interrupted(number):
    before = signal.getsignal(number)
    events: list = []
    with pytest.raises(Interrupted, match="step-3") as caught:
        cfg = dataclasses.replace(TRAIN, checkpoint_every=100)
        run_fit(cfg, events=events, on_report=lambda step: os.kill(os.getpid(), number) if step == 2 else None)
    assert caught.value.step == 3
    assert events[-1] == ("save", 3)
    assert signal.getsignal(number) is before


def test_fit_with_a_loss_that_is_not_finite_names_step_documents_and_checkpoint():
    class Poisoned(Numbered):
        def batch(self, k, *ranks):
            if k == 4:
                with torch.no_grad():
                    model.lm_head.weight[3] = torch.nan
            return token_batch(k)

    model = decoder()
    with pytest.raises(Diverged, match=r"step 5: .*document-4-0, .*document-4-3.*step-2"):
        run_fit(dataclasses.replace(TRAIN, log_every=6), model=model, batches=Poisoned())


class Halfway(Numbered):
    """Batches without a supervised target, but for those of `supervised`."""

    def __init__(self, supervised=()) -> None:
        self.supervised = supervised

    def batch(self, k, *ranks):
        empty = {"targets_BT": torch.full((4, 12), IGNORE_INDEX)}
        return token_batch(k) | ({} if k in self.supervised else empty)


def numbers_of(state: TrainState) -> list[torch.Tensor]:
    return [*(weight.detach().clone() for weight in state.model.parameters()), *state.optimizer.state().values()]


def assert_same(state: TrainState, other: TrainState) -> None:
    for one, two in zip(numbers_of(state), numbers_of(other), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("is_asynchronous", [False, True])
def test_step_without_a_supervised_target_is_skipped_and_changes_nothing(is_asynchronous):
    """It ended the run as diverged, with a loss of 0 / 0; data with loss masks has such batches."""
    state, other = new_state(decoder(), TRAIN), new_state(decoder(), TRAIN)
    state.is_asynchronous = is_asynchronous
    train_step(state, token_batch(0), TRAIN), train_step(other, token_batch(0), TRAIN)
    report = train_step(state, Halfway().batch(1), TRAIN)
    assert report.is_empty and report.step == state.step == 2 and report.loss.isnan()
    other.step += 1
    assert_same(state, other)
    train_step(state, token_batch(2), TRAIN), train_step(other, token_batch(2), TRAIN)
    assert_same(state, other)


def test_fit_reports_skipped_empty_steps_and_trains_on(caplog):
    seen = {}
    state = new_state(decoder(), TRAIN)
    fit(state, Halfway({2, 5}), TRAIN, report=seen.__setitem__, save=lambda: Path("saved"))
    assert [step for step, values in seen.items() if "skipped_empty" in values] == [1, 2, 4, 5]
    assert all(("loss" in values) != ("skipped_empty" in values) for values in seen.values())
    assert state.step == 6 and len(state.history) == 2
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2 and "step 1: no target is supervised in 4 documents: document-0-0" in warnings[0]


def test_fit_ends_where_no_step_has_a_target(monkeypatch):
    monkeypatch.setattr("model.training.reports.MAX_EMPTY_STEPS", 5)
    with pytest.raises(ValueError, match=r"step 5: no target is supervised in .*nor in the 4 steps before"):
        run_fit(batches=Halfway())


class DeviceReads(TorchDispatchMode):
    """Counts what would make the host wait for a GPU: values that it reads, and shapes that depend on values."""

    NAMES = frozenset({"aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::equal", "aten::is_nonzero"})

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name().split(".")[0] in self.NAMES:
            self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


PAST = [(4.0 + 0.3 * (i % 7), 2.0 + 0.5 * (i % 5)) for i in range(40)]  # near the loss and norm of `decoder()`


@pytest.mark.parametrize("skip_spikes", [None, 6.0])
def test_step_on_an_asynchronous_device_reads_nothing_and_does_the_same(skip_spikes):
    """Two reads per step lay between backward and update. One step is a spike, one has no target, two are plain."""
    cfg = dataclasses.replace(TRAIN, skip_spikes=skip_spikes, muon_weight_decay=0.1)
    state, other = new_state(decoder(), cfg), new_state(decoder(), cfg)
    state.is_asynchronous = True
    state.history, other.history = list(PAST), list(PAST)

    def steep(model, batch):
        loss_sum, n = language_model_loss(model, batch)
        return loss_sum * batch["scale_B"].max(), n

    reports = []
    for k, scale in enumerate((1.0, 50.0, 1.0, 1.0)):
        batch = (token_batch(k) if k != 2 else Halfway().batch(k)) | {"scale_B": torch.full((4,), scale)}
        with DeviceReads() as reads:
            reports.append(train_step(state, batch, cfg, steep))
        assert not reads.seen
        report = train_step(other, batch, cfg, steep)
        other.history = other.history if report.is_empty else with_step(other.history, *report.numbers.tolist()[:2])
    assert [bool(report.is_spike) for report in reports] == [False, skip_spikes is not None, False, False]
    assert [bool(report.is_empty) for report in reports] == [False, False, True, False]
    assert_same(state, other)


def masked_loss(model, batch):
    """Draws which inputs the model may not see, as masked language modelling does."""
    is_hidden_BT = uniform_of_rows(batch["row_seeds_B"], 12) < 0.3
    return language_model_loss(model, {**batch, "ids_BT": batch["ids_BT"].masked_fill(is_hidden_BT, 0)})


def test_loss_that_draws_has_one_value_whatever_the_micro_batch_and_after_a_resume():
    """torch's generator gave other masks with every cut of the batch."""
    losses = {}
    for n_rows in (1, 2, 4):
        cfg = dataclasses.replace(TRAIN, micro_batch=n_rows)
        state = new_state(decoder(), cfg)
        losses[n_rows] = [float(train_step(state, token_batch(k), cfg, masked_loss).loss) for k in range(3)]
    assert losses[1] == pytest.approx(losses[4], rel=1e-5) and losses[2] == pytest.approx(losses[4], rel=1e-5)
    values = []
    for step in (1, 2, 1):
        torch.rand(5)  # draws elsewhere change nothing
        state = new_state(decoder(), TRAIN)
        state.step = step
        values.append(float(train_step(state, token_batch(), TRAIN, masked_loss).loss))
    assert values[0] == values[2] != values[1]
