"""Words of a text and their hashes, as every comparison of texts uses them.

In scripts that are written without spaces between words, each character is a word: Chinese, Japanese, Thai, Lao,
Burmese, Khmer, Tibetan and related scripts (Unicode line breaking classes ID and SA, UAX #14).
"""

import re
from collections.abc import Callable

import numpy as np

SOUTH_EAST_ASIAN = (
    # Thai, Lao, Tibetan, Burmese, Khmer, Tai scripts, more of Burmese, Tai Viet
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\ua9e0-\ua9ff\uaa60-\uaadf"
)
EAST_ASIAN = (
    # iteration marks, kana, Bopomofo, kana extensions, Chinese characters, narrow kana
    "\u3005-\u3007\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff66-\uff9f\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
SPACELESS = SOUTH_EAST_ASIAN + EAST_ASIAN
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
