"""`gristmill generate`: continues a text.

In: a text and a model. Out: the text with its continuation, streamed to a terminal.
"""

import sys
from argparse import Namespace

from pipeline.store.layout import folder_or_current, layout_from_environment


def run_generate(args: Namespace) -> int:
    from model.generation.sample_config import SampleConfig

    cfg = SampleConfig(
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
    folder = folder_or_current(layout_from_environment(), args.model)
    from pipeline.serving.generate import generate_text, stream_text

    is_streamed = sys.stdout.isatty() if args.stream is None else args.stream
    if args.samples == 1 and is_streamed:
        pieces = stream_text(folder, args.text, cfg)  # first: a mistake is reported before any text
        print(args.text, end="", flush=True)
        for _, piece in pieces:
            print(piece, end="", flush=True)
        print()
        return 0
    for number, text in enumerate(generate_text(folder, args.text, cfg, args.samples), start=1):
        if args.samples > 1:
            print(f"--- {number} of {args.samples}")
        print(args.text + text)
    return 0
