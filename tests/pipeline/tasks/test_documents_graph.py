"""An assistant in the graph: built from a folder, asked by command, registered, and told to forget."""

import json
import re
import shutil
from types import SimpleNamespace

import dagster as dg
import pytest

from pipeline.cli import main
from pipeline.definitions import definitions
from pipeline.store.layout import load_current, save_current
from pipeline.store.records import Checkpoint
from pipeline.store.shards import read_table
from pipeline.store.store import Outcome, Stage, Store, read_record
from pipeline.tasks.documents import DocumentsAssistant
from pipeline.tracking.packaging import imports_repository, served_code
from tests.pipeline.tracking.served import load_registered

THINGS = ("wheel", "door", "roof", "stone", "sack", "river", "bridge", "barn", "miller", "horse", "cart", "oven")
COLOURS = ("red", "green", "blue", "white", "brown", "grey", "black", "yellow", "pink", "golden", "silver", "violet")
ASKED = "The oven is ____ and was mended by Mister Ovenson."
MODELS = """
[foundation_model]
kind = "pretrain"

[writer]
kind = "open"
folder = "weights"

[eyes]
kind = "open"
folder = "weights"
"""
TASK = """
[handbook]
kind = "documents"
base = "writer"
embedder = "eyes"
documents = { path = "manuals" }

[handbook.finetune]
max_answer_tokens = 4

[handbook.evaluation]
prompted_examples = 1
"""
ASSETS = [f"handbook_{part}" for part in ("pages", "documents", "passages", "examples", "model", "evaluation")]


def text_of(thing, colour):
    return f"The {thing}\n\nThe {thing} is {colour} and was mended by Mister {thing.title()}son.\n"


@pytest.fixture(scope="module")
def handbook(tmp_path_factory, write_project, write_decoder, embedder):
    """A project whose two open models are there, and only the assets of its assistant are built."""
    layout = write_project(tmp_path_factory.mktemp("handbook") / "data")
    manuals, weights = layout.data / "manuals", layout.data / "weights"
    manuals.mkdir()
    weights.mkdir()
    for thing, colour in zip(THINGS, COLOURS, strict=True):
        (manuals / f"{thing}.txt").write_text(text_of(thing, colour))
    layout.models_toml.write_text(MODELS)
    layout.tasks_toml.write_text(layout.tasks_toml.read_text() + TASK)
    shape = {"n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "d_model": 16, "d_head": 8, "d_ff": 32}
    decoder = write_decoder(tmp_path_factory.mktemp("writer") / "model", max_seq_len=1024, **shape)
    for name, model in (("writer", decoder), ("eyes", embedder)):
        save_current(layout, f"base/{name}", imported(Store(root=layout.store), name, model))
    with pytest.MonkeyPatch.context() as patch, dg.DagsterInstance.ephemeral(str(layout.data)) as instance:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("GRISTMILL_DATA", str(layout.data))

        def run():
            quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
            keys = [dg.AssetKey(asset) for asset in ASSETS]
            job = definitions(layout).resolve_job_def("demo")
            return job.execute_in_process(instance=instance, asset_selection=keys, run_config=quiet)

        yield SimpleNamespace(layout=layout, manuals=manuals, run=run, first=run())


def imported(store, name, model):
    def copy(cfg, inputs, work):
        shutil.copytree(model.directory, work.directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
        return Outcome(rows=0)

    return store.build(Stage(name="base", version=1, function=copy, handle=Checkpoint), {"name": name}).handle


def asked(capsys, question=ASKED):
    assert main(["answer", "handbook", question, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_assistant_is_built_from_a_folder_and_its_checks_pass(handbook):
    assert handbook.first.success
    checks = {
        f"{one.asset_key.path[-1]}.{one.check_name}": one.passed
        for one in handbook.first.get_asset_check_evaluations()
    }
    for name in ("pages.not_empty", "documents.conservation", "passages.conservation", "examples.conservation"):
        assert checks[f"handbook_{name}"]
    model = load_current(handbook.layout, "handbook_model").directory
    writer, eyes = (load_current(handbook.layout, f"base/{name}").directory for name in ("writer", "eyes"))
    assert (model / "model.safetensors").samefile(writer / "model.safetensors")
    assert (model / "embedder" / "model.safetensors").samefile(eyes / "model.safetensors")


def test_answer_is_printed_with_the_addresses_of_its_passages(handbook, capsys):
    assert main(["answer", "handbook", ASKED]) == 0
    answer, *passages = capsys.readouterr().out.splitlines()
    (mark,) = re.findall(r"\[\d\]", answer)
    assert "violet" in answer and len(passages) == 1
    assert passages[0].startswith(f"{mark} file:///") and "oven.txt" in passages[0]
    assert "characters 0 to" in passages[0]
    assert main(["answer", "handbook", "How do quantum computers factor integers efficiently?"]) == 0
    assert capsys.readouterr().out == "The documents do not answer this question.\n"


def test_registered_assistant_answers_without_the_repository(handbook, tmp_path, capsys):
    import pandas as pd

    assert not imports_repository(served_code(DocumentsAssistant))
    model = load_registered(handbook.layout, "gristmill-handbook", tmp_path)
    assert model.metadata.get_input_schema().input_names() == ["question"]
    row = model.predict(pd.DataFrame({"question": [ASKED]})).iloc[0]
    expected = asked(capsys)
    assert row["answer"] == expected["answer"] and list(row["citations"]) == expected["citations"]
    requirements = next(tmp_path.rglob("requirements.txt")).read_text()
    assert "bm25s==" in requirements


def test_forgotten_document_is_gone_at_once_then_from_the_model_then_from_the_disk(handbook, capsys):
    old = load_current(handbook.layout, "handbook_model").directory
    assert "violet" in asked(capsys)["answer"]
    assert main(["forget", "oven.txt", "--yes"]) == 0
    told = capsys.readouterr().out
    assert "Models that answer from it" in told and "handbook_model, gristmill-handbook" in told
    answer = asked(capsys)
    assert "violet" not in json.dumps(answer) and "oven" not in json.dumps(answer["citations"])

    before = read_record(load_current(handbook.layout, "handbook_passages").directory)["measures"]
    (handbook.manuals / "door.txt").write_text(text_of("door", "crimson"))  # a changed page costs its own passages
    assert handbook.run().success
    measures = read_record(load_current(handbook.layout, "handbook_passages").directory)["measures"]
    assert measures["embedded"] == 1 and measures["reused"] == before["passages"] - 2
    new = load_current(handbook.layout, "handbook_model").directory
    assert new != old
    texts = read_table(new / "passages" / "passages.parquet")["text"].to_pylist()
    assert texts and not any("violet" in text for text in texts)
    examples = load_current(handbook.layout, "handbook_examples").directory / "examples.parquet"
    assert not any("oven" in question.lower() for question in read_table(examples)["question"].to_pylist())

    assert main(["forget", "--purge", "--yes"]) == 0
    assert not old.exists()
    left = [path for path in handbook.layout.store.rglob("*.parquet") if b"violet" in table_text(path)]
    assert not left


def table_text(path):
    return json.dumps(read_table(path).to_pylist(), default=str).encode()
