"""Byte-pair encoding of text by tiktoken, which works for any text of any length.

In: token -> rank, which is also the id, and a split pattern. Out: ids of texts. Byte-pair encoding: arXiv:1508.07909
section 3.2.

tiktoken 0.14 gives up on a million spaces with a panic, which `except Exception` does not catch: its regex engine may
step back a million times a match. Words of many megabytes take minutes and gigabytes. Such a text is cut into words
by `regex`, which tiktoken itself depends on, and its words are encoded one by one: the ids are the same, except that
a word of more than LONGEST_WORD characters is encoded in parts. A vocabulary made elsewhere may lack some of the 256
bytes; `tokenizers` drops such a byte from a word before it merges, and so does this engine.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from model.data.offsets import Pieces, offsets_of_bytes, pieces_of
from model.training.machine import n_usable_cores

LONG_TEXT = 100_000  # characters: a shorter one cannot hold a run that is too long
LONG_RUN = re.compile(r"\s{64,}|\S{64,}")  # any run that matters, each in one step
LONGEST_SPACE, LONGEST_WORD = 100_000, 4_000_000  # characters
N_BYTE_VALUES = 256


class TiktokenEngine:
    """Ids of texts. `added`: tokens that are found in a text before it is split into words; `normalised` is applied
    to what is between them."""

    def __init__(
        self,
        ranks: Mapping[bytes, int],
        pattern: str,
        added: Mapping[str, int] | None = None,
        normalised: Callable[[str], str] | None = None,
    ) -> None:
        import tiktoken

        self._pattern, self._added, self._normalised = pattern, dict(added or {}), normalised
        missing = [bytes([value]) for value in range(N_BYTE_VALUES) if bytes([value]) not in ranks]
        unused = max(ranks.values()) + 1  # ids that stand for the missing bytes, which tiktoken requires to exist
        self.encoding = tiktoken.Encoding(
            "gristmill",
            pat_str=pattern,
            mergeable_ranks={**ranks, **{value: unused + i for i, value in enumerate(missing)}},
            special_tokens={},
        )
        self._missing = bytes(value for (value,) in missing)
        self._n_bytes = np.zeros(unused, np.int64)  # of each token
        self._n_bytes[list(ranks.values())] = list(map(len, ranks))
        longest_first = sorted(self._added, key=len, reverse=True)
        self._added_pattern = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if self._added else None

    def encode_batch(self, texts: Sequence[str], n_threads: int) -> list[list[int]]:
        texts = [self._prepared(text) for text in texts]
        hard = {i for i, text in enumerate(texts) if self._is_hard(text)}
        if hard:
            return [self._encode_hard(text) if i in hard else self._plain(text) for i, text in enumerate(texts)]
        n_threads = n_threads or n_usable_cores()
        if n_threads == 1 or len(texts) == 1:
            return [self._plain(text) for text in texts]
        return self.encoding.encode_ordinary_batch(list(texts), num_threads=n_threads)

    def encode_array(self, text: str) -> np.ndarray:
        text = self._prepared(text)
        if self._is_hard(text):
            return np.array(self._encode_hard(text), np.uint32)
        return self.encoding.encode_to_numpy(text, disallowed_special=())

    def encode_offsets(self, texts: Sequence[str]) -> list[Pieces]:
        return [self._pieces(text) for text in texts]

    def _pieces(self, text: str) -> Pieces:
        parts, first = [np.zeros((3, 0), np.int64)], 0
        for i, (piece, ids) in enumerate(zip(self._divided(text), self._ids_of_pieces(text), strict=True)):
            offsets = ([0], [len(piece)]) if i % 2 else self._offsets(piece, ids)
            parts.append(np.stack([np.array(ids, np.int64), *(first + np.asarray(one) for one in offsets)]))
            first += len(piece)
        return pieces_of(text, *np.concatenate(parts, axis=1))

    def _offsets(self, piece: str, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Character offsets in `piece`, which holds no added token."""
        between = piece if self._normalised is None else self._normalised(piece)
        starts, ends = offsets_of_bytes(between, self._n_bytes[ids], self._missing)
        if between == piece:
            return starts, ends
        origin_starts, origin_ends = origins_in_nfc(piece)
        return origin_starts[starts], origin_ends[ends - 1]

    def _plain(self, text: str) -> list[int]:
        return self.encoding.encode_ordinary(text)

    def _prepared(self, text: str) -> str:
        """`text` normalised, which changes nothing a second time, unless a token that is found comes first."""
        if self._normalised is None or text.isascii() or self._holds_added(text):
            return text
        return self._normalised(text)

    def _holds_added(self, text: str) -> bool:
        return self._added_pattern is not None and self._added_pattern.search(text) is not None

    def _is_hard(self, text: str) -> bool:
        """Whether tiktoken alone would give up on `text`, need gigabytes for it, or give other ids."""
        return (
            self._holds_added(text)
            or self._has_missing_bytes(text)
            or (len(text) >= LONG_TEXT and _has_long_run(text))
        )

    def _has_missing_bytes(self, text: str) -> bool:
        if not self._missing:
            return False
        content = text.encode()
        return len(content.translate(None, self._missing)) < len(content)

    def _encode_hard(self, text: str) -> list[int]:
        return [token for ids in self._ids_of_pieces(text) for token in ids]

    def _ids_of_pieces(self, text: str) -> Iterator[list[int]]:
        for i, piece in enumerate(self._divided(text)):
            if i % 2:
                yield [self._added[piece]]
                continue
            between = piece if self._normalised is None else self._normalised(piece)
            is_long = len(between) >= LONG_TEXT and _has_long_run(between)
            yield self._encode_words(between) if is_long or self._has_missing_bytes(between) else self._plain(between)

    def _divided(self, text: str) -> list[str]:
        """What is between added tokens, and every second time such a token: the pattern has one group."""
        return [text] if self._added_pattern is None else self._added_pattern.split(text)

    def _encode_words(self, text: str) -> list[int]:
        import regex

        words = (match.group() for match in regex.finditer(self._pattern, text))
        parts = (word[i : i + LONGEST_WORD] for word in words for i in range(0, len(word), LONGEST_WORD))
        contents = (part.encode().translate(None, self._missing) for part in parts)
        return [token for content in contents if content for token in self.encoding._encode_single_piece(content)]


def _has_long_run(text: str) -> bool:
    """Whether tiktoken would give up on `text`, or need gigabytes for a word of it."""
    return _may_hold_long_run(text) and any(
        match.end() - match.start() >= (LONGEST_SPACE if text[match.start()].isspace() else LONGEST_WORD)
        for match in LONG_RUN.finditer(text)
    )


def _may_hold_long_run(text: str) -> bool:
    """False where it does not: a run that is too long fills a block of half its length from end to end.

    Without these blocks the pattern costs a fifth of the time of encoding, because it is tried at every character.
    """
    size = LONGEST_SPACE // 2
    if any(text[i].isspace() and text[i : i + size].isspace() for i in range(0, len(text) - size + 1, size)):
        return True
    size = LONGEST_WORD // 2
    blocks = (text[i : i + size] for i in range(0, len(text) - size + 1, size))
    return any(block.split(maxsplit=1) == [block] for block in blocks)


def origins_in_nfc(text: str) -> tuple[np.ndarray, np.ndarray]:
    """For each character of `text` in NFC the start and the end of what it was made of in `text`.

    A grapheme cluster whose characters change is what each of its new characters was made of: no composition crosses
    its borders (Unicode Standard Annex 29).
    """
    import regex

    starts: list[int] = []
    ends: list[int] = []
    first = 0
    for cluster in regex.findall(r"\X", text):
        end = first + len(cluster)
        composed = unicodedata.normalize("NFC", cluster)
        is_kept = composed == cluster
        starts += range(first, end) if is_kept else [first] * len(composed)
        ends += range(first + 1, end + 1) if is_kept else [end] * len(composed)
        first = end
    return np.array(starts, np.int64), np.array(ends, np.int64)
