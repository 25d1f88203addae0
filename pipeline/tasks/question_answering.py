"""The kind of task `question_answering`: finds the answer to a question in a text, as characters of that text.

In: rows with a question, a text and the answers that are right, none if the text has none. Out: the most likely
answer with its place, or "no answer" if the data have such questions. A text that is longer than the model reads is
read in windows that overlap, with the question in each. The threshold of "no answer" is chosen on validation data.
Baselines are the sentence that matches the question best, the first sentence, and the same network without
pretraining.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
from annotated_types import Gt, Le

from model.data.augment import augmented_texts
from model.data.examples import EncodedExamples, valid
from pipeline.corpus.examples.answer_forms import answers_in, texts_of
from pipeline.corpus.examples.protocol import ExamplesConfig
from pipeline.corpus.examples.rows import Row, is_sampled
from pipeline.corpus.examples.squad import is_squad, squad_records
from pipeline.corpus.examples.stage import read_examples, refuse_empty_splits, with_column
from pipeline.corpus.report.card_markdown import table
from pipeline.evaluation.answer_metrics import answer_scores, counted_answers
from pipeline.evaluation.best_sentence import best_sentences, first_sentences
from pipeline.evaluation.comparisons import compared_results
from pipeline.evaluation.mistakes import Mistake, quarters
from pipeline.evaluation.results import Result
from pipeline.evaluation.task import Answer, Judged, TaskEvaluationConfig
from pipeline.serving.predictor import Predictor
from pipeline.store.records import Shards
from pipeline.store.settings import Text
from pipeline.tasks.kind import Kind
from pipeline.training.finetune import FinetuneConfig

if TYPE_CHECKING:
    from torch import nn

NO_ANSWER = "(no answer)"  # in a list of mistakes
SHOWN_AROUND = 300  # characters on either side of an answer, in a list of mistakes
MOST_WITHOUT = 100_000  # questions whose answers are looked at to find the longest ones
LENGTH_QUANTILE = 0.99  # of the training answers that are no longer than the longest one that the model gives
FIRST_WORD = re.compile(r"\b(who|whom|whose|what|when|where|which|why|how many|how much|how)\b", re.IGNORECASE)
ANSWERS = pa.list_(pa.struct([pa.field("start", pa.int64(), nullable=False), pa.field("text", pa.string())]))


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionExamplesConfig(ExamplesConfig):
    """Settings for reading questions. The defaults are the names in SQuAD's files."""

    question: Annotated[Text, "Column that holds the question, or the keys that lead to it, joined by dots."] = (
        "question"
    )
    text: Annotated[Text, "Column that holds the text in which the answer is, or the keys that lead to it."] = (
        "context"
    )
    answers: Annotated[
        Text, "Column that holds the answers that are right: texts, or objects with a text and its first character."
    ] = "answers"
    answer_start: Annotated[
        Text,
        "Column that holds the first character of the answer in the text, counted from 0, where the answers are"
        " texts. Without such a column the answer must be in the text exactly once.",
    ] = "answer_start"
    title: Annotated[
        Text,
        "Column that holds what the text is a part of, such as the title of an article, if there is one: its"
        " questions stay in one split, unless the key `group` names another column.",
    ] = "title"
    sample: Annotated[
        float,
        Gt(0),
        Le(1),
        "Fraction of the texts that are used, chosen by their hash, each with all of its questions; the others are"
        " dropped and counted. Less than 1 to try a task on a part of large data.",
    ] = 1.0


class QuestionAnswerer(Predictor):
    """The most likely answer to each question with its place in the text: answer == text[start:end].

    "No answer" is an empty text with start and end -1. The probability is that of the answer, or of none.
    """

    inputs: ClassVar = {"question": "string", "text": "string"}
    outputs: ClassVar = {"answer": "string", "start": "long", "end": "long", "probability": "double"}
    AT_ONCE: ClassVar = 128  # questions: bounds memory

    def load_network(self, directory: Path) -> Any:
        from model.network.registry import load_model

        return load_model(directory, "cpu", "span_classifier")[0]

    def examine(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        answers: list[dict[str, Any]] = []
        for first in range(0, len(rows), self.AT_ONCE):
            answers += self._answered(rows[first : first + self.AT_ONCE])
        return answers

    def n_cut(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """How many questions are cut; texts never are."""
        parts = (rows[first : first + self.AT_ONCE] for first in range(0, len(rows), self.AT_ONCE))
        return sum(self._questions(part).n_cut for part in parts)

    def _answered(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        from model.generation.answer_spans import found_answers

        encoded = self._questions(rows)
        found = found_answers(self.model, encoded, self.description["most_answer_tokens"])
        answers = []
        for place, is_answer in enumerate(found.has_answer(self.description["no_answer_threshold"])):
            start, end = int(found.starts_Q[place]), int(found.ends_Q[place])
            if is_answer and str(rows[place]["question"]).strip():
                text, probability = encoded.texts[place][start:end], float(found.probabilities_Q[place])
                answers.append({"answer": text, "start": start, "end": end, "probability": probability})
            else:
                probability = float(found.null_probabilities_Q[place])
                answers.append({"answer": "", "start": -1, "end": -1, "probability": probability})
        return answers

    def _questions(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        from model.data.examples import valid
        from model.data.questions import encoded_questions

        questions, texts = ([valid(str(row[name])) for row in rows] for name in ("question", "text"))
        ids = [str(place) for place in range(len(rows))]
        return encoded_questions(ids, questions, texts, self.tokenizer, max_tokens=self.description["max_tokens"])


class QuestionAnswering(Kind):
    name = identity = "question_answering"
    evaluation_version, libraries = 1, ("scikit-learn", "scipy")
    predictor = QuestionAnswerer
    examples, finetune, evaluation = QuestionExamplesConfig, FinetuneConfig, TaskEvaluationConfig
    summary = "A pretrained model with a head for the first and the last token of an answer, trained on the examples."
    example = """
[questions]
kind = "question_answering"
base = "minilm"
data = { path = "questions.json" }  # in SQuAD's form, or rows of a .jsonl, .parquet or .csv file
question = "question"               # the names of SQuAD's files; with these the next keys can be left out
text = "context"
answers = "answers"                 # texts, or objects with text and answer_start; empty = it has no answer
"""
    parts = keys = ("text", "question", "answers", "answer_start", "title")
    optional = ("answer_start", "title")
    columns = (pa.field("question", pa.string(), nullable=False), pa.field("answers", ANSWERS, nullable=False))
    metrics = ("exact_match", "f1")
    decides, must_beat = ("f1", True), ("f1", "best_sentence")
    selects = ("validation_f1", True)

    def records(self, name: str, content: bytes, cfg: Any, stray_quotes: list[int]) -> Iterator[Any]:
        if cfg.records is None and is_squad(name, content):
            return squad_records(name, content)
        return super().records(name, content, cfg, stray_quotes)

    def row(self, parts: Mapping[str, Any], cfg: QuestionExamplesConfig) -> Row:
        text, question, title = (
            valid(value) if isinstance(value, str) else value
            for value in (parts["text"], parts["question"], parts["title"])
        )
        group = None if cfg.group is not None or title in (None, "") else str(title)
        row = Row(text if isinstance(text, str) else "", group=group)
        if not row.text.strip():
            row.reason = "no_text" if text is None or isinstance(text, str) else "not_text"
        elif not isinstance(question, str) or not question.strip():
            row.reason = "no_question" if question is None or isinstance(question, str) else "not_text_question"
        else:
            row.key = question.strip()
            answers = answers_in(row.text, _valid(parts["answers"]), parts["answer_start"])
            if answers and isinstance(answers[0], str):
                row.reason, row.detail = answers  # type: ignore[misc]
            elif not is_sampled(row.text, cfg.sample):
                row.reason = "not_sampled"
            row.values = {"question": row.key, "answers": answers}
        return row

    def strata(self, values: Mapping[str, Any]) -> Sequence[str]:
        return ("has an answer" if values["answers"] else "has none",)

    def check_examples(self, examples: pa.Table, cfg: QuestionExamplesConfig, name: str) -> None:
        del cfg
        if not any(map(len, examples["answers"].to_pylist())):
            raise ValueError(f"{name}: none of {examples.num_rows} usable questions has an answer; at least one must")
        refuse_empty_splits(examples, name)

    def describe_examples(self, examples: pa.Table) -> str:
        rows = []
        for split in dict.fromkeys(examples["split"].to_pylist()):
            part = examples.filter(pa.array([one == split for one in examples["split"].to_pylist()]))
            answers = part["answers"].to_pylist()
            lengths = [len(text.split()) for one in answers for text in texts_of(one)] or [0]
            numbers = (part.num_rows, sum(not one for one in answers), len(part["text"].unique()))
            of_length = (int(np.median(lengths)), max(lengths))
            rows.append([split, *(f"{number:,}" for number in (*numbers, *of_length))])
        header = ["split", "questions", "without an answer", "texts", "words of an answer, median", "most"]
        return "## Questions\n\n" + table(header, rows)

    def augmented(self, rows: pa.Table, cfg: Any, seed: int) -> pa.Table:
        """Only questions change: typing errors are made by who asks, and the answers stay where they are."""
        ids, asked = rows["id"].to_pylist(), rows["question"].to_pylist()
        questions = augmented_texts(ids, asked, cfg.settings().augmentation, seed)
        return with_column(rows, "question", questions)

    def encode(
        self, examples: Shards, rows: pa.Table, tokenizer: Any, max_tokens: int, truncation_side: str
    ) -> EncodedExamples:
        """Rows of batches: the windows of every question. The longest answer that the model gives, in tokens, is the
        longest of 99 of 100 training answers."""
        from model.data.questions import encoded_questions

        del truncation_side  # a text is never cut
        ids, questions, texts, answers = (rows[name].to_pylist() for name in ("id", "question", "text", "answers"))
        pairs = [[(one["start"], one["text"]) for one in of_question] for of_question in answers]
        most = longest_answer(read_examples(examples.directory, "train", ["answers"]), tokenizer)
        return encoded_questions(ids, questions, texts, tokenizer, max_tokens=max_tokens, answers=pairs, most=most)

    def network(self, cfg: FinetuneConfig, base: Any, examples: Shards) -> "tuple[nn.Module, dict[str, Any]]":
        from model.network.heads import new_span_classifier, span_classifier_from
        from model.network.registry import describe

        train = read_examples(examples.directory, "train", ["answers"])
        threshold = None if all(map(len, train["answers"].to_pylist())) else 0.0
        description = describe(base.cfg, kind="span_classifier") | {"no_answer_threshold": threshold}
        if cfg.initialisation == "random":
            return new_span_classifier(base.cfg, cfg.seed), description
        return span_classifier_from(base, cfg.seed), description

    def loss(self, cfg: FinetuneConfig) -> Any:
        from model.training.loss import span_loss

        del cfg
        return span_loss

    def validate(self, network: "nn.Module", encoded: Any) -> dict[str, float]:
        """validation_loss (nats per start or end), validation_exact_match and validation_f1; with the best threshold
        if there are questions without an answer."""
        found, scores_Q2, empty_Q, threshold = answered(network, encoded)
        right_Q2 = np.where(found.has_answer(threshold)[:, None], scores_Q2, empty_Q[:, None])
        means = zip(("validation_exact_match", "validation_f1"), right_Q2.mean(axis=0).tolist(), strict=True)
        return {"validation_loss": found.loss, **dict(means)}

    def finish(self, cfg: FinetuneConfig, network: "nn.Module", held_out: Any) -> dict[str, Any]:
        """The longest answer, and the threshold of "no answer" if validation data have such questions."""
        del cfg
        threshold = answered(network, held_out)[3]
        return {"most_answer_tokens": held_out.most} | (
            {} if threshold is None else {"no_answer_threshold": threshold}
        )

    def baselines(self, train: pa.Table, held_out: pa.Table) -> dict[str, Sequence[Answer]]:
        questions, texts = held_out["question"].to_pylist(), held_out["text"].to_pylist()
        return {
            "best_sentence": best_sentences(train["text"].unique().to_pylist(), questions, texts),
            "first_sentence": first_sentences(texts),
        }

    def results(self, judged: Judged, seed: int) -> list[Result]:
        """The resampled unit is the question."""
        return compared_results(judged, counted_answers, seed)

    def details(self, judged: Judged) -> dict[str, float]:
        """Exact match and F1 of the questions with an answer and of those without, if there are both."""
        return {f"{metric}_{part}": value for part, of in by_part(judged).items() for metric, value in of.items()}

    def mistakes(self, judged: Judged) -> Iterator[Mistake]:
        for row, (example, answer) in enumerate(zip(judged.examples, judged.model, strict=True)):
            expected = texts_of(example["answers"])
            if not answer_scores(answer["answer"], expected)[0]:
                shown = f"{example['question']}\n{_around(example, answer)}"
                words = " / ".join(expected) or NO_ANSWER
                yield Mistake(row, words, answer["answer"] or NO_ANSWER, answer["probability"], shown)

    def slices(self, judged: Judged) -> dict[str, Sequence[str]]:
        rows = list(judged.examples)
        lengths = np.array([len(texts_of(row["answers"])[0].split()) if row["answers"] else 0 for row in rows])
        return {
            "question word": [_question_word(row["question"]) for row in rows],
            "words of the answer": quarters(lengths),
            "has an answer": ["yes" if row["answers"] else "no" for row in rows],
        }

    def report(self, judged: Judged, cfg: TaskEvaluationConfig) -> str:
        del cfg
        parts = by_part(judged)
        if not parts:
            return ""
        rows = [
            [part.replace("_", " "), f"{values['exact_match']:.4f}", f"{values['f1']:.4f}"]
            for part, values in parts.items()
        ]
        return "\n## Questions with and without an answer\n\n" + table(["questions", "exact match", "F1"], rows)


KIND = QuestionAnswering()


def longest_answer(train: pa.Table, tokenizer: Any) -> int:
    texts = list(dict.fromkeys(text for one in train["answers"].to_pylist() for text in texts_of(one)))
    lengths = [len(ids) for ids in tokenizer.encode_batch(texts[:MOST_WITHOUT])]
    return max(1, int(np.quantile(lengths, LENGTH_QUANTILE, method="higher"))) if lengths else 1


def answered(network: "nn.Module", encoded: Any) -> tuple[Any, np.ndarray, np.ndarray, float | None]:
    """Answers to encoded questions; exact match and F1 of the best spans (Q, 2) and of "no answer" (Q,), in which the
    two are equal; and the best threshold by F1, None if every question has an answer."""
    from model.generation.answer_spans import best_threshold, found_answers

    found = found_answers(network, encoded, encoded.most)
    expected = [[text for _, text in answers] for answers in encoded.answers]
    spans = zip(encoded.texts, found.starts_Q.tolist(), found.ends_Q.tolist(), expected, strict=True)
    scores_Q2 = np.array([answer_scores(text[start:end], right) for text, start, end, right in spans])
    empty_Q = np.array([answer_scores("", right)[1] for right in expected])
    if all(expected):
        return found, scores_Q2, empty_Q, None
    return found, scores_Q2, empty_Q, best_threshold(found.margins_Q, scores_Q2[:, 1], empty_Q)


def by_part(judged: Judged) -> dict[str, dict[str, float]]:
    """Part -> metric -> value of the model; empty if all questions have an answer."""
    scores: dict[str, list[tuple[float, float]]] = {"has_answer": [], "no_answer": []}
    for example, answer in zip(judged.examples, judged.model, strict=True):
        expected = texts_of(example["answers"])
        scores["has_answer" if expected else "no_answer"].append(answer_scores(answer["answer"], expected))
    if not all(scores.values()):
        return {}
    means = {part: np.mean(values, axis=0) for part, values in scores.items()}
    return {part: {"exact_match": float(mean[0]), "f1": float(mean[1])} for part, mean in means.items()}


def _around(example: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
    """The passage with the right answer, or with the one that was given if there is none."""
    text, right = example["text"], example["answers"][:1]
    shown = [(one["start"], one["start"] + len(one["text"])) for one in right] or [(answer["start"], answer["end"])]
    first, last = max(shown[0][0] - SHOWN_AROUND, 0), max(shown[0][1], 0) + SHOWN_AROUND
    return f"{'...' if first else ''}{text[first:last]}{'...' if last < len(text) else ''}"


def _question_word(question: str) -> str:
    found = FIRST_WORD.search(question)
    return found[1].lower() if found else "other"


def _valid(answers: Any) -> Any:
    """The same with texts that are valid UTF-8, as the text that they are in."""
    if isinstance(answers, dict):
        return {key: _valid(value) for key, value in answers.items()}
    if isinstance(answers, list):
        return [_valid(one) for one in answers]
    return valid(answers) if isinstance(answers, str) else answers
