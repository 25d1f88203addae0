"""What `gristmill doctor` finds: a row of its table, and what it was asked to do."""

from dataclasses import dataclass
from typing import NamedTuple

from pipeline.store.layout import Layout

OK, MENDED, WARNING, BAD = "ok", "mended", "warning", "bad"


class Finding(NamedTuple):
    """A row of the table; `state` is one of ok, mended, warning, bad."""

    check: str
    state: str
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Visit:
    """What the doctor checks, and whether it may change anything."""

    layout: Layout
    mend: bool
    ports: tuple[int, int] = (3000, 5000)  # of Dagster and of MLflow
    verify: bool = False  # every byte of the current outputs, not only a sample of what was touched
    remove_damaged: bool = False  # outputs
    closed_hosts: tuple[str, ...] = ()  # machines that are gone
