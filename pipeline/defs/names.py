"""The name of an asset, as config.toml, the command line and the files below data/current write its key."""

from collections.abc import Sequence

import dagster as dg


def asset_name(key: dg.AssetKey | Sequence[str]) -> str:
    """`pages/<source>` for a source, the plain name for every other asset."""
    return "/".join(key.path if isinstance(key, dg.AssetKey) else key)
