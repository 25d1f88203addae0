"""`gristmill settings`: lists every setting of the graph with its type, range, value and meaning.

In: parsed arguments. Out: a table on stdout, or JSON, and exit code 0. The values are those of a run without changes
in the launchpad; if a file sets another value than the code, the default of the code is shown too.
"""

import dataclasses
import json
import shutil
import textwrap
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from pipeline.commands.tables import table_lines
from pipeline.store.layout import Layout, existing_layout
from pipeline.store.settings import Setting, refuse_unknown, value_text

HEADER = ("asset", "setting", "type", "value", "default", "description")
TYPE_WIDTH, LEAST_WIDTH = 30, 40  # characters for the type, and at least for the description


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A setting of an asset, or of one of its stages."""

    asset: str  # or asset.stage, the name of the table in config.toml
    setting: Setting
    value: Any  # dataclasses.MISSING if the launchpad requires one


def run(args: Namespace) -> int:
    rows = settings_of_graph(existing_layout())
    if args.asset is not None:
        refuse_unknown("gristmill settings", "asset", [args.asset], _names(rows))
        rows = [row for row in rows if args.asset in (row.asset, row.asset.partition(".")[0])]
    print(json.dumps([_as_json(row) for row in rows], indent=1) if args.json else "\n".join(settings_lines(rows)))
    return 0


def settings_of_graph(layout: Layout) -> list[Row]:
    """The settings of all assets, in the order of the graph. Raises ValueError when one of the files is invalid."""
    from pipeline.definitions import definitions
    from pipeline.defs.run_config import settings_in

    return [
        Row(asset=place, setting=setting, value=value)
        for asset in definitions(layout).assets or ()
        for place, setting, value in settings_in(asset.op.config_schema.as_field())  # type: ignore[union-attr]
    ]


def settings_lines(rows: Sequence[Row]) -> list[str]:
    """A table; on a terminal, long texts are wrapped."""
    cells = [[row.asset, row.setting.name, *_texts(row), row.setting.description] for row in rows]
    width = shutil.get_terminal_size((10**6, 0)).columns
    fixed = sum(max((len(row[i]) for row in cells), default=0) + 2 for i in (0, 1, 3, 4))
    described = max(LEAST_WIDTH, width - fixed - TYPE_WIDTH - 2)
    lines = [line for row in cells for line in _broken(row, TYPE_WIDTH if width < 10**6 else width, described)]
    return table_lines(HEADER, lines)


def _broken(row: Sequence[str], type_width: int, description_width: int) -> Iterator[list[str]]:
    asset, name, kind, value, default, description = row
    wrapped = zip_longest(
        textwrap.wrap(kind, type_width), textwrap.wrap(description, description_width), fillvalue=""
    )
    for i, (part, text) in enumerate(wrapped):
        yield [asset, name, part, value, default, text] if i == 0 else ["", "", part, "", "", text]


def _texts(row: Row) -> tuple[str, str, str]:
    kind = f"{row.setting.expected}, or none" if row.setting.optional else row.setting.expected
    value, default = _text(row.value), _text(row.setting.default)
    return kind, value, "" if value == default else default


def _text(value: Any) -> str:
    return "(required)" if value is dataclasses.MISSING else value_text(value)


def _names(rows: Sequence[Row]) -> list[str]:
    """Names of assets and of their stages, each once."""
    return list(dict.fromkeys(name for row in rows for name in (row.asset.partition(".")[0], row.asset)))


def _as_json(row: Row) -> dict[str, Any]:
    given = {"default": row.setting.default, "value": row.value}
    return {
        "asset": row.asset,
        "setting": row.setting.name,
        "type": row.setting.expected,
        "optional": row.setting.optional,
        **{name: value for name, value in given.items() if value is not dataclasses.MISSING},
        "description": row.setting.description,
    }
