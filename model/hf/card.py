"""The model card of an exported folder: a table of the model's sizes, and the lines of Python that open it.

In: the model, its config.json and its tokenizer. Out: the text of README.md, with the header that model hubs read.
"""

from collections.abc import Mapping
from typing import Any

from model.hf.tokenizer import ExportedTokenizer
from model.network.decoder import Decoder
from model.network.heads import SequenceClassifier

OPEN_DECODER = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH")
model = AutoModelForCausalLM.from_pretrained("PATH")
ids = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=50)[0]))"""
OPEN_CLASSIFIER = """\
from transformers import pipeline

print(pipeline("text-classification", "PATH")("a text", truncation=True))"""


def model_card(
    model: Decoder | SequenceClassifier,
    config: Mapping[str, Any],
    tokenizer: ExportedTokenizer | None,
    notes: Mapping[str, str],
) -> str:
    """Text of README.md. `notes` are further lines of its table."""
    cfg, is_decoder = model.cfg, isinstance(model, Decoder)
    lines = {
        "architecture": config["architectures"][0],
        "parameters": f"{sum(weight.numel() for weight in model.parameters()):,}",
        "layers": f"{cfg.n_layers}, width {cfg.d_model}, {cfg.n_heads} heads ({cfg.n_kv_heads} of keys and values)",
        "context": f"{cfg.max_seq_len:,} tokens",
        "vocabulary": f"{cfg.vocab_size:,} tokens" + _tokenizer_text(tokenizer),
        "weights": config["torch_dtype"],
        **({} if is_decoder else {"labels": ", ".join(config["id2label"].values())}),
        **notes,
    }
    task = "text-generation" if is_decoder else "text-classification"
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in lines.items())
    title = f"A {config['model_type']} {'language model' if is_decoder else 'text classifier'}"
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: {task}\n---\n\n# {title}\n\n"
        f"Trained and exported by gristmill.\n\n| | |\n|---|---|\n{table}\n\n"
        f"```python\n{OPEN_DECODER if is_decoder else OPEN_CLASSIFIER}\n```\n"
    )


def _tokenizer_text(tokenizer: ExportedTokenizer | None) -> str:
    if tokenizer is None:
        return "; no tokenizer is in this folder"
    pattern = "" if tokenizer.pattern_name is None else f", split as {tokenizer.pattern_name} does"
    opening = "; every text opens with the end-of-text token" if tokenizer.opens_with_bos else ""
    return f", byte-level BPE{pattern}{opening}"


def _cell(value: str) -> str:
    return " ".join(str(value).replace("|", "\\|").split())
