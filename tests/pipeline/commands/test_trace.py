"""`gristmill trace` on the whole toy graph, with models that were really trained."""

import io
import json
import shutil
import subprocess
import sys

import pytest

from model.data.examples import ExampleBatches
from model.data.tokenizer import load_tokenizer
from model.training.config import TrainConfig
from pipeline.cli import main
from pipeline.corpus.examples.stage import read_examples
from pipeline.store.layout import Layout, load_current
from pipeline.store.store import read_record
from pipeline.tasks.classification import KIND, ClassificationFinetuneConfig
from tests.pipeline.training.steps import documents_of_step

HEAVY = ("torch", "mlflow", "dagster", "duckdb", "pandas", "scipy", "trafilatura")


@pytest.fixture(scope="module")
def layout(toy_graph, tmp_path_factory) -> Layout:
    copy = tmp_path_factory.mktemp("traced") / "data"
    shutil.copytree(toy_graph.layout.data, copy, ignore=shutil.ignore_patterns("mlflow", "dagster", "parts"))
    return Layout(copy)


@pytest.fixture
def told(layout, monkeypatch, capsys):
    """What the command prints, and its exit code."""

    def run(*arguments, stdin=b""):
        monkeypatch.setenv("GRISTMILL_DATA", str(layout.data))
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main(["trace", *arguments])
        captured = capsys.readouterr()
        return captured.out, captured.err, code

    return run


def config_of(model):
    record = read_record(model.directory)
    assert record is not None
    return record["config"]


def training(layout) -> TrainConfig:
    """As the foundation model was trained."""
    return TrainConfig(**config_of(load_current(layout, "foundation_model"))["train"])


def objects(told, *arguments, **given):
    out, _, code = told(*arguments, "--json", **given)
    assert code == 0
    return json.loads(out)


def test_trace_of_a_trained_page_names_both_models_in_one_heading_and_a_line_a_stage(told):
    out, _, code = told("tale-05.txt")
    lines = out.splitlines()
    assert code == 0 and lines[0].endswith("/pages/tale-05.txt") and not lines[0].startswith(" ")
    stages = [line.split()[0] for line in lines[2:] if line.startswith("  ") and line[2] != " "]
    assert stages[:2] == ["collect", "clean"] and stages[-2:] == ["tokenize", "models"]
    assert "moods_model" in out and "foundation_model" in out
    assert all(len(line) <= 100 for line in lines[1:])


def test_trace_steps_of_pages_are_those_whose_documents_the_training_read(told, layout):
    model, train = load_current(layout, "foundation_model"), training(layout)
    tokens = load_current(layout, "token_shards").directory
    read = {step: documents_of_step(tokens, train, step) for step in range(1, model.rows + 1)}
    for name in ("tale-05.txt", "story-03.html", "note-02.md"):
        (page,) = objects(told, name)["pages"]
        (own,) = [one for one in page["models"] if one["name"] == "foundation_model"]
        steps = sorted({step for seen in own["documents"] for step in seen["steps"]})
        document = page["stages"][-1]["document_id"]
        assert steps == [step for step, documents in read.items() if document in documents]
        assert own["n_steps_seen"] == len(steps)


def test_trace_step_lists_the_documents_of_that_step_with_urls_and_licence(told, layout):
    found = objects(told, "--step", "foundation_model", "7")
    train = training(layout)
    expected = documents_of_step(load_current(layout, "token_shards").directory, train, 7)
    assert [one["document_id"] for one in found["documents"]] == expected
    assert found["tokens"] == train.rows * train.seq_len == sum(one["tokens"] for one in found["by_source"])
    assert {one["licence"] for one in found["documents"]} == {"ours"}
    assert all("/pages/" in one["url"] for one in found["documents"])
    out, _, _ = told("--step", str(load_current(layout, "foundation_model").directory), "5-7")
    assert "steps 5-7 of 30" in out and "local-texts" in out and "ours" in out


def test_trace_step_of_a_fine_tuned_model_lists_its_examples(told, layout):
    model, examples = (load_current(layout, name) for name in ("moods_model", "moods_examples"))
    tokenizer = load_tokenizer(model.directory / "tokenizer")
    encoded = KIND.encode(examples, read_examples(examples.directory, "train"), tokenizer, 32, "right")
    cfg = ClassificationFinetuneConfig(**config_of(model))
    batches = ExampleBatches(encoded, rows=min(cfg.rows, len(encoded.ids)), seed=cfg.seed)
    found = objects(told, "--step", "moods_model", "3")
    assert [one["document_id"] for one in found["documents"]] == batches.documents_of_batch(2)
    assert {one["label"] for one in found["documents"]} <= {"glad", "sad"}


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--step", "foundation_model", "31"), "step 31: never trained"),
        (("--step", "foundation_model", "0"), "steps go from 1 to 30"),
        (("--step", "foundation_model", "5-4"), "steps 5 to 4: never trained"),
        (("--step", "foundation_model", "first"), "expected a step such as 1234"),
        (("--step", "token_shards", "1"), "expected a trained model"),
        (("--step", "no_such_model", "1"), "no_such_model"),
        (("tale-05.txt", "--step", "foundation_model", "1"), "cannot be combined with"),
        ((), "nothing to trace"),
        (("nowhere.txt",), "is not a URL"),
    ],
)
def test_trace_mistake_is_one_line(told, arguments, part):
    out, err, code = told(*arguments)
    assert code == 2 and out == "" and part in err.splitlines()[-1]


def test_trace_text_from_stdin_finds_its_page(told, layout):
    text = (layout.data / "pages" / "tale-07.txt").read_text()
    best = objects(told, "-", stdin=" ".join(text.split()[30:110]).encode())["pages"][0]
    assert best["url"].endswith("tale-07.txt") and best["match"]["how"] == "passage"


def test_trace_of_a_labelled_example_shows_its_model(told, layout):
    line = json.loads((layout.data / "moods.jsonl").read_text().splitlines()[4])
    (example,) = objects(told, line["text"])["examples"]
    assert (example["asset"], example["label"]) == ("moods_examples", line["mood"])
    assert "moods_model" in [model["name"] for model in example["models"]]


def test_trace_of_a_denied_page_says_since_when_and_why(told, layout):
    row = {"url": None, "date": "2026-01-31", "reason": "asked for", "asked_by": "NAME"}
    row["page_id"] = objects(told, "tale-09.txt")["pages"][0]["page_id"]
    layout.denied.write_text(json.dumps(row) + "\n")
    try:
        assert "asked for, on 2026-01-31 by NAME" in told("tale-09.txt")[0]
        assert "denied" not in told("tale-08.txt")[0]
    finally:
        layout.denied.unlink()


def test_trace_loads_nothing_heavy(layout, told):
    told("tale-05.txt")  # makes the index
    run = "import sys; from pipeline.cli import main; main(['trace', 'tale-05.txt'])"
    code = f"{run}; print(set(sys.modules) & set({HEAVY}))"
    environment = {"GRISTMILL_DATA": str(layout.data), "PYTHONPATH": ":".join(path for path in sys.path if path)}
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[-1] == "set()"


def test_trace_of_a_file_that_members_leaves_out_says_so(told, layout, tmp_path):
    """It was told that the name is no URL, as it is of a file that never existed."""
    sources = layout.sources_toml.read_text()
    (tmp_path / "drafts").mkdir()
    (tmp_path / "drafts" / "old story.md").write_text("# Old")
    table = f'\n[notes]\nkind = "files"\npath = "{tmp_path}"\nmembers = ["**/*.md", "!drafts/**"]\n'
    layout.sources_toml.write_text(sources + table)
    try:
        out, err, code = told("drafts/old story.md")
        assert (out, code) == ("", 2)
        assert 'is left out of source `notes` by members: the glob "!drafts/**" excludes it' in err
        _, err, code = told("drafts/never.md")
        assert code == 2 and "no source has a file of that name" in err
    finally:
        layout.sources_toml.write_text(sources)
