"""Names in MediaWiki that differ from wiki to wiki: namespaces of files and categories, and sections of links.

In: the context of a page: what its dump says about the wiki (collect/wiki_dump.py), if anything. Out: `Names`, which
decides what a link and a heading are. A dump names its own namespaces. wiki_names.json has those of the larger
languages besides, as MediaWiki's message files name them now and named them earlier, for single articles and for
dumps without siteinfo; and the usual headings of sections of references, notes, literature and links.
"""

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

DROPPED_NAMESPACES = ("-2", "6", "14")  # keys of Media, File and Category
MEDIA_FILE = re.compile(
    r"\.(?:jpe?g|png|svg|gif|webp|tiff?|xcf|bmp|pdf|djvu|og[agv]|opus|flac|mp3|wav|midi?|webm|mp4|mpe?g|stl)\s*$",
    re.IGNORECASE,
)
LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[a-z]+)*|simple")  # prefixes of links to the article in another language


@dataclass(frozen=True, slots=True)
class Names:
    """What the prefixes of links mean in one wiki; names in lower case."""

    dropped: frozenset[str]

    def is_dropped(self, title: str) -> bool:
        """Whether a link shows nothing where it stands: one to a file or a category."""
        prefix, colon, rest = title.partition(":")
        return bool(colon) and (folded(prefix) in self.dropped or MEDIA_FILE.search(rest) is not None)


def folded(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).casefold()


@cache
def known(kind: str) -> frozenset[str]:
    """The names in wiki_names.json: files, categories or sections."""
    lists = json.loads(Path(__file__).with_name("wiki_names.json").read_text(encoding="utf-8"))
    return frozenset(map(folded, lists[kind]))


def names_of(context: str | None) -> Names:
    """The names of the wiki that `context`, a JSON object, describes."""
    try:
        described = json.loads(context) if context else {}
        namespaces = described.get("namespaces", {})
        own = {folded(str(namespaces[key])) for key in DROPPED_NAMESPACES if key in namespaces}
    except (ValueError, AttributeError, TypeError):
        own = set()
    return Names(known("files") | known("categories") | (own - {""}))


def is_end_section(title: str) -> bool:
    """Whether a heading is that of references, notes, literature or links."""
    return folded(title).strip(":") in known("sections")


def is_link_elsewhere(title: str) -> bool:
    """Whether the title of a link has the form of one to another language of the same article: `de:Anna Rook`."""
    prefix, colon, rest = title.partition(":")
    return bool(colon) and LANGUAGE.fullmatch(prefix) is not None and bool(rest) and not rest[0].isspace()
