"""`gristmill du`: shows how the disk space of the data folder is used."""

from argparse import Namespace

from pipeline.commands.tables import table_lines
from pipeline.store.disk import disk_usage, size_text
from pipeline.store.layout import existing_layout


def run(args: Namespace) -> int:
    layout = existing_layout()
    places = disk_usage(layout)
    rows = [[place.name, f"{place.n_files:,}", size_text(place.n_bytes), place.note] for place in places]
    rows.append(["all", f"{sum(p.n_files for p in places):,}", size_text(sum(p.n_bytes for p in places)), ""])
    print(layout.data)
    print("\n".join(table_lines(["place", "files", "size", "what"], rows, right=(1, 2))))
    return 0
