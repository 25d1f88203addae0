"""README and docs say what is true: files, commands, settings, links and examples are checked against the tree."""

import re
import runpy
import shlex
import shutil
import tomllib
from pathlib import Path

import pytest

from model.cli import build_parser as build_model_parser
from model.training.settings import parsed_changes
from pipeline.cli import build_parser
from pipeline.corpus.collect.sources import KINDS as SOURCE_KINDS
from pipeline.corpus.collect.sources import read_sources
from pipeline.store.chain import link_of
from pipeline.store.settings import read_assignments
from pipeline.tasks.tasks_toml import read_tasks
from pipeline.training.models_toml import KINDS as MODEL_KINDS
from pipeline.training.models_toml import read_models

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(
        ROOT / "docs" / f"{name}.md"
        for name in ("your-data", "tasks", "documents", "chat", "control", "serving", "model", "models", "compare")
    ),
]


def _blocks(page: Path, language: str) -> list[str]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [block for its_language, block in blocks if its_language == language]


def _commands(page: Path) -> list[str]:
    """Lines of code blocks that begin with gristmill."""
    lines = [line for block in _blocks(page, "") for line in block.splitlines()]
    return [
        line.removeprefix(".venv/bin/") for line in lines if line.removeprefix(".venv/bin/").startswith("gristmill ")
    ]


def test_file_map_is_what_the_docstrings_say():
    made = runpy.run_path(str(ROOT / "docs" / "make_files.py"))
    assert (ROOT / "docs" / "files.md").read_text() == made["page"](), "run python docs/make_files.py"
    assert (ROOT / "docs" / "stages.md").read_text() == made["stages_page"](), "run python docs/make_files.py"


def test_readme_is_short_and_whole():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 200
    assert "<!--" not in text, "a placeholder is still to be filled"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_make_targets_exist(page):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target in re.findall(r"(?:^|`)make ([a-z]+)", page.read_text(), re.MULTILINE):
        assert target in targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_subcommands_exist(page):
    (commands,) = [action.choices for action in build_parser()._actions if action.choices]
    for name in re.findall(r"`gristmill ([a-z-]+)", page.read_text()):
        assert name in commands


def test_readme_table_names_every_subcommand():
    (commands,) = [action.choices for action in build_parser()._actions if action.choices]
    cells = re.findall(r"^\| (`gristmill [^|]*) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    told = {name for cell in cells for name in re.findall(r"`(?:gristmill )?([a-z-]+)", cell)}
    assert told == set(commands)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_examples_parse_with_their_settings(page):
    for command in _commands(page):
        command = command.partition(" < ")[0]  # without what a shell reads from a file
        args = build_parser().parse_args(shlex.split(command, comments=True)[1:])
        if getattr(args, "set", None):
            _, config = link_of(getattr(args, "name", "pretrain")).load()
            read_assignments(config, args.set)


def test_page_examples_of_the_model_alone_parse_with_their_settings():
    start = "python -m model.cli "
    lines = [line for page in PAGES for block in _blocks(page, "") for line in block.splitlines()]
    commands = [line.removeprefix(start) for line in lines if line.startswith(start)]
    assert commands
    for command in commands:
        parsed_changes(getattr(build_model_parser().parse_args(shlex.split(command)), "set", []))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_toml_is_what_the_project_reads(page, tmp_path):
    for number, block in enumerate(_blocks(page, "toml")):
        path = tmp_path / f"{number}.toml"
        path.write_text(block)
        tables = tomllib.loads(block)
        if "kind" not in next(iter(tables.values())):
            continue  # config.toml, whose tables are those of the assets
        if next(iter(tables.values()))["kind"] in SOURCE_KINDS:
            read_sources(path)
        elif next(iter(tables.values()))["kind"] in MODEL_KINDS:
            bases = {table["base"] for table in tables.values() if "base" in table} - tables.keys()
            path.write_text("\n".join([block, *(f'[{name}]\nkind = "pretrain"' for name in bases)]))
            read_models(path)
        else:
            shutil.copyfile(ROOT / "data" / "models.toml", tmp_path / "models.toml")  # open models as bases
            read_tasks(path)
