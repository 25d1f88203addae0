"""The command line: a mistake is one clear line and exit code 2; stages, training and generation run from a shell."""

import os
import re
import subprocess
import sys

import pytest

from pipeline.cli import main


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GRISTMILL_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


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
        (["stage", "clean", ".", "--out", "out", "--set", "speed=3"], "unknown key `speed`"),
        (["train", "tokens", "tokenizer", "--out", "out"], "tokens"),
        (["generate", "hello"], "has not been materialised"),
        (["generate", "hello", "--model", "no/such/model"], "no/such/model"),
        (["classify", "sarcasm", "hello"], "sarcasm"),
        (["trace", "https://example.org/none"], "nothing to trace"),
        (["gc", "--keep", "0"], "--keep is 0"),
        (["ui", "--dagster-port", "3456", "--mlflow-port", "3456"], "3456"),
    ],
)
def test_cli_mistake_is_one_line_and_exit_code_2(arguments, part, capsys, tmp_path, data_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["init", str(data_folder)]) == 0
    capsys.readouterr()
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


def test_cli_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert re.fullmatch(r"gristmill \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize("module", ["pipeline", "pipeline.commands.demo"])
def test_cli_runs_as_a_module(module, tmp_path):
    """`python -m pipeline.commands.demo` once did nothing, silently."""
    environment = {**os.environ, "GRISTMILL_DATA": str(tmp_path / "none")}
    command = [sys.executable, "-m", module, *(["run"] if module == "pipeline" else [])]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 2
    assert "gristmill init" in answer.stderr


def test_cli_help_imports_nothing_heavy():
    """Every start of the command line pays for what its parser imports."""
    code = (
        "import sys, pipeline.cli as cli; cli.build_parser().format_help();"
        "print([name for name in ('dagster', 'mlflow', 'torch', 'pyarrow', 'numpy', 'rich') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600)
    assert answer.stdout.strip() == "[]"


def test_cli_chain_from_raw_pages_to_generated_text(toy_layout, tmp_path, monkeypatch, capsys):
    """Every stage takes the folder that the one before has written; nothing of it needs Dagster."""
    monkeypatch.setenv("GRISTMILL_DATA", str(toy_layout.data))
    monkeypatch.chdir(tmp_path)
    raw = str(toy_layout.data / "pages")
    tiny = ["n_layers=1", "d_model=32", "n_heads=2", "seq_len=32", "rows=4", "n_steps=6", "n_validation_batches=1"]
    for line in (
        f"stage clean {raw} --out documents --workers 1",
        "stage signals documents --out signals --workers 1",
        "stage filter documents signals --out filtered --workers 1",
        "stage dedup filtered --out unique --workers 1",
        "stage split unique --out split --set test_fraction=0.1",
        "stage tokenizer split --out tokenizer --set vocab_size=300 --set compared_with=",
        "stage tokenize tokenizer split --out tokens --workers 1",
        "train tokens tokenizer --out model " + " ".join(f"--set {setting}" for setting in tiny),
        "evaluate model tokens --out report --set n_samples=1",
    ):
        assert main(line.split()) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    assert re.search(r"filter .*dropped: too_few_words 1", told)
    assert "Evaluation of the language model" in told

    assert main(["stage", "filter", "documents", "signals", "--out", "filtered"]) == 0
    assert "(unchanged)" in capsys.readouterr().out
    assert main(["generate", "The miller", "--model", "model", "--tokens", "5"]) == 0
    assert capsys.readouterr().out.startswith("The miller")
    assert main(["stage", "tokenize", "split", "--out", "other"]) == 2
    assert (
        "`tokenize` needs one output of `tokenizer` or `base` or `pretrain` or `continue`, got 0"
        in capsys.readouterr().err
    )
    assert main(["stage", "dedup", "documents", "--out", "other"]) == 2
    assert "is an output of `clean`; `dedup` reads the output of `filter`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [(["expotr", "foundation_model", "out"], "export"), (["stage", "clena", ".", "--out", "out"], "clean")],
)
def test_cli_misspelt_choice_suggests_the_nearest(arguments, meant, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.rstrip().endswith(f"did you mean `{meant}`?")
