"""Preferences with SmolLM2: what DPO learns from 990 pairs, what becomes of chosen answers, and its speed beside TRL.

In: a folder with preferences_first990.json (--data; instruction, input, chosen, rejected), the model as a folder of
ours (--base) and, for the speed, of Hugging Face (--hf) with the Python of an environment that has TRL (--peer). Out:
Markdown tables, printed. Two parts:

learning  a tenth of the pairs is held out: accuracy (whether the chosen answer gained more on the base than the
          rejected one), margin, and the log-probabilities of both answers before and after.
speed     processor seconds of a training step, ours and DPOTrainer's in turns, with the same pairs in each step, in
          float32, on as many threads; theirs with the reference's log-probabilities computed before the training, as
          ours. The log-probabilities of the chosen answers in the first step are compared.

    python -m bench.preference --data DIR --base DIR [--hf DIR --peer PYTHON] --part learning [--threads 1]
"""

import argparse
import dataclasses
import functools
import json
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch

from bench.machine import machine
from bench.progress import Printed
from model.data.chat import ChatTemplate, Message, load_chat_template
from model.data.pairs import EncodedPairs, encoded_pairs, n_tokens_of
from model.data.tokenizer import TOKENIZER
from model.network.registry import describe
from model.training.config import TrainConfig
from model.training.finetune_settings import FinetuneSettings, resolved
from model.training.finetuning import Base, Task, finetune, job_of, load_base
from model.training.preferences import PreferenceLoss, pair_log_probabilities, preference_loss
from model.training.step import new_state, train_step

FILE = "preferences_first990.json"
HELD_OUT = 99  # pairs
MAX_TOKENS = 1024
PEER = Path(__file__).with_name("preference_peer.py")
N_WARMUP = 1  # steps that are not timed
Pair = Mapping[str, list[dict[str, str]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help=f"folder with {FILE}")
    parser.add_argument("--base", type=Path, required=True, help="folder of a decoder in our format")
    parser.add_argument("--hf", type=Path, help="folder of the same decoder in Hugging Face's format")
    parser.add_argument("--peer", type=Path, help="Python of an environment with TRL")
    parser.add_argument("--part", choices=("learning", "speed"), required=True)
    parser.add_argument("--pairs", type=int, help="of the training, fewer than there are")
    parser.add_argument("--steps", type=int, help="fewer than an epoch has")
    parser.add_argument("--rows", type=int, default=8, help="pairs per step")
    parser.add_argument("--rounds", type=int, default=2, help="of speed")
    parser.add_argument("--lr", type=float, default=2e-5, help="peak rate")
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--sft-weight", type=float, default=0.5, help="of learning")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(machine(args.threads) + "\n", flush=True)
    {"learning": learning, "speed": speed}[args.part](args)


def learning(args: argparse.Namespace) -> None:
    base, template = opened(args.base)
    pairs = pairs_in(args.data)
    order = np.random.default_rng(0).permutation(len(pairs))
    held_out = encoded(template, [pairs[place] for place in order[:HELD_OUT]])
    training = encoded(template, [pairs[place] for place in order[HELD_OUT:]][: args.pairs])
    before = pair_log_probabilities(base.network.eval(), held_out)
    training = dataclasses.replace(training, references=pair_log_probabilities(base.network, training))
    seconds, n_steps = trained(base, training, args)
    after = pair_log_probabilities(base.network.eval(), held_out)
    loss = f"DPO with beta {args.beta:g} and sft_weight {args.sft_weight:g}"
    print(
        f"{len(training.ids)} pairs, {n_steps} steps of {args.rows}, {loss}, AdamW, peak rate {args.lr:g};"
        f" {HELD_OUT} pairs held out\n"
    )
    print("| | base | tuned |\n|---|---:|---:|")
    gains = after - before
    print(f"| preference accuracy (by what was gained on the base) | - | {(gains[:, 0] > gains[:, 1]).mean():.3f} |")
    likelier = [(nats[:, 0] > nats[:, 1]).mean() for nats in (before, after)]
    print(f"| the chosen answer is likelier | {likelier[0]:.3f} | {likelier[1]:.3f} |")
    print(f"| margin, nats | 0 | {(gains[:, 0] - gains[:, 1]).mean():.2f} |")
    n_tokens = n_tokens_of(held_out.pairs)
    for side, name in enumerate(("chosen", "rejected")):
        values = [nats[:, side].sum() / n_tokens[:, side].sum() for nats in (before, after)]
        print(f"| log-probability of a {name} answer, per token | {values[0]:.3f} | {values[1]:.3f} |")
    change = after[:, 0].sum() / before[:, 0].sum() - 1
    print(
        f"\nThe log-probability of chosen answers {'falls' if change > 0 else 'rises'} by {abs(change):.1%}.", end=" "
    )
    print(f"The training took {seconds:,.0f} processor seconds.")


def speed(args: argparse.Namespace) -> None:
    n_pairs = (args.steps or 4) * args.rows
    pairs = pairs_in(args.data)[:n_pairs]
    rounds: list[tuple[dict, dict]] = []
    for _ in range(args.rounds):
        rounds.append((own_steps(pairs, args), peer_steps(pairs, args)))
    ours, theirs = zip(*rounds, strict=True)
    apart = max(abs(one["chosen"] - other["chosen"]) for one, other in rounds)
    assert apart < 0.01, f"the log-probabilities of the chosen answers differ by {apart:.4f} nats in the first step"
    print(f"{n_pairs // args.rows} steps of {args.rows} pairs, {args.threads} threads\n")
    print("| | processor seconds per step | loss of the last step |\n|---|---:|---:|")
    for name, results in (("ours", ours), ("DPOTrainer", theirs)):
        seconds = median(value for one in results for value in one["seconds"][N_WARMUP:])
        print(f"| {name} | {seconds:.2f} | {results[-1]['losses'][-1]:.4f} |")
    ratios = [sum(b["seconds"][N_WARMUP:]) / sum(a["seconds"][N_WARMUP:]) for a, b in rounds]
    print("\nTheirs over ours, by round: " + ", ".join(f"{ratio:.2f}" for ratio in ratios) + " (asked: 1.3)")


def opened(folder: Path) -> tuple[Base, ChatTemplate]:
    base = load_base(folder)
    return base, load_chat_template(base.tokenizer, folder / TOKENIZER)


def pairs_in(data: Path) -> list[Pair]:
    """Prompt, chosen and rejected answer as messages, without pairs of equal answers."""
    rows = json.loads((data / FILE).read_text("utf-8"))
    return [
        {
            "prompt": [{"role": "user", "content": "\n\n".join(filter(None, (row["instruction"], row["input"])))}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
        for row in rows
        if row["chosen"] != row["rejected"]
    ]


def encoded(template: ChatTemplate, pairs: Sequence[Pair]) -> EncodedPairs:
    def messages(pair: Pair, *parts: str) -> list[Message]:
        return [Message(**one) for part in parts for one in pair[part]]

    return encoded_pairs(
        [str(place) for place in range(len(pairs))],
        template.rendered([messages(pair, "prompt") for pair in pairs], is_open=True),
        template.rendered([messages(pair, "prompt", "chosen") for pair in pairs]),
        template.rendered([messages(pair, "prompt", "rejected") for pair in pairs]),
        max_tokens=MAX_TOKENS,
    )


def trained(base: Base, training: EncodedPairs, args: argparse.Namespace) -> tuple[float, int]:
    """Train the network of `base` in place; returns processor seconds and steps."""
    loss = PreferenceLoss(beta=args.beta, sft_weight=args.sft_weight)
    settings = FinetuneSettings(
        epochs=1, rows=args.rows, optimizer="adamw", adamw_lr=args.lr, checkpoint_every=10**6, validate_every=10**6
    )
    task = Task(
        network=base.network,
        description=describe(base.network.cfg),
        training=training,
        loss_function=functools.partial(preference_loss, loss=loss),
        validate=lambda network: {"validation_loss": 0.0},  # nothing is chosen by it
        selects=("validation_loss", False),
    )
    job = job_of(base, task, resolved(settings, base.network.cfg.d_model, len(training.ids)), {})
    n_steps = args.steps or job.cfg.n_steps
    cfg = dataclasses.replace(job.cfg, n_steps=n_steps, n_threads=args.threads)
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        finetune(Path(folder), dataclasses.replace(job, cfg=cfg, model=job.model.train()), Printed(n_steps))
    return time.process_time() - began, n_steps


def own_steps(pairs: Sequence[Pair], args: argparse.Namespace) -> dict:
    """What preference_peer.py returns, of our training."""
    base, template = opened(args.base)
    training = encoded(template, pairs)
    references = pair_log_probabilities(base.network.eval(), training)
    training = dataclasses.replace(training, references=references)
    cfg = TrainConfig(
        n_steps=len(pairs) // args.rows, rows=args.rows, seq_len=1, micro_batch=args.rows, muon_lr=None,
        adamw_lr=args.lr, beta2=0.999, warmup_fraction=0.0, decay_fraction=0.0,
    )  # fmt: skip
    loss = functools.partial(preference_loss, loss=PreferenceLoss(beta=args.beta))
    state, result = new_state(base.network.train(), cfg), {"seconds": [], "losses": []}
    for step in range(cfg.n_steps):
        began = time.process_time()
        report = train_step(state, training.batch(np.arange(step * args.rows, (step + 1) * args.rows)), cfg, loss)
        result["losses"].append(float(report.loss))
        result["seconds"].append(time.process_time() - began)
    return result | {"chosen": float(references[: args.rows, 0].mean())}


def peer_steps(pairs: Sequence[Pair], args: argparse.Namespace) -> dict:
    order = {
        "hf": str(args.hf), "pairs": pairs, "rows": args.rows, "beta": args.beta, "rate": args.lr,
        "threads": args.threads, "precomputed": True,
    }  # fmt: skip
    answer = subprocess.run(
        [args.peer, str(PEER)], input=json.dumps(order), capture_output=True, encoding="utf-8", check=False
    )
    if answer.returncode:
        raise RuntimeError(f"{PEER.name} failed:\n{answer.stderr[-2000:]}")
    return json.loads(answer.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
