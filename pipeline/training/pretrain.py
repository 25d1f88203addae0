"""Pretrains a decoder or an encoder on token shards: the stage `pretrain`.

In: token shards and the tokenizer they were made with. Out: a Checkpoint folder: model.safetensors, config.json,
tokenizer/, curve.jsonl and the last and best of checkpoints/. Steps: a preset and the changes of the user become
complete configs; training begins, or resumes from the last complete checkpoint in the folder; every step is reported
to the observer, after a kill some of them again; the final weights are written last.

The fingerprint is computed from `pretrain_recipe`, not from PretrainConfig, so that it changes when a preset does.
torch is imported where it is used, because Dagster loads this module only for its config.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge

from model.data.mask_token import write_with_mask
from model.data.token_shards import read_description
from model.network.shape import DecoderShape, EncoderShape, config_for
from model.training.config import TrainConfig
from model.training.presets import changed, is_encoder_family, preset_of
from pipeline.corpus.tokens.tokenizer_files import tokenizer_files
from pipeline.store.errors import Terminated
from pipeline.store.records import Checkpoint, Handle, Shards, TokenizerFile
from pipeline.store.settings import OptionalCount, OptionalFraction, OptionalPositive, check_values
from pipeline.store.shards import link_or_copy
from pipeline.store.store import DEVICE, Outcome, Stage, Work
from pipeline.training import shared_settings as shared
from pipeline.training.launched import deliver_leftovers, train_in_processes
from pipeline.training.pace import paced, warn_of_passes

if TYPE_CHECKING:
    from model.training.pretraining import Pretraining


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig:
    """The settings of a user: a preset, and changes to it. None: the value of the preset, or what its rules compute
    from the changes (model/training/presets.py)."""

    preset: Annotated[
        Literal["demo", "small", "base", "gpt2_124m", "gpt2_350m"],
        "Named model size and training plan, from which every setting without a value is taken: demo (minutes on"
        " two CPU cores) or small (depth 8, hours on a GPU); of decoders also gpt2_124m (depth 12) and gpt2_350m (24"
        " layers of width 1024), of encoders also base (the shape of BERT-base).",
    ] = "demo"
    depth: Annotated[
        OptionalCount,
        "Derive all sizes from this number of layers instead of from a preset: the width is 64 times the depth, and"
        " context, tokens, batch size, learning rates and weight decay come from the rules in"
        " model/training/presets.py.",
    ] = None
    family: Annotated[
        Literal["qwen3", "llama", "gpt2", "bert", "roberta", "modernbert"] | None,
        "Architecture of the layers. Decoders, which learn to predict the next token: qwen3 (RMSNorm, rotary"
        " positions, QK-norm, SwiGLU), llama (the same without QK-norm) or gpt2 (LayerNorm, learned positions, GELU,"
        " biases, tied embeddings). Encoders, which learn to predict masked tokens from the text on both sides, for"
        " classification and search: bert (post-norm, learned positions, GELU), roberta (the same but for token types"
        " and the numbers of positions) or modernbert (pre-norm, rotary positions, GeGLU, some layers local).",
    ] = None
    n_layers: Annotated[OptionalCount, "Number of layers of the model."] = None
    d_model: Annotated[OptionalCount, "Width of the model, a multiple of the number of query heads."] = None
    n_heads: Annotated[OptionalCount, "Number of query heads; the width divided by it must be even."] = None
    n_kv_heads: Annotated[
        OptionalCount,
        "Number of key and value heads, a divisor of the number of query heads (grouped-query attention); without"
        " a value it equals the number of query heads.",
    ] = None
    d_ff: Annotated[
        OptionalCount,
        "Width of the feed-forward layers; without a value 8/3 of the model's width, rounded up to a multiple of 64.",
    ] = None
    tie_embeddings: Annotated[bool | None, "Whether the output head shares its weights with the embedding."] = None
    seq_len: Annotated[OptionalCount, "Context length in tokens, in training and afterwards."] = None
    n_steps: Annotated[OptionalCount, shared.N_STEPS] = None
    rows: Annotated[OptionalCount, shared.ROWS] = None
    micro_batch: shared.MicroBatch = None
    packing: Annotated[Literal["concatenated", "documents"] | None, shared.PACKING] = None
    mask_fraction: Annotated[
        OptionalFraction,
        "Fraction of the tokens that an encoder has to predict, above 0 and below 1; without a value 0.15.",
    ] = None
    mask_whole_words: Annotated[
        bool | None, "Whether an encoder always predicts all tokens of a word together; without a value it does not."
    ] = None
    document_mask: Annotated[bool | None, shared.DOCUMENT_MASK] = None
    batch_warmup_fraction: Annotated[
        OptionalFraction,
        "Fraction of the updates at the start that use an eighth, a quarter and then half of the batch.",
    ] = None
    muon_lr: Annotated[OptionalPositive, "Peak learning rate of the hidden matrices, which Muon trains."] = None
    adamw_lr: Annotated[
        OptionalPositive, "Peak learning rate of embedding, norms and output head, which AdamW trains."
    ] = None
    muon_weight_decay: Annotated[
        float | None,
        Ge(0),
        "Decoupled weight decay of the hidden matrices, multiplied by the learning rate; 0 turns it off.",
    ] = None
    adamw_weight_decay: Annotated[
        float | None,
        Ge(0),
        "Decoupled weight decay of embedding and output head, multiplied by the learning rate; 0 turns it off."
        " Norms are never decayed.",
    ] = None
    schedule: Annotated[
        Literal["warmup_stable_decay", "cosine", "linear"] | None,
        "Shape of the learning rate schedule after the warmup.",
    ] = None
    warmup_fraction: Annotated[OptionalFraction, shared.WARMUP_FRACTION] = None
    decay_fraction: Annotated[OptionalFraction, shared.DECAY_FRACTION] = None
    skip_spikes: shared.SkipSpikes = None
    activation_checkpointing: Annotated[bool | None, shared.ACTIVATION_CHECKPOINTING] = None
    deterministic: Annotated[bool | None, shared.DETERMINISTIC] = None
    devices: shared.Devices = 1
    parallel: shared.Parallel = "ddp"
    seed: Annotated[int | None, "Seed for the initial weights and the order of the data."] = None
    checkpoint_every: Annotated[OptionalCount, shared.CHECKPOINT_EVERY] = None
    keep_checkpoints: Annotated[OptionalCount, shared.KEEP_CHECKPOINTS] = None
    validate_every: Annotated[OptionalCount, "Validate every N updates."] = None
    n_validation_batches: Annotated[OptionalCount, shared.N_VALIDATION_BATCHES] = None

    def __post_init__(self) -> None:
        check_values(self)
        pretrain_recipe(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedPretrain:
    """All numbers of a training except the vocabulary size: the fingerprint is computed from it."""

    network: DecoderShape | EncoderShape
    train: TrainConfig


def pretrain_recipe(cfg: PretrainConfig) -> ResolvedPretrain:
    """The sizes of the preset or the dial, with the changes of the user and what follows from them. Raises ValueError
    for values that do not fit together."""
    changes = {f.name: value for f in dataclasses.fields(cfg) if (value := getattr(cfg, f.name)) is not None}
    del changes["devices"]  # the devices do not affect what is trained
    named, depth, family = changes.pop("preset"), changes.pop("depth", None), changes.pop("family", None)
    of_encoders = sorted({"mask_fraction", "mask_whole_words"} & changes.keys())
    if of_encoders and not is_encoder_family(family):
        raise ValueError(f"{of_encoders[0]} is a setting of encoders, and family={family or 'qwen3'!r} is a decoder")
    preset = changed(preset_of(named, family, depth), changes, family)
    return ResolvedPretrain(network=preset.shape, train=preset.train)


def pretrain(cfg: ResolvedPretrain, inputs: tuple[Shards, TokenizerFile], work: Work) -> Outcome:
    """The stage function. Raises Terminated after a signal, ValueError when inputs do not fit or a loss diverges."""
    from model.training import pretraining

    tokens, tokenizer = inputs
    description = checked_description(tokens, tokenizer)
    plan = pretraining.Pretraining(
        shards=tokens.directory,
        out=work.directory,
        network=config_for(cfg.network, description["vocab_size"]),
        train=cfg.train,
        made_from={"tokens": tokens.digest, "tokenizer": tokenizer.digest},
        tokenizer=tokenizer.directory,
    )
    n_passes = train_to_end(plan, inputs, work)
    if plan.objective == "masked_tokens":
        write_with_mask(tokenizer.directory, work.directory / "tokenizer")
    else:
        for name in tokenizer_files(tokenizer.directory):
            link_or_copy(tokenizer.directory / name, work.directory / "tokenizer" / name)
    return Outcome(
        rows=plan.train.n_steps,
        measures=pretraining.measures(plan, n_passes),
        content=("model.safetensors", "config.json", "tokenizer/*"),
    )


def train_to_end(plan: "Pretraining", inputs: Sequence[Handle], work: Work) -> float:
    """Train in this process or in several, and return how often the training reads its data."""
    from model.training import pretraining
    from model.training.loop import Interrupted

    work.observer.started(work.fingerprint, plan.params(), inputs)
    n_passes = pretraining.passes(plan)
    warn_of_passes(n_passes, plan.n_tokens)
    with pretraining.only_training(work.directory):  # processes of a killed build may still save
        deliver_leftovers(work)
    try:
        if work.launch is not None:
            train_in_processes(plan.to_json(), work)
        else:
            progress = paced(lambda done, total: work.progress(done, total, "steps"))
            pretraining.pretrain(plan, work.observer, progress)
    except Interrupted as stop:
        raise Terminated(str(stop)) from stop
    return n_passes


PRETRAIN = Stage(
    name="pretrain", version=4, function=pretrain, handle=Checkpoint, libraries=("torch", DEVICE)
)  # torch: another version may round differently


def checked_description(tokens: Shards, tokenizer: TokenizerFile) -> dict:
    """tokens.json of the shards. Raises ValueError when they were made with another tokenizer."""
    description = read_description(tokens.directory)
    if description["tokenizer"] != tokenizer.digest:
        raise ValueError(
            f"{tokens.directory} was made with the tokenizer {description['tokenizer']}, got {tokenizer.digest} in"
            f" {tokenizer.directory}; tokenize again with this tokenizer, or give the other one"
        )
    return description
