"""`gristmill generate` and `classify`: a trained model at work.

In: a text, and which model. Out: the text and how it goes on, or a label and its probability.
"""

from argparse import Namespace

from pipeline.layout import folder_or_current, layout_from_environment


def run_generate(args: Namespace) -> int:
    folder = folder_or_current(layout_from_environment(), args.model)
    from pipeline.stages.generate import generate_text

    print(args.text + generate_text(folder, args.text, args.tokens, args.temperature, seed=args.seed))
    return 0


def run_classify(args: Namespace) -> int:
    folder = folder_or_current(layout_from_environment(), f"{args.task}_model")
    from pipeline.stages.generate import classify_text

    ((label, probability),) = classify_text(folder, [args.text])
    print(f"{label} {probability:.3f}")
    return 0
