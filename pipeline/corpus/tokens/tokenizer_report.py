"""Measures a tokenizer on a corpus and compares it with published ones on the same documents.

In: tokenizers by name, the first of which is under test, and sampled documents. Out: numbers (JSON), the same as
Markdown, and the measures that are plotted over time. Bytes per token show how short texts become; they are given per
source and per language, because a tokenizer that was learned on one of them is poor on the others. Tokens that no
sampled document uses are parameters that a model cannot learn.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from model.tokenizer import Tokenizer

SPACE = "\u2423"
SHOWN = 30  # number of longest and of unused tokens in the report
PLOTTED_SOURCES = 20  # whose bytes per token are a measure of their own
KINDS: tuple[str, ...] = (
    "a word with the space before it",
    "a word or a part of one",
    "digits",
    "signs",
    "white space",
    "several of these",
    "a part of a character",
)


@dataclass(frozen=True, slots=True)
class Sampled:
    source: str
    language: str
    held_out: bool  # from the validation split, so not learned from
    text: str


def measured(tokenizers: Mapping[str, Tokenizer], documents: Sequence[Sampled]) -> dict[str, Any]:
    """All numbers of the report, per tokenizer if they depend on it."""
    texts = [document.text for document in documents]
    n_bytes = np.array([len(text.encode()) for text in texts], np.int64)
    n_tokens, vocabularies = {}, {}
    for name, tokenizer in tokenizers.items():
        encoded = tokenizer.encode_batch(texts)
        n_tokens[name] = np.array([len(ids) for ids in encoded], np.int64)
        flat = np.fromiter((token for ids in encoded for token in ids), np.int64, int(n_tokens[name].sum()))
        vocabularies[name] = _vocabulary(tokenizer, np.bincount(flat, minlength=tokenizer.vocab_size))
    group = _grouped(documents, n_bytes, n_tokens)
    return {
        "documents": len(documents),
        "bytes": int(n_bytes.sum()),
        "all": group(lambda document: "all"),
        "sources": group(lambda document: document.source),
        "languages": group(lambda document: document.language),
        "vocabularies": vocabularies,
    }


def report_markdown(numbers: Mapping[str, Any], missing: Mapping[str, str]) -> str:
    """The report as Markdown. `missing`: name of a tokenizer that could not be compared -> reason."""
    names = list(numbers["vocabularies"])
    judged = numbers["vocabularies"][names[0]]
    lines = ["# Tokenizer", ""]
    if not numbers["documents"]:
        return "\n".join([*lines, "There is nothing to measure, because no document is in train or validation.", ""])
    lines += [
        f"Measured on {numbers['documents']:,} documents of {numbers['bytes'] / 1e6:.2f} MB: an equal share"
        " per source, documents of validation first.",
        "",
        "## Bytes per token",
        "",
        "More bytes per token mean shorter sequences. Held out: the share of these bytes that the tokenizer was not"
        " learned from.",
        "",
    ]
    for title, rows in (("source", [*numbers["sources"], *numbers["all"]]), ("language", numbers["languages"])):
        header = [title, "documents", "MB", "held out", *names]
        lines += [*_table(header, [_group_cells(row, names) for row in rows]), ""]
    lines += [f"{name} is left out of the comparison: {reason}\n" for name, reason in missing.items()]
    lines += ["## Vocabulary", "", *_vocabulary_table(numbers["vocabularies"]), ""]
    lines += [
        "## Tokens by kind",
        "",
        "Number of tokens in the vocabulary, and their share of all tokens in these documents.",
        "",
    ]
    lines += [
        *_kinds_table(numbers["vocabularies"]),
        "",
        f"## Longest tokens of {names[0]}",
        "",
        f"{SPACE} is a space.",
        "",
    ]
    lines += [*_table(["token", "bytes", "uses"], [list(map(str, row)) for row in judged["longest"]]), ""]
    lines += [f"## Unused tokens of {names[0]}", "", _unused_text(judged), ""]
    return "\n".join(lines)


def report_measures(numbers: Mapping[str, Any]) -> dict[str, float]:
    """The measures to plot: all of the tokenizer under test, and bytes per token of the others."""
    if not numbers["documents"]:
        return {}
    names = list(numbers["vocabularies"])
    (total,) = numbers["all"]
    measures = {"unused_tokens": numbers["vocabularies"][names[0]]["unused"]}
    for name in names:
        measures["bytes_per_token" if name == names[0] else f"bytes_per_token_{name}"] = total["bytes_per_token"][
            name
        ]
    for row in numbers["sources"][:PLOTTED_SOURCES]:
        measures[f"bytes_per_token_of_{row['name']}"] = row["bytes_per_token"][names[0]]
    return {name: value for name, value in measures.items() if value is not None}


def kind_of(token: bytes) -> str:
    """The kind of a token, one of KINDS."""
    try:
        text = token.decode()
    except UnicodeDecodeError:
        return "a part of a character"
    if text.isspace():
        return "white space"
    inner = text.removeprefix(" ")
    if inner.isalpha():
        return KINDS[0] if inner != text else KINDS[1]
    if inner.isnumeric():
        return "digits"
    return "several of these" if any(map(str.isalnum, inner)) else "signs"


def shown(token: bytes) -> str:
    """`token` for a table: a space is shown as an open box, and invisible characters are escaped."""
    text = token.decode("utf-8", "backslashreplace")
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "`" + re.sub(r"[`|]", lambda match: f"\\x{ord(match.group()):02x}", escaped).replace(" ", SPACE) + "`"


def _grouped(
    documents: Sequence[Sampled], n_bytes: np.ndarray, n_tokens: Mapping[str, np.ndarray]
) -> Callable[[Callable[[Sampled], str]], list[dict[str, Any]]]:
    held_out = np.array([document.held_out for document in documents], bool)

    def group(name_of: Callable[[Sampled], str]) -> list[dict[str, Any]]:
        rows = defaultdict(list)
        for i, document in enumerate(documents):
            rows[name_of(document)].append(i)
        return [_group(name, np.array(own), n_bytes, n_tokens, held_out) for name, own in sorted(rows.items())]

    return group


def _group(
    name: str, own: np.ndarray, n_bytes: np.ndarray, n_tokens: Mapping[str, np.ndarray], held_out: np.ndarray
) -> dict[str, Any]:
    total = int(n_bytes[own].sum())
    tokens = {tokenizer: int(counts[own].sum()) for tokenizer, counts in n_tokens.items()}
    return {
        "name": name,
        "documents": len(own),
        "bytes": total,
        "held_out_bytes": int((n_bytes[own] * held_out[own]).sum()),
        "tokens": tokens,
        "bytes_per_token": {one: total / count if count else None for one, count in tokens.items()},
    }


def _vocabulary(tokenizer: Tokenizer, uses: np.ndarray) -> dict[str, Any]:
    tokens = list(tokenizer.ranks)
    kinds = [kind_of(token) for token in tokens]
    in_vocabulary, in_documents = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
    for kind, count in zip(kinds, uses[: len(tokens)].tolist(), strict=True):
        in_vocabulary[kind] += 1
        in_documents[kind] += count
    unused = np.flatnonzero(uses[: len(tokens)] == 0).tolist()
    merged = [rank for rank in unused if len(tokens[rank]) > 1]
    longest = sorted(range(len(tokens)), key=lambda rank: (-len(tokens[rank]), rank))[:SHOWN]
    return {
        "vocab_size": tokenizer.vocab_size,
        "tokens": len(tokens),
        "unused": len(unused),
        "single_bytes_unused": len(unused) - len(merged),
        "kinds": in_vocabulary,
        "uses_by_kind": in_documents,
        "longest": [[shown(tokens[rank]), len(tokens[rank]), int(uses[rank])] for rank in longest],
        "first_unused": [shown(tokens[rank]) for rank in merged[:SHOWN]],
    }


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in [header, *rows]]
    return [lines[0], "|---|" + "---:|" * (len(header) - 1), *lines[1:]]


def _group_cells(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    share = row["held_out_bytes"] / row["bytes"] if row["bytes"] else 0
    values = [row["bytes_per_token"][name] for name in names]
    return [
        row["name"],
        f"{row['documents']:,}",
        f"{row['bytes'] / 1e6:.2f}",
        f"{share:.0%}",
        *("-" if value is None else f"{value:.2f}" for value in values),
    ]


def _vocabulary_table(vocabularies: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = [
        ["vocabulary size (largest id + 1)", *(f"{one['vocab_size']:,}" for one in vocabularies.values())],
        ["never used in these documents", *(_share(one["unused"], one["tokens"]) for one in vocabularies.values())],
        ["longest token, bytes", *(f"{one['longest'][0][1]:,}" for one in vocabularies.values())],
    ]
    return _table(["", *vocabularies], rows)


def _kinds_table(vocabularies: Mapping[str, Mapping[str, Any]]) -> list[str]:
    totals = {name: max(1, sum(one["uses_by_kind"].values())) for name, one in vocabularies.items()}
    rows = [
        [
            kind,
            *(
                f"{one['kinds'][kind]:,} ({one['uses_by_kind'][kind] / totals[name]:.1%})"
                for name, one in vocabularies.items()
            ),
        ]
        for kind in KINDS
    ]
    return _table(["kind", *vocabularies], rows)


def _unused_text(vocabulary: Mapping[str, Any]) -> str:
    n_merged = vocabulary["unused"] - vocabulary["single_bytes_unused"]
    text = (
        f"{_share(vocabulary['unused'], vocabulary['tokens'])} of {vocabulary['tokens']:,} tokens,"
        f" {vocabulary['single_bytes_unused']} of them single bytes."
    )
    if n_merged:
        text += f" The first {min(n_merged, SHOWN)} of the others: {' '.join(vocabulary['first_unused'])}"
    return text


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({part / whole:.1%})"
