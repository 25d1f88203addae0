"""Settings that several kinds of training have: type, range and description, declared once.

In: nothing. Out: types of fields, for settings that are alike in all of them; and descriptions, for settings whose
type depends on whether a value may be missing, because a preset has it.
"""

from typing import Annotated, Literal

from pipeline.store.settings import Count, OptionalCount, OptionalPositive, Positive

LoraRank = Annotated[Count, "Rank of the adapters: the number of rows of A and columns of B."]
LoraAlpha = Annotated[Positive, "The output of an adapter is multiplied by lora_alpha / lora_rank."]
LoraTargets = Annotated[
    tuple[str, ...],
    "Names of the linear layers that get an adapter, for example q_proj, v_proj; an empty list means all linear"
    " layers of the blocks.",
]
MicroBatch = Annotated[
    OptionalCount,
    "Number of sequences that pass through the model at once, a divisor of the sequences per update; lower it"
    " when memory runs out. Without a value it is chosen from the free memory.",
]
SkipSpikes = Annotated[
    OptionalPositive,
    "Skip updates whose loss or gradient norm is more than this many deviations above recent ones.",
]
Devices = Annotated[
    Count,
    "Number of training processes, one per GPU or share of the CPU cores. Does not change the model's fingerprint.",
]
Parallel = Annotated[
    Literal["ddp", "fsdp"],
    "How several processes share the model: each holds all weights (ddp) or a shard of them (fsdp). Does not"
    " change the model's fingerprint.",
]

N_STEPS = "Number of optimizer updates, each on one batch of sequences."
ROWS = "Number of sequences per update."
PACKING = (
    "How training sequences are filled: with windows of the concatenated documents, or with whole documents and"
    " pieces of long ones by best fit."
)
DOCUMENT_MASK = "Whether a token attends only to tokens of its own document."
WARMUP_FRACTION = "Fraction of the updates at the start in which learning rates rise linearly from 0."
DECAY_FRACTION = (
    "Fraction of the updates at the end in which the schedule warmup_stable_decay lowers learning rates to 0."
)
ACTIVATION_CHECKPOINTING = "Whether to recompute the layers in the backward pass: less memory, about a third slower."
DETERMINISTIC = (
    "Whether a GPU uses only kernels that repeat their bits, so that a resumed training ends with the bits of one"
    " that was never killed. Slower; a CPU always repeats them. Does not change the model's fingerprint."
)
CHECKPOINT_EVERY = "Save a checkpoint every N updates."
KEEP_CHECKPOINTS = "Number of newest checkpoints to keep besides the best one."
N_VALIDATION_BATCHES = "Number of batches per validation."
