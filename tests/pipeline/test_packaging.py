"""What Dagster's own tools and an installed wheel find of this project."""

import importlib
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import dagster as dg
import yaml

from pipeline.defs.instance import WORKSPACE
from pipeline.defs.run_process import CODE_LOCATION

ROOT = Path(__file__).resolve().parents[2]
CARRIED = (".yaml", ".json", ".html", ".css", ".js", ".svg")
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


def test_wheel_holds_the_files_that_are_no_code(tmp_path):
    for name in ("pipeline", "model"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    subprocess.run([sys.executable, "-c", BUILD, "dist"], cwd=tmp_path, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("dist/*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {str(path.relative_to(ROOT)) for path in (ROOT / "pipeline").rglob("*") if path.suffix in CARRIED}
    assert {"pipeline/dagster.yaml", "pipeline/serving/pages/index.html"} <= wanted <= held


def test_dg_dagster_and_gristmill_ui_load_the_same_code_location():
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    checkout, served = (yaml.safe_load(text) for text in ((ROOT / "workspace.yaml").read_text(), WORKSPACE))
    (shown,) = (one["python_module"] for one in served["load_from"])
    (own,) = (one["python_module"] for one in checkout["load_from"])
    assert own == {**shown, "working_directory": "."}
    project = tool["dg"]["project"]
    modules = {shown["module_name"], project["code_location_target_module"], tool["dagster"]["module_name"]}
    names = {shown["location_name"], project["code_location_name"], tool["dagster"]["code_location_name"]}
    assert names == {CODE_LOCATION}
    (module,) = modules
    assert callable(importlib.import_module(module).defs) and dg.__version__
