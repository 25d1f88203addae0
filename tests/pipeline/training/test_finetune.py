"""Fine-tuning: what it learns from, that it resumes to the bit, and what it refuses."""

import dataclasses
import itertools
import json
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch

from model.network.decoder import new_decoder
from model.network.registry import describe, load_classifier, save_model
from model.network.shape import DecoderConfig
from model.training import finetune_settings
from model.training.curve import read_curve
from pipeline.corpus.examples.stage import LabelledFile, example_schema, read_examples
from pipeline.corpus.tokens.tokenizer import load_tokenizer
from pipeline.evaluation.laws import whole_texts
from pipeline.store.errors import Terminated
from pipeline.store.records import SPLITS, Checkpoint, Shards, TokenizerFile
from pipeline.store.shards import write_rows
from pipeline.store.store import Silent, Store, fingerprint_of
from pipeline.tasks.classification import KIND
from pipeline.tasks.classification import ClassificationExamplesConfig as ExamplesConfig
from pipeline.tasks.classification import ClassificationFinetuneConfig as FinetuneConfig
from pipeline.training.finetune import SplitReader, finetune_stage, random_baseline
from tests.children import python

FINETUNE = finetune_stage(KIND)
SHAPE = {"n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "d_model": 16, "d_head": 8, "d_ff": 32, "max_seq_len": 24}
QUICK = FinetuneConfig(epochs=2, rows=8, validate_every=10, checkpoint_every=7)


def write_base(tokenizer: TokenizerFile, folder: Path, vocab_size: int = 257) -> Checkpoint:
    shutil.copytree(tokenizer.directory, folder / "tokenizer")
    cfg = DecoderConfig(vocab_size=vocab_size, **SHAPE)
    save_model(folder, new_decoder(cfg, seed=1), describe(cfg))
    return Checkpoint(stage="pretrain", directory=folder, fingerprint="b", digest="base", rows=1)


def rows_of(n_rows: int = 240) -> list[dict[str, str]]:
    """The first letter tells the label."""
    rng = random.Random(0)
    rows = []
    for i in range(n_rows):
        words = ["".join(rng.choices("defghijk", k=rng.randint(2, 4))) for _ in range(rng.randint(1, 4))]
        rows.append({"text": f"{'ab'[i % 2]}{' '.join(words)}", "label": ["good", "bad"][i % 2]})
    return rows


def write_examples(folder: Path) -> Shards:
    folder.mkdir()
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows_of())))
    cfg = ExamplesConfig(text="text", label="label")
    return KIND.build_examples(Store(root=folder / "store"), LabelledFile(path), cfg, folder).handle


@pytest.fixture(scope="module")
def base(tmp_path_factory, byte_tokenizer) -> Checkpoint:
    return write_base(byte_tokenizer, tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> Shards:
    return write_examples(tmp_path_factory.mktemp("examples") / "examples")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, base, examples) -> Checkpoint:
    """A fine-tuning that nothing interrupted."""
    return Store(root=tmp_path_factory.mktemp("whole")).build(FINETUNE, QUICK, base, examples).handle


def weights(checkpoint: Checkpoint) -> bytes:
    return (checkpoint.directory / "model.safetensors").read_bytes()


def test_finetune_learns_what_the_labels_depend_on(tmp_path, base, examples):
    cfg = FinetuneConfig(epochs=12, rows=8, muon_lr=0.02, adamw_lr=0.01)
    built = Store(root=tmp_path / "store").build(FINETUNE, cfg, base, examples)
    assert built.record["measures"]["validation_accuracy"] > 0.95
    model, labels = load_classifier(built.handle.directory)
    assert labels == ("bad", "good")
    assert model.cfg == DecoderConfig(vocab_size=257, **SHAPE)
    assert load_tokenizer(built.handle.directory / "tokenizer").encode("x") == [120]


def test_finetune_starts_from_the_base_or_from_random_weights(tmp_path, base, examples):
    still = FinetuneConfig(epochs=1, rows=240, muon_lr=1e-12, adamw_lr=1e-12)
    store = Store(root=tmp_path / "store")
    pretrained, untrained = (
        load_classifier(store.build(FINETUNE, cfg, base, examples).handle.directory)[0]
        for cfg in (still, random_baseline(still))
    )
    trunk = new_decoder(DecoderConfig(vocab_size=257, **SHAPE), seed=1).model
    for name, weight in trunk.named_parameters():
        torch.testing.assert_close(pretrained.model.get_parameter(name), weight)
    embeddings = [model.model.embed_tokens.weight for model in (pretrained, untrained)]
    assert not torch.allclose(*embeddings)


def test_finetune_again_is_the_same_and_costs_nothing(tmp_path, base, examples, whole):
    again = Store(root=tmp_path).build(FINETUNE, QUICK, base, examples).handle
    assert weights(again) == weights(whole)
    assert again.digest == whole.digest
    assert Store(root=tmp_path).build(FINETUNE, QUICK, base, examples).unchanged


def test_finetune_validation_and_test_rows_change_no_weight(tmp_path, base, examples, whole):
    rows = [row for split in SPLITS for row in read_examples(examples.directory, split).to_pylist()]
    for row in rows:
        if row["split"] != "train":
            row["text"], row["label"] = "wholly different", "good" if row["label"] == "bad" else "bad"
    (tmp_path / "other").mkdir()
    write_rows(tmp_path / "other" / "examples.parquet", rows, example_schema(KIND))
    other = Shards(stage="examples", directory=tmp_path / "other", fingerprint="o", digest="other", rows=len(rows))
    assert weights(Store(root=tmp_path / "store").build(FINETUNE, QUICK, base, other).handle) == weights(whole)


class Listener(Silent):
    def __init__(self) -> None:
        self.begun: list[dict] = []
        self.steps: list[int] = []

    def started(self, fingerprint, params, inputs) -> None:
        self.begun.append(dict(params))

    def metrics(self, step, values) -> None:
        if "loss" in values:
            self.steps.append(step)


def test_finetune_observer_hears_of_every_step_once(tmp_path, base, examples):
    listener = Listener()
    built = Store(root=tmp_path / "store", observer=listener).build(FINETUNE, QUICK, base, examples)
    assert listener.steps == list(range(1, built.handle.rows + 1))
    assert listener.begun[0]["epochs"] == 2 and listener.begun[0]["labels"] == ["bad", "good"]


CHILD = """
import json, os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from pipeline.store.records import Checkpoint, Shards
from pipeline.store.store import Silent, Store, read_handle
from pipeline.tasks.classification import KIND, ClassificationFinetuneConfig
from pipeline.training.finetune import finetune_stage

class Killer(Silent):
    def metrics(self, step, values):
        if step == int(sys.argv[4]):
            os.kill(os.getpid(), signal.Signals[sys.argv[5]])

root, base, examples = map(Path, sys.argv[1:4])
base = Checkpoint(stage="pretrain", directory=base, fingerprint="b", digest="base", rows=1)
settings = {"epochs": 2, "rows": 8, "validate_every": 10, "checkpoint_every": 7, **json.loads(sys.argv[6])}
cfg = ClassificationFinetuneConfig(**settings)
Store(root=root, observer=Killer()).build(finetune_stage(KIND), cfg, base, read_handle(examples))
"""


@pytest.mark.parametrize(("step", "name"), [(3, "SIGKILL"), (25, "SIGKILL"), (30, "SIGTERM")])
def test_finetune_killed_and_run_again_ends_with_the_same_bits(tmp_path, base, examples, whole, step, name):
    root = tmp_path / "killed"
    arguments = [str(root), str(base.directory), str(examples.directory), str(step), name, "{}"]
    child = python("-c", CHILD, *arguments)
    assert child.returncode == (-signal.SIGKILL if name == "SIGKILL" else 1), child.stderr
    assert "Terminated" in child.stderr or name == "SIGKILL"
    assert not list(root.glob("finetune/*/record.json"))
    resumed = Store(root=root).build(FINETUNE, QUICK, base, examples).handle
    assert weights(resumed) == weights(whole)
    assert resumed.digest == whole.digest
    curve = read_curve(resumed.directory)
    assert [line["step"] for line in curve if "loss" in line] == list(range(1, whole.rows + 1))


SPARING = {
    "epochs": 20,
    "tuning": "lora",
    "lora_rank": 2,
    "lora_lr": 0.02,
    "layer_decay": 0.8,
    "patience": 2,
    "augment_word_dropout": 0.1,
    "augment_typos": 0.1,
    "augment_case": 0.1,
}


def test_finetune_of_adapters_that_ends_early_is_killed_and_ends_with_the_same_bits(tmp_path, base, examples):
    """kill -9 after the validation that ends the training, whose weights are not the ones that are kept."""
    cfg = dataclasses.replace(QUICK, **SPARING)
    whole = Store(root=tmp_path / "whole").build(FINETUNE, cfg, base, examples)
    measures, n_steps, root = whole.record["measures"], whole.handle.rows, tmp_path / "killed"
    assert measures["best_step"] < measures["n_steps"] == n_steps < 20 * 24
    assert measures["best_validation_macro_f1"] == measures["validation_macro_f1"]
    for step in (int(measures["best_step"]), n_steps):
        arguments = [
            str(root),
            str(base.directory),
            str(examples.directory),
            str(step),
            "SIGKILL",
            json.dumps(SPARING),
        ]
        assert python("-c", CHILD, *arguments).returncode == -signal.SIGKILL
    resumed = Store(root=root).build(FINETUNE, cfg, base, examples)
    assert resumed.handle.digest == whole.handle.digest
    for name in ("model.safetensors", "adapter/model.safetensors"):
        assert (resumed.handle.directory / name).read_bytes() == (whole.handle.directory / name).read_bytes()
    assert resumed.record["measures"] == measures


def test_finetune_settings_that_are_open_follow_from_the_base_and_are_in_record_params_and_fingerprint(
    tmp_path, base, examples, monkeypatch
):
    listener = Listener()
    store, cfg = Store(root=tmp_path / "store", observer=listener), FinetuneConfig(epochs=1)
    built = store.build(FINETUNE, cfg, base, examples)
    expected = {
        "optimizer": "muon",
        "rows": examples.rows // 16,
        "muon_lr": 0.02,
        "adamw_lr": 0.004,
        "keep": "last",
        "layer_decay": 1.0,
    }
    for stored in (built.record["config"], listener.begun[0]):
        assert {name: stored[name] for name in expected} == expected
    asked = store.build(FINETUNE, dataclasses.replace(cfg, **expected), base, examples)
    assert asked.unchanged and asked.handle == built.handle
    monkeypatch.setitem(finetune_settings.OF_NARROW_BASE, "adamw_lr", 0.003)
    now = fingerprint_of(FINETUNE, FINETUNE.resolve(cfg, (base, examples)), (base, examples))
    assert now != built.record["fingerprint"]
    monkeypatch.setattr(finetune_settings, "WIDE", SHAPE["d_model"])
    wide = FINETUNE.resolve(cfg, (base, examples))
    assert (wide.optimizer, wide.muon_lr, wide.rows, wide.epochs) == ("adamw", None, examples.rows // 16, 1)


def test_finetune_random_baseline_has_the_recipe_of_the_model_but_trains_all_weights(base, examples):
    for tuning in ("full", "lora", "head"):
        made = FINETUNE.resolve(FinetuneConfig(tuning=tuning, patience=3, epochs=4), (base, examples))
        twin = FINETUNE.resolve(random_baseline(made), (base, examples))
        assert (twin.initialisation, twin.tuning, twin.layer_decay) == ("random", "full", 1.0)
        alike = ("epochs", "rows", "optimizer", "muon_lr", "adamw_lr", "patience", "keep", "validations_per_epoch")
        assert {name: getattr(twin, name) for name in alike} == {name: getattr(made, name) for name in alike}


def test_finetune_reads_other_texts_in_every_epoch_and_validates_on_the_ones_of_the_data(tmp_path, base, examples):
    """The batches of a trace are those of the training: both draw an epoch from (seed, epoch, id)."""
    noisy = dataclasses.replace(QUICK, augment_typos=0.5)
    built = Store(root=tmp_path / "store").build(FINETUNE, noisy, base, examples)
    cfg = FINETUNE.resolve(noisy, (base, examples))
    tokenizer = load_tokenizer(base.directory / "tokenizer")
    reader = SplitReader(kind=KIND, cfg=cfg, examples=examples, tokenizer=tokenizer, max_tokens=24)
    plain, of_epoch = reader.read("train"), reader.of_epoch()
    first, second = of_epoch(0), of_epoch(1)
    assert first.ids == second.ids == plain.ids
    texts = [[tokenizer.decode(tokens[1:].tolist()) for tokens in one.tokens] for one in (plain, first, second)]
    changed = [sum(a != b for a, b in zip(*pair, strict=True)) for pair in itertools.combinations(texts, 2)]
    assert all(0.5 * len(plain.ids) < n <= len(plain.ids) for n in changed)
    assert [len(t) for t in texts[0]] != [len(t) for t in texts[1]]
    (model, _) = load_classifier(built.handle.directory)
    measured = KIND.validate(model, reader.read("validation"))
    assert measured["validation_loss"] == pytest.approx(built.record["measures"]["validation_loss"], rel=1e-6)
    assert reader.of_epoch()(1).tokens[5].tolist() == second.tokens[5].tolist()


def test_finetune_terminated_is_told_as_such(tmp_path, base, examples):
    class Stop(Silent):
        def metrics(self, step, values) -> None:
            if step == 5:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Terminated, match="run it again"):
        Store(root=tmp_path / "store", observer=Stop()).build(FINETUNE, QUICK, base, examples)


def test_finetune_base_of_another_tokenizer_is_refused(tmp_path, byte_tokenizer, examples):
    base = write_base(byte_tokenizer, tmp_path / "other", vocab_size=300)
    with pytest.raises(ValueError, match="tokenizer has 257 tokens, the model 300"):
        Store(root=tmp_path / "store").build(FINETUNE, QUICK, base, examples)


def test_finetune_rows_beyond_the_examples_are_one_batch(tmp_path, base, examples):
    built = Store(root=tmp_path / "store").build(FINETUNE, FinetuneConfig(epochs=2, rows=10_000), base, examples)
    assert built.handle.rows == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs is 0, expected a whole number of at least 1"),
        ({"rows": 0}, "rows is 0, expected a whole number of at least 1"),
        ({"muon_lr": 0.0}, r"muon_lr is 0\.0, expected a number above 0"),
        ({"warmup_fraction": 1.5}, r"warmup_fraction is 1\.5, expected a number from 0 to 1"),
        ({"label_smoothing": 1.0}, r"label_smoothing is 1\.0, expected"),
        ({"max_tokens": 1}, "max_tokens is 1, expected a whole number of at least 2"),
        ({"initialisation": "best"}, "expected one of pretrained, random"),
        ({"tuning": "some"}, "tuning is 'some', expected one of full, lora, head"),
        ({"patience": 0}, "patience is 0, expected a whole number of at least 1"),
        ({"layer_decay": 1.5}, r"layer_decay is 1\.5, expected a number above 0 and at most 1"),
        ({"augment_case": -1.0}, r"augment_case is -1\.0, expected a number from 0 to 1"),
        ({"tuning": "head", "layer_decay": 0.5}, "has no effect with tuning='head'"),
        ({"validate_every": 0}, "validate_every is 0, expected a whole number of at least 1"),
    ],
)
def test_finetune_config_broken_rule_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        FinetuneConfig(**settings)


def test_f_texts_that_are_cut_are_counted_and_told(tmp_path, base, caplog):
    """The last word decided, the model never saw it, and nothing said that texts were cut (trl#3449)."""
    rng = random.Random(0)
    filler = [" ".join("".join(rng.choices("defghijk", k=4)) for _ in range(8)) for _ in range(120)]
    rows = [{"text": f"{text} {'ab'[i % 2]}{'b' * (i % 2)}", "label": "xy"[i % 2]} for i, text in enumerate(filler)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, [*rows, {"text": "short", "label": "x"}])))
    cfg = ExamplesConfig(text="text", label="label")
    store = Store(root=tmp_path / "store")
    examples = KIND.build_examples(store, LabelledFile(path), cfg, tmp_path).handle
    measures = {}
    for side in ("right", "left"):
        recipe = FinetuneConfig(epochs=10, rows=8, adamw_lr=0.01, truncation_side=side)
        built = store.build(FINETUNE, recipe, base, examples)
        measures[side] = built.record["measures"]
        assert measures[side]["train_n_cut"] >= 90 and measures[side]["train_cut_fraction"] > 0.9
        assert not whole_texts(measures[side]).passed and "raise max_tokens" in whole_texts(measures[side]).sentence()
        (answer,) = KIND.predictor(built.handle.directory).answer([{"text": rows[0]["text"]}])
        assert KIND.predictor(built.handle.directory).n_cut([{"text": rows[0]["text"]}, {"text": "short"}]) == 1
    assert answer["label"] == "x"
    assert measures["left"]["validation_accuracy"] == 1 > measures["right"]["validation_accuracy"]
    assert "longer than 24 tokens, so that their ends are not read: " in caplog.text
    assert "train the base with a longer context" in caplog.text
