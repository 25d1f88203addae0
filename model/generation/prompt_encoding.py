"""Prompts with choices behind them as token ids: as plain text, or as a conversation in a chat template.

In: an instruction, shots, a prompt and choices. Out: the ids of the prompt, with the instruction and some of the
shots before it, and the same with each choice behind it. In a conversation a shot is a question with its answer, the
instruction is the beginning of the first question, and a choice is an answer without the token that ends it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from model.data.chat import ChatTemplate, Message
from model.data.tokenizer import Tokenizer
from model.generation.prompt import SEPARATOR, Opening


@dataclass(frozen=True, slots=True)
class TextPrompts:
    """White space at the end of a prompt belongs to the choice."""

    tokenizer: Tokenizer
    text: Opening

    @property
    def start(self) -> Sequence[int]:
        return self.tokenizer.opening

    @property
    def n_shots(self) -> int:
        return len(self.text.shots)

    def opening(self, n_shots: int) -> list[int]:
        return self.tokenizer.encode((self.text.text(n_shots) + self.text.lead).rstrip())

    def encoded(
        self, prompts: Sequence[str], choices: Sequence[str], n_shots: int
    ) -> tuple[list[list[int]], list[list[int]]]:
        opening = self.text.text(n_shots)
        whole = [opening + prompt + choice for prompt in prompts for choice in choices]
        contexts = self.tokenizer.encode_batch([(opening + prompt).rstrip() for prompt in prompts])
        return contexts, self.tokenizer.encode_batch(whole)


@dataclass(frozen=True, slots=True)
class ChatPrompts:
    """The template alone decides how a conversation begins."""

    template: ChatTemplate
    instruction: str
    shots: Sequence[tuple[str, str]]  # question and answer
    lead: str  # what every prompt begins with
    start: Sequence[int] = ()

    @property
    def n_shots(self) -> int:
        return len(self.shots)

    def opening(self, n_shots: int) -> list[int]:
        return self.template.prompt(self._conversation(self.lead, n_shots))

    def encoded(
        self, prompts: Sequence[str], choices: Sequence[str], n_shots: int
    ) -> tuple[list[list[int]], list[list[int]]]:
        asked = [self._conversation(prompt, n_shots) for prompt in prompts]
        answered = [[*one, Message("assistant", choice)] for one in asked for choice in choices]
        whole = []
        for one in self.template.rendered(answered):
            end = int(one.is_supervised.nonzero()[0][-1])  # the token that ends the answer
            whole.append(one.ids[:end].tolist())
        return [one.ids.tolist() for one in self.template.rendered(asked, is_open=True)], whole

    def _conversation(self, prompt: str, n_shots: int) -> list[Message]:
        turns = [*self.shots[len(self.shots) - n_shots :], (prompt, "")]
        if self.instruction:
            turns[0] = (self.instruction + SEPARATOR + turns[0][0], turns[0][1])
        messages = [
            Message(role, text) for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        return messages[:-1]
