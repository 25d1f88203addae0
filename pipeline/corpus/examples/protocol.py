"""What a kind of task defines about its labelled rows (`Rows`), and the settings that the rows of every kind have.

A kind names the parts of a row, for instance a text and a label. Each part is a setting with a path: a column, or the
keys and list positions that lead to a value, joined by dots, or a template with such paths (paths.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import pyarrow as pa
from annotated_types import Ge, Gt, Le, Lt, MinLen

from pipeline.corpus.examples.labelled_file import FileForm, Record, labelled_records
from pipeline.corpus.examples.near_texts import SIMILARITY
from pipeline.corpus.examples.paths import fields_of
from pipeline.corpus.examples.rows import Row
from pipeline.store.settings import check_values

ROW_KEYS = ("group", "split", "columns", "delimiter", "records")  # settings that are keys of the table of a task
DIGESTS = ("sha256", "validation_sha256", "test_sha256")  # settings that follow from the data


@dataclass(frozen=True, kw_only=True, slots=True)
class ExamplesConfig:
    """How labelled rows become examples; a kind adds the paths of its parts.

    The path of the file is not part of it, only its content, as `sha256`.
    """

    sha256: Annotated[
        str | None,
        "Expected SHA-256 digest of the labelled file or package; without a value any content is accepted.",
    ] = None
    validation_sha256: Annotated[
        str | None, "Expected SHA-256 digest of validation_data; without a value any content is accepted."
    ] = None
    test_sha256: Annotated[
        str | None, "Expected SHA-256 digest of test_data; without a value any content is accepted."
    ] = None
    group: Annotated[
        str | None,
        MinLen(1),
        "Column whose value rows share that must stay in one split, such as an author or a document.",
    ] = None
    split: Annotated[
        str | None,
        MinLen(1),
        "Column that names the split of a row: train, validation (or valid, val, dev, development) or test. Without"
        " a value the splits are chosen here.",
    ] = None
    columns: Annotated[
        tuple[str, ...], "Names of the columns of a table that has no header. Empty = the first row is the header."
    ] = ()
    delimiter: Annotated[
        str | None,
        MinLen(1),
        "The character between the cells of a table. After a space or another character of white space except a tab"
        " the last column is the rest of the line. Without a value it is found out.",
    ] = None
    records: Annotated[
        str | None,
        MinLen(1),
        "Keys that lead to the list of rows in a .json file, joined by dots. Without a value it is found.",
    ] = None
    validation_fraction: Annotated[
        float, Gt(0), Lt(1), "Fraction of the examples in the validation split; near-duplicates are kept together."
    ] = 0.1
    test_fraction: Annotated[
        float, Gt(0), Lt(1), "Fraction of the examples in the test split; near-duplicates are kept together."
    ] = 0.1
    similarity: Annotated[
        float,
        Ge(0.5),
        Le(1),
        "Put two texts into the same split if their sets of words have at least this Jaccard index.",
    ] = SIMILARITY
    seed: Annotated[int, "Seed for assigning groups of examples to splits."] = 0

    def __post_init__(self) -> None:
        check_values(self)
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"validation_fraction={self.validation_fraction} and test_fraction={self.test_fraction} leave no"
                " training examples; their sum must be below 1"
            )
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            raise ValueError(f"delimiter is {self.delimiter!r}, expected one character, for instance ';' or ' '")
        if len({*self.columns}) < len(self.columns):
            raise ValueError(f"columns={list(self.columns)} has a name twice")


class Rows(Protocol):
    """What a kind of task defines about its labelled rows."""

    identity: str  # distinguishes its outputs from those of other kinds in the fingerprint
    parts: tuple[str, ...]  # settings with the path of a part of a row; a file without one of the parts is refused
    optional: tuple[str, ...] = ()  # those of `parts` that a file may lack
    columns: tuple[pa.Field, ...]  # of an example, besides those of every kind

    @property
    def rows_identity(self) -> str:
        """`identity` of the kind whose examples these are; a kind with the rows of another one gives that of the
        other, so that both share one output."""
        return self.identity

    def records(
        self, name: str, content: bytes, cfg: ExamplesConfig, stray_quotes: list[int]
    ) -> Iterator[Record | str]:
        """The records of a file, or the text of one that cannot be read; labelled_file.py describes the arguments.

        A kind with formats of its own overrides this and leaves all other files to it.
        """
        form = FileForm(columns=cfg.columns, delimiter=cfg.delimiter, records=cfg.records)
        return labelled_records(name, content, paths_in(self, cfg), stray_quotes, form)

    def row(self, parts: Mapping[str, Any], cfg: Any) -> Row:
        """An example made from the values at the paths (None if there is no value), or a drop reason."""
        ...

    def strata(self, values: Mapping[str, Any]) -> Sequence[str]:
        """What every split should have the same share of, from the values of an example: its labels."""
        del values
        return ()

    def check_examples(self, examples: pa.Table, cfg: Any, name: str) -> None:
        """Raises ValueError if nothing can be learned from all `examples` of the file `name` together."""
        ...

    def describe_examples(self, examples: pa.Table) -> str:
        """The examples for people, as Markdown; "" if there is nothing to say."""
        del examples
        return ""

    def example_warnings(self, examples: pa.Table) -> list[str]:
        """What may be wrong with `examples`, of which this needs the columns of the kind and the split."""
        del examples
        return []


def part_paths(kind: Rows, cfg: ExamplesConfig) -> dict[str, str]:
    """The path or template of each part that has one; `group` and `split` are parts of every kind."""
    paths = {part: getattr(cfg, part) for part in (*kind.parts, "group", "split")}
    return {part: path for part, path in paths.items() if path is not None}


def paths_in(kind: Rows, cfg: ExamplesConfig) -> list[str]:
    """All paths that the parts of a row need, without the templates around them."""
    return [field for path in part_paths(kind, cfg).values() for field in fields_of(path)]
