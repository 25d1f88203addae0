"""Keys and values of beginnings of texts, kept so that a text that begins alike need not read them again.

In: the tokens of a row and its cache, when the row was read or is over. Out: for another row, as many of its first
tokens as are known, put into its cache. Steps: a text is divided into blocks of BLOCK tokens; a block is found by the
block before it and its own tokens, compared one by one, so texts with a common beginning share its blocks, and a
beginning is known exactly if somebody has read exactly it (the blocks of vLLM, arXiv:2309.06180, without its hashes).
When memory is full, the blocks go that were not used for the longest time, ends of texts before their beginnings.

What is kept decides how soon a text is read, never what is written after it, up to rounding.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from model.network.kv_cache import KVCache

BLOCK = 32  # tokens; a shorter one wastes time on copies, a longer one reads more tokens again
ROOT = 0


@dataclass(frozen=True, slots=True)
class _Block:
    number: int
    keys_LGTK: Tensor
    values_LGTK: Tensor


class PrefixCache:
    def __init__(self, most_bytes: int) -> None:
        """`most_bytes`: of all keys and values together; 0 = keep nothing."""
        self.most_bytes, self.n_bytes = most_bytes, 0
        self._blocks: OrderedDict[tuple[int, tuple[int, ...]], _Block] = OrderedDict()  # the last used is last
        self._n_made = ROOT

    def put_into(self, part: KVCache, ids: Sequence[int]) -> int:
        """Puts the first tokens of `ids` that are known, but never the last one, into the empty row of `part`;
        returns how many."""
        part.clear()
        found = self._known(ids[:-1])
        for key in found:
            block = self._blocks[key]
            part.put(block.keys_LGTK, block.values_LGTK)
        return len(found) * BLOCK

    def keep(self, part: KVCache, ids: Sequence[int]) -> None:
        """Keeps what the only row of `part` has read, which are the first of `ids`."""
        ids = ids[: part.lengths[0]]
        keys = self._known(ids)
        parent = self._blocks[keys[-1]].number if keys else ROOT
        size = BLOCK * part.bytes_per_token
        for start in range(len(keys) * BLOCK, len(ids) - BLOCK + 1, BLOCK):
            if not self._make_room(size, len(keys)):
                break
            self._n_made += 1
            keys.append((parent, tuple(ids[start : start + BLOCK])))
            self._blocks[keys[-1]] = _Block(self._n_made, *part.taken(start, start + BLOCK))
            self.n_bytes += size
            parent = self._n_made
        self._use(keys)

    def _known(self, ids: Sequence[int]) -> list[tuple[int, tuple[int, ...]]]:
        """The blocks that `ids` begin with, from now on the last used ones."""
        keys, parent = [], ROOT
        for start in range(0, len(ids) - BLOCK + 1, BLOCK):
            key = (parent, tuple(ids[start : start + BLOCK]))
            if key not in self._blocks:
                break
            keys.append(key)
            parent = self._blocks[key].number
        self._use(keys)
        return keys

    def _use(self, keys: Sequence[tuple[int, tuple[int, ...]]]) -> None:
        """A block is always used later than those that follow it, so that it goes after them."""
        for key in reversed(keys):
            self._blocks.move_to_end(key)

    def _make_room(self, size: int, n_own: int) -> bool:
        """Whether there is room now, without the `n_own` blocks that were used last."""
        while self.n_bytes + size > self.most_bytes and len(self._blocks) > n_own:
            _, block = self._blocks.popitem(last=False)
            self.n_bytes -= block.keys_LGTK.nbytes + block.values_LGTK.nbytes
        return self.n_bytes + size <= self.most_bytes
