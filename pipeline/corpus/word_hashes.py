"""Words of a text and their hashes, as every comparison of texts uses them."""

import re
from collections.abc import Callable

import numpy as np

SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # kana, Chinese characters
)
WORD = re.compile(f"[{SPACELESS}]|[^\\W{SPACELESS}]+")
MAX_CACHED_WORDS = 1_000_000  # then the cache of word hashes is emptied, to bound its memory


class WordHashes(dict[str, int]):
    """Word -> hash, computed once per word."""

    def __init__(self, function: Callable[[bytes], int]) -> None:
        super().__init__()
        self.function = function

    def __missing__(self, word: str) -> int:
        if len(self) >= MAX_CACHED_WORDS:
            self.clear()
        self[word] = value = self.function(word.encode(errors="surrogatepass"))
        return value

    def of(self, words: list[str]) -> np.ndarray:
        return np.fromiter(map(self.__getitem__, words), np.uint64, len(words))
