"""Writes the formulas of an HTML page into its tree as text, each once.

In: the tree of a page. Out: the same tree; every formula is an element <formula> (displayed on a line of its own) or
<span> (inside a sentence) that contains only text. Formulas come as MathML, as scripts for MathJax, as output of
MathJax or KaTeX, as images whose alternative text is LaTeX, or as LaTeX in an attribute, and most pages have two or
three of these beside each other for one formula. The LaTeX source is preferred (between dollar signs); a formula that
has only MathML is written in the notation of math_text.py. Formulas that are plain text already stay as they are.

Sources: the markup of MathJax 2 to 4, KaTeX, MediaWiki, LaTeXML, pandoc and the EPUB 3 element <switch>.
"""

import re
from typing import Any
from urllib.parse import unquote

from pipeline.corpus.clean.math_text import latex
from pipeline.corpus.clean.mathml_text import LATEX_SIGN, is_display, linear, source_of

CLASSES = ("math", "Math", "katex", "latex", "LaTeX", "\ntex\n", "ql-formula")  # in those of pages with formulas
ADDRESSES = ("latex", "n?tex=", "mathtex")  # in those of images of formulas
TAGS = ("math", "mjx-container", "amp-mathml")
CANDIDATES = (
    "//math | //script[starts-with(@type, 'math/')] | //mjx-container | //amp-mathml"
    " | //img[@alt != '' and (contains(@class, 'math') or contains(@class, 'tex') or contains(@src, 'tex')"
    " or contains(@class, 'TeX'))] | //img[contains(@src, 'tex=') or contains(@src, 'latex.codecogs')]"
    " | //*[contains(@class, 'katex') or contains(@class, 'math') or contains(@class, 'MathJax')"
    " or contains(@class, 'ql-formula') or @data-tex or @data-math-style]"
)
CONTAINERS = frozenset(
    {"katex", "katex-display", "mwe-math-element", "ql-formula", "ztext-math", "MathJax", "MathJax_Display"}
    | {"MathJax_SVG", "MathJax_SVG_Display", "MathJax_CHTML", "MathJax_Preview", "mjx-chtml", "MJXc-display"}
)
BARE = frozenset({"math", "tex", "latex"})  # classes of elements that contain LaTeX without delimiters
SOURCES = ("data-tex", "data-latex", "data-formula", "data-value")
IMAGE_CLASS = re.compile(r"(?:^|[\s_-])(?:la)?tex(?:[\s_-]|$)|mwe-math|(?:^|\s)math(?:\s|$)", re.IGNORECASE)
IMAGE_SOURCE = re.compile(r"latex|[?&/](?:eq|tex|chl)\b|mathtex|mimetex", re.IGNORECASE)
PARAMETER = re.compile(r"(?:^|&)(?:la)?tex=([^&]*)")
STYLES_OF_SERVICES = re.compile(
    r"\\(?:dpi|bg|fg|color|bg_\w+|fn_\w+|inline|large|LARGE|huge)(?![a-z])(?:\{\w*\})?\s*"
)
DISPLAY_CLASS = re.compile(r"display|-block\b")
STACKED = re.compile(r"mfrac|msupsub|vlist|sqrt|mroot|msup|msub|mjx-(?:frac|sup|sub|sqrt)")
UNREADABLE = "[formula]"  # signs that stand above each other, whose order is unknown
DELIMITED = re.compile(r"\$|\\[(\[]|\\begin")
ONE_LINE = frozenset({"h1", "h2", "h3", "h4", "h5", "h6", "pre", "a", "th"})
MAX_FORMULAS = 50_000  # of a page; further ones are read as the text that they contain


def write_formulas(root: Any, page: str, classes: str) -> bool:
    """Whether the tree had any. `page` is the text of the tree, `classes` has the class names of its elements."""
    if not _may_have_formulas(root, page, classes):
        return False
    _write_tables(root)
    _choose_cases(root)
    written, gone = False, set[Any]()
    for element in root.xpath(CANDIDATES)[:MAX_FORMULAS]:
        if element in gone:
            continue
        text = _formula(element)
        if text is None:
            continue
        gone.update(element.iterdescendants())
        is_shown = bool(text) and not _repeats(element, text)
        _replace(element, text if is_shown else "", is_displayed=text.startswith("$$") or _is_display(element))
        written = True
    return written


def _may_have_formulas(root: Any, page: str, classes: str) -> bool:
    return (
        next(root.iter(*TAGS), None) is not None
        or any(name in classes for name in CLASSES)
        or any((script.get("type") or "").startswith("math/") for script in root.iter("script"))
        or any(sign in page for sign in ADDRESSES)
    )


def _formula(element: Any) -> str | None:
    """The formula of an element, empty if another element shows it too, None if it is not one."""
    tag, classes = element.tag, (element.get("class") or "").split()
    display = _is_display(element)
    if tag == "script":
        return _script(element, display)
    if tag == "img":
        return _image(element, display)
    if tag == "math":
        return latex(source_of(element), display=display) or linear(element)
    if CONTAINERS.intersection(classes) or tag in ("mjx-container", "amp-mathml") or element.get("data-tex"):
        return _container(element, display)
    if BARE.intersection(classes) or element.get("data-math-style"):
        text = element.text or ""
        is_bare = len(element) == 0 and LATEX_SIGN.search(text) and not DELIMITED.search(text)
        return latex(text, display=display) if is_bare else None
    return None


def _script(script: Any, display: bool) -> str:
    kind, text = script.get("type", ""), script.text or ""
    if kind.startswith("math/mml"):
        math = _parsed(text)
        return "" if math is None else latex(source_of(math), display=display) or linear(math)
    return latex(text, display=display) if kind.startswith("math/tex") else " ".join(text.split())


def _image(image: Any, display: bool) -> str | None:
    alt, address = image.get("alt", "").strip(), image.get("src") or ""
    is_formula = IMAGE_CLASS.search(image.get("class") or "") or IMAGE_SOURCE.search(address) or image.get("eeimg")
    return latex(alt or _source_of_address(address), display=display) if is_formula else None


def _source_of_address(address: str) -> str:
    """The LaTeX that a service draws: it is a parameter of its address, or all that follows the question mark."""
    query = unquote(address.partition("?")[2])
    found = PARAMETER.search(query)
    source = found[1] if found else query if "codecogs" in address else ""
    return STYLES_OF_SERVICES.sub("", source.replace("&space;", " ").replace("+", " " if found else "+"))


def _container(element: Any, display: bool) -> str | None:
    if "MathJax_Preview" in (element.get("class") or "") and element.getnext() is None:
        return None
    following = element.getnext()
    for _ in range(2):  # MathJax 2 writes its output before the script
        if following is not None and following.tag == "script" and following.get("type", "").startswith("math/"):
            return ""
        following = None if following is None else following.getnext()
    maths = list(element.iter("math"))
    source = next(filter(None, map(source_of, maths)), "") or next(filter(None, map(element.get, SOURCES)), "")
    if not source:
        images = (image.get("alt") for image in element.iter("img"))
        scripts = (script.text for script in element.iter("script") if script.get("type", "").startswith("math/"))
        source = next(filter(None, [*scripts, *images]), "")
    if source:
        return latex(source, display=display)
    maths = maths or [found for found in [_parsed(element.get("data-mathml") or "")] if found is not None]
    if maths:
        return linear(maths[0])
    if any(
        STACKED.search(part.get("class") or "") or STACKED.match(str(part.tag)) for part in element.iterdescendants()
    ):
        return UNREADABLE
    return None


def _parsed(markup: str) -> Any | None:
    import lxml.etree
    import lxml.html

    if not markup.strip():
        return None
    try:
        return next(iter(lxml.html.fragment_fromstring(markup, create_parent=True).iter("math", "m:math")), None)
    except (lxml.etree.LxmlError, ValueError):
        return None


def _is_display(element: Any) -> bool:
    """Whether the formula stands on a line of its own."""
    if element.tag == "script":
        return "display" in element.get("type", "")
    if element.get("display") in ("true", "block") or element.get("data-math-style") == "display":
        return True
    if DISPLAY_CLASS.search(element.get("class") or ""):
        return True
    return any(
        is_display(part)
        if part.tag == "math"
        else part.tag == "img" and DISPLAY_CLASS.search(part.get("class") or "")
        for part in element.iter("math", "img")
    )


def _repeats(element: Any, text: str) -> bool:
    """Whether the formula directly before says the same: an image beside its MathML."""
    before = element.getprevious()
    if element.tag != "img" or before is None or (before.tail or "").strip():
        return False
    said = before.text if len(before) == 0 else before[-1].text if not (before[-1].tail or "").strip() else None
    return before.tag in ("span", "formula") and (said or "").strip("$") == text.strip("$")


def _replace(element: Any, text: str, *, is_displayed: bool) -> None:
    element.clear(keep_tail=True)
    is_alone = is_displayed and next(element.iterancestors(*ONE_LINE), None) is None
    element.tag, element.text = "formula" if is_alone and text else "span", text


def _write_tables(root: Any) -> None:
    """LaTeXML lays out numbered equations as tables; each row is an equation."""
    for table in root.xpath("//table[contains(@class, 'ltx_eq')]"):
        for part in list(table.iter("table", "tbody", "tr", "td")):
            part.tag = {"tr": "div", "td": "span"}.get(part.tag, "div")
            if part.tag == "span":
                part.tail = (part.tail or "") + " "


def _choose_cases(root: Any) -> None:
    """EPUB 3: a <switch> shows its <default> only if a reader knows none of its cases."""
    for default in root.xpath("//switch[case//math]/default"):
        default.clear(keep_tail=True)
