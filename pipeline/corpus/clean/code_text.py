"""Extracts the text of source code files, with the language name, and of notebooks.

In: a text and the name or address of its file. Out: `Extracted`: the unchanged code, including indentation, comments
and licence header, its file name as title, and `code_language`, determined by suffix, by name (Makefile), by the
first line (#!), or, for suffixes that two languages share, by the text. For a notebook: text cells and fenced code
cells in their order, without outputs. All code is `verbatim`.
"""

import json
import re
from typing import Any
from urllib.parse import unquote

from pipeline.corpus.clean.extraction import Extracted, fence_around, joined
from pipeline.corpus.shown_text import with_line_ends
from pipeline.corpus.text_repair import as_text

EXTRACTOR = "code"
NOTEBOOK_EXTRACTOR = "notebook"

LANGUAGES: dict[str, tuple[str, ...]] = {  # language -> suffixes
    "Ada": (".adb", ".ads"),
    "Assembly": (".asm", ".s"),
    "Awk": (".awk",),
    "Batch": (".bat", ".cmd"),
    "C": (".c", ".h"),
    "C#": (".cs", ".csx"),
    "C++": (".cc", ".cpp", ".cxx", ".c++", ".hh", ".hpp", ".hxx", ".ipp", ".tpp"),
    "CMake": (".cmake",),
    "COBOL": (".cbl", ".cob"),
    "CSS": (".css",),
    "CUDA": (".cu", ".cuh"),
    "Clojure": (".clj", ".cljc", ".cljs", ".edn"),
    "CoffeeScript": (".coffee",),
    "Common Lisp": (".lisp", ".lsp", ".cl"),
    "Crystal": (".cr",),
    "Cython": (".pyx", ".pxd", ".pxi"),
    "D": (".d",),
    "Dart": (".dart",),
    "Diff": (".diff", ".patch"),
    "Dockerfile": (".dockerfile",),
    "Elixir": (".ex", ".exs"),
    "Elm": (".elm",),
    "Emacs Lisp": (".el",),
    "Erlang": (".erl", ".hrl"),
    "F#": (".fs", ".fsi", ".fsx"),
    "Fortran": (".f", ".for", ".f77", ".f90", ".f95", ".f03", ".f08"),
    "GLSL": (".glsl", ".vert", ".frag"),
    "Go": (".go",),
    "GraphQL": (".graphql", ".gql"),
    "Groovy": (".groovy", ".gradle", ".gvy"),
    "HCL": (".tf", ".hcl"),
    "Haskell": (".hs", ".lhs"),
    "INI": (".ini", ".cfg"),
    "Java": (".java",),
    "Java Properties": (".properties",),
    "JavaScript": (".js", ".mjs", ".cjs", ".jsx"),
    "Julia": (".jl",),
    "Kotlin": (".kt", ".kts"),
    "Less": (".less",),
    "Lua": (".lua",),
    "MATLAB": (".m",),
    "Makefile": (".mk", ".mak"),
    "Meson": (".meson",),
    "Nim": (".nim", ".nims"),
    "Nix": (".nix",),
    "OCaml": (".ml", ".mli"),
    "Objective-C": (".mm",),
    "PHP": (".php", ".phtml"),
    "Pascal": (".pas", ".pp", ".dpr"),
    "Perl": (".pl", ".pm", ".t"),
    "PowerShell": (".ps1", ".psm1", ".psd1"),
    "Prolog": (".pro", ".prolog"),
    "Protocol Buffers": (".proto",),
    "Python": (".py", ".pyi", ".pyw"),
    "R": (".r",),
    "Racket": (".rkt",),
    "Ruby": (".rb", ".rake", ".gemspec"),
    "Rust": (".rs",),
    "SCSS": (".scss",),
    "SQL": (".sql",),
    "Sass": (".sass",),
    "Scala": (".scala", ".sc", ".sbt"),
    "Scheme": (".scm", ".ss"),
    "Shell": (".sh", ".bash", ".zsh", ".ksh", ".fish"),
    "Smalltalk": (".st",),
    "Solidity": (".sol",),
    "Starlark": (".bzl",),
    "Svelte": (".svelte",),
    "Swift": (".swift",),
    "SystemVerilog": (".sv", ".svh"),
    "TOML": (".toml",),
    "Tcl": (".tcl",),
    "TeX": (".tex", ".sty", ".cls", ".bib"),
    "TypeScript": (".ts", ".tsx", ".mts", ".cts"),
    "VHDL": (".vhd", ".vhdl"),
    "Verilog": (".v", ".vh"),
    "Vim script": (".vim",),
    "Visual Basic": (".vb", ".bas", ".vbs"),
    "Vue": (".vue",),
    "WebAssembly": (".wat", ".wast"),
    "YAML": (".yaml", ".yml"),
    "Zig": (".zig",),
}
LANGUAGE_OF_SUFFIX = {suffix: language for language, suffixes in LANGUAGES.items() for suffix in suffixes}
LANGUAGE_OF_NAME = {  # whole names, in lower case
    "makefile": "Makefile",
    "gnumakefile": "Makefile",
    "cmakelists.txt": "CMake",
    "dockerfile": "Dockerfile",
    "containerfile": "Dockerfile",
    "rakefile": "Ruby",
    "gemfile": "Ruby",
    "jenkinsfile": "Groovy",
    "meson.build": "Meson",
    "build.bazel": "Starlark",
    "sconstruct": "Python",
}
LANGUAGE_OF_INTERPRETER = {
    "awk": "Awk",
    "bash": "Shell",
    "dash": "Shell",
    "deno": "TypeScript",
    "elixir": "Elixir",
    "escript": "Erlang",
    "fish": "Shell",
    "gawk": "Awk",
    "groovy": "Groovy",
    "guile": "Scheme",
    "julia": "Julia",
    "ksh": "Shell",
    "lua": "Lua",
    "make": "Makefile",
    "node": "JavaScript",
    "nodejs": "JavaScript",
    "perl": "Perl",
    "php": "PHP",
    "python": "Python",
    "racket": "Racket",
    "rscript": "R",
    "ruby": "Ruby",
    "runghc": "Haskell",
    "runhaskell": "Haskell",
    "scala": "Scala",
    "sh": "Shell",
    "swift": "Swift",
    "tclsh": "Tcl",
    "wish": "Tcl",
    "zsh": "Shell",
}
SHARED_SUFFIXES = {  # suffix -> (pattern of the other language, that language)
    ".h": (re.compile(r"^\s*(?:class \w|namespace \w|template ?<|public:|private:|using \w)", re.M), "C++"),
    ".m": (re.compile(r"^\s*(?:@interface|@implementation|@end|@import|#import)", re.M), "Objective-C"),
    ".pl": (re.compile(r"^(?::- |\w+\([^\n]{0,200}\) ?:-)", re.M), "Prolog"),
    ".v": (re.compile(r"^\s*(?:Theorem|Lemma|Inductive|Require|Proof|Definition) ?\w*", re.M), "Coq"),
    ".d": (re.compile(r"^[\w./-]+\.o ?:", re.M), "Makefile"),
}
LOOKED_AT = 20_000  # characters that are examined to distinguish two languages
VERSION = re.compile(r"[\d.]+$")


def code_text(text: str, name: str) -> Extracted:
    """`name` is a path or an address; its part after # and compression suffixes are ignored."""
    base = _base_name(name)
    language = language_of_name(base) or language_of_first_line(text)
    for suffix, (says_other, other) in SHARED_SUFFIXES.items():
        if base.lower().endswith(suffix) and says_other.search(text[:LOOKED_AT]):
            language = other
    reason = None if text.strip() else "no_text"
    return Extracted(
        text,
        title=base or None,
        extractor=EXTRACTOR,
        code_language=language,
        reason=reason,
        verbatim=((0, len(text)),),
    )


def language_of_name(name: str) -> str | None:
    """The language by the whole name of a file or by its suffix; None if the name is not one of source code."""
    base = name.rpartition("/")[2].lower()
    if base in LANGUAGE_OF_NAME:
        return LANGUAGE_OF_NAME[base]
    return LANGUAGE_OF_SUFFIX.get(f".{base.rpartition('.')[2]}") if "." in base else None


def language_of_first_line(text: str) -> str | None:
    """The language of the interpreter in a `#!` line."""
    first = text[:300].partition("\n")[0]
    words = [word.rpartition("/")[2].lower() for word in first.removeprefix("#!").split()]
    if not first.startswith("#!") or not words:
        return None
    if words[0] == "env":  # its options and variables may precede the interpreter
        words = [word for word in words[1:] if not word.startswith("-") and "=" not in word] or words
    return LANGUAGE_OF_INTERPRETER.get(VERSION.sub("", words[0]))


def notebook_text(text: str) -> Extracted:
    """The text of a notebook. Never raises for a broken one: `reason` is then unreadable or no_text."""
    try:
        notebook = json.loads(text)
    except (ValueError, RecursionError):
        return Extracted("", extractor=NOTEBOOK_EXTRACTOR, reason="unreadable")
    cells = _cells(notebook)
    if cells is None:
        return Extracted("", extractor=NOTEBOOK_EXTRACTOR, reason="unreadable")
    language = _kernel_language(notebook)
    pieces: list[tuple[str, bool]] = []
    title = None
    for cell in cells:
        before, source, after = _cell(cell, language) if isinstance(cell, dict) else ("", "", "")
        if source:
            pieces += (("\n\n" * bool(pieces) + before, False), (source, bool(after)), (after, False))
            title = title or (None if after else _first_heading(before + source))
    text, verbatim = joined(pieces)
    return Extracted(
        text,
        title=title,
        extractor=NOTEBOOK_EXTRACTOR,
        code_language=language,
        reason=None if text else "no_text",
        verbatim=verbatim,
    )


def _first_heading(text: str) -> str | None:
    return next((line.lstrip("# ").strip() for line in text.split("\n") if line.startswith("# ")), None)


def _base_name(name: str) -> str:
    base = unquote(name.partition("#")[0]).replace("\\", "/").rpartition("/")[2]
    for suffix in (".gz", ".bz2", ".xz", ".zst"):
        base = base[: -len(suffix)] if base.lower().endswith(suffix) else base
    return base


def _cells(notebook: Any) -> list[Any] | None:
    """Cells of a notebook of format 4, or of the first work sheet of format 3."""
    if not isinstance(notebook, dict):
        return None
    sheets = notebook.get("worksheets")
    holder = sheets[0] if isinstance(sheets, list) and sheets and isinstance(sheets[0], dict) else notebook
    cells = holder.get("cells")
    return cells if isinstance(cells, list) else None


def _kernel_language(notebook: dict[str, Any]) -> str | None:
    metadata = notebook.get("metadata")
    if not isinstance(metadata, dict):
        return None
    for place, key in (("language_info", "name"), ("kernelspec", "language")):
        inside = metadata.get(place)
        name = inside.get(key) if isinstance(inside, dict) else None
        if isinstance(name, str) and name:
            known = {language.lower(): language for language in LANGUAGES}
            return known.get(VERSION.sub("", name.lower()), name[:40])
    return None


def _cell(cell: dict[str, Any], language: str | None) -> tuple[str, str, str]:
    """What stands before the source of a cell, the source, and what stands after it, which is empty but for code."""
    source = cell.get("source", cell.get("input", ""))
    if isinstance(source, list):
        source = "".join(piece for piece in source if isinstance(piece, str))
    if not isinstance(source, str) or not source.strip():
        return "", "", ""
    if cell.get("cell_type") == "code":
        source = as_text(with_line_ends(source)).rstrip("\n")
        fence = fence_around(source)
        return f"{fence}{(language or '').lower()}\n", source, f"\n{fence}"
    level = cell.get("level")
    is_heading = cell.get("cell_type") == "heading" and isinstance(level, int) and 1 <= level <= 6
    return f"{'#' * int(level or 0)} " if is_heading else "", source, ""
