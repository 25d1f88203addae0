"""Which keys a query may attend to: a value that a model is called with and that the kernels are chosen from.

In: a rule (causal, all, within documents, an explicit mask), narrowed by windows. Out: the same rule as a dense mask,
`dense`, which is the definition that every kernel of attention.py has to agree with. Keys are numbered from 0 along
the row, queries are its last tokens, and a query always has the number of its own key.

Legend: B batch, T query position, S key position.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Visible:
    """Made by `causal`, `all`, `within`, `padded` and `mask`, never by its fields; `windowed` narrows any of them."""

    is_causal: bool  # no key after the query
    documents_BS: Tensor | None = None  # only keys of the query's document
    mask_BTS: Tensor | None = None  # only keys where this is True
    left: int | None = None  # at most so many keys before the query's own
    right: int | None = None  # at most so many keys after it

    @classmethod
    def causal(cls) -> Self:
        """The query's own key and all before it."""
        return cls(is_causal=True)

    @classmethod
    def all(cls) -> Self:
        """Every key, as in an encoder."""
        return cls(is_causal=False)

    @classmethod
    def within(cls, documents_BS: Tensor, *, causal: bool = True) -> Self:
        """The keys of the query's own document. A document is a run of equal numbers in a row of `documents` (int).

        Documents on the host (CPU) save a GPU a wait, because kernels need their borders there.
        """
        return cls(is_causal=causal, documents_BS=documents_BS)

    @classmethod
    def padded(cls, lengths_B: Tensor, n_keys: int) -> Self:
        """The real tokens of each row, which are its first `lengths`. What follows is padding, which attends to
        padding alone, so that every query has a key."""
        is_real_BS = torch.arange(n_keys, device=lengths_B.device) < lengths_B.unsqueeze(1)
        return cls.within(is_real_BS.int(), causal=False)

    @classmethod
    def mask(cls, mask_BTS: Tensor) -> Self:
        """The keys where `mask` (bool) is True. It replaces the causal rule, so it must include that if it is wanted.

        A query that may attend to nothing gets zeros.
        """
        return cls(is_causal=False, mask_BTS=mask_BTS)

    def windowed(self, left: int, right: int) -> Self:
        """Of these, only the query's own key, the `left` keys before it and the `right` keys after it.

        Mistral's window of w tokens, which counts its own, is windowed(w - 1, 0). ModernBERT's local attention of w
        is windowed(w // 2, w // 2).
        """
        if left < 0 or right < 0:
            raise ValueError(f"windowed(left={left}, right={right}): both must be at least 0, the own key is counted")
        narrower = (
            (left if self.left is None else min(left, self.left)),
            (right if self.right is None else min(right, self.right)),
        )
        return replace(self, left=narrower[0], right=narrower[1])

    def window(self, n_keys: int) -> tuple[int | None, int | None]:
        """Left and right limit where they take away any of `n_keys` keys, None where they do not.

        The right limit of a causal rule is its own key, which no window has to repeat.
        """
        left = self.left if self.left is not None and self.left < n_keys - 1 else None
        right = self.right if self.right is not None and self.right < n_keys - 1 and not self.is_causal else None
        return left, right

    def sees_all_before(self, n_keys: int) -> bool:
        """Whether a query sees its own key and all before it, of `n_keys` keys, and no other."""
        is_plain = self.is_causal and self.documents_BS is None and self.mask_BTS is None
        return is_plain and self.window(n_keys) == (None, None)

    def dense(self, places_BT: Tensor, n_keys: int) -> Tensor:
        """(1 or B, T, S) bool, True = may attend. `places` (1 or B, T): the number of each query's own key."""
        left, right = self.window(n_keys)
        if self.mask_BTS is not None and (left, right) == (None, None):
            return self.mask_BTS
        keys_S = torch.arange(n_keys, device=places_BT.device)
        ahead_BTS = keys_S - places_BT.unsqueeze(2)  # how far a key is ahead of its query
        sees_BTS = ahead_BTS <= (0 if self.is_causal else n_keys if right is None else right)
        if left is not None:
            sees_BTS &= ahead_BTS >= -left
        if self.documents_BS is not None:
            runs_BS = document_starts(self.documents_BS.to(places_BT.device)).cumsum(dim=1)
            query_runs_BT = runs_BS.gather(1, places_BT.expand(runs_BS.size(0), -1))
            sees_BTS = sees_BTS & (runs_BS.unsqueeze(1) == query_runs_BT.unsqueeze(2))
        return sees_BTS if self.mask_BTS is None else sees_BTS & self.mask_BTS


def document_starts(documents_BS: Tensor) -> Tensor:
    """(B, S) bool, True = the first token of a document; every row begins one."""
    starts_BS = torch.ones_like(documents_BS, dtype=torch.bool)
    starts_BS[:, 1:] = documents_BS[:, 1:] != documents_BS[:, :-1]
    return starts_BS


CAUSAL = Visible.causal()
ALL = Visible.all()
