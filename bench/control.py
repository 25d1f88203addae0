"""Is the asked sentiment reached, what does it cost in fluency, and is JSON that is asked for valid?

In: --data with sst2_dev.txt (lines "LABEL text"), a decoder (--model), a classifier of sentiment that steers
(--judge) and an independent one (--other), trained on other rows: all folders of models in our format; perhaps a
model that learned the attribute (--control-model). Out: a table with, for each way of control, the share of texts in
which the independent classifier and the steering one find the asked sentiment, and the perplexity of the new tokens
under the decoder without control. Prompts are the first words of reviews that neither classifier was trained on; half
of them are asked for each sentiment. The independent classifier reads a beginning with its continuation, and the
continuation alone. A second table counts valid JSON.

Two classifiers on disjoint halves of SST-2's training rows, for instance:

    python -m model.cli finetune MINILM half.jsonl JUDGE --set epochs=2
    python -m bench.control --data DIR --model DIR --judge JUDGE --other OTHER [--prompts 50] [--out FILE]
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

LABELS = ("negative", "positive")
FORM = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 60},
        "sentiment": {"enum": list(LABELS)},
        "stars": {"type": "integer"},
        "words": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 5},
    },
    "required": ["title", "sentiment", "stars"],
}
Texts = list[str]


def main() -> None:
    args = arguments()
    import torch

    from bench.machine import machine

    torch.set_num_threads(args.threads)
    print(f"{machine(args.threads)}\n")
    prompts = beginnings(args)
    asked = [LABELS[place % 2] for place in range(len(prompts))]
    header = ["control", "asked, independent", "on the continuation alone", "asked, steering", "perplexity", "CPU s"]
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for name in args.ways:
        start = time.process_time()
        texts = WAYS[name](args, prompts, asked)
        print(line(args, name, prompts, asked, texts, time.process_time() - start), flush=True)
        if args.out:
            with args.out.open("a", encoding="utf-8") as file:
                rows = zip(prompts, asked, texts, strict=True)
                file.writelines(json.dumps([name, *row], ensure_ascii=False) + "\n" for row in rows)
    json_table(args)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with sst2_dev.txt")
    parser.add_argument("--model", type=Path, required=True, help="folder of a decoder in our format")
    parser.add_argument("--judge", type=Path, required=True, help="folder of the classifier that steers")
    parser.add_argument("--other", type=Path, required=True, help="folder of the classifier that judges the result")
    parser.add_argument("--control-model", type=Path, help="folder of a model of the kind of task control")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["free", "prompt", "rerank", "steer"])
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--words", type=int, default=4, help="of a review that begin a prompt")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--fluency", type=float, default=0.5, help="weight of fluency beside the score")
    parser.add_argument("--json", type=int, default=100, help="texts of JSON that are written")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file that the texts are appended to, as JSON lines")
    return parser.parse_args()


def beginnings(args: argparse.Namespace) -> Texts:
    """The first words of some reviews, which are long enough to have a part to be continued."""
    lines = (args.data / "sst2_dev.txt").read_text("utf-8").splitlines()
    texts = [text.split() for text in (one.split(" ", 1)[1] for one in lines)]
    found = [" ".join(words[: args.words]) for words in texts if len(words) >= 3 * args.words]
    order = np.random.default_rng(args.seed).permutation(len(found))[: args.prompts]
    return [found[place] for place in order]


def config(args: argparse.Namespace) -> Any:
    from model.generation.sample_config import SampleConfig

    return SampleConfig(max_new_tokens=args.tokens, seed=args.seed)


def told(args: argparse.Namespace, folder: Path, prompts: Texts, messages: Texts) -> Texts:
    """Continuations by a model that is told a message before each prompt; "" = nothing."""
    import dataclasses

    from model.generation.decode import pack
    from model.generation.generate import generate_text
    from pipeline.serving.generate import loaded_decoder, prompt_ids

    decoder, tokenizer = loaded_decoder(folder)
    pairs = zip(prompts, messages, strict=True)
    ids, stops = zip(*(prompt_ids(folder, tokenizer, *pair) for pair in pairs), strict=True)
    cfg = dataclasses.replace(config(args), stop_ids=stops[0])
    return generate_text(pack(decoder, len(ids)), ids, cfg, tokenizer.decode_bytes)


def free(args: argparse.Namespace, prompts: Texts, asked: Texts) -> Texts:
    return told(args, args.model, prompts, [""] * len(asked))


def prompt(args: argparse.Namespace, prompts: Texts, asked: Texts) -> Texts:
    from model.data.control_text import asked_in_words

    return told(args, args.model, prompts, [asked_in_words({"sentiment": label}) for label in asked])


def prefix(args: argparse.Namespace, prompts: Texts, asked: Texts) -> Texts:
    from model.data.control_text import control_message

    return told(args, args.control_model, prompts, [control_message({"sentiment": label}) for label in asked])


def guided(by: str) -> Callable[[argparse.Namespace, Texts, Texts], Texts]:
    def write(args: argparse.Namespace, prompts: Texts, asked: Texts) -> Texts:
        import dataclasses

        from model.generation.decode import pack
        from model.generation.guided import Guidance, controlled_text
        from pipeline.serving.control import label_score
        from pipeline.serving.generate import loaded_decoder, prompt_ids

        decoder, tokenizer = loaded_decoder(args.model)
        found = [""] * len(prompts)
        for label in LABELS:
            places = [place for place, one in enumerate(asked) if one == label]
            of_label = [prompts[place] for place in places]
            ids, stops = zip(*(prompt_ids(args.model, tokenizer, one) for one in of_label), strict=True)
            cfg = dataclasses.replace(config(args), stop_ids=stops[0])
            guidance = Guidance(by=by, n_samples=args.candidates, fluency=args.fluency)  # type: ignore[arg-type]
            model, score = pack(decoder, len(ids) * args.candidates), label_score(classifier(args.judge), label)
            texts = controlled_text(model, tokenizer, ids, cfg, score, guidance, openings=of_label)
            for place, text in zip(places, texts, strict=True):
                found[place] = text
        return found

    return write


WAYS = {"free": free, "prompt": prompt, "prefix": prefix, "rerank": guided("rerank"), "steer": guided("steer")}


def classifier(folder: Path) -> Any:
    from pipeline.serving.generate import predictor_in
    from pipeline.tasks.classification import Classifier

    return predictor_in(Classifier, folder)


def line(args: argparse.Namespace, name: str, prompts: Texts, asked: Texts, texts: Texts, seconds: float) -> str:
    whole = [before + after for before, after in zip(prompts, texts, strict=True)]
    cells = [reached(args.other, whole, asked), reached(args.other, texts, asked), reached(args.judge, whole, asked)]
    return f"| {name} | {' | '.join(cells)} | {perplexity(args, prompts, texts):.1f} | {seconds:.0f} |"


def reached(folder: Path, texts: Texts, asked: Sequence[str]) -> str:
    answers = classifier(folder).answer([{"text": text} for text in texts])
    n_right = sum(answer["label"] == label for answer, label in zip(answers, asked, strict=True))
    return f"{n_right / len(texts):.2f}"


def perplexity(args: argparse.Namespace, prompts: Texts, texts: Texts) -> float:
    """Of all new tokens under the decoder without control."""
    from model.generation.guided import mean_log_probabilities
    from pipeline.serving.generate import loaded_decoder, prompt_ids

    decoder, tokenizer = loaded_decoder(args.model)
    before = [prompt_ids(args.model, tokenizer, one)[0] for one in prompts]
    after = [tokenizer.encode(text) for text in texts]
    counts = np.array([len(ids) for ids in after])
    nats = -(mean_log_probabilities(decoder, before, after) * counts).sum()
    return math.exp(nats / counts.sum())


def json_table(args: argparse.Namespace) -> None:
    """How many texts are JSON (and of the schema) with and without a constraint, at two temperatures."""
    import dataclasses

    from model.generation.decode import pack
    from model.generation.generate import generate_text
    from pipeline.serving.control import json_constraint
    from pipeline.serving.generate import loaded_decoder, prompt_ids

    if not args.json:
        return
    decoder, tokenizer = loaded_decoder(args.model)
    message = f"Describe a film review as JSON of this schema: {json.dumps(FORM)}"
    ids, stops = prompt_ids(args.model, tokenizer, "", message)
    print("\n| JSON | temperature | texts | valid |\n|---|---:|---:|---:|")
    constraints = {"free": None, "any JSON": json_constraint(args.model), "schema": json_constraint(args.model, FORM)}
    for name, constraint in constraints.items():
        for temperature in (0.8, 2.0):
            cfg = dataclasses.replace(config(args), max_new_tokens=80, temperature=temperature, stop_ids=stops)
            texts = generate_text(
                pack(decoder, args.json), [ids] * args.json, cfg, tokenizer.decode_bytes, constraints=constraint
            )
            valid = sum(is_valid(text, has_form=name == "schema") for text in texts)
            print(f"| {name} | {temperature} | {len(texts)} | {valid / len(texts):.0%} |", flush=True)


def is_valid(text: str, *, has_form: bool) -> bool:
    try:
        value = json.loads(text)
    except ValueError:
        return False
    if not has_form:
        return True
    return (
        isinstance(value, dict)
        and set(FORM["required"]) <= value.keys() <= FORM["properties"].keys()
        and isinstance(value["title"], str)
        and len(value["title"]) <= 60
        and value["sentiment"] in LABELS
        and isinstance(value["stars"], int)
        and len(value.get("words", [])) <= 5
    )


if __name__ == "__main__":
    main()
