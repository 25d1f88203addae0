"""Stage `split`: assigns documents to train, validation and test, so that no held-out text also occurs in train.

In: deduplicated shards. Out: shards of the same names with the column `split`. A family (all documents that overlap,
or belong to one section of a site: families.py) is on one side. Each source with enough families contributes its
share of words, families in the order of hash(seed, family), test first, so that a larger validation split does not
change the test split; families that are a large part of their source are skipped. Then every 5-gram is counted
(overlap.py), and held-out families that still leak are moved to train.

`leaked_documents` makes the same count on a finished corpus, for the asset check, and counts the clusters, families
and sections that are on two sides, which leaks.py computes independently.
"""

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
from annotated_types import Ge

from pipeline.corpus.examples.leaks import torn_groups
from pipeline.corpus.split.families import Family, read_families
from pipeline.corpus.split.overlap import Overlap, find_overlaps
from pipeline.store.engine import Engine, LocalProcesses
from pipeline.store.records import CORPUS, SPLIT_CORPUS, SPLITS, Counts, Handle, Shards
from pipeline.store.settings import Fraction, Share, check_values
from pipeline.store.shards import read_table, shard_paths, text_digest, write_table
from pipeline.store.store import UNICODE, Outcome, Stage, Work, read_record
from pipeline.store.verdict import Verdict

TRAIN, VALIDATION, TEST = SPLITS
SCRATCH = ".scratch"
REFILLS = 3  # rounds in which leaking families are replaced by others
FEWEST_FAMILIES = 3  # of a corpus with held-out documents: one for each side
SHOWN_LEAKS = 10
GROUPED = ("source", "url", "n_words", "id", "cluster_id", "family_id", "split")


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitConfig:
    validation_fraction: Annotated[
        Fraction, "Fraction of the words of each source that go to the validation split."
    ] = 0.01
    test_fraction: Annotated[Fraction, "Fraction of the words of each source that go to the test split."] = 0.01
    min_families: Annotated[
        int,
        Ge(FEWEST_FAMILIES),
        "Sources with fewer families (groups of overlapping documents) than this contribute nothing to validation or"
        " test.",
    ] = 10
    max_family_fraction: Annotated[
        Share, "Families with more than this fraction of their source's words are always in the train split."
    ] = 0.03
    max_section_fraction: Annotated[
        Fraction,
        "Documents whose URLs share a directory are put into the same split, unless the directory has more than this"
        " fraction of the words of its source; 0 turns this off.",
    ] = 0.05  # with 0.1 half of the words of the default manuals could be held out, with 0.5 a fiftieth
    max_overlap: Annotated[
        Fraction,
        "Move a held-out document to train if a document of another split contains more than this share of it.",
    ] = 0.2
    seed: Annotated[int, "Seed for the order in which families are held out."] = 1

    def __post_init__(self) -> None:
        check_values(self)
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"validation_fraction={self.validation_fraction} and test_fraction={self.test_fraction}"
                " leave nothing to train on; their sum must be below 1"
            )


def split(cfg: SplitConfig, inputs: tuple[Shards], work: Work) -> Outcome:
    paths = shard_paths(inputs[0].directory)
    families = read_families(paths, cfg.max_section_fraction)
    scratch = work.directory / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)  # left by a build that was killed
    sides, n_leaked = _sides_without_leaks(cfg, families, paths, work)
    shutil.rmtree(scratch, ignore_errors=True)
    rows: dict[str, int] = dict.fromkeys(SPLITS, 0)
    words: dict[str, int] = dict.fromkeys(SPLITS, 0)
    for done, path in enumerate(paths):
        table = read_table(path, CORPUS).select(CORPUS.names)
        column = [sides.get(page_id, TRAIN) for page_id in table["page_id"].to_pylist()]
        for side, n_words in zip(column, table["n_words"].to_pylist(), strict=True):
            rows[side] += 1
            words[side] += n_words
        split_column = pa.array(column, pa.string())
        write_table(work.directory / path.name, table.append_column(SPLIT_CORPUS.field("split"), split_column))
        work.progress(done + 1, len(paths), "shards")
    total = sum(rows.values())
    measures = {
        **{f"{side}_documents": rows[side] for side in SPLITS},
        **{f"{side}_words": words[side] for side in SPLITS},
        "families": len(families),
        "leaking_families_moved_to_train": n_leaked,
    }
    return Outcome(rows=total, counts=Counts(rows_in=total, kept=total), measures=measures)


SPLIT = Stage(name="split", version=3, function=split, handle=Shards, libraries=("scipy", UNICODE))


def leaked_documents(corpus: Handle, engine: Engine | None = None) -> Verdict:
    """Counts held-out documents that overlap too much with a document of another side, and groups on two sides."""
    record = read_record(corpus.directory)
    assert record is not None
    limit = record["config"]["max_overlap"]
    sides: dict[str, str] = {}
    urls: dict[str, str] = {}
    paths = shard_paths(corpus.directory)
    for path in paths:
        for page_id, url, side in _rows(path, "page_id", "url", "split"):
            sides[page_id], urls[page_id] = side, url
    with tempfile.TemporaryDirectory() as scratch:
        leaks = _leaks(sides, paths, limit, engine or LocalProcesses(), Path(scratch))
    leaks.sort(key=lambda leak: (-leak.share, leak.page_id))
    shown = {
        f"leak_{i}": f"{urls[leak.page_id]} ({sides[leak.page_id]}): {leak.share:.2f} of it is in"
        f" {urls[leak.other_page_id]} ({sides[leak.other_page_id]})"
        for i, leak in enumerate(leaks[:SHOWN_LEAKS], 1)
    }
    torn = torn_groups(lambda: _all_rows(paths, *GROUPED), record["config"]["max_section_fraction"])
    first = {f"first_torn_{kind}": sorted(names)[0] for kind, names in torn.items() if names}
    return Verdict(
        passed=not leaks and not first,
        rule=f"held-out documents that share {limit:g} with another side, and groups on two sides = 0",
        observed=len({leak.page_id for leak in leaks}) + sum(map(len, torn.values())),
        limit=0,
        details={
            "held_out_documents": sum(side != TRAIN for side in sides.values()),
            **{f"torn_{kind}": len(names) for kind, names in torn.items()},
            **first,
            **shown,
        },
    )


def held_out_families(cfg: SplitConfig, families: Sequence[Family], passed_over: frozenset[str]) -> dict[str, str]:
    """Family id -> validation or test; all other families are for training."""
    by_source: dict[str, list[Family]] = {}
    for family in sorted(families, key=lambda family: text_digest("split", str(cfg.seed), family.id)):
        by_source.setdefault(family.source, []).append(family)
    sources = [own for own in by_source.values() if len(own) >= cfg.min_families]
    if not sources and len(families) >= FEWEST_FAMILIES:  # a small corpus: all sources together
        sources = [[family for own in by_source.values() for family in own]]
    sides: dict[str, str] = {}
    for own in sources:
        for side, fraction in ((TEST, cfg.test_fraction), (VALIDATION, cfg.validation_fraction)):
            free = [family for family in own if family.id not in sides and family.id not in passed_over]
            total = sum(family.n_words for family in own)
            for family in _taken(free, fraction * total, cfg.max_family_fraction * total):
                sides[family.id] = side
    return sides


def _taken(families: Sequence[Family], n_words: float, largest: float) -> list[Family]:
    """The first families with `n_words` in total, none larger than `largest`; at least one if `n_words` is not 0."""
    if n_words == 0 or len(families) < 2:
        return []
    median = sorted(family.n_words for family in families)[(len(families) - 1) // 2]
    largest = max(largest, median)  # with few documents each is a large part
    taken: list[Family] = []
    n_taken = 0
    for family in families:
        if family.n_words <= largest:
            taken.append(family)
            n_taken += family.n_words
            if n_taken >= n_words:
                break
    return taken


def _sides_without_leaks(
    cfg: SplitConfig, families: Sequence[Family], paths: Sequence[Path], work: Work
) -> tuple[dict[str, str], int]:
    """Page id -> validation or test, and the number of families that were moved to train because they leaked."""
    family_of = {page_id: family.id for family in families for page_id in family.page_ids}
    leaked: frozenset[str] = frozenset()
    chosen = held_out_families(cfg, families, leaked)
    n_rounds = 0
    while chosen:
        n_rounds += 1
        sides = {page_id: chosen[family] for page_id, family in family_of.items() if family in chosen}
        leaks = _leaks(sides, paths, cfg.max_overlap, work.engine, work.directory / SCRATCH)
        if not leaks:
            return sides, len(leaked)
        leaked |= {family_of[leak.page_id] for leak in leaks}
        if n_rounds <= REFILLS:
            chosen = held_out_families(cfg, families, leaked)
        else:
            chosen = {family: side for family, side in chosen.items() if family not in leaked}
    return {}, len(leaked)


def _leaks(
    sides: Mapping[str, str], paths: Sequence[Path], limit: float, engine: Engine, scratch: Path
) -> list[Overlap]:
    """Overlaps between a held-out document and one of another side. A page id not in `sides` is for training."""
    held_out = [page_id for page_id, side in sides.items() if side != TRAIN]
    found = find_overlaps(paths, held_out, min_share=limit, engine=engine, scratch=scratch)
    return [one for one in found if sides[one.page_id] != sides.get(one.other_page_id, TRAIN)]


def _all_rows(paths: Iterable[Path], *columns: str) -> Iterator[tuple[Any, ...]]:
    for path in paths:
        yield from _rows(path, *columns)


def _rows(path: Path, *columns: str) -> Iterable[tuple[Any, ...]]:
    table = read_table(path, columns=list(columns))
    return zip(*(table[name].to_pylist() for name in columns), strict=True)
