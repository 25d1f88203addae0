"""Writes docs/files.md (every module with the first sentence of its docstring) and docs/stages.md.

.venv/bin/python docs/make_files.py
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.store.chain import CHAIN, Link  # noqa: E402

FOLDERS = ("pipeline", "model", "bench")
HEADER = """\
# Where everything is

Every module and the first sentence of its docstring. `python docs/make_files.py` writes this page, and a
test compares it with the tree. Tests mirror `pipeline/` and `model/` by name.
"""
STAGES_HEADER = """\
# The stages

This table has one row per stage, in the order in which they run. `python docs/make_files.py` writes this page from
the table in `pipeline/store/chain.py`, and a test compares the two. To add a stage, create its folder in
`pipeline/corpus/` and add one row to that table. The command line, the asset, the check `conservation`, the data card
and `gristmill trace` read this row.

| stage | asset | what it does | input stages | output schema | drops rows | evidence schema | to run it alone |
|---|---|---|---|---|---|---|---|
"""
COMMANDS = {"stage": "`gristmill stage {}`", "train": "`gristmill train`", "evaluate": "`gristmill evaluate`", "": ""}


def first_sentence(path: Path) -> str:
    """The first sentence of the module's docstring, on one line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("|", "\\|")


def page() -> str:
    """The whole page, as it has to be."""
    lines = [HEADER]
    for folder in FOLDERS:
        modules = [path for path in sorted((ROOT / folder).rglob("*.py")) if path.stem != "__init__"]
        for place in sorted({path.parent for path in modules}):
            lines += [f"## {place.relative_to(ROOT)}/", "", "| file | what it is for |", "|---|---|"]
            own = [path for path in modules if path.parent == place]
            lines += [f"| [{path.name}](../{path.relative_to(ROOT)}) | {first_sentence(path)} |" for path in own]
            lines += [""]
    return "\n".join(lines)


def stages_page() -> str:
    """The whole page of the stages, as it has to be."""
    return STAGES_HEADER + "".join(f"| {' | '.join(_cells(link))} |\n" for link in CHAIN)


def _cells(link: Link) -> list[str]:
    reads = (" or ".join(f"`{name}`" for name in read.stages(link.name)) for read in link.reads)
    earlier = ("earlier outputs of " if read.what == link.name else "" for read in link.reads)
    optional = ("" if read.least else " (optional)" for read in link.reads)
    return [
        f"`{link.name}`",
        f"`{link.asset}`",
        link.does,
        ", ".join(map("".join, zip(earlier, reads, optional, strict=True))),
        f"`{link.writes}`" if link.writes else "",
        "yes" if link.drops else "",
        f"`{link.evidence}`" if link.evidence else "",
        COMMANDS[link.command].format(link.name),
    ]


if __name__ == "__main__":
    (ROOT / "docs" / "files.md").write_text(page(), encoding="utf-8")
    (ROOT / "docs" / "stages.md").write_text(stages_page(), encoding="utf-8")
