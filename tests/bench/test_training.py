"""The benchmark of training runs at a tiny size, and says which peers it leaves out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> str:
    answer = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


@pytest.mark.slow
def test_our_contestant_times_every_step_and_what_lies_beside_the_arithmetic(tmp_path):
    data = "import sys, pathlib, bench.training_contestants as c; c.write_data(pathlib.Path(sys.argv[1]))"
    run("-c", data, str(tmp_path))
    out = run("-m", "bench.training_contestants", str(tmp_path), "ours-gpt2", "--shape", "tiny", "--steps", "8")
    result = json.loads(out.splitlines()[-1])
    assert len(result["seconds"]) == 7 and min(result["seconds"]) > 0
    assert 0 < result["data"] < sum(result["seconds"]) and result["save"] > 0 < result["report"]


@pytest.mark.slow
def test_training_benchmark_without_nanogpt_says_so_and_measures_the_rest():
    out = run(
        "-m",
        "bench.training",
        "--shapes",
        "tiny",
        "--steps",
        "12",
        "--rounds",
        "1",
        "--threads",
        "1",
        "--only",
        "speed",
    )
    assert "nanoGPT is left out: give its folder by --nanogpt" in out
    assert "| gristmill, Qwen3, Muon (default) | 0.01 M |" in out
