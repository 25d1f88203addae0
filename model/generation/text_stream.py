"""Turns tokens into text as they arrive: whole characters only, and nothing that may belong to a stop string.

In: token ids one by one, and a function from ids to bytes. Out: pieces of text that are final. A token may end within
a character or within a stop string, so what is incomplete is held back until the next token decides.
"""

import codecs
from collections.abc import Callable, Sequence

DecodeBytes = Callable[[Sequence[int]], bytes]  # ids to UTF-8; of several ids, the bytes of each in turn


class TextStream:
    """The text of one row. `is_done` is True once a stop string was found, which is not part of the text.

    If several stop strings occur, the one that ends first counts, so that the text does not depend on where tokens
    begin. If several end together, the longest counts.
    """

    def __init__(self, decode_bytes: DecodeBytes, stop: Sequence[str] = ()) -> None:
        self.is_done = False
        self._decode_bytes = decode_bytes
        self._stop = tuple(stop)
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")  # keeps the bytes of half a character
        self._held = ""  # may be the beginning of a stop string

    def push(self, token: int) -> str:
        """The text that `token` made final, which is often empty, and always after the end of the row."""
        return self._release(self._characters.decode(self._decode_bytes([token])))

    def finish(self) -> str:
        """What was held back, once no token follows. Half a character becomes U+FFFD."""
        text = self._release(self._characters.decode(b"", final=True)) + self._held
        self._held = ""
        return text

    def _release(self, text: str) -> str:
        if self.is_done:
            return ""
        if not self._stop:
            return text
        self._held += text
        found = [(begin + len(stop), begin) for stop in self._stop if (begin := self._held.find(stop)) >= 0]
        if found:
            self.is_done = True
            text, self._held = self._held[: min(found)[1]], ""
            return text
        n_held = max(_n_shared(self._held, stop) for stop in self._stop)
        text = self._held[: len(self._held) - n_held]
        self._held = self._held[len(text) :]
        return text


def _n_shared(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
