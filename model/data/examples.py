"""Labelled examples to global batches: batch k is a pure function of (examples, rows, seed, k).

In: texts, a tokenizer, and what is to be learned of each text. Out: batches of texts of similar length, padded on the
right. Steps: encode and cut the texts; an epoch shuffles all examples, sorts pools of them by length, divides them
into batches and shuffles these. Examples that share rows (conversations.py) need no padding, and are not sorted.
Every example is read once per epoch.

On a GPU rows are padded to one of a few lengths, so that few shapes are compiled and few sizes of memory reused: a
multiple of an eighth of the next lower power of two, at least of 2 (16, 18, 20 ... 32, 36 ...), which adds at most an
eighth and on average a twentieth. On a CPU padding only costs time, and rows are as long as the longest one. No model
may let padding change the result of a row. torch is imported where tensors are made.

Legend: B rows of a batch, T position, N examples.
"""

import threading
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from model.data.batch_layout import IGNORE_INDEX, rows_of_rank

if TYPE_CHECKING:
    from torch import Tensor

POOL_BATCHES = 50  # batches that are sorted by length together: enough for little padding, few enough to shuffle
TYPES = "types_BT"  # name of the segments that tokens belong to, in a batch
LENGTHS_PER_OCTAVE = 8  # lengths that rows are padded to, from one power of two to the next


class Encoder(Protocol):
    """The part of a tokenizer that encoding needs."""

    @property
    def opening(self) -> tuple[int, ...]: ...
    @property
    def closing(self) -> tuple[int, ...]: ...
    def encode_batch(self, texts: list[str]) -> list[list[int]]: ...


class Examples(Protocol):
    """What `ExampleBatches` reads: examples by their places, and how those of a batch are laid out in rows."""

    @property
    def ids(self) -> list[str]: ...
    @property
    def n_cut(self) -> int:
        """Examples that were longer than the model reads, and of which a part is not read."""
        ...

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example; int64 (N,)."""
        ...

    @property
    def packs(self) -> bool:
        """Whether several examples may share a row, so that a batch has fewer rows than examples."""
        ...

    def n_rows(self, places: np.ndarray) -> int:
        """Rows of the batch of the examples at `places`."""
        ...

    def batch(
        self, places: np.ndarray, width: int | None = None, rank: int = 0, n_ranks: int = 1
    ) -> "dict[str, Tensor]":
        """Process `rank`'s rows of that batch; T is `width`, None = the longest length."""
        ...


@dataclass(frozen=True, slots=True)
class EncodedExamples:
    """Rows of batches. An example that is longer than the model reads may be several of them, with one id."""

    ids: list[str]  # of the examples
    tokens: list[np.ndarray]  # int64, at least one per row
    targets: Mapping[str, np.ndarray]  # (N, ...) by the name of the tensor in a batch, for instance labels_B
    n_cut: int = 0  # texts that were longer than the model reads, and of which a part is not read
    # By the name of the tensor in a batch an array per row, as long as its tokens: labels_BT, types_BT (of segments).
    token_targets: Mapping[str, Sequence[np.ndarray]] = field(default_factory=dict)

    @property
    def packs(self) -> bool:
        return False

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example; int64 (N,)."""
        return np.array([len(tokens) for tokens in self.tokens], np.int64)

    def n_rows(self, places: np.ndarray) -> int:
        return len(places)

    def batch(
        self, places: np.ndarray, width: int | None = None, rank: int = 0, n_ranks: int = 1
    ) -> "dict[str, Tensor]":
        """ids_BT, lengths_B and the targets of the process's share of the rows at `places`; T is `width`, None = the
        longest length.

        Padding has the type 0 in types_BT, is False in truth values, and has no target in anything else.
        """
        import torch

        width = width or int(max(len(self.tokens[place]) for place in places))
        places = places[rows_of_rank(len(places), rank, n_ranks)]
        batch = padded([self.tokens[place] for place in places], width)
        targets = {name: torch.from_numpy(values[places]) for name, values in self.targets.items()}
        for name, values in self.token_targets.items():
            targets[name] = torch.from_numpy(
                padded_right([values[place] for place in places], batch["ids_BT"].size(1), padding_of(name, values))
            )
        return batch | targets


class ExampleBatches:
    """Global batches of examples.

    If the examples do not fill all batches of an epoch, some batches have one row less: a small last batch would move
    the weights as far as a full one.
    """

    def __init__(
        self,
        examples: Examples,
        *,
        rows: int,
        seed: int,
        longest: int | None = None,
        of_epoch: Callable[[int], Examples] | None = None,
    ) -> None:
        """At most `rows` examples per batch. With `longest`, the length that the model reads at most, rows are padded
        to one of a few lengths.

        `of_epoch` gives the examples as they are in an epoch, by its number; None = `examples` in every one. Where an
        epoch has more rows than `examples`, because a text of several windows grew, so have its batches."""
        self.seed, self.longest = seed, longest
        self.batches_per_epoch = n_batches(len(examples.ids), rows)
        self.of_epoch = (lambda _: examples) if of_epoch is None else of_epoch
        self.epochs: dict[int, Epoch] = {}  # the last ones that were asked for: a cache, not state
        self.making = threading.Lock()  # another thread may build batches ahead

    def n_rows(self, k: int) -> int:
        return self.examples_of(k).n_rows(self.places(k))

    def batch(self, k: int, rank: int = 0, n_ranks: int = 1) -> "dict[str, Tensor]":
        """Process `rank`'s rows of batch `k`, as long as those of the other processes."""
        epoch, places = self._epoch(k // self.batches_per_epoch), self.places(k)
        width = int(epoch.lengths[places].max())
        if self.longest is not None:
            width = min(padded_length(width), max(width, self.longest))
        return epoch.examples.batch(places, width, rank, n_ranks)

    def documents_of_batch(self, k: int) -> list[str]:
        return [self.examples_of(k).ids[place] for place in self.places(k)]

    def examples_of(self, k: int) -> Examples:
        """The examples as they are in the epoch of batch `k`."""
        return self._epoch(k // self.batches_per_epoch).examples

    def places(self, k: int) -> np.ndarray:
        """Numbers of the examples in batch `k`."""
        epoch, position = divmod(k, self.batches_per_epoch)
        return self._epoch(epoch).batches[position]

    def _epoch(self, number: int) -> "Epoch":
        with self.making:
            if number not in self.epochs:
                examples = self.of_epoch(number)
                kept = {one: self.epochs[one] for one in self.epochs if one == number - 1}
                lengths = examples.lengths
                batches = self._batches(lengths, number, in_pools=not examples.packs)
                self.epochs = kept | {number: Epoch(examples, lengths, batches)}
            return self.epochs[number]

    def _batches(self, lengths: np.ndarray, epoch: int, *, in_pools: bool) -> list[np.ndarray]:
        rng = np.random.default_rng([self.seed % 2**64, epoch])
        shuffled = rng.permutation(len(lengths))
        shuffled = np.resize(shuffled, max(len(lengths), self.batches_per_epoch))  # no batch is empty
        borders = np.cumsum([len(share) for share in np.array_split(shuffled, self.batches_per_epoch)])
        if in_pools:
            pools = np.split(shuffled, borders[POOL_BATCHES - 1 :: POOL_BATCHES])
            shuffled = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools])
        batches = np.split(shuffled, borders[:-1])
        return [batches[place] for place in rng.permutation(self.batches_per_epoch)]


@dataclass(frozen=True, slots=True)
class Epoch:
    examples: Examples
    lengths: np.ndarray  # of the examples
    batches: list[np.ndarray]  # numbers of the examples in each


def n_batches(n_examples: int, rows: int) -> int:
    """Batches per epoch: enough for all examples, with at most `rows` in a batch."""
    return -(-n_examples // rows)


def padded_length(length: int) -> int:
    """The smallest of the few lengths that is at least `length`."""
    step = max(2, (1 << (length.bit_length() - 1)) // LENGTHS_PER_OCTAVE)
    return -(-length // step) * step


def valid(text: str) -> str:
    """`text` as valid UTF-8 with as many characters: lone surrogates become question marks. Nothing else changes, so
    that offsets into the text stay right."""
    return text.encode(errors="replace").decode()


def repaired(text: str) -> str:
    """`text` in NFC, without outer white space, and with lone surrogates replaced, so that it is valid UTF-8.

    Training and answering read texts in this form.
    """
    return unicodedata.normalize("NFC", valid(text)).strip()


def encoded(
    tokenizer: Encoder, texts: Sequence[str], max_tokens: int, truncation_side: str = "right"
) -> tuple[list[np.ndarray], np.ndarray]:
    """Ids of each text between the tokens that the model expects around it, at most `max_tokens` together; and
    whether the text was cut: its end on the side "right", its beginning on the side "left"."""
    opening, closing = tokenizer.opening, tokenizer.closing
    most = max_tokens - len(opening) - len(closing)
    if most < 1:
        raise ValueError(
            f"max_tokens={max_tokens} leaves no room for a text beside the {len(opening) + len(closing)} tokens"
            " around it; raise it"
        )
    ids_of_texts = tokenizer.encode_batch(list(texts))
    kept = [ids[:most] if truncation_side == "right" else ids[-most:] for ids in ids_of_texts]
    is_cut = np.array([len(ids) > most for ids in ids_of_texts], bool)
    return [np.array([*opening, *ids, *closing], np.int64) for ids in kept], is_cut


def padded(tokens: Sequence[np.ndarray], width: int | None = None) -> "dict[str, Tensor]":
    """ids_BT, padded on the right to `width` (None = the longest row), and lengths_B; int64."""
    import torch

    lengths = [len(ids) for ids in tokens]
    ids_BT = padded_right(tokens, width or max(lengths), 0)
    return {"ids_BT": torch.from_numpy(ids_BT), "lengths_B": torch.tensor(lengths)}


def padding_of(name: str, values: Sequence[np.ndarray]) -> int:
    """What a row of a token target is padded with."""
    is_truth = bool(values) and values[0].dtype == bool
    return 0 if name == TYPES or is_truth else IGNORE_INDEX


def padded_right(rows: Sequence[np.ndarray], width: int, value: int) -> np.ndarray:
    """The rows as one array (B, width), in their number format; `value` follows each."""
    padded_BT = np.full((len(rows), width), value, rows[0].dtype)
    for row, values in enumerate(rows):
        padded_BT[row, : len(values)] = values
    return padded_BT
