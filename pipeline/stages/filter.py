"""Stage `filter`: keep the documents in the wanted languages that read like text, and say why for the rest.

In: document shards. Out: shards of the same names with the signals as columns; dropped/ with the first rule that a
document breaks and the value that broke it. Rules in their order: length, language, then the others of Gopher
(arXiv:2112.11446, section A.1.1). Stop words are looked for in English documents only, without regard to case.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa

from pipeline.stages.engine import Done, Engine, Failed
from pipeline.stages.language import UNDETERMINED, language_of
from pipeline.stages.records import DOCUMENT, DROPPED, FILTERED, PREVIEW_CHARACTERS, Counts, Shards
from pipeline.stages.shards import DROPPED_FOLDER, read_table, shard_paths, write_rows
from pipeline.stages.store import Outcome, Stage, Work, map_shards

BATCH_CHARACTERS = 1_000_000
BATCH_DOCUMENTS = 256
BATCH_SECONDS = 120.0

STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
HAS_LETTER = re.compile(r"[^\W\d_]")
HAS_LETTER_OR_DIGIT = re.compile(r"[^\W_]")
BULLETS = ("\u2022", "\u2023", "\u25e6", "\u25aa", "- ", "* ")
ELLIPSIS = re.compile("\\.\\.\\.|\u2026")
LANGUAGE_CODE = re.compile(r"[a-z]{2,3}")


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterConfig:
    languages: Annotated[tuple[str, ...], "ISO 639-1 codes of the languages to keep; empty = all"] = ("en",)
    min_language_confidence: Annotated[float, "0 to 1; FineWeb uses 0.65 with another detector"] = 0.65
    min_words: Annotated[int, "words with a letter or digit; 0 or more; Gopher 50"] = 50
    max_words: Annotated[int, "words with a letter or digit; Gopher 100000; whole books are longer"] = 1_000_000
    min_mean_word_length: Annotated[float, "characters; Gopher 3"] = 3.0
    max_mean_word_length: Annotated[float, "characters; Gopher 10"] = 10.0
    max_symbol_to_word_ratio: Annotated[float, "'#' and ellipses a word; Gopher 0.1"] = 0.1
    max_bullet_line_fraction: Annotated[float, "lines that begin with a bullet, 0 to 1; Gopher 0.9"] = 0.9
    max_ellipsis_line_fraction: Annotated[float, "lines that end in an ellipsis, 0 to 1; Gopher 0.3"] = 0.3
    min_alphabetic_word_fraction: Annotated[float, "words with a letter, 0 to 1; Gopher 0.8"] = 0.8
    min_stop_words: Annotated[int, "how many of the eight stop words occur, 0 to 8; Gopher 2"] = 2

    def __post_init__(self) -> None:
        if bad := [code for code in self.languages if not LANGUAGE_CODE.fullmatch(code)]:
            raise ValueError(f"languages={self.languages}: {bad} are no ISO 639-1 codes such as 'en'")
        for name in ("min_language_confidence", "max_bullet_line_fraction", "max_ellipsis_line_fraction"):
            self._check(name, 0, 1)
        self._check("min_alphabetic_word_fraction", 0, 1)
        self._check("min_stop_words", 0, len(STOP_WORDS))
        self._check("min_words", 0, self.max_words)
        self._check("min_mean_word_length", 0, self.max_mean_word_length)
        self._check("max_symbol_to_word_ratio", 0, float("inf"))

    def _check(self, name: str, low: float, high: float) -> None:
        if not low <= getattr(self, name) <= high:
            raise ValueError(f"{name}={getattr(self, name)} is outside {low} to {high}")


def filter_documents(cfg: FilterConfig, inputs: tuple[Shards], work: Work) -> Outcome:
    def write(part: Path, batches: list[pa.Table], answers: list[Done | Failed]) -> Counts:
        return _write(cfg, part, batches, answers, work.engine)

    counts = map_shards(
        work, inputs, read=_batches, function=signals_of_batch, write=write, seconds=BATCH_SECONDS, unit="documents"
    )
    kept = tuple(path.name for path in shard_paths(work.directory))
    return Outcome(rows=counts.kept, counts=counts, content=kept)


FILTER = Stage(name="filter", version=1, function=filter_documents, handle=Shards, libraries=("py3langid",))


def broken_rule(signals: Mapping[str, Any], cfg: FilterConfig) -> tuple[str, float] | None:
    """Name of the first rule that a document breaks, with the value that broke it; None to keep it."""
    if signals["n_words"] < cfg.min_words:  # before the language, which few words do not tell
        return "too_few_words", float(signals["n_words"])
    if cfg.languages and (
        signals["language"] not in cfg.languages or signals["language_confidence"] < cfg.min_language_confidence
    ):
        return "wrong_language", signals["language_confidence"]
    rules = (
        ("too_many_words", "n_words", None, cfg.max_words),
        ("mean_word_length", "mean_word_length", cfg.min_mean_word_length, cfg.max_mean_word_length),
        ("symbol_ratio", "symbol_to_word_ratio", None, cfg.max_symbol_to_word_ratio),
        ("bullet_lines", "bullet_line_fraction", None, cfg.max_bullet_line_fraction),
        ("ellipsis_lines", "ellipsis_line_fraction", None, cfg.max_ellipsis_line_fraction),
        ("few_alphabetic_words", "alphabetic_word_fraction", cfg.min_alphabetic_word_fraction, None),
        ("few_stop_words", "n_stop_words", cfg.min_stop_words if signals["language"] == "en" else None, None),
    )
    for reason, signal, low, high in rules:
        value = signals[signal]
        if (low is not None and value < low) or (high is not None and value > high):
            return reason, float(value)
    return None


def signals_of(text: str) -> dict[str, Any]:
    """The columns of records.SIGNALS for one text."""
    words = text.split()
    word_lengths = [len(word) for word in words if HAS_LETTER_OR_DIGIT.search(word)]
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    n_symbols = text.count("#") + len(ELLIPSIS.findall(text))
    language, confidence = language_of(text) if word_lengths else (UNDETERMINED, 0.0)
    return {
        "language": language,
        "language_confidence": confidence,
        "n_words": len(word_lengths),
        "mean_word_length": sum(word_lengths) / max(1, len(word_lengths)),
        "symbol_to_word_ratio": n_symbols / max(1, len(words)),
        "bullet_line_fraction": sum(line.startswith(BULLETS) for line in lines) / max(1, len(lines)),
        "ellipsis_line_fraction": sum(line.endswith(("...", "\u2026")) for line in lines) / max(1, len(lines)),
        "alphabetic_word_fraction": sum(map(bool, map(HAS_LETTER.search, words))) / max(1, len(words)),
        "n_stop_words": len(STOP_WORDS & {word.lower() for word in words}),
    }


def signals_of_batch(batch: pa.Table) -> list[dict[str, Any]]:
    """Runs in a worker process."""
    return [signals_of(text.as_py()) for text in batch["text"]]


def _batches(path: Path) -> list[pa.Table]:
    table = read_table(path, DOCUMENT).select(DOCUMENT.names)
    starts, characters = [0], 0
    for row, text in enumerate(table["text"]):
        n_characters = len(text.as_py())
        if row - starts[-1] == BATCH_DOCUMENTS or (characters and characters + n_characters > BATCH_CHARACTERS):
            starts.append(row)
            characters = 0
        characters += n_characters
    ends = [*starts[1:], table.num_rows]
    return [table.slice(start, end - start) for start, end in zip(starts, ends, strict=True) if end > start]


def _write(
    cfg: FilterConfig, part: Path, batches: list[pa.Table], answers: list[Done | Failed], engine: Engine
) -> Counts:
    counts = Counts()
    kept, dropped = [], []
    for row, answer in _answered_rows(batches, answers, engine):
        counts.rows_in += 1
        signals, broken = {}, None
        if isinstance(answer, Failed):
            broken = (answer.reason, None)
        else:
            signals = answer.value
            broken = broken_rule(signals, cfg)
        if broken is None:
            counts.kept += 1
            kept.append({**row, **signals})
        else:
            counts.drop(broken[0])
            dropped.append(_dropped_row(row, *broken))
    write_rows(part / "kept.parquet", kept, FILTERED)
    if dropped:
        write_rows(part / f"{DROPPED_FOLDER}.parquet", dropped, DROPPED)
    return counts


def _answered_rows(
    batches: list[pa.Table], answers: list[Done | Failed], engine: Engine
) -> Iterator[tuple[dict[str, Any], Done | Failed]]:
    """Each document with its signals; the documents of a batch that failed are tried one by one."""
    for batch, answer in zip(batches, answers, strict=True):
        if isinstance(answer, Failed):
            single = [batch.slice(row, 1) for row in range(batch.num_rows)]
            each = list(engine.map(signals_of_batch, single, seconds=BATCH_SECONDS))
            values = [Done(one.value[0]) if isinstance(one, Done) else one for one in each]
        else:
            values = [Done(value) for value in answer.value]
        yield from zip(batch.to_pylist(), values, strict=True)


def _dropped_row(row: Mapping[str, Any], reason: str, score: float | None) -> dict[str, Any]:
    return {
        "id": row["id"],
        "page_id": row["page_id"],
        "source": row["source"],
        "url": row["url"],
        "stage": FILTER.name,
        "reason": reason,
        "score": score,
        "preview": row["text"][:PREVIEW_CHARACTERS],
    }
