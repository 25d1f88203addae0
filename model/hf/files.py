"""Folders as Hugging Face lays them out: config.json beside model.safetensors, whole or in shards.

In: a folder. Out: a Decoder; or the reverse. Pickled weights (pytorch_model.bin) are refused.
"""

from pathlib import Path

from torch import Tensor

from model.checkpoint import read_json, read_tensors, write_json, write_tensors
from model.decoder import Decoder
from model.hf.convert import config_from_hf, config_to_hf, weights_from_hf, weights_to_hf

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


def read_folder(directory: Path) -> Decoder:
    """The decoder in a folder of Hugging Face's, on the CPU in float32, in evaluation mode."""
    if not (directory / CONFIG).exists():
        raise ValueError(f"{directory} is not a Hugging Face folder: it has no {CONFIG}")
    decoder = Decoder(config_from_hf(read_json(directory / CONFIG)))
    weights_from_hf(decoder, _read_weights(directory))
    return decoder.eval()


def write_folder(directory: Path, decoder: Decoder) -> None:
    """config.json and model.safetensors, which transformers, vLLM and llama.cpp read."""
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / CONFIG, config_to_hf(decoder.cfg))
    write_tensors(directory / WEIGHTS, weights_to_hf(decoder), metadata={"format": "pt"})  # transformers asks for it


def _read_weights(directory: Path) -> dict[str, Tensor]:
    if (directory / WEIGHTS).exists():
        return read_tensors(directory / WEIGHTS)
    if not (directory / INDEX).exists():
        raise ValueError(
            f"{directory} has neither {WEIGHTS} nor {INDEX}; other formats may run code and are not read"
        )
    weights: dict[str, Tensor] = {}
    for name in sorted(set(read_json(directory / INDEX)["weight_map"].values())):
        if Path(name).name != name:
            raise ValueError(f"{directory / INDEX}: {name!r} points outside the folder")
        weights |= read_tensors(directory / name)
    return weights
