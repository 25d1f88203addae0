"""tasks.toml: what it may hold, and a clear message for every mistake."""

from pathlib import Path

import pytest

from pipeline.corpus.collect.package import PackageSource
from pipeline.corpus.collect.url import UrlSource
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


def test_read_tasks_labelled_file_at_an_address(tmp_path):
    url = f"https://example.org/tickets.csv#sha256={'0' * 64}"
    task = read_tasks(written(tmp_path, replaced('path = "labelled/tickets.csv"', f'url = "{url}"')))["tickets"]
    assert isinstance(task.data, UrlSource) and task.data.urls == (url,)
    with pytest.raises(ValueError, match=r"tasks.toml: \[tickets\], key data: .* expected 64 hexadecimal digits"):
        read_tasks(written(tmp_path, replaced('path = "labelled/tickets.csv"', f'url = "{url[:40]}"')))


def test_read_tasks_given_splits_and_the_form_of_the_rows(tmp_path):
    keys = 'test_data = { path = "test.csv" }\ngroup = "author"\ncolumns = ["subject", "queue", "author"]\n'
    (task,) = read_tasks(written(tmp_path, TICKETS + keys)).values()
    assert task.held_out == {"test": LabelledFile(tmp_path / "test.csv")}
    assert task.all_data == {"data": task.data, "test_data": LabelledFile(tmp_path / "test.csv")}
    assert task.examples.group == "author" and task.examples.columns == ("subject", "queue", "author")
    (plain,) = read_tasks(written(tmp_path, TICKETS)).values()
    assert plain.held_out == {} and plain.examples.group is None


def test_read_tasks_settings_override_defaults(tmp_path):
    text = TICKETS + "[tickets.finetune]\nepochs = 7\n[tickets.examples]\ntest_fraction = 0.2\n"
    task = read_tasks(written(tmp_path, text))["tickets"]
    assert task.finetune.epochs == 7
    assert task.examples.test_fraction == 0.2


def test_read_tasks_list_of_labels_names_them_as_they_are(tmp_path):
    task = read_tasks(written(tmp_path, TICKETS + 'labels = ["b", "a"]'))["tickets"]
    assert task.examples.names() == {"a": "a", "b": "b"}


def test_read_tasks_rename_is_a_table_of_values_and_labels(tmp_path):
    task = read_tasks(written(tmp_path, TICKETS + 'rename = { "NEUTRAL" = "neutral", "neutrall" = "neutral" }'))[
        "tickets"
    ]
    assert task.examples.rename == ("NEUTRAL=neutral", "neutrall=neutral") and task.examples.labels == ()


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
        ("[tickets", r"tasks\.toml is not valid TOML"),
        ("tickets = 3", "tickets is 3, but a task is a table"),
        (replaced("[tickets]", "[Tickets]"), r"\[Tickets\]: a task's name has lower-case"),
        (
            replaced('kind = "classification"', 'kind = "ranking"'),
            "kind is 'ranking', expected one of classification",
        ),
        (replaced('kind = "classification"', ""), r"\[tickets\]: kind is missing"),
        (replaced("foundation_model", "gpt"), "base is 'gpt', expected one of foundation_model"),
        (replaced('text = "subject"', ""), "key `text` is missing; required: text, label"),
        (replaced('text = "subject"', "text = 1"), "text is 1, expected a text that is not empty"),
        (
            replaced('text = "subject"', 'txt = "subject"'),
            r"unknown key `txt`; did you mean `text`\? Allowed: kind, base, prompted, data, ",
        ),
        (replaced("path =", "file ="), "key `members` is missing; required: members, package, version, file, sha256"),
        (replaced('{ path = "labelled/tickets.csv" }', '"tickets.csv"'), "got 'tickets.csv', expected { path = "),
        (replaced('label = "queue"', 'label = "subject"'), r"text and label are both 'subject'"),
        (TICKETS + "labels = 3", "labels is a table of texts"),
        (TICKETS + 'labels = ["a=b", "c"]', "label name 'a=b' must not"),
        (TICKETS + 'labels = ["a"]', "has one label, 'a'"),
        (TICKETS + 'rename = ["a"]', "rename is a table of texts"),
        (
            TICKETS + "[tickets.finetune]\nepoch = 1",
            r"\[tickets\.finetune\]: unknown key `epoch`; did you mean `epochs`\? Allowed: .*epochs",
        ),
        (TICKETS + "[tickets.finetune]\nepochs = 1.5", r"epochs is 1\.5, expected a whole number"),
        (TICKETS + "[tickets.finetune]\nepochs = true", "epochs is True, expected a whole number"),
        (
            TICKETS + "[tickets.finetune]\nepochs = 0",
            r"\[tickets\.finetune\]: epochs is 0, expected a whole number of at least 1",
        ),
        (
            TICKETS + "[tickets.finetune]\ninitialisation = 'best'",
            "initialisation is 'best', expected one of pretrained, random",
        ),
        (TICKETS + "finetune = 3", r"\[tickets\.finetune\] is 3, expected a table"),
        (
            TICKETS + "[tickets.examples]\ntest_fraction = 2",
            r"\[tickets\.examples\]: test_fraction is 2, expected a number above 0 and below 1",
        ),
        (TICKETS + "[tickets.examples]\ngroup = 'author'", r"group belongs in \[tickets\]"),
        (TICKETS + "test_data = 'test.csv'", r"key test_data: got 'test.csv', expected \{ path = "),
        (TICKETS + "columns = 'subject'", "columns is 'subject', expected a list of texts"),
        (TICKETS + "[tickets.examples]\ntext = 'body'", r"text belongs in \[tickets\]"),
        (replaced('"sdist"', '"egg"', PACKAGED), "file is 'egg', expected one of sdist, wheel"),
        (replaced("0000", "00zz", PACKAGED), "sha256 is .* expected 64 hexadecimal digits"),
        (replaced('data.version = "1.0"', "", PACKAGED), "key data: key `version` is missing"),
    ],
)
def test_read_tasks_mistake_is_named_with_its_place(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as raised:
        read_tasks(written(tmp_path, text))
    assert str(tmp_path / "tasks.toml") in str(raised.value)


@pytest.mark.parametrize("name", ["foundation", "foundation_model", "corpus", "token_shards", "a" * 101])
def test_read_tasks_name_of_an_asset_is_refused(tmp_path, name):
    """A task [foundation] ended in Dagster's "depends on itself" (dagster-io/dagster#8738, #19603)."""
    with pytest.raises(ValueError, match=rf"tasks.toml: \[{name}\]: the name .*(is taken|at most 100)"):
        read_tasks(written(tmp_path, replaced("[tickets]", f"[{name}]")))


MODELS = '[little]\nkind = "pretrain"\n\n[moods_model]\nkind = "pretrain"\n'


def test_read_tasks_base_is_a_model_of_models_toml(tmp_path):
    (tmp_path / "models.toml").write_text(MODELS)
    (task,) = read_tasks(written(tmp_path, replaced("foundation_model", "little"))).values()
    assert task.base == "little"
    with pytest.raises(ValueError, match="base is 'foundation_model', expected one of little, moods_model"):
        read_tasks(written(tmp_path, TICKETS))


def test_read_tasks_name_of_a_model_is_refused(tmp_path):
    (tmp_path / "models.toml").write_text(MODELS)
    for name, taken in {"little": "little", "moods": "moods_evaluation"}.items():
        text = replaced("[tickets]", f"[{name}]", replaced("foundation_model", "little"))
        with pytest.raises(ValueError, match=rf"\[{name}\]: the name .* is taken: {taken}.* an asset of the model"):
            read_tasks(written(tmp_path, text))


@pytest.mark.parametrize("name", ["foundations", "corpus_report_2", "model", "demo"])
def test_read_tasks_name_beside_that_of_an_asset_is_fine(tmp_path, name):
    assert set(read_tasks(written(tmp_path, replaced("[tickets]", f"[{name}]")))) == {name}


def test_read_tasks_names_a_model_to_be_prompted(tmp_path):
    models = Path(__file__).parents[3] / "data" / "models.toml"
    (tmp_path / "models.toml").write_text(models.read_text())
    (task,) = read_tasks(written(tmp_path, TICKETS)).values()
    assert task.prompted == task.base == "foundation_model" and task.reads_corpus
    small = TICKETS.replace('base = "foundation_model"', 'base = "minilm"\nprompted = "smollm2"\nshowcase = true')
    (task,) = read_tasks(written(tmp_path, small)).values()
    assert (task.base, task.prompted) == ("base/minilm", "base/smollm2")
    assert not task.reads_corpus and task.showcase
    own = small.replace('"smollm2"\nshowcase = true', '"foundation_model"')
    (task,) = read_tasks(written(tmp_path, own)).values()
    assert task.reads_corpus  # which then must not contain its examples
    with pytest.raises(ValueError, match=r"\[tickets\]: prompted is 'smolm2', expected one of .*mean `smollm2`"):
        read_tasks(written(tmp_path, small.replace('"smollm2"', '"smolm2"')))
    with pytest.raises(ValueError, match=r"showcase = true .* its model 'foundation_model'"):
        read_tasks(written(tmp_path, small.replace('"smollm2"', '"foundation_model"')))


ENCODERS = """
[words]
kind = "pretrain"
family = "bert"
[more_words]
kind = "continue"
base = "words"
domain = ["letters"]
[foundation_model]
kind = "pretrain"
"""


@pytest.mark.parametrize("name", ["words", "more_words"])
@pytest.mark.parametrize("key", ["prompted", "base"])
def test_read_tasks_encoder_that_would_have_to_continue_texts_is_refused(tmp_path, name, key):
    """`prompted` with an encoder was a baseline that silently did not exist."""
    (tmp_path / "models.toml").write_text(ENCODERS)
    text = TICKETS + f'prompted = "{name}"\n'
    if key == "base":
        text = TICKETS.replace("classification", "prompting").replace("foundation_model", name)
    message = rf"tasks.toml: \[tickets\]: {key} is '{name}', an encoder \(family bert\), which continues no text"
    with pytest.raises(ValueError, match=message):
        read_tasks(written(tmp_path, text))
    assert read_tasks(written(tmp_path, text.replace(name, "foundation_model")))


def test_read_tasks_prompted_is_refused_for_a_kind_that_has_no_such_baseline(tmp_path):
    text = TICKETS.replace("classification", "multi_label_classification") + 'prompted = "foundation_model"\n'
    with pytest.raises(ValueError, match="a task of kind 'multi_label_classification' has no baseline of this name"):
        read_tasks(written(tmp_path, text))


ASSISTANT = '[assistant]\nkind = "instruction"\nbase = "foundation_model"\ndata = { path = "questions.jsonl" }\n'
POLITE = ASSISTANT.replace("[assistant]", "[polite]").replace('"foundation_model"', '"assistant"')


def test_read_tasks_the_model_of_a_task_that_makes_language_models_is_a_base(tmp_path):
    tasks = read_tasks(written(tmp_path, ASSISTANT + POLITE))
    assert tasks["polite"].base == tasks["polite"].prompted == "assistant_model" and tasks["polite"].reads_corpus
    with pytest.raises(ValueError, match=r"\[polite\]: base is 'assistant', expected one of foundation_model"):
        read_tasks(written(tmp_path, POLITE + ASSISTANT))  # a task before it, so that there is no circle
    with pytest.raises(ValueError, match=r"\[polite\]: base is 'tickets', expected one of"):
        read_tasks(written(tmp_path, TICKETS + POLITE.replace('"assistant"', '"tickets"')))


def test_read_tasks_an_ordinary_task_is_not_based_on_one_of_the_showcase(tmp_path):
    (tmp_path / "models.toml").write_text('[little]\nkind = "open"\nfolder = "elsewhere"\n')
    shown = ASSISTANT.replace('"foundation_model"', '"little"') + "showcase = true\n"
    with pytest.raises(ValueError, match=r"\[polite\]: the task 'assistant', .* has showcase = true"):
        read_tasks(written(tmp_path, shown + POLITE))
    tasks = read_tasks(written(tmp_path, shown + POLITE + "showcase = true\n"))
    assert tasks["polite"].showcase and not tasks["polite"].reads_corpus
