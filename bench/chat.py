"""How long a chat takes to begin an answer, with what was read for the answers before kept, and without.

In: the folder of a chat model in our format. Out: a Markdown table, printed: per turn the tokens of the prompt, and
processor seconds from the question to the first piece of the answer, in one conversation (kept), and where each turn
begins anew with the same messages (from scratch). Answers are greedy, and the same in both. Seconds are the least of
several runs.

    python -m bench.chat MODEL [--turns 5] [--tokens 100] [--repeats 2] [--threads 1]
"""

import argparse
import time
from pathlib import Path

import torch

from bench.machine import machine
from model.data.chat import Message
from model.generation.chat_session import ChatSession
from model.generation.sample_config import SampleConfig
from pipeline.serving.chat import open_session

QUESTIONS = (
    "What is a mill?",
    "How does a water mill work? Explain every step.",
    "And what changes with wind instead of water?",
    "Which of the two would you build beside a small river, and why?",
    "Summarise what you have told me in one sentence.",
)


def first_piece(session: ChatSession, cfg: SampleConfig) -> tuple[float, str]:
    """Processor seconds until the answer to the last message begins, and the whole answer."""
    started = time.process_time()
    pieces = session.answer(cfg).pieces
    first = next(pieces, "")
    return time.process_time() - started, first + "".join(pieces)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=100, metavar="N", help="longest answer")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cfg = SampleConfig(max_new_tokens=args.tokens, temperature=0)
    seconds: dict[tuple[str, int], list[float]] = {}
    lengths = []
    for _ in range(args.repeats):
        kept, lengths = open_session(args.model), []
        for turn in range(args.turns):
            kept.say(QUESTIONS[turn % len(QUESTIONS)])
            asked = list(kept.messages)
            lengths.append(len(kept.template.prompt(asked)))
            taken, answer = first_piece(kept, cfg)
            seconds.setdefault(("kept", turn), []).append(taken)
            anew = open_session(args.model)
            anew.begin(asked)
            taken, again = first_piece(anew, cfg)
            seconds.setdefault(("from scratch", turn), []).append(taken)
            assert again == answer and anew.messages == [*asked, Message("assistant", answer)]
    print(machine(args.threads) + "\n")
    print("| turn | tokens of the prompt | kept, CPU s | from scratch, CPU s | ratio |\n|---:|---:|---:|---:|---:|")
    for turn, length in enumerate(lengths):
        kept_least, scratch = (min(seconds[name, turn]) for name in ("kept", "from scratch"))
        print(f"| {turn + 1} | {length} | {kept_least:.2f} | {scratch:.2f} | {scratch / kept_least:.1f} |")


if __name__ == "__main__":
    main()
