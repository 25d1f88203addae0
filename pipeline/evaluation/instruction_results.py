"""What instruction tuning changed: loss on held-out answers and answers to held-out questions, beside the base.

In: the tuned model, its base and the examples. Out: results with 95 % intervals and paired comparisons; Markdown with
the answers side by side. Both models read the same tokens, in the template that the model was tuned with. The loss is
measured on all conversations, in nats per token of an answer with its end; some of them, chosen at random, are
answered, token by token, and compared with the last answer of the conversation.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from model.data.chat import ANSWERS, Conversation
from pipeline.corpus.examples.conversations import conversation_of
from pipeline.corpus.examples.stage import read_examples
from pipeline.evaluation.answer_texts import is_same, rouge_l, word_f1
from pipeline.evaluation.answers import Rows, TableRows, column, taken
from pipeline.evaluation.comparisons import MODEL, compared_results
from pipeline.evaluation.general_texts import TEXTS, general_losses
from pipeline.evaluation.intervals import Counted, quotient, rate_of
from pipeline.evaluation.results import Result
from pipeline.evaluation.side_by_side import side_by_side, written_answers
from pipeline.evaluation.task import Judged, chosen_rows
from pipeline.serving.generate import predictor_in
from pipeline.serving.predictor import Predictor
from pipeline.store.records import Checkpoint, Shards
from pipeline.store.store import Work

BASE = "base"  # name of the baseline
LOSSES, WRITTEN = ("answer_loss", "answer_perplexity"), ("exact_match", "word_f1", "rouge_l", "complete_answers")
GENERAL = "general_bits_per_byte"
METRICS = (*LOSSES, GENERAL, *WRITTEN)


def judged_instructions(
    predictor: type[Predictor], cfg: Any, model: Checkpoint, base: Checkpoint | None, examples: Shards, work: Work
) -> Judged:
    """Loss of every held-out conversation, and the answers to some of them, by the model and its base."""
    held_out = read_examples(examples.directory, cfg.split)
    tuned: Any = predictor_in(predictor, model.directory)
    rows = held_out.to_pylist()
    encoded = encoded_answers(tuned, rows)
    places = chosen_rows(len(rows), cfg.prompted_examples, cfg.seed)
    questions = [conversation_of(rows[place]["messages"], tuned.system)[:-1] for place in places]
    answers, general = {}, {}
    networks = {MODEL: tuned.model} | ({} if base is None else {BASE: base_network(base.directory, tuned)})
    for name, network in networks.items():
        work.progress(0, len(rows), f"answers of {name}")
        texts = written_answers(network, tuned.template, questions, places, len(rows), cfg.max_new_tokens)
        answers[name] = Rows({**losses_of(network, encoded, len(rows)), **texts}, len(rows))
        general[name] = general_losses(network, tuned.tokenizer)
    n_cut = encoded.n_cut + len(encoded.unsupervised)
    return Judged(tuned.description, TableRows(held_out), answers, n_cut, besides={GENERAL: general})


def losses_of(network: Any, encoded: Any, n_rows: int) -> dict[str, np.ndarray]:
    """Nats and number of the trained tokens of each conversation; 0 of those that are not read as far as one."""
    from model.evaluate_conversations import conversation_losses

    places = np.array([int(name) for name in encoded.ids], np.int64)
    found = {"nats": np.zeros(n_rows), "n_tokens": np.zeros(n_rows)}
    for values, of_places in zip(found.values(), conversation_losses(network, encoded), strict=True):
        values[places] = of_places
    return found


def loss_answers(tuned: Any, rows: Sequence[Mapping[str, Any]]) -> Rows:
    """The loss of each row alone, without answers."""
    return Rows(losses_of(tuned.model, encoded_answers(tuned, rows), len(rows)), len(rows))


def encoded_answers(tuned: Any, rows: Sequence[Mapping[str, Any]]) -> Any:
    """The conversations of the rows as the model reads them."""
    return encoded_for(tuned, [conversation_of(row["messages"], tuned.system) for row in rows])


def encoded_for(tuned: Any, conversations: Sequence[Conversation], trained: Sequence[str] = ANSWERS) -> Any:
    """Conversations as the model reads them, whose ids are their places; the loss is that of the roles `trained`."""
    from model.data.conversations import encoded_conversations

    template, ids = tuned.template, [str(place) for place in range(len(conversations))]
    most, side = (tuned.description[name] for name in ("max_tokens", "truncation_side"))
    rendered = template.rendered(conversations, trained=trained)
    return encoded_conversations(template, ids, conversations, rendered, most, side, trained)


def base_network(directory: Path, tuned: Any) -> Any:
    """The base on its device. Raises ValueError when it has another tokenizer than the model."""
    from model.data.tokenizer import load_model_tokenizer
    from model.network.registry import load_decoder
    from model.training.placement import for_evaluation

    network = load_decoder(directory)
    if load_model_tokenizer(directory, network.cfg.vocab_size).tokens != tuned.tokenizer.tokens:
        raise ValueError(
            f"{directory} has another tokenizer than the model, so that their losses cannot be compared; leave out"
            " the key `prompted` of the task"
        )
    return for_evaluation(network)


def results_of(judged: Judged, seed: int) -> list[Result]:
    results = compared_results(judged, counted_losses, seed, lower_is_better=LOSSES) + general_results(judged, seed)
    places = answered_places(judged)
    if not len(places):
        return results
    answers = {name: taken(rows, places) for name, rows in judged.answers.items()}
    of_answered = replace(judged, examples=taken(judged.examples, places), answers=answers)
    note = f"over {len(places):,} answers"
    return results + [
        {**one, "note": "; ".join(filter(None, [note, one["note"]]))}
        for one in compared_results(of_answered, counted_answers, seed)
    ]


def general_results(judged: Judged, seed: int) -> list[Result]:
    """Bits per byte of texts that have nothing to do with the task; the resampled unit is such a text."""
    measured = judged.besides.get(GENERAL, {})
    if not measured:
        return []
    answers = {
        name: Rows({"bits": nats / math.log(2), "n_bytes": n_bytes}, len(TEXTS))
        for name, (nats, n_bytes) in measured.items()
    }
    of_texts = replace(judged, examples=[{"text": text} for text in TEXTS], answers=answers)

    def count(examples: Sequence[Any], bits: Sequence[Mapping[str, Any]]) -> dict[str, Counted]:
        del examples
        return {GENERAL: Counted(np.stack([column(bits, "bits"), column(bits, "n_bytes")], axis=1), quotient)}

    (result,) = compared_results(of_texts, count, seed, lower_is_better=(GENERAL,))
    return [{**result, "note": "; ".join(filter(None, [f"over {len(TEXTS)} short English texts", result["note"]]))}]


def answered_places(judged: Judged) -> np.ndarray:
    """Places of the examples that the model answered."""
    if not len(judged.model) or "answer" not in judged.model[0]:
        return np.zeros(0, np.int64)
    return np.flatnonzero([text is not None for text in column(judged.model, "answer")])


def counted_losses(examples: Sequence[Any], answers: Sequence[Mapping[str, Any]]) -> dict[str, Counted]:
    del examples
    sums_N2 = np.stack([column(answers, "nats"), column(answers, "n_tokens")], axis=1)
    return {
        "answer_loss": Counted(sums_N2, quotient),
        "answer_perplexity": Counted(sums_N2, lambda sums_RK: np.exp(quotient(sums_RK))),
    }


def counted_answers(
    examples: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]]
) -> dict[str, Counted]:
    pairs = [(one["answer"], expected_answer(example)) for one, example in zip(answers, examples, strict=True)]
    ones_N = np.ones(len(pairs))
    scores = {"word_f1": word_f1, "rouge_l": rouge_l}
    return {
        "exact_match": rate_of([is_same(*pair) for pair in pairs]),
        **{
            name: Counted(np.stack([[score(*pair) for pair in pairs], ones_N], axis=1), quotient)
            for name, score in scores.items()
        },
        "complete_answers": rate_of([bool(one["is_complete"]) for one in answers]),
    }


def expected_answer(example: Mapping[str, Any]) -> str:
    return example["messages"][-1]["content"]


def answers_side_by_side(judged: Judged) -> str:
    """mistakes.md: questions, the expected answers and those of model and base, the least alike first."""
    places = answered_places(judged)
    rows = taken(judged.examples, places)
    names = [name for name in judged.answers if "answer" in judged.answers[name][0]]
    shown = []
    for place, row in zip(places.tolist(), rows, strict=True):
        answers = {name: judged.answers[name][place]["answer"] for name in names}
        shown.append((rouge_l(answers[MODEL], expected_answer(row)), place, row, answers))
    return side_by_side(
        f"{len(shown):,} of {len(judged.examples):,} conversations were answered; those whose answers are least like"
        " the expected ones are first.",
        [
            (
                f"ROUGE-L {score:.3f}",
                {"question": row["messages"][-2]["content"], "expected": expected_answer(row), **answers},
            )
            for score, _, row, answers in sorted(shown, key=lambda one: one[:2])
        ],
    )


def template_report(judged: Judged) -> str:
    """What a reader of the numbers has to know."""
    n_tokens = int(np.sum(column(judged.model, "n_tokens")))
    return (
        f"\n## What was measured\n\nThe loss is the mean over {n_tokens:,} tokens of answers with their ends, in"
        " nats; the base reads the same tokens. An answer is complete if the model ended it by itself. Answers"
        " side by side are in mistakes.md of the folder of this report. The bits per byte are those of short English"
        " texts that have nothing to do with the task: what the model has forgotten.\n"
    )
