"""The rows of labelled files on their way to examples: kept, or dropped with a reason.

In: a `Row` for each row of the files. Out: the rows of examples.parquet without their split, the dropped rows, and a
summary for people. Of equal texts the first is kept; all are dropped if their values differ, because the right one is
unknown. Rows of given splits are compared with those of their own split only: what is in test stays there whatever
train has. The rows are stored as columns, because a million of them as objects would take gigabytes.
"""

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import xxhash

from model.data.examples import repaired
from pipeline.corpus.examples.near_texts import normalised
from pipeline.store.records import PREVIEW_CHARACTERS, dropped_row
from pipeline.store.shards import text_digest

SHOWN_DETAILS = 3  # per drop reason, in a summary
SHOWN_ROWS = 5  # per drop reason, by their numbers
MOST_DETAILS = 1000  # per drop reason, that are told apart
MOST_SHARED = 10_000  # values that equal rows share in memory


@dataclass(slots=True)
class Row:
    """A row of a labelled file as an example. `reason` is the drop reason, `detail` what is wrong with this row."""

    text: str
    values: dict[str, Any] = field(default_factory=dict)  # values of the columns of the kind
    reason: str | None = None
    detail: str = ""
    number: int = 0  # from 1, without the header
    key: str = ""  # second text of its identity, such as a question about the text: rows may share their text
    group: str | None = None  # rows of one group stay in one split
    split: str | None = None  # which the data give it

    @property
    def id(self) -> str:
        keys = (normalised(self.key),) if self.key else ()
        return text_digest(normalised(self.text), *keys)


class ExampleRows:
    """All rows of the files; `names` are the columns of the kind of task."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.n_read = self.n_stray_quotes = 0
        self.have_keys = False  # texts with several examples, each with its own values
        self.files: list[str] = []
        self.texts: list[str] = []  # this and the next six: of the rows that are kept
        self.ids: list[str] = []
        self.values: list[tuple[Any, ...]] = []
        self.groups: list[str | None] = []
        self.splits: list[str] = []  # given ones; train = to be divided
        self.numbers = array("q")
        self.file_numbers = array("q")
        self.drops: list[tuple[int, int, str, str, str]] = []  # file, number, id, reason, beginning of the text
        self.reasons: Counter[str] = Counter()
        self.places: defaultdict[str, list[str]] = defaultdict(list)  # reason -> its first rows, for people
        self.details: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._shared: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        self._place: defaultdict[str, dict[str, int]] = defaultdict(dict)  # split -> id -> where its text first is
        self._repeated: list[tuple[tuple[int, int, str, str], int]] = []
        self._conflicting: set[int] = set()  # places of texts with different values

    def add(self, row: Row, split: str = "train") -> None:
        """`split` is the one of the file, if the row has none of its own."""
        self.n_read += 1
        row_id, file = row.id, len(self.files) - 1
        if row.reason is not None:
            self._drop((file, row.number, row_id, row.text), row.reason, row.detail)
            return
        values = tuple(row.values[name] for name in self.names)
        values = self._shared_values(values)
        split = row.split or split
        self.have_keys |= bool(row.key)
        place = self._place[split].setdefault(row_id, len(self.ids))
        if place < len(self.ids):
            self._repeated.append(((file, row.number, row_id, row.text[:PREVIEW_CHARACTERS]), place))
            if values != self.values[place]:
                self._conflicting.add(place)
            return
        self.ids.append(row_id)
        self.texts.append(row.text)
        self.values.append(values)
        self.groups.append(row.group)
        self.splits.append(split)
        self.numbers.append(row.number)
        self.file_numbers.append(file)

    def _shared_values(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        try:
            known = self._shared.get(values)
        except TypeError:  # of lists, such as entities
            return values
        if known is None and len(self._shared) < MOST_SHARED:
            self._shared[values] = values
        return values if known is None else known

    def dictionaries(self) -> Iterator[dict[str, Any]]:
        """The values of the columns of the kind, of each row that is kept."""
        return (dict(zip(self.names, values, strict=True)) for values in self.values)

    def drop_repeated(self) -> None:
        """To be called once, after the last row."""
        for row, place in self._repeated:
            self._drop(row, "conflicting_labels" if place in self._conflicting else "duplicate")
        self.drop(dict.fromkeys(sorted(self._conflicting), "conflicting_labels"))
        self._place.clear()
        self._repeated.clear()

    def drop(self, reasons: Mapping[int, str]) -> None:
        """Drops kept rows by their places."""
        for place, reason in reasons.items():
            row = self.file_numbers[place], self.numbers[place], self.ids[place], self.texts[place]
            self._drop(row, reason)
        if reasons:
            kept = [place for place in range(len(self.ids)) if place not in reasons]
            for column in ("texts", "ids", "values", "groups", "splits"):
                setattr(self, column, [getattr(self, column)[place] for place in kept])
            for column in ("numbers", "file_numbers"):
                setattr(self, column, array("q", (getattr(self, column)[place] for place in kept)))

    def _drop(self, row: tuple[int, int, str, str], reason: str, detail: str = "") -> None:
        file, number, row_id, text = row
        self.drops.append((file, number, row_id, reason, repaired(text[:PREVIEW_CHARACTERS])))
        self.reasons[reason] += 1
        if len(self.places[reason]) < SHOWN_ROWS:
            self.places[reason].append(self.where(file, number))
        details = self.details[reason]
        if detail and (detail in details or len(details) < MOST_DETAILS):
            details[detail] += 1

    def where(self, file: int, number: int) -> str:
        """For instance "row 12" or, with several files, "row 12 of test.csv"."""
        return f"row {number:,}" + (f" of {self.files[file]}" if len(self.files) > 1 else "")

    def dropped(self, stage: str) -> Iterator[dict[str, Any]]:
        """Rows of DROPPED in the order of the files."""
        for file, number, row_id, reason, text in sorted(self.drops):
            name = self.files[file]
            page = {"id": row_id, "page_id": f"{number}", "source": name, "url": f"{name}#{number}", "text": text}
            yield dropped_row(page, stage, reason)

    def summary(self) -> str:
        """For instance "Of 150 rows 130 can be used; 20 were dropped: 20 no_label (first in row 1)"."""
        told = [f"{n:,} {reason} ({self._details(reason)})" for reason, n in self.reasons.most_common()]
        dropped = f"; {self.reasons.total():,} were dropped: {', '.join(told)}" if told else ""
        return f"Of {self.n_read:,} rows {self.n_read - self.reasons.total():,} can be used{dropped}"

    def shown_details(self, reason: str) -> list[str]:
        """The most frequent values that were wrong."""
        found = self.details[reason]
        shown = [f"{detail} in {n:,} rows" if n > 1 else detail for detail, n in found.most_common(SHOWN_DETAILS)]
        more = [f"{len(found) - SHOWN_DETAILS:,} other values"] if len(found) > SHOWN_DETAILS else []
        return [*shown, *more]

    def _details(self, reason: str) -> str:
        return "; ".join([*self.shown_details(reason), f"first in {self.places[reason][0]}"])


def is_sampled(text: str, fraction: float) -> bool:
    """Whether a text belongs to this fraction of all texts, by its hash alone."""
    return fraction >= 1 or xxhash.xxh3_64_intdigest(text.encode()) < fraction * 2**64


def in_pieces(rows: Iterable[dict[str, Any]], n_rows: int) -> Iterator[list[dict[str, Any]]]:
    """`rows` in lists of at most `n_rows`."""
    piece: list[dict[str, Any]] = []
    for row in rows:
        piece.append(row)
        if len(piece) == n_rows:
            yield piece
            piece = []
    yield piece
