"""How much memory a training takes, by formula, and how many rows fit through the model at once.

In: the two configs, the device, what is free on it and what this training holds already. Out: an estimate in bytes by
part; the micro-batch; one error that names the settings to change when memory runs out all the same.

The estimate counts what exists when the loss is computed: weights, gradients and optimiser state, which are exact;
what autograd keeps of every token in every layer (the inputs of products, norms and gates, counted below), the
attention mask and the chunk of logits, which are not: temporaries of single operations come on top, and SAFE_SHARE
leaves room for them.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from model.network.attention import varlen_takes
from model.network.shape import DecoderConfig, EncoderConfig
from model.network.size import n_hidden_matrix_parameters, n_parameters
from model.training.config import TrainConfig
from model.training.cross_entropy import chunk_rows
from model.training.machine import free_memory

SAFE_SHARE = 0.5  # of what is free beside the state: peaks of whole processes were up to 1.7 times the estimate
# At once. More tokens make no product faster: with 2^15 the narrowest of a 124 M model (768 columns) has 1,536 tiles
# of 128 x 128, a dozen rounds on the 132 multiprocessors of an H200, and a CPU left its caches long before. Reasoned,
# not measured.
MICRO_TOKENS = 2**15
AUTOCAST_SHARE = 0.75  # of float32's activations: the stream is bfloat16, but norms and rotation compute in float32
OUT_OF_MEMORY = (  # what the allocators of CPU, CUDA and its libraries say
    "can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED", "Cannot allocate memory",
)  # fmt: skip


class OutOfMemory(ValueError):
    """Memory ran out; the message says which settings to change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryEstimate:
    """Bytes in one process."""

    state: int  # weights, gradients, optimiser state; under autocast also bfloat16 copies of the weights
    gathered: int  # whole weights and gradients of what FSDP puts together at once
    logits: int  # one chunk of them, and the gradient of the head
    row: int  # activations and mask of one row of a micro-batch

    def total(self, micro_batch: int) -> int:
        return self.state + self.gathered + self.logits + micro_batch * self.row


def estimate(
    cfg: DecoderConfig | EncoderConfig,
    train: TrainConfig,
    device: str,
    n_shards: int = 1,
    n_trained: int | None = None,
) -> MemoryEstimate:
    """What training takes in one process; `device` is "cpu" or "cuda", `n_shards` the processes of FSDP.

    `n_trained`: weights of adapters, which AdamW trains beside a frozen model, head included; None = all are trained.
    """
    is_half = device == "cuda"
    n_all, n_hidden = n_parameters(cfg), n_hidden_matrix_parameters(cfg)
    n_muon = n_hidden if train.muon_lr is not None else 0  # one moment, AdamW has two
    n_numbers = 2 * n_all + n_muon + 2 * (n_all - n_muon) if n_trained is None else n_all + 4 * n_trained
    copies = 2 * n_all if is_half and n_shards == 1 else 0  # by autocast; FSDP gathers bfloat16
    n_whole = n_all - n_hidden + 2 * n_hidden // cfg.n_layers  # all but the layers, one layer and the next
    gathered = 2 * (2 if is_half else 4) * n_whole if n_shards > 1 else 0  # weights and gradients
    logits = chunk_rows(cfg.vocab_size, device) * cfg.vocab_size * (8 if is_half else 4)
    share = AUTOCAST_SHARE if is_half else 1.0
    layer = share * 4 * floats_per_token(cfg)
    token = cfg.n_layers * layer
    if train.activation_checkpointing:  # the input of each layer, and one layer whole while it is computed again
        token = cfg.n_layers * 4 * cfg.d_model + layer
    row = train.seq_len * (token + 3 * 4 * cfg.d_model)  # and around the layers: embedding, last norm, its gradient
    takes_mask = train.document_mask or cfg.sliding_window is not None
    if takes_mask and not (is_half and varlen_takes(cfg.d_head)):
        row += train.seq_len**2 * (1 + (4 if train.activation_checkpointing else 4 * cfg.n_layers))
    # the sum of the head's gradient, and a chunk's share of that
    head = 2 * 4 * cfg.vocab_size * cfg.d_model if n_trained is None else 0
    return MemoryEstimate(
        state=4 * n_numbers // n_shards + copies, gathered=gathered, logits=logits + head, row=math.ceil(row)
    )


def floats_per_token(cfg: DecoderConfig | EncoderConfig) -> int:
    """Numbers that backward needs of one token in one layer.

    d_model: input, normalised and scaled value of an RMSNorm, input and output of a LayerNorm, twice. Queries, keys
    and values: rotated, and the attention's output, which is transposed for its projection; with QK-norm each head
    before and after. Feed-forward: gate, up, silu(gate) and their product, or less without a gate.
    """
    d_queries, d_keys = cfg.n_heads * cfg.d_head, cfg.n_kv_heads * cfg.d_head
    norms = (6 if cfg.norm == "rmsnorm" else 4) * cfg.d_model
    attention = (4 if cfg.qk_norm else 2) * (d_queries + d_keys)
    mlp = {"swiglu": 4, "geglu": 4, "relu2": 3, "gelu_tanh": 2, "gelu": 2}[cfg.mlp] * cfg.d_ff
    return norms + attention + mlp


def chosen_micro_batch(
    cfg: DecoderConfig | EncoderConfig,
    train: TrainConfig,
    device: torch.device,
    n_rows: int,
    *,
    n_shards: int = 1,
    held_bytes: int = 0,
    free_bytes: int | None = None,
    n_trained: int | None = None,
) -> int:
    """Rows at once: the largest divisor of `n_rows`, a process's share of a global batch, that fits the memory.

    At least 1, even where no row seems to fit, and at most MICRO_TOKENS tokens. `held_bytes` is the part of weights
    and optimiser state that exists already, so that free memory is without it; `free_bytes` None = measured;
    `n_trained` as in `estimate`.
    """
    parts = estimate(cfg, train, device.type, n_shards, n_trained)
    free = free_memory(device) if free_bytes is None else free_bytes
    room = SAFE_SHARE * (free - max(0, parts.state - held_bytes) - parts.gathered) - parts.logits
    limit = max(1, min(int(room // parts.row), MICRO_TOKENS // train.seq_len, n_rows))
    return max(n for n in range(1, limit + 1) if n_rows % n == 0)


@contextlib.contextmanager
def memory_explained(advice: str | Callable[[], str]) -> Iterator[None]:
    """Turns an allocator's error within the block into OutOfMemory, one line that ends in `advice`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not is_out_of_memory(error):
            raise
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        ending = f": {advice}" if isinstance(advice, str) else advice()
        raise OutOfMemory(f"out of memory ({first_line}){ending}") from error


def explained_out_of_memory(
    train: TrainConfig, micro_batch: int, last_checkpoint: Callable[[], Path | None]
) -> contextlib.AbstractContextManager[None]:
    """`memory_explained` by the settings that help; `last_checkpoint()` is called only when memory ran out."""
    return memory_explained(lambda: _advice(train, micro_batch, last_checkpoint()))


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


def _advice(train: TrainConfig, micro_batch: int, checkpoint: Path | None) -> str:
    changes = []
    if micro_batch > 1:
        changes.append(f"micro_batch={max(1, micro_batch // 2)} (now {micro_batch}; same training, slower)")
    if not train.activation_checkpointing:
        changes.append("activation_checkpointing=True (now False; same training, a third slower)")
    changes.append(f"a smaller seq_len (now {train.seq_len}) or model, which is another training")
    goes_on = f"the run goes on from {checkpoint}" if checkpoint else "the run starts again: it had no checkpoint yet"
    return f". Set {', or '.join(changes)}. With one of the first, {goes_on}"
