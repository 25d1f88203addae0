"""How a value passes from asset to asset: as the address of a finished folder, never as data.

In: the handle that an asset returned. Out: a small JSON file below data/current, and from it the handle for whoever
reads that asset, in this run or in any later one.
"""

from collections.abc import Sequence

import dagster as dg

from pipeline.store.layout import Layout, load_current, save_current
from pipeline.store.records import Handle


class HandleFiles(dg.IOManager):
    """One JSON file an asset; see pipeline/store/layout.py."""

    def __init__(self, layout: Layout):
        self.layout = layout

    def handle_output(self, context: dg.OutputContext, obj: Handle) -> None:
        save_current(self.layout, asset_name(context.asset_key), obj)

    def load_input(self, context: dg.InputContext) -> Handle:
        return load_current(self.layout, asset_name(context.asset_key))


def asset_name(key: dg.AssetKey | Sequence[str]) -> str:
    """`pages/<source>` for a source, the plain name for every other asset."""
    return "/".join(key.path if isinstance(key, dg.AssetKey) else key)
