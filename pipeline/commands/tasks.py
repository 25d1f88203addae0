"""`gristmill classify`, `tag`, `answer` and `tasks`: apply the models of tasks, and list the kinds of task.

In: the inputs of one row, or a file of rows (everything that tasks.toml may name as data, with columns called as the
inputs of the kind or as in the table of the task). Out: the answers, for people or as JSON, one line per row; a row
without an input gets empty answers. Rows are answered in pieces, so that a file of any length needs little memory.
"""

import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.commands.tables import table_lines
from pipeline.store.layout import Layout, folder_or_current, layout_from_environment

AT_ONCE = 256  # rows
CITATIONS = "citations"  # output of a model that answers from documents
Row = dict[str, Any]
Answer = Mapping[str, Any]


def run_task(args: Namespace) -> int:
    """Print the answers of the model of a task, to the row of `args.inputs` or to those of `args.file`."""
    layout = layout_from_environment()
    folder = folder_or_current(layout, f"{args.task}_model")
    from pipeline.corpus.examples.rows import in_pieces
    from pipeline.serving.generate import predictor_in
    from pipeline.store.store import read_record
    from pipeline.tasks.kind import kind_of
    from pipeline.tasks.kinds import KINDS

    kind = kind_of(read_record(folder) or {})
    columns = list(kind.predictor.inputs)
    if (command := KINDS[kind.name].command) != args.command:
        raise ValueError(f"{args.task} is a task of kind {kind.name}; use `gristmill {command}`")
    if bool(args.inputs) == bool(args.file):
        raise ValueError(f"give either {' and '.join(columns)}, or --file with a file of rows")
    if args.inputs and len(args.inputs) != len(columns):
        raise ValueError(f"{args.task} takes {' and '.join(columns)}, got {len(args.inputs)} inputs")
    given: list[Row] = [dict(zip(columns, args.inputs, strict=False))]
    rows = file_rows(layout, args.task, kind, Path(args.file)) if args.file else given
    n_cut, predictor = 0, predictor_in(kind.predictor, folder)
    for piece in in_pieces(rows, AT_ONCE):
        for row, answer in answered(predictor, piece):
            if args.json or args.file:
                print(json.dumps({**(row if args.file else {}), **answer}, ensure_ascii=False))
            else:
                print("\n".join(answer_lines(answer)))
        n_cut += predictor.n_cut([row for row in piece if is_complete(row)])
    if n_cut:
        part = "first" if predictor.description.get("truncation_side", "right") == "right" else "last"
        of = f"of {n_cut:,} texts " if args.file else ""
        most = predictor.description["max_tokens"]
        print(f"{of}the model reads only the {part} {most:,} tokens", file=sys.stderr)
    return 0


def is_complete(row: Row) -> bool:
    return all(isinstance(value, str) for value in row.values())


def answered(predictor: Any, rows: Sequence[Row]) -> Iterator[tuple[Row, Answer]]:
    """Each row with its answer, whose values are None where an input is missing."""
    answers = iter(predictor.answer([row for row in rows if is_complete(row)]))
    for row in rows:
        yield row, next(answers) if is_complete(row) else dict.fromkeys(predictor.outputs)


def file_rows(layout: Layout, task: str, kind: Any, path: Path) -> Iterator[Row]:
    """The inputs of each row of a file: of the columns called like them, or at the paths of the task's table."""
    from pipeline.corpus.examples.data_files import LabelledFile, labelled_files, read_data
    from pipeline.corpus.examples.labelled_file import labelled_records
    from pipeline.corpus.examples.paths import part_of
    from pipeline.tasks.tasks_toml import read_tasks

    declared = read_tasks(layout.tasks_toml).get(task)
    cfg = declared.examples if declared is not None and declared.kind is kind else None
    ((name, content),) = labelled_files(read_data(LabelledFile(path)), layout.cache, lambda done, total: None)
    paths = {column: getattr(cfg, column, None) or column for column in kind.predictor.inputs}
    found = labelled_records(name, content, [], []) if cfg is None else kind.records(name, content, cfg, [])
    for number, record in enumerate(found, start=1):
        if isinstance(record, str):
            raise ValueError(f"{path}: row {number} cannot be read: {record[:60]!r}")
        row = {column: record.get(column, part_of(record, paths[column])) for column in paths}
        if number == 1 and (missing := [column for column, value in row.items() if value is None]):
            expected = " or ".join(dict.fromkeys((missing[0], paths[missing[0]])))
            raise ValueError(f"{path}: no column {expected}; the columns are {', '.join(map(str, record))}")
        yield row


def answer_lines(answer: Answer) -> list[str]:
    """An answer for people: its values in a line, then its lists side by side, with one line per element. An answer
    with citations is the text, then one line per passage."""
    if CITATIONS in answer:
        passages = {one["n"]: one for one in answer[CITATIONS] or ()}
        return [_shown(answer["answer"]), *(_passage_line(n, one) for n, one in sorted(passages.items()))]
    single = [_shown(value) for value in answer.values() if not isinstance(value, list)]
    lists = [value for value in answer.values() if isinstance(value, list)]
    if not lists:
        return [" ".join(single)]
    rows = [[cell for one in row for cell in _cells(one)] for row in zip(*lists, strict=True)]
    return [*([" ".join(single)] if single else []), *("  ".join(row) for row in rows or [["nothing found"]])]


def _passage_line(n: int, passage: Answer) -> str:
    """For instance "[1] file:///manuals/mill.md, The mill > The wheel (characters 120 to 364)"."""
    place = " > ".join(passage["headings"]) or passage["title"]
    where = _shown(", ".join(filter(None, [passage["url"], place])))
    return f"[{n}] {where} (characters {passage['start']:,} to {passage['end']:,})"


def _cells(value: Any) -> list[str]:
    return [_shown(one) for one in value.values()] if isinstance(value, Mapping) else [_shown(value)]


def _shown(value: Any) -> str:
    """A value on one line, without signs that a terminal would act on: labels and texts may have them."""
    from pipeline.evaluation.mistakes import printable

    return f"{value:.3f}" if isinstance(value, float) else printable(str(value)).replace("\n", " ").strip() or "-"


def run_tasks(args: Namespace) -> int:
    """Print the tasks of tasks.toml and the kinds of task, or a table of one kind to paste."""
    from pipeline.tasks.kind import kind_named
    from pipeline.tasks.kinds import KINDS
    from pipeline.tasks.tasks_toml import read_tasks

    if args.kind:
        print(kind_named(args.kind).example.strip())
        return 0
    layout = layout_from_environment()
    tasks = read_tasks(layout.tasks_toml).values()
    rows = [[one.name, one.kind.name, one.base, KINDS[one.kind.name].command] for one in tasks]
    if rows:
        print("\n".join([*table_lines(["task", "kind", "base", "command"], rows), ""]))
    kinds = [[name, KINDS[name].command, kind_named(name).summary] for name in KINDS]
    print("\n".join(table_lines(["kind", "command", "model"], kinds)))
    print("\n`gristmill tasks KIND` prints a table of a kind for tasks.toml.")
    return 0
