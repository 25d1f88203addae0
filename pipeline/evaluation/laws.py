"""The checks of models and evaluations, each a pure function that returns a Verdict."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.evaluation.comparisons import SIGNIFICANT, p_text
from pipeline.store.verdict import Verdict

MOST_CUT = 0.1  # fraction of the training texts
FEWEST_ASKED = 15  # validation questions that a threshold of an assistant is chosen on
MOST_FORGOTTEN = 0.03  # relative change of the loss on general text
MOST_UNLIKELIER = 0.1  # relative change of the nats of chosen answers


def unseen(n_seen: float) -> Verdict:
    """Checks that no evaluated example occurs in the pretraining text (8 consecutive words, or all words of a shorter
    one)."""
    return Verdict(
        passed=n_seen == 0, rule="evaluated examples that occur in the pretraining text = 0", observed=n_seen, limit=0
    )


def whole_texts(measures: Mapping[str, float]) -> Verdict:
    """Checks that a model reads most of its training texts from the beginning to the end."""
    return Verdict(
        passed=measures["train_cut_fraction"] <= MOST_CUT,
        rule="fraction of the training texts that are longer than max_tokens <= limit",
        failure=f"{measures['train_cut_fraction']:.1%} of the training texts are longer than the model reads (limit"
        f' {MOST_CUT:.0%}): raise max_tokens, up to the context of the base, or set truncation_side to "left" to read'
        " their ends",
        observed=measures["train_cut_fraction"],
        limit=MOST_CUT,
        details={name: value for name, value in measures.items() if name.endswith(("_n_cut", "_cut_fraction"))},
    )


def enough_questions(measures: Mapping[str, float]) -> Verdict:
    """Checks that the threshold of an assistant was chosen on enough questions that people asked."""
    n_asked = measures["validation_asked"]
    return Verdict(
        passed=n_asked >= FEWEST_ASKED,
        rule="validation questions with a document, of people >= limit",
        failure=f"only {n_asked:,.0f} questions of people with a document are in the validation split (limit"
        f" {FEWEST_ASKED}): what is refused, and how the two searches are joined, is a rough guess; add questions",
        observed=n_asked,
        limit=FEWEST_ASKED,
    )


def finite(curve: Sequence[Mapping[str, float]]) -> Verdict:
    """Checks that there is a training curve and that all its losses are finite."""
    wrong = [line["step"] for line in curve if not all(map(math.isfinite, line.values()))]
    details = {"steps": len(curve)} | ({"first_wrong_step": wrong[0]} if wrong else {})
    return Verdict(
        passed=bool(curve) and not wrong,
        rule="steps without a finite loss = 0",
        observed=len(wrong),
        limit=0,
        details=details,
    )


def forgets_little(results: Mapping[str, Mapping[str, Any]], limit: float) -> Verdict:
    """Checks that the loss of a continued model on general text is hardly above that of its base; without such text
    it passes."""
    change = results.get("general_change", {"value": 0.0})["value"]
    return Verdict(
        passed=change <= limit,
        rule="relative change of the loss on general text <= limit",
        failure=f"the training changed the loss on general text by {change:+.1%} (limit {limit:+.1%}): raise"
        " general_share, lower the learning rate, train fewer steps, or tune with lora",
        observed=change,
        limit=limit,
    )


def keeps_chosen(results: Mapping[str, Mapping[str, Any]], limit: float) -> Verdict:
    """Checks that a training on preferences did not make the chosen answers much less likely than the base does."""
    change = results["chosen_change"]["value"]
    return Verdict(
        passed=change <= limit,
        rule="relative change of the nats of the chosen answers <= limit",
        failure=f"the log-probability of the chosen answers fell by {change:.1%} (limit {limit:.0%}), so that the"
        " model may write worse although it prefers the right answers: raise beta or sft_weight, lower the learning"
        " rate, or train on fewer pairs",
        observed=change,
        limit=limit,
    )


def not_measured(metric: str, of: str) -> Verdict:
    """Fails, because a report lacks a metric that its check needs: held-out text of a source, for instance."""
    part = metric.partition("_")[0]
    why = (
        f"no held-out document is of its {part} sources" if part in ("domain", "general") else "no value was measured"
    )
    return Verdict(
        passed=False,
        rule=f"{metric} is in the report",
        observed=0,
        limit=1,
        failure=f"{metric.replace('_', ' ')} of {of} is not known, because {why}",
    )


def beats_baseline(result: Mapping[str, Any], model: str, baseline: str) -> Verdict:
    """Checks that `model` is better than one of the baselines in a result of results.json."""
    limit, unit = result["baselines"][baseline], result["metric"].replace("_", " ")
    failure = f"the {model} model does not beat the {baseline} baseline: {result['value']:.3f} {unit}"
    verdict = beats(result, limit, f"{failure}, {baseline} {limit:.3f}")
    if (compared := result.get("comparisons", {}).get(baseline)) is None:
        return verdict
    found = {name: compared[name] for name in ("difference", "p_value")}
    luck = "" if compared["p_value"] < SIGNIFICANT else ", which may be luck"
    rule = f"{verdict.rule} (p {p_text(compared['p_value'], '= ')}{luck})"
    return replace(verdict, rule=rule, details={**verdict.details, **found})


def beats_limit(result: Mapping[str, Any], limit: float, asset: str) -> Verdict:
    """Checks that a result of results.json is better than the limit in config.toml."""
    better = "above" if result["higher_is_better"] else "below"
    name = f"{result['metric']} of {asset}"
    return beats(
        result, limit, f"{name} is {result['value']:.6g}, and [checks.{asset}] wants it {better} {limit:.6g}"
    )


def beats(result: Mapping[str, Any], limit: float, failure: str = "") -> Verdict:
    """Checks that a result of results.json is better than `limit`."""
    higher = result["higher_is_better"]
    return Verdict(
        passed=bool(result["value"] > limit if higher else result["value"] < limit),
        rule=f"{result['metric']} {'>' if higher else '<'} limit",
        observed=result["value"],
        limit=limit,
        details={
            name: value
            for name, value in {"low": result["low"], "high": result["high"], **result["baselines"]}.items()
            if value is not None
        },
        failure=failure,
    )
