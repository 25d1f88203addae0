"""How a text is asked for by its attributes, such as a sentiment or a length: written alike in training and use.

In: attributes by name. Out: the message that a model is trained to answer with such a text (control codes in the
sense of arXiv:1909.05858, as plain text), or the same in words for a model that was not. A length is measured on the
text itself, so that no one has to label it.
"""

from collections.abc import Mapping

CONTROL = "control"  # key of a model's config.json: the values of each attribute that it learned
LENGTH = "length"
SHORT, MEDIUM, LONG = LENGTHS = ("short", "medium", "long")
NOTHING_ASKED = "Write a text."  # with it, a model writes as without control


def control_message(attributes: Mapping[str, str]) -> str:
    """One line for each attribute, in the order of their names."""
    return "\n".join(f"{name}: {attributes[name]}" for name in sorted(attributes)) or NOTHING_ASKED


def attributes_in(message: str) -> dict[str, str]:
    """The attributes that `control_message` wrote."""
    lines = [] if message == NOTHING_ASKED else message.split("\n")
    return {name: value for name, _, value in (line.partition(": ") for line in lines)}


def asked_in_words(attributes: Mapping[str, str]) -> str:
    """An instruction for a model that follows instructions."""
    parts = [f"its {name} is {attributes[name]}" for name in sorted(attributes)]
    return f"Write a text so that {' and '.join(parts)}." if parts else NOTHING_ASKED


def length_of(text: str, short_words: int, long_words: int) -> str:
    """short: fewer than `short_words` words; long: at least `long_words`."""
    n_words = len(text.split())
    return SHORT if n_words < short_words else LONG if n_words >= long_words else MEDIUM


def parsed_attributes(texts: list[str]) -> dict[str, str]:
    """Attributes written as name=value. Raises ValueError."""
    found = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals and value):
            raise ValueError(f"{text!r} is no attribute; write name=value, for instance sentiment=positive")
        if name in found:
            raise ValueError(f"the attribute {name!r} is given twice, as {found[name]!r} and {value!r}")
        found[name] = value
    return found
