"""Weights made elsewhere, converted into the format of our own models.

In: a folder in the layout of Hugging Face (config.json, safetensors in one file or several, the files of a
tokenizer), or one GGUF file, recognised by its first bytes. Out: config.json, model.safetensors in float32 with our
names, and tokenizer/, as every training here writes them, so that everything here works with the model.

Nothing of the source is executed, and nothing stays in the output folder when the source is refused.
"""

import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from model.data.chat_check import fault_of
from model.data.tokenizer import TOKENIZER, Tokenizer
from model.hf.config import problem_in
from model.hf.files import read_config, read_model, weight_files
from model.hf.gguf_model import decoder_in, expected_weights, weights_in
from model.hf.gguf_read import is_gguf, read_gguf
from model.hf.tokenizer import CHAT_TEMPLATE
from model.hf.tokenizer_import import import_gguf_tokenizer, import_tokenizer
from model.network.registry import describe, kind_of
from model.training.files import CONFIG, WEIGHTS, flush, replace_json, write_tensors_as_they_come
from model.training.weights import named_weights

CARD = "README.md"
PART = ".import"  # folder in the output folder until the import is whole
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
LICENCE = re.compile(r"^license:\s*['\"]?([\w.+ -]{1,80}?)['\"]?\s*$", re.MULTILINE)
MAX_CARD_BYTES = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    family: str  # model_type of Hugging Face
    kind: str  # of model/network/registry.py
    n_parameters: int
    stored: tuple[str, ...]  # number formats of the source, that of the most weights first: Q4_1, BF16
    name: str
    licence: str | None
    has_chat_template: bool
    chat_fault: str | None  # why the chat template cannot be used; None if it can, or if there is none


def import_model(source: Path, out: Path) -> Imported:
    """Convert the model in `source` and write it into the folder `out`, in place of a model that is there.

    ValueError names what is wrong with the source, or what we cannot compute; `out` then has no part of it.
    """
    if source.is_dir() or is_gguf(source):
        with _whole(out) as part, _naming(source, part):
            return _import_folder(source, part) if source.is_dir() else _import_gguf(source, part)
    if not source.exists():
        raise ValueError(f"{source} does not exist; name a Hugging Face folder or a GGUF file")
    is_pickled = source.suffix.lower() in PICKLED
    why = "is pickled, which may run code, and is not read" if is_pickled else "is neither a folder nor a GGUF file"
    raise ValueError(f"{source} {why}; name a folder with config.json and safetensors, or a GGUF file")


def _import_folder(source: Path, part: Path) -> Imported:
    _refuse_links(source)
    config = read_config(source)
    model, labels = read_model(source)
    weights = named_weights(model)
    description = describe(model.cfg, labels, kind=kind_of(model), problem=problem_in(config))
    _write(part, description, weights, weights.items(), source)
    tokenizer = import_tokenizer(source, part / TOKENIZER, model.cfg.vocab_size)
    return Imported(
        family=config["model_type"],
        kind=description["kind"],
        n_parameters=_n_parameters(weights),
        stored=_formats_in(weight_files(source)),
        name=source.resolve().name,
        licence=_licence(source / CARD),
        has_chat_template=(part / TOKENIZER / CHAT_TEMPLATE).is_file(),
        chat_fault=_chat_fault(part / TOKENIZER, tokenizer),
    )


def _import_gguf(source: Path, part: Path) -> Imported:
    file = read_gguf(source)
    family, cfg = decoder_in(file)
    weights, description = expected_weights(cfg), describe(cfg)
    tokenizer = import_gguf_tokenizer(file.fields, part / TOKENIZER, cfg.vocab_size)
    _write(part, description, weights, weights_in(file, cfg), source)
    counts = Counter[str]()
    for tensor in file.tensors.values():
        counts[tensor.stored] += math.prod(tensor.shape)
    return Imported(
        family=family,
        kind=description["kind"],
        n_parameters=_n_parameters(weights),
        stored=tuple(stored for stored, _ in counts.most_common()),
        name=_text(file.fields.get("general.name")) or source.stem,
        licence=_text(file.fields.get("general.license")),
        has_chat_template=(part / TOKENIZER / CHAT_TEMPLATE).is_file(),
        chat_fault=_chat_fault(part / TOKENIZER, tokenizer),
    )


def _chat_fault(folder: Path, tokenizer: Tokenizer) -> str | None:
    if not (folder / CHAT_TEMPLATE).is_file():
        return None
    try:
        source = (folder / CHAT_TEMPLATE).read_text("utf-8")
    except UnicodeDecodeError as error:
        return f"it is not UTF-8 ({error})"
    return fault_of(tokenizer, source)


def _write(
    part: Path,
    description: Mapping[str, Any],
    expected: Mapping[str, Tensor],
    weights: Iterable[tuple[str, Tensor]],
    source: Path,
) -> None:
    write_tensors_as_they_come(part / WEIGHTS, expected, _finite(weights, source))
    replace_json(part / CONFIG, dict(description))


def _finite(weights: Iterable[tuple[str, Tensor]], source: Path) -> Iterator[tuple[str, Tensor]]:
    for name, weight in weights:
        if not weight.isfinite().all():
            raise ValueError(f"{source}: the weight {name} has numbers that are infinite or nan; fetch it again")
        yield name, weight


def _formats_in(files: Iterable[Path]) -> tuple[str, ...]:
    """Number formats of safetensors files, that of the most weights first."""
    counts = Counter[str]()
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_slice(name)
                if "F" in tensor.get_dtype():  # buffers of positions and masks are whole numbers
                    counts[tensor.get_dtype()] += math.prod(tensor.get_shape())
    return tuple(stored for stored, _ in counts.most_common())


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A folder in `out` whose entries move into `out` at the end, config.json last, or not at all."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; name a folder")
    is_new, part = not out.exists(), out / PART
    shutil.rmtree(part, ignore_errors=True)  # of an import that was killed
    part.mkdir(parents=True)
    try:
        yield part
        (out / CONFIG).unlink(missing_ok=True)
        shutil.rmtree(out / TOKENIZER, ignore_errors=True)
        for path in sorted(part.rglob("*")):
            flush(path)
        for path in sorted(part.iterdir(), key=lambda path: path.name == CONFIG):
            os.replace(path, out / path.name)  # noqa: PTH105
        flush(out)
    except BaseException:
        shutil.rmtree(out if is_new else part, ignore_errors=True)
        raise
    part.rmdir()


@contextmanager
def _naming(source: Path, part: Path) -> Iterator[None]:
    """Errors name the source, whatever the place of the tensor or tokenizer was when it was checked."""
    try:
        yield
    except ValueError as error:
        text = str(error).replace(str(part / TOKENIZER), str(source))
        raise ValueError(text if str(source) in text else f"{source}: {text}") from error


def _refuse_links(source: Path) -> None:
    """ValueError for a link that leads out of the folder. The cache of huggingface_hub consists of links to blobs/
    beside its snapshots/, which belong to it."""
    root = source.resolve()
    if root.parent.name == "snapshots":
        root = root.parent.parent
    for path in source.iterdir():
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise ValueError(
                f"{path} is a link that leads out of the folder; copy the file that it means, or remove it"
            )


def _licence(card: Path) -> str | None:
    """The licence in the header of a model card."""
    if not card.is_file() or card.stat().st_size > MAX_CARD_BYTES:
        return None
    header = card.read_text("utf-8", errors="replace").removeprefix("---\n").partition("\n---")[0]
    found = LICENCE.search(header)
    return found[1] if found else None


def _n_parameters(weights: Mapping[str, Tensor]) -> int:
    return sum(weight.numel() for weight in weights.values())


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
