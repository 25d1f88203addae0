"""Reads sentences with named entities from files of columns, a line per token, as CoNLL-2003 writes them.

In: name and content of a file: token and tag in two of its columns, separated by tabs or white space, blank lines
between sentences, -DOCSTART- between documents, comments that begin with #. Out: one record per sentence or document:
its text, the tokens joined by spaces, and its entities as spans of characters.

The tags are B-, I- and O (bio), I- and O with B- only between adjacent entities of one label (iob1), with E- or L-
for the last token and S- or U- for the only one (iobes, bilou), or labels alone (io). The scheme is the one that the
fewest entities of the whole file break. These are read as the evaluation script of CoNLL-2000 reads them: a tag that
cannot continue the entity before it begins another one. They are marked as mended.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, NamedTuple

from pipeline.corpus.examples.labelled_file import Record, table_lines

FORMATS = (".conll", ".conll2003", ".txt", ".tsv", ".bio", ".iob", ".iob2")
DOCUMENT_START = "-DOCSTART-"
SHOWN = 60  # characters of a line in a message
TAG = re.compile(r"([BIESLU])-(.+)")
SAME = {"L": "E", "U": "S"}  # what BILOU and IOBES name differently
PROPER = {  # the tags of an entity by scheme, without labels; iob1 also depends on the entity before
    "bio": re.compile("BI*"),
    "iob1": re.compile("I+"),
    "iobes": re.compile("BI*E|S"),
    "bilou": re.compile("BI*E|S"),
    "io": re.compile("I+"),
}
DETECTED = ("bio", "iob1", "iobes")  # the first of equally good ones; a file of labels alone is io
Scheme = Literal["auto", "bio", "iob1", "iobes", "bilou", "io"]
Tag = tuple[str, str]  # B, I, E, S or O, and the label
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """How a file is read; the settings of tagging describe it."""

    token: int = 1  # from 1, or from -1 = the last
    tag: int = -1
    scheme: Scheme = "auto"
    text_of: Literal["sentence", "document"] = "sentence"


class Sentence(NamedTuple):
    tokens: list[str]
    tags: list[str]
    document: int  # -DOCSTART- lines before it


class Unreadable(NamedTuple):
    text: str
    fault: str
    document: int


class TokenSpan(NamedTuple):
    first: int
    last: int
    label: str
    tags: str  # without labels
    is_adjacent: bool  # to an entity of the same label before it

    def follows(self, scheme: str) -> bool:
        pattern = PROPER["bio" if scheme == "iob1" and self.is_adjacent else scheme]
        return pattern.fullmatch(self.tags) is not None


def conll_records(name: str, content: bytes, columns: Columns) -> Iterator[Record]:
    """Per sentence or document {"text", "entities": [{"start", "end", "label", "is_mended"}], "document"}. For a
    sentence that cannot be read, `text` is its lines and `entities` the fault.

    Raises ValueError if the file is not UTF-8, or documents are asked for and it does not divide any.
    """
    scheme, n_documents = detected(name, content, columns)
    if columns.text_of == "document" and not n_documents:
        raise ValueError(
            f"{name}: text_of is 'document', but no line {DOCUMENT_START} begins one; add such lines, or set text_of"
            " to 'sentence'"
        )
    parts: list[Record] = []
    for sentence in sentences(name, content, columns):
        record = _record(sentence, scheme) | {"document": sentence.document if n_documents else None}
        is_whole = isinstance(record["entities"], list)
        if parts and not (is_whole and columns.text_of == "document" and parts[-1]["document"] == record["document"]):
            yield joined(parts)
            parts = []
        if is_whole:
            parts.append(record)
        else:
            yield record
    if parts:
        yield joined(parts)


def sentences(name: str, content: bytes, columns: Columns) -> Iterator[Sentence | Unreadable]:
    lines: list[str] = []
    document = 0
    for line in table_lines(name, content):
        line = line.rstrip("\r\n")
        is_start = line.split(maxsplit=1)[:1] == [DOCUMENT_START]
        if line.strip() and not is_start:
            lines.append(line)
            continue
        yield from _sentence(lines, document, columns)
        lines, document = [], document + is_start
    yield from _sentence(lines, document, columns)


def _sentence(lines: Sequence[str], document: int, columns: Columns) -> Iterator[Sentence | Unreadable]:
    try:
        cells = [found for line in lines if (found := _cells(line, columns))]
    except ValueError as fault:
        yield Unreadable("\n".join(lines), str(fault), document)
        return
    if cells:
        tokens, tags = map(list, zip(*cells, strict=True))
        yield Sentence(tokens, tags, document)


def _cells(line: str, columns: Columns) -> tuple[str, str] | None:
    """Token and tag of a line; None for a comment, and for a token without visible characters."""
    cells = line.rstrip().split("\t") if "\t" in line else line.split()
    places = [column - 1 if column > 0 else len(cells) + column for column in (columns.token, columns.tag)]
    is_there = len(cells) > 1 and all(0 <= place < len(cells) for place in places)
    token, tag = (cells[place].strip() for place in places) if is_there else ("", "")
    if line.startswith("#") and "\t" not in line and tag != "O" and not TAG.fullmatch(tag):
        return None
    if not is_there or not tag:
        raise ValueError(f"no token and tag in the columns {columns.token} and {columns.tag} of {line[:SHOWN]!r}")
    return (token, tag) if token else None


def detected(name: str, content: bytes, columns: Columns) -> tuple[str, int]:
    """The scheme of the tags, and the number of lines -DOCSTART-."""
    kinds: Counter[str] = Counter()
    broken: Counter[str] = Counter()
    n_documents = 0
    for sentence in sentences(name, content, columns):
        n_documents = sentence.document
        if isinstance(sentence, Sentence):
            kinds.update("prefixed" if TAG.fullmatch(tag) else "bare" for tag in sentence.tags if tag != "O")
            tags = [tag for tag in (_tag(tag, "") for tag in sentence.tags) if tag]
            found = list(token_spans(tags))
            broken.update({scheme: sum(not span.follows(scheme) for span in found) for scheme in DETECTED})
    scheme = columns.scheme
    if scheme == "auto":
        scheme = "io" if kinds["bare"] > kinds["prefixed"] else min(DETECTED, key=lambda one: broken[one])
    log.info("%s: the tags are read as %s", name, scheme)
    return scheme, n_documents


def _tag(tag: str, scheme: str) -> Tag | None:
    """Prefix and label; None for a tag that the scheme has not."""
    if tag == "O":
        return "O", ""
    if scheme == "io":
        return "I", tag
    found = TAG.fullmatch(tag)
    return (SAME.get(found[1], found[1]), found[2]) if found else None


def token_spans(tags: Sequence[Tag]) -> Iterator[TokenSpan]:
    """The entities, as the evaluation script of CoNLL-2000 finds them."""
    first, before = 0, ("O", "")
    last_label, last_end = "", -1  # of the entity before
    for place, tag in enumerate((*tags, ("O", ""))):
        goes_on = before[0] in "BI" and tag[0] in "IE" and tag[1] == before[1]
        if goes_on:
            before = tag
            continue
        if before[0] != "O":
            is_adjacent = last_end == first and last_label == before[1]
            prefixes = "".join(prefix for prefix, _ in tags[first:place])
            yield TokenSpan(first, place - 1, before[1], prefixes, is_adjacent)
            last_label, last_end = before[1], place
        first, before = place, tag


def _record(sentence: Sentence | Unreadable, scheme: str) -> Record:
    if isinstance(sentence, Unreadable):
        return {"text": sentence.text, "entities": sentence.fault}
    text = " ".join(sentence.tokens)
    tags = [tag for tag in (_tag(tag, scheme) for tag in sentence.tags) if tag]
    if len(tags) < len(sentence.tags):
        strange = next(tag for tag in sentence.tags if _tag(tag, scheme) is None)
        return {"text": text, "entities": f"{strange[:SHOWN]!r} is no tag of the scheme {scheme}"}
    ends = list(accumulate(len(token) + 1 for token in sentence.tokens))  # each with the space after it
    entities = [
        {
            "start": ends[span.first] - len(sentence.tokens[span.first]) - 1,
            "end": ends[span.last] - 1,
            "label": span.label,
            "is_mended": not span.follows(scheme),
        }
        for span in token_spans(tags)
    ]
    return {"text": text, "entities": entities}


def joined(parts: Sequence[Record]) -> Record:
    """The sentences of a text as lines of it."""
    entities: list[dict[str, Any]] = []
    start = 0
    for part in parts:
        entities += [one | {"start": one["start"] + start, "end": one["end"] + start} for one in part["entities"]]
        start += len(part["text"]) + 1
    return {**parts[0], "text": "\n".join(part["text"] for part in parts), "entities": entities}
