"""Writes docs/files.md: every module of the project with the first sentence of its docstring.

.venv/bin/python docs/make_files.py
"""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("pipeline", "model", "bench")
HEADER = """\
# Where everything is

Every module and the first sentence of its docstring. `python docs/make_files.py` writes this page, and a
test holds it to the tree. Tests mirror `pipeline/` and `model/` by name.
"""


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
            lines += [f"## {place.relative_to(ROOT)}/", "", "| file | what it holds |", "|---|---|"]
            own = [path for path in modules if path.parent == place]
            lines += [f"| [{path.name}](../{path.relative_to(ROOT)}) | {first_sentence(path)} |" for path in own]
            lines += [""]
    return "\n".join(lines)


if __name__ == "__main__":
    (ROOT / "docs" / "files.md").write_text(page(), encoding="utf-8")
