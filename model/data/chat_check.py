"""Checks a chat template that was made elsewhere, on conversations of many kinds, before anybody relies on it.

In: a tokenizer and a template. Out: what is wrong with them, if anything. Checked are the rules of chat.py: every
message is found in what the template writes, a prompt is the beginning of the conversation with its answer, and
every answer ends with a special token that a model learns to write. A template may refuse system messages.
"""

from collections.abc import Iterator

from model.data.chat import ChatTemplate, Message, chat_template
from model.data.chat_pieces import Piece
from model.data.tokenizer import Tokenizer

TEXTS = (
    "What does a mill do?",
    "It grinds 1,234 grains.\n\n- wheat\n- rye",
    " with white space around it \n",
    "def f(x):\n    return x  # code\n",
    "Gr\u00fc\u00dfe, \u4f60\u597d \U0001f642 e\u0301",
    '{"a": [1, 2]} <b>&amp;</b> {{ x }} {% y %}',
    "",
    "x" * 500,
)
N_CONVERSATIONS, MOST_TURNS = 20, 4


def fault_of(tokenizer: Tokenizer, source: str) -> str | None:
    """Why the template cannot be used with the tokenizer; None if it can."""
    try:
        template = chat_template(tokenizer, source)
        takes_system = _takes_system(template)
        for number, conversation in enumerate(conversations("".join(tokenizer.control))):
            if takes_system or conversation[0].role != "system":
                _check(template, conversation, number)
    except ValueError as error:
        return str(error)
    return None


def conversations(spelled: str) -> Iterator[list[Message]]:
    """N_CONVERSATIONS of one turn or more, half of them with a system message; users and assistants say each of TEXTS
    and `spelled`."""
    texts = [*TEXTS, spelled]
    places = iter(range(len(texts) * N_CONVERSATIONS))
    for number in range(N_CONVERSATIONS):
        system = [Message("system", texts[number // 2 % len(texts)])] if number % 2 else []
        turns = [
            Message(role, texts[next(places) % len(texts)])
            for _ in range(1 + number % MOST_TURNS)
            for role in ("user", "assistant")
        ]
        yield [*system, *turns]


def _takes_system(template: ChatTemplate) -> bool:
    try:
        template.pieces([Message("system", TEXTS[0]), Message("user", TEXTS[0])])
    except ValueError:
        return False
    return True


def _check(template: ChatTemplate, conversation: list[Message], number: int) -> None:
    where = f"in conversation {number + 1} of {N_CONVERSATIONS} that it was checked on"
    try:
        (rendered,), pieces = template.rendered([conversation]), template.pieces(conversation)
    except ValueError as error:
        raise ValueError(f"{error}, {where}") from error
    ids, answers = rendered.ids.tolist(), [i for i, one in enumerate(conversation) if one.role == "assistant"]
    following = [*pieces[1:], Piece("", None)]
    ends = [one for one, after in zip(pieces, following, strict=True) if one.is_answer and not after.is_answer]
    if wrong := next((one for one in ends if one.token != template.end_of_turn), None):
        expected = template.tokenizer.decode([template.end_of_turn])
        raise ValueError(f"an answer ends with {wrong.text!r} instead of {expected!r}, {where}")
    if len(ends) != len(answers):
        raise ValueError(f"{len(answers)} answers have {len(ends)} ends, {where}")
    for place in answers:
        prompt = template.prompt(conversation[:place])
        if ids[: len(prompt)] != prompt:
            raise ValueError(f"the prompt of message {place + 1} is not the beginning of the conversation, {where}")
