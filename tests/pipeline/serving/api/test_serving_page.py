"""What docs/serving.md shows works: its requests, its client, its limits, its metrics and its service."""

import configparser
import dataclasses
import json
import re
import shlex
import subprocess

import pytest

from pipeline.cli import build_parser
from pipeline.serving.api.limits import Limits
from tests.pipeline.serving.api.tiny_models import running
from tests.test_readme import ROOT, _blocks

PAGE = ROOT / "docs" / "serving.md"
TEXT = PAGE.read_text("utf-8")
NAMES = {  # of the page -> of the tiny models
    "smollm2": "writer",
    "minilm": "embedder",
    "sarcasm": "moods",
    "tweet_entities": "names",
    "wikipedia_questions": "questions",
}
ADDRESS = "http://127.0.0.1:8000"
CURLS = [
    command
    for block in _blocks(PAGE, "sh")
    for command in re.findall(r"^curl .*?(?:'$|/\S+$)", block.replace("\\\n", ""), re.DOTALL | re.MULTILINE)
    if ADDRESS in command
]


@pytest.fixture(scope="module")
def documented(tiny_models, tmp_path_factory):
    models = [f"{name}={tiny_models[own]}" for name, own in NAMES.items()]
    with running(models, tmp_path_factory.mktemp("documented")) as one:
        yield one


def test_page_shows_a_request_for_every_route():
    routes = {command.partition(ADDRESS)[2].split()[0] for command in CURLS}
    assert routes == {
        *("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/classify", "/v1/extract", "/v1/answer"),
        *("/v1/models", "/v1/models/smollm2", "/healthz", "/readyz", "/metrics"),
    }


@pytest.mark.parametrize("command", CURLS, ids=range(len(CURLS)))
def test_request_of_the_page_is_answered(documented, command):
    words = ["curl", "-sS", "--fail-with-body", *shlex.split(command.replace(ADDRESS, documented.url))[1:]]
    answer = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stdout
    if '"stream": true' in command:
        assert answer.stdout.endswith("data: [DONE]\n\n")
    elif not command.endswith("/metrics"):
        assert json.loads(answer.stdout)


def test_client_of_the_page_prints_two_answers(documented, capsys):
    (program,) = _blocks(PAGE, "python")
    exec(compile(program.replace(ADDRESS, documented.url), PAGE.name, "exec"), {})
    assert len(capsys.readouterr().out) >= 120


def test_limits_of_the_page_are_those_of_the_server():
    table = TEXT.partition("## Limits")[2].partition("\n## ")[0]
    for field in dataclasses.fields(Limits):
        (row,) = re.findall(rf"^\| .*`{field.name}`.* \| (.*) \| .* \|$", table, re.MULTILINE)
        names = re.findall(r"`(\w+)`", re.search(rf"^\| (.*`{field.name}`.*?) \|", table, re.MULTILINE)[1])
        value = re.split(r", (?!\d{3})", row)[names.index(field.name)]
        assert float(value.replace(",", "")) == field.default


def test_metrics_of_the_page_are_those_of_the_server(documented):
    told = set(re.findall(r"`(gristmill_[a-z_]+)`", TEXT))
    documented.post("/v1/completions", {"prompt": "a", "max_tokens": 2})
    found = {
        line.split()[2]
        for line in documented.get("/metrics").text.splitlines()
        if line.startswith("# TYPE gristmill")
    }
    assert found == told


def test_service_of_the_page_starts_a_command_that_exists():
    (unit,) = _blocks(PAGE, "ini")
    service = configparser.ConfigParser(strict=False, interpolation=None)
    service.optionxform = str
    service.read_string(unit)
    command = shlex.split(service["Service"]["ExecStart"])
    assert build_parser().parse_args(command[1:]).models == ["gristmill-sarcasm@champion"]
    assert float(service["Service"]["TimeoutStopSec"]) > build_parser().parse_args(["serve", "a"]).drain
    (container,) = _blocks(PAGE, "dockerfile")
    start, model = (
        json.loads(found) for found in re.findall(r"^(?:ENTRYPOINT|CMD) (\[.*\])$", container, re.MULTILINE)
    )
    assert build_parser().parse_args([*start, *model][1:]).models == model
