"""Questions that are made from documents, where nobody wrote some: sentences with a gap, and questions by a model.

In: passages. Out: questions with the document of the passage and, of a gap, what was there, each marked with how it
was made. Passages are chosen by their hash, so that another document moves none of the others. Made questions are
easier than those of people, because they have the words of their passages; a report never mixes the two.
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
QUESTION = re.compile(r"\s*(?:Question:\s*)?([^\n?]{10,200}\?)")
MOST_TRIES = 4  # passages per question that the model may fail on
NEW_TOKENS = 48
ASK = "Sentence: {sentence}\nAnswer: {answer}"
SHOWN = (  # how a question is asked for: small models follow examples, and no instructions
    ("The mill at the river was built in 1786 by Jacob Frey.", "1786", "When was the mill at the river built?"),
    ("The mill at the river was built in 1786 by Jacob Frey.", "Jacob Frey", "Who built the mill at the river?"),
    ("The wheel must be greased with tallow every May.", "tallow", "What must the wheel be greased with every May?"),
    ("A sack of flour weighs 25 kilograms.", "25", "How many kilograms does a sack of flour weigh?"),
)
FEWEST_COMMON = 2  # long words of the sentence that a question must have, so that it is about it
Made = dict[str, Any]


def cloze_questions(passages: pa.Table, n_questions: int, seed: int) -> list[Made]:
    """At most one of each passage, fewer if the passages have no fitting sentences."""
    made: list[Made] = []
    for row in _chosen(passages, seed) if n_questions else ():
        if (found := _gap(row["text"], seed)) is not None:
            question, answer = found
            made.append(_made(CLOZE, question, [answer], row["id"]))
        if len(made) == n_questions:
            break
    return made


def questions_by_model(
    base: Path, passages: pa.Table, n_questions: int, seed: int, progress: Callable[[int, int], None]
) -> list[Made]:
    """Questions that a decoder with a chat template writes for an answer, which is chosen as for a gap: a number, a
    name or a long word of a sentence. Where the question has the answer in it, or is about something else, the next
    passage is tried. They have no answer: a small model may have asked for another part of the sentence."""
    ask, made = _asked(base), []
    for tried, row in enumerate(_chosen(passages, seed + 1)):
        if len(made) == n_questions or tried == MOST_TRIES * n_questions:
            break
        progress(len(made), n_questions)
        if (gap := _gap(row["text"], seed + 1)) is None:
            continue
        sentence, answer = gap[0].replace(GAP, gap[1], 1), gap[1]
        if (question := fitting_question(ask(sentence, answer), sentence, answer)) is not None:
            made.append(_made(MODEL, question, [], row["id"]))
    return made


def fitting_question(written: str, sentence: str, answer: str) -> str | None:
    """The question that was written, if it is about the sentence and does not have the answer in it; else None."""
    found = QUESTION.match(written)
    if found is None or found[1] in {question for _, _, question in SHOWN}:
        return None
    asked = _words(found[1])
    common = {word for word in asked if len(word) > 3} & {*_words(sentence)}
    has_answer = f" {' '.join(_words(answer))} " in f" {' '.join(asked)} "
    return None if has_answer or len(common) < FEWEST_COMMON else " ".join(found[1].split())


def _asked(base: Path) -> Callable[[str, str], str]:
    """What a decoder writes for a sentence and an answer, the likeliest text."""
    from model.data.chat import Message, load_chat_template
    from model.data.tokenizer import TOKENIZER, load_model_tokenizer
    from model.evaluate_conversations import greedy_answers
    from model.network.registry import load_decoder
    from model.training.placement import for_generation

    model = for_generation(load_decoder(base))
    template = load_chat_template(load_model_tokenizer(base, model.cfg.vocab_size), base / TOKENIZER)
    shown = [
        Message(role, text)
        for sentence, answer, question in SHOWN
        for role, text in (("user", ASK.format(sentence=sentence, answer=answer)), ("assistant", question))
    ]

    def ask(sentence: str, answer: str) -> str:
        question = Message("user", ASK.format(sentence=sentence, answer=answer))
        return greedy_answers(model, template, [[*shown, question]], NEW_TOKENS)[0].text

    return ask


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


def _made(how: str, question: str, answers: list[str], document: str) -> Made:
    return {"made": how, "question": question, "answers": answers, "document": document}
