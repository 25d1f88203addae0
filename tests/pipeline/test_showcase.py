"""`gristmill showcase` in a project without a corpus: every kind of task on an open model, from rows to answers."""

import json

import pytest

from pipeline.cli import main
from pipeline.commands.results import newest_results
from pipeline.store.layout import Layout, load_current
from pipeline.store.outputs import read_results
from pipeline.training.model_files import useful
from pipeline.training.open_config import sha256_of

MODELS = """
[little]
kind = "open"
folder = "elsewhere"
files = {FILES}
"""
TASKS = """
[moods]
kind = "classification"
base = "little"
showcase = true
data = { path = "moods.jsonl" }
text = "text"
label = "mood"

[moods_prompted]
kind = "prompting"
base = "little"
data = { path = "moods.jsonl" }
text = "text"
label = "mood"

[letters]
kind = "multi_label_classification"
base = "little"
data = { path = "moods.jsonl" }
text = "text"
label = "letters"

[places]
kind = "tagging"
base = "little"
data = { path = "places.conll" }

[questions]
kind = "question_answering"
base = "little"
data = { path = "questions.jsonl" }

[answers]
kind = "preference"
base = "little"
data = { path = "answers.jsonl" }

[answers.finetune]
truncation_side = "left"

[answers.evaluation]
prompted_examples = 5
max_new_tokens = 4

[advice]
kind = "instruction"
base = "little"
data = { path = "moods.jsonl" }
prompt = "{text}. How is this?"
completion = "mood"

[advice.finetune]
truncation_side = "left"

[advice.evaluation]
prompted_examples = 5
max_new_tokens = 8

"""
QUICK = """
[{task}_model]
epochs = 1
[{task}_evaluation]
random_init = false
"""
CHANGES = ("margin", "chosen_change")  # which compare with the base themselves
TOWNS, PEOPLE = ("Rome", "Oslo", "Lima", "Cairo", "Paris"), ("Ada", "Alan", "Grace", "Emmy", "Kurt", "Sofia")


@pytest.fixture(scope="module")
def shown(toy_graph, tmp_path_factory):
    data = tmp_path_factory.mktemp("shown") / "data"
    data.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("GRISTMILL_DATA", str(toy_graph.layout.data))
        assert main(["export", "foundation_model", str(data / "elsewhere")]) == 0
        patch.setenv("GRISTMILL_DATA", str(data))
        names = useful([path.name for path in (data / "elsewhere").iterdir()])
        files = ", ".join(f'"{name}" = "{sha256_of(data / "elsewhere" / name)}"' for name in names)
        (data / "sources.toml").write_text('[notes]\nkind = "files"\npath = "elsewhere"\nlicence = "own"\n')
        (data / "models.toml").write_text(MODELS.replace("{FILES}", f"{{ {files} }}"))
        (data / "tasks.toml").write_text(TASKS)
        (data / "config.toml").write_text(
            "".join(
                QUICK.format(task=one) for one in ("moods", "letters", "places", "questions", "answers", "advice")
            )
        )
        write_rows(data)
        assert main(["showcase"]) == 0
        yield Layout(data)


def write_rows(data) -> None:
    moods, questions, sentences, answers_of_both = [], [], [], []
    for i in range(150):
        one, town, other = PEOPLE[i % 6], TOWNS[i % 5], TOWNS[(i + i // 5 + 1) % 5]
        coins = " ".join(
            f"{chr(97 + (i + k) % 26)}{(i * 79 + k * 1047) % 997}" for k in range(9)
        )  # no near duplicates
        text = f"{one} went from {town} to {other} with {coins}"
        letters = [letter for letter in "aeo" if letter in f"{one}{town}".lower()]
        moods.append({"text": text, "mood": "glad" if i % 2 else "sad", "letters": letters})
        answers = {"text": [other], "answer_start": [text.index(f"to {other}") + 3]}
        answers_of_both.append({"prompt": text, "chosen": f"To {other}.", "rejected": f"From {town}."})
        questions.append({"question": f"Where did {one} go?", "context": text, "answers": answers})
        tags = {one: "B-person", town: "B-town", other: "B-town"}
        sentences.append("".join(f"{word} {tags.get(word, 'O')}\n" for word in text.split()))
    for name, rows in (("moods", moods), ("questions", questions), ("answers", answers_of_both)):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (data / "places.conll").write_text("\n".join(sentences))


@pytest.mark.parametrize("task", ["moods", "moods_prompted", "letters", "places", "questions", "answers", "advice"])
def test_every_kind_is_built_without_a_corpus_and_compared_with_its_baselines(shown, task):
    assert not (shown.store / "clean").exists()
    results = read_results(load_current(shown, f"{task}_evaluation").directory)
    for result in results:
        assert result["low"] <= result["value"] <= result["high"], result
        assert result["baselines"] or result["metric"] in CHANGES, result
    assert {one["asset"] for one in newest_results(shown)} >= {f"{task}_evaluation"}


@pytest.mark.parametrize(
    ("command", "keys"),
    [
        (["classify", "moods", "Ada went to Rome"], {"label", "probability"}),
        (["classify", "moods_prompted", "Ada went to Rome"], {"label", "probability"}),
        (["classify", "letters", "Ada went to Rome"], {"labels", "probabilities"}),
        (["tag", "places", "Ada went to Rome"], {"entities"}),
        (["answer", "answers", "Where did Ada go?"], {"answer"}),
        (["answer", "advice", "How is Ada?"], {"answer"}),
        (["answer", "questions", "Where did Ada go?", "Ada went to Rome"], {"answer", "start", "end", "probability"}),
    ],
    ids=lambda value: value[1] if isinstance(value, list) else "",
)
def test_every_kind_answers_in_the_shell(shown, monkeypatch, capsys, command, keys):
    monkeypatch.setenv("GRISTMILL_DATA", str(shown.data))
    assert main([*command, "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == keys
    assert main(command) == 0 and capsys.readouterr().out.strip()


def test_files_of_the_data_are_answered_row_by_row(shown, monkeypatch, capsys):
    monkeypatch.setenv("GRISTMILL_DATA", str(shown.data))
    for command, task, file in (("tag", "places", "places.conll"), ("answer", "questions", "questions.jsonl")):
        assert main([command, task, "--file", str(shown.data / file)]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert len(rows) == 150 and all(row["text"] for row in rows)
