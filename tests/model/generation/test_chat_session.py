"""A conversation: its messages, what is read of them, and that no answer depends on what was kept of earlier ones."""

import dataclasses

import pytest
import torch

from model.data.chat import ChatTemplate, Message, load_chat_template
from model.generation.chat_session import ChatSession
from model.generation.generate import generate_text
from model.generation.sample_config import SampleConfig
from model.hf.tokenizer_import import import_tokenizer
from model.network.decoder import Decoder, new_decoder
from model.network.shape import DecoderConfig
from tests.model.hf.tokenizers_of_others import save

QUESTIONS = ("the mill grinds", "12 tons?", "We'll see\n\nit's 1999", "DON'T", "foo_bar")
CFG = SampleConfig(max_new_tokens=12, temperature=9.0)
SYSTEM = Message("system", "the mill")


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> ChatTemplate:
    folder = tmp_path_factory.mktemp("smollm")
    tokenizer = import_tokenizer(save("smollm", folder / "source"), folder / "tokenizer", 600)
    return load_chat_template(tokenizer, folder / "tokenizer", "chatml")


def decoder(template: ChatTemplate, max_seq_len: int = 512, seed: int = 0, **settings) -> Decoder:
    """Random weights so large that what it writes depends on all that it reads. It writes printable ASCII only."""
    cfg = DecoderConfig(
        vocab_size=template.tokenizer.vocab_size, n_layers=2, n_heads=2, n_kv_heads=1, d_model=16, d_head=8, d_ff=32,
        max_seq_len=max_seq_len, **settings,
    )  # fmt: skip
    model = new_decoder(cfg, seed=seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.normal_(std=0.5, generator=generator)
        is_shown = [token.isascii() and token.decode().isprintable() for token in template.tokenizer.tokens]
        model.lm_head.weight[~torch.tensor(is_shown)] = 0
        model.lm_head.weight[sorted(template.stops)] = 0
        model.lm_head.weight *= 4
    return model


def said(session: ChatSession, question: str, cfg: SampleConfig = CFG) -> str:
    session.say(question)
    return "".join(session.answer(cfg).pieces)


class TokensRead:
    """Counts the tokens that pass through a model."""

    def __init__(self, model: Decoder) -> None:
        self.n = 0
        model.trunk.embed_tokens.register_forward_hook(self.add)

    def add(self, module, arguments, output) -> None:
        self.n += arguments[0].numel()


@pytest.mark.parametrize("settings", [{}, {"positions": "learned"}, {"sliding_window": 9, "sliding_layers": (0,)}])
def test_answer_is_what_a_model_without_memory_of_earlier_answers_writes(template, settings):
    model = decoder(template, **settings)
    session, conversation = ChatSession(model, template), []
    stops = dataclasses.replace(CFG, stop_ids=tuple(template.stops))
    for number, question in enumerate(QUESTIONS):
        conversation.append(Message("user", question))
        prompt = template.prompt(conversation)
        (expected,) = generate_text(model, [prompt], stops, template.tokenizer.decode_bytes, row_numbers=[number])
        assert said(session, question) == expected
        conversation.append(Message("assistant", expected))
        assert session.messages == conversation


def test_answer_reads_only_what_is_new(template):
    model = decoder(template)
    session = ChatSession(model, template)
    greedy = SampleConfig(max_new_tokens=1, temperature=0)  # one token, so that it is the same when it is read again
    for question in QUESTIONS:
        said(session, question, greedy)
    n_before = len(template.rendered([session.messages])[0].ids)
    count = TokensRead(model)
    said(session, "12", greedy)
    n_prompt = len(template.prompt(session.messages[:-1]))
    assert n_prompt > 100
    assert count.n <= n_prompt - n_before + 3  # of the answer before its only token and the end of its turn


def test_answers_of_a_session_are_drawn_anew(template):
    session = ChatSession(decoder(template), template)
    first = said(session, "the mill")
    assert session.undo() == "the mill"
    assert said(session, "the mill") != first
    assert [message.role for message in session.messages] == ["user", "assistant"]


def test_answer_that_is_stopped_stays_as_far_as_it_was_written(template):
    session, cfg = ChatSession(decoder(template), template), SampleConfig(max_new_tokens=100, temperature=0)
    session.say("the mill")
    written: list[str] = []
    answer = session.answer(cfg, is_stopped=lambda: len(written) >= 3)
    for piece in answer.pieces:
        written.append(piece)
    assert answer.ending == "stopped"
    assert session.messages[1:] == [Message("assistant", "".join(written))]
    whole = said(ChatSession(session.model, template), "the mill", cfg)
    assert whole.startswith("".join(written)) and whole != "".join(written)


def test_answer_that_is_interrupted_stays_and_the_next_one_is_as_if_nothing_was_kept(template):
    model, cfg = decoder(template), SampleConfig(max_new_tokens=20, temperature=0)
    session = ChatSession(model, template)
    session.say("the mill")
    pieces = session.answer(cfg).pieces
    written = next(pieces) + next(pieces)
    with pytest.raises(KeyboardInterrupt):
        pieces.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    assert session.messages[1:] == [Message("assistant", written)]
    other = ChatSession(model, template)
    other.begin(session.messages)
    assert said(session, "12", cfg) == said(other, "12", cfg)


def test_question_is_forgotten_if_reading_it_is_interrupted(template):
    model, greedy = decoder(template), SampleConfig(max_new_tokens=12, temperature=0)
    session = ChatSession(model, template)
    said(session, "the mill", greedy)
    before = list(session.messages)

    def interrupt(*_):
        raise KeyboardInterrupt

    hook = model.trunk.layers[1].register_forward_hook(interrupt)  # in the middle of a pass
    with pytest.raises(KeyboardInterrupt):
        said(session, "12 tons", greedy)
    hook.remove()
    assert session.messages == before
    other = ChatSession(model, template)
    other.begin(before)
    assert said(session, "DON'T", greedy) == said(other, "DON'T", greedy)


def test_answer_ends_by_itself_at_the_end_of_the_turn_and_at_a_stop_text(template):
    model = decoder(template)
    (end,) = (i for i, token in enumerate(template.tokenizer.tokens) if token == b"<|im_end|>")
    free = said(ChatSession(model, template), "the mill", SampleConfig(max_new_tokens=30, temperature=0))
    session = ChatSession(model, template)
    session.say("the mill")
    answer = session.answer(SampleConfig(max_new_tokens=30, temperature=0, stop=(free[4:6],)))
    assert "".join(answer.pieces) == free[: free.index(free[4:6])] and answer.ending == "by itself"
    with torch.no_grad():
        prompt = torch.tensor([template.prompt([Message("user", "the mill")])])
        model.lm_head.weight[end] = 100 * model.trunk(prompt)[0, -1]
    session = ChatSession(model, template)
    session.say("the mill")
    answer = session.answer(SampleConfig(max_new_tokens=30, temperature=0))
    assert list(answer.pieces) == [] and answer.ending == "by itself"
    assert session.messages == [Message("user", "the mill"), Message("assistant", "")]


def test_conversation_beyond_the_context_loses_its_oldest_messages_but_not_the_system_message(template):
    model = decoder(template, max_seq_len=128)
    session, dropped = ChatSession(model, template), []
    session.set_system(SYSTEM.content)
    for place in range(14):
        session.say(QUESTIONS[place % len(QUESTIONS)])
        answer = session.answer(CFG)
        assert "".join(answer.pieces)
        dropped.append(answer.n_dropped)
    assert dropped[0] == 0 and sum(dropped) > 0 and all(n % 2 == 0 for n in dropped)
    assert len(session.messages) == 1 + 2 * 14 and session.messages[0] == SYSTEM
    session.say("12")
    conversation = [SYSTEM, *session.messages[1 + sum(dropped) :]]
    answer = session.answer(CFG)
    conversation = conversation[:1] + conversation[1 + answer.n_dropped :]
    stops = dataclasses.replace(CFG, stop_ids=tuple(template.stops))
    (expected,) = generate_text(
        model, [template.prompt(conversation)], stops, template.tokenizer.decode_bytes, row_numbers=[14]
    )
    assert "".join(answer.pieces) == expected
    first = next(place for place, n in enumerate(dropped) if n)
    assert 0 in dropped[first + 1 :]  # there is room for a while


def test_message_beyond_the_context_is_cut_and_this_is_told(template):
    session = ChatSession(decoder(template, max_seq_len=64), template)
    session.say("the mill grinds " * 100)
    answer = session.answer(CFG)
    assert answer.is_cut and "".join(answer.pieces)


def test_system_message_that_fills_the_context_is_an_error_and_the_chat_goes_on(template):
    session = ChatSession(decoder(template, max_seq_len=64), template)
    session.set_system("the mill grinds " * 100)
    session.say("12")
    with pytest.raises(ValueError, match="can be read"):
        session.answer(CFG)
    assert [message.role for message in session.messages] == ["system"]
    session.set_system(None)
    assert said(session, "12")


def test_answer_ends_with_the_context(template):
    session = ChatSession(decoder(template, max_seq_len=64), template)
    session.say("12")
    answer = session.answer(SampleConfig(max_new_tokens=1000, temperature=0))
    n_tokens = len(template.tokenizer.encode("".join(answer.pieces)))
    assert answer.ending == "end of the context" and n_tokens > 20


def test_longest_answer_is_told(template):
    session = ChatSession(decoder(template), template)
    session.say("12")
    answer = session.answer(SampleConfig(max_new_tokens=3, temperature=0))
    "".join(answer.pieces)
    assert answer.ending == "longest answer"
