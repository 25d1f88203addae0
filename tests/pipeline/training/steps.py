"""What a training step read, computed from the batches and not from the index that the pipeline keeps of them."""

from pathlib import Path

from model.data.batches import token_batches
from model.data.token_shards import read_token_shards
from model.training.config import TrainConfig


def documents_of_step(tokens: Path, train: TrainConfig, step: int) -> list[str]:
    """Ids of the documents that were in training step `step`, counted from 1 as in the curve."""
    return token_batches(read_token_shards(tokens, "train"), train).documents_of_batch(step - 1)
