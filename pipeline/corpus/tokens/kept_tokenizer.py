"""Reuses the tokenizer after `gristmill forget` removed pages from the corpus, so that not every model is retrained.

In: a small JSON file that names a finished output of the stage `tokenizer`. Out: that output, as long as the recipe
(stage, version, libraries, settings) is the one it was made with. Nothing is copied: outputs never change, and only
the asset returns an earlier one.
"""

import json
import logging
from pathlib import Path

from pipeline.store.records import TokenizerFile
from pipeline.store.shards import write_text
from pipeline.store.store import Built, Config, Stage, handle_of, read_record, recipe_of, recipe_text

log = logging.getLogger(__name__)


def keep_tokenizer(path: Path, store: Path, handle: TokenizerFile) -> None:
    """Keep `handle`, an output in `store`, as the tokenizer however the corpus changes."""
    write_text(path, json.dumps({"folder": handle.directory.relative_to(store).as_posix()}) + "\n")


def release_tokenizer(path: Path) -> bool:
    """Let the tokenizer depend on the corpus again. Returns whether one was kept."""
    kept = path.exists()
    path.unlink(missing_ok=True)
    return kept


def kept_tokenizer(path: Path, store: Path, stage: Stage, cfg: Config) -> Built | None:
    """The kept output, or None if none is kept or it was made by another recipe.

    Raises ValueError if `path` does not name a finished tokenizer, CorruptShard if its files are damaged.
    """
    if not path.exists():
        return None
    directory = _folder(path, store)
    record = read_record(directory) if directory.is_dir() else None
    if record is None or record["handle"] != TokenizerFile.__name__:
        raise ValueError(
            f"{path} keeps the tokenizer in {directory}, where there is none; delete {path.name} to have a new one"
            " trained, which rebuilds every model"
        )
    made_by = recipe_text(record["stage"], record["version"], record["libraries"], record["config"])
    if made_by != recipe_of(stage, cfg):
        log.warning("%s keeps a tokenizer that was made with other settings or versions, so a new one is built", path)
        return None
    measures = record["measures"] | {
        "kept": 1
    }  # shown with its materialisation, as the reason why the corpus had no effect
    return Built(handle=handle_of(directory, record), unchanged=True, record=record | {"measures": measures})


def _folder(path: Path, store: Path) -> Path:
    try:
        folder = json.loads(path.read_text("utf-8"))["folder"]
        directory = (store / folder).resolve()
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path} is not of the form {{"folder": "tokenizer/..."}} ({error!r}); delete it to have a new tokenizer'
            " trained"
        ) from error
    if not directory.is_relative_to(store.resolve()):
        raise ValueError(f"{path} names {folder!r}, which leads out of {store}; delete it to have one trained")
    return directory
