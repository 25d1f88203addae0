"""Pretrain a decoder on token shards: the stage `pretrain`.

In: token shards and the tokenizer they were made with. Out: a Checkpoint folder: model.safetensors, config.json,
tokenizer/, curve.jsonl and the last and best of checkpoints/. Steps: a preset and what the user changed in it become
whole configs; training begins, or goes on from the last complete checkpoint in the folder; the observer hears of
every step once; the final weights are written last.

The fingerprint is made from `pretrain_recipe`, not from PretrainConfig, so that it changes when a preset does.
torch is imported where it is used: Dagster loads this module for its config alone.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from model.config import DecoderConfig, DecoderShape, TrainConfig
from model.presets import PRESETS, d_ff_of
from model.token_shards import TokenShard, read_description, read_token_shards
from pipeline.stages.errors import Terminated
from pipeline.stages.records import Checkpoint, Shards, TokenizerFile
from pipeline.stages.shards import link_or_copy
from pipeline.stages.store import Outcome, Stage, Work
from pipeline.stages.tokens.tokenizer_files import TOKENIZER_FILES

if TYPE_CHECKING:
    from torch import nn

BEST = "validation_bits_per_byte"


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig:
    """What a user edits: a preset, and what to change in it. None = as the preset has it."""

    preset: Annotated[
        Literal["demo", "small", "gpt2_124m"],
        "named size: demo (1.4 M parameters, 2 M tokens, minutes on two CPU cores), small (30 M, hours on a GPU),"
        " gpt2_124m (124 M, 2.5 billion tokens)",
    ] = "demo"
    n_layers: Annotated[int | None, "number of layers, at least 1"] = None
    d_model: Annotated[int | None, "width, a multiple of n_heads; d_ff follows it unless set"] = None
    n_heads: Annotated[int | None, "query heads; d_model / n_heads must be even; n_kv_heads follows unless set"] = (
        None
    )
    n_kv_heads: Annotated[int | None, "key and value heads; divides n_heads (grouped-query attention)"] = None
    d_ff: Annotated[int | None, "feed-forward width; 8/3 of d_model, rounded up to 64, unless set"] = None
    tie_embeddings: Annotated[bool | None, "whether the output head reuses the embedding"] = None
    seq_len: Annotated[int | None, "context in tokens, in training and after it"] = None
    n_steps: Annotated[int | None, "number of updates; tokens seen = n_steps x rows x seq_len"] = None
    rows: Annotated[int | None, "sequences a step"] = None
    micro_batch: Annotated[int | None, "sequences at once, divides rows; lower it when memory runs out"] = None
    muon_lr: Annotated[float | None, "peak learning rate of hidden matrices, above 0 (Muon)"] = None
    adamw_lr: Annotated[float | None, "peak learning rate of embedding, norms and head, above 0 (AdamW)"] = None
    muon_weight_decay: Annotated[float | None, "decoupled, times the learning rate; 0 = none"] = None
    adamw_weight_decay: Annotated[float | None, "decoupled, times the learning rate; 0 = none; never on norms"] = None
    warmup_fraction: Annotated[float | None, "of the steps, at the start: linear from 0, between 0 and 1"] = None
    decay_fraction: Annotated[float | None, "of the steps, at the end: linear to 0, between 0 and 1"] = None
    seed: Annotated[int | None, "of initial weights and the order of the data"] = None
    checkpoint_every: Annotated[int | None, "steps between two checkpoints"] = None
    keep_checkpoints: Annotated[int | None, "how many of the newest to keep; the best is kept beside them"] = None
    validate_every: Annotated[int | None, "steps between two validations"] = None
    n_validation_batches: Annotated[int | None, "batches of `rows` sequences a validation"] = None

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset={self.preset!r} must be one of {', '.join(PRESETS)}")
        pretrain_recipe(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedPretrain:
    """Every number of a training but the vocabulary size: what the fingerprint is made from."""

    decoder: DecoderShape
    train: TrainConfig


def pretrain_recipe(cfg: PretrainConfig) -> ResolvedPretrain:
    """The preset with what the user changed, and what follows from that. ValueError names what does not fit."""
    preset = PRESETS[cfg.preset]
    changes = {f.name: value for f in dataclasses.fields(cfg) if (value := getattr(cfg, f.name)) is not None}
    del changes["preset"]
    if "seq_len" in changes:
        changes["max_seq_len"] = changes["seq_len"]
    if "d_model" in changes or "n_heads" in changes:
        d_model = changes.get("d_model", preset.shape.d_model)
        n_heads = changes.get("n_heads", preset.shape.n_heads)
        if n_heads < 1 or d_model < 1 or d_model % n_heads:
            raise ValueError(f"d_model={d_model} is not a multiple of n_heads={n_heads}")
        changes["d_head"] = d_model // n_heads
    if "d_model" in changes:
        changes.setdefault("d_ff", d_ff_of(changes["d_model"]))
    if "n_heads" in changes:
        changes.setdefault("n_kv_heads", changes["n_heads"])
    if "rows" in changes and changes["rows"] > 0:
        limit = min(changes["rows"], preset.train.micro_batch)
        changes.setdefault("micro_batch", max(n for n in range(1, limit + 1) if changes["rows"] % n == 0))
    return ResolvedPretrain(
        decoder=dataclasses.replace(preset.shape, **_of_fields(DecoderShape, changes)),
        train=dataclasses.replace(preset.train, **_of_fields(TrainConfig, changes)),
    )


def _of_fields(kind: type, changes: Mapping[str, Any]) -> dict[str, Any]:
    names = {f.name for f in dataclasses.fields(kind)}
    return {name: value for name, value in changes.items() if name in names}


def resolve(cfg: PretrainConfig, vocab_size: int) -> tuple[DecoderConfig, TrainConfig]:
    recipe = pretrain_recipe(cfg)
    return recipe.decoder.with_vocab(vocab_size), recipe.train


def pretrain(cfg: ResolvedPretrain, inputs: tuple[Shards, TokenizerFile], work: Work) -> Outcome:
    """The stage function. Raises Terminated after a signal, ValueError when inputs do not fit or a loss diverges."""
    from model.batches import TokenBatches
    from model.checkpoint import describe, save_model
    from model.decoder import new_decoder
    from model.run import Job, run
    from model.size import flops_a_token, n_parameters
    from model.train import Interrupted

    tokens, tokenizer = inputs
    description = checked_description(tokens, tokenizer)
    decoder_cfg, train = cfg.decoder.with_vocab(description["vocab_size"]), cfg.train
    batches = TokenBatches(
        read_token_shards(tokens.directory, "train"), rows=train.rows, seq_len=train.seq_len, seed=train.seed
    )
    job = Job(
        model=new_decoder(decoder_cfg, train.seed).to(training_device()),
        cfg=train,
        description=describe(decoder_cfg),
        batches=batches,
        validate=validation(read_token_shards(tokens.directory, "validation"), train),
        best=BEST,
        made_from={"tokens": tokens.digest, "tokenizer": tokenizer.digest},
    )
    params = dataclasses.asdict(decoder_cfg) | dataclasses.asdict(train) | {"parameters": n_parameters(decoder_cfg)}
    work.observer.started(work.fingerprint, params, inputs)
    try:
        run(work.directory, job, work.observer, lambda done, total: work.progress(done, total, "steps"))
    except Interrupted as stop:
        raise Terminated(str(stop)) from stop
    save_model(work.directory, job.model, job.description)
    for name in TOKENIZER_FILES:
        link_or_copy(tokenizer.directory / name, work.directory / "tokenizer" / name)
    n_tokens = train.n_steps * train.tokens_a_step
    sizes = {
        "tokens": n_tokens,
        "epochs": n_tokens / (batches.n_windows * train.seq_len),
        "parameters": n_parameters(decoder_cfg),
        "flops": n_tokens * flops_a_token(decoder_cfg, train.seq_len),
    }
    return Outcome(
        rows=train.n_steps,
        measures=sizes | curve_measures(work.directory),
        content=("model.safetensors", "config.json", "tokenizer/*"),
    )


PRETRAIN = Stage(
    name="pretrain", version=1, function=pretrain, handle=Checkpoint, libraries=("torch",)
)  # torch: another version may round otherwise


def checked_description(tokens: Shards, tokenizer: TokenizerFile) -> dict:
    """tokens.json of the shards. ValueError when another tokenizer made them."""
    description = read_description(tokens.directory)
    if description["tokenizer"] != tokenizer.digest:
        raise ValueError(
            f"{tokens.directory} was made by the tokenizer {description['tokenizer']}, got {tokenizer.digest} in"
            f" {tokenizer.directory}; tokenise again with this one, or give the one it was made with"
        )
    return description


def validation(shards: list[TokenShard], train: TrainConfig):
    """A function of the model that gives validation_loss (nats a token) and validation_bits_per_byte, over the
    same windows each time; None when the split is too small for one window.

    Bits per byte are an estimate from these windows, by the bytes a token has in the whole split; evaluation
    (model/evaluate.py) counts whole documents.
    """
    from model.batches import TokenBatches
    from model.evaluate import mean_loss
    from model.loss import language_model_loss

    n_tokens = sum(len(shard.tokens) for shard in shards)
    n_bytes = sum(int(np.sum(shard.n_bytes)) for shard in shards)
    n_windows = (n_tokens - 1) // train.seq_len
    if n_windows < 1:
        return None
    rows = min(train.rows, n_windows)
    batches = TokenBatches(shards, rows=rows, seq_len=train.seq_len, seed=train.seed)
    n_batches = min(train.n_validation_batches, n_windows // rows)

    def validate(model: "nn.Module") -> dict[str, float]:
        loss = mean_loss(model, batches, n_batches, language_model_loss, train.micro_batch)
        return {"validation_loss": loss, BEST: loss / math.log(2) * n_tokens / n_bytes}

    return validate


def training_device():
    """The GPU where there is one, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def curve_measures(directory: Path) -> dict[str, float]:
    """Numbers of a finished run's curve: mean loss of the last 2 % of the steps, speed, last validation."""
    from model.run import read_curve

    curve = read_curve(directory)
    steps = [line for line in curve if "loss" in line]
    last = steps[-max(1, len(steps) // 50) :]
    validations = [line for line in curve if BEST in line]
    measures = {
        "training_loss": float(np.mean([line["loss"] for line in last])),
        "tokens_per_second": float(np.median([line["tokens_per_second"] for line in steps])),
    }
    return measures | ({name: validations[-1][name] for name in ("validation_loss", BEST)} if validations else {})


def documents_of_step(tokens: Path, train: TrainConfig, step: int) -> list[str]:
    """Ids of the documents that were in training step `step`, counted from 1 as the curve counts."""
    from model.batches import TokenBatches

    if not 1 <= step <= train.n_steps:
        raise ValueError(f"step {step} was never trained; steps go from 1 to {train.n_steps}")
    batches = TokenBatches(
        read_token_shards(tokens, "train"), rows=train.rows, seq_len=train.seq_len, seed=train.seed
    )
    return batches.documents_of_batch(step - 1)
