"""Cleans text files: removes licence boilerplate of Project Gutenberg, and interprets reStructuredText and Markdown.

In: text. Out: text. Plain text is unchanged except for the boilerplate. In reStructuredText, comments, targets,
tables of contents and the wrapping of roles and code are removed, and headings get the '#' of their level; in
Markdown, the front matter and HTML comments are removed. Both are readable as they are, so the rest is kept.
"""

import re

GUTENBERG_START = re.compile(
    r"\*\*\* ?START OF (?:THE|THIS) PROJECT GUTENBERG EBOOK.*?\*\*\*|\*END\*THE SMALL PRINT!.*", re.I
)
GUTENBERG_END = re.compile(
    r"\*\*\* ?END OF (?:THE|THIS) PROJECT GUTENBERG EBOOK|End of (?:the |this )?Project Gutenberg", re.I
)

RST_DROPPED_BLOCK = re.compile(  # a directive whose body is not prose, or a comment, with its indented body
    r"^([ \t]*)\.\.(?: (?:toctree|index|contents|meta|image|highlight|module|currentmodule|raw|only|ifconfig)::.*"
    r"| (?!\S+::|\[|_|\|)\S.*)?\n(?:(?:\1[ \t]+\S.*|[ \t]*)\n)*",
    re.MULTILINE,
)
RST_TARGET = re.compile(r"^[ \t]*(?:\.\. _[^\n]*:|\.\. \|[^|\n]+\| |__ ).*\n?", re.MULTILINE)
RST_ROLE = re.compile(r":[a-zA-Z][\w:+.-]{0,80}:`([^`]+)`")  # bounded, so that time is not quadratic
RST_LINK = re.compile(r"`([^`<]+)<[^`>]*>`__?")
RST_REFERENCE = re.compile(r"`([^`\n]+)`__?(?!\w)")
RST_ANONYMOUS = re.compile(r"(?<![\w`'\".])([A-Za-z]\w*[A-Za-z0-9])__(?=[\s.,;:)]|$)", re.MULTILINE)
RST_CODE_BLOCK = re.compile(
    r"^[ \t]*\.\. (?:code-block|code|sourcecode|literalinclude|parsed-literal)::.*\n(?:[ \t]+:[\w-]+:.*\n)*",
    re.MULTILINE,
)
RST_DIRECTIVE = re.compile(r"^([ \t]*)\.\. (\w[\w:-]*)::[ \t]*(.*)$", re.MULTILINE)
RST_ADORNMENT = re.compile(r"^([=\-~`'\"^*+#.:_<>])\1{2,}[ \t]*$\n?", re.MULTILINE)
RST_OPTION = re.compile(
    r"^[ \t]+:(?:noindex|no-index|no-index-entry|hidden|maxdepth|titlesonly|caption|emphasize-lines|linenos):.*\n",
    re.MULTILINE,
)

FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)


def plain_text(text: str) -> str:
    """`text` without the header and footer that Project Gutenberg adds to its books."""
    if start := GUTENBERG_START.search(text):
        text = text[start.end() :]
    if end := GUTENBERG_END.search(text, len(text) // 2):
        text = text[: end.start()]
    return text


def markdown_text(text: str) -> str:
    return _without_comments(FRONT_MATTER.sub("", text))


def _without_comments(text: str) -> str:
    """`text` without <!-- ... -->; an unterminated comment is kept."""
    pieces, place = [], 0
    while (start := text.find("<!--", place)) >= 0 and (end := text.find("-->", start + 4)) >= 0:
        pieces.append(text[place:start])
        place = end + 3
    return "".join(pieces) + text[place:]


def rst_text(text: str) -> str:
    text = RST_TARGET.sub("", text.expandtabs(8) + "\n")
    text = RST_OPTION.sub("", RST_DROPPED_BLOCK.sub("", text))
    text = RST_CODE_BLOCK.sub("", text)
    text = RST_ROLE.sub(lambda match: _role_text(match[1]), text)
    text = RST_LINK.sub(lambda match: match[1].rstrip(), text)
    for link in (RST_REFERENCE, RST_ANONYMOUS):
        text = link.sub(r"\1", text)
    text = RST_DIRECTIVE.sub(_directive_line, _with_marked_headings(text))
    text = RST_ADORNMENT.sub("", text).replace("``", "`")
    return re.sub(r"::$", ":", text, flags=re.MULTILINE)


def _with_marked_headings(text: str) -> str:
    """Underlined lines get the '#' of their level, which is the rank of their adornment in order of appearance."""
    lines = text.split("\n")
    levels: dict[tuple[str, bool], int] = {}
    for i in range(1, len(lines)):
        title, under = lines[i - 1], lines[i].rstrip()
        if not under or not RST_ADORNMENT.fullmatch(under) or title != title.lstrip() or not title.strip():
            continue
        above = lines[i - 2].rstrip() if i > 1 else ""
        is_title = len(under) >= len(title.rstrip()) and not RST_ADORNMENT.fullmatch(title)
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
