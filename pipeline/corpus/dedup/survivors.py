"""The quality of a copy: one number per document that decides which of several copies of a text is kept.

In: columns of records.FILTERED. Out: `quality_of`, 0 to 1, higher is better, in steps of STEP: copies of equal
quality are then ordered by length, so that noise in a measure does not decide. It compares copies of the same text
and means nothing for different ones: verse and code have short lines in every copy.

The quality is 1 minus the defects of the copy, each as a fraction of the text times its weight: lines of navigation,
repeated lines, paragraphs and 5-grams (arXiv:2112.11446 table A1), words without letters, words cut in two or joined,
characters of a wrong encoding, lines that trail off or do not end a sentence (arXiv:2406.17557 section 3.5; with a
small weight, because hard-wrapped text is still good).
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

STEP = 0.02
LONGEST = 1_000_000  # characters of a text that are examined

ENDS = ".?!;:,\"')\u2019\u201d"  # a line that ends in one of these is a sentence or a part of one
SHORT_LINE = 30  # characters; arXiv:2406.17557
BETWEEN_CELLS = "|>\u2022\u00b7\u00bb"  # Home | About us | Contact
# mostly UTF-8 read as Latin-1 or Windows-1252, and the replacement character
MOJIBAKE = "[\u00c2\u00c3][\u0080-\u00bf]|\u00e2\u20ac|\u00e2\u0080|\u00ef\u00bf\u00bd|\ufffd"
CUT_WORD = r"\p{Ll}- ?\n\p{Ll}|\p{Ll}{2}- \p{Ll}{2}"  # a hyphen of a line end
SPACED_WORD = r"(?:\s\p{L}){4}\s"  # l e t t e r s
COUNTED = {MOJIBAKE: 10, CUT_WORD: 10, SPACED_WORD: 20}  # weight of one occurrence per word
SHORT_MEAN, LONG_MEAN = 4.0, 8.0  # characters per word; English has 4.7, words cut in two have fewer

WEIGHTS = {
    "duplicate_line_characters": 1.0,
    "duplicate_paragraph_characters": 0.5,
    "duplicate_5_gram": 0.5,
    "ellipsis_line_fraction": 0.5,
}
MISSING_WEIGHTS = {"terminal_line_fraction": 0.05, "alphabetic_word_fraction": 1.0}  # of 1 - the measure
QUALITY_COLUMNS = (*WEIGHTS, *MISSING_WEIGHTS, "mean_word_length", "n_words", "text")


def quality_of(table: pa.Table) -> pa.Array:
    """float64 without nulls, one value per row of `table` (QUALITY_COLUMNS)."""
    values = {name: np.asarray(table[name], np.float64) for name in QUALITY_COLUMNS if name != "text"}
    slices = pc.SliceOptions(0, LONGEST)
    text = pc.call_function("utf8_slice_codeunits", [table["text"]], slices)
    defects = np.array([_navigation_share(one.as_py()) for one in text], np.float64)
    defects += sum(weight * values[name] for name, weight in WEIGHTS.items())
    defects += sum(weight * (1 - values[name]) for name, weight in MISSING_WEIGHTS.items())
    mean = values["mean_word_length"]
    defects += np.clip((SHORT_MEAN - mean) / 2, 0, 0.5) + np.clip((mean - LONG_MEAN) / 4, 0, 0.5)
    whole = np.asarray(pc.call_function("utf8_length", [table["text"]]), np.float64)
    n_words = np.maximum(values["n_words"] * np.minimum(1, LONGEST / np.maximum(whole, 1)), 1)
    for pattern, weight in COUNTED.items():
        found = pc.call_function("count_substring_regex", [text], pc.MatchSubstringOptions(pattern))
        counts = np.asarray(found, np.float64)
        defects += np.minimum(weight * counts / n_words, 1)
    # whole numbers of steps first: the same value on every machine
    return pa.array(np.clip(np.round((1 - defects) / STEP), 0, round(1 / STEP)) * STEP, pa.float64())


def _navigation_share(text: str) -> float:
    """The share of characters in lines that do not end a sentence and are short, a row of cells, or titles."""
    n = sum(len(line) for line in text.split("\n") if line and line[-1] not in ENDS and _is_navigation(line))
    return n / max(len(text), 1)


def _is_navigation(line: str) -> bool:
    if len(line) <= SHORT_LINE or any(line.count(sign) > 1 for sign in BETWEEN_CELLS):
        return True
    words = line.split()
    return 2 * sum(word[0].islower() for word in words) <= len(words)  # Home About us Contact Sign up
