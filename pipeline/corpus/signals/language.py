"""The language of a text, by py3langid, whose package contains its model.

In: a text. Out: (ISO 639-1 code, confidence from 0 to 1); `und` for a text without any features of a language.
"""

import functools
from typing import Any

SAMPLE = 1500  # characters from start, middle and end of a long text: enough to decide, and fast
UNDETERMINED = "und"


def language_of(text: str) -> tuple[str, float]:
    if len(text) > 3 * SAMPLE:
        middle = (len(text) - SAMPLE) // 2
        text = "\n".join((text[:SAMPLE], text[middle : middle + SAMPLE], text[-SAMPLE:]))
    code, confidence = _identifier().classify(text)
    # rounded, because the last bits of a matrix product differ between processors
    return (code if confidence > 0.1 else UNDETERMINED), round(float(confidence), 3)


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
