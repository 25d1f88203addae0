"""What is read of a conversation that is too long."""

import pytest

from model.data.chat import ANSWERS, Message, chat_template
from model.data.chat_fitting import fitted
from model.data.chat_templates import CHATML
from tests.model.data.chats import imported

SYSTEM = Message("system", "Be brief.")
TURNS = [Message(role, f"{text} {i}") for i in range(6) for role, text in (("user", "What"), ("assistant", "That"))]
LAST = Message("user", "first words " + "mill " * 40 + "last words")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return chat_template(imported("gpt2", tmp_path_factory.mktemp("fitting")), CHATML)


def length(template, conversation, *, is_open=False) -> int:
    return len(template.rendered([conversation], is_open=is_open)[0].ids)


def test_conversation_that_fits_is_read_whole(template):
    chat = [SYSTEM, *TURNS]
    found = fitted(template, chat, length(template, chat))
    assert found.rendered.ids.tolist() == template.rendered([chat])[0].ids.tolist()
    assert (found.conversation, found.n_dropped, found.is_cut) == (chat, 0, False)


@pytest.mark.parametrize("n_kept", [1, 2, 5])
def test_oldest_turns_are_left_out_and_the_system_message_stays(n_kept, template):
    kept = [SYSTEM, *TURNS[-2 * n_kept :]]
    for room in (0, 1):
        found = fitted(template, [SYSTEM, *TURNS], length(template, kept) + room)
        assert found.conversation == kept and found.n_dropped == 12 - 2 * n_kept and not found.is_cut
        assert found.rendered.ids.tolist() == template.rendered([kept])[0].ids.tolist()


def test_open_conversation_keeps_as_many_turns_as_fit(template):
    chat = [SYSTEM, *TURNS[:-1]]
    kept = [SYSTEM, *TURNS[-4:-1]]
    found = fitted(template, chat, length(template, kept, is_open=True), is_open=True)
    assert found.conversation == kept and found.rendered.ids.tolist() == template.prompt(kept)


def test_answer_of_a_last_turn_that_does_not_fit_loses_its_end(template):
    chat = [SYSTEM, *TURNS[:2], TURNS[2], Message("assistant", "mill " * 50)]
    last = [SYSTEM, *chat[-2:]]
    found = fitted(template, chat, 40)
    assert found.is_cut and found.n_dropped == 2
    assert found.rendered.ids.tolist() == template.rendered([last])[0].ids[:40].tolist()
    assert template.end_of_turn not in found.rendered.ids[found.rendered.is_supervised]


def test_right_side_cuts_the_end_alone(template):
    chat, whole = [SYSTEM, *TURNS], template.rendered([[SYSTEM, *TURNS]], trained=ANSWERS)[0]
    found = fitted(template, chat, 50, side="right")
    assert found.rendered.ids.tolist() == whole.ids[:50].tolist() and found.is_cut and found.n_dropped == 0
    assert found.rendered.is_supervised.tolist() == whole.is_supervised[:50].tolist()


@pytest.mark.parametrize(("side", "kept"), [("left", "last words"), ("right", "first words")])
def test_question_that_does_not_fit_loses_text_and_none_of_the_tokens_around_it(side, kept, template):
    found = fitted(template, [SYSTEM, LAST], 60, side=side, is_open=True)
    text = template.tokenizer.decode(found.rendered.ids)
    assert 55 < len(found.rendered.ids) <= 60 and found.is_cut
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n") and kept in text
    assert found.conversation[-1].content in LAST.content


def test_conversation_without_room_for_a_question_is_refused(template):
    with pytest.raises(ValueError, match=r"has [0-9]+ tokens without the text of its last message, but only 20 can"):
        fitted(template, [SYSTEM, LAST], 20, is_open=True)
    with pytest.raises(ValueError, match="but only 60 can be read"):
        fitted(template, [SYSTEM, *TURNS, LAST], 60, side="right", is_open=True)
