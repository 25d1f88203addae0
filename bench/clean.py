"""What extraction of HTML is worth and what it costs, beside bare trafilatura, bare resiliparse and datatrove's.

In: --data, a folder in the form of bench/extraction_pages.py; --html, a folder of more HTML pages without gold text,
for speed alone. Out: Markdown tables: word-level F1 by kind of page; pages per second on one core and their ratio to
bare trafilatura; the share of pages that each extractor decided. Ours is the whole path of `clean`: html_text,
without_boilerplate, repair. Each page goes through all contestants before the next page, in turns, so that what else
the machine does falls on all alike; seconds are of the processor.

The weights were fitted on the pages of the same benchmark: bench/fit_extraction.py gives the cross-validated F1.

    python -m bench.clean --data ../data/extraction --pages 300 --html ../docs-as-html
"""

import argparse
import importlib.util
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

from bench.extraction_pages import GoldPage, by_kind, f1, gold_pages, markdown_table, words
from pipeline.corpus.clean.boilerplate import without_boilerplate
from pipeline.corpus.clean.html_text import html_text
from pipeline.corpus.text_repair import decode, repair

BASE = "trafilatura"


def contestants(shares: Counter[str]) -> dict[str, Callable[[str], str]]:
    """Functions from a page to its text; ours counts in `shares` which extractor decided."""
    import trafilatura
    from resiliparse.extract.html2text import extract_plain_text

    def ours(page: str) -> str:
        extracted = html_text(page)
        shares[extracted.extractor] += 1
        return repair(without_boilerplate(extracted.text)[0])

    found: dict[str, Callable[[str], str]] = {
        "ours": ours,
        BASE: lambda page: trafilatura.extract(page) or "",
        "resiliparse": lambda page: extract_plain_text(page, main_content=True),
    }
    if importlib.util.find_spec("datatrove") is None:
        print("datatrove is not installed (extra `bench`): its extractor is left out.\n")
    else:
        from datatrove.pipeline.extractors import Trafilatura  # type: ignore[import-not-found]

        extractor = Trafilatura()
        found["datatrove"] = lambda page: extractor.extract(page) or ""
    return found


def raced(pages: list[GoldPage], runners: dict[str, Callable[[str], str]]) -> tuple[dict, dict[str, list[float]]]:
    """Texts by (contestant, page id), and processor seconds per page by contestant."""
    texts: dict[tuple[str, str], str] = {}
    seconds: defaultdict[str, list[float]] = defaultdict(list)
    order = list(runners)
    for i, page in enumerate(pages):
        for name in order[i % len(order) :] + order[: i % len(order)]:
            start = time.process_time()
            texts[name, page.id] = runners[name](page.page)
            seconds[name].append(time.process_time() - start)
    return texts, seconds


def quality_table(pages: list[GoldPage], runners: dict, texts: dict) -> str:
    gold = {page.id: words(page.text) for page in pages}
    rows, header = [], []
    for name in runners:
        means = by_kind(pages, {page.id: f1(words(texts[name, page.id]), gold[page.id]) for page in pages})
        header = ["F1", *means]
        rows.append([name, *(f"{mean:.3f}" for mean in means.values())])
    return markdown_table(header, rows)


def speed_table(seconds: dict[str, list[float]]) -> str:
    rows = []
    for name, times in seconds.items():
        ordered = sorted(times)
        rows.append(
            [
                name,
                f"{len(times) / sum(times):.1f}",
                f"{sum(seconds[BASE]) / sum(times):.2f}",
                f"{1e3 * ordered[len(ordered) // 2]:.1f}",
                f"{1e3 * ordered[int(0.99 * (len(ordered) - 1))]:.1f}",
            ]
        )
    return markdown_table(["extractor", "pages/s, one core", f"times {BASE}", "median ms", "p99 ms"], rows)


def more_pages(folder: Path, n_pages: int) -> list[GoldPage]:
    paths = sorted(path for path in folder.rglob("*.html") if path.is_file())
    step = max(1, len(paths) // n_pages)
    pages = []
    for path in paths[::step][:n_pages]:
        page, _ = decode(path.read_bytes(), "text/html")
        if page is not None:
            pages.append(GoldPage(str(path), "unlabelled", page, "", ""))
    return pages


def report(title: str, pages: list[GoldPage], with_gold: bool) -> None:
    shares: Counter[str] = Counter()
    runners = contestants(shares)
    for run in runners.values():  # imports and tables of the libraries are no cost of a page
        run("<html><body><p>warm up</p></body></html>")
    shares.clear()
    texts, seconds = raced(pages, runners)
    print(f"### {title}: {len(pages)} pages\n")
    if with_gold:
        print(quality_table(pages, runners, texts), end="\n\n")
    print(speed_table(seconds), end="\n\n")
    rows = [[name, f"{n / len(pages):.3f}"] for name, n in sorted(shares.items())]
    print(markdown_table(["decided by", "share of pages"], rows), end="\n\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pages", type=int, help="at most so many of either folder")
    parser.add_argument("--html", type=Path, help="a folder of HTML pages, for speed alone")
    arguments = parser.parse_args()
    report("pages with gold text", gold_pages(arguments.data, arguments.pages), True)
    if arguments.html:
        report(str(arguments.html.name), more_pages(arguments.html, arguments.pages or 300), False)


if __name__ == "__main__":
    main()
