"""A training that mixes two kinds of text: the documents of some sources, and a fixed share of general text.

In: token shards with the column source, and a Mixture. Out: batches in which every row holds text of one kind, and
the general rows are the given share of all rows of the training, exactly: of the first n rows floor(n * share) are
general. Each kind is read in epochs of its own, in an order that depends on the seed alone, so that a step is a
function of (shards, seed, step), and the number of the step is all that a resume needs. General text keeps a model
from forgetting what it could do before (arXiv:2403.08763 section 6.2).

Steps: a stream of the documents of the domain, followed by the general ones; a plan of rows for each of the two
parts; places of the order of all rows are dealt out to the parts.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from model.data.batches import TokenBatches, places_below, rows_in_order
from model.data.packing import RowPlan, Spans
from model.data.token_shards import TokenShard
from model.data.token_stream import TokenStream, ranges
from model.training.config import TrainConfig
from model.training.schedule import warmup_rows

PER_MILLION = 10**6  # a share is a whole number of millionths, so that rows are dealt out without rounding


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """Names of sources. Without `domain` it is all that are not general; without `general` no text is mixed in."""

    domain: tuple[str, ...] = ()
    general: tuple[str, ...] = ()
    general_share: float = 0.0  # of the rows of a training

    def __post_init__(self) -> None:
        if not 0 <= self.general_share < 1:
            raise ValueError(f"general_share={self.general_share} must be at least 0 and below 1")
        if self.general_share and not 0 < round(self.general_share * PER_MILLION) < PER_MILLION:
            raise ValueError(f"general_share={self.general_share} must be 0, or from 0.000001 to 0.999999")
        if both := sorted(set(self.domain) & set(self.general)):
            raise ValueError(f"the source {both[0]!r} is in domain and in general; name it in one of them")
        if bool(self.general) != (self.general_share > 0):
            raise ValueError(
                f"general={list(self.general)} and general_share={self.general_share} do not fit together: name"
                " sources and give a share above 0, or neither"
            )

    def sources(self, known: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Sources of the domain, and general ones. ValueError for a name that is not among the `known` ones."""
        for key, names in (("domain", self.domain), ("general", self.general)):
            if unknown := [name for name in names if name not in known]:
                raise ValueError(
                    f"{key}: no document is from the source {unknown[0]!r}; there are {', '.join(sorted(known))}"
                )
        domain = self.domain or tuple(sorted(set(known) - set(self.general)))
        if not domain:
            raise ValueError("general names every source, so that no text of a domain is left; name fewer")
        return domain, self.general

    def is_domain(self, sources: np.ndarray) -> np.ndarray:
        """Which of the sources of documents belong to the domain."""
        return np.isin(sources, self.domain) if self.domain else ~np.isin(sources, self.general)

    def is_general(self, sources: np.ndarray) -> np.ndarray:
        """Which of the sources of documents do not belong to the domain, whether they were mixed in or not."""
        return ~self.is_domain(sources)


def mixture_of(values: Mapping[str, Any]) -> Mixture:
    """The mixture from the values that `dataclasses.asdict` and JSON made of it."""
    return Mixture(**{**values, "domain": tuple(values["domain"]), "general": tuple(values["general"])})


def sources_of(shards: Sequence[TokenShard]) -> np.ndarray:
    """The source of every document of the shards, one after another. ValueError for shards without the column."""
    if without := next((shard.path for shard in shards if shard.sources is None), None):
        raise ValueError(f"{without} has no column source, by which texts are mixed; tokenise again")
    parts = [np.asarray(shard.sources.to_pylist(), np.str_) for shard in shards if shard.sources is not None]
    return np.concatenate([np.zeros(0, np.str_), *parts])


class SelectedStream(TokenStream):
    """Some of the documents of all shards, in any order, as one stream."""

    def __init__(self, shards: Sequence[TokenShard], documents: np.ndarray) -> None:
        """`documents`: their numbers, counted through all shards."""
        super().__init__(shards)
        self.whole, self.documents = TokenStream(shards), documents

    @property
    def n_tokens(self) -> int:
        return int(self.borders[-1])

    @property
    def n_bytes(self) -> int:
        n_bytes = np.concatenate([np.zeros(0, np.int64), *(shard.n_bytes for shard in self.shards)])
        return int(n_bytes[self.documents].sum())

    @cached_property
    def borders(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(np.diff(self.whole.borders)[self.documents])])

    def _gather(self, arrays: Sequence[np.ndarray], starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """A span becomes one span of all shards for each document in it."""
        first = self.documents_at(starts)
        n_documents = np.where(lengths > 0, self.documents_at(starts + lengths - 1) - first + 1, 0)
        numbers, span = ranges(first, n_documents), np.repeat(np.arange(len(starts)), n_documents)
        low = np.maximum(self.borders[numbers], starts[span])
        high = np.minimum(self.borders[numbers + 1], (starts + lengths)[span])
        moved = self.whole.borders[self.documents[numbers]] - self.borders[numbers]
        return super()._gather(arrays, low + moved, high - low)

    def shard_of(self, position: int) -> TokenShard:
        (number,) = self.documents_at(np.array([position]))
        return super().shard_of(int(self.whole.borders[self.documents[number]]))

    def document_ids(self, numbers: np.ndarray) -> list[str]:
        return super().document_ids(self.documents[numbers])

    def number_of(self, shard: int, row: int) -> int | None:
        (found,) = np.nonzero(self.documents == self.whole.number_of(shard, row))
        return int(found[0]) if len(found) else None


class JoinedPlan:
    """The rows of a first plan, then those of a second one, for a stream of the first one's documents, then the
    second one's."""

    def __init__(self, first: RowPlan, second: RowPlan, n_tokens: int, n_documents: int) -> None:
        """`n_tokens` and `n_documents` of the first plan's part of the stream."""
        self.plans, self.n_tokens, self.n_documents = (first, second), n_tokens, n_documents
        self.n_first, self.n_rows = first.n_rows, first.n_rows + second.n_rows

    def spans(self, rows: np.ndarray) -> Spans:
        is_second, parts = rows >= self.n_first, []
        for plan, which, row, token in zip(
            self.plans, (~is_second, is_second), (0, self.n_first), (0, self.n_tokens), strict=True
        ):
            places, own = np.flatnonzero(which), plan.spans(rows[which] - row)
            parts.append((places[own.rows], own.starts + token, own.lengths))
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        order = np.argsort(columns[0], kind="stable")
        return Spans(*(column[order] for column in columns))

    def documents(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row after row, as of one plan."""
        parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
        is_second = rows >= self.n_first
        for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(is_second)) + 1):
            if not len(run):
                continue
            second = bool(is_second[run[0]])
            numbers, n_targets = self.plans[second].documents(rows[run] - second * self.n_first)
            parts.append((numbers + second * self.n_documents, n_targets))
        numbers, n_targets = (np.concatenate(column) for column in zip(*parts, strict=True))
        return numbers, n_targets

    def rows_of_tokens(self, start: int, end: int) -> np.ndarray:
        if end <= self.n_tokens:
            return self.plans[0].rows_of_tokens(start, end)
        if start >= self.n_tokens:
            return self.n_first + self.plans[1].rows_of_tokens(start - self.n_tokens, end - self.n_tokens)
        parts = self.rows_of_tokens(start, self.n_tokens), self.rows_of_tokens(self.n_tokens, end)
        return np.concatenate(parts)


class MixedBatches(TokenBatches):
    """Batches of a Mixture; all but the order of the rows is as in TokenBatches."""

    def __init__(
        self, shards: Sequence[TokenShard], domain: np.ndarray, general: np.ndarray, general_share: float, **how
    ) -> None:
        """`domain` and `general`: numbers of documents; `how`: the other arguments of TokenBatches.

        Raises ValueError when one of the two kinds does not hold a single row.
        """
        parts = [TokenBatches(SelectedStream(shards, documents), **how) for documents in (domain, general)]
        super().__init__(SelectedStream(shards, np.concatenate([domain, general])), **how)
        self.plan = JoinedPlan(parts[0].plan, parts[1].plan, parts[0].stream.n_tokens, len(domain))
        self.n_part_rows = [part.plan.n_rows for part in parts]
        self.share = round(general_share * PER_MILLION)

    @property
    def rows_per_epoch(self) -> int:
        """Rows until the domain was read once."""
        return -(-self.n_part_rows[0] * PER_MILLION // (PER_MILLION - self.share))

    def n_general(self, n_rows: int | np.ndarray) -> "int | np.ndarray":
        """How many of the first `n_rows` rows are general."""
        return n_rows * self.share // PER_MILLION

    def rows_of_places(self, start: int, end: int) -> np.ndarray:
        places = np.arange(start, end)
        is_general = self.n_general(places + 1) > self.n_general(places)
        general = int(self.n_general(start)), int(self.n_general(end))
        n_domain, n_general = self.n_part_rows
        rows = np.empty(end - start, np.int64)
        rows[~is_general] = rows_in_order(start - general[0], end - general[1], n_domain, self.seed)
        rows[is_general] = n_domain + rows_in_order(*general, n_general, self.seed)
        return rows

    def places_of_rows(self, rows: np.ndarray, n_read: int) -> np.ndarray:
        n_domain, n_general = self.n_part_rows
        is_general, n_read_general = rows >= n_domain, int(self.n_general(n_read))
        domain = places_below(rows[~is_general], n_domain, self.seed, n_read - n_read_general)
        general = places_below(rows[is_general] - n_domain, n_general, self.seed, n_read_general)
        # the first place that has more rows of its kind before its end than the row's own place
        return np.concatenate(
            [domain * PER_MILLION // (PER_MILLION - self.share), -(-(general + 1) * PER_MILLION // self.share) - 1]
        )


def mixed_batches(
    shards: Sequence[TokenShard], mixture: Mixture, cfg: TrainConfig, vocab_size: int | None = None
) -> TokenBatches:
    """The batches that a training by `cfg` reads. ValueError for sources that the shards do not have."""
    names = sources_of(shards)
    domain, general = (np.flatnonzero(np.isin(names, part)) for part in mixture.sources(set(names.tolist())))
    same = {name: getattr(cfg, name) for name in ("rows", "seq_len", "seed", "packing", "document_mask")}
    how = same | {"warmup_rows": warmup_rows(cfg), "vocab_size": vocab_size}
    if not len(general):
        return TokenBatches(SelectedStream(shards, domain), **how)
    return MixedBatches(shards, domain, general, mixture.general_share, **how)


def domain_stream(shards: Sequence[TokenShard], mixture: Mixture) -> TokenStream:
    """The documents of the domain; none where the shards, as those of a validation split may, have none."""
    return SelectedStream(shards, np.flatnonzero(mixture.is_domain(sources_of(shards))))
