"""Six tasks with one right answer each, for measuring whether a tuned model does what it is asked.

In: a seed. Out: conversations of a request and its answer, in the phrasings that are learned from or in others. The
words and numbers of a request are drawn anew, so that no request is repeated, and the words of the examples that are
learned from are not those of the others.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from model.data.chat import Message

WORDS = """
apple bridge candle desert engine forest garden hammer island jacket kitten ladder market needle orange pencil
quarry rabbit saddle ticket urchin valley window yellow zipper anchor basket carpet dinner eleven fabric guitar
harbor insect jungle kettle lemon mirror napkin office palace quiver river silver tunnel umpire velvet winter
arrow bottle cotton dragon empire flower glove honey iron jelly knight lunch motor night ocean paper queen road
stone table uncle violin water bread cloud dream earth field grass house index judge light money north onion
plant quiet radio sugar train union voice wheel youth zebra actor beach chair dance event frame green heart
image juice knife local metal nurse order piano quick rice salad tiger under visit world bacon cabin daisy eagle
ferry giant hotel igloo joker koala lion mango novel olive pearl robot snake tower urban vapor whale
""".split()  # noqa: SIM905  which nobody could read as a list


@dataclass(frozen=True, slots=True)
class ExactTask:
    name: str
    seen: Sequence[str]  # phrasings that are learned from; {} is what is asked about
    unseen: Sequence[str]
    draw: Callable[[random.Random, Sequence[str]], tuple[str, str]]  # what is asked about, and the answer


def _upper(rng: random.Random, words: Sequence[str]) -> tuple[str, str]:
    word = rng.choice(words)
    return word, word.upper()


def _first_letter(rng: random.Random, words: Sequence[str]) -> tuple[str, str]:
    word = rng.choice(words)
    return word, word[0]


def _reversed(rng: random.Random, words: Sequence[str]) -> tuple[str, str]:
    chosen = rng.sample(words, 3)
    return ", ".join(chosen), ", ".join(reversed(chosen))


def _sorted(rng: random.Random, words: Sequence[str]) -> tuple[str, str]:
    chosen = rng.sample(words, 3)
    return ", ".join(chosen), ", ".join(sorted(chosen))


def _count(rng: random.Random, words: Sequence[str]) -> tuple[str, str]:
    chosen = rng.sample(words, rng.randint(2, 6))
    return " ".join(chosen), str(len(chosen))


def _number(rng: random.Random, words: Sequence[str]) -> tuple[str, str]:
    number, (a, b) = rng.randint(10, 999), rng.sample(words, 2)
    form = rng.choice(("The {a} is near {n} {b} shops.", "We saw {n} of them by the {a} and the {b}.",
                       "A {a} costs {n} coins at the {b}.", "My {b} is number {n} on the {a}."))  # fmt: skip
    return form.format(a=a, b=b, n=number), str(number)


TASKS = (
    ExactTask(
        "upper case",
        ("Write this word in upper case: {}", "Convert to capital letters: {}", "Make the word {} all uppercase.",
         "Upper-case the following word: {}"),
        ("Please put {} into capitals.", "How does {} look when every letter is a capital?"),
        _upper,
    ),
    ExactTask(
        "first letter",
        ("What is the first letter of the word {}?", "Give the first letter of: {}", "First letter of {}?",
         "Name the letter that the word {} begins with."),
        ("Which letter does {} start with?", "Tell me the initial letter of the word {}."),
        _first_letter,
    ),
    ExactTask(
        "reverse a list",
        ("Reverse this list: {}", "Write the list in reverse order: {}", "List these backwards: {}",
         "Give the items from last to first: {}"),
        ("Turn the order of these items around: {}", "Please repeat the list, starting from its end: {}"),
        _reversed,
    ),
    ExactTask(
        "sort a list",
        ("Sort these words alphabetically: {}", "Put the words in alphabetical order: {}",
         "Arrange from A to Z: {}", "Alphabetize this list: {}"),
        ("Order the following words as in a dictionary: {}", "Please sort by the alphabet: {}"),
        _sorted,
    ),
    ExactTask(
        "count words",
        ("How many words are in this text: {}", "Count the words: {}", "Give the number of words in: {}",
         "Word count of the following text: {}"),
        ("Tell me how many words you see here: {}", "What is the total of words in the line: {}"),
        _count,
    ),
    ExactTask(
        "find the number",
        ("Extract the number from this sentence: {}", "Which number appears in the text? {}",
         "Find the number: {}", "Give only the number in: {}"),
        ("What number is mentioned here? {}", "Pick out the digits of this sentence: {}"),
        _number,
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Example:
    task: str
    conversation: tuple[Message, Message]


def examples(n: int, *, seed: int, is_seen: bool, is_training: bool) -> list[Example]:
    """`n` examples, as many of each task, in random order. `is_training`: of the words that are learned from."""
    rng = random.Random(seed)
    shuffled = random.Random(0).sample(WORDS, len(WORDS))
    n_held_out = len(WORDS) // 4
    words = shuffled[n_held_out:] if is_training else shuffled[:n_held_out]
    made, known = list[Example](), set[str]()
    while len(made) < n:
        task = TASKS[len(made) % len(TASKS)]
        phrasings = task.seen if is_seen else task.unseen
        asked, answer = task.draw(rng, words)
        request = rng.choice(phrasings).format(asked)
        if request not in known:
            known.add(request)
            made.append(Example(task.name, (Message("user", request), Message("assistant", answer))))
    rng.shuffle(made)
    return made
