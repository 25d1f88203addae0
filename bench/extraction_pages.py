"""Web pages with their gold text, for fitting and measuring extraction, and the score of a text.

In: a folder with html/NNNN.html.gz and gold.json in the form of WCXB (Web Content Extraction Benchmark, CC BY 4.0).
Out: `GoldPage`s; `f1`: word-level F1 against the gold text, the macro mean over pages is the figure that counts.
"""

import gzip
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.corpus.text_repair import decode


@dataclass(frozen=True, slots=True)
class GoldPage:
    id: str
    kind: str  # article, product, forum ...
    page: str  # decoded HTML
    text: str
    title: str


def gold_pages(folder: Path, n_pages: int | None = None) -> list[GoldPage]:
    """The first `n_pages` of them, every kind of page as often as in the whole."""
    gold = json.loads((folder / "gold.json").read_text(encoding="utf-8"))
    step = 1 if n_pages is None else max(1, len(gold) // n_pages)
    pages = []
    for key in sorted(gold)[::step][:n_pages]:
        entry = gold[key]
        content = gzip.decompress((folder / "html" / f"{key}.html.gz").read_bytes())
        page, reason = decode(content, "text/html")
        if page is None:
            raise ValueError(f"{folder}/html/{key}.html.gz is no text ({reason}); is it the file of the benchmark?")
        truth = entry["ground_truth"]
        kind = entry["_internal"]["page_type"]["primary"]
        pages.append(GoldPage(key, kind, page, truth.get("main_content") or "", truth.get("title") or ""))
    return pages


def words(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", unicodedata.normalize("NFKC", text).lower()))


def f1(got: Counter[str], want: Counter[str]) -> float:
    if not got or not want:
        return float(not got and not want)
    return 2 * (got & want).total() / (got.total() + want.total())


def by_kind(pages: list[GoldPage], scores: Mapping[str, float]) -> dict[str, float]:
    """Mean over all pages, then over those of each kind, the most frequent kind first."""
    groups: defaultdict[str, list[float]] = defaultdict(list)
    for page in pages:
        groups[page.kind].append(scores[page.id])
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    every = [score for group in groups.values() for score in group]
    return {"all": sum(every) / len(every)} | {kind: sum(group) / len(group) for kind, group in ordered}


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
