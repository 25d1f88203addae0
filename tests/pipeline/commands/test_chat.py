"""`gristmill chat`: as a filter in this process, and at a terminal in a process of its own."""

import dataclasses
import io
import json
import os
import pty
import re
import select
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from model.network.decoder import new_decoder
from model.network.registry import describe, save_model
from pipeline.cli import build_parser, main
from pipeline.serving.chat import open_session
from tests.pipeline.serving.test_generate import CFG, write_decoder

CONTEXT = 20_000
PATIENCE = 120.0  # seconds until a terminal that says nothing counts as hanging


@pytest.fixture
def folder(tmp_path, byte_tokenizer) -> Path:
    return write_decoder(byte_tokenizer, tmp_path / "model", cfg=dataclasses.replace(CFG, max_seq_len=CONTEXT))


@pytest.fixture
def talk(folder, capsys, monkeypatch):
    """Runs the command on lines; returns its exit code, output and notes."""

    def run(lines: str, *options: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        code = main(["chat", str(folder), "--tokens", "8", "--temperature", "0", *options])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def saved(path: Path) -> list[tuple[str, str]]:
    rows = map(json.loads, path.read_text().removesuffix("\n").split("\n"))
    return [(row["role"], row["content"]) for row in rows]


def test_chat_answers_each_line_with_what_was_said_before(talk, folder):
    code, out, err = talk("hello\nand you?\n")
    session = open_session(folder)
    from model.generation.sample_config import SampleConfig

    for question in ("hello", "and you?"):
        session.say(question)
        "".join(session.answer(SampleConfig(max_new_tokens=8, temperature=0)).pieces)
    first, second = (session.messages[place].content for place in (1, 3))
    assert (code, out) == (0, f"{first}\n{second}\n")
    assert first != talk("and you?\n")[1].removesuffix("\n") == talk("\n  \nand you?")[1].removesuffix("\n")
    assert "the chat template alpaca, because it came without one" in err.splitlines()[0]
    assert "reads 20,000 tokens" in err.splitlines()[0]


def test_chat_system_message_changes_the_answer_and_is_saved(talk, tmp_path):
    _, plain, _ = talk("hello\n")
    _, out, _ = talk(f"hello\n/save {tmp_path}/a.jsonl\n", "--system", "Answer in verse.")
    assert out != plain
    assert saved(tmp_path / "a.jsonl") == [("system", "Answer in verse."), ("user", "hello"), ("assistant", out[:-1])]
    assert talk("/system Answer in verse.\nhello\n")[1] == out
    assert talk("/system none\nhello\n", "--system", "Answer in verse.")[1] == plain


def test_chat_begins_with_the_system_message_of_the_training(talk, folder, tmp_path):
    plain, verse = (talk("hello\n", *options)[1] for options in ((), ("--system", "Answer in verse.")))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"chat": {"system": "Answer in verse."}}))
    assert talk("hello\n")[1] == verse
    assert talk("/clear\nhello\n")[1] == verse
    assert talk("hello\n", "--system", "none")[1] == plain
    (tmp_path / "q.jsonl").write_text('{"role": "user", "content": "hello"}\n')
    assert talk("", "--load", str(tmp_path / "q.jsonl"))[1] == verse


def test_chat_that_is_saved_and_loaded_goes_on_as_if_it_had_not_ended(talk, tmp_path):
    file = tmp_path / "talk \N{SNOWMAN}.jsonl"
    _, whole, _ = talk("caf\u00e9 \\\nand\u2028tea\nhow much?\n")
    talk(f"caf\u00e9 \\\nand\u2028tea\n/save {file}\n")
    assert saved(file)[0] == ("user", "caf\u00e9 \nand\u2028tea")
    _, rest, _ = talk("how much?\n", "--load", str(file))
    assert whole.splitlines()[1] == rest.removesuffix("\n")


def test_chat_answers_a_question_that_a_file_ends_with(talk, tmp_path):
    (tmp_path / "q.jsonl").write_text('{"role": "user", "content": "hello"}\n')
    assert talk("", "--load", str(tmp_path / "q.jsonl"))[1] == talk("hello\n")[1]


def test_chat_undo_and_again_and_clear(talk):
    _, out, _ = talk("hello\nand you?\n")
    first, second = out.splitlines()
    assert talk("hello\nwrong\n/undo\nand you?\n")[1].splitlines()[2] == second
    assert talk("hello\n/again\n")[1].splitlines() == [first, first]  # with temperature 0
    drawn = talk("hello\n/again\n/again\n", "--temperature", "9")[1].splitlines()
    assert len(set(drawn)) == 3
    assert talk("hello\n/clear\nhello\n")[1].splitlines() == [first, first]


def test_chat_set_changes_what_is_drawn(talk):
    _, eight, _ = talk("hello\n")
    code, out, err = talk("/set tokens=3 temperature=0\nhello\n/set top_k=none tokens=8\nhello\n")
    assert code == 0 and out.splitlines()[0] == eight[:3]
    assert "tokens=3 temperature=0.0 top_k=50" in err and "top_k=none" in err
    assert "the answer ended at 3 tokens; /set tokens=N allows more" in err


def test_chat_message_that_begins_with_a_slash_is_written_with_two(talk, tmp_path):
    talk(f"//etc/passwd\n/save {tmp_path}/a.jsonl\n")
    assert saved(tmp_path / "a.jsonl")[0] == ("user", "/etc/passwd")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("/sav x\n", "/sav is no command; did you mean `/save`? (/help lists them"),
        ("/set heat=2\n", "/set heat=2: expected NAME=VALUE, where NAME is one of tokens, temperature"),
        ("/set temperature=warm\n", "/set temperature=warm: expected a number"),
        ("/set temperature=-1\n", "temperature=-1.0 must be at least 0"),
        ("/undo\n", "there is nothing to take back"),
        ("/again\n", "there is no question that could be answered again"),
        ("/save\n", "/save needs the name of a file"),
        ("/save {folder}/config.json\n", "there is no message to save"),
        ("a\n/save {folder}/config.json\n", "config.json exists, and is not of this chat; give another name"),
        ("/load {folder}/nothing.jsonl\n", "nothing.jsonl"),
        ("/load {folder}/config.json\n", "config.json, line 1: not JSON"),
        ("/load {folder}/list.jsonl\n", "list.jsonl, line 2: expected an object such as"),
        ("/load {folder}/turns.jsonl\n", "turns.jsonl: the conversation starts with the assistant"),
        ("/load {folder}/empty.jsonl\n", "empty.jsonl has no message"),
    ],
)
def test_chat_mistake_in_a_script_ends_it_in_one_line(talk, folder, lines, message):
    (folder / "list.jsonl").write_text('\n["user", "hello"]\n')
    (folder / "turns.jsonl").write_text('{"role": "assistant", "content": "hello"}\n')
    (folder / "empty.jsonl").write_text("\n")
    code, _, err = talk(lines.format(folder=folder))
    assert code == 2 and message in err.splitlines()[-1]


def test_chat_template_may_be_chosen_and_has_to_go_with_the_tokenizer(talk):
    assert "which was asked for" in talk("hello\n", "--template", "alpaca")[2]
    code, out, err = talk("hello\n", "--template", "chatml")
    assert (code, out) == (2, "") and "ends an answer by no special token" in err


def test_chat_conversation_beyond_the_context_is_told_once(byte_tokenizer, tmp_path, capsys, monkeypatch):
    folder = write_decoder(byte_tokenizer, tmp_path / "m", cfg=dataclasses.replace(CFG, max_seq_len=128))
    monkeypatch.setattr(sys, "stdin", io.StringIO("a question\n" * 9))
    assert main(["chat", str(folder), "--tokens", "8"]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 9
    assert captured.err.count("the oldest messages are left out from now on") == 1


def test_chat_defaults_are_those_of_generate_but_for_the_length():
    chat, generate = (vars(build_parser().parse_args([name, "x"])) for name in ("chat", "generate"))
    assert chat.pop("tokens") == 512
    same = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop", "keep_prompt_end")
    assert {name: chat[name] for name in same} == {name: generate[name] for name in same}


class Terminal:
    """A command in a process of its own, at a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self.shown, self.read = "", 0
        self.process, self.terminal = pty.fork()
        if self.process == 0:  # the child becomes another program at once
            os.environ |= {"TERM": "dumb", "OMP_NUM_THREADS": "1"}
            os.execv(sys.executable, [sys.executable, "-m", "pipeline", *arguments])

    def until(self, pattern: str) -> str:
        """What is shown up to `pattern`, from where the last call ended."""
        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(pattern, self.shown[self.read :])):
            ready, _, _ = select.select([self.terminal], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{pattern!r} is not shown: {self.shown[-300:]!r}"
            try:
                self.shown += os.read(self.terminal, 4096).decode(errors="replace").replace("\r\n", "\n")
            except OSError:  # the process ended
                assert re.search(pattern, self.shown[self.read :]), f"{pattern!r} is not in {self.shown[-300:]!r}"
        start, self.read = self.read, self.read + found.end()
        return self.shown[start : self.read]

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def ended(self) -> int:
        code = os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
        self.process = 0
        return code

    def close(self) -> None:
        if self.process:
            os.kill(self.process, signal.SIGKILL)
            self.ended()
        os.close(self.terminal)


@torch.no_grad()
def write_decoder_of_controls(tokenizer, folder: Path) -> Path:
    """It writes ESC and "[2J", which clears a screen, in some order."""
    shutil.copytree(tokenizer.directory, folder / "tokenizer")
    cfg = dataclasses.replace(CFG, max_seq_len=CONTEXT)
    model = new_decoder(cfg, seed=0)
    model.lm_head.weight.zero_()
    for byte in b"\x1b[2J\x9b\x07\r":
        model.lm_head.weight[byte].normal_(std=9)
    save_model(folder, model, describe(cfg))
    return folder


def test_chat_at_a_terminal(byte_tokenizer, tmp_path):
    """Ctrl-C stops the answer and not the chat, what was written stays, nothing that the model writes is a control, a
    mistake does not end the chat, and Ctrl-D does."""
    folder = write_decoder_of_controls(byte_tokenizer, tmp_path / "model")
    terminal = Terminal("chat", str(folder), "--tokens", "9999", "--temperature", "9")
    try:
        terminal.until(r"Ctrl-D or /exit ends the chat.*\]\n> ")
        terminal.type("hello\n")
        terminal.until("\u241b")
        terminal.type("\x03")
        answer = terminal.until(r"\n\[stopped\]\n> ")
        terminal.type(
            "\x03\n"
        )  # with a key behind it, without which readline may miss one that comes before it waits
        terminal.until(r"\[Ctrl-D or /exit ends the chat, /help lists the commands\]\n> ")
        terminal.type("/undoo\n")
        terminal.until(r"did you mean `/undo`\?.*\]\n> ")
        terminal.type(f"/save {tmp_path}/a.jsonl\n")
        terminal.until(r"2 messages are in .*\n> ")
        terminal.type("\x04")
        assert terminal.ended() == 0
    finally:
        terminal.close()
    assert not re.search("[\x1b\x9b\x07]", terminal.shown)
    (_, question), (_, written) = saved(tmp_path / "a.jsonl")
    assert question == "hello" and "\x1b" in written and len(written) < 9999
    assert answer.count("\u241b") <= written.count("\x1b") <= answer.count("\u241b") + 1


def test_generate_shows_no_control_at_a_terminal(byte_tokenizer, tmp_path):
    folder = write_decoder_of_controls(byte_tokenizer, tmp_path / "model")
    terminal = Terminal("generate", "hello", "--model", str(folder), "--temperature", "9")
    try:
        terminal.until("hello.*\u241b.*\n")
        assert terminal.ended() == 0
    finally:
        terminal.close()
    assert not re.search("[\x1b\x9b\x07]", terminal.shown)
