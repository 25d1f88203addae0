"""How well a model answers from documents, beside each of its two searches alone and its decoder without documents.

In: the model, the decoder, and questions. Out: results with 95 % intervals and paired comparisons, and Markdown. All
questions are searched and judged for a refusal; some, chosen at random, are answered in words. Questions that were
made from the documents are judged apart, and only they are if there are no others.

Legend: N questions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.corpus.examples.stage import read_examples
from pipeline.corpus.report.card_markdown import plain, table
from pipeline.evaluation.answer_metrics import answer_scores
from pipeline.evaluation.answers import TableRows, taken
from pipeline.evaluation.comparisons import MODEL, compared_results
from pipeline.evaluation.document_metrics import (
    LOWER_IS_BETTER,
    counted_found,
    counted_refused,
    counted_written,
)
from pipeline.evaluation.mistakes import Mistake
from pipeline.evaluation.results import Result
from pipeline.evaluation.task import Judged, chosen_rows
from pipeline.serving.generate import predictor_in
from pipeline.serving.predictor import Predictor
from pipeline.store.records import Checkpoint, Shards
from pipeline.store.store import Work

SEARCHES = ("bm25", "embeddings")  # baselines: each search alone
DECODER = "decoder"  # baseline: the decoder without documents
WORDS_AT_ONCE = 200  # questions that are searched between two signs of progress
NOTHING = "(nothing)"


def judged_documents(
    predictor: type[Predictor], cfg: Any, model: Checkpoint, base: Checkpoint | None, examples: Shards, work: Work
) -> Judged:
    """What is found for every question, and the answers to some of them, by the model and by its decoder alone."""
    held_out = read_examples(examples.directory, cfg.split)
    rows, assistant = held_out.to_pylist(), predictor_in(predictor, model.directory)
    answers: dict[str, Sequence[Mapping[str, Any]]] = {}
    found = searched(assistant, rows, "fused", work)
    for method in SEARCHES:
        answers[method] = searched(assistant, rows, method, work)
    places = places_of(rows, cfg)
    questions = [rows[place]["question"] for place in places]
    written = []
    for number, question in enumerate(questions):
        work.progress(number, len(questions), "answers")
        written.append(written_answer(assistant, question))
    answers = {MODEL: with_written(found, places, written), **answers}
    if base is not None and len(places):
        alone = decoder_answers(base.directory, questions, assistant.cfg.most_answer_tokens, work)
        answers[DECODER] = with_written([{} for _ in rows], places, [{"answer": text} for text in alone])
    n_cut = assistant.n_cut(rows)
    return Judged(assistant.description, TableRows(held_out), answers, n_cut, besides={"places": places})


def places_of(rows: Sequence[Mapping[str, Any]], cfg: Any) -> np.ndarray:
    """Places of the questions that are answered in words: of those that people asked, if there are some."""
    judged = judged_places(rows)
    return judged[chosen_rows(len(judged), cfg.prompted_examples, cfg.seed)]


def judged_places(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Places of the questions that people asked; of all if every one was made."""
    asked_N = np.array([not row["made"] for row in rows], bool)
    return np.flatnonzero(asked_N) if asked_N.any() else np.arange(len(rows))


def searched(
    assistant: Any, rows: Sequence[Mapping[str, Any]], method: str, work: Work | None = None
) -> list[dict[str, Any]]:
    """What is found for each question: the rank of its document (0 = not found), the first document, and, of both
    searches together, the score, whether it is refused, and whether it is without its own document."""
    answers: list[dict[str, Any]] = []
    for start in range(0, len(rows), WORDS_AT_ONCE):
        piece = rows[start : start + WORDS_AT_ONCE]
        questions = [row["question"] for row in piece]
        found = assistant.found(questions, method)
        left_out = [[row["document"]] if row["document"] else [] for row in piece]
        without = assistant.found(questions, method, left_out) if method == "fused" else found
        for row, one, other in zip(piece, found, without, strict=True):
            documents = one["documents"]
            rank = documents.index(row["document"]) + 1 if row["document"] in documents else 0
            answer = {"rank": rank, "first": (one["urls"] or [NOTHING])[0], "score": one["score"]}
            if method == "fused":
                refused = row["document"] is not None and other["refused"]
                answer |= {"refused": one["refused"], "refused_without": refused}
            answers.append(answer)
        if work is not None:
            work.progress(len(answers), len(rows), f"questions searched by {method}")
    return answers


def written_answer(assistant: Any, question: str) -> dict[str, Any]:
    """The answer in words, and how many of its sentences the decoder wrote and a passage supports."""
    (answer,) = assistant.examine([{"question": question}])
    return {
        "answer": answer["plain"],
        "shown": answer["answer"],
        "n_sentences": answer["n_sentences"],
        "n_supported": answer["n_supported"],
    }


def decoder_answers(base: Path, questions: Sequence[str], most_tokens: int, work: Work) -> list[str]:
    """The greedy answers of a decoder to the questions alone."""
    from model.data.chat import Message, load_chat_template
    from model.data.tokenizer import TOKENIZER, load_model_tokenizer
    from model.evaluate_conversations import greedy_answers
    from model.network.registry import load_decoder
    from model.training.placement import for_evaluation

    model = for_evaluation(load_decoder(base))
    template = load_chat_template(load_model_tokenizer(base, model.cfg.vocab_size), base / TOKENIZER)
    answers = []
    for number, question in enumerate(questions):
        work.progress(number, len(questions), f"answers of the {DECODER} alone")
        answers += [one.text for one in greedy_answers(model, template, [[Message("user", question)]], most_tokens)]
    return answers


def with_written(
    found: Sequence[Mapping[str, Any]], places: np.ndarray, written: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The rows with what was written for those at `places`."""
    rows = [dict(row) for row in found]
    for place, one in zip(places.tolist(), written, strict=True):
        rows[place] |= one
    return rows


def results_of(judged: Judged, seed: int) -> list[Result]:
    """The resampled unit is the question."""
    judged_N = judged_places(judged.examples)
    is_made = bool(len(judged_N)) and bool(judged.examples[int(judged_N[0])]["made"])
    found = _part(judged, judged_N, (MODEL, *SEARCHES))
    results = compared_results(found, counted_found, seed)
    results += compared_results(_part(judged, judged_N, (MODEL,)), counted_refused, seed, LOWER_IS_BETTER)
    places = judged.besides.get("places", np.zeros(0, np.int64))
    if len(places):
        written = compared_results(_part(judged, places, (MODEL, DECODER)), counted_written, seed)
        results += [_noted(one, f"over {len(places):,} answers") for one in written]
    made = "questions that were made from the documents, which are easier than those of people"
    return [_noted(one, made) for one in results] if is_made else results


def _part(judged: Judged, places: np.ndarray, names: Sequence[str]) -> Judged:
    answers = {name: taken(judged.answers[name], places) for name in names if name in judged.answers}
    return replace(judged, examples=taken(judged.examples, places), answers=answers)


def _noted(result: Result, note: str) -> Result:
    return {**result, "note": "; ".join(filter(None, [note, result["note"]]))}


def made_parts(judged: Judged) -> dict[str, np.ndarray]:
    """How questions were made -> their places; those of people are not among them."""
    made = [row["made"] for row in judged.examples]
    return {how: np.flatnonzero([one == how for one in made]) for how in sorted(set(made) - {""})}


def details_of(judged: Judged) -> dict[str, float]:
    """What is found for questions that were made, where others are judged."""
    values: dict[str, float] = {}
    for how, places in (
        made_parts(judged).items() if len(judged_places(judged.examples)) < len(judged.examples) else ()
    ):
        part = _part(judged, places, (MODEL,))
        for metric, one in counted_found(part.examples, part.model).items():
            values[f"{how}_{metric}"] = one.over_all()
    return values


def report_of(judged: Judged) -> str:
    """Made questions apart, and how the two searches are joined."""
    values = details_of(judged)
    parts = []
    if values:
        rows = [[plain(name.replace("_", " ")), f"{value:.4f}"] for name, value in values.items()]
        parts.append(
            "\n## Questions that were made from the documents\n\nThey are not among the results above.\n\n"
            + table(["metric", "model"], rows)
        )
    n_all = len(judged.examples)
    n_asked = sum(row["document"] is None for row in judged.examples)
    parts.append(
        f"\n## What was measured\n\n{n_all:,} questions, of which the documents do not answer {n_asked:,}. A question"
        " is refused if its score is below the threshold, which was chosen on validation questions. Refusals without"
        " document are those of questions whose own document was left out of the search.\n"
    )
    return "\n".join(parts)


def mistakes_of(judged: Judged) -> list[Mistake]:
    """Questions whose document is not the first one found, wrong refusals, and answers without a right word."""
    found = []
    for place, (row, one) in enumerate(zip(judged.examples, judged.model, strict=True)):
        expected, answered = _expected(row), one.get("shown") or one["first"]
        is_wrong = one["refused"] != (row["document"] is None) or (row["document"] is not None and one["rank"] != 1)
        if one.get("answer") and row["answers"]:
            is_wrong |= not answer_scores(one["answer"], row["answers"])[1]
        if is_wrong:
            answered = "(refused)" if one["refused"] else answered
            found.append(Mistake(place, expected, answered, float(one["score"]), row["question"]))
    return found


def _expected(row: Mapping[str, Any]) -> str:
    if row["document"] is None:
        return "(the documents do not answer)"
    return " / ".join(filter(None, [", ".join(row["answers"]), row["url"]]))
