"""What a user should know about the labels of a task before a model is trained on them.

In: the label and the split of every example. Out: a table of the labels with their examples in each split, as
Markdown, and warnings: labels that are probably the same one in another spelling, labels with few examples or none in
a split, and labels that look like a missing value. Nothing is merged here: the setting `rename` does that.
"""

import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from pipeline.corpus.report.card_markdown import plain, table
from pipeline.store.records import SPLITS

FEW_EXAMPLES = 10  # of a label, in all splits together
SHORTEST_WORD = 5  # letters of a word in which one letter may be a slip: shorter words of a language are that alike
SHOWN_LABELS = 100  # in the table, those of the most examples
SHOWN_IN_WARNING = 10
LOOK_MISSING = {"none", "n/a", "na", "?", "-", "--"}  # in lower case
SEPARATORS = re.compile(r"(?<=\w)[\s_-]+(?=\w)")
Counts = Mapping[str, Mapping[str, int]]  # label -> split -> examples


def label_counts(examples: pa.Table) -> dict[str, Counter[str]]:
    """The examples of each label in each split; the labels of the most examples first.

    The column `label` has one label per example, the column `labels` a list of any length.
    """
    if "labels" in examples.column_names:
        lists = examples["labels"].combine_chunks()
        parents = examples["split"].take(lists.value_parent_indices())
        examples = pa.table({"label": lists.flatten(), "split": parents})
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for group in examples.group_by(["label", "split"]).aggregate([([], "count_all")]).to_pylist():
        counts[group["label"]][group["split"]] = group["count_all"]
    return dict(sorted(counts.items(), key=lambda item: (-item[1].total(), item[0])))


def label_table(counts: Counts) -> str:
    """The labels with their examples in each split, as Markdown."""
    rows = [[plain(label), *(f"{of[split]:,}" for split in SPLITS)] for label, of in counts.items()][:SHOWN_LABELS]
    more = f"\nand {len(counts) - SHOWN_LABELS:,} labels of fewer examples\n" if len(counts) > SHOWN_LABELS else ""
    return f"## Labels\n\n{table(['label', *SPLITS], rows)}{more}"


def label_warnings(counts: Counts) -> Iterator[str]:
    totals = {label: sum(of.values()) for label, of in counts.items()}
    for group in spellings(totals):
        best, *others = group
        renamed = ", ".join(f"{_quoted(other)} = {_quoted(best)}" for other in others)
        yield (
            f"the labels {_listed(group, totals)} may be one label in several spellings; if so, merge them in"
            f" tasks.toml: rename = {{ {renamed} }}"
        )
    if few := [label for label, total in totals.items() if total < FEW_EXAMPLES]:
        yield f"labels with fewer than {FEW_EXAMPLES} examples: {_listed(few, totals)}; a model hardly learns them"
    for split in SPLITS:
        if absent := [label for label, of in counts.items() if not of[split]]:
            yield f"labels without an example in {split}: {_listed(absent, totals)}"
    if odd := [label for label in totals if label.casefold() in LOOK_MISSING]:
        yield (
            f"labels that look like a missing value: {_listed(odd, totals)}; to drop their rows, list all other"
            " labels in tasks.toml: labels = [...]"
        )


def spellings(totals: Mapping[str, int]) -> list[list[str]]:
    """Groups of labels that differ in case, spaces, hyphens, Unicode form, invisible characters or one letter; the
    most frequent first."""
    forms = {label: _form(label) for label in totals}
    root = {label: label for label in totals}

    def find(label: str) -> str:
        while root[label] != label:
            label = root[label]
        return label

    by_key: defaultdict[str, list[str]] = defaultdict(list)  # a form without one of its letters, or as it is
    for label, form in forms.items():
        for key in {form, *(form[:i] + form[i + 1 :] for i in range(1, len(form)))}:
            by_key[key].append(label)
    for alike in by_key.values():
        for i, one in enumerate(alike):
            for other in alike[i + 1 :]:
                if forms[one] == forms[other] or _differ_by_a_slip(forms[one], forms[other]):
                    root[find(other)] = find(one)
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for label in sorted(totals, key=lambda label: (-totals[label], label)):
        groups[find(label)].append(label)
    return [group for group in groups.values() if len(group) > 1]


def _form(label: str) -> str:
    visible = "".join(sign for sign in label if unicodedata.category(sign) != "Cf")  # no zero-width spaces
    return SEPARATORS.sub(" ", unicodedata.normalize("NFKC", visible).casefold()).strip()


def _differ_by_a_slip(one: str, other: str) -> bool:
    """Whether one letter was added, left out or mistaken, or two neighbours were swapped, inside a long word."""
    shorter, longer = sorted((one, other), key=len)
    start = next((i for i, (a, b) in enumerate(zip(shorter, longer, strict=False)) if a != b), len(shorter))
    here, there = shorter[start:], longer[start:]
    is_added = len(there) == len(here) + 1 and there[1:] == here
    is_mistaken = len(here) == len(there) and here[1:] == there[1:]
    is_swapped = len(here) == len(there) > 1 and here[:2] == there[1::-1] and here[2:] == there[2:]
    changed = there[0] if is_added else here[0] + there[0] if is_mistaken else here[:2] if is_swapped else ""
    first = max((longer[:start].rfind(sign) for sign in " _-"), default=-1) + 1
    word = longer[first:].partition(" ")[0]
    return changed.isalpha() and start > first and len(word) >= SHORTEST_WORD and word.isalpha()


def _quoted(label: str) -> str:
    """As a text of TOML; a label with signs that a terminal would act on in ASCII alone."""
    return json.dumps(label, ensure_ascii=not label.isprintable())


def _listed(labels: Sequence[str], totals: Mapping[str, int]) -> str:
    shown = [f"{_quoted(label)} ({totals[label]:,})" for label in labels[:SHOWN_IN_WARNING]]
    return ", ".join(shown) + (
        f" and {len(labels) - SHOWN_IN_WARNING:,} more" if len(labels) > SHOWN_IN_WARNING else ""
    )
