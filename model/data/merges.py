"""The merges of byte-pair encoding that follow from the ranks of its tokens.

In: token -> rank. Out: per token the pair that merges into it, in the order of ranks.

tiktoken merges any two neighbours whose bytes are a token, lowest rank first (and takes a whole word that is a token
as it is: `ignore_merges`); `tokenizers` merges the pairs of a list, in the order of the list. One pair per token is
enough: neighbours merge inside a part of a word as they would in isolation, until a merge crosses its border, and
then the token never arises. So the pair is the last merge of the token's own bytes. For the same reason a list that
contains every such pair in the order of ranks gives the ids of tiktoken, whatever other pairs of these tokens it
contains: two neighbours that are another pair never arise.
"""

import heapq
from collections.abc import Iterator, Mapping

LONG_TOKEN = 48  # bytes from which a heap finds the next merge faster than a scan of all pairs


def merges(ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """The last merge of every token that merging can produce, in the order of ranks, which must be consecutive."""
    for token in ranks:
        if len(token) > 1:
            pair = _last_merge(ranks, token) if len(token) < LONG_TOKEN else _last_merge_by_heap(ranks, token)
            if pair is not None:
                yield pair


def _last_merge(ranks: Mapping[bytes, int], token: bytes) -> tuple[bytes, bytes] | None:
    none = len(ranks)
    parts = [token[i : i + 1] for i in range(len(token))]
    pairs = [ranks.get(token[i : i + 2], none) for i in range(len(token) - 1)]  # rank of part i and the next one
    while len(parts) > 2:
        lowest = min(pairs)
        if lowest == none:
            return None
        i = pairs.index(lowest)
        parts[i] += parts.pop(i + 1)
        del pairs[i]
        if i:
            pairs[i - 1] = ranks.get(parts[i - 1] + parts[i], none)
        if i < len(pairs):
            pairs[i] = ranks.get(parts[i] + parts[i + 1], none)
    return parts[0], parts[1]


def _last_merge_by_heap(ranks: Mapping[bytes, int], token: bytes) -> tuple[bytes, bytes] | None:
    """Like `_last_merge`, in n log n steps: a corpus of one repeated letter gives tokens of 100,000 bytes."""
    end = {i: i + 1 for i in range(len(token))}  # first byte of a part -> its end
    start_before = {
        i: i - 1 for i in range(1, len(token))
    }  # first byte of a part -> first byte of the part before it

    def pair_at(i: int) -> tuple[int, int, int, int] | None:
        middle = end[i]
        if middle == len(token):
            return None
        rank = ranks.get(token[i : end[middle]])
        return None if rank is None else (rank, i, middle, end[middle])

    heap = [pair for i in range(len(token)) if (pair := pair_at(i)) is not None]
    heapq.heapify(heap)
    while heap and len(end) > 2:
        _, i, middle, last = heapq.heappop(heap)
        if end.get(i) != middle or end.get(middle) != last:  # one of the two has merged since
            continue
        end[i] = last
        del end[middle], start_before[middle]
        if last < len(token):
            start_before[last] = i
        around = [i, start_before[i]] if i else [i]
        for pair in map(pair_at, around):
            if pair is not None:
                heapq.heappush(heap, pair)
    return (token[: end[0]], token[end[0] :]) if len(end) == 2 else None
