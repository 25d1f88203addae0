"""`gristmill generate`, `classify` and similar commands: apply a trained model to text.

In: a text and a model. Out: the text with its continuation, streamed to a terminal; or the answer of a fine-tuned
model, in the columns of its kind of task.
"""

import json
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


def run_task(args: Namespace) -> int:
    """Print the answer of the model of a task to one row of inputs."""
    folder = folder_or_current(layout_from_environment(), f"{args.task}_model")
    from pipeline.serving.generate import predictor_in
    from pipeline.store.store import read_record
    from pipeline.tasks.kind import kind_of
    from pipeline.tasks.kinds import KINDS

    kind = kind_of(read_record(folder) or {})
    columns = list(kind.predictor.inputs)
    if (command := KINDS[kind.name].command) != args.command:
        raise ValueError(f"{args.task} is a task of kind {kind.name}; use `gristmill {command}`")
    if len(args.inputs) != len(columns):
        raise ValueError(f"{args.task} takes {' and '.join(columns)}, got {len(args.inputs)} inputs")
    predictor, row = predictor_in(kind.predictor, folder), dict(zip(columns, args.inputs, strict=True))
    (answer,) = predictor.answer([row])
    if predictor.n_cut([row]):
        part = "first" if predictor.description.get("truncation_side", "right") == "right" else "last"
        print(f"the model reads only the {part} {predictor.description['max_tokens']} tokens", file=sys.stderr)
    if args.json:
        print(json.dumps(answer))
    else:
        print(*(f"{value:.3f}" if isinstance(value, float) else value for value in answer.values()))
    return 0
