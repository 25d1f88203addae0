"""Imports weights made elsewhere: the stage `base`.

In: a table of kind "open" in models.toml (open_models.py). Out: a Checkpoint folder, as if the model had been
trained here: model.safetensors, config.json and tokenizer/, beside them origin.json and the licence texts of the
model. Steps: the files are fetched and their sha256 verified, then `import_model` converts them, dequantised where
necessary.

The fingerprint is computed from the sha256 of the model's files, not from where they came: the same weights from a
folder, a package or the hub are one output. torch is imported where it is used.
"""

import json
import logging
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pipeline.store.json_files import read_object
from pipeline.store.lineage import Folder, folder_of
from pipeline.store.record_file import read_record, rebuilding
from pipeline.store.records import Checkpoint, Handle, Report
from pipeline.store.shards import write_bytes, write_text
from pipeline.store.store import NOT_IDENTITY, Outcome, Stage, Work
from pipeline.training.model_files import files_line, identity_of, is_licence, is_weights, names_in_folder
from pipeline.training.open_config import OpenConfig

log = logging.getLogger(__name__)

ORIGIN = "origin.json"
FETCHED = ".fetched"  # folder of an output while it is built: the model's files under their own names
EXACT = {"F64", "F32", "F16", "BF16"}  # formats of weights that are not quantised
INTEGER = re.compile(r"[IU]\d+|BOOL")  # of tensors that are not weights, such as the numbers of positions
KEYS = {
    **dict.fromkeys(("origin", "family", "kind"), str),
    "licence": object,
    "files": dict,
    "bytes": int,
    "parameters": int,
    "stored": list,
    "has_chat_template": bool,
    "chat_fault": object,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenRecipe:
    """What the stage is built with: identified by the files alone, and the licence that is recorded with them."""

    config: OpenConfig = field(metadata=NOT_IDENTITY)
    cache: Path = field(metadata=NOT_IDENTITY)  # folder of downloaded files
    files: Mapping[str, str] = field(init=False)  # name in the model's folder -> sha256
    licence: str | None = field(init=False)
    licence_texts: tuple[str, ...] = field(init=False)  # sha256

    def __post_init__(self) -> None:
        texts = sorted(sha256 for path, sha256 in self.config.files.items() if is_licence(path))
        object.__setattr__(self, "files", identity_of(self.config.files))
        object.__setattr__(self, "licence", self.config.licence)
        object.__setattr__(self, "licence_texts", tuple(texts))


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """origin.json: where the weights of a model came from, for cards, MLflow and `gristmill results`."""

    origin: str
    licence: str | None
    files: Mapping[str, str]  # path at the origin -> sha256
    bytes: int  # of these files
    family: str
    kind: str  # of model/network/registry.py
    parameters: int
    stored: tuple[str, ...]  # number formats of the files, that of the most weights first
    has_chat_template: bool
    chat_fault: str | None  # why the chat template cannot be used

    @property
    def stored_as(self) -> str:
        """The number formats in words; quantised weights are not those that their maker published results of."""
        weights = [one for one in self.stored if not INTEGER.fullmatch(one)]
        quantised = [one for one in weights if one not in EXACT]
        return f"dequantised {', '.join(quantised)}" if quantised else ", ".join(weights)

    def facts(self) -> dict[str, str]:
        """For tags and cards."""
        weights = {path: sha256 for path, sha256 in self.files.items() if is_weights(path)}
        chat = {} if self.chat_fault is None else {"chat template": f"cannot be used: {self.chat_fault}"}
        return {
            "origin": self.origin,
            "licence": self.licence or "unknown",
            "weights": self.stored_as,
            "parameters": f"{self.parameters:,}",
            "sha256": ", ".join(f"{path} {sha256}" for path, sha256 in weights.items()),
            **chat,
        }


def read_origin(directory: Path) -> Origin | None:
    """Where the weights in the folder of a model came from; None if they were trained from scratch."""
    if not (path := directory / ORIGIN).exists():
        return None
    values = read_object(path, KEYS, rebuilding(directory))
    known = {key: values[key] for key in KEYS}
    return Origin(**{**known, "stored": tuple(values["stored"])})


def origins_of(handles: Iterable[Handle]) -> dict[Folder, Origin]:
    """Where the weights came from that these models, or the models that they were trained from, began with: by the
    folder of each imported model."""
    waiting, seen, found = [folder_of(one) for one in handles], set[Folder](), {}
    while waiting:
        folder = waiting.pop()
        record = read_record(folder.directory)
        if folder in seen or record is None or record["handle"] not in (Checkpoint.__name__, Report.__name__):
            continue
        seen.add(folder)
        if origin := read_origin(folder.directory):
            found[folder] = origin
        waiting += folder.inputs(record)
    return found


def import_base(cfg: OpenRecipe, inputs: tuple[()], work: Work) -> Outcome:
    """The stage function. Raises ValueError for files that are not what was pinned or that we cannot read."""
    from model.hf.importing import import_model

    fetched = work.directory / FETCHED
    shutil.rmtree(fetched, ignore_errors=True)  # left by a build that was killed
    fetched.mkdir()
    try:
        _fetch(cfg, fetched, work)
        (single, *others) = sorted(fetched.rglob("*.gguf")) or [fetched]
        assert not others  # model_files.py
        with _naming_origin(fetched, cfg.config.origin()):
            imported = import_model(single, work.directory)
        origin = Origin(
            origin=cfg.config.origin(),
            licence=cfg.config.licence or imported.licence,
            files=cfg.config.files,
            bytes=sum(path.stat().st_size for path in fetched.rglob("*") if path.is_file()),
            family=imported.family,
            kind=imported.kind,
            parameters=imported.n_parameters,
            stored=imported.stored,
            has_chat_template=imported.has_chat_template,
            chat_fault=imported.chat_fault,
        )
        if origin.chat_fault is not None:
            log.warning("the chat template of %s cannot be used: %s", origin.origin, origin.chat_fault)
        work.observer.started(work.fingerprint, origin.facts(), inputs)
        for path, name in names_in_folder(cfg.config.files).items():
            if is_licence(path):
                write_bytes(work.directory / name, (fetched / name).read_bytes())
        write_text(work.directory / ORIGIN, json.dumps(asdict(origin), indent=1))
    finally:
        shutil.rmtree(fetched, ignore_errors=True)
    return Outcome(
        rows=0,
        measures={"parameters": origin.parameters, "bytes": origin.bytes},
        content=("model.safetensors", "config.json", "tokenizer/*"),
    )


@contextmanager
def _naming_origin(fetched: Path, origin: str) -> Iterator[None]:
    """Errors name the place that the user knows, instead of a folder that is gone when they are read."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).replace(str(fetched), origin)) from error


def _fetch(cfg: OpenRecipe, folder: Path, work: Work) -> None:
    def progress(done: int, total: int | None) -> None:
        work.progress(done, total, "bytes")

    if not cfg.config.files:
        found = cfg.config.found(cfg.cache, progress)
        if not found:
            raise ValueError(
                f"{cfg.config.origin()} has no model in it, expected config.json with safetensors, or one GGUF file"
            )
        raise ValueError(
            f"[{cfg.config.name}] has no table files, so nothing is imported. Compare these sha256 with those that"
            f" the maker of the model publishes, then add this line to the table: {files_line(found)}"
        )
    cfg.config.gather(folder, cfg.cache, progress)


BASE = Stage(
    name="base", version=2, function=import_base, handle=Checkpoint, libraries=("gguf", "jinja2", "torch")
)  # they dequantise and convert, and Jinja checks the chat template
