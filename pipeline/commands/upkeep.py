"""`gristmill doctor`, `du` and `gc`: what keeps a data folder in order.

In: parsed arguments. Out: a table, and an exit code.
"""

import sys
from argparse import Namespace

from pipeline.commands.doctor import BAD, Visit, examine
from pipeline.commands.tables import table_lines
from pipeline.store.disk import Garbage, disk_usage, find_garbage, remove_garbage, size_text
from pipeline.store.layout import Layout, layout_from_environment
from pipeline.tracking.journal import journals
from pipeline.tracking.server import new_client, tracking_uri


def run_doctor(args: Namespace) -> int:
    """1 when something is left that needs a person."""
    findings = list(examine(Visit(layout=layout_from_environment(), mend=args.mend)))
    print("\n".join(table_lines(["check", "state", "what"], [[f.check, f.state, f.detail] for f in findings])))
    return int(any(finding.state == BAD for finding in findings))


def run_du(args: Namespace) -> int:
    layout = layout_from_environment()
    places = disk_usage(layout)
    rows = [[place.name, f"{place.n_files:,}", size_text(place.n_bytes), place.note] for place in places]
    rows.append(["all", f"{sum(p.n_files for p in places):,}", size_text(sum(p.n_bytes for p in places)), ""])
    print(layout.data)
    print("\n".join(table_lines(["place", "files", "size", "what"], rows, right=(1, 2))))
    return 0


def run_gc(args: Namespace) -> int:
    layout = layout_from_environment()
    garbage = find_garbage(layout, keep=args.keep, registered=_registered(layout), unfinished=args.unfinished)
    if not garbage.folders:
        print("Nothing to remove.")
        return 0
    for folder in (*garbage.outputs, *garbage.unfinished):
        print(f"remove {folder.relative_to(layout.data)}")
    print(
        f"{len(garbage.outputs)} outputs, {len(garbage.unfinished)} unfinished builds,"
        f" {len(garbage.parts)} remembered shards and {len(garbage.indexes)} indexes of `gristmill trace`"
        f" that nothing needs: {size_text(garbage.n_bytes)}"
    )
    if not (args.yes or _agreed(garbage)):
        print("Nothing was removed; --yes removes without asking.")
        return 0
    remove_garbage(layout, garbage)
    print(f"Removed; {size_text(garbage.n_bytes)} came free.")
    return 0


def _agreed(garbage: Garbage) -> bool:
    return sys.stdin.isatty() and input("Remove them? [y/N] ").strip().lower() in ("y", "yes")


def _registered(layout: Layout) -> set[str]:
    """Fingerprints of the builds whose MLflow runs a version of a registered model names."""
    if tracking_uri(layout).startswith("sqlite:") and not (layout.mlflow / "mlflow.db").exists():
        return set()
    client = new_client(layout)
    versions = [
        version
        for model in client.search_registered_models()
        for version in client.search_model_versions(f"name = '{model.name}'")
    ]
    runs = {version.run_id for version in versions}
    return {journal.fingerprint for journal in journals(layout) if journal.state().get("run_id") in runs}
