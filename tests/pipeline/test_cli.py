"""The command line: mistakes are one clear line and exit code 2; data stages, training and generation run from a shell."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

from pipeline.cli import main
from pipeline.commands.settings import parse_settings


@dataclass(frozen=True, kw_only=True, slots=True)
class MillConfig:
    stones: Annotated[int, "how many"] = 2
    gap: Annotated[float, "millimetres"] = 0.5
    wet: Annotated[bool, "with water"] = False
    grains: Annotated[tuple[str, ...], "what goes in"] = ("rye",)
    drive: Annotated[Literal["wind", "water"], "what turns it"] = "wind"
    seed: Annotated[int | None, "none = unseeded"] = 0

    def __post_init__(self) -> None:
        if self.stones < 1:
            raise ValueError(f"stones={self.stones} must be at least 1")


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GRISTMILL_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def test_settings_of_every_type_are_parsed():
    given = ["stones=3", "gap=1e-3", "wet=true", "grains=oats, spelt", "drive=water", "seed=none"]
    assert parse_settings(MillConfig, given) == MillConfig(
        stones=3, gap=0.001, wet=True, grains=("oats", "spelt"), drive="water", seed=None
    )


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "stone=3",
            "--set stone=3: no such setting; there are stones=2, gap=0.5, wet=false, grains=rye, drive=wind, seed=0",
        ),
        ("stones", "--set stones: expected KEY=VALUE"),
        ("stones=two", "--set stones=two: expected a whole number"),
        ("gap=wide", "--set gap=wide: expected a number"),
        ("wet=maybe", "--set wet=maybe: expected true or false"),
        ("drive=steam", "--set drive=steam: expected one of wind, water"),
        ("stones=0", "stones=0 must be at least 1"),
    ],
)
def test_settings_mistake_names_it_and_what_is_allowed(setting, message):
    with pytest.raises(ValueError) as caught:
        parse_settings(MillConfig, [setting])
    assert str(caught.value) == message


def _one_line(capsys) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["stage", "clean", "no/such/folder", "--out", "out"], "no/such/folder"),
        (["stage", "filter", ".", "--out", "out"], "not a finished output"),
        (["stage", "clean", ".", "--out", "out", "--set", "speed=3"], "no such setting"),
        (["train", "tokens", "tokenizer", "--out", "out"], "tokens"),
        (["generate", "hello"], "has not been materialised"),
        (["generate", "hello", "--model", "no/such/model"], "no/such/model"),
        (["classify", "sarcasm", "hello"], "sarcasm"),
        (["trace", "https://example.org/none"], "materialised"),
        (["gc", "--keep", "0"], "--keep is 0"),
        (["ui", "--dagster-port", "3456", "--mlflow-port", "3456"], "3456"),
    ],
)
def test_cli_mistake_is_one_line_and_exit_code_2(arguments, part, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    line = _one_line(capsys)
    assert line.startswith("gristmill: ")
    assert part in line


def test_cli_debug_shows_the_traceback(capsys):
    assert main(["generate", "hello", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_cli_unknown_command_lists_all(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["grind"])
    assert caught.value.code == 2
    assert "demo" in capsys.readouterr().err


def test_cli_help_imports_nothing_heavy():
    """Every start of the command line pays for what its parser imports."""
    code = (
        "import sys, pipeline.cli as cli; cli.build_parser().format_help();"
        "print([name for name in ('dagster', 'mlflow', 'torch', 'pyarrow', 'numpy', 'rich') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout.strip() == "[]"
