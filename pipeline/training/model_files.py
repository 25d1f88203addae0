"""Which files of a repository, folder or package make a model, and what they are called in its folder.

In: the table `files` of an open model: the path of each file where it comes from, with its sha256. Out: its name in
the model's folder, and what identifies the model. Weights are safetensors or one GGUF; a file that could run code
when it is opened, such as a pickle, is refused by name. Licence texts are kept beside the model and do not identify
it.
"""

import json
import posixpath
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePosixPath

from pipeline.corpus.collect.download import checked_sha256

GGUF, SAFETENSORS = ".gguf", ".safetensors"
TEXT_SUFFIXES = (".json", ".txt", ".jinja", ".model")  # configs and vocabularies
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".msgpack", ".h5", ".keras")
LICENCE = re.compile(r"(licen[cs]e|copying|notice)([._-].*)?", re.IGNORECASE)
USEFUL = re.compile(  # of the files in a repository, those that an importer reads
    r"config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|merges|chat_template"
    r"|sentencepiece.*|spiece|model\.safetensors\.index"
)
LARGEST_TEXT = 100_000_000  # bytes of a config or vocabulary


def check_files(files: Mapping[str, str]) -> None:
    """Raises ValueError for a path or sha256 that cannot be one, or for files that do not make one model."""
    for path, sha256 in files.items():
        try:
            _check_path(path)
            checked_sha256(sha256)
        except ValueError as error:
            raise ValueError(f"files: {path!r}: {error}") from error
    ggufs = [path for path in files if path.lower().endswith(GGUF)]
    tensors = [path for path in files if path.lower().endswith(SAFETENSORS)]
    if files and not ggufs and not tensors:
        raise ValueError(f"files names no weights, expected {SAFETENSORS} files or one {GGUF} file")
    if ggufs and (tensors or len(ggufs) > 1):
        raise ValueError(
            f"files names {len(ggufs)} {GGUF} and {len(tensors)} {SAFETENSORS} files, expected {SAFETENSORS} files or"
            f" one {GGUF} file; prefer {SAFETENSORS}, whose weights are not quantised"
        )
    if tensors and not any(PurePosixPath(path).name == "config.json" for path in files):
        raise ValueError("files names no config.json, which describes the layers of the weights")
    if len({name.lower() for name in names_in_folder(files).values()}) < len(files):
        raise ValueError(f"files names two files that would have one name: {', '.join(sorted(files))}")


def _check_path(path: str) -> None:
    suffix = PurePosixPath(path).suffix.lower()
    if (
        path != posixpath.normpath(path)
        or path.startswith("/")
        or "\\" in path
        or ":" in path
        or not path.isprintable()
    ):
        raise ValueError("expected a path of the form folder/file inside the package, folder or repository")
    if any(part.startswith(".") for part in path.split("/")):
        raise ValueError("hidden files and .. are not read")
    if is_licence(path):
        return
    if suffix in PICKLES:
        raise ValueError(
            f"a file that ends in {suffix} can run code when it is opened, so it is never read; expected"
            f" {SAFETENSORS} or {GGUF} weights"
        )
    if suffix not in (*TEXT_SUFFIXES, GGUF, SAFETENSORS):
        allowed = ", ".join((SAFETENSORS, GGUF, *TEXT_SUFFIXES))
        raise ValueError(f"expected a file that ends in one of {allowed}, or a LICENSE")


def is_licence(path: str) -> bool:
    return LICENCE.fullmatch(PurePosixPath(path).name) is not None


def is_weights(path: str) -> bool:
    return path.lower().endswith((GGUF, SAFETENSORS))


def names_in_folder(files: Collection[str]) -> dict[str, str]:
    """Path where a file comes from -> its name in the model's folder: relative to the folder that all have in common.

    Licence texts may come from elsewhere, and lie at the top.
    """
    own = [path for path in files if not is_licence(path)]
    top = posixpath.commonpath([posixpath.dirname(path) for path in own]) if own else ""
    return {
        path: posixpath.basename(path) if is_licence(path) else posixpath.relpath(path, top or ".") for path in files
    }


def identity_of(files: Mapping[str, str]) -> dict[str, str]:
    """Name -> sha256 of the files that make the model, equal wherever they come from. A GGUF may have any name."""
    names = names_in_folder(files)
    own = {names[path]: sha256 for path, sha256 in files.items() if not is_licence(path)}
    return {"model.gguf": next(iter(own.values()))} if len(own) == 1 else dict(sorted(own.items()))


def useful(paths: Iterable[str]) -> list[str]:
    """Of all files that there are, those that make a model: weights, and what lies in their folder.

    Safetensors are preferred to GGUF, and weights in the folder at the top to variants of them in folders below.
    """
    there = list(paths)
    weights = [path for path in there if path.lower().endswith(SAFETENSORS)]
    is_whole = not weights  # a GGUF contains config and tokenizer, too
    weights = weights or [path for path in there if path.lower().endswith(GGUF)]
    if not weights:
        return []
    top = min(
        (posixpath.dirname(path) for path in weights), key=lambda folder: (folder.count("/") + bool(folder), folder)
    )
    weights = [path for path in weights if posixpath.dirname(path) == top]
    named = [path for path in weights if posixpath.basename(path).startswith("model")]  # not a second copy of them
    beside = [path for path in there if posixpath.dirname(path) == top]
    return sorted(
        path
        for path in beside
        if path in (named or weights) or is_licence(path) or (not is_whole and _is_config(path))
    )


def _is_config(path: str) -> bool:
    name = PurePosixPath(path)
    return name.suffix.lower() in TEXT_SUFFIXES and USEFUL.fullmatch(name.stem) is not None


def pickles_among(paths: Iterable[str]) -> list[str]:
    return [path for path in paths if path.lower().endswith(PICKLES)]


def files_line(files: Mapping[str, str]) -> str:
    """The table `files` of a model in one line of models.toml, because messages are shown in one line."""
    return (
        "files = { "
        + ", ".join(f"{json.dumps(path)} = {json.dumps(sha256)}" for path, sha256 in files.items())
        + " }"
    )
