"""The alphabet of byte-level vocabularies: one visible character for each of the 256 bytes.

In: bytes, or a token as it is written in a vocabulary of the GPT-2 kind. Out: the other of the two. Source: Radford
et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2.
"""

# Bytes that represent themselves in a vocabulary of the GPT-2 kind; the others get characters from U+0100 on.
PRINTABLE = (*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100))
OTHERS = tuple(value for value in range(256) if value not in PRINTABLE)
CHARACTERS = {**{value: chr(value) for value in PRINTABLE}, **{value: chr(256 + i) for i, value in enumerate(OTHERS)}}
AS_CHARACTERS = "".join(CHARACTERS[value] for value in range(256))  # for bytes read as Latin-1
VALUES = {character: value for value, character in CHARACTERS.items()}


def characters(token: bytes) -> str:
    """`token` in the alphabet of byte-level vocabularies: one visible character per byte."""
    return token.decode("latin-1").translate(AS_CHARACTERS)


def bytes_of(token: str) -> bytes | None:
    """The bytes of a token in the alphabet; None if it has another character."""
    try:
        return bytes(VALUES[character] for character in token)
    except KeyError:
        return None
