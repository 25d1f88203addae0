"""A conversation with a decoder: its messages, and the keys and values of what the decoder has read of them.

In: a decoder, its chat template and what the user says. Out: answers, piece by piece. Steps of an answer: render the
conversation; leave out the oldest questions where it does not fit the context (model/data/chat_fitting.py); find how
many of its first tokens were read for the answer before; read the others, and draw tokens until one ends the answer.

An answer depends on the messages that are read, the settings and the number of answers so far, not on what was kept
of earlier ones, up to the rounding of floating point. Once messages have to be left out, so many are that a quarter
of the room is free again: the beginning then stays the same for several answers, and is read once for all of them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from model.data.chat import ChatTemplate, Conversation, Message
from model.data.chat_fitting import Fitted, fitted
from model.generation.choices import n_common
from model.generation.generate import tokens
from model.generation.sample_config import SampleConfig
from model.generation.text_stream import TextStream
from model.network.decoder import Decoder
from model.network.kv_cache import KVCache

Ending = Literal["by itself", "stopped", "longest answer", "end of the context"]


@dataclass(slots=True)
class Answer:
    """An answer that is written while it is read; what was read of it is the last message then."""

    pieces: Iterator[str]
    n_dropped: int  # messages that the answers before could still read
    is_cut: bool  # a part of the question is not read
    ending: Ending | None = None  # None = not yet


class ChatSession:
    def __init__(self, model: Decoder, template: ChatTemplate) -> None:
        """`model`: evaluated, perhaps packed for one row."""
        self.model, self.template = model, template
        self.messages: list[Message] = []
        self._n_left_out = 0  # messages, which are followed by those that are read; the system message is not counted
        self._n_answers = 0
        self._read = _Read(model)

    @property
    def system(self) -> str | None:
        return self.messages[0].content if self.messages[:1] and self.messages[0].role == "system" else None

    def set_system(self, text: str | None) -> None:
        """A system message, or none, for all further answers."""
        own = [Message("system", text)] if text else []
        self.messages = own + self._turns()

    def begin(self, messages: Conversation) -> None:
        """Another conversation takes the place of this one."""
        self.messages, self._n_left_out = list(messages), 0

    def say(self, text: str) -> None:
        """What the user says next."""
        self.messages.append(Message("user", text))

    def undo(self) -> str | None:
        """Takes back the last thing that the user said, and all that followed it; returns it."""
        places = [place for place, message in enumerate(self.messages) if message.role == "user"]
        if not places:
            return None
        question = self.messages[places[-1]].content
        self.begin(self.messages[: places[-1]])
        return question

    def answer(self, cfg: SampleConfig, is_stopped: Callable[[], bool] = lambda: False) -> Answer:
        """The answer to the last message. `is_stopped` is asked after each token whether the answer ends with it.

        Raises ValueError, before the first piece, for a conversation that the template refuses or that can't be made
        to fit. Of an answer without a word, unless the model itself ends it, the question is taken back.
        """
        max_seq_len = self.model.cfg.max_seq_len
        try:
            found = self._fitted(max_seq_len - min(cfg.max_new_tokens, max_seq_len // 2))
        except ValueError:
            self.undo()
            raise
        prompt = found.rendered.ids.tolist()
        n_new = min(cfg.max_new_tokens, max_seq_len - len(prompt))
        cfg = replace(cfg, max_new_tokens=n_new, stop_ids=(*cfg.stop_ids, *sorted(self.template.stops)))
        longest: Ending = "longest answer" if n_new < max_seq_len - len(prompt) else "end of the context"
        answer = Answer(iter(()), found.n_dropped, found.is_cut)
        answer.pieces = self._pieces(answer, prompt, cfg, is_stopped, longest)
        return answer

    def _turns(self) -> list[Message]:
        return [message for message in self.messages if message.role != "system"]

    def _fitted(self, room: int) -> Fitted:
        """The messages that are read, in at most `room` tokens."""
        own = [message for message in self.messages if message.role == "system"]
        before = [*own, *self._turns()[self._n_left_out :]]
        found = fitted(self.template, before, room, is_open=True)
        if found.n_dropped:
            with_room = fitted(self.template, before, room * 3 // 4, is_open=True)
            found = found if with_room.is_cut else with_room
        self._n_left_out += found.n_dropped
        return found

    def _pieces(
        self, answer: Answer, prompt: list[int], cfg: SampleConfig, is_stopped: Callable[[], bool], longest: Ending
    ) -> Iterator[str]:
        text = TextStream(self.template.tokenizer.decode_bytes, cfg.stop)
        written, n_tokens = "", 0
        number, self._n_answers = self._n_answers, self._n_answers + 1
        new = self._read.tokens(prompt, cfg, lambda: text.is_done or is_stopped(), number)
        try:
            for token in new:
                n_tokens += 1
                piece = text.push(token)
                written += piece
                if piece:
                    yield piece
            rest = text.finish()
            written += rest
            answer.ending = "by itself" if text.is_done else "stopped" if is_stopped() else None
            if answer.ending is None:
                answer.ending = "by itself" if n_tokens < cfg.max_new_tokens else longest
            if rest:
                yield rest
        finally:
            answer.ending = answer.ending or "stopped"
            if written or answer.ending == "by itself":
                self.messages.append(Message("assistant", written))
            else:
                self.undo()


class _Read:
    """The tokens that were read last, with their keys and values."""

    def __init__(self, model: Decoder) -> None:
        self.model = model
        self.ids: list[int] = []  # of which the cache holds the first
        self.cache: KVCache | None = None

    def tokens(self, prompt: list[int], cfg: SampleConfig, is_over: Callable[[], bool], number: int) -> Iterator[int]:
        """New tokens after `prompt`, of which only what was not read before is read."""
        cache = self._cache_for(prompt, cfg.max_new_tokens)
        self.ids = list(prompt)
        new = tokens(self.model, [prompt], cfg, is_over=lambda row: is_over(), row_numbers=[number], cache=cache)
        try:
            for _, token in new:
                self.ids.append(token)
                yield token
        except BaseException as error:
            if not isinstance(error, GeneratorExit):  # in the middle of a pass: what the cache holds is unknown
                self.cache = None
            raise

    def _cache_for(self, prompt: Sequence[int], n_new: int) -> KVCache:
        """A cache that holds the beginning that `prompt` has in common with what was read, without its last token."""
        size = len(prompt) + n_new - 1
        if self.cache is None:
            self.cache = self.model.new_cache(1, size)
            return self.cache
        held = self.ids[: self.cache.lengths[0]]
        self.cache.truncate([min(n_common([held, prompt]), len(prompt) - 1)])
        if self.cache.max_len < size:
            wider = self.model.new_cache(1, min(max(size, 2 * self.cache.max_len), self.model.cfg.max_seq_len))
            wider.fill(self.cache)
            self.cache = wider
        return self.cache
