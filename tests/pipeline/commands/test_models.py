"""`gristmill generate`: every flag has its effect, the text comes whole or in pieces, mistakes are one line."""

from pathlib import Path

import pytest
import torch

from model.generation.sample_config import SampleConfig
from model.network.decoder import new_decoder
from model.network.registry import describe, save_model
from model.network.shape import DecoderConfig
from pipeline.cli import build_parser, main
from pipeline.corpus.tokens.tokenizer_files import write_tokenizer
from pipeline.serving.generate import generate_text

CFG = DecoderConfig(
    vocab_size=257, n_layers=2, n_heads=2, n_kv_heads=1, d_model=16, d_head=8, d_ff=32, max_seq_len=16
)
START = "abc"


@pytest.fixture
def folder(tmp_path) -> str:
    """A decoder that writes small letters: what it says about all others is made unlikely."""
    write_tokenizer(tmp_path / "model" / "tokenizer", {bytes([value]): value for value in range(256)}, "qwen2")
    model = new_decoder(CFG, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.normal_(std=0.5, generator=generator)
        weight_VD = model.lm_head.weight
        letters = 4 * weight_VD[97:123]
        weight_VD.zero_()
        weight_VD[97:123] = letters
    save_model(tmp_path / "model", model, describe(CFG))
    return str(tmp_path / "model")


def written(folder: str, capsys, *flags: str) -> str:
    assert main(["generate", START, "--model", folder, "--tokens", "12", *flags]) == 0
    return capsys.readouterr().out


def test_generate_defaults_are_those_of_sample_config():
    args, cfg = build_parser().parse_args(["generate", "a"]), SampleConfig()
    assert args.tokens == cfg.max_new_tokens and tuple(args.stop) == cfg.stop
    for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "keep_prompt_end"):
        assert getattr(args, name) == getattr(cfg, name), name


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        ("", {}),
        ("--temperature 9", {"temperature": 9.0}),
        ("--temperature 0", {"temperature": 0}),
        ("--top-k 1", {"temperature": 0}),
        ("--temperature 9 --top-k none", {"temperature": 9.0, "top_k": None}),
        ("--temperature 9 --top-p 0.5", {"temperature": 9.0, "top_p": 0.5}),
        ("--temperature 9 --min-p 0.7", {"temperature": 9.0, "min_p": 0.7}),
        ("--temperature 0 --repetition-penalty 50", {"temperature": 0, "repetition_penalty": 50.0}),
        ("--temperature 9 --seed 5", {"temperature": 9.0, "seed": 5}),
    ],
)
def test_generate_flags_are_the_settings_of_that_name(folder, capsys, flags, settings):
    (expected,) = generate_text(Path(folder), START, SampleConfig(max_new_tokens=12, **settings))
    assert written(folder, capsys, *flags.split()) == f"{START}{expected}\n"


def test_generate_flags_all_write_something_else(folder, capsys):
    flags = ("--temperature 9", "--temperature 9 --top-p 0.5", "--temperature 9 --min-p 0.7", "--temperature 0")
    others = ("--temperature 9 --seed 5", "--temperature 0 --repetition-penalty 50", "--temperature 9 --top-k none")
    texts = [written(folder, capsys, *line.split()) for line in (*flags, *others)]
    assert len(set(texts)) == len(texts)


def test_generate_stop_cuts_before_the_first_of_several(folder, capsys):
    free = written(folder, capsys, "--temperature", "0").removeprefix(START)
    cut = written(folder, capsys, "--temperature", "0", "--stop", "#", "--stop", free[4:6])
    assert cut == f"{START}{free[: free.index(free[4:6])]}\n"


def test_generate_several_samples_are_told_apart(folder, capsys):
    first, second = generate_text(Path(folder), START, SampleConfig(max_new_tokens=12), n_samples=2)
    assert written(folder, capsys, "-n", "2") == f"--- 1 of 2\n{START}{first}\n--- 2 of 2\n{START}{second}\n"


def test_generate_streamed_is_the_same_text(folder, capsys):
    assert written(folder, capsys, "--stream") == written(folder, capsys, "--no-stream")


def test_generate_long_text_is_refused_unless_its_end_is_to_be_read(folder, capsys):
    long = "a" * 40
    for flag in ("--stream", "--no-stream"):
        assert main(["generate", long, "--model", folder, flag]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and len(captured.err.splitlines()) == 1
        assert "41 tokens, the model reads at most 16" in captured.err
    assert main(["generate", long, "--model", folder, "--keep-prompt-end", "--tokens", "3"]) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--temperature", "-1"], "temperature=-1.0"),
        (["--top-k", "0"], "top_k=0"),
        (["--min-p", "2"], "min_p=2.0"),
        (["--stop", ""], "stop=('',)"),
        (["--tokens", "0"], "max_new_tokens=0"),
        (["--samples", "0"], "n_samples=0"),
    ],
)
def test_generate_number_out_of_range_is_one_line(folder, capsys, flags, message):
    assert main(["generate", START, "--model", folder, *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err and len(captured.err.splitlines()) == 1
