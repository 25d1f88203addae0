"""The command line `gristmill`: runs the graph or its stages, shows their results, and maintains the data folder.

In: arguments. Out: an exit code: 0 for success; 1 if something is wrong (an asset of `run` or `demo` failed,
`doctor` found what it cannot fix, `plan` found an asset that cannot be built); 2 for a mistake of the user,
which is reported in one line; 130 for Ctrl-C. A command's module is imported when it runs, so that
`gristmill --help` is quick.
"""

import argparse
import codecs
import importlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from model.data.chat_templates import TEMPLATES
from pipeline.store.chain import run_by
from pipeline.store.redaction import redact_logs, redacted
from pipeline.tasks.kinds import KINDS

EPILOG = (
    "All data is in the folder GRISTMILL_DATA, by default ./data. `gristmill COMMAND --help` describes a command."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the console script `gristmill`."""
    # Threads that spin while they wait cost a busy machine most of its time; threads that sleep at once cost an
    # idle one a third (docs/log.md). libgomp reads this when torch loads, here and in children of `gristmill ui`.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if argv is None:
        use_utf8()
    print_any_character()
    args = parsed(argv)
    redact_logs()
    logging.basicConfig(level=logging.INFO if args.debug else logging.WARNING, format="%(levelname)s %(message)s")
    try:
        return _command(args.run)(args)
    except KeyboardInterrupt:
        print("gristmill: stopped; finished work is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `gristmill results | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if args.debug:
            print(redacted(traceback.format_exc()), file=sys.stderr, end="")
        else:
            print(f"gristmill: {redacted(_one_line(error))}", file=sys.stderr)
        return 2


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of a command. Inputs that follow an option belong to those before it, which argparse does not do
    where there may be none."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if rest and (not isinstance(getattr(args, "inputs", None), list) or any(one.startswith("-") for one in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.inputs += rest
    return args


def use_utf8() -> None:
    """Starts again in Python's UTF-8 mode if the locale is ASCII (LC_ALL=C), which has no path with an umlaut."""
    if sys.flags.utf8_mode == 0 and codecs.lookup(sys.getfilesystemencoding()).name == "ascii":
        os.environ["PYTHONUTF8"] = "1"  # for the child processes
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def print_any_character() -> None:
    """A terminal that cannot show a character gets its number instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def build_parser() -> argparse.ArgumentParser:
    common = Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show tracebacks and what the stages log")
    parser = Parser(prog="gristmill", description="Mills raw text into a language model you own.", epilog=EPILOG)
    parser.add_argument("--version", action=Version, help="show the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: str, text: str, epilog: str | None = None) -> argparse.ArgumentParser:
        added = commands.add_parser(name, parents=[common], help=text, description=f"{text}.", epilog=epilog)
        added.set_defaults(run=run)
        return added

    _add_graph_commands(command)
    _add_stage_commands(command)
    _add_model_commands(command)
    _add_upkeep_commands(command)
    return parser


class Parser(argparse.ArgumentParser):
    """Suggests the nearest name when a user types an invalid choice: a command, a stage, a format."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            from pipeline.store.settings import did_you_mean

            error.message += did_you_mean(value, action.choices or ())
            raise


class Version(argparse.Action):
    """Prints the version of the installed package, which is read only when needed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "nargs": 0})

    def __call__(self, parser: argparse.ArgumentParser, *args: Any) -> None:
        from importlib.metadata import version

        print(f"gristmill {version('gristmill')}")
        parser.exit()


Adder = Callable[..., argparse.ArgumentParser]


def _add_graph_commands(command: Adder) -> None:
    init = command(
        "init", "pipeline.commands.init:run", "Write a first sources.toml, models.toml, tasks.toml and config.toml"
    )
    init.add_argument(
        "folder", metavar="FOLDER", nargs="?", help="folder without these files; default: the data folder"
    )
    run = command(
        "run",
        "pipeline.commands.run:run",
        "Materialise everything that is not up to date, or a part of the graph",
        epilog="For example: gristmill run +corpus_report, or: gristmill run tokenizer+",
    )
    run.add_argument(
        "assets",
        metavar="ASSET",
        nargs="*",
        help="asset to build; +ASSET also builds everything before it, ASSET+ everything after it; default: all",
    )
    command("demo", "pipeline.commands.demo:run", "Materialise the whole graph of the default sources")
    of_open = "Materialise every task on an open model: an example of every kind of task, without a corpus"
    command("showcase", "pipeline.commands.demo:run_showcase", of_open)
    _add_ui(command)
    _add_results(command)
    trace = command("trace", "pipeline.commands.trace:run_trace", "Show what happened to a page at each stage")
    trace.add_argument(
        "what",
        metavar="URL_OR_ID_OR_TEXT",
        nargs="?",
        help="URL, the end of one, page id, document id, a file with a text, a text of several words, or - for stdin",
    )
    trace.add_argument(
        "--step",
        metavar=("MODEL", "STEP"),
        nargs=2,
        help="instead: show a training step (1234, or 1200-1234) of an asset, folder or registered model",
    )
    trace.add_argument("--json", action="store_true", help="as objects, with all evidence and every training step")
    seconds = "time limit in seconds for a search without index; default: 20"
    trace.add_argument("--seconds", metavar="S", type=float, default=20, help=seconds)
    plan = command("plan", "pipeline.commands.plan:run", "Show what a materialisation would rebuild, and why")
    plan.add_argument("--json", action="store_true", help="as a list of objects")
    settings = command("settings", "pipeline.commands.settings:run", "List every setting with its range and meaning")
    settings.add_argument("asset", metavar="ASSET", nargs="?", help="only of this asset or asset.stage; default: all")
    settings.add_argument("--json", action="store_true", help="as a list of objects")
    report = command("report", "pipeline.commands.report:run_report", "Show the data card of the corpus")
    report.add_argument("--out", metavar="DIR", help="write the card and its figures to this folder instead")


def _add_results(command: Adder) -> None:
    results = command("results", "pipeline.commands.results:run", "Show the newest evaluation of every model")
    results.add_argument("--json", action="store_true", help="as a list of objects")
    results.add_argument(
        "--mistakes", metavar="TASK", help="instead: the most confident mistakes of the model of a task"
    )
    results.add_argument("--all", action="store_true", help="also of tasks that tasks.toml does not declare any more")


def _add_ui(command: Adder) -> None:
    ui = command("ui", "pipeline.commands.ui:run", "Serve Dagster and MLflow until Ctrl-C")
    ui.add_argument("--dagster-port", type=int, default=3000, help="default: 3000")
    ui.add_argument("--mlflow-port", type=int, default=5000, help="default: 5000")
    ui.add_argument(
        "--allow-host",
        metavar="NAME[:PORT]",
        action="append",
        default=[],
        help="a name under which a proxy serves them; requests to other names, and from other sites, are refused",
    )


def _add_stage_commands(command: Adder) -> None:
    stage = command(
        "stage",
        "pipeline.commands.stages:run_stage",
        "Run one data stage without Dagster",
        epilog="For example: gristmill stage clean my-pages/ --out clean/ --set n_shards=4",
    )
    names = run_by("stage")
    stage.add_argument("name", metavar="NAME", choices=names, help=", ".join(names))
    stage.add_argument(
        "inputs",
        metavar="INPUT",
        nargs="+",
        help="output folder of an earlier stage; for collect and clean also a folder, file or archive of raw pages",
    )
    _add_build_options(stage)
    train = command("train", "pipeline.commands.stages:run_train", "Pretrain a model on token shards without Dagster")
    train.add_argument("tokens", metavar="TOKENS", help="output folder of `tokenize`, or the asset token_shards")
    train.add_argument("tokenizer", metavar="TOKENIZER", help="output folder of `tokenizer`, or the asset tokenizer")
    _add_build_options(train)
    evaluate = command(
        "evaluate", "pipeline.commands.stages:run_evaluate", "Evaluate a model on held-out data without Dagster"
    )
    evaluate.add_argument("model", metavar="MODEL", help="output folder of a training, or its asset")
    evaluate.add_argument("data", metavar="DATA", help="token shards, or labelled examples: folder or asset")
    _add_build_options(evaluate)


def _add_build_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="DIR", required=True, help="output folder; finished work in it is kept")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="a setting; lists are written a,b,c, and `none` means no value. A wrong key lists all settings",
    )
    parser.add_argument(
        "--workers", metavar="N", type=int, default=0, help="number of worker processes; default: one per core"
    )


def _add_model_commands(command: Adder) -> None:
    _add_generate(command)
    _add_chat(command)
    _add_serve(command)
    for verb in sorted({kind.command for kind in KINDS.values()}):
        kinds = " or ".join(sorted(name for name, kind in KINDS.items() if kind.command == verb))
        ask = command(verb, "pipeline.commands.tasks:run_task", f"Apply the model of a task of kind {kinds}")
        ask.set_defaults(command=verb)
        ask.add_argument("task", metavar="TASK", help="a table of tasks.toml, for instance sarcasm")
        ask.add_argument("inputs", metavar="INPUT", nargs="*", help="the input, for instance the text to label")
        ask.add_argument(
            "--file", metavar="FILE", help="instead: a csv, tsv, jsonl or parquet file; prints JSON lines"
        )
        ask.add_argument("--json", action="store_true", help="print the answer as an object")
    tasks = command("tasks", "pipeline.commands.tasks:run_tasks", "List the tasks and the kinds of task")
    tasks.add_argument("kind", metavar="KIND", nargs="?", choices=KINDS, help="print a table of this kind to paste")
    show = command(
        "show-example", "pipeline.commands.show_example:run_show_example", "Print an example of a task token by token"
    )
    show.add_argument("task", metavar="TASK", help="a table of tasks.toml, whose examples and base were built")
    show.add_argument("number", metavar="N", type=int, nargs="?", default=1, help="of the example; default: 1")
    show.add_argument("--split", choices=("train", "validation", "test"), default="train", help="default: train")
    export = command(
        "export",
        "pipeline.commands.export:run_export",
        "Write a model for other tools: a Hugging Face folder, or a GGUF file for llama.cpp",
        epilog="For example: gristmill export foundation_model my-model/, or: ... my-model.gguf --format gguf",
    )
    export.add_argument("model", metavar="ASSET|DIR", help="for instance foundation_model, or the folder of a model")
    export.add_argument(
        "out", metavar="OUT", help="folder (hf) or file (gguf) to write; an earlier export is replaced"
    )
    export.add_argument(
        "--format", choices=("hf", "gguf", "peft"), default="hf", help="default: hf; peft: adapters only"
    )
    export.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float32",
        help="data type of the weights; default: float32",
    )
    export.add_argument(
        "--chat-template",
        metavar="FILE",
        help="Jinja file that turns messages into text; default: that of the model, or none",
    )


def _add_generate(command: Adder) -> None:
    generate = command("generate", "pipeline.commands.models:run_generate", "Continue a text")
    generate.add_argument("text", help="the beginning of the text")
    generate.add_argument(
        "--model", metavar="DIR|ASSET", default="foundation_model", help="default: the asset foundation_model"
    )
    _add_sampling_options(generate, n_tokens=100)
    generate.add_argument("--samples", "-n", metavar="N", type=int, default=1, help="number of texts; default: 1")
    end = "if the text is longer than the model's context, use its end"
    generate.add_argument("--keep-prompt-end", action="store_true", help=end)
    generate.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="print the text while it is generated; default: on a terminal",
    )
    _add_control_options(generate)


def _add_chat(command: Adder) -> None:
    chat = command(
        "chat",
        "pipeline.commands.chat:run_chat",
        "Talk with a model",
        epilog="Inside the chat /help lists its commands. Without a terminal each line of the input is a message.",
    )
    chat.add_argument("model", metavar="DIR|ASSET", help="for instance smollm2, or the folder of a model")
    says = "a system message, which says how the model shall answer; default: that of its training, if any; or none"
    chat.add_argument("--system", metavar="TEXT", help=says)
    chat.add_argument("--load", metavar="FILE", help="a conversation that /save wrote, to go on with")
    own = "default: auto, that of the model, or alpaca if it has none"
    chat.add_argument(
        "--template", choices=("auto", *TEMPLATES), default="auto", help=f"how messages become text; {own}"
    )
    _add_sampling_options(chat, n_tokens=512)
    chat.set_defaults(keep_prompt_end=False)


def _add_serve(command: Adder) -> None:
    serve = command(
        "serve",
        "pipeline.commands.serve:run_serve",
        "Answer over HTTP with models, as OpenAI's API does",
        epilog="For example: gristmill serve smollm2 tickets, or: gristmill serve gristmill-tickets@champion",
    )
    add = serve.add_argument
    named = "asset, task, folder, or NAME@ALIAS of MLflow; NAME=MODEL serves it by another name"
    add("models", metavar="MODEL", nargs="+", help=named)
    add("--host", default="127.0.0.1", help="address to listen at; a public one needs a token; default: 127.0.0.1")
    add("--port", type=int, default=8000, help="0 = any free one; default: 8000")
    token = "file with the token that requests must have; default: the variable GRISTMILL_TOKEN, or no token"
    add("--token-file", metavar="FILE", help=token)
    host = "a name under which a proxy serves it; requests for other names are refused"
    add("--allow-host", metavar="NAME[:PORT]", action="append", default=[], help=host)
    limit = "a limit, for instance n_slots=8; a wrong key lists all limits"
    add("--set", metavar="KEY=VALUE", action="append", default=[], help=limit)
    poll = "seconds between two looks for a new version of a model, 0 = never; default: 10"
    add("--poll", metavar="S", type=float, default=10, help=poll)
    drain = "seconds for answers that are being written when the server is stopped; default: 30"
    add("--drain", metavar="S", type=float, default=30, help=drain)
    add("--access-log", metavar="FILE", help="a line of JSON for every request; none = no log; default: stderr")
    add("--log-texts", action="store_true", help="also log what was asked and answered")


def _add_sampling_options(parser: argparse.ArgumentParser, n_tokens: int) -> None:
    """The defaults repeat those of SampleConfig, so that `--help` imports nothing; a test compares them."""
    add = parser.add_argument
    add("--tokens", metavar="N", type=int, default=n_tokens, help=f"maximum number of tokens; default: {n_tokens}")
    add("--temperature", metavar="T", type=float, default=0.8, help="0 = always the most likely token; default: 0.8")
    add(
        "--top-k", metavar="K", type=_number_or_none(int), default=50, help="sample from the K likeliest; default: 50"
    )
    add("--top-p", metavar="P", type=_number_or_none(float), help="sample from the likeliest tokens that sum to P")
    add("--min-p", metavar="P", type=_number_or_none(float), help="exclude tokens below P times the highest")
    add(
        "--repetition-penalty",
        metavar="F",
        type=_number_or_none(float),
        help="above 1, tokens that occurred before become less likely; for instance 1.2",
    )
    add(
        "--stop",
        metavar="TEXT",
        action="append",
        default=[],
        help="stop before this text; may be given several times",
    )
    add("--seed", metavar="N", type=int, default=0, help="random seed; default: 0")


def _add_control_options(generate: argparse.ArgumentParser) -> None:
    add = generate.add_argument
    schema = "write a JSON value, or one of this JSON Schema; give the option behind the text"
    add("--json", metavar="SCHEMA_FILE", nargs="?", const="", help=schema)
    add("--choices", metavar="TEXT", nargs="+", help="write exactly one of these texts; give them behind the text")
    add(
        "--control",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="an attribute of the text, for instance sentiment=positive; may be given several times",
    )
    ways = "tell the model (prefix, as in its training; prompt, in words), or let a classifier choose (rerank, steer)"
    default = "prefix if the model learned attributes, steer if there is a judge, else prompt"
    add("--control-by", choices=("prefix", "prompt", "rerank", "steer"), help=f"{ways}; default: {default}")
    add("--judge", metavar="TASK|DIR", help="the task whose classifier chooses; default: the task called NAME")
    candidates = "texts among which the classifier chooses; default: 8"
    add("--candidates", metavar="N", type=int, default=8, help=candidates)


def _number_or_none(number: type[int] | type[float]) -> Callable[[str], int | float | None]:
    """Reads a number, or `none` for no limit."""

    def read(text: str) -> int | float | None:
        return None if text == "none" else number(text)

    read.__name__ = "number"  # argparse prints: invalid number value
    return read


def _add_upkeep_commands(command: Adder) -> None:
    _add_forget(command)
    doctor = command(
        "doctor",
        "pipeline.commands.doctor:run",
        "Find and close runs whose process died; check ports, disk, versions, settings and data",
    )
    doctor.add_argument("--no-mend", dest="mend", action="store_false", help="only report, change nothing")
    doctor.add_argument(
        "--verify", action="store_true", help="compare every byte of the current outputs with their checksums"
    )
    doctor.add_argument(
        "--remove-damaged", action="store_true", help="remove damaged outputs, which the next run builds again"
    )
    doctor.add_argument(
        "--closed-host",
        metavar="NAME",
        action="append",
        default=[],
        help="a machine or container that is gone: its runs are closed as those of dead processes are",
    )
    command("du", "pipeline.commands.du:run", "Show the disk space of every kind of output")
    gc = command("gc", "pipeline.commands.gc:run", "Remove what no kept result and no registered model needs")
    gc.add_argument(
        "--keep", metavar="N", type=int, default=1, help="number of newest outputs to keep per asset; default: 1"
    )
    gc.add_argument("--unfinished", action="store_true", help="also remove builds that were never finished")
    gc.add_argument("--yes", action="store_true", help="do not ask")


def _add_forget(command: Adder) -> None:
    forget = command(
        "forget",
        "pipeline.commands.forget:run_forget",
        "Deny pages and their copies from the next run on, and list the models that were trained on them",
    )
    forget.add_argument("what", metavar="URL_OR_ID", nargs="*", help="URL or its end, page id or document id")
    forget.add_argument("--list", action="store_true", help="only print the list of denied pages")
    forget.add_argument(
        "--undo", action="store_true", help="remove rows from the list, and rows that were denied because of them"
    )
    forget.add_argument(
        "--reason", metavar="TEXT", default="asked for", help="reason to store in the list; default: asked for"
    )
    forget.add_argument("--by", metavar="NAME", help="who requested it; stored in the list")
    forget.add_argument("--all", action="store_true", help="deny every page whose address ends with URL_OR_ID")
    forget.add_argument(
        "--containing",
        metavar="SHARE",
        type=float,
        help="also deny longer documents that contain at least this share of a forgotten text, above 0 to 1",
    )
    forget.add_argument("--new-tokenizer", action="store_true", help="train the tokenizer again without the texts")
    forget.add_argument(
        "--purge",
        action="store_true",
        help="after a materialisation: remove the older outputs that contain denied texts",
    )
    forget.add_argument("--dry-run", action="store_true", help="only show what would be denied")
    forget.add_argument("--yes", action="store_true", help="do not ask")


def _command(name: str) -> Callable[[argparse.Namespace], int]:
    module, function = name.split(":")
    return getattr(importlib.import_module(module), function)


def _one_line(error: Exception) -> str:
    from pipeline.store.errors import CorruptShard, SourceUnavailable, Terminated
    from pipeline.store.faults import advised
    from pipeline.store.layout import layout_from_environment

    expected = (ValueError, OSError, CorruptShard, SourceUnavailable, Terminated)
    text = " ".join(str(error).split())
    if (told := advised(text, layout_from_environment())) != text or (isinstance(error, expected) and text):
        return told
    return f"unexpected {type(error).__name__}: {text} (run again with --debug to see where)"


if __name__ == "__main__":
    sys.exit(main())
