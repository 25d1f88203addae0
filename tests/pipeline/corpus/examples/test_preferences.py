"""Which preference a row holds, in the forms in which data sets have them, and why some rows hold none."""

import pytest

from model.data.chat import Message
from pipeline.corpus.examples.conversations import Refused
from pipeline.corpus.examples.preferences import PARTS, preference_in

USER, GOOD, BAD = Message("user", "Hi"), Message("assistant", "Hello!"), Message("assistant", "What?")
MORE, DONE = Message("user", "And now?"), Message("assistant", "Done.")


def listed(*messages: Message) -> list[dict[str, str]]:
    return [{"role": one.role, "content": one.content} for one in messages]


def read(**parts):
    return preference_in(dict.fromkeys(PARTS) | parts)


@pytest.mark.parametrize(
    "parts",
    [
        {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"},
        {"prompt": listed(USER), "chosen": listed(GOOD), "rejected": listed(BAD)},
        {"prompt": "Hi", "chosen": listed(USER, GOOD), "rejected": listed(USER, BAD)},
        {"chosen": listed(USER, GOOD), "rejected": listed(USER, BAD)},
        {"instruction": "Hi", "input": "", "chosen": "Hello!", "rejected": "What?"},
        {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Hello!", "rejected": " What?"},
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello!",
            "rejected": "\n\nHuman: Hi\n\nAssistant: What?",
        },
    ],
    ids=["texts", "messages", "with the prompt", "conversations", "instruction", "prompt with speakers", "speakers"],
)
def test_forms_of_rows_mean_the_same(parts):
    assert read(**parts) == ((USER,), (GOOD,), (BAD,))


def test_common_beginning_of_conversations_is_the_prompt_and_answers_may_have_several_turns():
    found = read(chosen=listed(USER, GOOD, MORE, DONE), rejected=listed(USER, GOOD, MORE, BAD))
    assert found == ((USER, GOOD, MORE), (DONE,), (BAD,))
    found = read(chosen=listed(USER, GOOD, MORE, DONE), rejected=listed(USER, BAD))
    assert found == ((USER,), (GOOD, MORE, DONE), (BAD,))


def test_input_belongs_to_the_instruction_and_a_system_message_goes_first():
    found = read(instruction="Add", input="1 and 2", chosen="3", rejected="4", system="Be brief.")
    assert found[0] == (Message("system", "Be brief."), Message("user", "Add\n\n1 and 2"))


@pytest.mark.parametrize(
    "reason, parts",
    [
        ("no_chosen", {"prompt": "Hi", "rejected": "What?"}),
        ("no_rejected", {"prompt": "Hi", "chosen": "Hello!", "rejected": ""}),
        ("empty_answer", {"prompt": "Hi", "chosen": "Hello!", "rejected": "  "}),
        ("equal_answers", {"prompt": "Hi", "chosen": "Hello!", "rejected": "Hello!"}),
        ("no_prompt", {"chosen": "Hello!", "rejected": "What?"}),
        ("no_common_prompt", {"chosen": listed(USER, GOOD), "rejected": listed(MORE, BAD)}),
        (
            "different_questions",
            {"chosen": listed(USER, GOOD, MORE, DONE), "rejected": listed(USER, GOOD, USER, BAD)},
        ),
        (
            "one_answer_continues_the_other",
            {"chosen": listed(USER, GOOD, MORE, DONE), "rejected": listed(USER, GOOD)},
        ),
        ("unknown_role", {"prompt": "Hi", "chosen": [{"role": "wizard", "content": "x"}], "rejected": "What?"}),
        ("starts_with_assistant", {"chosen": listed(GOOD, USER, GOOD), "rejected": listed(GOOD, USER, BAD)}),
    ],
)
def test_rows_without_a_preference_are_refused_with_a_reason(reason, parts):
    with pytest.raises(Refused) as refused:
        read(**parts)
    assert refused.value.reason == reason
