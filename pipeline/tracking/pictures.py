"""Draws pictures for Dagster's metadata and MLflow's artifacts: a training curve, a histogram of a corpus.

In: numbers, or a Markdown file with pictures. Out: PNG, or an HTML page that contains its pictures. matplotlib is
imported where it is used, through its object interface: no global figure, no display, safe in any thread.
"""

import base64
import re
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.store.shards import write_bytes, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMOOTHED = 50  # windows: enough to smooth the curve, few enough to show where it bends
HISTOGRAM_BINS = 40
LINKED_PICTURE = re.compile(r"\]\((figures/[\w.-]+\.png)\)")  # in a Markdown text, by a relative path
PAGE = """\
<!doctype html><meta charset="utf-8"><title>{title}</title>
<style>body {{font: 15px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em}} img {{max-width: 100%}}
table {{border-collapse: collapse}} td, th {{border: 1px solid #ccc; padding: .2em .6em; text-align: left}}</style>
{body}"""


def curve_png(curve: Sequence[dict[str, float]]) -> bytes:
    """Loss by step as a thin line, its running mean, and the validation loss."""

    def draw(axes: "Axes") -> None:
        steps = np.array([line["step"] for line in curve if "loss" in line])
        losses = np.array([line["loss"] for line in curve if "loss" in line])
        axes.plot(steps, losses, linewidth=0.6, alpha=0.4, color="tab:blue")
        window = max(1, len(losses) // SMOOTHED)
        smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
        axes.plot(steps[window - 1 :], smooth, color="tab:blue", label="training loss")
        judged = [(line["step"], line["validation_loss"]) for line in curve if "validation_loss" in line]
        if judged:
            axes.plot(*zip(*judged, strict=True), "o-", markersize=3, color="tab:orange", label="validation loss")
        axes.set_xlabel("step")
        axes.set_ylabel("nats")
        axes.legend()

    return _png(draw)


def write_curve(path: Path, curve: Sequence[dict[str, float]]) -> Path:
    write_bytes(path, curve_png(curve))
    return path


def histogram_png(values: np.ndarray, label: str) -> bytes:
    """Histogram of a quantity, with a logarithmic axis because lengths of texts span four decades."""

    def draw(axes: "Axes") -> None:
        positive = values[values > 0]
        edges = np.geomspace(positive.min(), positive.max() + 1, HISTOGRAM_BINS + 1) if len(positive) else [1, 10]
        axes.hist(positive, bins=edges, color="tab:blue")
        axes.set_xscale("log")
        axes.set_xlabel(label)
        axes.set_ylabel("documents")

    return _png(draw)


def as_markdown(png: bytes, title: str) -> str:
    """Markdown text that contains the picture, so that Dagster's metadata can show it."""
    return f"![{title}]({data_url(png)})"


def data_url(png: bytes) -> str:
    """A data URL that contains the picture."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def with_pictures(text: str, folder: Path) -> str:
    """A Markdown text in which links to pictures in `folder` are replaced by the pictures."""

    def inside(link: re.Match[str]) -> str:
        path = folder / link[1]
        return f"]({data_url(path.read_bytes())})" if path.exists() else link[0]

    return LINKED_PICTURE.sub(inside, text)


def html_page(markdown: Path, page: Path) -> Path:
    """Convert a Markdown file to an HTML page that contains its tables and pictures."""
    from markdown_it import MarkdownIt

    text = with_pictures(markdown.read_text("utf-8"), markdown.parent)
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    write_text(page, PAGE.format(title=markdown.stem.replace("_", " "), body=body))
    return page


def _png(draw: "Callable[[Axes], None]") -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure.add_subplot())
    content = BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()
