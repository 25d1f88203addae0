"""Named entities from an encoder: ours beside plain transformers code, on the same data, from the same weights.

In: a folder with wnut17_train.conll and wnut17_dev.conll (WNUT-17, CC BY 4.0; other pairs by name), a base as a
Hugging Face folder, and the same base in our format. Out: a line of JSON per training, printed: F1 of the entities of
the second file, by our metric and by seqeval, and the seconds of the training.

Both train all weights with AdamW at the same peak rate, linear warmup over a tenth of the steps and linear decay, the
same number of epochs, rows and seeds, in float32. Ours tags the words that it finds in the text itself and decodes
the best valid tags; the reference tags the tokens of the file at their first pieces (is_split_into_words), cuts at
the context and takes the most likely tag of each token. Ours is also decoded as the reference is, to see what the
best valid tags are worth.

    python -m bench.tagging --data DIR --hf DIR --base DIR [--only ours] [--seeds 0 1] [--epochs 4]
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.data.spans import Span, spans_of_tags, tag_names, tags_of_spans
from pipeline.corpus.examples.conll import Columns, Sentence, conll_records, sentences
from pipeline.evaluation.entity_metrics import entity_counts, f1, macro_f1, precision, recall
from pipeline.evaluation.gazetteer import Gazetteer

Entities = Sequence[Sequence[Span]]
Texts = tuple[list[str], list[list[Span]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--train", default="wnut17_train.conll")
    parser.add_argument("--dev", default="wnut17_dev.conll")
    parser.add_argument("--hf", type=Path, required=True, help="folder of the base in the format of Hugging Face")
    parser.add_argument("--base", type=Path, required=True, help="folder of the same base in our format")
    parser.add_argument("--only", choices=("ours", "reference", "gazetteer"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--lr", type=float, default=5e-5)
    args = parser.parse_args()
    contestants = {"gazetteer": gazetteer, "ours": ours, "reference": reference}
    for seed in args.seeds:
        for name, contestant in contestants.items():
            if args.only in (None, name) and (name != "gazetteer" or seed == args.seeds[0]):
                for found in contestant(args, seed):
                    print(json.dumps({"contestant": name, "seed": seed, "epochs": args.epochs, **found}), flush=True)


def texts_of(path: Path) -> Texts:
    records = list(conll_records(path.name, path.read_bytes(), Columns()))
    return [record["text"] for record in records], [
        [Span(one["start"], one["end"], one["label"]) for one in record["entities"]] for record in records
    ]


def labels_of(*texts: Texts) -> list[str]:
    return sorted({span.label for _, entities in texts for of in entities for span in of})


def scores(true: Entities, found: Entities, labels: Sequence[str]) -> dict[str, float]:
    counts_NL3 = entity_counts(true, found, labels)
    all_3 = counts_NL3.sum(axis=(0, 1))
    values = {"f1": f1(all_3), "precision": precision(all_3), "recall": recall(all_3)}
    values["macro_f1"] = macro_f1(counts_NL3.sum(axis=0))
    return {name: round(float(value), 4) for name, value in values.items()}


def gazetteer(args: argparse.Namespace, seed: int) -> Iterator[Mapping[str, float]]:
    train, dev = texts_of(args.data / args.train), texts_of(args.data / args.dev)
    found = Gazetteer(*train)
    yield scores(dev[1], [found.find(text) for text in dev[0]], labels_of(train, dev))


class Silent:
    def metrics(self, step: int, values: Mapping[str, float]) -> None: ...
    def checkpoint(self, path: Path, step: int, values: Mapping[str, float]) -> None: ...


def ours(args: argparse.Namespace, seed: int) -> Iterator[Mapping[str, object]]:
    from model.data.tagged_texts import supervised, text_windows
    from model.generation.entities import entities_of, tag_scores
    from model.network.heads import token_classifier_from
    from model.network.registry import describe
    from model.training.finetune_settings import FinetuneSettings, resolved
    from model.training.finetuning import Task, finetune, job_of, load_base
    from model.training.loss import token_loss

    train, dev = texts_of(args.data / args.train), texts_of(args.data / args.dev)
    labels, base = labels_of(train, dev), load_base(args.base)
    numbers, tags = {label: i for i, label in enumerate(labels)}, tag_names(labels)
    optimizer = {"optimizer": "adamw", "epochs": args.epochs, "rows": args.rows, "adamw_lr": args.lr}
    cfg = resolved(FinetuneSettings(**optimizer, seed=seed, validate_every=10**6), base.network.cfg.d_model)
    max_tokens = base.max_tokens(cfg)
    windows = list(text_windows(base.tokenizer, train[0], max_tokens))
    encoded = supervised(
        [str(i) for i in range(len(windows))],
        windows,
        [tags_of_spans(one.words_W2, of, numbers) for one, of in zip(windows, train[1], strict=True)],
    )
    task = Task(
        network=token_classifier_from(base.network, len(tags), seed),
        description=describe(base.network.cfg, tuple(tags), kind="token_classifier"),
        training=encoded,
        loss_function=token_loss,
        validate=lambda network: {"validation_f1": 0.0},  # the last weights are judged
        selects=("validation_f1", True),
    )
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        job = job_of(base, task, cfg, {})
        finetune(Path(folder), job, Silent())
    seconds = time.perf_counter() - start
    network = job.model.eval()
    texts = list(text_windows(base.tokenizer, dev[0], max_tokens))
    answers = entities_of(network, iter(texts), labels)
    found = [[Span(one["start"], one["end"], one["label"]) for one in of_text] for of_text in answers]
    yield {**scores(dev[1], found, labels), "seqeval_f1": seqeval_of(args, found), "seconds": round(seconds)}
    greedy = [
        [
            Span(int(text.words_W2[one.first, 0]), int(text.words_W2[one.last, 1]), labels[one.label])
            for one in spans_of_tags(lenient(scores_WC.argmax(axis=1)))
        ]
        for text, scores_WC in zip(texts, tag_scores(network, [text.windows for text in texts]), strict=True)
    ]
    yield {"decoded": "as conlleval repairs tags", **scores(dev[1], greedy, labels)}


def lenient(tags_W: np.ndarray) -> np.ndarray:
    """Tags in which an I that cannot continue an entity begins one, as in the evaluation script of CoNLL-2000."""
    repaired_W = tags_W.copy()
    for word, tag in enumerate(repaired_W):
        before = repaired_W[word - 1] if word else 0
        if tag and tag % 2 == 0 and before not in (tag, tag - 1):
            repaired_W[word] = tag - 1
    return repaired_W


def token_sentences(path: Path) -> list[Sentence]:
    return [one for one in sentences(path.name, path.read_bytes(), Columns()) if isinstance(one, Sentence)]


def seqeval_of(args: argparse.Namespace, found: Sequence[Sequence[Span]]) -> float:
    """F1 by seqeval, of spans as tags of the tokens of the file; a span within tokens counts as wrong."""
    from seqeval.metrics import f1_score

    true, predicted = [], []
    for sentence, spans in zip(token_sentences(args.data / args.dev), found, strict=True):
        ends = np.cumsum([len(token) + 1 for token in sentence.tokens]) - 1
        starts = ends - [len(token) for token in sentence.tokens]
        tags = ["O"] * len(sentence.tokens)
        for span in spans:
            covered = np.flatnonzero((starts < span.end) & (ends > span.start))
            is_whole = starts[covered[0]] == span.start and ends[covered[-1]] == span.end
            for place in covered:
                prefix = "B" if place == covered[0] else "I"
                tags[place] = f"{prefix}-{span.label if is_whole else 'part of a token'}"
        true.append(sentence.tags)
        predicted.append(tags)
    return round(float(np.asarray(f1_score(true, predicted))), 4)


def reference(args: argparse.Namespace, seed: int) -> Iterator[Mapping[str, object]]:
    from transformers import AutoModelForTokenClassification, AutoTokenizer, get_linear_schedule_with_warmup

    torch.manual_seed(seed)
    train, dev = (token_sentences(args.data / name) for name in (args.train, args.dev))
    names = sorted({tag for sentence in (*train, *dev) for tag in sentence.tags})
    numbers = {tag: i for i, tag in enumerate(names)}
    tokenizer = AutoTokenizer.from_pretrained(args.hf)
    model = AutoModelForTokenClassification.from_pretrained(args.hf, num_labels=len(names))

    def batch_of(some: Sequence[Sentence]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        tokens = [sentence.tokens for sentence in some]
        batch = tokenizer(tokens, is_split_into_words=True, truncation=True, padding=True, return_tensors="pt")
        labels_BT = torch.full_like(batch["input_ids"], -100)
        for row, sentence in enumerate(some):
            before = None
            for place, word in enumerate(batch.word_ids(row)):
                if word is not None and word != before:
                    labels_BT[row, place] = numbers[sentence.tags[word]]
                before = word
        return dict(batch), labels_BT

    steps_per_epoch = -(-len(train) // args.rows)
    n_steps = args.epochs * steps_per_epoch
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, n_steps // 10, n_steps)
    start = time.perf_counter()
    model.train()
    for _ in range(args.epochs):
        for places in torch.randperm(len(train)).split(args.rows):
            batch, labels_BT = batch_of([train[place] for place in places])
            model(**batch, labels=labels_BT).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    seconds = time.perf_counter() - start
    yield {"seqeval_f1": _judged(model.eval(), dev, names, batch_of, args.rows), "seconds": round(seconds)}


def _judged(model: Any, dev: Sequence[Sentence], names: Sequence[str], batch_of: Any, rows: int) -> float:
    """F1 by seqeval of the most likely tag of each token; what was cut off has no entity."""
    from seqeval.metrics import f1_score

    found = []
    for first in range(0, len(dev), rows):
        some = dev[first : first + rows]
        batch, labels_BT = batch_of(some)
        with torch.inference_mode():
            chosen_BT = model(**batch).logits.argmax(dim=-1)
        for row, sentence in enumerate(some):
            tags = [names[tag] for tag in chosen_BT[row][labels_BT[row] != -100]]
            found.append(tags + ["O"] * (len(sentence.tokens) - len(tags)))
    return round(float(np.asarray(f1_score([sentence.tags for sentence in dev], found))), 4)


if __name__ == "__main__":
    main()
