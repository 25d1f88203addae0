"""`python -m model.cli`: what it writes and prints; it goes on where it was stopped, alone and in two processes."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch

from model.cli import main
from model.data.token_shards import read_token_shards
from model.data.tokenizer import load_tokenizer
from model.evaluate import document_losses
from model.network.registry import load_decoder
from model.training.curve import read_curve

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def start(*arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "model.cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def test_train_writes_a_model_its_tokenizer_and_its_curve(trained, corpus):
    decoder = load_decoder(trained)
    assert decoder.cfg.d_model == 16 and decoder.cfg.vocab_size == 300
    curve = read_curve(trained)
    assert [line["step"] for line in curve if "loss" in line] == list(range(1, 13))
    assert [line["step"] for line in curve if "validation_bits_per_byte" in line] == [5, 10, 12]
    kept = load_tokenizer(trained / "tokenizer")
    assert kept.ranks == load_tokenizer(corpus / "tokenizer").ranks
    assert {path.name for path in (trained / "tokenizer").iterdir()} == {
        "tokenizer.tiktoken",
        "gristmill_tokenizer.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_train_prints_a_line_a_step_and_what_came_out(corpus, tiny_settings, tmp_path, capsys):
    assert (
        main(["train", str(corpus / "shards"), str(tmp_path / "model"), *tiny_settings, "--set", "log_every=3"]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert "tokens in 12 steps" in lines[0]
    steps = [line for line in lines if ": loss " in line]
    assert [line.split(":")[0] for line in steps] == ["step 3/12", "step 6/12", "step 9/12", "step 12/12"]
    assert all(word in steps[0] for word in ("lr ", "norm ", "tokens/s"))
    value = read_curve(tmp_path / "model")[-1]["validation_bits_per_byte"]
    assert lines[-1].endswith(f"validation bits per byte {value:.4f}")


@pytest.mark.slow  # model/training/run.py's own tests are quicker
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_train_stopped_by_a_signal_saves_and_the_same_call_goes_on(corpus, tiny_settings, tmp_path, number):
    call = ["train", corpus / "shards", tmp_path / "model", *tiny_settings, "--set", "n_steps=120"]
    child = start(*call)
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("step 20/"):
            child.send_signal(number)
            break
    out, err = child.communicate(timeout=600)
    assert child.returncode == 130
    (message,) = err.splitlines()
    assert "by a signal; run it again to go on from" in message
    stopped_at = int(message.partition("after step ")[2].split()[0])
    assert 20 <= stopped_at < 120
    again = start(*call)
    out, err = again.communicate(timeout=600)
    assert (again.returncode, err) == (0, "")
    assert f"step {stopped_at + 1}/120: loss" in out and f"step {stopped_at}/120: loss" not in out
    assert [line["step"] for line in read_curve(tmp_path / "model") if "loss" in line] == list(range(1, 121))


def test_train_again_changes_nothing(trained, corpus, tiny_settings):
    before = (trained / "model.safetensors").read_bytes()
    assert main(["train", str(corpus / "shards"), str(trained), *tiny_settings]) == 0
    assert (trained / "model.safetensors").read_bytes() == before


def test_train_with_more_steps_goes_on_from_the_end_of_the_stable_phase(
    trained, corpus, tiny_settings, tmp_path, capsys
):
    shutil.copytree(trained, tmp_path / "model")
    call = ["train", str(corpus / "shards"), str(tmp_path / "model"), *tiny_settings, "--set", "n_steps=16"]
    assert main(call) == 0
    assert "step 7/16: loss" in capsys.readouterr().out
    curve = read_curve(tmp_path / "model")
    assert [line["step"] for line in curve if "loss" in line] == list(range(1, 17))
    rates = [line["learning_rate"] for line in curve if "loss" in line]
    assert rates[5:9] == [rates[5]] * 4 and rates[9:] == sorted(rates[9:], reverse=True)  # the decay is later


def test_train_depth_and_fields_set_the_shape(corpus, tmp_path):
    settings = ["--depth", "1", "--set", "n_steps=1", "--set", "seq_len=8", "--set", "sliding_window=4"]
    more = ["--set", "sliding_layers=0", "--set", 'rope_scaling={"kind": "linear", "factor": 2.0}', "--set", "rows=2"]
    assert main(["train", str(corpus / "shards"), str(tmp_path / "model"), *settings, *more]) == 0
    cfg = load_decoder(tmp_path / "model").cfg
    assert (cfg.n_layers, cfg.d_model, cfg.max_seq_len, cfg.sliding_layers) == (1, 64, 8, (0,))
    assert cfg.rope_scaling is not None and cfg.rope_scaling.factor == 2.0


def test_sample_greedy_text_is_the_likeliest_tokens_without_a_cache(trained, capsys):
    assert main(["sample", str(trained), "kalo", "--tokens", "5", "--temperature", "0"]) == 0
    decoder, tokenizer = load_decoder(trained), load_tokenizer(trained / "tokenizer")
    ids = [tokenizer.end_of_text, *tokenizer.encode("kalo")]
    for _ in range(5):
        ids.append(int(decoder(torch.tensor([ids]))[0, -1].argmax()))
    assert capsys.readouterr().out == tokenizer.decode(ids[1:]) + "\n"


def test_sample_seed_decides_the_text(trained, capsys):
    texts = []
    for seed in ("1", "1", "2"):
        assert main(["sample", str(trained), "", "--tokens", "8", "--temperature", "1.5", "--seed", seed]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluate_prints_bits_a_byte_of_whole_documents(trained, corpus, split, capsys):
    assert main(["evaluate", str(trained), str(corpus / "shards"), "--split", split]) == 0
    shards = read_token_shards(corpus / "shards", split)
    losses = document_losses(load_decoder(trained), shards)
    first, second, third = capsys.readouterr().out.splitlines()
    assert f"{len(losses.document_ids)} documents, {losses.n_tokens.sum():,} tokens" in first
    assert second == f"bits per byte {losses.bits_per_byte:.4f}"
    assert third.startswith(f"perplexity {losses.perplexity:.3f}")


@pytest.mark.slow
def test_train_in_two_processes_has_the_losses_of_one_and_goes_on_after_a_signal(
    corpus, trained, tiny_settings, tmp_path
):
    call = ["train", corpus / "shards", tmp_path / "model", *tiny_settings, "--set", "n_steps=200", "--devices", 2]
    child = start(*call)
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("step 20/"):
            child.send_signal(signal.SIGINT)
            break
    _, err = child.communicate(timeout=600)
    assert child.returncode == 130 and len(err.splitlines()) == 1 and "run it again" in err
    again = start(*call)
    out, err = again.communicate(timeout=600)
    assert (again.returncode, err) == (0, "")
    assert "finished: " in out
    alone = ["train", str(corpus / "shards"), str(tmp_path / "alone"), *tiny_settings, "--set", "n_steps=200"]
    assert main(alone) == 0
    losses = [
        {line["step"]: line["loss"] for line in read_curve(tmp_path / name) if "loss" in line}
        for name in ("model", "alone")
    ]
    assert list(losses[0]) == list(range(1, 201))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)  # but for the order of sums
    notes = json.loads((tmp_path / "model" / "checkpoints" / "step-000200" / "state.json").read_text())["notes"]
    assert notes["n_processes"] == 2
