"""The text of a MediaWiki article: prose, headings, lists, code and formulas, without tables, references and files.

In: wikitext, and what its dump says about the wiki (wiki_names.py). Out: `Extracted`. The markup is parsed before
anything is changed, so that no rule for prose touches code. Code is fenced, formulas keep their LaTeX. Templates show
what wiki_templates.py knows of them; unknown ones inside a sentence show their values and are counted. What a dropped
template leaves behind (empty brackets, doubled spaces) is cleaned up. Not kept: lists of literature and links at the
end of an article, and headings with nothing below them.
"""

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.corpus.clean.extraction import Extracted, fence_around, joined
from pipeline.corpus.clean.html_superscripts import on_one_line
from pipeline.corpus.clean.math_text import latex
from pipeline.corpus.clean.wiki_names import Names, is_end_section, is_link_elsewhere, names_of
from pipeline.corpus.clean.wiki_templates import shown_text, unknown_text

DROPPED_NAMES = """
    ref references table gallery timeline imagemap score templatestyles templatedata graph mapframe maplink indicator
    inputbox hiero section categorytree includeonly rt rp rtc style script
"""
DROPPED_TAGS = frozenset(DROPPED_NAMES.split())
BLOCK_TAGS = frozenset({"br", "blockquote", "poem", "p", "div", "center"})
LISTINGS = frozenset({"pre", "source", "syntaxhighlight"})
CODE = frozenset({"code", "tt", "kbd", "samp", "var"})
IS_RAISED = {"sup": True, "sub": False}
FORMULAS = frozenset({"math", "chem", "ce"})
SPACES = re.compile(r"[ \t]{2,}")
EMPTY_BRACKETS = re.compile(r" ?\([;, ]*\)|(?<=\()[;, ]+|[;,] ?(?=\))| ?\[ ?\]")
SPACE_BEFORE_STOP = re.compile(r" ([,.;])(?=\s)")
MAGIC_WORDS = re.compile(r"__[A-Z]{3,}__")
VARIANTS = re.compile(r"-\{(?:[A-Z]\|)?([^{}]*?)\}-")  # of Chinese, Serbian and others: -{zh-cn:a; zh-tw:b}-
PREFORMATTED = re.compile(r"(?:(?<=\n) [^\n]*\S[^\n]*\n?){2,}")  # lines that begin with a space
STYLES = re.compile("'{2,}")
LANGUAGE_NAME = re.compile(r"[\w+#.-]{1,20}")
LINK_ITEM = re.compile(r"- .*")


@dataclass(slots=True)
class _Section:
    level: int  # 0 = before the first heading
    heading: str
    body: str
    has_prose: bool  # something besides list items that are links


@dataclass(slots=True)
class _Reader:
    """State of one article: text that no rule may change, numbers of lists, and what was not known."""

    names: Names
    mark: str  # a character that the article does not contain
    protected: list[str] = field(default_factory=list)
    numbers: dict[int, int] = field(default_factory=dict)  # depth of a numbered list -> last number
    n_unknown: int = 0
    n_outer_links: int = 0

    def keep(self, text: str) -> str:
        """A placeholder for `text`, which stays as it is."""
        self.protected.append(text)
        return f"{self.mark}{len(self.protected) - 1}{self.mark}"

    def pieces(self, text: str) -> Iterator[tuple[str, bool]]:
        """`text` with what was kept in its place, cut where that begins and ends; whether a piece was kept."""
        for i, part in enumerate(re.split(f"{self.mark}([0-9]+){self.mark}", text)):
            yield (
                ("".join(inner for inner, _ in self.pieces(self.protected[int(part)])), True)
                if i % 2
                else (part, False)
            )


def wiki_text(markup: str, context: str | None = None) -> Extracted:
    import mwparserfromhell

    mark = next(chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in markup)
    reader = _Reader(names_of(context), mark)
    # bold and italic text that is not closed would hold the rest of the article, headings and all
    code = mwparserfromhell.parse(markup, skip_style_tags=True)
    text = "".join(_article(code.nodes, reader))
    text = SPACE_BEFORE_STOP.sub(r"\1", EMPTY_BRACKETS.sub("", SPACES.sub(" ", MAGIC_WORDS.sub("", text))))
    text, verbatim = joined(reader.pieces(text))
    return Extracted(text, extractor="wiki", n_unknown_templates=reader.n_unknown, verbatim=verbatim)


def _article(nodes: Sequence[Any], reader: _Reader) -> Iterator[str]:
    """The sections that say something, in order."""
    sections = list(_sections(nodes, reader))
    kept: list[str] = []
    deeper = 7  # level of the section that was kept last; none yet
    dropped_from = _dropped_sections(sections)
    for i in reversed(range(len(sections))):
        section = sections[i]
        if i in dropped_from:
            continue
        if section.body.strip() or section.level < deeper <= 6:
            kept.append(f"{section.heading}{section.body}")
            deeper = section.level
    yield from reversed(kept)


def _dropped_sections(sections: Sequence[_Section]) -> set[int]:
    """Sections of references and links, by their name, or at the end of the article because they hold only links."""
    dropped: set[int] = set()
    dropping = False
    for i, section in enumerate(sections):
        if 0 < section.level <= 2:
            dropping = is_end_section(section.heading.strip("# \n"))
        if dropping:
            dropped.add(i)
    for i in reversed(range(len(sections))):
        if i in dropped or not sections[i].body.strip():
            continue
        if sections[i].level != 2 or sections[i].has_prose:
            break
        dropped.add(i)
    return dropped


def _sections(nodes: Sequence[Any], reader: _Reader) -> Iterator[_Section]:
    from mwparserfromhell.nodes import Heading

    end = _without_links_at_the_end(nodes)
    level, heading, start = 0, "", 0
    for i in range(end + 1):
        node = nodes[i] if i < end else None
        if node is not None and not isinstance(node, Heading):
            continue
        reader.numbers.clear()
        before = reader.n_outer_links
        body = "".join(_shown_nodes(nodes[start:i], reader))
        lines = [line for line in body.splitlines() if line.strip()]
        only_links = bool(lines) and all(map(LINK_ITEM.match, lines)) and reader.n_outer_links - before >= len(lines)
        yield _Section(level, heading, body, not only_links)
        if node is not None:
            title = "".join(_shown_nodes(node.title.nodes, reader, nested=True)).strip()
            level, heading, start = node.level, f"\n{'#' * node.level} {title}\n", i + 1


def _without_links_at_the_end(nodes: Sequence[Any]) -> int:
    """Where the article ends: after that come only categories and links to other languages, whatever their names."""
    from mwparserfromhell import nodes as kinds

    end = len(nodes)
    for i in reversed(range(len(nodes))):
        match nodes[i]:
            case kinds.Text() as text if not str(text.value).strip():
                pass
            case kinds.Wikilink() as link if ":" in str(link.title).strip(": "):
                end = i
            case kinds.Comment() | kinds.Template():
                pass
            case _:
                break
    return end if _begins_line(nodes, end) else len(nodes)


def _begins_line(nodes: Sequence[Any], i: int) -> bool:
    from mwparserfromhell.nodes import Text

    return i == 0 or (isinstance(nodes[i - 1], Text) and str(nodes[i - 1].value).rstrip(" \t").endswith("\n"))


def _shown_nodes(nodes: Sequence[Any], reader: _Reader, *, nested: bool = False) -> Iterator[str]:
    """The visible text of `nodes`, piece by piece. Nested nodes stand inside a link, a tag or a value."""
    from mwparserfromhell import nodes as kinds

    markers, item = "", False  # of the list item that begins here; whether its text comes next
    for i, node in enumerate(nodes):
        if isinstance(node, kinds.Tag) and str(node.wiki_markup or "") in ("*", "#", ";", ":"):
            markers += str(node.wiki_markup)
            continue
        if markers:
            is_empty = isinstance(node, kinds.Text) and not str(node.value).partition("\n")[0].strip()
            follows = isinstance(node, kinds.Text) and i + 1 < len(nodes) and "\n" not in str(node.value)
            yield "" if is_empty and not follows else _marker(markers, _begins_line(nodes, i - len(markers)), reader)
            markers, item = "", True
        if isinstance(node, kinds.Text):
            yield _prose(str(node.value), reader, item=item)
        else:
            yield from _shown(node, nodes, i, reader, nested=nested)
        item = False


def _marker(markers: str, begins_line: bool, reader: _Reader) -> str:
    """The mark of a list item; indentation shows nothing, and a colon after a term is one."""
    depth, last = len(markers), markers[-1]
    reader.numbers = {d: n for d, n in reader.numbers.items() if d < depth or (d == depth and last == "#")}
    if last == "#":
        reader.numbers[depth] = reader.numbers.get(depth, 0) + 1
        return f"{reader.numbers[depth]}. "
    if last == "*":
        return "- "
    return "" if begins_line else ": "


def _prose(text: str, reader: _Reader, *, item: bool) -> str:
    if item:
        text = text.lstrip(" \t")
    if "\n\n" in text or text.partition("\n")[2].strip():
        reader.numbers.clear()
    if "''" in text:
        text = STYLES.sub("", text)
    if "-{" in text:
        text = VARIANTS.sub(lambda match: match[1].split(";")[0].rpartition(":")[2].strip(), text)
    return PREFORMATTED.sub(lambda match: reader.keep(match[0]), text) if "\n " in text else text


def _shown(node: Any, nodes: Sequence[Any], i: int, reader: _Reader, *, nested: bool) -> Iterator[str]:
    from mwparserfromhell import nodes as kinds

    match node:
        case kinds.HTMLEntity():
            yield node.normalize()
        case kinds.Wikilink():
            yield from _link(node, nodes, i, reader, nested=nested)
        case kinds.ExternalLink():
            reader.n_outer_links += 1
            if node.title is not None:
                yield from _inside(node.title, reader)
        case kinds.Heading():  # inside a tag that is not closed
            yield f"\n{'#' * node.level} {''.join(_inside(node.title, reader)).strip()}\n"
        case kinds.Tag():
            yield from _tag(node, nodes, i, reader, nested=nested)
        case kinds.Template():
            yield _template(node, reader, inline=nested or _is_inline(nodes, i))


def _inside(code: Any, reader: _Reader) -> Iterator[str]:
    if code is not None:
        yield from _shown_nodes(code.nodes, reader, nested=True)


def _link(node: Any, nodes: Sequence[Any], i: int, reader: _Reader, *, nested: bool) -> Iterator[str]:
    title = str(node.title).strip()
    if title.startswith(":"):  # a link to a file or category that is shown as such
        yield from _inside(node.text, reader) if node.text is not None else [title[1:]]
    elif not reader.names.is_dropped(title):
        if node.text is not None:
            yield from _inside(node.text, reader)
        elif nested or not is_link_elsewhere(title) or _is_inline(nodes, i):
            yield from _inside(node.title, reader)


def _tag(node: Any, nodes: Sequence[Any], i: int, reader: _Reader, *, nested: bool) -> Iterator[str]:
    name = str(node.tag).strip().lower()
    if name in DROPPED_TAGS or node.wiki_markup == "----":
        return
    source = str(node.contents or "")
    if name in LISTINGS and not node.has("inline"):
        yield f"\n{reader.keep(_fenced(source, node, name))}\n"
    elif name in LISTINGS or name == "nowiki":
        yield reader.keep(html.unescape(source.strip() if name in LISTINGS else source))
    elif name in FORMULAS:
        shown_alone = not nested and not _is_inline(nodes, i)
        yield reader.keep(latex(source if name == "math" else f"\\ce{{{source}}}", display=shown_alone))
    elif name in CODE:
        yield reader.keep("".join(_inside(node.contents, reader)))
    elif name in IS_RAISED:
        text, before, after = "".join(_inside(node.contents, reader)), _text_of(nodes, i - 1), _text_of(nodes, i + 1)
        yield on_one_line(before, text, after[:1], is_raised=IS_RAISED[name])
    elif name == "li":
        yield "\n- "
        yield from _inside(node.contents, reader)
    else:
        space = "\n" if name in BLOCK_TAGS else ""
        yield space
        yield from _inside(node.contents, reader)
        yield space


def _text_of(nodes: Sequence[Any], i: int) -> str:
    """The text of a node, as it is written; empty if there is none."""
    from mwparserfromhell.nodes import Text, Wikilink

    node = nodes[i] if 0 <= i < len(nodes) else None
    if isinstance(node, Wikilink):
        return str(node.title if node.text is None else node.text)
    return STYLES.sub("", str(node.value)) if isinstance(node, Text) else ""


def _fenced(source: str, node: Any, name: str) -> str:
    language = str(node.get("lang").value).strip() if node.has("lang") else ""
    if name == "pre":  # entities count there, and nowiki is not shown
        source = html.unescape(source.replace("<nowiki>", "").replace("</nowiki>", ""))
    fence = fence_around(source)
    head = fence + (language if LANGUAGE_NAME.fullmatch(language) else "")
    text = source.strip("\n").rstrip()
    return f"{head}\n{text}\n{fence}"


def _template(template: Any, reader: _Reader, *, inline: bool) -> str:
    n_unknown, n_outer_links = reader.n_unknown, reader.n_outer_links
    values = ["".join(_inside(p.value, reader)).strip() for p in template.params if not p.showkey]
    named = {str(p.name).strip(): "".join(_inside(p.value, reader)).strip() for p in template.params if p.showkey}
    values += [named[key] for key in map(str, range(len(values) + 1, len(named) + len(values) + 1)) if key in named]
    name = "".join(_inside(template.name, reader))
    shown = shown_text(name, values, named)
    if shown is None and inline:
        reader.n_unknown += 1
        return unknown_text(name, values)
    if not shown:  # nor do the templates in its values
        reader.n_unknown, reader.n_outer_links = n_unknown, n_outer_links
    return shown or ""


def _is_inline(nodes: Sequence[Any], i: int) -> bool:
    """Whether anything that is read stands on the same line as node `i`: a sentence around it."""
    return _reads_on(nodes, range(i - 1, -1, -1), last=True) or _reads_on(nodes, range(i + 1, len(nodes)), last=False)


def _reads_on(nodes: Sequence[Any], places: range, *, last: bool) -> bool:
    from mwparserfromhell import nodes as kinds

    for place in places:
        match nodes[place]:
            case kinds.Text() as text:
                lines = str(text.value).split("\n")
                if lines[-1 if last else 0].strip():
                    return True
                if len(lines) > 1:
                    return False
            case kinds.Template() | kinds.Comment():
                continue
            case kinds.Tag() as tag if str(tag.tag).strip().lower() in DROPPED_TAGS or tag.wiki_markup in (":", ";"):
                continue
            case kinds.Wikilink() as link if link.text is None and is_link_elsewhere(str(link.title).strip()):
                continue
            case kinds.Heading():
                return False
            case _:
                return True
    return False
