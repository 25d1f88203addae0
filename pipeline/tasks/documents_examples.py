"""The questions of a task that answers from documents: read from a file, or made from the documents.

In: labelled files with questions, right answers and the document that answers each; and the passages. Out: examples
with the id of the document, none for a question that the documents do not answer, and whether and how a question was
made (documents_made.py). A document is named by its address, or by the end of it. Rows with a document that is not
there, or with an end that several have, are dropped and counted.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, ClassVar

import pyarrow as pa
from annotated_types import Ge, Gt, Le, Lt

from model.data.examples import valid
from pipeline.corpus.collect.source import Source
from pipeline.corpus.deny_list import deny_list, read_keys
from pipeline.corpus.examples.data_files import Data, LabelledFile, ReadFile, digest_of, labelled_files, read_data
from pipeline.corpus.examples.labelled_file import Record
from pipeline.corpus.examples.labelled_rows import check_beginning
from pipeline.corpus.examples.protocol import ExamplesConfig, Rows
from pipeline.corpus.examples.rows import Row, is_sampled
from pipeline.corpus.examples.stage import examples_stage, make_examples
from pipeline.corpus.report.card_markdown import table
from pipeline.store.layout import Layout
from pipeline.store.records import Checkpoint, Columns, DenyList
from pipeline.store.settings import Natural, Text
from pipeline.store.store import Built, Outcome, Store, Work
from pipeline.tasks.documents_made import CLOZE, MODEL, cloze_questions, questions_by_model
from pipeline.training.embed import documents_in, read_passages

MADE_FILE = "made from the documents"
DIGESTS = {"data": "sha256", "validation_data": "validation_sha256", "test_data": "test_sha256"}  # key -> setting
SPLITS = {"data": "train", "validation_data": "validation", "test_data": "test"}
MADE_WITHOUT_FILE = 100  # cloze questions
SHOWN = 80  # characters of an address in a message


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionsConfig(ExamplesConfig):
    """Settings for reading questions, and for making some."""

    made: ClassVar[str] = "\x00made"  # path of what a made question is, which no column of a file is called

    question: Annotated[Text, "Column that holds the question, or the keys that lead to it, joined by dots."] = (
        "question"
    )
    answers: Annotated[
        Text,
        "Column that holds the right answer, or a list of right answers. A row may lack it: then only what is found"
        " for its question is judged.",
    ] = "answers"
    document: Annotated[
        Text,
        "Column that holds the address of the document that answers the question, or the end of that address. A row"
        " without a document is a question that the documents do not answer.",
    ] = "document"
    cloze: Annotated[
        int | None,
        Ge(0),
        "Number of questions to make of sentences with a gap. They repeat the words of their passages, so that they"
        " are easier than those of people; the evaluation reports them apart. Without a value"
        f" {MADE_WITHOUT_FILE} if the task has no file of questions, else none.",
    ] = None
    by_model: Annotated[
        Natural,
        "Number of questions that the base writes about passages. They have no right answer, so that they measure"
        " only what is found and refused; they are reported apart, too.",
    ] = 0
    sample: Annotated[
        float,
        Gt(0),
        Le(1),
        "Fraction of the questions of the files that are used, chosen by their hash; the others are dropped and"
        " counted.",
    ] = 1.0
    validation_fraction: Annotated[
        float, Gt(0), Lt(1), "Fraction of the questions in the validation split, which the threshold is chosen on."
    ] = 0.45
    test_fraction: Annotated[
        float, Gt(0), Lt(1), "Fraction of the questions in the test split. Nothing is trained on the rest."
    ] = 0.45

    def n_cloze(self, has_file: bool) -> int:
        return self.cloze if self.cloze is not None else 0 if has_file else MADE_WITHOUT_FILE


class Addresses:
    """Finds documents by their address, or by the end of it."""

    def __init__(self, documents: Sequence[Mapping[str, str]]) -> None:
        self.by_url = {one["url"]: one["id"] for one in documents}
        self.by_end: defaultdict[str, set[str]] = defaultdict(set)
        for url in self.by_url:
            self.by_end[_last(url)].add(url)
        self.by_page = {one["page_id"]: one["id"] for one in documents}
        self.url_of = {one["id"]: one["url"] for one in reversed(documents)}

    def find(self, address: str) -> tuple[str | None, str]:
        """The id of a document, or None and the reason of the drop."""
        if address in self.by_url:
            return self.by_url[address], ""
        if (name := self.by_page.get(address, address)) in self.url_of:
            return name, ""
        for end in dict.fromkeys((address, _encoded(address))):
            urls = [url for url in self.by_end[_last(end)] if url.endswith(end) and _is_whole(url, end)]
            if len({self.by_url[url] for url in urls}) == 1:
                return self.by_url[urls[0]], ""
            if urls:
                return None, "ambiguous_document"
        return None, "unknown_document"


def _last(url: str) -> str:
    return url.rstrip("/").rpartition("/")[2]


def _is_whole(url: str, end: str) -> bool:
    """Whether the end begins with a whole name."""
    before = url[: len(url) - len(end)]
    return end.startswith("/") or not before or before[-1] in "/!#"


def _encoded(address: str) -> str:
    from pipeline.corpus.collect.members import address_of

    return address_of(address)


class QuestionRows(Rows):
    """Rows with a question. `addresses` finds their documents; None: they are not looked for."""

    identity = "documents"
    parts = ("question", "answers", "document", "made")
    optional = ("answers", "document", "made")
    columns = (
        pa.field("question", pa.string(), nullable=False),
        pa.field("answers", pa.list_(pa.string()), nullable=False),  # right ones; may be empty
        pa.field("document", pa.string()),  # id; null = the documents do not answer it
        pa.field("url", pa.string()),  # its address
        pa.field("made", pa.string(), nullable=False),  # "" = by people, else how
    )

    def __init__(self, addresses: Addresses | None = None) -> None:
        self.addresses = addresses

    def records(
        self, name: str, content: bytes, cfg: ExamplesConfig, stray_quotes: list[int]
    ) -> Iterator[Record | str]:
        if name != MADE_FILE:
            yield from super().records(name, content, cfg, stray_quotes)
            return
        for made in json.loads(content):
            yield {getattr(cfg, part): value for part, value in made.items()}

    def row(self, parts: Mapping[str, Any], cfg: QuestionsConfig) -> Row:
        question, document, made = parts["question"], parts["document"], parts["made"] or ""
        row = Row(" ".join(valid(question).split()) if isinstance(question, str) else "")
        if not row.text:
            row.reason = "no_question" if question is None or isinstance(question, str) else "not_text_question"
            return row
        answers = _answers(parts["answers"])
        if answers is None:
            row.reason, row.detail = "not_text_answers", repr(parts["answers"])[:SHOWN]
        if document is not None and (not isinstance(document, str) or not document.strip()):
            document = None if document == "" or str(document).strip() == "" else str(document)
        if document is not None and self.addresses is not None and row.reason is None:
            document, reason = self.addresses.find(document.strip())
            if document is None:
                row.reason, row.detail = reason, str(parts["document"])[:SHOWN]
        if row.reason is None and not made and not is_sampled(row.text, cfg.sample):
            row.reason = "not_sampled"
        url = self.addresses.url_of[document] if self.addresses and document and not row.reason else document
        row.values = {"question": row.text, "answers": answers or [], "document": document, "url": url, "made": made}
        return row

    def strata(self, values: Mapping[str, Any]) -> Sequence[str]:
        return (values["made"] or ("unanswerable" if values["document"] is None else "answerable"),)

    def check_examples(self, examples: pa.Table, cfg: Any, name: str) -> None:
        del cfg
        splits = examples["split"].to_pylist()
        found = [document is not None for document in examples["document"].to_pylist()]
        for split in ("validation", "test"):
            if not any(is_found and one == split for one, is_found in zip(splits, found, strict=True)):
                raise ValueError(
                    f"{name}: no usable question of the split {split} is answered by a document; the threshold is"
                    " chosen on validation questions, and the model is judged on test questions. Add questions with"
                    " their documents, or let some be made: cloze = 100 in the table examples of the task"
                )

    def describe_examples(self, examples: pa.Table) -> str:
        rows = []
        for split in dict.fromkeys(examples["split"].to_pylist()):
            own = [row for row in examples.select(["split", *NAMES]).to_pylist() if row["split"] == split]
            asked = [row for row in own if not row["made"]]
            numbers = (
                len(asked),
                sum(row["document"] is None for row in asked),
                sum(bool(row["answers"]) for row in asked),
                sum(row["made"] == CLOZE for row in own),
                sum(row["made"] == MODEL for row in own),
            )
            rows.append([split, *(f"{number:,}" for number in numbers)])
        header = [
            "split",
            "from files",
            "of them unanswerable",
            "with an answer",
            "made as cloze",
            "made by the base",
        ]
        return "## Questions\n\n" + table(header, rows)


NAMES = [column.name for column in QuestionRows.columns]


def _answers(given: Any) -> list[str] | None:
    """Right answers as texts; None if there are others."""
    if given is None:
        return []
    if isinstance(given, Mapping):  # SQuAD's form in a table
        given = given.get("text", [])
    values = given if isinstance(given, list) else [given]
    texts = [one.get("text") if isinstance(one, Mapping) else one for one in values]
    if not all(isinstance(one, str | int | float) and not isinstance(one, bool) for one in texts):
        return None
    return list(dict.fromkeys(text for one in texts if (text := valid(str(one)).strip())))


def build_questions(
    store: Store,
    kind: Any,
    data: Mapping[str, Data],
    cfg: QuestionsConfig,
    layout: Layout,
    *,
    passages: Columns,
    base: Checkpoint,
) -> Built:
    """The examples of a task. `data`: key of its table -> labelled file.

    Raises ValueError if a file is missing or damaged, or its sha256 differs from `cfg`.
    """
    files, digests = [], {}
    for key, one in data.items():
        files.append((read_data(one), SPLITS[key]))
        setting = DIGESTS[key]
        digests[setting] = digest_of(files[-1][0], layout.cache)
        if getattr(cfg, setting) not in (None, digests[setting]):
            raise ValueError(
                f"the key {key} has sha256 {digests[setting]}, but the setting {setting} is {getattr(cfg, setting)}"
            )
        if isinstance(one, LabelledFile):
            check_beginning(kind, one.path, cfg)
    cfg = replace(cfg, cloze=cfg.n_cloze(bool(data)), **digests)
    stage = examples_stage(kind, partial(_make, tuple(files), layout))
    writer = (base,) if cfg.by_model else ()
    return store.build(stage, cfg, *deny_list(store, layout.denied), passages, *writer)


def _make(
    files: tuple[tuple[Source | ReadFile, str], ...],
    layout: Layout,
    cfg: QuestionsConfig,
    inputs: tuple[Any, ...],
    work: Work,
) -> Outcome:
    (passages,) = [one for one in inputs if isinstance(one, Columns)]
    found = read_passages(passages.directory)[0]

    def contents() -> Iterator[tuple[str, bytes, str]]:
        for one, split in files:
            yield from ((*named, split) for named in labelled_files(one, layout.cache, _shown(work, "bytes")))
        made = cloze_questions(found, cfg.cloze or 0, cfg.seed)
        for base in (one for one in inputs if isinstance(one, Checkpoint)):
            made += questions_by_model(base.directory, found, cfg.by_model, cfg.seed, _shown(work, "questions"))
        if made:
            yield MADE_FILE, json.dumps(made).encode(), "train"

    denials = read_keys([one for one in inputs if isinstance(one, DenyList)])
    return make_examples(QuestionRows(Addresses(documents_in(passages.directory))), cfg, contents(), work, denials)


def _shown(work: Work, unit: str) -> Callable[[int, int | None], None]:
    return lambda done, total: work.progress(done, total, unit)
