"""The language of a text, by py3langid, whose package contains its model.

In: a text. Out: (language code, confidence from 0 to 1); `und` for a text without any features of a language. Codes
are those of ISO 639-1, or of ISO 639-3 for a language that has none there.
"""

import functools
from typing import Any

SAMPLE = 1500  # characters from start, middle and end of a long text: enough to decide, and fast
UNDETERMINED = "und"
# All that the model can detect, so that a code which would never be found is refused without loading the model.
DETECTED_CODES = """
    ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et eu ext fa fi fo fr fuv fy
    ga gcf gcr gd gl gom grc gu gug guw ha hbo he hi hr ht hu hy id ig is it ja jv ka kab kik kk km kn ko ku ky la lb
    lg lij ln lo lt ltg lv mg mk ml mn mr ms mt my ne nl nn no nso oc om or pa pcm pl ps pt qu ro ru rw sa sdh se si
    sk sl sn so sq sr st sv sw ta te tg th tk tl tr tt ug uk ur uz uzs vec vi vo wa wuu xh yo yue zh zu zxx
"""
DETECTED = frozenset(DETECTED_CODES.split())


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
