"""`gristmill generate`: continues a text, freely or under control.

In: a text and a model; perhaps a form or attributes that the continuation shall have (control.py). Out: the text with
its continuation, streamed to a terminal.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.store.layout import folder_or_current, layout_from_environment

if TYPE_CHECKING:
    from model.generation.sample_config import SampleConfig


def sample_config(args: Namespace) -> "SampleConfig":
    """The options of sampling, by which both `generate` and `chat` draw."""
    from model.generation.sample_config import SampleConfig

    return SampleConfig(
        max_new_tokens=args.tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        stop=tuple(args.stop),
        seed=args.seed,
        keep_prompt_end=args.keep_prompt_end,
    )


def run_generate(args: Namespace) -> int:
    cfg = sample_config(args)
    layout = layout_from_environment()
    folder = folder_or_current(layout, args.model)
    from pipeline.commands.control import constraint_of, guided, wanted_of
    from pipeline.serving.generate import stream_text

    wanted = wanted_of(args, layout, folder)
    if wanted.is_guided:
        print_texts(args, guided(args, layout, folder, cfg, wanted))
        return 0
    constraint = constraint_of(args, folder)
    # The generator comes first, so that a mistake is reported before any text.
    pieces = stream_text(folder, args.text, cfg, args.samples, constraint=constraint, told=wanted.told)
    is_streamed = sys.stdout.isatty() if args.stream is None else args.stream
    if args.samples > 1 or not is_streamed:
        texts = [""] * args.samples
        for number, piece in pieces:
            texts[number] += piece
        print_texts(args, texts)
        return 0
    print(args.text, end="", flush=True)
    for _, piece in pieces:
        print(shown(piece), end="", flush=True)
    print()
    return 0


def print_texts(args: Namespace, texts: Sequence[str]) -> None:
    for number, text in enumerate(texts, start=1):
        if args.samples > 1:
            print(f"--- {number} of {args.samples}")
        print(args.text + shown(text))


def shown(text: str) -> str:
    """A text of a model as it is printed: at a terminal with pictures in place of controls, which could steer it."""
    from pipeline.corpus.shown_text import with_visible_controls

    return with_visible_controls(text) if sys.stdout.isatty() else text
