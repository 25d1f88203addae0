"""What a constraint costs a decoder, and whether it allows what it should: ours beside llguidance on the same texts.

In: the folder of a decoder (--model), and perhaps the Python of an environment with llguidance and numpy (--peer).
Out: tables of milliseconds per token mask, of tokens per second with and without a constraint, and of how often the
two allow different tokens. Both are given the same JSON Schemas and the same texts of values, token by token; a
second pass over other texts meets states that are known. The peer's seconds are those of a mask as bits.

    python -m bench.constraints --model DIR [--peer PYTHON] [--steps 60]
"""

import argparse
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer"},
        "height": {"type": ["number", "null"]},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 4},
        "friend": {
            "type": "object",
            "properties": {"name": {"type": "string"}},
            "required": ["name"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
SCHEMAS = {"any object": {"type": "object"}, "person": PERSON}
N_TEXTS = 20
SKIPPED = 200  # masks of the first texts, in which states are met for the first time


def texts_of(schema: str, seed: int) -> list[str]:
    rng = random.Random(seed)
    words = ["Anna", "Bob", "über", "a quick brown fox", "日本", "x1", "hello, world"]
    people = [
        {
            "name": " ".join(rng.choices(words, k=2)),
            "age": rng.randrange(100),
            "height": rng.choice([None, 1.75, 2]),
            "tags": rng.choices(["red", "green", "blue"], k=rng.randrange(4)),
            "friend": {"name": rng.choice(words)},
        }
        for _ in range(N_TEXTS)
    ]
    values: list[Any] = people if schema == "person" else [{"list": [one, 1, [True, None]]} for one in people]
    return [json.dumps(value, ensure_ascii=False) for value in values]


def main() -> None:
    args = arguments()
    if args.llguidance:
        peer_masks(args.llguidance)
        return
    import torch

    from bench.machine import machine

    torch.set_num_threads(1)
    print(f"{machine(1)}\n")
    print("| schema | contestant | first mask of a state, ms | known state, ms | slowest, ms | to compile, ms |")
    print("|---|---|---:|---:|---:|---:|")
    notes = [compared(args, name) for name in SCHEMAS]
    print("\n" + "\n".join(notes) + "\n")
    speed(args)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a decoder in our format, with an imported tokenizer")
    parser.add_argument("--peer", help="Python with llguidance and numpy; without it only ours runs")
    parser.add_argument("--steps", type=int, default=60, help="tokens of each text of the comparison with free text")
    parser.add_argument("--rows", type=int, default=4, help="texts that are written at once")
    parser.add_argument("--llguidance", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def compared(args: argparse.Namespace, name: str) -> str:
    from model.data.tokenizer import load_tokenizer
    from model.generation.constraints import json_value
    from model.generation.text_tokens import TextTokens

    tokenizer = load_tokenizer(args.model / "tokenizer")
    texts = texts_of(name, 0)
    ids = [tokenizer.encode(text) for text in texts]
    tokens = TextTokens(tokenizer)
    start = time.perf_counter()
    constraint = json_value(tokens, SCHEMAS[name])
    compile_ms = (time.perf_counter() - start) * 1000
    passes, masks = [], []
    for number in range(2):
        seconds = []
        for of_text in ids:
            writing = constraint.begin()
            for token in of_text:
                start = time.perf_counter()
                allowed_V = writing.allowed(10**6)
                seconds.append(time.perf_counter() - start)
                if number:
                    masks.append(allowed_V.numpy())
                writing.push(token)
        passes.append(seconds)
    print(row(name, "ours", passes, compile_ms))
    if not args.peer:
        return f"{name}: {len(masks):,} masks"
    theirs = peer(args, name, ids)
    print(row(name, "llguidance", theirs["passes"], theirs["compile_ms"]))
    return differences(name, tokenizer, masks, theirs["only"])


def row(name: str, who: str, passes: Sequence[Sequence[float]], compile_ms: float) -> str:
    first, known = (np.array(seconds) * 1000 for seconds in passes)
    return f"| {name} | {who} | {first.mean():.3f} | {known.mean():.3f} | {first.max():.1f} | {compile_ms:.1f} |"


def peer(args: argparse.Namespace, name: str, ids: list[list[int]]) -> dict[str, Any]:
    """What `peer_masks` prints in the other environment."""
    job = {
        "tokenizer": str(args.model / "tokenizer" / "tokenizer.json"),
        "schema": SCHEMAS[name],
        "ids": ids,
    }
    ran = subprocess.run(
        [args.peer, __file__, "--llguidance", "/dev/stdin"],
        input=json.dumps(job), capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    if ran.returncode:
        sys.exit(ran.stderr)
    return json.loads(ran.stdout)


def peer_masks(job_file: Path) -> None:
    """Runs in the environment of llguidance; prints seconds of masks, and the allowed ids as packed bits in hex."""
    import llguidance.numpy as bits
    from llguidance import LLMatcher, LLTokenizer

    job = json.loads(job_file.read_text("utf-8"))
    tokenizer = LLTokenizer(Path(job["tokenizer"]).read_text("utf-8"))
    start = time.perf_counter()
    layout = {"whitespace_flexible": False, "item_separator": ",[ ]?", "key_separator": ":[ ]?"}  # as ours
    grammar = LLMatcher.grammar_from_json_schema(job["schema"], overrides=layout)
    matcher = LLMatcher(tokenizer, grammar)
    compile_ms = (time.perf_counter() - start) * 1000
    mask, passes, only = bits.allocate_token_bitmask(1, tokenizer.vocab_size), [], []
    for number in range(2):
        seconds = []
        for of_text in job["ids"]:
            matcher.reset()
            for token in of_text:
                start = time.perf_counter()
                bits.fill_next_token_bitmask(matcher, mask, 0)
                seconds.append(time.perf_counter() - start)
                if number:
                    only.append(mask[0].tobytes().hex())
                if not matcher.consume_token(token):
                    sys.exit(f"llguidance refuses token {token} of {of_text}: {matcher.get_error()}")
        passes.append(seconds)
    print(json.dumps({"passes": passes, "compile_ms": compile_ms, "only": only}))


def differences(name: str, tokenizer: Any, ours: Sequence[np.ndarray], theirs: Sequence[str]) -> str:
    """How many tokens only one of the two allows, and which."""
    found: dict[str, Counter[str]] = {"only ours": Counter(), "only llguidance": Counter()}
    n_equal = 0
    for mine_V, packed in zip(ours, theirs, strict=True):
        bits_V = np.unpackbits(np.frombuffer(bytes.fromhex(packed), np.uint8), bitorder="little")
        their_V = bits_V[: len(mine_V)].astype(bool)
        n_equal += bool((mine_V == their_V).all())
        for who, only_V in (("only ours", mine_V & ~their_V), ("only llguidance", their_V & ~mine_V)):
            found[who].update(repr(tokenizer.tokens[token]) for token in np.flatnonzero(only_V).tolist())
    shown = [
        f"{who} allows {counts.total():,} in all ({', '.join(one for one, _ in counts.most_common(12)) or 'none'})"
        for who, counts in found.items()
    ]
    return f"{name}: {n_equal:,} of {len(ours):,} masks are equal; {'; '.join(shown)}"


def speed(args: argparse.Namespace) -> None:
    from model.data.tokenizer import load_model_tokenizer
    from model.generation.constraints import json_value
    from model.generation.decode import pack
    from model.generation.generate import tokens as new_tokens
    from model.generation.sample_config import SampleConfig
    from model.generation.text_tokens import TextTokens
    from model.network.registry import load_decoder

    model = load_decoder(args.model)
    tokenizer = load_model_tokenizer(args.model, model.cfg.vocab_size)
    text_tokens = TextTokens(tokenizer)
    long = {"type": "array", "items": PERSON, "minItems": 50, "maxItems": 60}
    contestants = {"free": None, "JSON of a schema": json_value(text_tokens, long)}
    packed = pack(model, args.rows)
    prompts = [[*tokenizer.opening, *tokenizer.encode("People as JSON:")]] * args.rows
    print("| text | processor ms a step | rows |\n|---|---:|---:|")
    for name, constraint in contestants.items():
        need = 0 if constraint is None else constraint.least_tokens
        cfg = SampleConfig(max_new_tokens=need + args.steps + 1)
        best = min(timed(new_tokens(packed, prompts, cfg, constraints=constraint), args) for _ in range(2))
        print(f"| {name} | {best:.1f} | {args.rows} |")


def timed(made: Iterator[tuple[int, int]], args: argparse.Namespace) -> float:
    """Processor milliseconds of a step: the first one, which reads the prompts, is not counted."""
    for _ in range(args.rows):
        next(made)
    start = time.process_time()
    for _ in range(args.rows * args.steps):
        next(made)
    return (time.process_time() - start) / args.steps * 1000


if __name__ == "__main__":
    main()
