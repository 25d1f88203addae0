"""Draw the decoder and one of its blocks: docs/decoder-block.png.

In: nothing. Out: the picture, at the path given (default docs/decoder-block.png). Boxes carry the names of the code,
lines the shapes; what a switch of DecoderConfig turns off or exchanges is drawn dashed.

    python -m bench.model_figure [PATH]
"""

import itertools
import sys

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

WEIGHTS, PLAIN, SUM = "#dbe9f6", "#f3f3f3", "#fbe6c5"


def box(ax: Axes, x: float, y: float, text: str, *, width: float = 2.2, colour: str = WEIGHTS, dashed=False) -> None:
    """A box centred at (x, y)."""
    style = {"boxstyle": "round,pad=0.02,rounding_size=0.08", "linestyle": "--" if dashed else "-"}
    ax.add_patch(FancyBboxPatch((x - width / 2, y - 0.28), width, 0.56, facecolor=colour, edgecolor="#444", **style))
    ax.text(x, y, text, ha="center", va="center", fontsize=9)


def line(ax: Axes, *points: tuple[float, float], label: str = "") -> None:
    """Straight pieces through the points; an arrow at the last."""
    for start, end in itertools.pairwise(points[:-1]):
        ax.plot([start[0], end[0]], [start[1], end[1]], color="#444", linewidth=1)
    arrow = {"arrowstyle": "-|>", "mutation_scale": 10, "color": "#444", "shrinkA": 0, "shrinkB": 0}
    ax.add_patch(FancyArrowPatch(points[-2], points[-1], **arrow))
    if label:
        (x, y), (x_end, y_end) = points[-2:]
        ax.text((x + x_end) / 2 + 0.08, (y + y_end) / 2, label, fontsize=7.5, color="#555", va="center")


def draw_decoder(ax: Axes, x: float) -> None:
    """The whole: ids at the bottom, logits on top."""
    names = [
        ("ids", PLAIN, False, "B, T"),
        ("model.embed_tokens", WEIGHTS, False, "B, T, D"),
        ("+ model.embed_positions", WEIGHTS, True, "B, T, D"),
        ("model.layers.0", SUM, False, "B, T, D"),
        ("model.layers.N-1", SUM, False, "B, T, D"),
        ("model.norm", WEIGHTS, False, "B, T, D"),
        ("lm_head", WEIGHTS, False, "B, T, V"),
        ("logits of the next token", PLAIN, False, ""),
    ]
    for i, (text, colour, dashed, shape) in enumerate(names):
        y = 0.6 + 1.35 * i
        box(ax, x, y, text, width=3.0, colour=colour, dashed=dashed)
        if i + 1 < len(names):
            line(ax, (x, y + 0.28), (x, y + 1.07), label=shape + (" ..." if text.endswith(".0") else ""))


def draw_block(ax: Axes, x: float) -> None:
    """One layer: attention below, feed-forward above; the residual stream runs at the left."""
    q, k, v, stream = x - 2.5, x, x + 2.5, x - 4.4
    box(ax, x, 1.2, "input_layernorm")
    line(ax, (stream, 0.3), (stream, 5.9))
    line(ax, (stream, 0.6), (x, 0.6), (x, 0.92), label="")
    ax.text(stream + 0.1, 0.3, "x: B, T, D", fontsize=7.5, color="#555")
    for column, name, shape in (
        (q, "q_proj", "B, T, H, K"),
        (k, "k_proj", "B, T, G, K"),
        (v, "v_proj", "B, T, G, K"),
    ):
        line(ax, (x, 1.48), (x, 1.7), (column, 1.7), (column, 1.92))
        box(ax, column, 2.2, name)
        line(ax, (column, 2.48), (column, 2.92 if column != v else 4.72), label=shape)
    for column, name in ((q, "q_norm, rotate"), (k, "k_norm, rotate")):
        box(ax, column, 3.2, name, dashed=True)
        line(ax, (column, 3.48), (column, 4.72))
    ax.text(k + 0.1, 3.95, "k, v: into the KVCache,\nall S of them out", fontsize=7.5, color="#555")
    box(ax, x, 5.0, "scaled dot product over the keys that are Visible", width=7.2, colour=PLAIN)
    line(ax, (x, 5.28), (x, 5.62), label="B, T, H K")
    box(ax, x, 5.9, "o_proj")
    line(ax, (x - 1.1, 5.9), (stream + 0.22, 5.9))
    ax.text(
        stream, 5.9, "+", fontsize=13, ha="center", va="center", bbox={"boxstyle": "circle", "fc": SUM, "ec": "#444"}
    )
    line(ax, (stream, 6.15), (stream, 10.4))
    line(ax, (stream, 6.5), (x, 6.5), (x, 6.72))
    box(ax, x, 7.0, "post_attention_layernorm", width=2.6)
    for column, name, dashed in ((x - 1.5, "gate_proj", True), (x + 1.5, "up_proj", False)):
        line(ax, (x, 7.28), (x, 7.5), (column, 7.5), (column, 7.72))
        box(ax, column, 8.0, name, dashed=dashed)
        line(ax, (column, 8.28), (column, 8.92), label="B, T, F")
    box(ax, x, 9.2, "silu(gate) * up, or f(up)", width=5.2, colour=PLAIN)
    line(ax, (x, 9.48), (x, 10.12), label="B, T, F")
    box(ax, x, 10.4, "down_proj")
    line(ax, (x - 1.1, 10.4), (stream + 0.22, 10.4))
    ax.text(
        stream, 10.4, "+", fontsize=13, ha="center", va="center", bbox={"boxstyle": "circle", "fc": SUM, "ec": "#444"}
    )
    line(ax, (stream, 10.65), (stream, 11.1), label="B, T, D")


def main(path: str = "docs/decoder-block.png") -> None:
    fig, ax = plt.subplots(figsize=(11, 8.6))
    draw_decoder(ax, 2.0)
    draw_block(ax, 9.6)
    ax.text(2.0, 11.1, "Decoder", ha="center", fontsize=12)
    ax.text(9.6, 11.1, "one of model.layers", ha="center", fontsize=12)
    ax.set_xlim(0.4, 13.6)
    ax.set_ylim(0.0, 11.5)
    ax.axis("off")
    fig.savefig(path, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main(*sys.argv[1:])
