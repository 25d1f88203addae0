"""estimate: the work of what is not built yet, and of nothing else."""

import dataclasses

import pytest

from pipeline.commands.estimate import LORA_SHARE, SPEEDS, Estimate, estimate, estimate_line, measured
from pipeline.commands.planning import plan


def test_estimate_of_a_graph_that_was_never_built_counts_every_training(toy_layout):
    toy_layout.config_toml.write_text("[tokenizer]\nvocab_size = 300\n")  # else the settings of the demo
    assets = plan(toy_layout)
    only = {name: estimate(assets, {name}) for name in ("foundation_model", "moods_model", "moods_evaluation")}
    assert only["foundation_model"].flops == pytest.approx(1.85e13, rel=0.01)  # as the demo's training reports
    assert only["moods_model"].flops > 0
    assert only["moods_evaluation"].flops == only["moods_model"].flops  # trains it again, from random weights
    whole = estimate(assets)
    assert whole.flops == pytest.approx(sum(work.flops for work in only.values()))
    assert whole.demo_seconds > sum(work.demo_seconds for work in only.values())


def test_estimate_of_adapters_is_two_thirds_and_of_their_baseline_the_whole(toy_layout):
    toy_layout.config_toml.write_text("[tokenizer]\nvocab_size = 300\n")
    names = {"moods_model"}, {"moods_evaluation"}
    full = [estimate(plan(toy_layout), one).flops for one in names]
    toy_layout.config_toml.write_text('[tokenizer]\nvocab_size = 300\n[moods_model]\ntuning = "lora"\n')
    adapters = [estimate(plan(toy_layout), one).flops for one in names]
    assert adapters == pytest.approx([full[0] * 2 / 3, full[1]])


def test_estimate_of_a_task_whose_examples_are_not_made_is_not_that_of_the_largest_one(toy_layout):
    """A task of 4,777 examples, which took 12 minutes, was announced with 182."""
    toy_layout.config_toml.write_text("[tokenizer]\nvocab_size = 300\n")
    first = estimate(plan(toy_layout), {"moods_model"}).flops
    toy_layout.tasks_toml.write_text(toy_layout.tasks_toml.read_text().replace("[moods", "[sarcasm"))
    assert 0 < 3 * first < estimate(plan(toy_layout), {"sarcasm_model"}).flops


def test_estimate_of_an_asset_that_the_demo_does_not_have_is_no_error(toy_layout):
    """A new asset needed an entry in DEMO_SECONDS, or `gristmill run` failed."""
    documents = next(one for one in plan(toy_layout) if one.asset == "documents")
    assert estimate([dataclasses.replace(documents, asset="flour")]).demo_seconds > 0


def test_estimate_of_what_is_built_is_nothing(toy_graph):
    assert estimate(plan(toy_graph.layout)) is None


@pytest.mark.parametrize(("fast_onednn", "minutes"), [(True, 4), (False, 5)])
def test_estimate_line_is_in_minutes_and_half_as_long_on_a_machine_twice_as_fast(fast_onednn, minutes):
    speed, _ = SPEEDS[fast_onednn]
    slow, fast = (
        Estimate(flops=2e13, demo_seconds=70, product_speed=one, fast_onednn=fast_onednn)
        for one in (speed / 2, speed)
    )
    assert slow.seconds == pytest.approx(2 * fast.seconds)
    assert estimate_line(fast).startswith(f"About {minutes} minutes on this machine (")
    assert "GFLOP/s measured): 20.0 TFLOP of training, 70 seconds for everything else." in estimate_line(fast)


def test_measured_speed_is_that_of_a_computer():
    assert 1e7 < measured(0.05)["product_speed"] < 1e15


def test_estimate_of_an_absurd_training_is_a_warning_in_years(toy_layout):
    """A training of 10**15 tokens was planned without a word."""
    assert "WARNING" not in estimate_line(estimate(plan(toy_layout)))
    toy_layout.config_toml.write_text("[foundation_model]\nn_steps = 999999999999\n")
    line = estimate_line(estimate(plan(toy_layout)))
    assert "years on this machine" in line
    assert "WARNING: foundation_model alone trains for about" in line and "n_steps" in line


def test_estimate_counts_the_training_of_a_continued_model(toy_layout):
    """Hours of a large base were announced as no training."""
    table = (
        '[foundation_model]\nkind = "pretrain"\n[more]\nkind = "continue"\nbase = "foundation_model"\nn_steps = {}\n'
    )
    flops = []
    for n_steps in (10, 30):
        toy_layout.models_toml.write_text(table.format(n_steps))
        flops.append(estimate(plan(toy_layout), {"more"}).flops)
    assert 0 < 3 * flops[0] == pytest.approx(flops[1])


def test_estimate_names_what_waits_for_an_open_model_of_unknown_size(toy_layout):
    """A model continued from one that was never imported was estimated as if it took no time."""
    toy_layout.models_toml.write_text(
        '[foundation_model]\nkind = "pretrain"\n[big]\nkind = "open"\nfolder = "elsewhere"\n'
        '[reader]\nkind = "continue"\nbase = "big"\n[own]\nkind = "continue"\nbase = "foundation_model"\n'
    )
    assets = plan(toy_layout)
    work = estimate(assets)
    assert work.unknown == ("base/big", "reader")
    assert "not known before it is imported: base/big, reader." in estimate_line(work)
    whole, base = (estimate(assets, {name}) for name in ("own", "foundation_model"))
    assert whole.unknown == () and whole.flops == pytest.approx(
        LORA_SHARE * base.flops * (100 * 4 * 512) / base_tokens(assets)
    )


def base_tokens(assets) -> int:
    (model,) = (one for one in assets if one.asset == "foundation_model")
    return model.builds[0].config.train.n_steps * model.builds[0].config.train.tokens_per_step
