"""Pretrain a decoder or an encoder in a folder: from a description that can be written down to a finished model.

In: a Pretraining: a folder of token shards, a folder to write, the two configs. Out: model.safetensors, config.json,
curve.jsonl and the last and best of checkpoints/ in that folder. Steps: shards become batches, configs a model with
its initial weights; model/training/run.py trains, from the last complete checkpoint where there is one; the final
weights are written last. Each process of torchrun does the same with the same description.
"""

import contextlib
import dataclasses
import fcntl
import functools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from model.data.batches import TokenBatches, token_batches
from model.data.masking import VALIDATION_SEED, MaskedBatches, MaskVocabulary, mask_vocabulary
from model.data.mixture import Mixture, domain_stream, mixed_batches, mixture_of
from model.data.token_shards import read_description, read_token_shards
from model.data.token_stream import TokenStream
from model.evaluate import mean_loss
from model.network.decoder import Decoder, initialise, new_decoder, weightless_decoder
from model.network.encoder import MaskedLM, new_masked_lm, weightless_masked_lm
from model.network.lora_config import LoraConfig, lora_config
from model.network.registry import config_of, describe, load_model
from model.network.shape import DecoderConfig, EncoderConfig, Objective
from model.network.size import flops_per_token, n_parameters, predicted_share
from model.training.adapters import base_of, save_trained, start_adapters
from model.training.checkpoint import complete_checkpoints
from model.training.config import VALIDATION_METRIC, TrainConfig
from model.training.curve import read_curve
from model.training.distributed import is_main, n_processes
from model.training.files import CONFIG, WEIGHTS, opened, sha256
from model.training.loss import language_model_loss, masked_token_loss
from model.training.machine import training_device
from model.training.memory import memory_explained
from model.training.resume import continued
from model.training.run import CHECKPOINTS, Job, Observer, run
from model.training.schedule import n_training_rows
from model.training.selection import Selection

LOCK_SECONDS = 60.0  # for processes of a killed training to save and end
LOSS = {"next_token": language_model_loss, "masked_tokens": masked_token_loss}  # by the objective of a family


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretraining:
    """One training as literals, so that it can be handed to other processes."""

    shards: Path  # a folder of token shards
    out: Path  # of the model; a training that was stopped there goes on
    network: DecoderConfig | EncoderConfig  # an encoder learns to predict masked tokens
    train: TrainConfig
    made_from: Mapping[str, str]  # fingerprints of data and tokenizer; a resume must have the same
    start_from: Path | None = None  # folder of a trained model of this network; None = random weights
    lora: LoraConfig | None = (
        None  # adapters that are trained on the frozen start_from; None = all weights are trained
    )
    tokenizer: Path | None = None  # folder of the shards' tokenizer, which masks of whole words need
    mixture: Mixture | None = None  # of the sources that the training reads; None = all documents in one order

    def __post_init__(self) -> None:
        if self.lora is not None and self.start_from is None:
            raise ValueError("lora trains adapters on a trained model; give start_from, the folder of one")
        vocab_size = read_description(self.shards)["vocab_size"]
        if isinstance(self.network, EncoderConfig):
            self.vocabulary()
        elif vocab_size != self.network.vocab_size:
            raise ValueError(
                f"{self.shards} holds ids of a vocabulary of {vocab_size} tokens, the decoder has vocab_size="
                f"{self.network.vocab_size}; train on shards of its own tokenizer"
            )
        if self.train.seq_len > self.network.max_seq_len:
            raise ValueError(
                f"seq_len={self.train.seq_len} is longer than the context, max_seq_len={self.network.max_seq_len}"
            )

    def to_json(self) -> str:
        paths = {
            name: str(path) for name in ("shards", "out", "start_from", "tokenizer") if (path := getattr(self, name))
        }
        configs = {"network": describe(self.network), "train": dataclasses.asdict(self.train)}
        configs |= {name: dataclasses.asdict(one) for name in ("lora", "mixture") if (one := getattr(self, name))}
        return json.dumps({**paths, **configs, "made_from": dict(self.made_from)})

    @classmethod
    def from_json(cls, text: str) -> "Pretraining":
        values = json.loads(text)
        return cls(
            shards=Path(values["shards"]),
            out=Path(values["out"]),
            network=config_of(values["network"]),
            train=TrainConfig(**values["train"]),
            made_from=values["made_from"],
            start_from=Path(values["start_from"]) if "start_from" in values else None,
            lora=lora_config(values["lora"]) if "lora" in values else None,
            tokenizer=Path(values["tokenizer"]) if "tokenizer" in values else None,
            mixture=mixture_of(values["mixture"]) if "mixture" in values else None,
        )

    def vocabulary(self) -> MaskVocabulary:
        """What an encoder's masks need. ValueError where the shards and the model do not fit."""
        vocab_size, knows_words = self.network.vocab_size, self.train.mask_whole_words
        return mask_vocabulary(self.shards, vocab_size, self.tokenizer, knows_words=knows_words)

    @property
    def objective(self) -> Objective:
        return "masked_tokens" if isinstance(self.network, EncoderConfig) else "next_token"

    @property
    def n_tokens(self) -> int:
        """Positions that pass through the model in the whole training."""
        return n_training_rows(self.train) * self.train.seq_len

    def params(self) -> dict[str, Any]:
        """Every setting by its name, and how many parameters they make."""
        settings = dataclasses.asdict(self.network) | dataclasses.asdict(self.train)
        if self.lora is not None:
            settings |= {f"lora_{name}": value for name, value in dataclasses.asdict(self.lora).items()}
        if self.mixture is not None:
            settings |= dataclasses.asdict(self.mixture)
        return settings | {"parameters": n_parameters(self.network)}


def pretrain(
    plan: Pretraining, observer: Observer, progress: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Train to the end and write the model.

    Raises Interrupted after a signal, once all that was done is saved; ValueError when shards, settings or an
    earlier training in the folder do not fit, or a loss is not finite.
    """
    refuse_other_models(plan.out)
    plan = dataclasses.replace(plan, train=continued(plan.out / CHECKPOINTS, plan.train))
    job = job_of(plan)
    with only_training(plan.out):
        run(plan.out, job, observer, progress)
        if is_main():
            save_trained(plan.out, job.model, job.description)


def job_of(plan: Pretraining) -> Job:
    """What model/training/run.py needs; the model is on this process's device, or under FSDP without memory."""
    with memory_explained(f"the model has {n_parameters(plan.network):,} parameters; choose a smaller one"):
        network, description = starting_network(plan)
        is_weightless = next(network.parameters()).is_meta
        network = network if is_weightless else network.to(training_device())
    return Job(
        model=network,
        initialise=functools.partial(initialise, seed=plan.train.seed),
        cfg=plan.train,
        description=description,
        batches=training_batches(plan),
        loss_function=LOSS[plan.objective],
        validate=validation(plan),
        selection=Selection(metric=VALIDATION_METRIC[plan.objective]),
        made_from=made_from(plan, description),
    )


def made_from(plan: Pretraining, description: Mapping[str, Any]) -> dict[str, str]:
    """What a resume must have the same beside the train config: also the first weights, adapters and mixture."""
    start = {}
    if plan.start_from is not None:
        start = {"start_from": base_of(description) or sha256(plan.start_from / WEIGHTS)}
    settings = {
        name: json.dumps(dataclasses.asdict(one)) for name in ("lora", "mixture") if (one := getattr(plan, name))
    }
    return {**plan.made_from, **start, **settings}


def starting_network(plan: Pretraining) -> tuple[nn.Module, dict[str, Any]]:
    """The network before its first step, and its config.json. ValueError where start_from holds another network."""
    description = describe(plan.network)
    if plan.start_from is None:
        is_in_shards = plan.train.parallel == "fsdp" and n_processes() > 1
        network = weightless(plan.network) if is_in_shards else new(plan.network, plan.train.seed)
        return network, description
    network, _ = load_model(plan.start_from, "cpu", description["kind"])
    if network.cfg != plan.network:
        raise ValueError(f"{plan.start_from} holds a network of another shape, {network.cfg}, not {plan.network}")
    if plan.lora is None:
        return network, description
    return network, start_adapters(network, description, plan.lora, plan.start_from, plan.train.seed)


def new(cfg: DecoderConfig | EncoderConfig, seed: int) -> Decoder | MaskedLM:
    return new_masked_lm(cfg, seed) if isinstance(cfg, EncoderConfig) else new_decoder(cfg, seed)


def weightless(cfg: DecoderConfig | EncoderConfig) -> Decoder | MaskedLM:
    return weightless_masked_lm(cfg) if isinstance(cfg, EncoderConfig) else weightless_decoder(cfg)


def training_batches(plan: Pretraining) -> TokenBatches | MaskedBatches:
    """The batches of the train split as the objective reads them; errors as in `unmasked_batches`."""
    return masked(plan, unmasked_batches(plan), plan.train.seed)


def unmasked_batches(plan: Pretraining) -> TokenBatches:
    """The rows of the train split. ValueError where it does not hold one."""
    shards, vocab_size = read_token_shards(plan.shards, "train"), plan.network.vocab_size
    if plan.mixture is None:
        return token_batches(shards, plan.train, vocab_size)
    return mixed_batches(shards, plan.mixture, plan.train, vocab_size)


def masked(plan: Pretraining, batches: TokenBatches, seed: int) -> TokenBatches | MaskedBatches:
    """`batches` as the objective of the plan reads them."""
    if plan.objective == "next_token":
        return batches
    cfg = plan.train
    return MaskedBatches(
        batches, plan.vocabulary(), fraction=cfg.mask_fraction, whole_words=cfg.mask_whole_words, seed=seed
    )


def validation(plan: Pretraining) -> Callable[[nn.Module], Mapping[str, float]] | None:
    """A function of the model that gives validation_loss (nats per target) and a metric by the objective, over the
    same windows, and the same masks, each time; None when the split is too small for one window.

    validation_bits_per_byte is an estimate from these windows, by the bytes per token of the whole split; evaluation
    (model/evaluate.py) counts whole documents. validation_masked_perplexity is that of an encoder's masked tokens.
    Of a mixture only the documents of the domain are read.
    """
    shards, train = read_token_shards(plan.shards, "validation"), plan.train
    stream = TokenStream(shards) if plan.mixture is None else domain_stream(shards, plan.mixture)
    n_tokens, n_bytes = stream.n_tokens, stream.n_bytes
    if n_tokens - 1 < train.seq_len:
        return None
    same: dict[str, Any] = {name: getattr(train, name) for name in ("seq_len", "seed", "document_mask")}
    same["vocab_size"] = plan.network.vocab_size
    n_rows = TokenBatches(stream, rows=1, **same).rows_per_epoch
    batches = TokenBatches(stream, rows=min(train.rows, n_rows), **same)
    n_batches = min(train.n_validation_batches, n_rows // batches.rows)
    read = masked(plan, batches, train.seed + VALIDATION_SEED)

    def validate(model: nn.Module) -> dict[str, float]:
        loss = mean_loss(model, read, n_batches, LOSS[plan.objective], train.validation_rows)
        values = {"next_token": loss / math.log(2) * n_tokens / n_bytes, "masked_tokens": math.exp(min(loss, 700.0))}
        return {"validation_loss": loss, VALIDATION_METRIC[plan.objective]: values[plan.objective]}

    return validate


def passes(plan: Pretraining) -> float:
    """How often a training reads its data."""
    return plan.n_tokens / (unmasked_batches(plan).rows_per_epoch * plan.train.seq_len)


def measures(plan: Pretraining, n_passes: float | None = None) -> dict[str, float]:
    """Numbers of a finished training: its sizes, mean loss of the last 2 % of the steps, speed, last validation.

    `n_passes` is what `passes` returned, if it was called already: it reads all shards, and may pack them.
    """
    curve = read_curve(plan.out)
    steps = [line for line in curve if "loss" in line]  # none where the curve was damaged after the last step
    last = steps[-max(1, len(steps) // 50) :]
    names = ("validation_loss", VALIDATION_METRIC[plan.objective])
    validations = [line for line in curve if names[1] in line]
    share = predicted_share(plan.network, plan.train.mask_fraction)
    sizes = {
        "tokens": plan.n_tokens,
        "epochs": passes(plan) if n_passes is None else n_passes,
        "parameters": n_parameters(plan.network),
        "flops": plan.n_tokens * flops_per_token(plan.network, plan.train.seq_len, share),
    }
    if steps:
        sizes["training_loss"] = float(np.mean([line["loss"] for line in last]))
        sizes["tokens_per_second"] = float(np.median([line["tokens_per_second"] for line in steps]))
    return sizes | ({name: validations[-1][name] for name in names} if validations else {})


@contextlib.contextmanager
def only_training(directory: Path) -> Iterator[None]:
    """Keeps a second training out of the folder; the system releases it when this process ends in any way.

    Waits for a while, because the processes of a training whose parent was killed still save. ValueError then.
    """
    if not is_main():  # the others wait for rank 0 where they meet
        yield
        return
    directory.mkdir(parents=True, exist_ok=True)
    with opened(directory) as folder:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ValueError(f"{directory}: another process trains here; wait for it or stop it") from None
                time.sleep(0.2)
        yield


def refuse_other_models(directory: Path) -> None:
    """ValueError where the folder holds a model that no training in it has made: it would be overwritten."""
    there = [name for name in (WEIGHTS, CONFIG) if (directory / name).exists()]
    if there and not complete_checkpoints(directory / CHECKPOINTS):
        raise ValueError(
            f"{directory} holds {there[0]} and no checkpoint to go on from: choose another folder, or empty this one"
        )
