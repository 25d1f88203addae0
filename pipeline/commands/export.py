"""`gristmill export`: a trained model as a folder of Hugging Face's, or as a GGUF file for llama.cpp.

In: a model by the name of its asset or by its folder (also a checkpoint of a training, or a folder of Hugging
Face's). Out: the files, listed with their sizes, and the line that opens them. Only an earlier export is replaced.
"""

import json
import os
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.store.disk import size_text
from pipeline.store.layout import folder_or_current, layout_from_environment

if TYPE_CHECKING:
    from model.decoder import Decoder
    from model.heads import SequenceClassifier

PROMPT = "Once upon a time"


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A model that is there."""

    model: "Decoder | SequenceClassifier"
    labels: tuple[str, ...] | None  # of a classifier
    tokenizer: Path  # folder


def run_export(args: Namespace) -> int:
    folder = folder_or_current(layout_from_environment(), args.model)
    template = None if args.chat_template is None else read_chat_template(Path(args.chat_template))
    source = read_source(folder)
    from model.hf.tokenizer import read_exported_tokenizer

    tokenizer = read_exported_tokenizer(source.tokenizer, source.model.cfg.vocab_size, template)
    out = Path(args.out).absolute()
    if args.format == "hf":
        from model.hf.files import write_folder

        files = write_folder(
            out, source.model, tokenizer=tokenizer, labels=source.labels, dtype=args.dtype, notes=_notes(folder)
        )
    else:
        from model.decoder import Decoder
        from model.hf.gguf import write_gguf

        if not isinstance(source.model, Decoder):
            raise ValueError(f"{folder} holds a classifier, GGUF files hold decoders; export it with --format hf")
        files = [write_gguf(out, source.model, tokenizer, name=out.stem, dtype=args.dtype)]
    for file in files:
        print(f"{size_text(file.stat().st_size):>10}  {file}")
    print(f"\nopen it: {_line_that_opens(out, args.format, source.labels is None)}")
    return 0


def read_source(folder: Path) -> Source:
    """The model in `folder`, which is ours or Hugging Face's. ValueError says what is wrong with it."""
    from model.checkpoint import CONFIG, load_classifier, load_decoder, read_json
    from model.hf.files import read_classifier, read_folder
    from model.tokenizer import DESCRIPTION_FILE, load_tokenizer

    description = read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
    if not isinstance(description, dict):
        raise ValueError(f"{folder / CONFIG} holds no object; expected the config of a model")
    if "model_type" in description:
        names = description.get("architectures") or [""]
        if str(names[0]).endswith("ForSequenceClassification"):
            model, labels = read_classifier(folder)
            return Source(model=model, labels=labels, tokenizer=folder)
        return Source(model=read_folder(folder), labels=None, tokenizer=folder)
    if description.get("kind") == "sequence_classifier":
        model, labels = load_classifier(folder)
    else:
        model, labels = load_decoder(folder), None
    is_checkpoint = folder.parent.name == "checkpoints" and not (folder / "tokenizer").exists()
    tokenizer = (folder.parent.parent if is_checkpoint else folder) / "tokenizer"
    if (tokenizer / DESCRIPTION_FILE).exists():
        load_tokenizer(tokenizer)  # checks every line
    return Source(model=model, labels=labels, tokenizer=tokenizer)


def read_chat_template(path: Path) -> str:
    """A Jinja template that makes text of messages, tried on one in a sandbox, as those who open the export do."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    text = path.read_text("utf-8")
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    try:
        written = environment.from_string(text).render(
            messages=[{"role": "user", "content": PROMPT}], add_generation_prompt=True, bos_token="", eos_token=""
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a chat template ({type(error).__name__}: {error})") from error
    if PROMPT not in written:
        raise ValueError(f"{path}: not a chat template, it leaves out what the user says")
    return text


def _notes(folder: Path) -> dict[str, str]:
    """What the model card says of where the model comes from."""
    record = folder / "record.json"
    if not record.exists():
        return {}
    made = json.loads(record.read_text())
    return {"made by": f"{made['stage']} {made['fingerprint']}"}


def _line_that_opens(out: Path, kind: str, is_decoder: bool) -> str:
    shown = os.path.relpath(out)
    shown = str(out) if shown.startswith("..") else shown
    if kind == "gguf":
        return f'llama-cli -m {shown} -p "{PROMPT}"'
    task = "text-generation" if is_decoder else "text-classification"
    return f'python -c \'from transformers import pipeline; print(pipeline("{task}", "{shown}")("{PROMPT}"))\''
