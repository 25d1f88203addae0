"""Which templates are reported when a base is imported."""

import pytest

from model.data.chat_check import N_CONVERSATIONS, TEXTS, conversations, fault_of
from model.data.chat_templates import CHATML
from tests.model.data.chats import JINJA, PAIRS, imported


@pytest.mark.parametrize(("name", "template"), PAIRS)
def test_templates_that_work_have_no_fault(name, template, tmp_path):
    assert fault_of(imported(name, tmp_path), JINJA[template]) is None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for", "not a chat template, line 1"),
        (CHATML.replace("<|im_end|>", ""), "ends an answer by no special token"),
        (CHATML.replace("assistant\\n", "assistant\\n<think>\\n"), "asks for an answer by"),
        (
            CHATML.replace("message['content']", "message['content'].replace('grinds', 'mills')"),
            "changes message 2 [(]assistant[)].*, in conversation 1 of 20 that it was checked on",
        ),
        (
            CHATML.replace("+ '<|im_end|>'", "+ ('<|im_end|>' if loop.last or message.role == 'user' else '')"),
            r"an answer ends with '<\|im_start\|>' instead of '<\|im_end\|>', in conversation 2 of 20",
        ),
    ],
)
def test_fault_says_what_is_wrong_and_in_which_conversation(source, message, tmp_path):
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(fault_of(imported("gpt2", tmp_path), source))


def test_conversations_have_every_length_and_every_text_in_every_role():
    found = list(conversations("<|im_end|>"))
    assert len(found) == N_CONVERSATIONS and {len(one) // 2 for one in found} == {1, 2, 3, 4}
    said = {(message.role, message.content) for one in found for message in one}
    assert said >= {(role, text) for role in ("user", "assistant") for text in TEXTS}
