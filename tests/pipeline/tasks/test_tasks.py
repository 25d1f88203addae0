"""tasks.toml: what it may hold, and a clear message for every mistake."""

from pathlib import Path

import pytest

from pipeline.corpus.collect.sources import PackageSource
from pipeline.corpus.examples.stage import LabelledFile
from pipeline.tasks.tasks_toml import read_tasks

TICKETS = """
[tickets]
kind = "classification"
base = "foundation_model"
data = { path = "labelled/tickets.csv" }
text = "subject"
label = "queue"
"""
PACKAGED = """
[mails]
kind = "classification"
base = "foundation_model"
text = "text"
label = "spam"
labels = { "1" = "spam", "0" = "ham" }
data.package = "mails"
data.version = "1.0"
data.file = "sdist"
data.sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
data.members = "mails/rows.csv"
"""


def written(tmp_path, text: str) -> Path:
    path = tmp_path / "tasks.toml"
    path.write_text(text)
    return path


def test_read_tasks_own_file_takes_six_lines(tmp_path):
    (task,) = read_tasks(written(tmp_path, TICKETS)).values()
    assert task.name == "tickets"
    assert task.data == LabelledFile(tmp_path / "labelled" / "tickets.csv")
    assert (task.examples.text, task.examples.label, task.examples.labels) == ("subject", "queue", ())


def test_read_tasks_package_and_labels(tmp_path):
    task = read_tasks(written(tmp_path, TICKETS + PACKAGED))["mails"]
    assert isinstance(task.data, PackageSource)
    assert task.data.members == ("mails/rows.csv",)
    assert task.examples.names() == {"0": "ham", "1": "spam"}


def test_read_tasks_settings_override_defaults(tmp_path):
    text = TICKETS + "[tickets.finetune]\nepochs = 7\n[tickets.examples]\ntest_fraction = 0.2\n"
    task = read_tasks(written(tmp_path, text))["tickets"]
    assert task.finetune.epochs == 7
    assert task.examples.test_fraction == 0.2


def test_read_tasks_list_of_labels_names_them_as_they_are(tmp_path):
    task = read_tasks(written(tmp_path, TICKETS + 'labels = ["b", "a"]'))["tickets"]
    assert task.examples.names() == {"a": "a", "b": "b"}


def test_read_tasks_no_file_means_no_tasks(tmp_path):
    assert read_tasks(tmp_path / "tasks.toml") == {}


def test_read_tasks_of_the_project_has_the_sarcasm_task():
    task = read_tasks(Path(__file__).parents[3] / "data" / "tasks.toml")["sarcasm"]
    assert isinstance(task.data, PackageSource) and task.data.package == "evals"
    assert set(task.examples.names().values()) == {"sarcastic", "not_sarcastic"}


def replaced(old: str, new: str, text: str = TICKETS) -> str:
    assert old in text
    return text.replace(old, new)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tickets", r"tasks\.toml: not valid TOML"),
        ("tickets = 3", r"key 'tickets': a task is a table"),
        (replaced("[tickets]", "[Tickets]"), r"table \[Tickets\]: a task's name has lower-case"),
        (
            replaced('kind = "classification"', 'kind = "ranking"'),
            "kind = 'ranking' is not one of: classification",
        ),
        (replaced('kind = "classification"', ""), r"\[tickets\]: kind is missing"),
        (replaced("foundation_model", "gpt"), r"base = 'gpt' is not one of: foundation_model"),
        (replaced('text = "subject"', ""), "text is missing, a text is needed"),
        (replaced('text = "subject"', "text = 1"), "text = 1 must be a text"),
        (replaced('text = "subject"', 'txt = "subject"'), "unknown key 'txt'; allowed are kind, base, data, text"),
        (replaced("path =", "file ="), "unknown key.*file|package is missing"),
        (replaced('{ path = "labelled/tickets.csv" }', '"tickets.csv"'), "got 'tickets.csv', expected { path = "),
        (replaced('label = "queue"', 'label = "subject"'), r"text and label are both 'subject'"),
        (TICKETS + "labels = 3", "labels is a table of texts"),
        (TICKETS + 'labels = ["a=b", "c"]', "label name 'a=b' must not"),
        (TICKETS + 'labels = ["a"]', "has one label"),
        (TICKETS + "[tickets.finetune]\nepoch = 1", r"key finetune: unknown key 'epoch'; allowed are .*epochs"),
        (TICKETS + "[tickets.finetune]\nepochs = 1.5", r"epochs = 1\.5 must be a whole number"),
        (TICKETS + "[tickets.finetune]\nepochs = true", "epochs = True must be a whole number"),
        (TICKETS + "[tickets.finetune]\nepochs = 0", r"table \[tickets\.finetune\]: epochs=0 must be at least 1"),
        (TICKETS + "[tickets.finetune]\ninitialisation = 'best'", "is not one of: 'pretrained', 'random'"),
        (TICKETS + "finetune = 3", "key finetune: got 3, expected a table"),
        (TICKETS + "[tickets.examples]\ntest_fraction = 2", r"test_fraction=2\.0 must lie between 0 and 1"),
        (TICKETS + "[tickets.examples]\ntext = 'body'", r"text belongs in \[tickets\]"),
        (replaced('"sdist"', '"egg"', PACKAGED), "file = 'egg' is not one of: 'sdist', 'wheel'"),
        (replaced("0000", "00zz", PACKAGED), "sha256 is .* expected 64 hexadecimal digits"),
        (replaced('data.version = "1.0"', "", PACKAGED), "key data: version is missing"),
    ],
)
def test_read_tasks_mistake_is_named_with_its_place(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as raised:
        read_tasks(written(tmp_path, text))
    assert str(tmp_path / "tasks.toml") in str(raised.value)
