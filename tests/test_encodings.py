"""Text files are read and written as UTF-8 whatever the locale says.

ruff's unspecified-encoding (PLW1514) sees a call only where it knows that the object is a Path; this test reads
names.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("pipeline", "model", "bench", "docs")
BINARY_OR_OTHER = {
    "os",
    "tarfile",
    "webbrowser",
    "archive",
    "zipped",
    "journal",
    "member",
    "lines",
}  # whose open() is no text


def default_encodings(source: str) -> Iterator[tuple[int, str]]:
    """Line and call of everything that would decode or encode text by the locale."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and _depends_on_locale(node):
            yield node.lineno, ast.unparse(node)[:100]


def _depends_on_locale(call: ast.Call) -> bool:
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in keywords or None in keywords:  # None: **options
        return False
    is_method = isinstance(call.func, ast.Attribute)
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in ("run", "Popen", "check_output", "check_call") and {"text", "universal_newlines"} & keywords.keys():
        return True
    if name == "read_text":
        return is_method and not call.args
    if name == "write_text":
        return is_method and len(call.args) < 2
    if name in ("NamedTemporaryFile", "TemporaryFile"):
        return "mode" in keywords and "b" not in ast.unparse(keywords["mode"])
    if name in ("open", "fdopen") and isinstance(call.func, ast.Attribute | ast.Name):
        owner = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
        if owner in BINARY_OR_OTHER and name == "open":
            return False
        place = 0 if is_method and name == "open" else 1
        mode = keywords.get("mode") or (call.args[place] if len(call.args) > place else None)
        return mode is None or (isinstance(mode, ast.Constant) and "b" not in str(mode.value))
    return False


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_file_is_opened_in_the_encoding_of_the_locale(folder):
    """With LC_ALL=C and Python's UTF-8 mode off, the asset `tokenizer` ended in a UnicodeDecodeError, because a file
    was read in the locale's encoding, ASCII (izimobil/polib#41)."""
    found = [
        f"{path.relative_to(ROOT)}:{line}: {call}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, call in default_encodings(path.read_text("utf-8"))
    ]
    assert not found, "\n".join(['name encoding="utf-8":', *found])


@pytest.mark.parametrize(
    "locale",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"},  # a terminal that shows ASCII only
    ],
)
def test_command_works_with_names_that_the_locale_cannot_encode(locale, tmp_path):
    """With LC_ALL=C, printing or opening a path with an umlaut was an unexpected UnicodeEncodeError."""
    command = [sys.executable, "-m", "pipeline", "init", "Mühle 粉"]
    answer = subprocess.run(command, cwd=tmp_path, env={**os.environ, **locale, "PYTHONPATH": str(ROOT)}, timeout=60)
    assert answer.returncode == 0
    assert (tmp_path / "Mühle 粉" / "sources.toml").exists()
