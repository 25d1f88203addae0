"""What a training on preferences changed: log-probabilities of chosen and rejected answers, and answers, beside the
reference.

In: the tuned model, its base, which is the reference, and the examples. Out: results with 95 % intervals and paired
comparisons; Markdown with the log-probabilities before and after, and a file with answers of both models. Both read
the same tokens, in the template that the model was tuned with. Baselines that read no text compare lengths.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.corpus.examples.conversations import conversation_of
from pipeline.corpus.examples.preferences import encoded_preferences
from pipeline.corpus.examples.stage import read_examples
from pipeline.corpus.report.card_markdown import table
from pipeline.evaluation.answers import Rows, TableRows, column, taken
from pipeline.evaluation.comparisons import MODEL, compared_results
from pipeline.evaluation.instruction_results import base_network, encoded_for, losses_of
from pipeline.evaluation.preference_metrics import (
    LOWER_IS_BETTER,
    REFERENCE,
    answers_by_length,
    answers_of,
    counted_preferences,
    gains_of,
)
from pipeline.evaluation.results import Result
from pipeline.evaluation.side_by_side import side_by_side, written_answers
from pipeline.evaluation.task import Judged, chosen_rows
from pipeline.serving.generate import predictor_in
from pipeline.serving.predictor import Predictor
from pipeline.store.records import Checkpoint, Shards
from pipeline.store.store import Work

ASKED = ("user",)  # whose messages the prompt loss is that of


def judged_preferences(
    predictor: type[Predictor], cfg: Any, model: Checkpoint, base: Checkpoint | None, examples: Shards, work: Work
) -> Judged:
    """Log-probabilities of every held-out pair, and answers to some prompts, by the model and its reference."""
    from model.data.pairs import n_tokens_of

    held_out = read_examples(examples.directory, cfg.split)
    tuned: Any = predictor_in(predictor, model.directory)
    rows = held_out.to_pylist()
    pairs = pairs_read_by(tuned, rows)
    places = np.array([int(name) for name in pairs.ids], np.int64)  # of the pairs of which a difference is read
    asked, tokens_N2 = chosen_rows(len(places), cfg.prompted_examples, cfg.seed), n_tokens_of(pairs.pairs)
    prompts = [conversation_of(rows[place]["prompt"], tuned.system) for place in places]
    networks = {MODEL: tuned.model} | ({} if base is None else {REFERENCE: base_network(base.directory, tuned)})
    nats, answers = {name: log_probabilities(network, pairs, name, work) for name, network in networks.items()}, {}
    read, questions = encoded_for(tuned, prompts, ASKED), [prompts[place] for place in asked]
    for name, network in networks.items():
        found = answers_of(nats[name], tokens_N2, None if name == REFERENCE else nats.get(REFERENCE))
        texts = written_answers(network, tuned.template, questions, asked, len(found), cfg.max_new_tokens)
        of_prompts = losses_of(network, read, len(found))
        measured = {"prompt_nats": of_prompts["nats"], "n_prompt": of_prompts["n_tokens"], "answer": texts["answer"]}
        answers[name] = Rows({**found.columns, **measured}, len(found))
    n_cut = pairs.n_cut + len(pairs.left_out)
    return Judged(
        tuned.description, taken(TableRows(held_out), places), answers | answers_by_length(tokens_N2), n_cut
    )


def log_probabilities(network: Any, pairs: Any, name: str, work: Work) -> np.ndarray:
    from model.training.preferences import pair_log_probabilities

    return pair_log_probabilities(
        network, pairs, progress=lambda done, total: work.progress(done, total, f"pairs of {name}")
    )


def pairs_read_by(tuned: Any, rows: Sequence[Mapping[str, Any]]) -> Any:
    """The pairs of the rows as the model reads them, whose ids are their places."""
    description = tuned.description
    return encoded_preferences(
        tuned.template,
        tuned.system,
        [str(place) for place in range(len(rows))],
        rows,
        max_tokens=description["max_tokens"],
        truncation_side=description["truncation_side"],
        shares_beginning=description["model"]["sliding_window"] is None,
    )


def preferences_of(tuned: Any, rows: Sequence[Mapping[str, Any]]) -> Rows:
    """The log-probabilities of each row, without a reference; of a pair that is not read they are equal."""
    from model.data.pairs import n_tokens_of
    from model.training.preferences import pair_log_probabilities

    pairs = pairs_read_by(tuned, rows)
    places = np.array([int(name) for name in pairs.ids], np.int64)
    nats_N2, tokens_N2 = np.zeros((len(rows), 2)), np.zeros((len(rows), 2), np.int64)
    nats_N2[places], tokens_N2[places] = pair_log_probabilities(tuned.model, pairs), n_tokens_of(pairs.pairs)
    return answers_of(nats_N2, tokens_N2, None)


def results_of(judged: Judged, seed: int) -> list[Result]:
    """The resampled unit is the pair. A model that made the chosen answers less likely has a note that says so."""
    results = compared_results(judged, counted_preferences, seed, lower_is_better=LOWER_IS_BETTER)
    for one in results:
        if one["metric"] == "chosen_change" and one["value"] > 0:
            one["note"] = "; ".join(filter(None, [less_likely(one["value"]), one["note"]]))
    return results


def less_likely(change: float) -> str:
    return (
        f"warning: the chosen answers became less likely than under the base (their log-probability fell by"
        f" {change:.1%}); raise beta or sft_weight, or lower the learning rate, if the model writes worse"
    )


def preference_report(judged: Judged) -> str:
    """Log-probabilities before and after."""
    if REFERENCE not in judged.answers:
        return ""
    rows = []
    for side in ("chosen", "rejected"):
        before, after = (column(judged.answers[name], side) for name in (REFERENCE, MODEL))
        n_tokens = column(judged.model, f"n_{side}").sum()
        values = (before.mean(), after.mean(), before.sum() / n_tokens, after.sum() / n_tokens)
        rows.append([f"{side} answer", *(f"{value:.3f}" for value in values), f"{(after > before).mean():.1%}"])
    gains_N = gains_of(judged.model)
    quarters = ", ".join(f"{value:.2f}" for value in np.quantile(gains_N, (0.25, 0.5, 0.75)))
    change = after_change(judged)
    warning = f"\n**{less_likely(change).capitalize()}.**\n" if change > 0 else ""
    header = ["log-probability in nats", "before", "after", "per token before", "after", "became likelier"]
    return (
        f"\n## What the training changed\n{warning}\n"
        + table(header, rows)
        + "\n\nBefore: the base, which is the reference. The margin is by how many nats the chosen answer gained more"
        f" on the reference than the rejected one; its quartiles are {quarters}. `longer_answer` and `shorter_answer`"
        " prefer an answer by its number of tokens. The prompt loss is of texts on which the training had no loss: if"
        " it rises, the model lost some of its language. Answers of both models are in mistakes.md of the folder of"
        " this report.\n"
    )


def after_change(judged: Judged) -> float:
    """Relative change of the nats of the chosen answers."""
    after, before = (column(judged.answers[name], "chosen").sum() for name in (MODEL, REFERENCE))
    return float(after / before - 1)


def answers_side_by_side(judged: Judged) -> str:
    """mistakes.md: prompts with both answers of the data, and those of the models; wrong preferences are first."""
    gains_N, texts = gains_of(judged.model), column(judged.model, "answer")
    places = [place for place in np.argsort(gains_N, kind="stable").tolist() if texts[place] is not None]
    shown = []
    for place in places:
        row = judged.examples[place]
        of_place = {"prompt": row["prompt"][-1]["content"]}
        of_place |= {side: "\n\n".join(one["content"] for one in row[side]) for side in ("chosen", "rejected")}
        of_place |= {
            f"answer of {name}": column(judged.answers[name], "answer")[place]
            for name in (MODEL, REFERENCE)
            if name in judged.answers
        }
        shown.append((f"Margin {gains_N[place]:+.2f} nats", of_place))
    return side_by_side(
        f"{len(places):,} of {len(judged.examples):,} prompts were answered; pairs in which the model prefers the"
        " rejected answer are first.",
        shown,
    )
