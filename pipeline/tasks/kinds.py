"""The table of the kinds of task: the module and the command of each.

A kind is one file with a constant KIND (see tasks/kind.py), and one line here.
"""

from typing import NamedTuple


class Entry(NamedTuple):
    module: str
    command: str  # the command of `gristmill` that applies a model of this kind


KINDS: dict[str, Entry] = {
    "classification": Entry("pipeline.tasks.classification", "classify"),
    "prompting": Entry("pipeline.tasks.prompting", "classify"),
    "question_answering": Entry("pipeline.tasks.question_answering", "answer"),
    "tagging": Entry("pipeline.tasks.tagging", "tag"),
    "multi_label_classification": Entry("pipeline.tasks.multi_label_classification", "classify"),
    "instruction": Entry("pipeline.tasks.instruction", "answer"),
    "preference": Entry("pipeline.tasks.preference", "answer"),
    "documents": Entry("pipeline.tasks.documents", "answer"),
    "control": Entry("pipeline.tasks.control", "answer"),
}
