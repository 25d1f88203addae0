"""`gristmill plan`: what a materialisation would rebuild, why, and what it would cost.

In: parsed arguments. Out: a table, its sums, and exit code 0; 1 where an asset cannot be built as things are.
"""

import json
from argparse import Namespace
from collections.abc import Iterator, Sequence

from pipeline.commands.planning import PlannedAsset, plan
from pipeline.commands.tables import table_lines
from pipeline.store.disk import size_text
from pipeline.store.layout import layout_from_environment
from pipeline.store.progress import clock_text

UNKNOWN = "?"


def run_plan(args: Namespace) -> int:
    assets = plan(layout_from_environment())
    print(json.dumps([_as_json(asset) for asset in assets], indent=1) if args.json else "\n".join(plan_lines(assets)))
    return int(any(asset.fault for asset in assets))


def plan_lines(assets: Sequence[PlannedAsset]) -> list[str]:
    """For people: what is rebuilt with its reasons, then the sums."""
    changed = [asset for asset in assets if asset.rebuilt or asset.fault]
    if not changed:
        return [f"Nothing to rebuild: all {len(assets)} assets are up to date."]
    header = ["asset", "documents", "tokens", "time", "disk"]
    rows = [[asset.asset, *_numbers(asset)] for asset in changed]
    table = table_lines(header, rows, right=(1, 2, 3, 4))
    lines = table[:2]
    for asset, line in zip(changed, table[2:], strict=True):
        lines += [line, *(f"    {reason}" for reason in _reasons(asset))]
    return [*lines, "", *_sums(assets, changed)]


def _numbers(asset: PlannedAsset) -> list[str]:
    n_bytes = _sum([build.n_bytes for build in asset.rebuilt])
    return [
        "" if asset.n_documents is None else f"{asset.n_documents:,}",
        "" if asset.n_tokens is None else f"{asset.n_tokens:,}",
        _time([build.seconds for build in asset.rebuilt]),
        UNKNOWN if n_bytes is None else size_text(n_bytes),
    ]


def _reasons(asset: PlannedAsset) -> Iterator[str]:
    if asset.fault:
        yield f"cannot be built: {asset.fault}"
    told: set[str] = set()
    for build in asset.rebuilt:
        if new := [reason for reason in build.reasons if reason not in told]:
            told.update(new)
            yield f"{build.stage}: {'; '.join(new)}" + (" (goes on with what was begun)" if build.resumes else "")


def _sums(assets: Sequence[PlannedAsset], changed: Sequence[PlannedAsset]) -> Iterator[str]:
    builds = [build for asset in changed for build in asset.rebuilt]
    n_bytes = sum(build.n_bytes or 0 for build in builds)
    seconds = [build.seconds for build in builds]
    unknown = sum(one is None for one in seconds)
    total = f"{len(changed)} of {len(assets)} assets, at most {clock_text(sum(one or 0 for one in seconds))} minutes"
    yield f"{total} and {size_text(n_bytes)}" + (f", beside {unknown} stages that never ran" if unknown else "") + "."
    yield "A stage that comes out equal spares what is made from it. Times are those of the last build."


def _time(seconds: Sequence[float | None]) -> str:
    total = _sum(seconds)
    return UNKNOWN if total is None else clock_text(total)


def _sum(values: Sequence[float | None]) -> float | None:
    """None where nothing is known of any."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _as_json(asset: PlannedAsset) -> dict[str, object]:
    return {
        "asset": asset.asset,
        "fault": asset.fault,
        "documents": asset.n_documents,
        "tokens": asset.n_tokens,
        "stages": [
            {
                "stage": build.stage,
                "reasons": list(build.reasons),
                "fingerprint": build.fingerprint,
                "resumes": build.resumes,
                "seconds": build.seconds if build.reasons else 0.0,
                "bytes": build.n_bytes if build.reasons else 0,
            }
            for build in asset.builds
        ],
    }
