"""Measures a tokenizer on a corpus and compares it with published ones on the same documents.

In: tokenizers by name, the first of which is under test, and sampled documents. Out: numbers (JSON), the same as
Markdown, and the measures that are plotted over time. Bytes per token show how short texts become; they are given per
source and per language, because a tokenizer that was learned on one of them is poor on the others. Tokens that no
sampled document uses are parameters that a model cannot learn.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from model.data.tokenizer import Tokenizer

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
REPORT = """# Tokenizer

Measured on {documents:,} documents of {megabytes:.2f} MB: an equal share per source, documents of validation first.

## Bytes per token

More bytes per token mean shorter sequences. Held out: the share of these bytes that the tokenizer was not learned\
 from.

{sources}

{languages}

{missing}## Vocabulary

{vocabularies}

## Tokens by kind

Number of tokens in the vocabulary, and their share of all tokens in these documents.

{kinds}

## Longest tokens of {name}

{space} is a space.

{longest}

## Unused tokens of {name}

{unused}
"""


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
    held_out = np.array([document.held_out for document in documents], bool)
    return {
        "documents": len(documents),
        "bytes": int(n_bytes.sum()),
        "all": _groups(["all"] * len(documents), n_bytes, n_tokens, held_out),
        "sources": _groups([document.source for document in documents], n_bytes, n_tokens, held_out),
        "languages": _groups([document.language for document in documents], n_bytes, n_tokens, held_out),
        "vocabularies": vocabularies,
    }


def report_markdown(numbers: Mapping[str, Any], missing: Mapping[str, str]) -> str:
    """The report as Markdown. `missing`: name of a tokenizer that could not be compared -> reason."""
    if not numbers["documents"]:
        return "# Tokenizer\n\nThere is nothing to measure, because no document is in train or validation.\n"
    vocabularies = numbers["vocabularies"]
    name, *_ = vocabularies
    return REPORT.format(
        documents=numbers["documents"],
        megabytes=numbers["bytes"] / 1e6,
        sources=_groups_table("source", [*numbers["sources"], *numbers["all"]], vocabularies),
        languages=_groups_table("language", numbers["languages"], vocabularies),
        missing="".join(f"{other} is left out of the comparison: {why}\n\n" for other, why in missing.items()),
        vocabularies=_table(["", *vocabularies], _vocabulary_rows(vocabularies.values())),
        kinds=_table(["kind", *vocabularies], _kind_rows(vocabularies.values())),
        name=name,
        space=SPACE,
        longest=_table(["token", "bytes", "uses"], [list(map(str, row)) for row in vocabularies[name]["longest"]]),
        unused=_unused_text(vocabularies[name]),
    )


def report_measures(numbers: Mapping[str, Any]) -> dict[str, float]:
    """The measures to plot: all of the tokenizer under test, and bytes per token of the others."""
    if not numbers["documents"]:
        return {}
    names = list(numbers["vocabularies"])
    (total,) = numbers["all"]
    measures = {"unused_tokens": numbers["vocabularies"][names[0]]["unused"]}
    for name in names:
        measure = "bytes_per_token" if name == names[0] else f"bytes_per_token_{name}"
        measures[measure] = total["bytes_per_token"][name]
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


def _groups(
    names: Sequence[str], n_bytes: np.ndarray, n_tokens: Mapping[str, np.ndarray], held_out: np.ndarray
) -> list[dict[str, Any]]:
    """The numbers of the documents of each name, sorted by name."""
    groups, name_of = [], np.array(names, object)
    for name in sorted(set(names)):
        own = name_of == name
        total = int(n_bytes[own].sum())
        tokens = {tokenizer: int(counts[own].sum()) for tokenizer, counts in n_tokens.items()}
        groups.append(
            {
                "name": name,
                "documents": int(own.sum()),
                "bytes": total,
                "held_out_bytes": int(n_bytes[own & held_out].sum()),
                "tokens": tokens,
                "bytes_per_token": {one: total / count if count else None for one, count in tokens.items()},
            }
        )
    return groups


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


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in [header, *rows]]
    return "\n".join([lines[0], "|---|" + "---:|" * (len(header) - 1), *lines[1:]])


def _groups_table(title: str, groups: Iterable[Mapping[str, Any]], names: Iterable[str]) -> str:
    rows = []
    for group in groups:
        share = group["held_out_bytes"] / group["bytes"] if group["bytes"] else 0
        values = [group["bytes_per_token"][name] for name in names]
        shown_values = ["-" if value is None else f"{value:.2f}" for value in values]
        megabytes = f"{group['bytes'] / 1e6:.2f}"
        rows.append([group["name"], f"{group['documents']:,}", megabytes, f"{share:.0%}", *shown_values])
    return _table([title, "documents", "MB", "held out", *names], rows)


def _vocabulary_rows(vocabularies: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    return [
        ["vocabulary size (largest id + 1)", *(f"{one['vocab_size']:,}" for one in vocabularies)],
        ["never used in these documents", *(_share(one["unused"], one["tokens"]) for one in vocabularies)],
        ["longest token, bytes", *(f"{one['longest'][0][1]:,}" for one in vocabularies)],
    ]


def _kind_rows(vocabularies: Iterable[Mapping[str, Any]]) -> Iterable[list[str]]:
    totals = [max(1, sum(one["uses_by_kind"].values())) for one in vocabularies]
    for kind in KINDS:
        columns = zip(vocabularies, totals, strict=True)
        yield [kind, *(f"{one['kinds'][kind]:,} ({one['uses_by_kind'][kind] / n:.1%})" for one, n in columns)]


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
