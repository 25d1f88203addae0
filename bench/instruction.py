"""Instruction tuning of SmolLM2: what it learns, what it forgets, and how fast, beside TRL's SFTTrainer.

In: a folder with the data sets (--data), the model as a folder of ours (--base) and, for the speed, of Hugging Face
(--hf) with the Python of an environment that has TRL (--peer). Out: Markdown tables, printed. Three parts:

instructions  990 rows of instructions.json are learned from, 110 are held out: loss on answers before and after, and
              how many greedy answers end by themselves.
recipe        600 examples of six tasks with exact answers (bench/exact_tasks.py), 120 steps of 8 examples, a peak
              rate of 5e-5 after 10 steps: exact matches in phrasings that were learned and in others, and the
              perplexity of Shakespeare, 20 blocks of 128 tokens from the end, before and after.
speed         processor seconds per token of a step, ours and TRL's in turns, with the same rows of instructions.json
              in each step (--no-packing), in float32, on as many threads; --hf is what `gristmill export` writes.

    python -m bench.instruction --data DIR --base DIR [--hf DIR --peer PYTHON] --part recipe [--threads 1]
"""

import argparse
import dataclasses
import json
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from bench.exact_tasks import examples
from bench.instruction_peers import measured_in_turns
from bench.machine import machine
from bench.progress import Printed
from model.data.chat import ChatTemplate, Conversation, Message, load_chat_template
from model.data.conversations import EncodedConversations
from model.data.tokenizer import TOKENIZER
from model.evaluate_conversations import greedy_answers, mean_conversation_loss
from model.network.decoder import Decoder
from model.network.registry import describe
from model.training.finetune_settings import FinetuneSettings, resolved
from model.training.finetuning import Base, Task, finetune, job_of, load_base
from model.training.loss import language_model_loss

N_HELD_OUT = 110  # rows of instructions.json
LONGEST_ANSWER, LONGEST_EXACT = 128, 24  # tokens that an answer may have
BLOCKS, BLOCK = 20, 128  # of Shakespeare
ROWS = 8  # examples of a step
WARMUP = 10  # steps
RECIPE_STEPS, RECIPE_RATE, RECIPE_EXAMPLES = 120, 5e-5, 600
N_TESTED = 120  # examples of exact tasks in phrasings that were learned, and as many in others


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with instructions.json, tinyshakespeare.txt")
    parser.add_argument("--base", type=Path, required=True, help="folder of a decoder in our format")
    parser.add_argument("--hf", type=Path, help="folder of the same decoder in Hugging Face's format")
    parser.add_argument("--peer", type=Path, help="Python of an environment with TRL")
    parser.add_argument("--part", choices=("instructions", "recipe", "speed"), required=True)
    parser.add_argument("--steps", type=int, help="fewer than planned, to try the script")
    parser.add_argument("--epochs", type=int, default=1, help="of instructions")
    parser.add_argument("--lr", type=float, default=1e-4, help="peak rate of instructions")
    parser.add_argument("--packing", action=argparse.BooleanOptionalAction, default=True, help="of speed")
    parser.add_argument("--rows", type=int, default=ROWS, help="examples of a step of speed")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(machine(args.threads) + "\n")
    {"instructions": instructions, "recipe": recipe, "speed": measured_in_turns}[args.part](args)


def instructions(args: argparse.Namespace) -> None:
    base, template = opened(args.base)
    conversations = conversations_of(args.data)
    order = np.random.default_rng(0).permutation(len(conversations))
    held_out = [conversations[place] for place in order[:N_HELD_OUT]]
    training = [conversations[place] for place in order[N_HELD_OUT:]]
    before = answer_loss(base.network, template, held_out)
    steps = args.steps or args.epochs * -(-len(training) // ROWS)
    seconds, n_tokens = tuned(base, template, training, args.lr, args.epochs, steps, args.threads)
    after = answer_loss(base.network, template, held_out)
    answers = answers_of(base.network, template, held_out, LONGEST_ANSWER)
    right = [text == one[-1].content for (text, _), one in zip(answers, held_out, strict=True)]
    print(f"{len(training)} rows, {steps} steps of {ROWS}, AdamW, peak rate {args.lr:g}\n")
    print(f"Loss on answers, nats per token: {before:.3f} before, {after:.3f} after, {1 - after / before:.1%} lower.")
    print(f"Of {len(answers)} greedy answers {np.mean([ended for _, ended in answers]):.1%} end by themselves, and")
    print(f"{np.mean(right):.1%} are the reference word for word. {told(seconds, n_tokens)}")
    for (text, _), one in list(zip(answers, held_out, strict=True))[:8]:
        print(json.dumps({"asked": one[0].content, "answer": text, "reference": one[1].content}))


def recipe(args: argparse.Namespace) -> None:
    base, template = opened(args.base)
    training = [one.conversation for one in examples(RECIPE_EXAMPLES, seed=0, is_seen=True, is_training=True)]
    tests = {
        "learned phrasings": examples(N_TESTED, seed=1, is_seen=True, is_training=False),
        "other phrasings": examples(N_TESTED, seed=2, is_seen=False, is_training=False),
    }
    text = (args.data / "tinyshakespeare.txt").read_text("utf-8")
    ids = base.tokenizer.encode(text[-20 * BLOCKS * BLOCK :])[-BLOCKS * BLOCK :]
    found: dict[str, list[float]] = {}
    by_task: list[Counter[str]] = []

    def judge() -> None:
        for name, tested in tests.items():
            asked = [one.conversation for one in tested]
            answers = answers_of(base.network, template, asked, LONGEST_EXACT)
            right = [answer == one.conversation[1].content for (answer, _), one in zip(answers, tested, strict=True)]
            found.setdefault(f"exact match, {name}", []).append(float(np.mean(right)))
            found.setdefault(f"answers that end, {name}", []).append(float(np.mean([ended for _, ended in answers])))
            by_task.append(Counter(one.task for one, is_right in zip(tested, right, strict=True) if is_right))
        found.setdefault("perplexity of Shakespeare", []).append(perplexity(base.network, ids))

    judge()
    steps = args.steps or RECIPE_STEPS
    seconds, n_tokens = tuned(base, template, training, RECIPE_RATE, None, steps, args.threads)
    judge()
    print(f"{len(training)} examples, {steps} steps of {ROWS}, AdamW, peak rate {RECIPE_RATE:g}\n")
    print("| | base | tuned |\n|---|---:|---:|")
    for name, (before, after) in found.items():
        print(f"| {name} | {before:.3f} | {after:.3f} |")
    n_each = N_TESTED // len(by_task[-1] | by_task[-2]) if by_task[-1] or by_task[-2] else 0
    print(f"\nRight answers by task, of {n_each} each:", dict(by_task[-2]), "learned;", dict(by_task[-1]), "other.")
    before, after = found["perplexity of Shakespeare"]
    print(f"The perplexity changes by {after / before - 1:+.1%}. {told(seconds, n_tokens)}")


def opened(folder: Path) -> tuple[Base, ChatTemplate]:
    base = load_base(folder)
    assert isinstance(base.network, Decoder)
    return base, load_chat_template(base.tokenizer, folder / TOKENIZER)


def conversations_of(data: Path) -> list[Conversation]:
    rows = json.loads((data / "instructions.json").read_text("utf-8"))
    return [
        (Message("user", "\n\n".join(filter(None, (row["instruction"], row["input"])))),
         Message("assistant", row["output"]))
        for row in rows
    ]  # fmt: skip


def answer_loss(model: Decoder, template: ChatTemplate, held_out: Sequence[Conversation]) -> float:
    """Nats per token of an answer, its end included."""
    return mean_conversation_loss(
        model.eval(), EncodedConversations([""] * len(held_out), template.rendered(held_out))
    )


def answers_of(
    model: Decoder, template: ChatTemplate, conversations: Sequence[Conversation], longest: int
) -> list[tuple[str, bool]]:
    """The greedy answer to each first question, and whether it ended by itself."""
    answers = greedy_answers(model.eval(), template, [one[:-1] for one in conversations], longest)
    return [(one.text, one.is_complete) for one in answers]


@torch.no_grad()
def perplexity(model: Decoder, ids: Sequence[int]) -> float:
    rows = torch.tensor(ids).view(BLOCKS, BLOCK)
    loss, n = language_model_loss(model.eval(), {"ids_BT": rows[:, :-1], "targets_BT": rows[:, 1:]})
    return float(torch.exp(loss / n))


def tuned(
    base: Base, template: ChatTemplate, training: Sequence[Conversation], rate: float, epochs: int | None,
    steps: int | None, threads: int,
) -> tuple[float, int]:  # fmt: skip
    """Train the network of `base` in place; returns processor seconds and tokens of the conversations."""
    rendered = template.rendered(training)
    encoded = EncodedConversations([str(i) for i in range(len(rendered))], rendered)
    settings = FinetuneSettings(
        epochs=epochs or 1, rows=ROWS, optimizer="adamw", adamw_lr=rate, checkpoint_every=10**6, validate_every=10**6
    )
    task = Task(
        network=base.network,
        description=describe(base.network.cfg),
        training=encoded,
        loss_function=language_model_loss,
        validate=lambda network: {"validation_loss": 0.0},  # nothing is chosen by it
        selects=("validation_loss", False),
    )
    job = job_of(base, task, resolved(settings, base.network.cfg.d_model, len(rendered)), {})
    n_steps = steps or job.cfg.n_steps
    job = dataclasses.replace(
        job,
        model=job.model.train(),
        cfg=dataclasses.replace(job.cfg, n_steps=n_steps, warmup_fraction=WARMUP / n_steps, n_threads=threads),
    )
    started, n_tokens = time.process_time(), 0
    for k in range(n_steps):
        n_tokens += int(encoded.lengths[job.batches.places(k)].sum())  # type: ignore[union-attr]
    with tempfile.TemporaryDirectory() as folder:
        finetune(Path(folder), job, Printed(n_steps))
    return time.process_time() - started, n_tokens


def told(seconds: float, n_tokens: int) -> str:
    return f"The training took {seconds:,.0f} processor seconds for {n_tokens:,} tokens."


if __name__ == "__main__":
    main()
