"""Reads the records of csv files, including files with unterminated quotes."""

import csv
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence

DELIMITERS = (",", "\t", ";", "|")
SNIFFED_RECORDS = 200
SNIFFED_CHARACTERS = 100_000
MAX_RECORD_CHARACTERS = 50_000_000
# After so many records, or so much that is read again, quotes in the rest of the file are ordinary characters, so
# that reading stays linear: a quote that never closes takes the whole rest of the file with it.
MAX_TAKEN_BACK = 1000
MAX_READ_AGAIN = 200_000_000  # characters, of which a line counts LINE_COST more
LINE_COST = 50
ROW_END = re.compile("\r\n|\r")


def sniffed_delimiter(sample: str) -> str | None:
    """The delimiter that splits most records into the same number of cells, at least two; None if there is none."""
    lines = sample.split("\n")
    lines = lines[:-1] if len(lines) > 1 and len(sample) >= SNIFFED_CHARACTERS else lines
    best, best_share = None, 0.5
    for delimiter in DELIMITERS:
        widths = Counter(
            len(cells)
            for cells, _ in zip(records(lines, delimiter), range(SNIFFED_RECORDS), strict=False)
            if any(cells)
        )
        width, count = max(widths.items(), key=lambda item: (item[1], item[0]), default=(0, 0))
        if width > 1 and count / widths.total() > best_share:
            best, best_share = delimiter, count / widths.total()
    return best


def literal_cells(line: str, delimiter: str) -> list[str]:
    """The cells of a line in which quotation marks are ordinary characters; none of an empty line."""
    bare = line.rstrip("\r\n")
    return bare.split(delimiter) if bare else []


def records(
    lines: Iterable[str],
    delimiter: str,
    *,
    row_test: Callable[[Sequence[str]], bool] | None = None,
    stray_quotes: list[int] | None = None,
) -> Iterator[list[str]]:
    """The cells of every record; empty lines are not records. Lines may have line ends or not.

    A record of several lines is read again line by line if each of its lines passes `row_test`. `stray_quotes`
    gets the number of every line whose quotation marks were read as ordinary characters.
    """
    csv.field_size_limit(MAX_RECORD_CHARACTERS)
    source = _Lines(lines)
    reader, quoting = csv.reader(source, delimiter=delimiter, strict=True), csv.QUOTE_MINIMAL
    n_taken_back, read_again, width = 0, 0, 0
    while True:
        source.used.clear()
        source.used_characters = 0
        try:
            record = next(reader)
            is_wrong = (
                len(source.used) > 1
                and width > 1
                and (len(record) != width or bool(row_test and _are_rows(source.used, delimiter, row_test)))
            )
        except StopIteration:
            return
        except (csv.Error, _TooLong):
            record, is_wrong = [], True
        if is_wrong:
            n_taken_back += len(source.used) > 1
            read_again += source.used_characters + LINE_COST * len(source.used)
            first = source.take_back()
            if stray_quotes is not None:
                stray_quotes.append(source.n_read)
            record = next(csv.reader([first], delimiter=delimiter, quoting=csv.QUOTE_NONE), [])
            if n_taken_back > MAX_TAKEN_BACK or read_again > MAX_READ_AGAIN:
                quoting = csv.QUOTE_NONE
            reader = csv.reader(source, delimiter=delimiter, quoting=quoting, strict=True)
        width = width or len(record)
        if record:
            yield record


def _are_rows(lines: Sequence[str], delimiter: str, row_test: Callable[[Sequence[str]], bool]) -> bool:
    """Whether each of the lines is a row, as a record may swallow them from one stray quotation mark to the next."""
    return all(row_test(literal_cells(line, delimiter)) for line in lines)


class _TooLong(Exception):
    """A record exceeds MAX_RECORD_CHARACTERS."""


class _Lines:
    """Lines for csv.reader that can be pushed back."""

    def __init__(self, lines: Iterable[str]):
        self.lines = iter(lines)
        self.given_back: deque[str] = deque()
        self.used: list[str] = []  # since the last record
        self.used_characters = 0
        self.n_read = 0  # lines, without those that were given back

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self.given_back.popleft() if self.given_back else next(self.lines)
        line = ROW_END.sub("\n", line.replace("\0", ""))
        line = line.rstrip("\n").replace("\n", " ") + "\n"  # csv.reader rejects a line end inside a line
        self.n_read += 1
        self.used.append(line)
        self.used_characters += len(line)
        if self.used_characters > MAX_RECORD_CHARACTERS:
            raise _TooLong
        return line

    def take_back(self) -> str:
        """The first of the lines used for the last record; the others are read again."""
        self.given_back.extendleft(reversed(self.used[1:]))
        self.n_read -= len(self.used) - 1
        return self.used[0]
