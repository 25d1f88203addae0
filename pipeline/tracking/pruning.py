"""Removes what is left of delivered journals, for `gristmill gc`.

In: a layout. Out: the bytes that were freed. Of a journal whose run is closed and delivered, the pictures and pages
that MLflow has stored are removed; if the output of the build is gone too, only the MLflow ids of the run are kept,
in one file for all, so that old links from Dagster still lead to it. A journal with events that wait or were refused
is not touched, nor one that a process holds.
"""

import json
import shutil
from contextlib import suppress

from filelock import FileLock, Timeout

from pipeline.store.layout import Layout
from pipeline.store.shards import write_text
from pipeline.tracking.journal import PRUNED, Journal, journals, read_pruned

KEPT_KEYS = ("run_id", "experiment_id", "status", "models")
KEPT_FILES = ("run.json", ".lock")


def prune_tracking(layout: Layout) -> int:
    """Prune all journals. Returns the number of bytes that were freed."""
    outputs = {path.name for path in layout.store.glob("*/*")}
    n_bytes = 0
    for journal in journals(layout):
        with suppress(Timeout), journal.lock.acquire(timeout=0):
            if journal.is_delivered():
                n_bytes += _prune(layout, journal, is_gone=journal.fingerprint not in outputs)
    return n_bytes


def _prune(layout: Layout, journal: Journal, *, is_gone: bool) -> int:
    if is_gone:
        state = {key: value for key, value in journal.state().items() if key in KEPT_KEYS}
        with FileLock(layout.tracking / ".prune.lock"):
            known = read_pruned(layout.tracking) | {journal.fingerprint: state}
            write_text(layout.tracking / PRUNED, json.dumps(known, indent=1))
    removed = [path for path in journal.folder.rglob("*") if path.is_file()]
    removed = [path for path in removed if is_gone or path.name not in KEPT_FILES]
    n_bytes = sum(path.stat().st_size for path in removed)
    if is_gone:
        shutil.rmtree(journal.folder)
    for path in removed:
        path.unlink(missing_ok=True)
    return n_bytes
