"""`gristmill export`: writes a trained model as a Hugging Face folder, or as a GGUF file for llama.cpp, or only the
adapters that it was trained with as files of peft.

In: a model by the name of its asset or by its folder (also a checkpoint of a training, or a Hugging Face folder).
Out: the files, listed with their sizes, and the command that opens them. Only an earlier export is replaced.
"""

import json
import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model.data.vocabularies import MASK
from pipeline.store.disk import size_text
from pipeline.store.layout import folder_or_current, layout_from_environment
from pipeline.store.record_file import RECORD, load_record
from pipeline.store.store import handle_of, verify
from pipeline.training.bases import origins_of

if TYPE_CHECKING:
    from model.data.questions import PairLayout
    from model.hf.files import Model
    from model.network.registry import Problem

PROMPT = "Once upon a time"
SPAN = "span_classifier"  # a kind of model for which transformers has no pipeline
TASKS = {  # of transformers' pipelines, by kind of model
    "decoder": "text-generation",
    "encoder": "feature-extraction",
    "masked_lm": "fill-mask",
    "sequence_classifier": "text-classification",
    "token_classifier": "token-classification",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """The model to export."""

    model: "Model"
    kind: str  # as in model/network/registry.py
    labels: tuple[str, ...] | None  # of a classifier
    problem: "Problem"  # whether a text has one label or any number
    tokenizer: Path  # folder
    max_tokens: int  # of a text, with the token that opens it
    truncation_side: str  # of a text that is longer
    pairs: "PairLayout | None" = None  # of a question and a text
    is_ours: bool = True  # whether the folder has our format


def run_export(args: Namespace) -> int:
    if args.format == "hf" and args.out.lower().endswith(".gguf"):
        raise ValueError(f"{args.out} names a GGUF file, and --format hf writes a folder; add --format gguf")
    folder = folder_or_current(layout_from_environment(), args.model)
    if args.format == "peft":
        return export_adapter(folder, Path(args.out).absolute())
    template = None if args.chat_template is None else read_chat_template(Path(args.chat_template))
    source = read_source(folder)
    stops = chat_stops(source, template)
    from model.hf.tokenizer import Feeding, read_exported_tokenizer
    from model.network.registry import BASES

    feeding = Feeding(
        max_tokens=source.max_tokens,
        truncation_side=source.truncation_side,
        padding_side="left" if source.kind == "decoder" else "right",
        is_task=source.kind not in BASES,
        is_repaired=source.kind == "sequence_classifier",
        spells_mask=source.kind == "masked_lm",
        has_types=getattr(source.model.cfg, "n_token_types", 0) > 1,
        pairs=source.pairs,
    )
    tokenizer = read_exported_tokenizer(source.tokenizer, source.model.cfg.vocab_size, template, feeding, stops)
    out = Path(args.out).absolute()
    if args.format == "hf":
        from model.hf.files import write_folder

        files = write_folder(
            out,
            source.model,
            tokenizer=tokenizer,
            labels=source.labels,
            problem=source.problem,
            dtype=args.dtype,
            notes=_notes(folder),
        )
    else:
        from model.hf.gguf import write_gguf
        from model.network.decoder import Decoder

        if not isinstance(source.model, Decoder):
            raise ValueError(f"{folder} contains no decoder, but GGUF is for decoders; export it with --format hf")
        files = [write_gguf(out, source.model, tokenizer, name=out.stem, dtype=args.dtype)]
    print_sizes(files)
    print(f"\nopen it: {_line_that_opens(out, args.format, source)}")
    return 0


def export_adapter(folder: Path, out: Path) -> int:
    """Write the adapters beside a model that was trained with tuning = lora."""
    from model.hf.adapter import write_adapter
    from model.training.adapters import ADAPTER

    verify(folder, whole=True)
    if not (folder / ADAPTER).is_dir():
        raise ValueError(f"{folder} has no folder {ADAPTER}/: it was not trained with tuning = lora; use --format hf")
    print_sizes(write_adapter(out, folder / ADAPTER))
    print("\nopen it: export the base with --format hf, then peft.PeftModel.from_pretrained(base, the folder above)")
    return 0


def print_sizes(files: Sequence[Path]) -> None:
    for file in files:
        print(f"{size_text(file.stat().st_size):>10}  {file}")


def read_source(folder: Path) -> Source:
    """The model in `folder`, in the format of this project or of Hugging Face. Raises ValueError if it is invalid."""
    from model.data.questions import pair_layout
    from model.data.tokenizer import DESCRIPTION_FILE, load_tokenizer
    from model.hf.config import problem_in
    from model.hf.family import DECODER
    from model.hf.files import read_model
    from model.network.registry import kind_of, load_model
    from model.training.files import CONFIG, read_json

    verify(folder, whole=True)
    description = read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
    if not isinstance(description, dict):
        raise ValueError(f"{folder / CONFIG} contains no JSON object; expected the config of a model")
    if "model_type" in description:
        model, labels = read_model(folder)
        longest, side = _limits_of(folder, model.cfg.max_seq_len)
        kind = kind_of(model)
        return Source(
            model=model,
            kind=kind,
            labels=labels,
            problem=problem_in(description),
            tokenizer=folder,
            max_tokens=longest,
            truncation_side="left" if kind == DECODER else side,  # a decoder continues the end of a text
            is_ours=False,
        )
    model, labels = load_model(folder)
    is_checkpoint = folder.parent.name == "checkpoints" and not (folder / "tokenizer").exists()
    tokenizer = (folder.parent.parent if is_checkpoint else folder) / "tokenizer"
    pairs = None
    if (tokenizer / DESCRIPTION_FILE).exists():
        loaded = load_tokenizer(tokenizer)  # checks every line
        pairs = pair_layout(loaded) if description["kind"] == SPAN else None
    context = model.cfg.max_seq_len
    return Source(
        model=model,
        kind=description["kind"],
        labels=labels,
        problem=description.get("problem", "single_label"),
        tokenizer=tokenizer,
        max_tokens=min(description.get("max_tokens", context), context),
        truncation_side="left" if description["kind"] == DECODER else description.get("truncation_side", "right"),
        pairs=pairs,
    )


def _limits_of(folder: Path, context: int) -> tuple[int, str]:
    """model_max_length of a Hugging Face folder, a huge number where nobody set it, and its truncation_side."""
    from model.hf.tokenizer import TOKENIZER_CONFIG_JSON
    from model.training.files import read_json

    path = folder / TOKENIZER_CONFIG_JSON
    config = read_json(path) if path.is_file() else {}
    limits = config if isinstance(config, dict) else {}
    longest, side = limits.get("model_max_length"), limits.get("truncation_side")
    most = min(int(longest), context) if isinstance(longest, int | float) and longest >= 1 else context
    return most, side if side in ("left", "right") else "right"


def read_chat_template(path: Path) -> str:
    """A Jinja template that turns messages into text; it is tested in a sandbox, as transformers runs it."""
    from model.data.chat import NOTHING
    from model.data.chat_sandbox import compiled, written

    try:
        text = path.read_text("utf-8")
        messages = [{"role": "user", "content": PROMPT}]
        found = written(compiled(text), {"messages": messages, "add_generation_prompt": True, **NOTHING})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if PROMPT not in found:
        raise ValueError(f"{path}: not a chat template: it leaves out the message of the user")
    return text


def chat_stops(source: Source, template: str | None) -> tuple[int, ...]:
    """The tokens with which a model ends an answer in `template`, None = that of its tokenizer; none for a model
    without a template, or whose tokenizer we do not run."""
    from model.data.chat import CHAT_TEMPLATE, chat_template
    from model.data.tokenizer import DESCRIPTION_FILE, load_tokenizer

    folder = source.tokenizer
    has_one = template is not None or (folder / CHAT_TEMPLATE).is_file()
    if not has_one or source.kind != "decoder" or not source.is_ours or not (folder / DESCRIPTION_FILE).is_file():
        return ()
    text = (folder / CHAT_TEMPLATE).read_text("utf-8") if template is None else template
    try:
        made = chat_template(load_tokenizer(folder), text)
    except ValueError as error:
        print(f"the exported model may not end its answers: {error}", file=sys.stderr)
        return ()
    return (made.end_of_turn, *sorted(made.stops - {made.end_of_turn}))


def _notes(folder: Path) -> dict[str, str]:
    """The origin of the model, for its model card."""
    if not (folder / RECORD).exists():
        return {}
    made = load_record(folder)
    notes = {"made by": f"{made['stage']} {made['fingerprint']}"}
    for origin in origins_of([handle_of(folder, made)]).values():
        notes |= {f"base: {key}": value for key, value in origin.facts().items()}
    return notes


def _line_that_opens(out: Path, format: str, source: Source) -> str:
    shown = os.path.relpath(out)
    shown = str(out) if shown.startswith("..") else shown
    if format == "gguf":
        return f'llama-cli -m {shlex.quote(shown)} -p "{PROMPT}"'
    if source.kind == SPAN:
        return f"as the README.md of {shlex.quote(shown)} shows: AutoModelForQuestionAnswering"
    task = TASKS[source.kind]
    text = f"{PROMPT} {MASK}" if source.kind == "masked_lm" else PROMPT
    cut = ", truncation=True" if task == "text-classification" else ""
    code = f'from transformers import pipeline; print(pipeline("{task}", {json.dumps(shown)})("{text}"{cut}))'
    return f"python -c {shlex.quote(code)}"
