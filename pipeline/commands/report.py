"""`gristmill report`: prints or writes the data card of the corpus.

In: the current output of the asset corpus_report. Out: its data card on the terminal, or the card and its figures in
a folder, to be published with a model or a data set.
"""

from argparse import Namespace
from pathlib import Path

from pipeline.store.layout import layout_from_environment, load_current
from pipeline.store.shards import write_bytes

CARD, FIGURES = "data_card.md", "figures"


def run_report(args: Namespace) -> int:
    folder = load_current(layout_from_environment(), "corpus_report").directory
    if args.out is None:
        print((folder / CARD).read_text("utf-8"))
        return 0
    out = Path(args.out).absolute()
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; expected a folder, new or not, for {CARD} and its {FIGURES}")
    for path in (folder / CARD, *sorted((folder / FIGURES).glob("*.png"))):
        write_bytes(out / path.relative_to(folder), path.read_bytes())  # no link, so that the card may be edited
    print(out / CARD)
    return 0
