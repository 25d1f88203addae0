"""What a continued training changed: the loss on its domain and on general text, before and after.

In: per held-out document the nats of the model and of the base that it started from, and whether the training was on
documents of that source. Out: results with 95 % intervals, a table and a figure. A decoder is measured in bits per
byte, an encoder in the perplexity of its masked tokens.

A change is the relative change of the nats, and so of bits per byte: -0.1 is a tenth fewer. Both models predict the
same tokens of the same documents, masked alike, so that its interval is over resamples of documents with both
models' nats of each (paired bootstrap). General text is all held-out text of sources outside the domain; some of
these sources may have been mixed into the training, though never their held-out documents.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model.data.mixture import Mixture, mixture_of
from pipeline.corpus.report.card_markdown import plain, table
from pipeline.evaluation.intervals import Estimate, ratio
from pipeline.evaluation.language_metrics import bits_per_byte, perplexity
from pipeline.evaluation.results import BASELINE_COLOUR, MODEL_COLOUR, Evaluation, Result, result_of
from pipeline.store.store import read_record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODEL, BASE = "model", "base"  # whose nats
PARTS = ("domain", "general")


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric of nats and of the number of `units` that they are spread over, both by document; lower is better."""

    name: str
    units: str
    of: Callable[[np.ndarray, np.ndarray, int], Estimate]

    @property
    def words(self) -> str:
        return self.name.replace("_", " ")


BITS, MASKED = Measure("bits_per_byte", "bytes", bits_per_byte), Measure("masked_perplexity", "tokens", perplexity)
METRICS = tuple(f"{part}_{what}" for part in PARTS for what in (BITS.name, MASKED.name, "change"))


def mixture_of_model(model: Path) -> Mixture:
    """The mixture that a continued model was trained on."""
    record = read_record(model)
    if record is None or "mixture" not in record["config"]:
        raise ValueError(f"{model} was not trained by `continue`, so that no base belongs to its evaluation")
    return mixture_of(record["config"]["mixture"])


def with_change(
    found: Evaluation,
    nats: Mapping[str, np.ndarray],
    sizes: np.ndarray,
    sources: Sequence[str],
    mixture: Mixture,
    seed: int,
    by: Measure,
) -> Evaluation:
    """The evaluation with results, a section of the report and a figure on the change since the base."""
    is_domain = mixture.is_domain(np.array(sources))
    changes = change_results(nats, sizes, is_domain, seed, by)
    return replace(
        found,
        results=[*found.results, *changes],
        report=f"{found.report}\n{change_report(nats, sizes, is_domain, sources, mixture.general, seed, by)}",
        figures={**found.figures, "change": change_figure(changes, by)},
    )


def change_results(
    nats: Mapping[str, np.ndarray], sizes: np.ndarray, is_domain: np.ndarray, seed: int, by: Measure
) -> list[Result]:
    """Measure and change of the domain, and of general text if there is some."""
    results = []
    for part, which in zip(PARTS, (is_domain, ~is_domain), strict=True):
        if not sizes[which].sum():
            continue
        measured = {name: by.of(values[which], sizes[which], seed) for name, values in nats.items()}
        others = {name: estimate.value for name, estimate in measured.items() if name != MODEL}
        results.append(result_of(f"{part}_{by.name}", measured[MODEL], others, higher=False))
        found = change(nats[MODEL][which], nats[BASE][which], seed)
        results.append(result_of(f"{part}_change", found, {}, higher=False))
    return results


def change(after: np.ndarray, before: np.ndarray, seed: int = 0) -> Estimate:
    """Relative change of the nats of all documents; those per byte or token change alike, because the texts stay."""
    found = ratio(after, before, seed)
    low, high = (None if end is None else end - 1 for end in (found.low, found.high))
    return replace(found, value=found.value - 1, low=low, high=high)


def change_report(
    nats: Mapping[str, np.ndarray],
    sizes: np.ndarray,
    is_domain: np.ndarray,
    sources: Sequence[str],
    mixed_in: Sequence[str],
    seed: int,
    by: Measure,
) -> str:
    """A table with a row for the domain, for general text, and for each source."""
    names = np.array(sources)
    rows = [("**domain**", is_domain), ("**general text**", ~is_domain)]
    rows += [(plain(name), names == name) for name in sorted(set(sources))]
    cells = []
    for name, which in rows:
        if sizes[which].sum():
            both = [str(by.of(nats[one][which], sizes[which], seed)) for one in (BASE, MODEL)]
            found = change(nats[MODEL][which], nats[BASE][which], seed)
            cells.append([name, f"{int(which.sum()):,}", f"{sizes[which].sum():,}", *both, in_percent(found)])
    seen = f"Training texts of {', '.join(map(plain, mixed_in))} were mixed in" if mixed_in else "None was mixed in"
    return (
        "\n## What the training changed\n\n"
        + table(["held-out text", "documents", by.units, f"{by.words} before", "after", "change"], cells)
        + "\n\nBefore: the base that the training started from. The change is that of the loss, relative, and its"
        " interval is over resamples of documents with both models' values. General text is that of sources outside"
        " the domain."
        f" {seen}; no held-out document was.\n"
    )


def in_percent(found: Estimate) -> str:
    ends = "no interval" if found.low is None else f"{100 * found.low:+.1f} to {100 * (found.high or 0):+.1f}"
    return f"{100 * found.value:+.1f} % ({ends})"


def change_figure(results: Sequence[Result], by: Measure) -> "Figure":
    """The measure before and after as pairs of bars."""
    from matplotlib.figure import Figure

    found = {result["metric"]: result for result in results}
    parts = [part for part in PARTS if f"{part}_{by.name}" in found]
    figure = Figure(figsize=(6, 1 + 0.9 * len(parts)), layout="constrained")
    axes = figure.subplots()
    for place, part in enumerate(parts):
        result = found[f"{part}_{by.name}"]
        for offset, value, colour in (
            (-0.2, result["baselines"][BASE], BASELINE_COLOUR),
            (0.2, result["value"], MODEL_COLOUR),
        ):
            axes.barh(place + offset, value, height=0.36, color=colour)
            axes.text(value, place + offset, f" {value:.3f}", va="center")
    axes.set_yticks(range(len(parts)), [f"{part}: before, after" for part in parts])
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel(f"{by.words} of held-out text (lower is better)")
    return figure
