"""Classification with an open encoder: our fine-tuning beside plain transformers code, with the same base and data.

In: a folder with the data sets (--data), the encoder as a folder of ours (--base) and of Hugging Face (--hf). Out:
a line of JSON per run with seconds, processor seconds, tokens per second and metrics, printed and appended to
--results.

Both train for the same number of steps of the same number of examples, in float32, on one thread. Ours is
model/training/finetuning.py, with batches of texts of similar length. The reference is
AutoModelForSequenceClassification (the first token, dropout as in its config), AdamW with a rate of 5e-5 that falls
to 0, gradients clipped to 1, random batches padded to their longest text. The seconds are those of the training.

Thresholds for several labels are chosen on a tenth of the training rows, which nothing is trained on; --search
evaluates on that tenth, so that settings are chosen without the rows that are reported.

    python -m bench.classification --data DIR --base DIR --hf DIR --task sst2 --seed 0 [--only ours]
"""

import argparse
import dataclasses
import gzip
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.machine import machine
from bench.progress import Printed
from pipeline.evaluation.label_sets import best_thresholds, f1_table

SETTINGS = ("rows", "lr", "muon_lr", "layer_decay", "warmup", "smoothing", "word_dropout", "pooling")
EPOCHS = {"sst2": 2, "goemotions": 2, "sarcasm": 1}
POSITIVE = [
    "admiration",
    "amusement",
    "approval",
    "caring",
    "desire",
    "excitement",
    "gratitude",
    "joy",
    "love",
    "optimism",
    "pride",
    "relief",
]
NEGATIVE = [
    "anger",
    "annoyance",
    "disappointment",
    "disapproval",
    "disgust",
    "embarrassment",
    "fear",
    "grief",
    "nervousness",
    "remorse",
    "sadness",
]
NEUTRAL = ["neutral"]  # the four other emotions are ambiguous, and belong to no group
GROUPS = {"positive": POSITIVE, "negative": NEGATIVE, "neutral": NEUTRAL}


@dataclass(frozen=True, slots=True)
class Texts:
    texts: list[str]
    labels_NC: np.ndarray  # bool

    def where(self, keep_N: np.ndarray) -> "Texts":
        return Texts([self.texts[i] for i in np.flatnonzero(keep_N)], self.labels_NC[keep_N])


@dataclass(frozen=True, slots=True)
class Data:
    labels: list[str]
    train: Texts
    held_out: Texts  # of the training rows
    reported: Texts

    @property
    def has_several(self) -> bool:
        return bool((self.train.labels_NC.sum(axis=1) != 1).any())


def read_data(task: str, folder: Path) -> Data:
    labels, train, reported = {"sst2": _sst2, "goemotions": _goemotions, "sarcasm": _sarcasm}[task](folder)
    is_held_out = np.random.default_rng(0).permutation(len(train.texts)) < len(train.texts) // 10
    return Data(labels, train.where(~is_held_out), train.where(is_held_out), reported)


def _sst2(folder: Path) -> tuple[list[str], Texts, Texts]:
    def read(name: str) -> Texts:
        rows = [line.split(" ", 1) for line in (folder / name).read_text("utf-8").splitlines()]
        return Texts([text for _, text in rows], np.eye(2, dtype=bool)[[int(label) for label, _ in rows]])

    return ["negative", "positive"], read("sst2_train.txt"), read("sst2_dev.txt")


def _goemotions(folder: Path) -> tuple[list[str], Texts, Texts]:
    labels = (folder / "goemotions_labels.txt").read_text("utf-8").split()

    def read(content: str) -> Texts:
        rows = [line.split("\t") for line in content.splitlines()]
        labels_NC = np.zeros((len(rows), len(labels)), bool)
        for i, row in enumerate(rows):
            labels_NC[i, [int(number) for number in row[1].split(",")]] = True
        return Texts([row[0] for row in rows], labels_NC)

    train = gzip.decompress((folder / "goemotions_train.tsv.gz").read_bytes()).decode()
    return labels, read(train), read((folder / "goemotions_dev.tsv").read_text("utf-8"))


def _sarcasm(folder: Path) -> tuple[list[str], Texts, Texts]:
    """`folder` holds the examples of the task `sarcasm`, examples.parquet, as a data folder has them."""
    from pyarrow import parquet

    table = parquet.read_table(folder / "examples.parquet")
    labels = sorted(set(table["label"].to_pylist()))

    def of_split(split: str) -> Texts:
        rows = [row for row in table.to_pylist() if row["split"] == split]
        return Texts(
            [row["text"] for row in rows], np.array([[row["label"] == one for one in labels] for row in rows])
        )

    return labels, of_split("train"), of_split("test")


def training_examples(
    data: Data, tokens_of: Callable[[Sequence[str]], list[np.ndarray]], settings: Any
) -> tuple[Any, Callable[[int], Any]]:
    """The examples, and those of an epoch as `settings` augments them."""
    from model.data.augment import augmented_texts, epoch_seed
    from model.data.examples import EncodedExamples

    labels_NC, ids = data.train.labels_NC, [str(i) for i in range(len(data.train.texts))]
    targets = (
        {"labels_BC": labels_NC.astype(np.float32)} if data.has_several else {"labels_B": labels_NC.argmax(axis=1)}
    )

    def of_epoch(epoch: int) -> Any:
        texts = augmented_texts(ids, data.train.texts, settings.augmentation, epoch_seed(settings.seed, epoch))
        return EncodedExamples(ids, tokens_of(texts), targets)

    return EncodedExamples(ids, tokens_of(data.train.texts), targets), of_epoch


def ours(data: Data, args: argparse.Namespace) -> tuple[float, float, int, Callable[[Sequence[str]], np.ndarray]]:
    from functools import partial

    from model.data.examples import encoded
    from model.evaluate import outputs_of_texts
    from model.training.finetune_settings import FinetuneSettings, resolved
    from model.training.finetuning import Task, classifier_network, finetune, job_of, load_base
    from model.training.loss import classification_loss, multi_label_loss

    base = load_base(args.base)
    wanted = FinetuneSettings(
        epochs=args.epochs, rows=args.rows, adamw_lr=args.lr, muon_lr=args.muon_lr, layer_decay=args.layer_decay,
        label_smoothing=args.smoothing, warmup_fraction=args.warmup, augment_word_dropout=args.word_dropout,
        seed=args.seed,
        checkpoint_every=10**6, validate_every=10**6,
    )  # fmt: skip
    settings = resolved(wanted, base.network.cfg.d_model)

    def tokens_of(texts: Sequence[str]) -> list[np.ndarray]:
        return encoded(base.tokenizer, list(texts), base.max_tokens(settings))[0]

    labels_NC = data.train.labels_NC
    rates_C = labels_NC.mean(axis=0) if data.has_several else None
    network, description = classifier_network(
        base.network, data.labels, "pretrained", args.seed, pooling=args.pooling, rates=rates_C
    )
    loss = multi_label_loss if data.has_several else partial(classification_loss, label_smoothing=args.smoothing)
    started = time.perf_counter(), time.process_time()
    training, of_epoch = training_examples(data, tokens_of, settings)
    task = Task(
        network=network,
        description=description,
        training=training,
        loss_function=loss,
        validate=lambda network: {"validation_loss": 0.0},  # nothing is chosen by it
        selects=("validation_loss", False),
        of_epoch=of_epoch if args.word_dropout else None,
    )
    job = job_of(base, task, settings, {})
    with tempfile.TemporaryDirectory() as out:
        finetune(Path(out), job, Printed(job.cfg.n_steps, every=100))
    seconds = time.perf_counter() - started[0], time.process_time() - started[1]
    activation = torch.sigmoid if data.has_several else partial(torch.softmax, dim=-1)
    return (
        *seconds,
        args.epochs * int(training.lengths.sum()),
        lambda texts: outputs_of_texts(job.model.eval(), tokens_of(texts), activation),
    )


def reference(
    data: Data, args: argparse.Namespace
) -> tuple[float, float, int, Callable[[Sequence[str]], np.ndarray]]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(args.seed)
    kind = "multi_label_classification" if data.has_several else "single_label_classification"
    tokenizer = AutoTokenizer.from_pretrained(args.hf)
    model = AutoModelForSequenceClassification.from_pretrained(
        args.hf, num_labels=len(data.labels), problem_type=kind
    ).train()
    dtype = torch.float32 if data.has_several else torch.int64
    labels_NC = torch.from_numpy(data.train.labels_NC if data.has_several else data.train.labels_NC.argmax(axis=1))
    labels_NC, n_tokens = labels_NC.to(dtype), 0
    n_steps = args.epochs * -(-len(data.train.texts) // args.rows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / n_steps)
    started = time.perf_counter(), time.process_time()
    for _ in range(args.epochs):
        for places in torch.randperm(len(labels_NC)).split(args.rows):
            batch = tokenizer(
                [data.train.texts[i] for i in places], padding=True, truncation=True, return_tensors="pt"
            )
            n_tokens += int(batch["attention_mask"].sum())
            loss = model(**batch, labels=labels_NC[places]).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if schedule.last_epoch % 100 == 0:
                print(f"  {schedule.last_epoch:,} of {n_steps:,} steps, loss {float(loss):.4f}", flush=True)
    seconds = time.perf_counter() - started[0], time.process_time() - started[1]

    @torch.inference_mode()
    def probabilities(texts: Sequence[str]) -> np.ndarray:
        parts = []
        for first in range(0, len(texts), 64):
            inputs = tokenizer(list(texts[first : first + 64]), padding=True, truncation=True, return_tensors="pt")
            logits_BC = model(**inputs).logits.double()
            parts.append(logits_BC.sigmoid() if data.has_several else logits_BC.softmax(dim=-1))
        return torch.cat(parts).numpy()

    model.eval()
    return *seconds, n_tokens, probabilities


CONTESTANTS = {"ours": ours, "reference": reference}


def metrics_of(
    data: Data, judged: Texts, predicted: Callable[[Sequence[str]], np.ndarray], keep: Path | None
) -> dict[str, float]:
    values_NC = predicted(judged.texts)
    if not data.has_several:
        is_right_N = values_NC.argmax(axis=1) == judged.labels_NC.argmax(axis=1)
        found = {"accuracy": float(is_right_N.mean())}
        return found | _beside_tfidf(data, judged, is_right_N)
    chosen_on_NC = predicted(data.held_out.texts)
    if keep:
        np.savez(
            keep,
            of_held_out=chosen_on_NC,
            held_out=data.held_out.labels_NC,
            of_judged=values_NC,
            judged=judged.labels_NC,
        )
    thresholds_C = best_thresholds(chosen_on_NC, data.held_out.labels_NC)
    f1_C, _, _ = f1_table(judged.labels_NC, values_NC >= thresholds_C)
    fixed_C, _, _ = f1_table(judged.labels_NC, values_NC >= 0.5)
    found = {"macro_f1": float(f1_C.mean()), "macro_f1_without_thresholds": float(fixed_C.mean())}
    members = [[data.labels.index(name) for name in names] for names in GROUPS.values()]
    values_NG, truth_NG = grouped(values_NC, members), grouped(judged.labels_NC, members)
    thresholds_G = best_thresholds(grouped(chosen_on_NC, members), grouped(data.held_out.labels_NC, members))
    found["grouped_macro_f1"] = float(f1_table(truth_NG, values_NG >= thresholds_G)[0].mean())
    has_one = truth_NG.sum(axis=1) == 1
    one_of_NG = np.eye(len(members), dtype=bool)[values_NG[has_one].argmax(axis=1)]
    found["grouped_macro_f1_of_one_group"] = float(f1_table(truth_NG[has_one], one_of_NG)[0].mean())
    return found


def grouped(values_NC: np.ndarray, members: Sequence[Sequence[int]]) -> np.ndarray:
    """The greatest value among the labels of each group, (N, groups)."""
    return np.stack([values_NC[:, places].max(axis=1) for places in members], axis=1)


def _beside_tfidf(data: Data, judged: Texts, is_right_N: np.ndarray) -> dict[str, float]:
    from pipeline.evaluation.baselines import tfidf_logistic_predictions
    from pipeline.evaluation.intervals import mcnemar

    truth = [data.labels[i] for i in judged.labels_NC.argmax(axis=1)]
    train = [data.labels[i] for i in data.train.labels_NC.argmax(axis=1)]
    theirs_N = np.array(tfidf_logistic_predictions(data.train.texts, train, judged.texts)) == np.array(truth)
    only_model, only_tfidf = int((is_right_N & ~theirs_N).sum()), int((~is_right_N & theirs_N).sum())
    return {"tfidf_accuracy": float(theirs_N.mean()), "mcnemar_p": mcnemar(only_model, only_tfidf)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "base", "hf"):
        parser.add_argument(f"--{name}", type=Path, required=name != "hf")
    parser.add_argument("--task", choices=EPOCHS, required=True)
    parser.add_argument("--only", choices=CONTESTANTS)
    parser.add_argument("--results", type=Path, default=Path("classification.jsonl"))
    parser.add_argument("--keep", type=Path, help="file for the probabilities of several labels")
    parser.add_argument("--search", action="store_true", help="evaluate on held-out training rows")
    parser.add_argument("--pooling", choices=("first", "mean"), default="mean", help="of ours")
    for name, value in (
        ("lr", None),
        ("muon-lr", None),
        ("warmup", 0.1),
        ("smoothing", 0.0),
        ("layer-decay", None),
        ("word-dropout", 0.0),
    ):
        parser.add_argument(f"--{name}", type=float, default=value, help="of ours")
    for name, value in (("seed", 0), ("rows", 32), ("epochs", None), ("limit", None)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    args.epochs = args.epochs or EPOCHS[args.task]
    torch.set_num_threads(1)
    data = read_data(args.task, args.data)
    if not args.search and not data.has_several:  # nothing is chosen on the held-out rows
        both = [data.train, data.held_out]
        train = Texts([*both[0].texts, *both[1].texts], np.concatenate([one.labels_NC for one in both]))
        data = dataclasses.replace(data, train=train)
    if args.limit:
        data = dataclasses.replace(data, train=data.train.where(np.arange(len(data.train.texts)) < args.limit))
    for contestant in [args.only] if args.only else CONTESTANTS:
        print(f"{args.task}, {contestant}, seed {args.seed}", flush=True)
        wall, cpu, n_tokens, predicted = CONTESTANTS[contestant](data, args)
        judged = data.held_out if args.search else data.reported
        told: dict[str, Any] = {
            "task": args.task, "contestant": contestant, "seed": args.seed, "search": args.search,
            "epochs": args.epochs, "seconds": round(wall, 1), "cpu_seconds": round(cpu, 1), "tokens": n_tokens,
            "tokens_per_cpu_second": round(n_tokens / cpu), **metrics_of(data, judged, predicted, args.keep),
            "settings": {name: getattr(args, name) for name in SETTINGS if name == "rows" or contestant == "ours"},
            "machine": machine(1),
        }  # fmt: skip
        print(json.dumps(told), flush=True)
        with args.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
