"""What a page costs from 300 to 30,000 real web pages: seconds and memory of collect, clean, signals and filter.

In: manuals from the Debian archive (the newest version that `apt-get download` finds), some 200 MB, fetched once into
--cache and unpacked by dpkg-deb. Out: a markdown table, printed and written to bench/scale.md.

Every size has the same mix, because its pages are those with the smallest hashes over all manuals: the smaller sizes
lie within the larger ones. Each manual becomes a smaller .tar.xz with the chosen pages, which `collect` reads as it
reads any other. Every stage of every size runs in a process of its own, so that its peak of memory is its own. A
shard has a fixed cost, too (its files are synced to disk), which weighs more where it holds few pages.

    .venv/bin/python -m bench.scale [--sizes 300 3000 30000] [--cache data/cache] [--folder DIR] [--workers N]
"""

import argparse
import io
import json
import lzma
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import xxhash

from bench.machine import Memory, machine
from pipeline.corpus.clean.stage import CLEAN, CleanConfig
from pipeline.corpus.collect.files import FilesSource
from pipeline.corpus.collect.members import members_of
from pipeline.corpus.collect.stage import collect
from pipeline.corpus.filter.rules import FilterConfig, FilterRecipe
from pipeline.corpus.filter.stage import FILTER
from pipeline.corpus.signals.stage import MEASURE, SignalsConfig
from pipeline.store.engine import LocalProcesses
from pipeline.store.records import Counts
from pipeline.store.shards import read_table, replacing, shard_paths
from pipeline.store.store import Store, read_handle

ROOT = Path(__file__).resolve().parent.parent
MANUALS = (  # written by Sphinx, DocBook, Texinfo, Doxygen, javadoc, rustdoc, gi-docgen, Haddock and by hand
    *("apache2-doc", "cmake-doc", "debian-policy", "erlang-doc", "exim4-doc-html", "gap-doc", "ghc-doc"),
    *("gimp-help-en", "git-doc", "groovy-doc", "libboost1.74-doc", "libgtk-3-doc", "libgtk-4-doc"),
    *("lilypond-doc-html", "linux-doc-6.1", "maxima-doc", "octave-doc", "openjdk-17-doc", "postgresql-doc-15"),
    *("python-django-doc", "python-pandas-doc", "python-sympy-doc", "python3.11-doc", "qtbase5-doc-html"),
    *("rust-doc", "sqlite3-doc", "swi-prolog-doc"),
)
PAGES = ("**/*.html",)
MOST_PAGES = 3000  # of one manual, so that no sort of page decides the result
STAGES = ("collect", "clean", "signals", "filter")
MB = 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[300, 3000, 30_000], help="pages")
    parser.add_argument("--cache", type=Path, default=ROOT / "data" / "cache", help="where fetched packages lie")
    parser.add_argument("--folder", type=Path, help="new folder for all that is made; default: a temporary one")
    parser.add_argument("--workers", type=int, default=0, help="worker processes; 0 = as many as cores")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "scale.md")
    parser.add_argument("--stage", choices=STAGES, help="run one stage of one size in --folder and print its cost")
    args = parser.parse_args()
    if args.stage:
        print(json.dumps(cost_of(args.stage, args.folder, args.workers)))
        return
    with tempfile.TemporaryDirectory(prefix="gristmill-bench-") as temporary:
        folder = args.folder or Path(temporary)
        manuals = fetched(args.cache)
        write_samples(manuals, sorted(args.sizes), folder)
        costs = {
            size: {stage: child_cost(stage, folder / str(size), args.workers) for stage in STAGES}
            for size in sorted(args.sizes)
        }
    text = "\n".join([machine(args.workers), "", *table(costs), ""])
    args.out.write_text(text, "utf-8")
    print(text)


def fetched(cache: Path) -> dict[str, Path]:
    """The files of every manual that the mirror has, as <package>.tar."""
    folder = cache / "manuals"
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for package in MANUALS:
        tar = folder / f"{package}.tar"
        if not tar.exists():
            if subprocess.run(["apt-get", "download", package], cwd=folder, check=False).returncode:
                print(f"not on this mirror: {package}", file=sys.stderr)
                continue
            (deb,) = folder.glob(f"{package}_*.deb")
            with replacing(tar) as part, part.open("wb") as out:
                subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], stdout=out, check=True)
            print(deb.name, file=sys.stderr)
        files[package] = tar
    return files


def write_samples(manuals: dict[str, Path], sizes: list[int], folder: Path) -> None:
    """<folder>/<size>/manuals/<package>.tar.xz with the pages of each size."""
    limits = limits_of(manuals, sizes)
    for package, path in manuals.items():
        with ExitStack() as stack:
            archives = {}
            for size in sizes:
                if limits[package][size] < 0:
                    continue
                target = folder / str(size) / "manuals" / f"{package}.tar.xz"
                target.parent.mkdir(parents=True, exist_ok=True)
                compressed = stack.enter_context(lzma.open(target, "wb", preset=0))
                archives[size] = stack.enter_context(tarfile.open(fileobj=compressed, mode="w"))
            for rank, name, content in pages_of(package, path, max(limits[package].values())):
                for size, archive in archives.items():
                    if rank <= limits[package][size]:
                        info = tarfile.TarInfo(f"./{name}")
                        info.size = len(content)
                        archive.addfile(info, io.BytesIO(content))


def limits_of(manuals: dict[str, Path], sizes: list[int]) -> dict[str, dict[int, int]]:
    """Highest rank (hash of the name) that each size takes of each manual; -1 = none."""
    ranks = []
    for package, path in manuals.items():
        names = (member.name for member in members_of(path) if is_page(member))
        ranks += [(rank, package) for rank in sorted(rank_of(package, name) for name in names)[:MOST_PAGES]]
    ranks.sort()
    if len(ranks) < sizes[-1]:
        raise SystemExit(f"the manuals have {len(ranks)} pages, {sizes[-1]} are wanted")
    limits = {package: dict.fromkeys(sizes, -1) for package in manuals}
    for size in sizes:
        for rank, package in ranks[:size]:
            limits[package][size] = rank
    return limits


def is_page(member: Any) -> bool:
    return member.refused is None and member.name.endswith(".html")


def rank_of(package: str, name: str) -> int:
    return xxhash.xxh3_64_intdigest(f"{package} {name}".encode())


def pages_of(package: str, path: Path, limit: int) -> Iterator[tuple[int, str, bytes]]:
    """Rank, name and content of the pages up to a rank."""
    for member in members_of(path):
        if is_page(member) and (rank := rank_of(package, member.name)) <= limit:
            with member.open() as file:
                yield rank, member.name, file.read()


def child_cost(stage: str, folder: Path, n_workers: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--stage", stage, "--folder", str(folder), "--workers", str(n_workers)]
    answer = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8", check=True)
    cost = json.loads(answer.stdout)
    print(f"{folder.name} {stage}: {cost}", file=sys.stderr)
    return cost


def cost_of(stage: str, folder: Path, n_workers: int) -> dict[str, float]:
    """Run one stage on what the ones before it left in `folder`."""
    store = Store(root=folder / "store", engine=LocalProcesses(n_workers=n_workers))
    with Memory() as memory:
        started = time.perf_counter()
        handles, counts = run(stage, store, folder)
        seconds = time.perf_counter() - started
    (folder / f"{stage}.json").write_text(json.dumps([str(handle.directory) for handle in handles]), "utf-8")
    read, column = ("collect", "content") if stage in ("collect", "clean") else ("clean", "text")
    shards = [path for handle in made(folder, read) for path in shard_paths(handle.directory)]
    return {
        "rows": counts.rows_in,
        "kept": counts.kept,
        "shards": len(shards),
        "input_mb": sum(read_table(path, columns=[column]).nbytes for path in shards) / MB,
        "seconds": seconds,
        **memory.measures(),
    }


def run(stage: str, store: Store, folder: Path) -> tuple[list[Any], Counts]:
    counts = Counts()
    if stage == "collect":
        built = [
            collect(store, FilesSource(name=name_of(path), path=str(path), members=PAGES), folder / "cache")
            for path in sorted((folder / "manuals").iterdir())
        ]
    elif stage == "clean":
        built = [store.build(CLEAN, CleanConfig(), *made(folder, "collect"))]
    elif stage == "signals":
        built = [store.build(MEASURE, SignalsConfig(), *made(folder, "clean"))]
    else:
        inputs = [*made(folder, "clean"), *made(folder, "signals")]
        built = [store.build(FILTER, FilterRecipe(config=FilterConfig()), *inputs)]
    for one in built:
        assert one.counts is not None and one.counts.is_conserved() and not one.unchanged
        counts.add(one.counts)
    return [one.handle for one in built], counts


def name_of(path: Path) -> str:
    """Of a source: libboost1-74-doc for libboost1.74-doc.tar.xz."""
    return path.name.removesuffix(".tar.xz").replace(".", "-").replace("+", "")


def made(folder: Path, stage: str) -> list[Any]:
    return [read_handle(Path(path)) for path in json.loads((folder / f"{stage}.json").read_text("utf-8"))]


def table(costs: dict[int, dict[str, dict[str, float]]]) -> list[str]:
    lines = [
        "| stage | pages in | kept | shards | MB in | seconds | ms per page | times the first size | s/MB |"
        " peak parent MB | peak worker MB | peak of all MB | MB per page above the start |",
        "|---" * 13 + "|",
    ]
    first = min(costs)
    for stage in STAGES:
        for of_size in costs.values():
            cost, base = of_size[stage], costs[first][stage]
            a_page, base_page = cost["seconds"] / cost["rows"], base["seconds"] / base["rows"]
            above = (cost["total_mb"] - cost["start_mb"]) / cost["rows"]
            lines.append(
                f"| {stage} | {cost['rows']:,} | {cost['kept']:,} | {cost['shards']} | {cost['input_mb']:.1f} |"
                f" {cost['seconds']:.1f} |"
                f" {1000 * a_page:.2f} | {a_page / base_page:.2f} | {cost['seconds'] / cost['input_mb']:.3f} |"
                f" {cost['parent_mb']:.0f} | {cost['worker_mb']:.0f} | {cost['total_mb']:.0f} | {above:.3f} |"
            )
    return lines


if __name__ == "__main__":
    main()
