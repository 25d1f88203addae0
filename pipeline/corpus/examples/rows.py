"""The rows of a labelled file on their way to examples: kept, or dropped with a reason.

In: a `Row` for each row of the file. Out: the rows of examples.parquet without their split, the dropped rows, and a
summary for people. Of equal texts the first is kept; all are dropped if their values differ, because the right one is
unknown. The rows are stored as columns, because a million of them as objects would take gigabytes.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from model.data.examples import repaired
from pipeline.corpus.examples.near_texts import normalised
from pipeline.store.records import PREVIEW_CHARACTERS, dropped_row
from pipeline.store.shards import text_digest

SHOWN_DETAILS = 3  # per drop reason, in a summary
MOST_DETAILS = 1000  # per drop reason, that are told apart
MOST_SHARED = 10_000  # values that equal rows share in memory


@dataclass(slots=True)
class Row:
    """A row of the labelled file as an example. `reason` is the drop reason, `detail` what is wrong with this row."""

    text: str
    values: dict[str, Any] = field(default_factory=dict)  # values of the columns of the kind
    reason: str | None = None
    detail: str = ""
    number: int = 0  # from 1, without the header

    @property
    def id(self) -> str:
        return text_digest(normalised(self.text))


class ExampleRows:
    """All rows of a file; `names` are the columns of the kind of task."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.n_read = 0
        self.texts: list[str] = []  # this and the next three: of the rows that are kept
        self.ids: list[str] = []
        self.numbers = array("q")
        self.values: list[tuple[Any, ...]] = []
        self.drops: list[tuple[int, str, str, str]] = []  # number, id, reason, beginning of the text
        self.reasons: Counter[str] = Counter()
        self.first: dict[str, int] = {}  # reason -> number of its first row
        self.details: dict[str, Counter[str]] = {}
        self._shared: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        self._place: dict[str, int] = {}  # id -> where its text first is
        self._repeated: list[tuple[Row, int]] = []
        self._conflicting: set[int] = set()  # places of texts with different values

    def add(self, row: Row) -> None:
        self.n_read += 1
        if row.reason is not None:
            self._drop(row.number, row.id, row.text, row.reason, row.detail)
            return
        values = tuple(row.values[name] for name in self.names)
        if len(self._shared) < MOST_SHARED:
            values = self._shared.setdefault(values, values)
        row_id = row.id
        place = self._place.setdefault(row_id, len(self.ids))
        if place < len(self.ids):
            self._repeated.append((row, place))
            if values != self.values[place]:
                self._conflicting.add(place)
            return
        self.ids.append(row_id)
        self.texts.append(row.text)
        self.numbers.append(row.number)
        self.values.append(values)

    def drop_repeated(self) -> None:
        """To be called once, after the last row."""
        for row, place in self._repeated:
            reason = "conflicting_labels" if place in self._conflicting else "duplicate"
            self._drop(row.number, self.ids[place], row.text, reason)
        for place in self._conflicting:
            self._drop(self.numbers[place], self.ids[place], self.texts[place], "conflicting_labels")
        kept = [place for place in range(len(self.ids)) if place not in self._conflicting]
        for column in ("texts", "ids", "values"):
            setattr(self, column, [getattr(self, column)[place] for place in kept])
        self._place.clear()
        self._repeated.clear()

    def _drop(self, number: int, row_id: str, text: str, reason: str, detail: str = "") -> None:
        self.drops.append((number, row_id, reason, repaired(text[:PREVIEW_CHARACTERS])))
        self.reasons[reason] += 1
        self.first[reason] = min(number, self.first.get(reason, number))
        details = self.details.setdefault(reason, Counter())
        if detail and (detail in details or len(details) < MOST_DETAILS):
            details[detail] += 1

    def dropped(self, file: str, stage: str) -> Iterator[dict[str, Any]]:
        """Rows of DROPPED in the order of the file."""
        for number, row_id, reason, text in sorted(self.drops):
            page = {"id": row_id, "page_id": f"{number}", "source": file, "url": f"{file}#{number}", "text": text}
            yield dropped_row(page, stage, reason)

    def summary(self) -> str:
        """For instance "Of 150 rows 130 can be used; 20 were dropped: 20 no_label (first in row 1)"."""
        told = [f"{n:,} {reason} ({self._details(reason)})" for reason, n in self.reasons.most_common()]
        dropped = f"; {self.reasons.total():,} were dropped: {', '.join(told)}" if told else ""
        return f"Of {self.n_read:,} rows {self.n_read - self.reasons.total():,} can be used{dropped}"

    def _details(self, reason: str) -> str:
        found = self.details[reason]
        shown = [f"{detail} in {n:,} rows" if n > 1 else detail for detail, n in found.most_common(SHOWN_DETAILS)]
        more = [f"{len(found) - SHOWN_DETAILS:,} other values"] if len(found) > SHOWN_DETAILS else []
        return "; ".join([*shown, *more, f"first in row {self.first[reason]:,}"])


def in_pieces(rows: Iterable[dict[str, Any]], n_rows: int) -> Iterator[list[dict[str, Any]]]:
    """`rows` in lists of at most `n_rows`."""
    piece: list[dict[str, Any]] = []
    for row in rows:
        piece.append(row)
        if len(piece) == n_rows:
            yield piece
            piece = []
    yield piece
