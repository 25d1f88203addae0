"""Figures of a corpus, drawn from the tables of a report.

In: the tables of corpus_tables.py. Out: PNG files. The colours are those of Okabe and Ito, which colour-blind people
can distinguish. matplotlib is imported where it is used, through its object interface: no global figure, no display.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipeline.corpus.collect.source_rules import RULE_SETS
from pipeline.corpus.report.corpus_chain import Row
from pipeline.corpus.report.corpus_results import pages_seen, share
from pipeline.corpus.report.corpus_tables import Tables
from pipeline.corpus.report.corpus_terms import AXES
from pipeline.store.chain import document_stages, link_of
from pipeline.store.shards import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, VERMILION, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
OF_SIDE = (BLUE, ORANGE, GREEN, PURPLE)
DPI = 100
MOST_SOURCES = 20  # shown per figure, those with the most documents
MOST_REASONS = 15
SIGNAL_COLUMNS = 5
LEGEND_COLUMNS = 4
FEW = 20  # with fewer matches a share is not meaningful


def write_figures(folder: Path, tables: Tables) -> None:
    """Draw all figures; one without data is not drawn."""
    drawn: dict[str, Callable[[Tables], Figure | None]] = {
        "sources": sources_figure,
        "funnel": funnel_figure,
        "drop_reasons": drop_reasons_figure,
        "lengths": lengths_figure,
        "signals": signals_figure,
        "rule_sets": rule_sets_figure,
        "personal_data": personal_data_figure,
        "balance": balance_figure,
    }
    for name, draw in drawn.items():
        if (figure := draw(tables)) is not None:
            with replacing(folder / f"{name}.png") as part:
                figure.savefig(part, format="png", dpi=DPI, metadata={"Software": None})


def sources_figure(tables: Tables) -> "Figure | None":
    """Words by source; hatched if the licence is missing."""
    rows = sorted(tables["sources"], key=lambda row: (-row["words"], row["source"]))[:MOST_SOURCES]
    if not rows:
        return None
    words = sum(row["words"] for row in tables["sources"])
    figure, axes = _bars(len(rows), "Words of the corpus by source")
    for place, row in enumerate(rows):
        hatch = "///" if row["without_licence"] else None
        axes.barh(place, row["words"], color=BLUE, hatch=hatch, edgecolor="white")
        label = f" {_short(row['words'])}  {share(row['words'], words):.1%}" + (" no licence" if hatch else "")
        axes.text(row["words"], place, label, va="center")
    _named(axes, [row["source"] for row in rows])
    axes.set_xlim(0, 1.3 * max(max(row["words"] for row in rows), 1))
    axes.set_xlabel("words")
    axes.xaxis.set_major_formatter(lambda value, place: _short(value))
    return figure


def funnel_figure(tables: Tables) -> "Figure | None":
    """What became of every page, by source: shares that add up to 100 %."""
    pages, dropped = pages_seen(tables), _dropped(tables)
    names = sorted(pages, key=lambda source: (-pages[source], source))[:MOST_SOURCES]
    if not names:
        return None
    figure, axes = _bars(len(names), "What became of the pages of each source", legend=True)
    stages = [stage for stage in document_stages() if any(dropped.get((stage, source)) for source in names)]
    left = np.zeros(len(names))
    kept = [pages[source] - sum(dropped.get((stage, source), 0) for stage in stages) for source in names]
    parts = [("kept", GREEN, kept)]
    parts += [
        (f"dropped by {stage}", link_of(stage).colour, [dropped.get((stage, source), 0) for source in names])
        for stage in reversed(stages)
    ]
    for label, colour, counts in parts:
        shares = np.array([100 * share(n, pages[source]) for n, source in zip(counts, names, strict=True)])
        axes.barh(range(len(names)), shares, left=left, color=colour, label=label, edgecolor="white")
        left += shares
    for place, (source, n) in enumerate(zip(names, kept, strict=True)):
        axes.text(101, place, f"{n:,} of {pages[source]:,}", va="center")
    _named(axes, names)
    axes.set_xlim(0, 122)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("% of the pages that were seen")
    figure.legend(loc="outside lower center", ncols=min(len(parts), LEGEND_COLUMNS), frameon=False)
    return figure


def drop_reasons_figure(tables: Tables) -> "Figure | None":
    """The most frequent reasons, in the colours of their stages."""
    counts: dict[tuple[str, str], int] = {}
    for row in tables["dropped"]:
        key = (row["stage"], row["reason"])
        counts[key] = counts.get(key, 0) + row["documents"]
    top = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_REASONS]
    if not top:
        return None
    figure, axes = _bars(len(top), "Why documents were dropped")
    for place, ((stage, _), n) in enumerate(top):
        axes.barh(place, n, color=link_of(stage).colour)
        axes.text(n, place, f" {n:,}", va="center")
    _named(axes, [f"{stage}: {reason}" for (stage, reason), _ in top])
    axes.set_xlim(0, 1.15 * top[0][1])
    axes.set_xlabel("documents")
    return figure


def lengths_figure(tables: Tables) -> "Figure | None":
    found = next((row for row in tables["histograms"] if row["signal"] == "n_words"), None)
    if found is None:
        return None
    figure = _figure(7, 3)
    axes = figure.subplots()
    _histogram(axes, found)
    axes.set_title("Words per document, before near duplicates were removed")
    axes.set_xlabel("words, up to")
    axes.set_ylabel("documents")
    axes.legend(frameon=False)
    return figure


def signals_figure(tables: Tables) -> "Figure | None":
    """A small histogram for every signal that a rule set uses, with its limits as dashed lines."""
    found = [row for row in tables["histograms"] if row["low"] + row["high"] and row["signal"] != "n_words"]
    if not found:
        return None
    n_rows = -(-len(found) // SIGNAL_COLUMNS)
    figure = _figure(3.1 * SIGNAL_COLUMNS, 1.2 + 1.8 * n_rows, layout=None)  # the layout of so many axes is slow
    grid = figure.subplots(n_rows, SIGNAL_COLUMNS, squeeze=False).flatten()
    for axes, row in zip(grid, found, strict=False):
        _histogram(axes, row)
        axes.set_title(row["signal"].replace("_", " "), fontsize=9)
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.7)
        axes.minorticks_off()
        axes.tick_params(labelsize=7)
    for axes in grid[len(found) :]:
        axes.set_visible(False)
    inch = 1 / figure.get_figheight()
    figure.subplots_adjust(left=0.03, right=0.99, bottom=0.6 * inch, top=1 - 0.75 * inch, hspace=0.5, wspace=0.2)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=3, frameon=False)
    figure.suptitle("Documents by signal (logarithmic); dashed: limits of all rule sets, whether applied or not")
    return figure


def rule_sets_figure(tables: Tables) -> "Figure | None":
    """Share of the documents of a source that each rule set would drop by itself."""
    counts: dict[tuple[str, str], list[int]] = {}
    for row in tables["rule_sets"]:
        of_all = counts.setdefault((row["source"], row["rule_set"]), [0, 0])
        of_all[1] += row["documents"]
        of_all[0] += row["documents"] if row["reason"] else 0
    names = sorted({source for source, _ in counts})[:MOST_SOURCES]
    if not names:
        return None
    shares = np.array([[100 * share(*counts.get((name, one), (0, 0))) for one in RULE_SETS] for name in names])
    figure = _figure(7.5, 1.6 + 0.38 * len(names))
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(RULE_SETS)), [name.replace("_", " ") for name in RULE_SETS])
    axes.set_yticks(range(len(names)), names)
    for place, of_source in enumerate(shares):
        for column, value in enumerate(of_source):
            axes.text(column, place, f"{value:.1f} %", ha="center", va="center", color="w" if value > 55 else "k")
    axes.set_title("What each rule set would drop by itself")
    return figure


def personal_data_figure(tables: Tables) -> "Figure | None":
    """Number of places by kind, masked and left in the text."""
    masked_kinds = {row["source"]: set(row["kinds"]) for row in tables["masked_kinds"]}
    counts: dict[str, list[int]] = {}
    for row in tables["pii"]:
        counts.setdefault(row["kind"], [0, 0])[row["kind"] not in masked_kinds[row["source"]]] += row["found"]
    if not counts:
        return None
    names = sorted(counts, key=lambda kind: (-sum(counts[kind]), kind))
    figure, axes = _bars(len(names), "Personal data in the corpus", legend=True)
    masked, left = (np.array([counts[kind][place] for kind in names]) for place in (0, 1))
    axes.barh(range(len(names)), masked, color=BLUE, label="masked")
    axes.barh(range(len(names)), left, left=masked, color=VERMILION, label="left in the text")
    for place, n in enumerate(masked + left):
        axes.text(n, place, f" {n:,}", va="center")
    _named(axes, [kind.replace("_", " ") for kind in names])
    axes.set_xlim(0, 1.15 * (masked + left).max())
    axes.set_xlabel("places")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def balance_figure(tables: Tables) -> "Figure | None":
    """Shares of the sides of every axis by source; for a source with few matches only their number."""
    names = [row["source"] for row in tables["english"][1:]][:MOST_SOURCES]
    if not names:
        return None
    figure = _figure(15, 2.4 + 0.3 * len(names))
    grid = figure.subplots(2, len(AXES), sharey="row", height_ratios=[1 + len(names), 3])
    for (axes, below), axis in zip(grid.T, AXES, strict=True):
        own = {row["side"]: row["by_source"] for row in tables["terms"] if row["axis"] == axis.name}
        _sides(axes, own, names)
        axes.set_title(axis.name)
        below.set_axis_off()
        below.legend(*axes.get_legend_handles_labels(), loc="upper center", fontsize=9, frameon=False)
    _named(grid[0, 0], names)
    figure.suptitle("Who is named in English texts, and varieties of English")
    return figure


def _sides(axes: "Axes", counts: Mapping[str, Mapping[str, int]], names: Sequence[str]) -> None:
    """Stacked shares of every side, one bar per source."""
    left = np.zeros(len(names))
    totals = [sum(of_side.get(source, 0) for of_side in counts.values()) for source in names]
    for colour, (side, of_side) in zip(OF_SIDE, counts.items(), strict=False):
        enough = zip(names, totals, strict=True)
        shares = np.array([100 * share(of_side.get(source, 0), n) if n >= FEW else 0 for source, n in enough])
        axes.barh(range(len(names)), shares, left=left, color=colour, label=side, edgecolor="white")
        left += shares
    for place, n in enumerate(totals):
        if n < FEW:
            axes.text(2, place, f"only {n} matches" if n else "no match", va="center", fontsize=8, color="#555555")
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of matches")


def _dropped(tables: Tables) -> dict[tuple[str, str], int]:
    return {(row["stage"], row["source"]): row["dropped"] for row in tables["funnel"]}


def _histogram(axes: "Axes", row: Row) -> None:
    """Bins of equal width, because edges of counts double; dropped documents are stacked on kept ones."""
    edges, kept, dropped = row["edges"], np.array(row["kept"]), np.array(row["dropped"])
    n_bins = len(edges) + bool(kept[-1] + dropped[-1])  # the open bin at the end only if it is not empty
    borders = np.arange(n_bins + 1) - 0.5
    axes.stairs((kept + dropped)[:n_bins], borders, fill=True, color=ORANGE, label="dropped by filter")
    axes.stairs(kept[:n_bins], borders, fill=True, color=BLUE, label="kept by filter")
    # a value at the limit is kept: for integers the last dropped value is the one below a lower limit
    limits = {low - row["whole"] for low in row["low"]} | set(row["high"])
    for place, limit in enumerate(sorted(limits)):
        label = None if place else "limit"
        axes.axvline(_place(limit, edges), color="black", linestyle="--", linewidth=1, label=label)
    stride = max(1, len(edges) // 5) if row["whole"] else 5 * math.ceil(len(edges) / 30)  # edges in even steps
    shown = np.arange(0, n_bins, stride)
    at = shown if row["whole"] else shown + 0.5 * (shown < len(edges))  # the position of the value itself
    axes.set_xticks(at, [_short(edges[place]) if place < len(edges) else "more" for place in shown])


def _place(limit: float, edges: Sequence[float]) -> float:
    """The position of a value among the bins: values up to it are on its left."""
    return float(np.interp(limit, edges, np.arange(len(edges)))) + 0.5


def _figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _bars(n: int, title: str, *, legend: bool = False) -> "tuple[Figure, Axes]":
    figure = _figure(8, 1.2 + 0.32 * n + 0.3 * legend)
    axes = figure.subplots()
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _named(axes: "Axes", names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)


def _short(number: float) -> str:
    """1234567 as 1.2M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"
