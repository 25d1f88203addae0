"""What a user should know about the examples of a task before a model is trained on them: examples.md.

In: the rows, their groups and strata, and the examples. Out: Markdown with the rows that were dropped and why, the
splits, near duplicates and contradictions among their labels, and lengths; and the warnings among it. Rows are named
by their numbers: the text is shown with an asset, where `gristmill forget` could not remove it again.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpus.examples.near_texts import letters
from pipeline.corpus.examples.rows import ExampleRows
from pipeline.corpus.report.card_markdown import counted, percent, plain, plain_line, table
from pipeline.store.records import SPLITS

WORD = pc.MatchSubstringOptions(r"\S+")
SHOWN_PAIRS = 3
MOST_IN_GROUP = 300  # rows of a group that are compared with each other
MOST_PAIRS = 200_000  # of all groups together
QUANTILES = {"shortest": 0.0, "10 %": 0.1, "half": 0.5, "90 %": 0.9, "99 %": 0.99, "longest": 1.0}
CHARACTERS_A_TOKEN = 4  # of English in a usual vocabulary
CONTEXTS = (128, 256, 512, 1024, 2048)  # tokens, usual numbers that models read
LARGE_GROUP = 0.1  # of all examples
FEW_HELD_OUT = 100  # an accuracy measured on so many examples is uncertain by more than 5 points


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Two near duplicates with different labels."""

    similarity: float  # Jaccard index of their words
    first: int  # places of the rows
    second: int


def contradictions(
    texts: Sequence[str], groups: Sequence[int], strata: Sequence[Sequence[str]], similarity: float
) -> list[Contradiction]:
    """Near duplicates with different labels, the most similar first.

    Of a large group, and of very many groups, only the first rows are compared.
    """
    members: defaultdict[int, list[int]] = defaultdict(list)
    for place, group in enumerate(groups):
        members[group].append(place)
    mixed = (own for own in members.values() if len(own) > 1 and len({tuple(strata[place]) for place in own}) > 1)
    found = []
    for one, other in islice((pair for own in mixed for pair in _unlike(own, strata)), MOST_PAIRS):
        left, right = set(letters(texts[one])), set(letters(texts[other]))
        alike = len(left & right) / len(left | right)
        if alike >= similarity:
            found.append(Contradiction(alike, one, other))
    return sorted(found, key=lambda pair: (-pair.similarity, pair.first, pair.second))


def _unlike(group: Sequence[int], strata: Sequence[Sequence[str]]) -> Iterator[tuple[int, int]]:
    pairs = combinations(group[:MOST_IN_GROUP], 2)
    return ((one, other) for one, other in pairs if tuple(strata[one]) != tuple(strata[other]))


def group_warnings(
    rows: ExampleRows,
    examples: pa.Table,
    found: Sequence[Contradiction],
    strata: Sequence[Sequence[str]],
    groups: Sequence[int],
) -> list[str]:
    """What may be wrong with the examples of any kind of task."""
    warnings = []
    if found:
        shown = "; ".join(_shown_pair(rows, pair, strata) for pair in found[:SHOWN_PAIRS])
        unclear = {place for pair in found for place in (pair.first, pair.second)}
        warnings.append(
            f"{counted(len(unclear), 'example')} have a near duplicate with another label: {shown}. Look at them,"
            " because one of two such labels may be wrong"
        )
    (_, largest), *_ = Counter(groups).most_common(1) or [(0, 0)]
    if 1 < largest > LARGE_GROUP * examples.num_rows:
        warnings.append(
            f"{largest:,} of {examples.num_rows:,} examples form one group, which is in one split as a whole; if"
            " their texts follow one template, raise the setting similarity"
        )
    sizes = dict.fromkeys(SPLITS, 0) | {
        row["values"]: row["counts"] for row in examples["split"].value_counts().to_pylist()
    }
    if few := [split for split in SPLITS[1:] if sizes[split] < FEW_HELD_OUT]:
        told = " and ".join(f"{split} has {counted(sizes[split], 'example')}" for split in few)
        warnings.append(f"{told}: a metric that is measured on fewer than {FEW_HELD_OUT} is very uncertain")
    return warnings


def _shown_pair(rows: ExampleRows, pair: Contradiction, strata: Sequence[Sequence[str]]) -> str:
    one, other = (
        f"{rows.where(rows.file_numbers[place], rows.numbers[place])} ({', '.join(strata[place]) or 'no label'})"
        for place in (pair.first, pair.second)
    )
    return f"{one} and {other}, {100 * pair.similarity:.0f} % of their words in common"


def examples_overview(rows: ExampleRows, examples: pa.Table, warnings: Sequence[str], of_kind: str) -> str:
    """examples.md; `of_kind` is what the kind of task adds."""
    parts = [
        f"# Examples\n\n{rows.n_read:,} rows of {plain(', '.join(rows.files))}: {examples.num_rows:,} examples,"
        f" {counted(rows.reasons.total(), 'row')} dropped.\n",
        "".join(f"- {plain_line(warning)}\n" for warning in warnings),
        f"## Splits\n\n{_splits(examples)}",
        f"## Dropped rows\n\n{_dropped(rows)}" if rows.reasons else "",
        f"## Lengths\n\n{_lengths(examples)}",
        of_kind,
    ]
    return "\n".join(part for part in parts if part)


def _splits(examples: pa.Table) -> str:
    groups = examples.group_by(["split", "group_id"]).aggregate([([], "count_all")])
    sizes = {split: groups.filter(pc.field("split") == split)["count_all"].to_numpy() for split in SPLITS}
    n_shared = sum(int(of_split[of_split > 1].sum()) for of_split in sizes.values())
    lines = [
        [split, f"{n.sum():,}", percent(int(n.sum()), examples.num_rows), f"{len(n):,}"] for split, n in sizes.items()
    ]
    return table(["split", "examples", "share", "groups"], lines) + (
        f"\nA group is never divided: near duplicates, and rows with the same value of the setting group."
        f" {counted(n_shared, 'example')} {'is' if n_shared == 1 else 'are'} in groups of more than one.\n"
    )


def _dropped(rows: ExampleRows) -> str:
    lines = [
        [
            plain(reason),
            f"{n:,}",
            plain_line(", ".join(rows.places[reason])),
            plain_line("; ".join(rows.shown_details(reason))),
        ]
        for reason, n in rows.reasons.most_common()
    ]
    return table(["reason", "rows", "the first of them", "what was found"], lines)


def _lengths(examples: pa.Table) -> str:
    texts = examples["text"]
    characters = pc.call_function("utf8_length", [texts]).to_numpy().astype(np.int64)
    words = pc.call_function("count_substring_regex", [texts], WORD).to_numpy().astype(np.int64)
    tokens = -(-characters // CHARACTERS_A_TOKEN)
    units: Mapping[str, np.ndarray] = {"words": words, "characters": characters, "tokens, about": tokens}
    lines = [[name, *(f"{_quantile(n, q):,}" for q in QUANTILES.values())] for name, n in units.items()]
    beyond = [
        f"{percent(int((tokens > most).sum()), len(tokens))} of the texts are longer than {most:,}"
        for most in CONTEXTS
        if (tokens > most).any()
    ]
    return table(["length in", *QUANTILES], lines) + (
        f"\nTokens are estimated as characters / {CHARACTERS_A_TOKEN}, which suits English; the vocabulary of the"
        f" base decides. Estimated tokens: {'; '.join(beyond) or f'no text is longer than {CONTEXTS[0]:,}'}.\n"
    )


def _quantile(values: np.ndarray, q: float) -> int:
    return int(np.quantile(values, q, method="nearest")) if len(values) else 0
