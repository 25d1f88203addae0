"""The rules that data must satisfy, as functions of finished output folders; asset checks evaluate them.

In: finished folders, or their content. Out: a Verdict: whether the rule is satisfied, the observed value, the limit,
and what to look at if it is not. Nothing here relies on a recorded count that can be counted again.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from model.data.token_shards import SPLITS, read_description, read_token_shards
from pipeline.corpus.examples.near_texts import SIMILARITY, leaked
from pipeline.corpus.report.card_markdown import counted
from pipeline.corpus.text_repair import normalised
from pipeline.store.shards import text_digest
from pipeline.store.verdict import Verdict

REMOVED = "removed_fraction"  # measure of a stage: removed_fraction_<source>; limit of source_loss
ROUNDING = 9  # digits: 1 - (1 - 0.3) is not 0.3 in floating point
# Texts that a faulty tokenizer is most likely to get wrong.
HARD_TEXTS = (
    "",
    " ",
    "a" * 2000,
    " " * 2000,
    "\n\n\t \r\n",
    "caf\u00e9 cafe\u0301 \ufb01",
    "\u4e2d\u6587\u3000\u65e5\u672c\u8a9e",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f3f4\u200d\u2620\ufe0f",
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u202etxet\u202c",
    "\x00\x01\x7f\u200b\ufeff\ufffd",
    "<|endoftext|><|im_start|>",
    "it's we'll 1234567890 3.14e-10 foo_bar fooBar",
)


def lossless(tokenizer: Any, texts: Iterable[str]) -> Verdict:
    """Every text is decoded to the same bytes."""
    wrong = [
        text
        for text in (*HARD_TEXTS, *texts)
        if tokenizer.decode_bytes(tokenizer.encode(text)) != text.encode("utf-8", "surrogatepass")
    ]
    first = {"first_wrong": _named(wrong[0])} if wrong else {}
    return Verdict(
        passed=not wrong,
        rule="texts that are not decoded to the same bytes = 0",
        observed=len(wrong),
        limit=0,
        details=first,
    )


def _named(text: str) -> str:
    """A text by its id, as details of checks are kept for ever, even after `gristmill forget --purge`."""
    if text in HARD_TEXTS:
        return repr(text[:100])
    return f"{text_digest(normalised(text))}, {len(text):,} characters; `gristmill trace ID` shows it"


def ids_in_range(directory: Path) -> Verdict:
    """Every token id is in the vocabulary, and every document begins with the end-of-text token."""
    description = read_description(directory)
    largest, unopened = 0, 0
    for split in SPLITS:
        for shard in read_token_shards(directory, split):
            largest = max(largest, int(shard.tokens.max(initial=0)))
            unopened += int((shard.tokens[shard.offsets[:-1]] != description["end_of_text"]).sum())
    limit = description["vocab_size"] - 1
    return Verdict(
        passed=largest <= limit and not unopened,
        rule="largest token id <= vocabulary - 1, every document begins with end-of-text",
        observed=largest,
        limit=limit,
        details={"documents_not_opened": unopened},
    )


def no_leak(train: Sequence[str], held_out: Sequence[str], similarity: float = SIMILARITY) -> Verdict:
    """No held-out text has a near duplicate among the training texts."""
    found = leaked(train, held_out, similarity)
    details: dict[str, Any] = {"training_texts": len(train), "held_out_texts": len(held_out)}
    if found:
        details["first_leaked"] = _named(held_out[found[0]])
    return Verdict(
        passed=not found,
        rule="held-out texts with a near duplicate in training = 0",
        observed=len(found),
        limit=0,
        details=details,
    )


def plausible(warnings: Sequence[str]) -> Verdict:
    """Nothing looks wrong with the examples of a task."""
    more = f"; and {counted(len(warnings) - 3, 'more warning')}" if len(warnings) > 3 else ""
    return Verdict(
        passed=not warnings,
        rule="warnings about the examples = 0",
        failure="; ".join(warnings[:3]) + more,
        observed=len(warnings),
        limit=0,
        details={f"warning_{number}": warning for number, warning in enumerate(warnings, 1)},
    )


def lost_shares(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Source -> stage -> the share of its input that the stage removed."""
    lost: dict[str, dict[str, float]] = {}
    for record in records:
        for name, share in record["measures"].items():
            if name.startswith(f"{REMOVED}_"):
                lost.setdefault(name.removeprefix(f"{REMOVED}_"), {})[record["stage"]] = share
    return lost


def lost_in_all(shares: Iterable[float]) -> float:
    """The share that consecutive stages remove in total, given the share that each removes of its input."""
    return round(1 - math.prod(1 - share for share in shares), ROUNDING)


def source_loss(
    records: Iterable[Mapping[str, Any]],
    limits: Mapping[str, float],
    examples: Callable[[str], Sequence[str]] = lambda source: (),
) -> Verdict:
    """No source loses more than its limit to the stages of a corpus.

    `records` are those of the stages that remove documents or text, each with measures removed_fraction_<source>, the
    share of the input of that stage. `limits` has `removed_fraction` for all sources and removed_fraction_<source>
    for single ones. `examples` returns examples of what a source lost and what was kept instead. Observed value and
    limit are those of the source that is furthest above its own limit, or nearest to it.
    """
    lost = lost_shares(records)
    totals = {source: lost_in_all(shares.values()) for source, shares in lost.items()}
    own = {source: limits.get(f"{REMOVED}_{source}", limits[REMOVED]) for source in totals}
    above = {source: total - own[source] for source, total in totals.items()}
    worst = max(sorted(above), key=above.__getitem__, default=None)
    details = {
        source: f"lost {totals[source]:.1%} in total ("
        + ", ".join(f"{stage} {share:.1%}" for stage, share in lost[source].items() if share)
        + f"), limit {own[source]:.1%}"
        + "".join(f"; {example}" for example in examples(source))
        for source in sorted(above)
        if above[source] > 0
    }
    return Verdict(
        passed=not details,
        rule=f"share of source `{worst}` that is removed <= limit",
        observed=totals[worst] if worst else 0.0,
        limit=own[worst] if worst else limits[REMOVED],
        details=details,
        failure=" ".join(
            f"the source `{source}` {details[source].split(';')[0]}; if that is right, set {REMOVED}_{source} in"
            " [checks.corpus]."
            for source in sorted(details, key=above.__getitem__, reverse=True)
        ),
    )
