"""An assistant that answers from documents, names its sources, and says when the documents do not answer.

In: a question and the conversation before it. Out: `Answered`. Steps: make a question that stands alone, by the last
question of the user if the new one refers to it; search; refuse if the score is below the threshold
(answerability.py); let a decoder answer from the best passages (prompt.py); keep the sentences that a passage
supports, with their marks (citations.py). If none is left, or there is no decoder, the sentence of the passages that
is nearest to the question is quoted.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from model.data.chat import ChatTemplate, Conversation, Message
from model.generation.generate import generate_text
from model.generation.sample_config import SampleConfig
from model.network.decoder import Decoder
from model.retrieval.answerability import LOOKED_AT, Answerability, numbers_of
from model.retrieval.citations import Citing, Source, marked, without_marks
from model.retrieval.prompt import prompt_of
from model.retrieval.retriever import Hit, Retriever, above
from model.retrieval.sentences import sentence_spans
from model.retrieval.terms import terms_of

REFUSAL = "The documents do not answer this question."
MOST_QUESTION_WORDS, MOST_QUESTION_CHARACTERS = 200, 2000
FEW_WORDS = 4  # a question with fewer words of its own needs the one before it
REFERRING = frozenset(
    re.findall(
        r"\w+",
        "it its he him his she her hers they them their theirs this these those er sie ihn ihm ihre"
        " dieser diese dieses il elle ils elles lui ce cela ella ellos ellas",
    )
)


@dataclass(frozen=True, kw_only=True, slots=True)
class AssistantConfig:
    n_passages: int = 3  # that an answer may rest on
    most_prompt_tokens: int = 600  # of the prompt, with the passages
    most_answer_tokens: int = 64

    def __post_init__(self) -> None:
        for name in ("n_passages", "most_prompt_tokens", "most_answer_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")


@dataclass(frozen=True, slots=True)
class Writer:
    """What writes answers: a decoder here, or a server's engine."""

    write: Callable[[Conversation], str]
    template: ChatTemplate
    max_seq_len: int


@dataclass(frozen=True, slots=True)
class Citation:
    n: int  # the number of its mark
    place: int  # of the passage in the table of passages
    start: int  # in the document: the sentence that says it
    end: int
    answer_start: int  # in the answer: the sentence that rests on it, with its mark
    answer_end: int


@dataclass(frozen=True, slots=True)
class Answered:
    text: str  # with marks [n]
    citations: tuple[Citation, ...]
    passages: tuple[int, ...]  # places of the passages that were read, by n from 1
    refused: bool
    score: float  # how likely the documents answer
    how: Literal["written", "quoted", "refused"]
    n_unsupported: int = 0  # sentences that were written and left out, because no passage supports them
    question_cut: bool = False  # only the beginning of the question was read


@dataclass(frozen=True, slots=True)
class Assistant:
    retriever: Retriever
    answerability: Answerability
    writer: Writer | None = None  # None = passages are quoted
    cfg: AssistantConfig = AssistantConfig()

    def answer(self, question: str, history: Sequence[Message] = ()) -> Answered:
        """Raises ValueError for a question without a word."""
        asked, is_cut = shortened(question)
        if not terms_of(asked, "none"):
            raise ValueError(f"the question {asked[:60]!r} has no word; ask for something")
        alone = standing_alone(asked, history)
        (hits,) = self.retriever.search([alone], LOOKED_AT)
        score = self.answerability.score(numbers_of(self.retriever, alone, hits))
        if not hits or score < self.answerability.threshold:
            return Answered(REFUSAL, (), (), True, score, "refused", question_cut=is_cut)
        return self._answered(asked, alone, hits[: self.cfg.n_passages], history, score, is_cut)

    def _answered(
        self, asked: str, alone: str, hits: Sequence[Hit], history: Sequence[Message], score: float, is_cut: bool
    ) -> Answered:
        rows = [self.retriever.passage(hit.place) for hit in hits]
        sources = [Source(above(row["title"], row["headings"], row["text"]), row["text"]) for row in rows]
        citing = Citing(alone, sources, self.retriever.bm25.idf, self.retriever.cfg.stemming)
        kept, n_unsupported = list[tuple[str, int, int, int]](), 0
        for sentence in citing.sentences(self._written(asked, sources, history)):
            if sentence.support is None:
                n_unsupported += 1
            else:
                support = sentence.support
                kept.append((sentence.text, support.source, support.start, support.end))
        how: Literal["written", "quoted"] = "written" if kept else "quoted"
        kept = kept or [self._quoted(alone, sources)]
        text, citations = "", list[Citation]()
        for sentence_text, source, start, end in kept:
            text += " " if text else ""
            first = len(text)
            text += marked(sentence_text, source + 1)
            offset = rows[source]["start"]
            place = hits[source].place
            citations.append(Citation(source + 1, place, offset + start, offset + end, first, len(text)))
        read = tuple(hit.place for hit in hits)
        return Answered(text, tuple(citations), read, False, score, how, n_unsupported, is_cut)

    def _written(self, question: str, sources: Sequence[Source], history: Sequence[Message]) -> str:
        if self.writer is None:
            return ""
        room = min(self.cfg.most_prompt_tokens, self.writer.max_seq_len - self.cfg.most_answer_tokens)
        try:
            prompt = prompt_of(question, sources, history, self.writer.template, room)
        except ValueError:  # a decoder that reads very little: the passages are quoted
            return ""
        return without_unfinished(self.writer.write(prompt.messages))

    def _quoted(self, question: str, sources: Sequence[Source]) -> tuple[str, int, int, int]:
        """The sentence of the passages that is nearest to the question, by vectors and words."""
        spans = [
            (number, start, end) for number, one in enumerate(sources) for start, end in sentence_spans(one.text)
        ]
        texts = [sources[number].text[start:end] for number, start, end in spans]
        cosines = self.retriever.embed(texts) @ self.retriever.embed([question])[0]
        stemming, idf = self.retriever.cfg.stemming, self.retriever.bm25.idf
        terms = set(terms_of(question, stemming))
        total = sum(map(idf, terms)) or 1.0
        shares = [sum(map(idf, terms.intersection(terms_of(text, stemming)))) / total for text in texts]
        best = int(np.argmax(cosines + np.array(shares)))
        return " ".join(without_marks(texts[best]).split()), *spans[best]


def writer_of(model: Decoder, template: ChatTemplate, cfg: AssistantConfig | None = None) -> Writer:
    """The likeliest answers of a decoder."""
    most = (cfg or AssistantConfig()).most_answer_tokens
    sampling = SampleConfig(max_new_tokens=most, temperature=0.0, stop_ids=tuple(sorted(template.stops)))

    def write(conversation: Conversation) -> str:
        return generate_text(model, [template.prompt(conversation)], sampling, template.tokenizer.decode_bytes)[0]

    return Writer(write, template, model.cfg.max_seq_len)


def without_unfinished(answer: str) -> str:
    """Without a last sentence that has no end, because the longest answer was reached, unless it is the only one."""
    spans = sentence_spans(answer)
    is_finished = not spans or not answer[: spans[-1][1]][-1].isalnum()
    return answer if is_finished or len(spans) == 1 else answer[: spans[-2][1]]


def shortened(question: str) -> tuple[str, bool]:
    """The question as it is read, without spaces at its ends, and whether that is only its beginning."""
    words = question.split(maxsplit=MOST_QUESTION_WORDS)
    kept = " ".join(words[:MOST_QUESTION_WORDS])
    return kept[:MOST_QUESTION_CHARACTERS], len(words) > MOST_QUESTION_WORDS or len(kept) > MOST_QUESTION_CHARACTERS


def standing_alone(question: str, history: Sequence[Message]) -> str:
    """The question with the last one before it, if it is short or has a word that refers to something."""
    before = [message.content for message in history if message.role == "user"]
    words = terms_of(question, "none")
    if not before or (len(words) >= FEW_WORDS and not REFERRING.intersection(words)):
        return question
    return f"{shortened(before[-1])[0]} {question}"
