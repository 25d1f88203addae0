"""`gristmill show-example`: tokens of conversations, pairs and labelled texts, with the trained ones marked."""

import json
import random
import re
import shutil
from dataclasses import dataclass

import pytest

from model.network.decoder import new_decoder
from model.network.registry import describe, save_model
from model.network.shape import DecoderConfig, switches_of
from pipeline.cli import main
from pipeline.commands.show_example import BRACKETS, Shown, written
from pipeline.store.layout import Layout, save_current
from pipeline.store.records import Checkpoint
from pipeline.store.store import Outcome, Stage, Store, Work
from pipeline.tasks.tasks_toml import read_tasks

SHAPE = {"n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "d_model": 16, "d_head": 8, "d_ff": 32, "max_seq_len": 96}
TASKS = """
[asked]
kind = "instruction"
base = "foundation_model"
data = { path = "asked.jsonl" }

[better]
kind = "preference"
base = "foundation_model"
data = { path = "better.jsonl" }
"""
RNG = random.Random(0)
QUESTIONS = ["Say " + " ".join("".join(RNG.choices("bcdfgh", k=5)) for _ in range(3)) for _ in range(40)]
ASKED = [{"instruction": question, "output": "\x1b[2J\nyes"} for question in QUESTIONS]
BETTER = [{"prompt": question, "chosen": "yes", "rejected": "no"} for question in QUESTIONS]
CHATS = re.compile(r"^conversation: (\d+) tokens, (\d+) of them trained$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseConfig:
    tokenizer: str


def write_base(cfg: BaseConfig, inputs: tuple[()], work: Work) -> Outcome:
    network = DecoderConfig(vocab_size=257, **SHAPE, **switches_of("llama"))
    save_model(work.directory, new_decoder(network, seed=0), describe(network))
    shutil.copytree(cfg.tokenizer, work.directory / "tokenizer")
    return Outcome(rows=0, measures={}, content=("model.safetensors", "config.json", "tokenizer/*"))


@pytest.fixture(scope="module")
def layout(tmp_path_factory, write_project, byte_tokenizer) -> Layout:
    """A project with the examples and the base of three tasks."""
    layout = write_project(tmp_path_factory.mktemp("project") / "data")
    with layout.tasks_toml.open("a") as file:
        file.write(TASKS)
    for name, rows in (("asked", ASKED), ("better", BETTER)):
        (layout.data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = Store(root=layout.store)
    stage = Stage(name="base", version=1, function=write_base, handle=Checkpoint)
    save_current(
        layout, "foundation_model", store.build(stage, BaseConfig(tokenizer=str(byte_tokenizer.directory))).handle
    )
    for name, task in read_tasks(layout.tasks_toml).items():
        built = task.kind.build_examples(store, task.data, task.examples, layout.cache)
        save_current(layout, f"{name}_examples", built.handle)
    return layout


@pytest.fixture
def show(layout, monkeypatch, capsys):
    """Runs the command; returns its exit code, output and errors."""
    monkeypatch.setenv("GRISTMILL_DATA", str(layout.data))

    def run(*args: str) -> tuple[int, str, str]:
        code = main(["show-example", *args])
        return code, *capsys.readouterr()

    return run


def test_conversation_has_its_answer_and_the_token_that_ends_it_in_brackets(show):
    code, out, _ = show("asked", "2")
    ((n_tokens, n_trained),) = CHATS.findall(out)
    answer = "[\\x1b|[|2|J|\\n\ny|e|s|<|endoftext|>]"
    assert code == 0 and out.startswith("example 2 of train: ") and "\x1b" not in out and n_trained == "9"
    assert "\n<|endoftext|>|#|#|#| |I|n|s|t|r|u|c|t|i|o|n|:|\\n\nS|a|y| |" in out
    assert out.endswith(f"\\n\n#|#|#| |R|e|s|p|o|n|s|e|:|\\n\n{answer}\n")
    question = len("### Instruction:\nSay 12345 12345 12345\n\n### Response:\n")
    assert int(n_tokens) == 1 + question + 9


def test_both_answers_of_a_pair_are_shown(show):
    out = show("better", "1", "--split", "validation")[1]
    assert (
        "\nchosen: " in out
        and "\nrejected: " in out
        and "[n|o|<|endoftext|>]" in out
        and "[y|e|s|<|endoftext|>]" in out
    )


def test_labelled_text_is_shown_with_its_labels(show):
    out = show("moods")[1]
    assert "\ntext: " in out and "|t|h|e| |" in out and "labels_B: " in out and "trained" not in out


def test_conversation_that_is_cut_says_so(show, layout):
    tables = layout.tasks_toml.read_text()
    layout.tasks_toml.write_text(tables + "\n[asked.finetune]\nmax_tokens = 60\n")
    out = show("asked")[1]
    layout.config_toml.write_text("[asked_model]\nmax_tokens = 62\n")  # overrides tasks.toml
    overridden = show("asked")[1]
    layout.tasks_toml.write_text(tables)
    layout.config_toml.unlink()
    assert "conversation: 60 tokens, " in out and "cut at its end: the whole has " in out
    assert "conversation: 62 tokens, " in overridden


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("nothing",), "nothing is no task of "),
        (("asked", "0"), "there is no example 0; the split train has the examples 1 to "),
        (("asked", "99"), "there is no example 99"),
    ],
)
def test_example_that_does_not_exist_is_refused(args, message, show):
    code, _, error = show(*args)
    assert code == 2 and message in error


class Letters:
    def decode_bytes(self, ids: list[int]) -> bytes:
        return bytes(ids)


@pytest.mark.parametrize(
    ("is_trained", "expected"),
    [
        ([False, False, False], "a|\\xc3|b"),
        ([False, True, True], "a|[\\xc3|b]"),
        ([True, False, True], "[a]|\\xc3|[b]"),
    ],
)
def test_runs_of_trained_tokens_are_in_one_pair_of_brackets(is_trained, expected):
    assert written(Shown("text", [97, 0xC3, 98], is_trained), Letters(), BRACKETS) == expected
