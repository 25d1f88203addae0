"""`gristmill gc`: asks for confirmation and deletes outputs that no current result or registered model needs."""

from argparse import Namespace

from pipeline.commands.tables import agreed, count_text
from pipeline.store.disk import find_garbage, remove_garbage, size_text
from pipeline.store.layout import Layout, layout_from_environment
from pipeline.tracking.journal import journals
from pipeline.tracking.pruning import prune_tracking
from pipeline.tracking.server import has_database, new_client


def run(args: Namespace) -> int:
    layout = layout_from_environment()
    prune_tracking(layout)
    garbage = find_garbage(layout, keep=args.keep, registered=_registered(layout), unfinished=args.unfinished)
    if not garbage.folders:
        print("Nothing to remove.")
        return 0
    for folder in (*garbage.outputs, *garbage.unfinished):
        print(f"remove {folder.relative_to(layout.data)}")
    print(
        f"{count_text(len(garbage.outputs), 'output')}, {count_text(len(garbage.unfinished), 'unfinished build')},"
        f" {count_text(len(garbage.parts), 'cached shard')} and"
        f" {len(garbage.indexes)} indexes of `gristmill trace` that nothing needs: {size_text(garbage.n_bytes)}"
    )
    if not (args.yes or agreed("Remove them? [y/N] ")):
        print("Nothing was removed; --yes removes without asking.")
        return 0
    remove_garbage(layout, garbage)
    print(f"Removed; {size_text(garbage.n_bytes)} freed.")
    return 0


def _registered(layout: Layout) -> set[str]:
    """Fingerprints of the builds whose MLflow runs belong to versions of registered models."""
    if not has_database(layout):
        return set()
    client = new_client(layout)
    versions = [
        version
        for model in client.search_registered_models()
        for version in client.search_model_versions(f"name = '{model.name}'")
    ]
    runs = {version.run_id for version in versions}
    return {journal.fingerprint for journal in journals(layout) if journal.state().get("run_id") in runs}
