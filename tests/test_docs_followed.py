"""What README, docs and the comments of data/*.toml tell people to write works when it is followed to the letter.

The examples are put into a project as the text describes it: a folder `data`, a folder `my-notes` beside it, and
`data/tickets.csv`. A new user was told to write a path that led elsewhere (own trials, A4), and an example of a
setting that does not exist would stop the graph from loading.
"""

import json
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import duckdb
import pytest

from pipeline.cli import build_parser, main
from pipeline.corpus.collect.sources import KINDS as SOURCE_KINDS
from pipeline.corpus.collect.sources import read_sources
from pipeline.definitions import definitions
from pipeline.store.layout import Layout
from pipeline.tasks.declared import declared_assets, missing_inputs
from pipeline.tasks.tasks_toml import read_tasks
from pipeline.training.models_toml import KINDS as MODEL_KINDS
from pipeline.training.models_toml import read_models
from tests.test_readme import PAGES, ROOT, _blocks, _commands

TICKETS = """subject,queue,priority
"Cannot log in since this morning",access,1
"Invoice 4711 shows the wrong VAT",Billing,2
"Invoice 4712 shows the wrong VAT",billing,3
"""
REVIEWS = "review,stars\nA film of great charm,5\nDull and far too long,1\n"
PLACES = "Anna\tB-person\nlives\tO\nin\tO\nRome\tB-place\n"
VISITS = '{"text": "Anna lives in Rome", "spans": [{"from": 14, "to": 18, "type": "CITY"}]}\n'
NOTE = (
    "# Ideas\n\n" + "The mill by the river grinds the corn of the village, and the wheel turns with the water. " * 20
)
ASKED = {"question": "Who grinds?", "answers": [{"text": "Anna", "answer_start": 0}]}
QUESTIONS = {
    "questions.json": {"data": [{"paragraphs": [{"context": "Anna grinds.", "qas": [ASKED]}]}]},
    "contracts.jsonl": {"ask": "Who pays?", "clause": "The tenant pays.", "answer": "The tenant", "at": 0},
}
ABOUT = {"question": "What turns with the water?", "answers": ["the wheel"], "document": "wheel.md"}
ANSWERED = {"instruction": "Who grinds?", "output": "Anna."}
COMPARED = {"prompt": "Who grinds?", "chosen": "Anna does.", "rejected": "Guess."}
DESCRIBED = {  # what the text around an example describes, relative to the project
    "my-notes",
    "my-pages",
    "my-model",
    "data/tickets.csv",
    "data/reviews.csv",
    "data/places.conll",
    "data/visits.jsonl",
}
EXAMPLES = [(page, i, block) for page in PAGES for i, block in enumerate(_blocks(page, "toml"))]
MODELS = ROOT / "data" / "models.toml"
SHIPPED = ("sources", "models", "tasks", "config")


@pytest.fixture
def project(tmp_path) -> Path:
    for name in ("my-notes", "my-pages", "my-model", "filings", "guidelines"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ideas.md").write_text(NOTE)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tickets.csv").write_text(TICKETS)
    (tmp_path / "data" / "reviews.csv").write_text(REVIEWS)
    (tmp_path / "data" / "places.conll").write_text(PLACES)
    (tmp_path / "data" / "visits.jsonl").write_text(VISITS)
    for name, content in QUESTIONS.items():
        (tmp_path / "data" / name).write_text(json.dumps(content))
    (tmp_path / "data" / "manuals").mkdir()
    (tmp_path / "data" / "manuals" / "wheel.md").write_text(NOTE)
    (tmp_path / "data" / "questions.jsonl").write_text(json.dumps(ABOUT))
    (tmp_path / "data" / "answers.jsonl").write_text(json.dumps(ANSWERED))
    (tmp_path / "data" / "preferences.jsonl").write_text(json.dumps(COMPARED))
    shutil.copyfile(MODELS, tmp_path / "data" / "models.toml")
    pages = ROOT / "docs" / "your-data.md"
    blocks = _blocks(pages, "toml")
    for name, table in (("sources", "[my-notes]"), ("tasks", "[tickets]")):
        first = next(block for block in blocks if block.startswith(table))
        (tmp_path / "data" / f"{name}.toml").write_text(first)
    return tmp_path


@pytest.mark.parametrize(("page", "i", "block"), EXAMPLES, ids=[f"{page.stem}-{i}" for page, i, _ in EXAMPLES])
def test_toml_example_loads_in_the_project_that_the_text_describes(project, page, i, block):
    layout = Layout(project / "data")
    tables = tomllib.loads(block)
    table = next(iter(tables.values()))
    if "kind" in table:
        files = {
            **dict.fromkeys(SOURCE_KINDS, layout.sources_toml),
            **dict.fromkeys(MODEL_KINDS, layout.models_toml),
        }
        path = files.get(table["kind"], layout.tasks_toml)
        if path == layout.models_toml and "foundation_model" not in tables:  # added to the default models
            block = f"{MODELS.read_text()}\n{block}"
        path.write_text(block)
        assert read_sources(layout.sources_toml) and read_tasks(layout.tasks_toml) and read_models(layout.models_toml)
    elif set(tables) == {"tickets"}:  # only settings, for the table above
        layout.tasks_toml.write_text(layout.tasks_toml.read_text() + block)
        assert read_tasks(layout.tasks_toml)
    elif set(tables) == {"handbook"}:  # settings of the task of an example above
        layout.tasks_toml.write_text(f"{_blocks(page, 'toml')[0]}\n{block}")
        assert read_tasks(layout.tasks_toml)
    else:
        if "manuals_reader" in block:  # the model of an example above, which learns from the default sources
            (reader,) = (one for one in _blocks(page, "toml") if one.startswith("[manuals_reader]"))
            layout.models_toml.write_text(f"{MODELS.read_text()}\n{reader}")
            shutil.copyfile(MODELS.with_name("sources.toml"), layout.sources_toml)
        layout.config_toml.write_text(block)
        definitions(layout)
    assert missing_inputs(layout) == []


@pytest.mark.parametrize("name", SHIPPED)
def test_examples_in_the_comments_of_shipped_files_load(tmp_path, name):
    """The project's own files, with what their comments propose."""
    (tmp_path / "my-folder").mkdir()
    shutil.copytree(ROOT / "data", tmp_path / "data", ignore=lambda folder, names: set(names) - _shipped())
    (tmp_path / "data" / "tickets.csv").write_text(TICKETS)
    shutil.copyfile(MODELS, tmp_path / "data" / "models.toml")
    layout = Layout(tmp_path / "data")
    proposed = _proposed((layout.data / f"{name}.toml").read_text())
    assert tomllib.loads(proposed)
    path = layout.data / f"{name}.toml"
    path.write_text(f"{path.read_text()}\n{proposed}" if name != "config" else proposed)
    definitions(layout)
    assert missing_inputs(layout) == []


def test_examples_in_the_files_of_a_new_project_load(tmp_path):
    """`gristmill init` writes comments that are examples, too."""
    layout = Layout(tmp_path / "mine")
    assert main(["init", str(layout.data)]) == 0
    (layout.data / "text").mkdir()
    (layout.data / "tickets.csv").write_text(TICKETS)
    for path in (layout.tasks_toml, layout.config_toml):
        path.write_text(_proposed(path.read_text()))
    sources = layout.sources_toml.read_text()
    layout.sources_toml.write_text(re.sub(r"^# (?=\w+ = )", "", sources, flags=re.MULTILINE))
    definitions(layout)
    assert missing_inputs(layout) == []


def _shipped() -> set[str]:
    return {f"{name}.toml" for name in SHIPPED}


def _proposed(text: str) -> str:
    """The TOML in the comments: from a line `# [table]` on, lines that are TOML or comments of it."""
    lines, inside = [], False
    for line in text.splitlines():
        content = line.removeprefix("#").removeprefix(" ")
        inside = line.startswith("#") and (
            bool(re.fullmatch(r"\[[\w.\"-]+\](\s+#.*)?", content))
            or (inside and bool(re.match(r"(\w+ = |# |$)", content)))
        )
        if inside:
            lines.append(content)
    return "\n".join(lines)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_in_commands_are_described_or_written_by_a_command_before(page, toy_layout):
    assets = declared_assets(toy_layout) | {"sarcasm_examples"}  # of the shipped tasks.toml
    written: set[str] = set()
    for command in _commands(page):
        args = build_parser().parse_args(shlex.split(command.partition(" < ")[0], comments=True)[1:])
        inputs = [*getattr(args, "inputs", []), *(getattr(args, name, None) for name in ("tokens", "model"))]
        if getattr(args, "out", None) and hasattr(args, "workers"):
            read = {one.rstrip("/") for one in inputs if isinstance(one, str)}
            assert read <= DESCRIBED | written | assets, command
            written.add(args.out.rstrip("/"))


def test_stages_run_one_by_one_as_the_text_says(project, monkeypatch):
    monkeypatch.chdir(project)
    monkeypatch.delenv("GRISTMILL_DATA", raising=False)
    commands = [one for one in _commands(ROOT / "docs" / "your-data.md") if one.startswith("gristmill stage")]
    of_files = [one for one in commands if "sarcasm_examples" not in one][
        :5
    ]  # the next one reads examples of the demo
    for command in of_files:
        assert main(shlex.split(command)[1:]) == 0
    assert list((project / "out" / "lines").glob("*.parquet"))


def test_query_of_dropped_documents_finds_them(toy_graph, monkeypatch):
    (query,) = _blocks(ROOT / "docs" / "data.md", "sql")
    monkeypatch.chdir(toy_graph.layout.data.parent)
    with duckdb.connect() as database:
        reasons = {row[0] for row in database.execute(query).fetchall()}
    assert "too_few_words" in reasons


def test_address_of_mlflow_in_examples_is_that_of_the_data_folder():
    uris = set(re.findall(r"sqlite:///(data/\S+?\.db)", (ROOT / "docs" / "tasks.md").read_text()))
    assert uris == {str(Layout(Path("data")).mlflow / "mlflow.db")}
