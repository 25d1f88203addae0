"""Masked batches for encoders: which tokens are hidden, what replaces them, and what is to be predicted.

In: batches of token ids, and a MaskVocabulary. Out: the same rows with a share of the tokens hidden; their positions
(supervised_BP) and their own ids as targets. Of the hidden tokens 80 % become the mask token, 10 % a random ordinary
token and 10 % stay as they are (arXiv:1810.04805 section 3.1), so that the model cannot know which of the tokens that
it sees are true. Special tokens are never hidden. With `whole_words` a word is hidden as a whole or not at all.

A mask is a function of the seed, the number of the batch and that of the row, and of nothing else. So masks change
from epoch to epoch (arXiv:1907.11692 section 4.1), and are the same after a resume, with another micro-batch and on
another number of processes.

Every row hides the same share of its own tokens, and not each token by chance: the shape of what goes
through the head is known in advance, so that a GPU never waits for the host to count.

Legend: B rows, T position, P hidden tokens of a row, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.data.batch_layout import IGNORE_INDEX, rows_of_rank
from model.data.batches import TokenBatches
from model.data.token_shards import read_description
from model.data.tokenizer import Tokenizer, load_tokenizer
from model.training.draws import row_seeds, uniform_of_rows

MASKED, RANDOM = 0.8, 0.1  # of the hidden tokens; the rest keeps its id
VALIDATION_SEED = 0x56414C  # added to a training's seed, so that validation has masks of its own
N_DRAWS = 3  # of a cell: the order in which tokens are hidden, what replaces them, which random token


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MaskVocabulary:
    """What masking has to know of a tokenizer."""

    mask_id: int
    opening: int  # the token that opens a text, in the place of BERT's [CLS]
    special: tuple[int, ...]  # never hidden, and never a random replacement
    vocab_size: int  # of the model
    begins_word_V: Tensor | None = None  # bool; None = words are not known
    ends_line_V: Tensor | None = None  # bool; the token after it begins a word

    def __post_init__(self) -> None:
        if outside := [one for one in (self.mask_id, self.opening, *self.special) if not 0 <= one < self.vocab_size]:
            raise ValueError(f"the special token {outside[0]} is outside 0 to {self.vocab_size - 1}, the model's ids")

    @property
    def ordinary(self) -> Tensor:
        """Ids of the tokens that are not special, int64."""
        is_ordinary_V = torch.ones(self.vocab_size, dtype=torch.bool)
        is_ordinary_V[list({self.mask_id, self.opening, *self.special})] = False
        return is_ordinary_V.nonzero().flatten()


class MaskedBatches:
    """`batches` as a masked language model reads them (a `Batches` as well)."""

    def __init__(
        self,
        batches: TokenBatches,
        vocabulary: MaskVocabulary,
        *,
        fraction: float,
        seed: int,
        whole_words: bool = False,
    ) -> None:
        """`fraction` of the tokens of each row are hidden; `whole_words` needs a vocabulary that knows words."""
        assert not whole_words or vocabulary.begins_word_V is not None
        self.batches, self.vocabulary, self.fraction, self.seed = batches, vocabulary, fraction, seed
        self.whole_words = whole_words
        self.ordinary = vocabulary.ordinary
        self.is_ordinary_V = torch.zeros(vocabulary.vocab_size, dtype=torch.bool)
        self.is_ordinary_V[self.ordinary] = True

    @property
    def rows_per_epoch(self) -> int:
        return self.batches.rows_per_epoch

    @property
    def rows(self) -> int:
        return self.batches.rows

    def n_rows(self, k: int) -> int:
        return self.batches.n_rows(k)

    def documents_of_batch(self, k: int) -> list[str]:
        return self.batches.documents_of_batch(k)

    def batch(self, k: int, rank: int = 0, n_ranks: int = 1) -> dict[str, Tensor]:
        """Process `rank`'s rows of batch `k`: ids_BT with hidden tokens, targets_BT (IGNORE_INDEX where nothing is
        hidden) and supervised_BP (-1 = none), all int64; documents_BT and positions_BT as in `batches`; weights_BT,
        float32, the weight of each token itself, where the shards have loss weights.

        Every span of a document opens with the opening token, in the place of its first one, and every row where
        `batches` do not mask documents.
        """
        named = self.batches.batch(k, rank, n_ranks)
        ids_BT, is_there_BT = opened(named, self.vocabulary.opening)
        may_hide_BT = is_there_BT & self.is_ordinary_V[ids_BT]
        first = rows_of_rank(self.n_rows(k), rank, n_ranks).start
        seeds_B = row_seeds(self.seed, k, range(first, first + len(ids_BT)))
        draws_BN = uniform_of_rows(seeds_B, N_DRAWS * ids_BT.size(1) + 1)
        order_BT, kind_BT, which_BT = draws_BN[:, 1:].chunk(N_DRAWS, dim=1)
        words_BT = self.words(ids_BT, named) if self.whole_words else None
        hidden_BP = hidden_positions(may_hide_BT, order_BT, self.fraction, draws_BN[:, 0], words_BT)
        targets_BT = torch.full_like(ids_BT, IGNORE_INDEX)
        # a batch has the weight of the token that follows; the first token of a span is never hidden
        weights = {"weights_BT": named["weights_BT"].roll(1, dims=1)} if "weights_BT" in named else {}
        return {
            **{name: named[name] for name in ("documents_BT", "positions_BT") if name in named},
            **weights,
            "ids_BT": self.replaced(ids_BT, hidden_BP, kind_BT, which_BT),
            "targets_BT": scattered(targets_BT, hidden_BP, ids_BT.gather(1, hidden_BP.clamp(min=0))),
            "supervised_BP": hidden_BP,
        }

    def replaced(self, ids_BT: Tensor, hidden_BP: Tensor, kind_BT: Tensor, which_BT: Tensor) -> Tensor:
        """The ids with the mask token, a random token or the token itself where a token is hidden.

        `kind` decides which of the three, `which` the random token; both are from 0 to 1.
        """
        at_BP = hidden_BP.clamp(min=0)
        kind_BP, which_BP = kind_BT.gather(1, at_BP), which_BT.gather(1, at_BP)
        random_BP = self.ordinary[(which_BP * len(self.ordinary)).long()]
        new_BP = torch.where(kind_BP < MASKED + RANDOM, random_BP, ids_BT.gather(1, at_BP))
        return scattered(ids_BT, hidden_BP, new_BP.masked_fill(kind_BP < MASKED, self.vocabulary.mask_id))

    def words(self, ids_BT: Tensor, named: Mapping[str, Tensor]) -> Tensor:
        """The number of each token's word in its row, int64."""
        begins_V, ends_V = self.vocabulary.begins_word_V, self.vocabulary.ends_line_V
        assert begins_V is not None and ends_V is not None
        begins_BT = begins_V[ids_BT] | ~self.is_ordinary_V[ids_BT]
        begins_BT[:, 1:] |= ends_V[ids_BT[:, :-1]] | ~self.is_ordinary_V[ids_BT[:, :-1]]
        if "positions_BT" in named:
            begins_BT |= named["positions_BT"] == 0
        return (begins_BT.cumsum(dim=1) - 1).clamp(min=0)


def opened(named: Mapping[str, Tensor], opening: int) -> tuple[Tensor, Tensor]:
    """The ids with `opening` as the first of every span of a document, and which cells hold a token (bool)."""
    ids_BT, is_first_BT = named["ids_BT"], torch.zeros_like(named["ids_BT"], dtype=torch.bool)
    is_first_BT[:, 0] = True
    if "positions_BT" in named:
        is_first_BT |= named["positions_BT"] == 0
    is_there_BT = named["documents_BT"] >= 0 if "documents_BT" in named else named["targets_BT"] >= 0
    return ids_BT.masked_fill(is_first_BT & is_there_BT, opening), is_there_BT


def hidden_positions(
    may_hide_BT: Tensor, order_BT: Tensor, fraction: float, rounding_B: Tensor, words_BT: Tensor | None = None
) -> Tensor:
    """Positions of the tokens to hide, ascending, int64 (B, P); -1 where a row hides fewer than P.

    Of the tokens that may be hidden a row hides `fraction`, and at least one; those of the lowest `order`. `rounding`
    rounds their number at random, so that its mean is the fraction; both are random numbers from 0 to 1. With `words`
    (their numbers from 0, along the row) it hides whole words, and the last one that would exceed the fraction not at
    all, unless it is the only one.
    """
    n_cells, device = may_hide_BT.size(1), may_hide_BT.device
    n_most = min(int(fraction * n_cells) + 1, n_cells)
    n_able_B = may_hide_BT.sum(dim=1)
    n_B = torch.minimum((n_able_B.double() * fraction + rounding_B).long().clamp(min=1), n_able_B)
    if words_BT is not None:  # the tokens of a word have the number of one of them, and stay neighbours in the order
        order_BT = order_BT.gather(1, words_BT)
    picked_BP = order_BT.masked_fill(~may_hide_BT, 2.0).argsort(dim=1, stable=True)
    place_P = torch.arange(n_most, device=device)
    is_hidden_BP = place_P < n_B.unsqueeze(1)
    if words_BT is not None:
        is_hidden_BP &= ~_in_cut_word(words_BT.gather(1, picked_BP), n_B, n_able_B)[:, :n_most]
    hidden_BP = torch.where(is_hidden_BP, picked_BP[:, :n_most], n_cells).sort(dim=1).values
    return hidden_BP.masked_fill(hidden_BP == n_cells, -1)


def _in_cut_word(word_of_place_BT: Tensor, n_B: Tensor, n_able_B: Tensor) -> Tensor:
    """(B, T) bool, True = the place belongs to the word that place n - 1 and place n share, and is not the first."""
    last_B1 = (n_B - 1).clamp(min=0).unsqueeze(1)
    after_B1 = n_B.clamp(max=word_of_place_BT.size(1) - 1).unsqueeze(1)
    cut_B1 = word_of_place_BT.gather(1, last_B1)
    is_cut_B1 = (cut_B1 == word_of_place_BT.gather(1, after_B1)) & (n_B < n_able_B).unsqueeze(1)
    is_cut_B1 &= cut_B1 != word_of_place_BT[:, :1]
    return is_cut_B1 & (word_of_place_BT == cut_B1)


def scattered(values_BT: Tensor, at_BP: Tensor, new_BP: Tensor) -> Tensor:
    """A copy of `values` with `new` at the positions `at`; a negative position is none."""
    n_cells = values_BT.size(1)
    wider_BU = torch.cat([values_BT, values_BT[:, :1]], dim=1)  # the last cell takes what belongs nowhere
    at_BP = at_BP.masked_fill(at_BP < 0, n_cells)
    return wider_BU.scatter(1, at_BP, new_BP)[:, :n_cells].contiguous()


def word_tables(tokenizer: Tokenizer, vocab_size: int) -> tuple[Tensor, Tensor]:
    """begins_word_V and ends_line_V of a MaskVocabulary.

    A word begins with a space, or after a line break. The pieces of WordPiece are decoded with that space, too.
    """
    pieces = [tokenizer.decode_bytes([token]) for token in range(tokenizer.vocab_size)]
    begins_V, ends_V = torch.zeros(2, vocab_size, dtype=torch.bool)
    for token, piece in enumerate(pieces):
        begins_V[token] = piece[:1].isspace()
        ends_V[token] = piece.endswith((b"\n", b"\r"))
    return begins_V, ends_V


def mask_vocabulary(
    shards: Path, vocab_size: int, tokenizer: Path | None = None, *, knows_words: bool = False
) -> MaskVocabulary:
    """What a model of `vocab_size` tokens needs to read `shards` (a folder) with masks.

    A model of our own has one token more than the vocabulary of the shards: the mask token, which comes last. Another
    model has the vocabulary of the shards, with a mask token that its `tokenizer` (a folder) names. Words are known
    with a tokenizer only. Raises ValueError where there is no mask token, or where words are to be known and the
    tokenizer is missing.
    """
    description = read_description(shards)
    n_tokens, opening = description["vocab_size"], description["end_of_text"]
    loaded = load_tokenizer(tokenizer) if tokenizer is not None and (knows_words or vocab_size == n_tokens) else None
    special = {"opening": opening, "mask": n_tokens}
    if vocab_size == n_tokens:
        special = {} if loaded is None else dict(loaded.special)
    if vocab_size not in (n_tokens, n_tokens + 1) or "mask" not in special:
        raise ValueError(
            f"{shards} was made with a vocabulary of {n_tokens} tokens, which has no mask token, and the model has"
            f" vocab_size={vocab_size}; expected {n_tokens + 1}, or a tokenizer with a mask token of its own"
        )
    if knows_words and loaded is None:
        raise ValueError(
            "whole_words=True needs the tokenizer of the shards, to see where words begin; give its folder"
        )
    begins_V, ends_V = word_tables(loaded, vocab_size) if knows_words and loaded is not None else (None, None)
    return MaskVocabulary(
        mask_id=special["mask"],
        opening=opening,
        special=tuple(special.values()),
        vocab_size=vocab_size,
        begins_word_V=begins_V,
        ends_line_V=ends_V,
    )
