"""`gristmill serve` as a person starts it: what it is told, what it says, and models of the graph and of MLflow."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from mlflow.pyfunc.scoring_server import invocations

from pipeline.cli import main
from pipeline.commands.serve_sources import Registered, sources_of
from pipeline.serving.api.limits import Limits
from pipeline.serving.api.loaded import load
from pipeline.store.layout import Layout, load_current
from pipeline.tracking.server import new_client
from tests.pipeline.serving.api.tiny_models import running, write_writer
from tests.pipeline.tracking.served import load_registered

GRISTMILL = [sys.executable, "-m", "pipeline.cli", "serve"]
TOKEN = "a-token-of-the-tests"
HELLO = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 3}


@pytest.fixture(scope="module")
def decoder(byte_tokenizer, tmp_path_factory) -> Path:
    return write_writer(byte_tokenizer.directory, tmp_path_factory.mktemp("served") / "writer")


@pytest.fixture(autouse=True)
def _data(tmp_path, monkeypatch):
    monkeypatch.setenv("GRISTMILL_DATA", str(tmp_path))
    for name in ("GRISTMILL_TOKEN", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def refused(capsys, *arguments: str) -> str:
    """The one line that the command prints."""
    assert main(["serve", *arguments]) == 2
    found = capsys.readouterr()
    assert found.out == "" and found.err.count("\n") == 1
    return found.err


def test_serve_model_that_is_not_there_is_refused_before_anything_starts(capsys, decoder, tmp_path):
    assert "nowhere has not been materialised" in (told := refused(capsys, "nowhere"))
    assert "nor is it a registered model of MLflow" in told
    assert "has no database yet" in refused(capsys, "gristmill-tickets@champion")
    assert "no model.safetensors" in refused(capsys, str(tmp_path))
    assert "two models would be served as 'writer'" in refused(capsys, str(decoder), f"writer={decoder}")
    assert "unknown key `n_slot`; did you mean `n_slots`?" in refused(capsys, str(decoder), "--set", "n_slot=3")


def test_serve_public_address_needs_a_token_and_the_message_says_how(capsys, decoder, tmp_path, monkeypatch):
    for host in ("0.0.0.0", "::", "192.0.2.1", "mill.example"):
        told = refused(capsys, str(decoder), "--host", host)
        assert "there is no token" in told and "--token-file" in told and "GRISTMILL_TOKEN" in told
    monkeypatch.setenv("GRISTMILL_TOKEN", "short")
    assert "at least 16" in refused(capsys, str(decoder), "--host", "0.0.0.0")
    (tmp_path / "token").write_text("two words in this file\n")
    assert "no token" in refused(capsys, str(decoder), "--token-file", str(tmp_path / "token"))
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    told = refused(capsys, str(decoder), "--host", "192.0.2.1", "--token-file", str(tmp_path / "token"))
    assert "192.0.2.1 is no address of this machine" in told


def test_serve_port_in_use_names_who_has_it_and_another_one(capsys, decoder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        told = refused(capsys, str(decoder), "--port", str(port))
    assert f"port {port} is in use by" in told and f"--port {port + 1}" in told


def test_serve_damaged_model_ends_the_command(capsys, decoder, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(decoder, damaged)
    (damaged / "model.safetensors").write_bytes(b"no weights")
    assert main(["serve", str(damaged), "--port", "0"]) == 2
    assert "model.safetensors" in capsys.readouterr().err


def test_serve_answers_until_sigterm_and_logs_no_text_and_no_token(decoder, tmp_path):
    log = tmp_path / "access.jsonl"
    command = [*GRISTMILL, f"tiny={decoder}", "--port", "0", "--access-log", str(log)]
    environment = {**os.environ, "GRISTMILL_TOKEN": TOKEN, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            lines = []
            while not any("Serving at" in line for line in lines):
                lines.append(server.stdout.readline())
                assert lines[-1], server.stderr.read()
            url, headers = lines[-1].split()[2], {"Authorization": f"Bearer {TOKEN}"}
            answer = requests.post(f"{url}/v1/chat/completions", json=HELLO, headers=headers, timeout=60)
            assert answer.status_code == 200 and answer.json()["model"] == "tiny"
            assert requests.post(f"{url}/v1/chat/completions", json=HELLO, timeout=60).status_code == 401
        finally:
            server.send_signal(signal.SIGTERM)
            output, errors = server.communicate(timeout=60)
    assert server.returncode == 0 and errors == ""
    first, second = map(json.loads, log.read_text().splitlines())
    assert (first["status"], first["model"], first["completion_tokens"]) == (200, "tiny", 3)
    assert second["status"] == 401 and "texts" not in first
    assert TOKEN not in "".join(lines) + output + log.read_text()


def test_models_of_the_graph_are_served_by_the_names_that_other_commands_take(toy_graph):
    models = ["foundation_model", "judge=moods"]
    with running(models, toy_graph.layout.data) as server:
        model = server.get("/v1/models/foundation_model").json()["gristmill"]
        assert model["version"] == f"pretrain {load_current(toy_graph.layout, 'foundation_model').fingerprint}"
        assert server.post("/v1/completions", {"prompt": "The", "max_tokens": 3}).status_code == 200
        (one,) = server.post("/v1/classify", {"model": "judge", "input": "a happy bright story"}).json()["data"]
        assert one["label"] in ("glad", "sad")


@pytest.fixture
def copied(toy_graph, tmp_path) -> Layout:
    """The toy graph's MLflow with a store of its own, which is empty at first."""
    shutil.copytree(toy_graph.layout.mlflow, tmp_path / "mlflow")
    return Layout(tmp_path)


def test_registered_model_is_read_from_the_store_or_downloaded_and_follows_its_alias(toy_graph, copied):
    (source,) = sources_of(toy_graph.layout, ["gristmill-moods"]).values()
    found = source.found()
    assert (
        found.folder == load_current(toy_graph.layout, "moods_model").directory and found.key == "gristmill-moods 1"
    )
    (source,) = sources_of(copied, ["models:/gristmill-moods@champion"]).values()
    elsewhere = source.found()
    assert elsewhere.key == found.key and elsewhere.kind == "classification" and elsewhere.folder.is_dir()
    rows = [{"text": "a happy bright story"}]
    one, other = (load(one, Limits()) for one in (found, elsewhere))
    assert one.answer(rows)[0]["label"] == other.answer(rows)[0]["label"]
    one.close()
    other.close()
    elsewhere.cleanup()
    assert not elsewhere.folder.exists()
    new_client(copied).set_registered_model_alias("gristmill-moods", "trial", "1")
    assert Registered(copied, "gristmill-moods", "trial").key() == Registered(copied, "gristmill-moods", "1").key()


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("gristmill-moods@best", "has no alias 'best'; it has @champion (version 1), and the versions @1"),
        ("gristmill-moods@7", "has no version '7'"),
        ("gristmill-mood@champion", "has no registered model 'gristmill-mood'; it has gristmill-"),
        ("gristmill-mood", "nor is it a registered model"),
        ("gristmill-moods@", "is no model; expected for instance gristmill-tickets@champion"),
    ],
)
def test_registered_model_that_is_not_there_is_refused_with_what_is(toy_graph, capsys, monkeypatch, model, told):
    monkeypatch.setenv("GRISTMILL_DATA", str(toy_graph.layout.data))
    assert told in refused(capsys, model)


def test_alias_that_moves_exchanges_the_model(toy_graph, copied):
    client = new_client(copied)
    for alias in ("served", "other"):
        client.set_registered_model_alias("gristmill-foundation_model", alias, "1")
    with running(["gristmill-foundation_model@served"], copied.data, poll_seconds=0.05) as server:
        assert server.get("/v1/models").json()["data"][0]["gristmill"]["version"] == "gristmill-foundation_model 1"
        first = client.get_model_version("gristmill-foundation_model", "1")
        second = client.create_model_version(first.name, first.source, first.run_id)
        client.set_registered_model_alias(first.name, "served", second.version)
        while server.metric("gristmill_exchanges_total", model="gristmill-foundation_model", result="ok") < 2:
            assert server.post("/v1/completions", {"prompt": "The", "max_tokens": 3}).status_code == 200
        version = server.get("/v1/models").json()["data"][0]["gristmill"]["version"]
        assert version == f"gristmill-foundation_model {second.version}"


def test_mlflow_serves_a_model_that_belongs_to_no_task(toy_graph, tmp_path):
    served = load_registered(toy_graph.layout, "gristmill-foundation_model", tmp_path)
    body = json.dumps({"dataframe_records": [{"prompt": "The"}, {"prompt": ""}, {"prompt": None}]})
    answer = invocations(body, "application/json", served, served.metadata.get_input_schema())
    texts = [one["text"] for one in json.loads(answer.response)["predictions"]]
    assert answer.status == 200 and texts[0] and texts[2] is None
