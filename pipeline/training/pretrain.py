"""Pretrain a decoder on token shards: the stage `pretrain`.

In: token shards and the tokenizer they were made with. Out: a Checkpoint folder: model.safetensors, config.json,
tokenizer/, curve.jsonl and the last and best of checkpoints/. Steps: a preset and what the user changed in it become
whole configs; training begins, or goes on from the last complete checkpoint in the folder; the observer hears of
every step once; the final weights are written last.

The fingerprint is made from `pretrain_recipe`, not from PretrainConfig, so that it changes when a preset does.
torch is imported where it is used: Dagster loads this module for its config alone.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from model.config import DecoderConfig, DecoderShape, TrainConfig
from model.presets import PRESETS, from_depth
from model.recipe import changed
from model.token_shards import read_description, read_token_shards
from pipeline.corpus.tokens.tokenizer_files import TOKENIZER_FILES
from pipeline.store.errors import Terminated
from pipeline.store.records import Checkpoint, Shards, TokenizerFile
from pipeline.store.shards import link_or_copy
from pipeline.store.store import Outcome, Stage, Work
from pipeline.training.launched import tell_what_was_left, train_in_processes


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig:
    """What a user edits: a preset, and what to change in it. None = as the preset has it."""

    preset: Annotated[
        Literal["demo", "small", "gpt2_124m", "gpt2_350m"],
        "named size: demo (minutes on two CPU cores), small (depth 8, hours on a GPU), gpt2_124m (depth 12),"
        " gpt2_350m (24 layers of 1024); depth overrides it",
    ] = "demo"
    depth: Annotated[
        int | None,
        "the one dial, at least 1: so many layers, 64 times as wide; heads, context, tokens, batch, learning rates"
        " and weight decay follow by the rules in model/presets.py; None = the preset",
    ] = None
    family: Annotated[
        Literal["qwen3", "llama", "gpt2"] | None,
        "what the layers are made of: qwen3 (RMSNorm, rotary positions, QK-norm, SwiGLU), llama (the same without"
        " QK-norm), gpt2 (LayerNorm, learned positions, GELU, biases, tied head)",
    ] = None
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
    micro_batch: Annotated[
        int | None, "sequences at once, divides rows; lower it when memory runs out; unset: as memory allows"
    ] = None
    packing: Annotated[
        Literal["concatenated", "documents"] | None,
        "rows are windows of all text one after another, or whole pieces of documents, best fit",
    ] = None
    document_mask: Annotated[bool | None, "whether a token sees its own document only"] = None
    batch_warmup_fraction: Annotated[
        float | None, "of the steps, at the start: batches of an 8th, a 4th and half of the rows"
    ] = None
    muon_lr: Annotated[float | None, "peak learning rate of hidden matrices, above 0 (Muon)"] = None
    adamw_lr: Annotated[float | None, "peak learning rate of embedding, norms and head, above 0 (AdamW)"] = None
    muon_weight_decay: Annotated[float | None, "decoupled, times the learning rate; 0 = none"] = None
    adamw_weight_decay: Annotated[float | None, "decoupled, times the learning rate; 0 = none; never on norms"] = None
    schedule: Annotated[
        Literal["warmup_stable_decay", "cosine", "linear"] | None, "how the learning rates rise and fall"
    ] = None
    warmup_fraction: Annotated[float | None, "of the steps, at the start: linear from 0, between 0 and 1"] = None
    decay_fraction: Annotated[float | None, "of the steps, at the end: linear to 0, between 0 and 1"] = None
    skip_spikes: Annotated[
        float | None, "leaves out updates whose loss or gradient lies so many deviations above the recent ones"
    ] = None
    activation_checkpointing: Annotated[
        bool | None, "computes layers a second time in backward: less memory, about a third slower"
    ] = None
    devices: Annotated[
        int,
        "processes that train together, each with a GPU of this machine or a share of its cores; no identity",
    ] = 1
    parallel: Annotated[
        Literal["ddp", "fsdp"],
        "of several devices: each holds all weights (ddp), or a shard of each (fsdp); no identity",
    ] = "ddp"
    seed: Annotated[int | None, "of initial weights and the order of the data"] = None
    checkpoint_every: Annotated[int | None, "steps between two checkpoints"] = None
    keep_checkpoints: Annotated[int | None, "how many of the newest to keep; the best is kept beside them"] = None
    validate_every: Annotated[int | None, "steps between two validations"] = None
    n_validation_batches: Annotated[int | None, "batches of `rows` sequences a validation"] = None

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset={self.preset!r} must be one of {', '.join(PRESETS)}")
        if self.devices < 1:
            raise ValueError(f"devices={self.devices} must be at least 1")
        pretrain_recipe(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedPretrain:
    """Every number of a training but the vocabulary size: what the fingerprint is made from."""

    decoder: DecoderShape
    train: TrainConfig


def pretrain_recipe(cfg: PretrainConfig) -> ResolvedPretrain:
    """The preset or the dial's sizes, with what the user changed and what follows. ValueError names what does not
    fit."""
    changes = {f.name: value for f in dataclasses.fields(cfg) if (value := getattr(cfg, f.name)) is not None}
    del changes["devices"]  # who trains decides nothing about what
    named, depth, family = changes.pop("preset"), changes.pop("depth", None), changes.pop("family", None)
    preset = changed(PRESETS[named] if depth is None else from_depth(depth), changes, family)
    return ResolvedPretrain(decoder=preset.shape, train=preset.train)


def resolve(cfg: PretrainConfig, vocab_size: int) -> tuple[DecoderConfig, TrainConfig]:
    recipe = pretrain_recipe(cfg)
    return recipe.decoder.with_vocab(vocab_size), recipe.train


def pretrain(cfg: ResolvedPretrain, inputs: tuple[Shards, TokenizerFile], work: Work) -> Outcome:
    """The stage function. Raises Terminated after a signal, ValueError when inputs do not fit or a loss diverges."""
    from model import pretraining
    from model.train import Interrupted

    tokens, tokenizer = inputs
    description = checked_description(tokens, tokenizer)
    plan = pretraining.Pretraining(
        shards=tokens.directory,
        out=work.directory,
        decoder=cfg.decoder.with_vocab(description["vocab_size"]),
        train=cfg.train,
        made_from={"tokens": tokens.digest, "tokenizer": tokenizer.digest},
    )
    work.observer.started(work.fingerprint, plan.params(), inputs)
    with pretraining.only_training(work.directory):  # processes of a build that was killed may still save
        tell_what_was_left(work)
    try:
        if work.launch is not None:
            train_in_processes(plan.to_json(), work)
        else:
            pretraining.pretrain(plan, work.observer, lambda done, total: work.progress(done, total, "steps"))
    except Interrupted as stop:
        raise Terminated(str(stop)) from stop
    for name in TOKENIZER_FILES:
        link_or_copy(tokenizer.directory / name, work.directory / "tokenizer" / name)
    return Outcome(
        rows=plan.train.n_steps,
        measures=pretraining.measures(plan),
        content=("model.safetensors", "config.json", "tokenizer/*"),
    )


PRETRAIN = Stage(
    name="pretrain", version=2, function=pretrain, handle=Checkpoint, libraries=("torch",)
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


def documents_of_step(tokens: Path, train: TrainConfig, step: int) -> list[str]:
    """Ids of the documents that were in training step `step`, counted from 1 as the curve counts."""
    from model.batches import token_batches

    if not 1 <= step <= train.n_steps:
        raise ValueError(f"step {step} was never trained; steps go from 1 to {train.n_steps}")
    return token_batches(read_token_shards(tokens, "train"), train).documents_of_batch(step - 1)
