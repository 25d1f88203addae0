"""The text of a MediaWiki article: prose, headings and lists, without templates, tables, references and files.

In: wikitext. Out: text. The output of templates for languages and units is kept; what a dropped template leaves
behind (empty brackets, doubled spaces) is cleaned up. Lists of literature and links at the end of an article are
dropped.
"""

import re
from collections.abc import Iterator
from typing import Any

DROPPED_TAGS = frozenset(
    {"ref", "references", "table", "gallery", "math", "timeline", "imagemap", "score", "chem", "div"}
)
BLOCK_TAGS = frozenset({"br", "blockquote", "poem", "p"})
DROPPED_LINKS = re.compile(r"\s*(file|image|category|media|[a-z]{2,3}(-[a-z]+)*)\s*:", re.IGNORECASE)
END_SECTIONS = re.compile(
    r"\s*(references|external links|see also|further reading|notes|bibliography|sources|footnotes)\s*", re.IGNORECASE
)
# name of a template -> index of the unnamed value that it shows; -1 = the last
SHOWN_VALUES: dict[str, tuple[int, ...]] = {
    "lang": (2,),
    "transl": (-1,),
    "nowrap": (1,),
    "nobold": (1,),
    "abbr": (1,),
    "quote": (1,),
    "cquote": (1,),
    "convert": (1, 2),
}
# list markers would be removed with the markup
LIST_ITEM = re.compile(r"^[*#]+[ \t]*(?=[^\s*#])", re.MULTILINE)
INDENT = re.compile(r"^[:;]+[ \t]*", re.MULTILINE)
SPACES = re.compile(r"[ \t]{2,}")
EMPTY_BRACKETS = re.compile(r" ?\([;, ]*\)|(?<=\()[;, ]+|[;,] ?(?=\))| ?\[ ?\]")
SPACE_BEFORE_STOP = re.compile(r" ([,.;])(?=\s)")
MAGIC_WORDS = re.compile(r"__[A-Z]{3,}__")


def wiki_text(markup: str) -> str:
    import mwparserfromhell

    code = mwparserfromhell.parse(INDENT.sub("", LIST_ITEM.sub("- ", markup)))
    text = SPACES.sub(" ", MAGIC_WORDS.sub("", "".join(_top_level(code))))
    return SPACE_BEFORE_STOP.sub(r"\1", EMPTY_BRACKETS.sub("", text))


def _top_level(code: Any) -> Iterator[str]:
    from mwparserfromhell.nodes import Heading

    dropping = False
    for node in code.nodes:
        if isinstance(node, Heading) and node.level <= 2:
            dropping = END_SECTIONS.fullmatch(str(node.title)) is not None
        if not dropping:
            yield from _shown(node)


def _shown(node: Any) -> Iterator[str]:
    """The visible text of `node`, piece by piece."""
    from mwparserfromhell import nodes

    match node:
        case nodes.Text():
            yield str(node.value)
        case nodes.HTMLEntity():
            yield node.normalize()
        case nodes.Heading():
            yield f"\n{'#' * node.level} {''.join(_inside(node.title)).strip()}\n"
        case nodes.Wikilink() if not DROPPED_LINKS.match(str(node.title)):
            yield from _inside(node.title if node.text is None else node.text)
        case nodes.ExternalLink() if node.title is not None:
            yield from _inside(node.title)
        case nodes.Tag() if str(node.tag).strip().lower() not in DROPPED_TAGS:
            space = "\n" if str(node.tag).strip().lower() in BLOCK_TAGS else ""
            yield space
            yield from _inside(node.contents)
            yield space
        case nodes.Template():
            yield from _template_values(node)


def _inside(code: Any) -> Iterator[str]:
    for node in code.nodes if code is not None else ():
        yield from _shown(node)


def _template_values(template: Any) -> Iterator[str]:
    values = [param.value for param in template.params if not param.showkey]
    positions = SHOWN_VALUES.get(str(template.name).strip().lower(), ())
    shown = [values[i if i < 0 else i - 1] for i in positions if i <= len(values) and values]
    yield " ".join("".join(_inside(value)).strip() for value in shown)
