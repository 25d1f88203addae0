"""The table of the kinds of task: where each is implemented, and its verb on the command line.

A kind is one file with a constant KIND (tasks/kind.py says what it has to be), and one line here.
"""

from typing import NamedTuple


class Entry(NamedTuple):
    module: str
    command: str  # of `gristmill`, to ask a model of this kind


KINDS: dict[str, Entry] = {
    "classification": Entry("pipeline.tasks.classification", "classify"),
}
