"""The benchmark of the GPU walks its whole path on a CPU, so that it works the first time where there is one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def run(*flags: str) -> str:
    answer = subprocess.run(
        [sys.executable, "-m", "bench.gpu", *flags],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_gpu_benchmark_without_a_device_says_so():
    assert "no CUDA device here" in run()


@pytest.mark.slow
def test_gpu_benchmark_walks_its_path_on_a_cpu():
    out = run("--device", "cpu", "--tiny")
    assert out.count(" | yes |\n") == 6 and "NO" not in out and "FAULT" not in out
    assert "| less tiny" in out and "| deterministic |" in out and "bfloat16 ends +0.0000 nats" in out


@pytest.mark.slow
def test_gpu_benchmark_begins_no_part_after_its_time():
    assert run("--device", "cpu", "--tiny", "--seconds", "0").count("left out") == 4
