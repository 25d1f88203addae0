"""`gristmill gc`: asks for confirmation and deletes outputs that no current result or registered model needs."""

from argparse import Namespace
from collections.abc import Iterator

from pipeline.commands.tables import agreed, count_text
from pipeline.store.disk import Garbage, find_garbage, remove_garbage, size_text
from pipeline.store.layout import Layout, existing_layout
from pipeline.tasks.declared import declared_assets, declared_downloads, watched_paths
from pipeline.tracking.journal import damaged_journals, journals
from pipeline.tracking.pruning import prune_tracking
from pipeline.tracking.registry import FINGERPRINT, registered_versions


def run(args: Namespace) -> int:
    layout = existing_layout()
    garbage = find_garbage(
        layout,
        keep=args.keep,
        registered=_registered(layout),
        unfinished=args.unfinished,
        declared=declared_assets(layout),
        sources=watched_paths(layout),
        downloads=declared_downloads(layout),
    )
    if not (garbage.folders or garbage.files or garbage.retired):
        if not _pruned(layout):
            print("Nothing to remove.")
        return 0
    print("\n".join(_lines(layout, garbage)))
    if not (args.yes or agreed("Remove them? [y/N] ")):
        print("Nothing was removed; --yes removes without asking.")
        return 0
    if kept := remove_garbage(layout, garbage):
        names = ", ".join(str(folder.relative_to(layout.data)) for folder in kept)
        print(f"Kept, because a build has begun to use them: {names}.")
    print(f"Removed; {'at most ' if kept else ''}{size_text(garbage.n_bytes)} freed.")
    _pruned(layout)
    return 0


def _pruned(layout: Layout) -> bool:
    """Whether journals were pruned; their size is told."""
    if n_pruned := prune_tracking(layout):
        print(f"{size_text(n_pruned)} of delivered journals of MLflow removed.")
    return n_pruned > 0


def _lines(layout: Layout, garbage: Garbage) -> Iterator[str]:
    for asset in garbage.retired:
        yield f"retire {asset}, which no file declares any more"
    for path in (*garbage.outputs, *garbage.unfinished, *garbage.files):
        yield f"remove {path.relative_to(layout.data)}"
    counts = [
        count_text(len(garbage.outputs), "output"),
        count_text(len(garbage.unfinished), "unfinished build"),
        count_text(len(garbage.parts), "cached shard"),
        count_text(len(garbage.indexes), "index", "indexes"),
    ]
    yield (
        f"{counts[0]}, {counts[1]}, {counts[2]} and {counts[3]} of `gristmill trace` that nothing needs:"
        f" {size_text(garbage.n_bytes)}"
    )


def _registered(layout: Layout) -> set[str]:
    """Fingerprints of the builds whose MLflow runs belong to versions of registered models."""
    versions = [version for _, version in registered_versions(layout)]
    runs = {version.run_id for version in versions}
    kept = {journal.fingerprint for journal in journals(layout) if journal.state().get("run_id") in runs}
    kept |= {version.tags[FINGERPRINT] for version in versions if FINGERPRINT in version.tags}
    damaged = {path.parent.name for path in layout.tracking.glob("*/run.json.damaged*")}
    return kept | damaged | {journal.fingerprint for journal in damaged_journals(layout)}  # they may be registered
