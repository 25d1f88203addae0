"""reStructuredText as it reads: headings with the '#' of their level, without comments, targets and wrappings.

In: text. Out: `Extracted`, with literal blocks, listings and inline literals as `verbatim`. The lines are split into
blocks first, as docutils reads them, so that the rules for prose never see code: literal blocks after "::", quoted or
indented, directives whose content is code, doctest blocks. A comment, and a directive that shows nothing of its
content, goes with all that is indented below it.
"""

import re
from collections.abc import Iterator

from pipeline.corpus.clean.extraction import Extracted, joined

EXTRACTOR = "rst"
DROPPED = frozenset(
    (
        "toctree",
        "index",
        "contents",
        "meta",
        "image",
        "highlight",
        "module",
        "currentmodule",
        "raw",
        "only",
        "ifconfig",
    )
)
CODE = frozenset(
    (
        "code-block", "code", "sourcecode", "parsed-literal", "literalinclude", "prompt", "console", "ipython",
        "jupyter-execute", "productionlist", "doctest", "testcode", "testoutput", "testsetup", "testcleanup",
        "math", "csv-table", "graphviz", "graph", "digraph", "mermaid", "uml", "plantuml",
    )
)  # fmt: skip
WITH_ARGUMENT = ("math", "csv-table")  # code whose argument, a formula or a title, is shown
EXPLICIT = re.compile(
    r"\.\.(?:[ \t]+(?:(?P<target>_|\|[^|\n]+\| )|(?P<note>\[)|(?P<name>[^\s:]\S*?)::(?=\s|$)(?P<rest>.*))?|$)"
)
OPTION = re.compile(r"[ \t]+:[\w-]+:(?:\s|$)")
ITEM = re.compile(r"(?:(?:[-*+\u2022]|\(?(?:\d{1,9}|[A-Za-z]|#|[ivxlc]{1,9})[.)])[ \t]+){1,9}(?=\S)")
QUOTING = re.compile(r"[!-/:-@\[-`{-~]")

ROLE = re.compile(r":[a-zA-Z][\w:+.-]{0,80}:`([^`]+)`")  # bounded, so that time is not quadratic
LINK = re.compile(r"`([^`<]+)<[^`>]*>`__?")
REFERENCE = re.compile(r"`([^`\n]+)`__?(?!\w)")
ANONYMOUS = re.compile(r"(?<![\w`'\".])([A-Za-z]\w*[A-Za-z0-9])__(?=[\s.,;:)]|$)", re.MULTILINE)
LITERAL = re.compile(r"``(?![\s)])((?:[^`\n]|\n(?![ \t]*\n)|`(?!`))+`*)``")
DIRECTIVE = re.compile(r"^([ \t]*)\.\. (\w[\w:-]*)::[ \t]*(.*)$", re.MULTILINE)
ADORNMENT = re.compile(r"^([=\-~`'\"^*+#.:_<>])\1{2,}[ \t]*$\n?", re.MULTILINE)
HIDDEN_OPTION = re.compile(
    r"^[ \t]+:(?:noindex|no-index|no-index-entry|hidden|maxdepth|titlesonly|caption|emphasize-lines|linenos):.*\n",
    re.MULTILINE,
)


def rst_text(text: str) -> Extracted:
    levels: dict[tuple[str, bool], int] = {}
    pieces: list[tuple[str, bool]] = []
    for block, is_code in _blocks(text.split("\n")):
        pieces += [(block, True)] if is_code else _shown(block, levels)
    shown, verbatim = joined(pieces)
    return Extracted(shown, extractor=EXTRACTOR, verbatim=verbatim)


def _blocks(lines: list[str]) -> Iterator[tuple[str, bool]]:
    """Runs of lines in their order, each with whether it is code; nothing of what is not shown."""
    prose: list[str] = []
    place = 0
    while place < len(lines):
        is_shown, start, end = _parsed(lines, place)
        if is_shown:
            prose.append(lines[place].expandtabs(8))
        if start < end:
            prose += [""] * (is_shown and start - place - 1)
            yield "".join(f"{line}\n" for line in prose), False
            yield "\n".join(lines[start:end]), True
            prose = [""]
        place = end
    yield "".join(f"{line}\n" for line in prose), False


def _parsed(lines: list[str], place: int) -> tuple[bool, int, int]:
    """Of the line at `place`: whether it is shown as prose, and the lines of code that belong to it; (n, n) for none.

    Reading goes on where the code ends.
    """
    line = lines[place].strip()
    if explicit := EXPLICIT.match(line):
        return _explicit(lines, place, explicit)
    is_first = place == 0 or not lines[place - 1].strip()
    if line.startswith(">>> ") and is_first:
        return False, place, _paragraph_end(lines, place)
    is_target = line.startswith("__ ")
    start = place + 1
    if line.endswith("::") and start < len(lines) and not lines[start].strip():
        while start < len(lines) and not lines[start].strip():
            start += 1
        indent = _text_column(lines[place])
        if start < len(lines) and _indent(lines[start]) > indent:
            return True, start, _body_end(lines, start - 1, indent)
        if start < len(lines) and _indent(lines[start]) == indent and QUOTING.match(lines[start].lstrip()):
            return True, start, _quoted_end(lines, start)
    return not is_target, place + 1, place + 1


def _explicit(lines: list[str], place: int, explicit: re.Match[str]) -> tuple[bool, int, int]:
    """The same for a line that begins with two dots."""
    indent, name = _indent(lines[place]), explicit["name"]
    if explicit["note"] or (name and name not in DROPPED and name not in CODE):
        return True, place + 1, place + 1
    is_empty = explicit.end() == 2  # two dots alone take what follows without a blank line
    if explicit["target"] or is_empty:
        end = place + 1
        while end < len(lines) and lines[end].strip() and _indent(lines[end]) > indent:
            end += 1
        return False, end, end
    end = _body_end(lines, place, indent)
    start = place + 1 if name in CODE else end
    while start < end and (not lines[start].strip() or OPTION.match(lines[start])):
        start += 1
    return name in WITH_ARGUMENT and bool(explicit["rest"].strip()), start, end


def _indent(line: str) -> int:
    return len(line[: len(line) - len(line.lstrip())].expandtabs(8))


def _text_column(line: str) -> int:
    """Where the text of a line begins, behind the markers of lists."""
    line = line.expandtabs(8)
    item = ITEM.match(line, _indent(line))
    return item.end() if item else _indent(line)


def _body_end(lines: list[str], place: int, indent: int) -> int:
    """Behind the lines after `place` that are indented more, without the blank ones at their end."""
    end = following = place + 1
    while following < len(lines) and (not lines[following].strip() or _indent(lines[following]) > indent):
        following += 1
        if lines[following - 1].strip():
            end = following
    return end


def _paragraph_end(lines: list[str], place: int) -> int:
    while place < len(lines) and lines[place].strip():
        place += 1
    return place


def _quoted_end(lines: list[str], place: int) -> int:
    """Behind the lines that begin with the same sign as the first."""
    sign = lines[place].lstrip()[0]
    while place < len(lines) and lines[place].lstrip().startswith(sign):
        place += 1
    return place


def _shown(text: str, levels: dict[tuple[str, bool], int]) -> Iterator[tuple[str, bool]]:
    """A run of prose as it reads, with its inline literals as code."""
    text = _with_marked_headings(HIDDEN_OPTION.sub("", text), levels)
    text = ADORNMENT.sub("", DIRECTIVE.sub(_directive_line, text))
    text = "\n".join(line for line in map(_without_colons, text.split("\n")) if line is not None)
    place = 0
    for literal in LITERAL.finditer(text):
        yield _inline(text[place : literal.start()]) + "`", False
        yield literal[1], True
        yield "`", False
        place = literal.end()
    yield _inline(text[place:]), False


def _inline(text: str) -> str:
    text = ROLE.sub(lambda match: _role_text(match[1]), text)
    text = LINK.sub(lambda match: match[1].rstrip(), text)
    for link in (REFERENCE, ANONYMOUS):
        text = link.sub(r"\1", text)
    return text


def _without_colons(line: str) -> str | None:
    """The two colons before a literal block are shown as one, or not at all if no letter stands before them."""
    if not line.endswith("::"):
        return line
    text = line[:-2].rstrip()
    return (text + ":" if len(text) == len(line) - 2 else text) if text else None


def _with_marked_headings(text: str, levels: dict[tuple[str, bool], int]) -> str:
    """Underlined lines get the '#' of their level, which is the rank of their adornment in order of appearance."""
    lines = text.split("\n")
    for i in range(1, len(lines)):
        title, under = lines[i - 1], lines[i].rstrip()
        if not under or not ADORNMENT.fullmatch(under) or title != title.lstrip() or not title.strip():
            continue
        above = lines[i - 2].rstrip() if i > 1 else ""
        is_title = len(under) >= len(title.rstrip()) and not ADORNMENT.fullmatch(title)
        if is_title and above in ("", under):
            level = levels.setdefault((under[0], above == under), len(levels) + 1)
            lines[i - 1] = "#" * min(level, 6) + " " + title.rstrip()
    return "\n".join(lines)


def _role_text(inside: str) -> str:
    """:ref:`shown <target>` becomes `shown`; :class:`~package.Name` becomes `Name`."""
    shown = inside[: inside.rfind("<")].rstrip() if inside.endswith(">") and "<" in inside else inside
    return shown[1:].rpartition(".")[2] if shown.startswith("~") else shown.removeprefix("!")


def _directive_line(match: re.Match[str]) -> str:
    """`.. versionadded:: 1.2` becomes "versionadded 1.2", `.. note::` becomes "note:"."""
    space, name, value = match.groups()
    return f"{space}{name.rpartition(':')[2]} {value}" if value else f"{space}{name}:"
