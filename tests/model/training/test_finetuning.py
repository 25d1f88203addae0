"""Fine-tuning a classifier from files: what it learns, what it prints, and what it refuses."""

import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from model.cli import main
from model.data.labelled import read_labelled
from model.data.tokenizer import load_tokenizer
from model.evaluate import classification_metrics
from model.network.decoder import initialise
from model.network.encoder import Encoder, MaskedLM
from model.network.registry import describe, kind_of, load_classifier, save_model
from model.network.shape import EncoderConfig, switches_of
from model.network.visible import Visible
from model.training.curve import read_curve
from model.training.finetune_settings import FinetuneSettings, resolved, train_config
from model.training.finetuning import classifier_network, load_base

QUICK = ("--set", "epochs=8", "--set", "rows=8", "--set", "adamw_lr=0.02", "--set", "validate_every=15")


def rows(n_rows: int, seed: int = 0) -> list[dict[str, str]]:
    """The first letter tells the label."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("kmo", k=3)) for _ in range(n_rows)]
    return [{"text": f"{'ab'[i % 2]}{word}", "label": ["good", "bad"][i % 2]} for i, word in enumerate(words)]


def write(path: Path, table: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in table))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    """Examples to train on as Parquet, to validate on as JSON lines."""
    folder = tmp_path_factory.mktemp("examples")
    pq.write_table(pa.Table.from_pylist(rows(96)), folder / "train.parquet")
    return folder / "train.parquet", write(folder / "held.jsonl", rows(40, seed=1))


@pytest.fixture(scope="module")
def finetuned(trained, files, tmp_path_factory):
    out = tmp_path_factory.mktemp("finetuned") / "model"
    return out, ["finetune", str(trained), str(files[0]), str(out), "--validation", str(files[1]), *QUICK]


def test_finetune_learns_the_labels_prints_its_numbers_and_can_be_called_again(finetuned, trained, capsys):
    out, call = finetuned
    assert main(call) == 0
    printed, _ = capsys.readouterr()
    assert "96 examples of 2 labels (bad, good), 96 steps" in printed and "step 90/96: validation loss" in printed
    last = printed.splitlines()[-1]
    assert last.startswith("finished: validation loss 0.") and last.endswith("accuracy 1.0000, macro F1 1.0000")
    assert load_classifier(out)[1] == ("bad", "good")
    for file in (trained / "tokenizer").iterdir():
        assert (out / "tokenizer" / file.name).read_bytes() == file.read_bytes()
    weights = (out / "model.safetensors").read_bytes()
    assert len([line for line in read_curve(out) if "loss" in line]) == 96
    assert main(call) == 0 and capsys.readouterr()[0].splitlines()[-1] == last
    assert (out / "model.safetensors").read_bytes() == weights
    assert main([*call[:-2], "--set", "label_smoothing=0.1"]) == 1
    assert "now the data is" in capsys.readouterr()[1]


def test_finetune_without_validation_examples_holds_a_tenth_out(trained, files, tmp_path, capsys):
    call = ["finetune", str(trained), str(files[0]), str(tmp_path / "model"), "--set", "epochs=1"]
    assert main(call) == 0
    training, held_out = read_labelled(files[0]).divided()
    assert len(training.texts) + len(held_out.texts) == 96 and not set(training.texts) & set(held_out.texts)
    assert f"{len(training.texts)} examples of 2 labels" in capsys.readouterr()[0]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([{"text": "a"}], "no column 'label'; there are text"),
        ([{"text": "a", "label": "x"}, {"text": " ", "label": "y"}], "row 2: text is ' '"),
        ([{"text": "a", "label": "x"}, {"text": "b", "label": None}], "row 2: label is None"),
        ([{"text": "a", "label": "x"}, {"text": "b", "label": "x"}], r"labels are \['x'\], .* at least 2"),
        ([{"text": "a", "label": "x"}, {"text": "b", "label": "y"}], "2 examples are too few to hold out a tenth"),
    ],
)
def test_finetune_examples_that_do_not_fit_are_refused(trained, tmp_path, table, message):
    path = write(tmp_path / "examples.jsonl", table)
    with pytest.raises(ValueError, match=rf"examples\.jsonl: .*{message}"):
        texts = read_labelled(path)
        texts.label_names()
        texts.divided()


def test_finetune_ends_early_and_prints_settings_and_the_step_that_is_kept(trained, files, tmp_path, capsys):
    settings = {"tuning": "lora", "lora_lr": 0.05, "rows": 8, "epochs": 40, "patience": 2, "augment_typos": 0.05}
    call = ["finetune", str(trained), str(files[0]), str(tmp_path / "model"), "--validation", str(files[1])]
    assert main([*call, *(part for name, value in settings.items() for part in ("--set", f"{name}={value}"))]) == 0
    lines = capsys.readouterr()[0].splitlines()
    assert "tuning=lora" in lines[1] and "keep=best, validations_per_epoch=4" in lines[1] and "rows=8" in lines[1]
    kept = [
        re.fullmatch(r"step (\d+)/480: ended; kept are the weights of step (\d+), the best", line) for line in lines
    ]
    ((n_steps, best),) = [map(int, match.groups()) for match in kept if match]
    assert best == n_steps - 2 * 3 and n_steps < 480
    values = dict(line.split(": ", 1) for line in lines if "validation loss" in line and line.startswith("step"))
    assert (
        values[f"step {best}/480"].split("accuracy ")[1].split(",")[0]
        == lines[-1].split("accuracy ")[1].split(",")[0]
    )


def test_finetune_faults_are_one_line(trained, files, tmp_path, capsys):
    (tmp_path / "broken.jsonl").write_text("{")
    out = str(tmp_path / "model")
    unknown = write(tmp_path / "unknown.jsonl", [{"text": "a", "label": "ugly"}])
    for call, message in (
        ([str(trained), str(tmp_path / "broken.jsonl"), out], "broken.jsonl: not readable as JSON lines"),
        ([str(trained), str(files[0]), out, "--set", "epoch=1"], "no such setting; did you mean epochs?"),
        ([str(trained), str(files[0]), out, "--set", "epochs=0"], "epochs=0 must be at least 1"),
        ([str(tmp_path), str(files[0]), out], "is not the folder of a model"),
        ([str(trained), str(files[0]), out, "--validation", str(unknown)], "unknown.jsonl: no training example has"),
        ([str(trained), str(files[0]), str(trained)], "train in another folder"),
    ):
        assert main(["finetune", *call]) == 1
        err = capsys.readouterr()[1]
        assert message in err and len(err.splitlines()) == 1


def test_labels_are_text_and_numbers_are_written_as_in_json(tmp_path):
    assert read_labelled(write(tmp_path / "a.jsonl", [{"t": "x", "y": 1}, {"t": "z", "y": 0}]), "t", "y").labels == (
        "1",
        "0",
    )
    path = write(tmp_path / "b.jsonl", [{"text": "x", "label": True}, {"text": "z", "label": False}])
    assert read_labelled(path).label_names() == ("false", "true")


def test_json_lines_of_any_length_and_texts_that_look_like_dates_are_read(tmp_path):
    """A text above 1 MB was refused, dates became times, and texts were not repaired as in serving."""
    table = [
        {"text": "ka " * 500_000, "label": "2020-01-01", "other": 1},
        {"text": " e\u0301 ", "label": "2021-01-01", "other": "x"},
    ]
    read = read_labelled(write(tmp_path / "a.jsonl", table))
    assert read.labels == ("2020-01-01", "2021-01-01") and read.texts[0] == ("ka " * 500_000).strip()
    assert read.texts[1] == "\u00e9"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a", "label": "x"}\n{"text": "caf\xe9", "label": "y"}\n', "JSON lines .line 2: 'utf-8' codec"),
        (b'{"text": "a", "label": "x"}\n["b", "y"]\n', "line 2 is a list, expected an object"),
        (b'{"text": "a", "text": "b", "label": "x"}\n', "line 1: a name occurs twice among text, text, label"),
    ],
)
def test_lines_that_are_not_examples_are_named(tmp_path, content, message):
    """Bytes that are no UTF-8 were an error without the name of the file."""
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.jsonl: .*{message}"):
        read_labelled(tmp_path / "a.jsonl")


def test_parquet_that_is_not_utf8_is_named(tmp_path):
    broken = pa.Array.from_buffers(pa.string(), 1, pa.array([b"a\xff"]).buffers())
    pq.write_table(pa.table({"text": broken, "label": ["x"]}), tmp_path / "a.PARQUET")
    with pytest.raises(ValueError, match=r"a\.PARQUET: not readable as Parquet"):
        read_labelled(tmp_path / "a.PARQUET")


def test_classification_metrics_equal_those_of_scikit_learn():
    from sklearn.metrics import accuracy_score, f1_score, log_loss

    rng = np.random.default_rng(0)
    probabilities_NC, classes_N = rng.dirichlet(np.ones(4), 50), rng.integers(0, 4, 50)
    chosen_N, found = probabilities_NC.argmax(axis=1), classification_metrics(probabilities_NC, classes_N)
    assert found["loss"] == pytest.approx(log_loss(classes_N, probabilities_NC, labels=range(4)))
    assert found["accuracy"] == pytest.approx(accuracy_score(classes_N, chosen_N))
    assert found["macro_f1"] == pytest.approx(f1_score(classes_N, chosen_N, average="macro"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"initialisation": "best"}, "initialisation='best' must be one of pretrained, random"),
        ({"max_tokens": 1}, "max_tokens=1 must be at least 2"),
        ({"rows": 0}, "rows=0 must be at least 1"),
        ({"label_smoothing": 1.0}, r"label_smoothing=1\.0 must be"),
        ({"warmup_fraction": 1.5}, r"warmup_fraction=1\.5 must lie"),
    ],
)
def test_settings_that_break_a_rule_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        FinetuneSettings(**settings)


def test_train_config_reads_every_example_once_per_epoch():
    plan = train_config(resolved(FinetuneSettings(epochs=3, rows=128), d_model=16), n_examples=241)
    assert (plan.n_steps, plan.rows, plan.micro_batch) == (6, 128, 128)
    assert train_config(resolved(FinetuneSettings(rows=10_000), d_model=16), n_examples=600).micro_batch == 200


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_finetune_of_an_encoder_learns_the_labels(family, trained, files, tmp_path, capsys):
    """Of a bare one with a pooler, and of a masked language model."""
    vocab_size = load_tokenizer(trained / "tokenizer").vocab_size
    sizes = {"n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "d_model": 32, "d_head": 16, "d_ff": 48}
    window = {"sliding_window": 4, "sliding_layers": (1,)} if family == "modernbert" else {"has_pooler": True}
    cfg = EncoderConfig(**sizes, **switches_of(family), **window, vocab_size=vocab_size, max_seq_len=16)
    base = Encoder(cfg) if family == "bert" else MaskedLM(cfg)
    initialise(base, seed=1)
    save_model(tmp_path, base, describe(cfg, kind=kind_of(base)))
    shutil.copytree(trained / "tokenizer", tmp_path / "tokenizer")
    out = tmp_path / "model"
    call = ["finetune", str(tmp_path), str(files[0]), str(out), "--validation", str(files[1]), *QUICK]
    assert main(call) == 0, capsys.readouterr()[1]
    assert "accuracy 1.0000" in capsys.readouterr()[0].splitlines()[-1]
    classifier, labels = load_classifier(out)
    assert (classifier.cfg, labels) == (cfg, ("bad", "good"))
    assert json.loads((out / "config.json").read_text())["trunk"] == "encoder"


def small_encoder(**changed) -> Encoder:
    sizes = {"n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "d_model": 16, "d_head": 8, "d_ff": 16}
    cfg = EncoderConfig(**sizes, **switches_of("bert"), has_pooler=True, vocab_size=40, max_seq_len=12, **changed)
    base = Encoder(cfg)
    initialise(base, seed=1)
    return base


def test_classifier_with_pooling_mean_reads_all_real_tokens_and_with_first_one():
    base, ids_BT, lengths_B = small_encoder(), torch.randint(0, 40, (2, 9)), torch.tensor([9, 4])
    for pooling in ("mean", "first"):
        classifier, description = classifier_network(base, ["a", "b"], "pretrained", 0, pooling=pooling)
        assert description["model"]["pooling"] == pooling
        torch.nn.init.normal_(classifier.score.weight)
        x_BTD = base.trunk(ids_BT, visible=Visible.padded(lengths_B, 9))
        pooled_BD = x_BTD[:, 0] if pooling == "first" else torch.stack([x_BTD[0].mean(0), x_BTD[1, :4].mean(0)])
        expected_BC = classifier.score(torch.tanh(base.pooler(pooled_BD)))
        torch.testing.assert_close(classifier(ids_BT, lengths_B), expected_BC)


def test_classifier_of_a_decoder_refuses_pooling(trained):
    base = load_base(trained).network
    with pytest.raises(ValueError, match="a decoder is read at its last token"):
        classifier_network(base, ["a", "b"], "pretrained", 0, pooling="mean")


def test_classifier_of_several_labels_begins_with_their_shares():
    rates_C = np.array([0.5, 0.01, 0.2])
    classifier, _ = classifier_network(small_encoder(), ["a", "b", "c"], "pretrained", 0, rates=rates_C)
    probabilities_BC = classifier(torch.randint(0, 40, (3, 5)), torch.tensor([5, 2, 1])).sigmoid()
    np.testing.assert_allclose(probabilities_BC.detach().numpy(), np.tile(rates_C, (3, 1)), rtol=1e-5)
    extreme, _ = classifier_network(small_encoder(), ["a", "b"], "random", 0, rates=np.array([0.0, 1.0]))
    assert extreme.score.bias.isfinite().all()
