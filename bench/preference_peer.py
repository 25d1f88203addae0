"""The contestant of bench/preference.py that trains with TRL's DPOTrainer, in a Python that has TRL.

In: a JSON object on the standard input: the folder of a model of Hugging Face, pairs as messages in the order in
which they are to be read, pairs per step, beta, rate, threads, and whether the log-probabilities of the reference are
computed before the training. Out: a JSON object on the standard output: processor seconds and loss of each step, and
the mean log-probability of the chosen answers in the first step.
"""

import json
import sys
import tempfile
import time

import torch
from datasets import Dataset
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer


class Clock(TrainerCallback):
    """Processor seconds of the steps."""

    def __init__(self):
        self.seconds, self.began, self.logs = [], 0.0, []

    def on_step_begin(self, args, state, control, **others):
        self.began = time.process_time()

    def on_step_end(self, args, state, control, **others):
        self.seconds.append(time.process_time() - self.began)

    def on_log(self, args, state, control, logs=None, **others):
        self.logs.append(logs or {})


class InOrder(DPOTrainer):
    """Reads the pairs in their order."""

    def _get_train_sampler(self, dataset=None):
        return SequentialSampler(self.train_dataset if dataset is None else dataset)


def main() -> None:
    order = json.load(sys.stdin)
    torch.set_num_threads(order["threads"])
    model = AutoModelForCausalLM.from_pretrained(order["hf"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(order["hf"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        cfg = DPOConfig(
            output_dir=folder,
            per_device_train_batch_size=order["rows"],
            max_steps=len(order["pairs"]) // order["rows"],
            learning_rate=order["rate"],
            lr_scheduler_type="constant",
            beta=order["beta"],
            max_length=None,
            precompute_ref_log_probs=order["precomputed"],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = InOrder(
            model=model,
            args=cfg,
            train_dataset=Dataset.from_list(order["pairs"]),
            processing_class=tokenizer,
            callbacks=[clock],
        )
        trainer.train()
    steps = [log for log in clock.logs if "loss" in log]
    result = {
        "seconds": clock.seconds,
        "losses": [float(log["loss"]) for log in steps],
        "chosen": float(steps[0]["logps/chosen"]),
    }
    print("\n" + json.dumps(result))


if __name__ == "__main__":
    main()
