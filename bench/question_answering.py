"""Extractive question answering from an open encoder: our fine-tuning beside plain transformers code.

In: a file in SQuAD's form (--data), the encoder as a folder of Hugging Face (--hf). Out: a line of JSON per run with
exact match, F1 and seconds, printed and appended to --results.

The first two thirds of the articles are trained on, the last quarter is tested; the articles between them are
validation data, by which nothing is chosen here. Both train on the same windows of at most 384 tokens, of which
neighbours share 96, for the same number of epochs with the same number of rows in a step, the same rate, in float32
on one thread. Ours is the kind of task with the stages of the pipeline. The reference is
AutoModelForQuestionAnswering with AdamW, a linear schedule, gradients clipped to 1, random batches padded to their
longest row, and the best sum of a start and an end over all windows, at most as far apart as in training.

    python -m bench.question_answering --data FILE --hf DIR --seed 0 [--only ours] [--epochs 6] [--limit 500]
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.machine import machine
from pipeline.corpus.examples.near_texts import normalised
from pipeline.evaluation.answer_metrics import scores_of

MAX_TOKENS, OVERLAP = 384, 96
SPLITS = {"train": (0.0, 2 / 3), "validation": (2 / 3, 3 / 4), "test": (3 / 4, 1.0)}  # shares of the articles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--hf", type=Path, required=True)
    parser.add_argument("--only", choices=("ours", "reference"))
    parser.add_argument("--results", type=Path, default=Path("question_answering.jsonl"))
    parser.add_argument("--lr", type=float, default=1e-4)
    for name, value in (("seed", 0), ("rows", 16), ("epochs", 6), ("limit", None)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        files = write_splits(args.data, Path(folder), args.limit)
        for name in (args.only,) if args.only else ("ours", "reference"):
            started = time.perf_counter(), time.process_time()
            found = {"ours": ours, "reference": reference}[name](files, args, Path(folder))
            found |= {"seconds": round(time.perf_counter() - started[0], 1)}
            found |= {"cpu_seconds": round(time.process_time() - started[1], 1), "contestant": name}
            settings = {key: getattr(args, key) for key in ("seed", "rows", "epochs", "lr", "limit")}
            line = json.dumps(found | settings | {"machine": machine(1)})
            print(line, flush=True)
            with args.results.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


def write_splits(data: Path, folder: Path, limit: int | None) -> dict[str, Path]:
    """A file in SQuAD's form per split; at most `limit` training questions, in whole paragraphs."""
    articles = [_without_repetitions(article) for article in json.loads(data.read_text("utf-8"))["data"]]
    files = {}
    for split, (first, last) in SPLITS.items():
        chosen = articles[round(first * len(articles)) : round(last * len(articles))]
        if split == "train" and limit:
            chosen = _limited(chosen, limit)
        files[split] = folder / f"{split}.json"
        files[split].write_text(json.dumps({"version": "1.1", "data": chosen}), "utf-8")
    return files


def _without_repetitions(article: dict[str, Any]) -> dict[str, Any]:
    """Without questions that are asked twice about a paragraph, which the examples stage drops or keeps once."""
    paragraphs = []
    for paragraph in article["paragraphs"]:
        asked = Counter(normalised(one["question"]) for one in paragraph["qas"])
        once = [one for one in paragraph["qas"] if asked[normalised(one["question"])] == 1]
        paragraphs.append(paragraph | {"qas": once})
    return article | {"paragraphs": paragraphs}


def _limited(articles: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    kept, n_questions = [], 0
    for article in articles:
        paragraphs = []
        for paragraph in article["paragraphs"]:
            if n_questions < limit:
                paragraphs.append(paragraph)
                n_questions += len(paragraph["qas"])
        kept += [article | {"paragraphs": paragraphs}] if paragraphs else []
    return kept


def ours(files: dict[str, Path], args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from model.hf.importing import import_model
    from pipeline.corpus.examples.data_files import LabelledFile
    from pipeline.evaluation.task import TaskEvaluationConfig, evaluation_stage
    from pipeline.store.records import Checkpoint
    from pipeline.store.store import Store
    from pipeline.tasks.question_answering import KIND, QuestionExamplesConfig
    from pipeline.training.finetune import FinetuneConfig, finetune_stage

    import_model(args.hf, folder / "base")
    base = Checkpoint(stage="open", directory=folder / "base", fingerprint="base", digest="base", rows=1)
    store, data = Store(root=folder / "store"), {split: LabelledFile(path) for split, path in files.items()}
    held_out = {split: data[split] for split in ("validation", "test")}
    examples = KIND.build_examples(store, data["train"], QuestionExamplesConfig(), folder, held_out=held_out)
    cfg = FinetuneConfig(
        epochs=args.epochs, rows=args.rows, max_tokens=MAX_TOKENS, optimizer="adamw", adamw_lr=args.lr,
        seed=args.seed, validate_every=10**6, checkpoint_every=10**6,
    )  # fmt: skip
    started = time.process_time()
    model = store.build(finetune_stage(KIND), cfg, base, examples.handle)
    training = time.process_time() - started
    report = store.build(evaluation_stage(KIND), TaskEvaluationConfig(), model.handle, examples.handle).handle
    results = {one["metric"]: one for one in json.loads((report.directory / "results.json").read_text("utf-8"))}
    return {
        "examples": {split: examples.record["measures"][f"{split}_examples"] for split in SPLITS},
        "training_cpu_seconds": round(training, 1),
        "most_answer_tokens": json.loads((model.handle.directory / "config.json").read_text("utf-8"))[
            "most_answer_tokens"
        ],
        **{metric: one["value"] for metric, one in results.items()},
        "intervals": {metric: [one["low"], one["high"]] for metric, one in results.items()},
        "baselines": {metric: one["baselines"] for metric, one in results.items()},
        "p_values": {name: one["p_value"] for name, one in results["f1"]["comparisons"].items()},
    }


def reference(files: dict[str, Path], args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    del folder
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.hf)
    model = AutoModelForQuestionAnswering.from_pretrained(args.hf).train()
    rows = read(files["train"])
    windows = _windows(tokenizer, rows)
    n_windows = len(windows["input_ids"])
    starts, ends = _targets(windows, rows)
    n_steps, step = args.epochs * -(-n_windows // args.rows), 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.0)
    warmup = max(1, n_steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, 1.0) * (1 - step / n_steps)
    )
    started = time.process_time()
    for _ in range(args.epochs):
        for places in torch.randperm(n_windows).split(args.rows):
            batch = _batch(tokenizer, windows, places.tolist())
            loss = model(**batch, start_positions=starts[places], end_positions=ends[places]).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            if step % 20 == 0:
                print(f"  {step:,} of {n_steps:,} steps, loss {float(loss):.4f}", flush=True)
    training = time.process_time() - started
    most = max(int((ends - starts).max()) + 1, 1)
    judged = read(files["test"])
    answers = _answers(model.eval(), tokenizer, judged, most)
    exact_match, f1 = scores_of(answers, [row["texts"] for row in judged]).mean(axis=0)
    return {
        "training_cpu_seconds": round(training, 1),
        "most_answer_tokens": most,
        "exact_match": float(exact_match),
        "f1": float(f1),
    }


def read(path: Path) -> list[dict[str, Any]]:
    return [
        {
            "question": one["question"],
            "context": paragraph["context"],
            "start": one["answers"][0]["answer_start"],
            "texts": [answer["text"] for answer in one["answers"]],
        }
        for article in json.loads(path.read_text("utf-8"))["data"]
        for paragraph in article["paragraphs"]
        for one in paragraph["qas"]
    ]


def _windows(tokenizer: Any, rows: list[dict[str, Any]]) -> Any:
    return tokenizer(
        [row["question"] for row in rows], [row["context"] for row in rows], truncation="only_second",
        max_length=MAX_TOKENS, stride=OVERLAP, return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip


def _targets(windows: Any, rows: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Places of the first and the last token of the answer in each window; 0 where it is not whole."""
    starts, ends = [], []
    for window, row in enumerate(windows["overflow_to_sample_mapping"]):
        first, last = rows[row]["start"], rows[row]["start"] + len(rows[row]["texts"][0])
        parts, offsets = windows.sequence_ids(window), windows["offset_mapping"][window]
        inside = [
            place for place, (start, end) in enumerate(offsets) if parts[place] == 1 and end > first and start < last
        ]
        of_text = [offsets[place] for place, part in enumerate(parts) if part == 1]
        is_whole = inside and of_text[0][0] <= first and of_text[-1][1] >= last
        starts.append(inside[0] if is_whole else 0)
        ends.append(inside[-1] if is_whole else 0)
    return torch.tensor(starts), torch.tensor(ends)


def _batch(tokenizer: Any, windows: Any, places: list[int]) -> dict[str, torch.Tensor]:
    names = ("input_ids", "token_type_ids", "attention_mask")
    return dict(
        tokenizer.pad({name: [windows[name][place] for place in places] for name in names}, return_tensors="pt")
    )


@torch.inference_mode()
def _answers(model: Any, tokenizer: Any, rows: list[dict[str, Any]], most: int) -> list[str]:
    windows = _windows(tokenizer, rows)
    best = [(-np.inf, 0, 0)] * len(rows)
    for first in range(0, len(windows["input_ids"]), 16):
        places = list(range(first, min(first + 16, len(windows["input_ids"]))))
        out = model(**_batch(tokenizer, windows, places))
        for row, window in enumerate(places):
            parts, offsets = windows.sequence_ids(window), windows["offset_mapping"][window]
            inside = [place for place, part in enumerate(parts) if part == 1]
            start, end = out.start_logits[row, inside].numpy(), out.end_logits[row, inside].numpy()
            scores = np.triu(start[:, None] + end[None, :]) + np.where(
                np.triu(np.ones((len(inside),) * 2)) * np.tril(np.ones((len(inside),) * 2), most - 1) > 0, 0, -np.inf
            )
            i, j = np.unravel_index(np.argmax(scores), scores.shape)
            found = (float(scores[i, j]), offsets[inside[i]][0], offsets[inside[j]][1])
            question = windows["overflow_to_sample_mapping"][window]
            best[question] = max(best[question], found, key=lambda one: one[0])
    return [row["context"][start:end] for row, (_, start, end) in zip(rows, best, strict=True)]


if __name__ == "__main__":
    main()
