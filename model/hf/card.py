"""The model card of an exported folder: a table of the model's sizes, and the lines of Python that open it.

In: the model, its config.json and its tokenizer. Out: the text of README.md, with the header that model hubs read.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from model.hf.tokenizer import ExportedTokenizer
from model.network.registry import Config, kind_of

OPEN_DECODER = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH")
model = AutoModelForCausalLM.from_pretrained("PATH")
ids = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=50)[0]))"""
OPEN_PIPELINE = """\
from transformers import pipeline

print(pipeline("{task}", "PATH")({text}))"""
OPEN_ENCODER = """\
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH")
print(AutoModel.from_pretrained("PATH")(**tokenizer("a text", return_tensors="pt")).last_hidden_state)"""
OPEN_SPAN = """\
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH")
given = tokenizer("a question", "a text", truncation="only_second", return_tensors="pt")
with torch.no_grad():
    found = AutoModelForQuestionAnswering.from_pretrained("PATH")(**given)
start, end = int(found.start_logits.argmax()), int(found.end_logits.argmax())
print(tokenizer.decode(given["input_ids"][0, start : end + 1]))"""
# Kind of model -> its task on model hubs, what it is, the lines that open it.
ABOUT = {
    "decoder": ("text-generation", "language model", OPEN_DECODER),
    "encoder": ("feature-extraction", "encoder", OPEN_ENCODER),
    "masked_lm": ("fill-mask", "masked language model", OPEN_PIPELINE.format(task="fill-mask", text='"a MASK"')),
    "sequence_classifier": (
        "text-classification",
        "text classifier",
        OPEN_PIPELINE.format(task="text-classification", text='"a text", truncation=True'),
    ),
    "token_classifier": (
        "token-classification",
        "classifier of tokens",
        OPEN_PIPELINE.format(task="token-classification", text='"a text", aggregation_strategy="first"'),
    ),
    "span_classifier": ("question-answering", "model that finds answers in a text", OPEN_SPAN),
}


def model_card(
    model: nn.Module,
    config: Mapping[str, Any],
    tokenizer: ExportedTokenizer | None,
    notes: Mapping[str, str],
) -> str:
    """Text of README.md. `notes` are further lines of its table."""
    cfg: Config = model.cfg  # type: ignore[assignment]
    task, title, lines_of_python = ABOUT[kind_of(model)]
    lines = {
        "architecture": config["architectures"][0],
        "parameters": f"{sum(weight.numel() for weight in model.parameters()):,}",
        "layers": f"{cfg.n_layers}, width {cfg.d_model}, {cfg.n_heads} heads ({cfg.n_kv_heads} of keys and values)",
        "context": f"{cfg.max_seq_len:,} tokens",
        "vocabulary": f"{cfg.vocab_size:,} tokens" + _tokenizer_text(tokenizer),
        "weights": config["torch_dtype"],
        **({"labels": ", ".join(config["id2label"].values())} if "id2label" in config else {}),
        **notes,
    }
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in lines.items())
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: {task}\n---\n\n# A {config['model_type']} {title}\n\n"
        f"Trained and exported by gristmill.\n\n| | |\n|---|---|\n{table}\n\n"
        f"```python\n{lines_of_python}\n```\n"
    )


def _tokenizer_text(tokenizer: ExportedTokenizer | None) -> str:
    if tokenizer is None:
        return "; no tokenizer is in this folder"
    pattern = "" if tokenizer.pattern_name is None else f", split as {tokenizer.pattern_name} does"
    opening = "; every text opens with the end-of-text token" if tokenizer.opens_with_bos else ""
    return f", byte-level BPE{pattern}{opening}"


def _cell(value: str) -> str:
    return " ".join(str(value).replace("|", "\\|").split())
