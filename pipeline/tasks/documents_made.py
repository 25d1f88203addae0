"""Questions that are made from documents, where nobody wrote some: sentences with a gap, and questions by a model.

In: passages. Out: questions with the right answer and the document of the passage, each marked with how it was made.
Passages are chosen by their hash, so that another document moves none of the others. Made questions are easier than
those of people, because they have the words of their passages; a report never mixes the two.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from pipeline.evaluation.best_sentence import sentences_of

CLOZE, MODEL = "cloze", "model"  # how a question was made
GAP = "____"
FEWEST_WORDS, MOST_WORDS = 8, 40  # of a sentence with a gap
NUMBER = re.compile(r"(?<![\w.])\d[\d.,:]*\d(?!\w)|(?<![\w.])\d(?![\w.])")
NAME = re.compile(r"(?<=[^\W\d_,] )[A-Z][\w-]+(?: [A-Z][\w-]+)*")  # capitals inside a sentence
WORD = re.compile(r"[^\W\d_]{7,}")
QUESTION = re.compile(r"[^\n?]{10,200}\?")
MOST_TRIES = 3  # passages per question that the model may fail on
NEW_TOKENS, MOST_ANSWER_WORDS = 48, 15
ASK = (
    "Write one short question that the following text answers, and nothing else. The question must be clear without"
    " the text.\n\n{text}"
)
ANSWER = "Answer the question with a few words of the text, and nothing else.\n\nText: {text}\n\nQuestion: {question}"
Made = dict[str, Any]


def cloze_questions(passages: pa.Table, n_questions: int, seed: int) -> list[Made]:
    """At most one of each passage, fewer if the passages have no fitting sentences."""
    made: list[Made] = []
    for row in _chosen(passages, seed) if n_questions else ():
        if (found := _gap(row["text"], seed)) is not None:
            made.append(_made(CLOZE, *found, row["id"]))
        if len(made) == n_questions:
            break
    return made


def questions_by_model(
    base: Path, passages: pa.Table, n_questions: int, seed: int, progress: Callable[[int, int], None]
) -> list[Made]:
    """Questions that a decoder with a chat template writes, and answers with words of the passage. Where it does not,
    the next passage is tried."""
    ask, made = _asked(base), []
    for tried, row in enumerate(_chosen(passages, seed + 1)):
        if len(made) == n_questions or tried == MOST_TRIES * n_questions:
            break
        progress(len(made), n_questions)
        if (found := QUESTION.search(ask(ASK.format(text=row["text"])))) is None:
            continue
        question = " ".join(found[0].split()).removeprefix("Question:").strip()
        answer = ask(ANSWER.format(text=row["text"], question=question)).strip().strip('."').strip()
        if answer and len(answer.split()) <= MOST_ANSWER_WORDS and _is_in(answer, row["text"]):
            made.append(_made(MODEL, question, answer, row["id"]))
    return made


def _asked(base: Path) -> Callable[[str], str]:
    """The greedy answer of a decoder to a prompt."""
    from model.data.chat import Message, load_chat_template
    from model.data.tokenizer import TOKENIZER, load_model_tokenizer
    from model.evaluate_conversations import greedy_answers
    from model.network.registry import load_decoder
    from model.training.placement import for_generation

    model = for_generation(load_decoder(base))
    template = load_chat_template(load_model_tokenizer(base, model.cfg.vocab_size), base / TOKENIZER)
    return lambda text: greedy_answers(model, template, [[Message("user", text)]], NEW_TOKENS)[0].text


def _is_in(answer: str, text: str) -> bool:
    """Whether the words of an answer stand in the text in this order."""
    return f" {' '.join(_words(answer))} " in f" {' '.join(_words(text))} "


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _chosen(passages: pa.Table, seed: int) -> Iterator[Made]:
    """The passages in the order of a hash, one of each document first, then the others."""
    columns = passages.select(["id", "start"]).to_pylist()
    keys = [xxhash.xxh3_64_intdigest(f"{row['id']} {row['start']}".encode(), seed=seed % 2**64) for row in columns]
    turn: dict[str, int] = {}
    turns = []
    for place in sorted(range(len(keys)), key=keys.__getitem__):
        name = columns[place]["id"]
        turns.append((turn.setdefault(name, 0), place))
        turn[name] += 1
    for _, place in sorted(turns, key=lambda one: one[0]):  # stable: by their hash
        yield passages.slice(place, 1).to_pylist()[0]


def _gap(text: str, seed: int) -> tuple[str, str] | None:
    """A sentence with a gap in place of a number, a name or a long word, and what was there."""
    spans = [(start, end) for start, end in sentences_of(text) if _fits(text[start:end])]
    spans.sort(key=lambda span: xxhash.xxh3_64_intdigest(text[slice(*span)].encode(), seed=seed % 2**64))
    for start, end in spans:
        sentence = " ".join(text[start:end].split())
        for kind in (NUMBER, NAME, WORD):
            found = _candidates(sentence, kind)
            if found:
                answer = found[xxhash.xxh3_64_intdigest(sentence.encode(), seed=(seed + 1) % 2**64) % len(found)]
                return sentence.replace(answer, GAP, 1), answer
    return None


def _fits(sentence: str) -> bool:
    words = sentence.split()
    letters = sum(sign.isalpha() or sign.isspace() for sign in sentence)
    return FEWEST_WORDS <= len(words) <= MOST_WORDS and letters >= 0.8 * len(sentence)


def _candidates(sentence: str, kind: re.Pattern[str]) -> Sequence[str]:
    """What occurs once, so that the rest of the sentence does not tell it."""
    found = [match[0] for match in kind.finditer(sentence)]
    return [one for one in found if sentence.count(one) == 1]


def _made(how: str, question: str, answer: str, document: str) -> Made:
    return {"made": how, "question": question, "answers": [answer], "document": document}
