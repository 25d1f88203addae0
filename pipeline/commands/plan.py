"""`gristmill plan`: shows what a materialisation would rebuild, why, and what it would cost.

In: parsed arguments. Out: a table, its sums, and exit code 0; 1 if an asset cannot be built.
"""

import json
from argparse import Namespace
from collections.abc import Iterator, Sequence

from pipeline.commands.estimate import estimate, estimate_line
from pipeline.commands.planning import PlannedAsset, plan
from pipeline.commands.tables import count_text, table_lines
from pipeline.store.disk import size_text
from pipeline.store.layout import usable_layout
from pipeline.store.progress import clock_text
from pipeline.tasks.declared import idle_assets

UNKNOWN = "?"


def run(args: Namespace) -> int:
    layout = usable_layout()
    idle = idle_assets(layout)
    planned = plan(layout)
    assets = [one for one in planned if one.asset not in idle or any(build.last for build in one.builds)]
    left_out = [one.asset for one in planned if one not in assets]
    if args.json:
        print(json.dumps([_as_json(asset) for asset in assets], indent=1))
    else:
        work = estimate(assets)
        print("\n".join([*plan_lines(assets), *([estimate_line(work)] if work else []), *_idle_lines(left_out)]))
    return int(any(asset.fault for asset in assets))


def plan_lines(assets: Sequence[PlannedAsset]) -> list[str]:
    """The table: what is rebuilt with its reasons, then the sums."""
    changed = [asset for asset in assets if asset.rebuilt or asset.fault]
    if not changed:
        return [f"Nothing to rebuild: all {count_text(len(assets), 'asset')} are up to date."]
    if not any(asset.fault or any(build.last for build in asset.builds) for asset in assets):
        return [f"Nothing was built yet: {count_text(len(assets), 'asset')} would be built."]
    header = ["asset", "documents", "tokens", "time", "disk"]
    rows = [[asset.asset, *_numbers(asset)] for asset in changed]
    table = table_lines(header, rows, right=(1, 2, 3, 4))
    lines = table[:2]
    for asset, line in zip(changed, table[2:], strict=True):
        lines += [line, *(f"    {reason}" for reason in _reasons(asset))]
    return [*lines, "", *_sums(assets, changed)]


def _idle_lines(assets: Sequence[str]) -> Iterator[str]:
    if assets:
        yield (
            f"Left out, because nothing needs it: {', '.join(assets)}. `gristmill run {assets[0]}` imports it, and so"
            " does the run of a task or model that has it as base."
        )


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
            yield f"{build.stage}: {'; '.join(new)}" + (" (continues an unfinished build)" if build.resumes else "")


def _sums(assets: Sequence[PlannedAsset], changed: Sequence[PlannedAsset]) -> Iterator[str]:
    builds = [build for asset in changed for build in asset.rebuilt]
    known = [build for build in builds if build.last]
    total = f"{len(changed)} of {count_text(len(assets), 'asset')}"
    if known:
        seconds, n_bytes = sum(build.seconds or 0 for build in known), sum(build.n_bytes or 0 for build in known)
        total += f": at most {clock_text(seconds)} (minutes:seconds) and {size_text(n_bytes)}"
    if unknown := len(builds) - len(known):
        total += f"{', and' if known else ':'} {count_text(unknown, 'stage')} that never ran"
    yield f"{total}."
    yield "Times are those of the last build. If the output of a stage stays equal, nothing after it is rebuilt."


def _time(seconds: Sequence[float | None]) -> str:
    total = _sum(seconds)
    return UNKNOWN if total is None else clock_text(total)


def _sum(values: Sequence[float | None]) -> float | None:
    """None if nothing is known about any."""
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
