"""The mixture: how many copies of each document are in the train stream.

In: encoded shards, the weights of the sources, and the setting that rehydrates clusters of duplicates. Out: the
number of copies of every document, a pure function of (seed, page ids, tokens). The multiplicity of a document is the
weight of its source times the factor of its cluster size. Its integer part is the number of copies of every such
document. A fraction is a share of the tokens of all documents of equal source and factor that get one more copy: the
documents with the lowest hash(seed, page_id), as many as come nearest to it. Documents of validation and test are
always used once.

Steps: add up the tokens per group and, if a fraction is needed, per range of the hash; the range in which the share
ends is read again for the exact limit. Memory does not depend on the number of documents.

rehydration "fineweb2" has the factors of the FineWeb2 README, section "Deduplication" (arXiv:2506.20920).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from pipeline.corpus.tokens.encode import offsets_of, read_batches, read_encoded
from pipeline.store.records import DROPPED, SPLITS, dropped_rows
from pipeline.store.shards import replacing

LEFT_OUT = "down_weighted"  # drop reason
N_RANGES = 1 << 16  # of the hash
RANGE_BITS = np.uint64(64 - 16)
EVERYTHING = 1 << 64
NEARLY = 1e-9  # 0.1 * 30 is slightly more than 3

Group = tuple[str, int]  # source, factor of the cluster size


@dataclass(kw_only=True, slots=True)
class Share:
    """What a source contributes to the train stream."""

    documents: int = 0  # each counted once
    tokens: int = 0  # each counted once
    train_tokens: int = 0  # in the train stream, copies included

    def described(self, n_train_tokens: int) -> dict[str, float]:
        return {
            "documents": self.documents,
            "tokens": self.tokens,
            "train_tokens": self.train_tokens,
            "epochs": self.train_tokens / self.tokens if self.tokens else 0.0,
            "share": self.train_tokens / n_train_tokens if n_train_tokens else 0.0,
        }


@dataclass(kw_only=True, slots=True)
class Mixture:
    """`limits`: group -> the hash below which documents have one more copy. Filled by `fit`."""

    weights: Mapping[str, float]
    rehydration: str
    seed: int
    limits: dict[Group, int] = field(default_factory=dict)
    sources: dict[str, Share] = field(default_factory=dict)  # documents of the train split only
    n_bytes: dict[str, int] = field(default_factory=dict)  # split -> bytes of its tokens in the stream, estimated
    n_documents: dict[str, int] = field(default_factory=dict)  # split -> documents in the stream, estimated

    def multiplicity(self, group: Group) -> float:
        return self.weights.get(group[0], 1.0) * group[1]

    def copies(self, batch: pa.RecordBatch) -> np.ndarray:
        """Number of copies as int64, one value per document of the batch."""
        copies = np.ones(batch.num_rows, np.int64)
        for group, rows in self._groups(batch):
            copies[rows] = int(self.multiplicity(group) + NEARLY)
            if (limit := self.limits.get(group, 0)) >= EVERYTHING:
                copies[rows] += 1
            elif limit:
                copies[rows] += _choices(batch, rows, self.seed) < np.uint64(limit)
        return copies

    def scores(self, batch: pa.RecordBatch) -> np.ndarray:
        """The multiplicity of every document."""
        scores = np.ones(batch.num_rows)
        for group, rows in self._groups(batch):
            scores[rows] = self.multiplicity(group)
        return scores

    @property
    def leaves_out(self) -> bool:
        """Whether there may be documents without a copy."""
        return any(weight < 1 for weight in self.weights.values())

    def fit(self, paths: Sequence[Path]) -> None:
        """Add up the groups in the encoded shards `paths`, and find the limits of the fractions."""
        tokens: dict[Group, int] = {}
        ranges: dict[Group, np.ndarray] = {}
        self.n_bytes, self.n_documents = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
        for batch, lengths in _batches(paths):
            width = batch.column("tokens").type.value_type.bit_width // 8
            for side, rows in _rows_by(batch, "split"):
                if side != "train":
                    self._count(side, len(rows), width * int(lengths[rows].sum()))
            for group, rows in self._groups(batch):
                n_tokens, times = int(lengths[rows].sum()), self.multiplicity(group)
                share = self.sources.setdefault(group[0], Share())
                share.documents += len(rows)
                share.tokens += n_tokens
                share.train_tokens += int(times + NEARLY) * n_tokens
                tokens[group] = tokens.get(group, 0) + n_tokens
                self._count("train", int(times * len(rows)), int(width * times * n_tokens))
                if _fraction(times):
                    counts = ranges.setdefault(group, np.zeros(N_RANGES, np.int64))
                    of_rows = (_choices(batch, rows, self.seed) >> RANGE_BITS).astype(np.int64)
                    np.add.at(counts, of_rows, lengths[rows])
        if ranges:
            wanted = {group: _fraction(self.multiplicity(group)) * tokens[group] for group in ranges}
            for group, (limit, n_tokens) in _limits(self._inside(paths, ranges, wanted), ranges, wanted).items():
                self.limits[group] = limit
                self.sources[group[0]].train_tokens += n_tokens

    def _count(self, side: str, n_documents: int, n_bytes: int) -> None:
        self.n_documents[side] += n_documents
        self.n_bytes[side] += n_bytes

    def _inside(
        self, paths: Sequence[Path], ranges: Mapping[Group, np.ndarray], wanted: Mapping[Group, float]
    ) -> dict[Group, list[tuple[int, int]]]:
        """Hash and tokens of the documents in the range in which the wanted share of a group ends."""
        last = {group: _last_range(ranges[group], wanted[group]) for group in ranges}
        inside: dict[Group, list[tuple[int, int]]] = {group: [] for group in ranges}
        for batch, lengths in _batches(paths):
            for group, rows in self._groups(batch):
                if group in ranges:
                    choices = _choices(batch, rows, self.seed)
                    own = (choices >> RANGE_BITS).astype(np.int64) == last[group]
                    inside[group] += zip(choices[own].tolist(), lengths[rows][own].tolist(), strict=True)
        return inside

    def _groups(self, batch: pa.RecordBatch) -> Iterator[tuple[Group, np.ndarray]]:
        """The rows of the train split by group."""
        train = np.zeros(batch.num_rows, bool)
        for side, rows in _rows_by(batch, "split"):
            train[rows] = side == "train"
        factors = FACTORS[self.rehydration](batch.column("cluster_size").to_numpy())
        for source, rows in _rows_by(batch, "source"):
            rows = rows[train[rows]]
            for factor in np.unique(factors[rows]).tolist():
                yield (source, factor), rows[factors[rows] == factor]


def write_left_out(mixture: Mixture, paths: Sequence[Path], encoded: Sequence[Path], folder: Path) -> int:
    """Writes <folder>/<shard>, one row per document without a copy in the train stream. Returns their number."""
    if not mixture.leaves_out:
        return 0
    n_left_out = 0
    for path, tokens in zip(paths, encoded, strict=True):
        scores = [
            np.where(mixture.copies(one) == 0, mixture.scores(one), -1.0) for one in read_encoded(tokens, mapped=True)
        ]
        scores = np.concatenate(scores) if scores else np.zeros(0)
        if not (own := int((scores >= 0).sum())):
            continue
        n_left_out += own
        first = 0
        with replacing(folder / path.name) as part, pq.ParquetWriter(part, DROPPED, compression="zstd") as writer:
            for batch in read_batches(path, ["id", "page_id", "source", "url", "text"]):
                of_batch = scores[first : first + batch.num_rows]
                first += batch.num_rows
                writer.write_table(_left_out_rows(batch, of_batch))
    return n_left_out


def _left_out_rows(batch: pa.RecordBatch, scores: np.ndarray) -> pa.Table:
    """Rows of records.DROPPED for the documents whose score is not negative; the score is their multiplicity."""
    rows = pa.Table.from_batches([batch.take(pa.array(np.flatnonzero(scores >= 0)))])
    reasons = pa.array([LEFT_OUT] * rows.num_rows, pa.string())
    return dropped_rows(rows, "tokenize", reasons, pa.array(scores[scores >= 0]))


def described(mixture: Mixture, n_train_tokens: int) -> dict[str, dict[str, float]]:
    """Source -> its share, sorted by name."""
    return {source: share.described(n_train_tokens) for source, share in sorted(mixture.sources.items())}


def mixture_table(sources: Mapping[str, Mapping[str, float]]) -> str:
    """The result of `described` as a Markdown table."""
    lines = [
        "| source | documents | tokens | tokens in the train stream | epochs | share of the stream |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for source, share in sources.items():
        counts = " | ".join(f"{share[name]:,}" for name in ("documents", "tokens", "train_tokens"))
        lines.append(f"| {source} | {counts} | {share['epochs']:.2f} | {share['share']:.1%} |")
    return "\n".join([*lines, ""])


def _once(sizes: np.ndarray) -> np.ndarray:
    return np.ones(len(sizes), np.int64)


def _fineweb2(sizes: np.ndarray) -> np.ndarray:
    """Sizes 1 to 3: as many copies as found; 4: 3; 5 to 99: 5; 100 to 999: 8; 1000 and more (taken for spam): 1."""
    bounds = np.array([2, 3, 5, 100, 1000])
    return np.array([1, 2, 3, 5, 8, 1])[np.searchsorted(bounds, sizes, side="right")]


FACTORS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"none": _once, "fineweb2": _fineweb2}


def _last_range(counts: np.ndarray, wanted: float) -> int:
    return int(np.searchsorted(np.cumsum(counts), wanted))


def _limits(
    inside: Mapping[Group, list[tuple[int, int]]], ranges: Mapping[Group, np.ndarray], wanted: Mapping[Group, float]
) -> dict[Group, tuple[int, int]]:
    """Per group the hash below which documents have one more copy, and the number of tokens of those documents."""
    limits = {}
    for group, documents in inside.items():
        last = _last_range(ranges[group], wanted[group])
        before = int(ranges[group][:last].sum())
        hashes, lengths = zip(*sorted(documents), strict=True)
        ends = before + np.cumsum([0, *lengths])
        n_taken = int(np.argmin(np.abs(ends - wanted[group])))
        limits[group] = ((*hashes, (last + 1) << int(RANGE_BITS))[n_taken], int(ends[n_taken]))
    return limits


def _fraction(multiplicity: float) -> float:
    return max(0.0, multiplicity - int(multiplicity + NEARLY))


def _choices(batch: pa.RecordBatch, rows: np.ndarray, seed: int) -> np.ndarray:
    """uint64 per row. Not the hash of the order, because then the chosen documents would be next to each other."""
    page_ids = batch.column("page_id").take(pa.array(rows)).to_pylist()
    return np.array([xxhash.xxh3_64_intdigest(f"{seed} choice {one}".encode()) for one in page_ids], np.uint64)


def _rows_by(batch: pa.RecordBatch, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """The row numbers of each value of a text column."""
    encoded = batch.column(name).dictionary_encode()
    codes = encoded.indices.to_numpy()
    for code, value in enumerate(encoded.dictionary.to_pylist()):
        yield value, np.flatnonzero(codes == code)


def _batches(paths: Sequence[Path]) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
    """Every batch with the number of tokens of its documents."""
    for path in paths:
        for batch in read_encoded(path, mapped=True):
            yield batch, np.diff(offsets_of(batch.column("tokens"))[1])
