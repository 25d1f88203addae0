"""`gristmill show-example`: prints an example of a task token by token, as a model is trained on it.

In: a task whose examples and base were built, the number of an example and its split. Out: its tokens with bars
between them, special tokens by their text, and marked those that the model learns to write: in colour on a terminal,
in brackets elsewhere. Of a pair of answers both conversations; of a labelled text its tokens and its labels.
"""

import dataclasses
import re
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.store.chain import MODEL_SUFFIX
from pipeline.store.layout import Layout, existing_layout, load_current
from pipeline.store.settings import checked_values

if TYPE_CHECKING:
    from pipeline.tasks.tasks_toml import Task

WHOLE = 1 << 30  # tokens: nothing is cut
COLOURS, BRACKETS = ("\x1b[30;42m", "\x1b[0m"), ("[", "]")
STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True, slots=True)
class Shown:
    title: str
    ids: Sequence[int]
    is_trained: Sequence[bool]
    notes: tuple[str, ...] = ()


def run_show_example(args: Namespace) -> int:
    from model.data.tokenizer import TOKENIZER, load_tokenizer
    from model.network.registry import read_config
    from pipeline.tasks.tasks_toml import read_tasks

    layout = existing_layout()
    tasks = read_tasks(layout.tasks_toml)
    if args.task not in tasks:
        raise ValueError(f"{args.task} is no task of {layout.tasks_toml}; it has {', '.join(tasks) or 'none'}")
    task = tasks[args.task]
    if not hasattr(task.finetune, "truncation_side"):
        raise ValueError(f"{args.task} is of kind {task.kind.name}, which trains on no examples")
    examples, base = load_current(layout, f"{args.task}_examples"), load_current(layout, task.base)
    row = example(examples.directory, args.split, args.number)
    folder, cfg = base.directory / TOKENIZER, settings_of_task(layout, task)
    tokenizer, context = load_tokenizer(folder), read_config(base.directory)[1].max_seq_len
    encoder, side = task.kind.encoder(cfg, tokenizer, folder), cfg.truncation_side
    most = min(cfg.max_tokens or context, context)
    read, whole = (task.kind.encode(examples, row, encoder, n, side) for n in (most, WHOLE))
    marks = COLOURS if sys.stdout.isatty() else BRACKETS
    print(f"example {args.number} of {args.split}: {row['id'][0]}")
    for one, uncut in zip(shown(read), shown(whole), strict=False):
        print("\n".join(["", *lines(one, uncut, tokenizer, marks, side)]))
    return 0


def settings_of_task(layout: Layout, task: "Task") -> Any:
    """How the model of a task is trained: tasks.toml, overridden by config.toml."""
    from pipeline.defs.run_config import read_config_file

    file, asset = read_config_file(layout.config_toml), f"{task.name}{MODEL_SUFFIX}"
    own = checked_values(task.kind.finetune, file.table(asset), f"{file.path}: [{asset}]")
    return dataclasses.replace(task.finetune, **own)


def example(directory: Any, split: str, number: int) -> pa.Table:
    from pipeline.corpus.examples.stage import read_examples

    rows = read_examples(directory, split)
    if not 1 <= number <= rows.num_rows:
        raise ValueError(f"there is no example {number}; the split {split} has the examples 1 to {rows.num_rows:,}")
    return rows.slice(number - 1, 1)


def shown(encoded: Any) -> list[Shown]:
    """What a model reads of an example, which was encoded alone."""
    if hasattr(encoded, "rendered"):
        return [Shown("conversation", one.ids.tolist(), one.is_supervised.tolist()) for one in encoded.rendered]
    if hasattr(encoded, "pairs"):
        from model.data.pairs import CHOSEN, COMMON, REJECTED

        return [
            _answer(pair, title, (COMMON, part))
            for pair in encoded.pairs
            for title, part in (("chosen", CHOSEN), ("rejected", REJECTED))
        ]
    found = []
    for place, ids in enumerate(encoded.tokens):
        named = {**encoded.targets, **encoded.token_targets}
        notes = tuple(f"{name}: {np.asarray(values[place]).tolist()}" for name, values in named.items())
        found.append(Shown("text", ids.tolist(), [False] * len(ids), notes))
    return found


def _answer(pair: Any, title: str, parts: tuple[int, int]) -> Shown:
    """One conversation of a pair, whose last token is a target alone."""
    cells = np.isin(pair.parts, parts)
    ids, targets = pair.ids[cells], pair.targets[cells]
    is_trained = [False, *(targets >= 0).tolist()]
    last = [int(targets[-1])] if targets[-1] >= 0 else []
    return Shown(title, [*ids.tolist(), *last], is_trained[: len(ids) + len(last)])


def lines(one: Shown, whole: Shown, tokenizer: Any, marks: tuple[str, str], side: str) -> Iterator[str]:
    n_trained = f", {sum(one.is_trained):,} of them trained" if any(one.is_trained) else ""
    yield f"{one.title}: {len(one.ids):,} tokens{n_trained}"
    if len(one.ids) < len(whole.ids):
        place = "end" if side == "right" else "beginning"
        yield f"cut at its {place}: the whole has {len(whole.ids):,} tokens"
    yield written(one, tokenizer, marks)
    yield from one.notes


def written(one: Shown, tokenizer: Any, marks: tuple[str, str]) -> str:
    """The tokens with bars between them; a line ends where a token ends one."""
    parts, was_trained = [], False
    for place, (token, is_trained) in enumerate(zip(one.ids, one.is_trained, strict=True)):
        text = tokenizer.decode_bytes([token]).decode("utf-8", "backslashreplace")
        ends_line = place and parts[-1].endswith("\\n")
        between = ("\n" if ends_line else "|") if place else ""
        if is_trained == was_trained:
            parts.append(between + _visible(text))
        else:
            parts.append(
                (marks[1] if was_trained else "") + between + (marks[0] if is_trained else "") + _visible(text)
            )
        was_trained = is_trained
    return "".join(parts) + (marks[1] if was_trained else "")


def _visible(text: str) -> str:
    """Nothing of it ends a line or steers a terminal."""
    return STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
