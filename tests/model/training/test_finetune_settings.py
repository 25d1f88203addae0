"""Settings of fine-tuning that are left open: what they follow from, and which ones contradict each other."""

import dataclasses

import pytest

from model.training.finetune_settings import FinetuneSettings, resolved, selection, train_config

NARROW, WIDE = 128, 384  # width of the demo's decoder and of MiniLM


def test_a_narrow_base_goes_on_with_muon_and_a_wide_one_with_adamw():
    narrow, wide = (train_config(resolved(FinetuneSettings(), d), n_examples=1000) for d in (NARROW, WIDE))
    assert (narrow.muon_lr, narrow.adamw_lr, narrow.rows, narrow.n_steps) == (0.02, 0.004, 128, 2 * 8)
    assert (wide.muon_lr, wide.adamw_lr, wide.rows, wide.n_steps) == (None, 1e-4, 32, 3 * 32)
    assert resolved(FinetuneSettings(), 768).adamw_lr == 5e-5


@pytest.mark.parametrize("d_model", [NARROW, WIDE])
def test_resolved_settings_have_nothing_open_and_stay_as_they_are(d_model):
    full = resolved(FinetuneSettings(), d_model)
    open_ones = {field.name for field in dataclasses.fields(full) if getattr(full, field.name) is None}
    assert open_ones - {"muon_lr"} == {"max_tokens", "patience", "validations_per_epoch"}
    assert resolved(full, NARROW) == resolved(full, WIDE) == full


@pytest.mark.parametrize(
    ("n_examples", "d_model", "rows", "epochs"),
    [
        *((20, d, 8, 20) for d in (NARROW, WIDE)),
        *((300, d, 18, 12) for d in (NARROW, WIDE)),
        *((2_000, NARROW, 125, 13), (2_000, WIDE, 32, 4)),
        *((28_000, NARROW, 128, 2), (28_000, WIDE, 32, 3), (None, WIDE, 32, 3)),
    ],
)
def test_few_examples_are_read_more_often_in_smaller_batches(n_examples, d_model, rows, epochs):
    full = resolved(FinetuneSettings(), d_model, n_examples)
    assert (full.rows, full.epochs) == (rows, epochs)
    given = resolved(FinetuneSettings(rows=4, epochs=1), d_model, n_examples)
    assert (given.rows, given.epochs) == (4, 1)


def test_what_is_set_stays():
    asked = {"epochs": 7, "rows": 5, "adamw_lr": 0.5, "muon_lr": 0.25, "layer_decay": 0.5}
    for d_model in (NARROW, WIDE):
        full = resolved(FinetuneSettings(**asked), d_model)
        assert {name: getattr(full, name) for name in asked} == asked
        assert full.optimizer == "muon"  # because it has a rate
        assert resolved(FinetuneSettings(optimizer="adamw"), d_model).muon_lr is None


def test_patience_keeps_the_best_weights_and_validates_parts_of_an_epoch():
    full = resolved(FinetuneSettings(patience=3, rows=10, epochs=5), NARROW)
    plan, chosen = train_config(full, n_examples=1000), selection(full, "f1", higher_is_better=True)
    assert (full.keep, plan.n_steps, plan.validate_every) == ("best", 500, 25)
    assert chosen.keeps_best and chosen.patience == 3 and chosen.higher_is_better
    last = resolved(FinetuneSettings(validate_every=11), NARROW)
    assert last.keep == "last" and train_config(last, n_examples=1000).validate_every == 11
    assert not selection(last, "f1", higher_is_better=True).keeps_best


@pytest.mark.parametrize(("tuning", "lr"), [("lora", 0.003), ("head", 0.002)])
def test_a_part_of_the_model_is_trained_by_adamw_at_a_rate_of_its_own(tuning, lr):
    full = resolved(FinetuneSettings(tuning=tuning, lora_lr=0.003, head_lr=0.002), NARROW)
    plan = train_config(full, n_examples=300)
    assert (plan.muon_lr, plan.adamw_lr) == (None, lr)
    assert (full.muon_lr, full.adamw_lr) == (0.02, 0.004)  # which its baseline from random weights needs


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tuning": "head", "initialisation": "random"}, "tuning='head' needs a trained base"),
        ({"tuning": "head", "layer_decay": 0.9}, r"layer_decay=0\.9 has no effect with tuning='head'"),
        ({"optimizer": "adamw", "muon_lr": 0.1}, r"muon_lr=0\.1 has no effect with optimizer='adamw'; set adamw_lr"),
        ({"patience": 2, "keep": "last"}, "patience=2 .*; set keep='best'"),
        ({"patience": 0}, "patience=0 must be at least 1"),
        ({"validations_per_epoch": 0}, "validations_per_epoch=0 must be at least 1"),
        ({"layer_decay": 0.0}, r"layer_decay=0\.0 must be above 0 and at most 1"),
        ({"layer_decay": 1.5}, r"layer_decay=1\.5 must be above 0"),
        ({"keep": "first"}, "keep='first' must be one of best, last"),
        ({"optimizer": "sgd"}, "optimizer='sgd' must be one of muon, adamw"),
        ({"augment_typos": 1.5}, r"augment_typos=1\.5 must be from 0 to 1"),
    ],
)
def test_settings_that_contradict_each_other_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        FinetuneSettings(**settings)
