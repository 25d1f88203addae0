"""Conversations and chat templates of many kinds, and tokenizers for them."""

import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from model.data.chat import Conversation, Message
from model.data.chat_templates import TEMPLATES
from model.data.tokenizer import Tokenizer
from model.hf.tokenizer import read_exported_tokenizer
from model.hf.tokenizer_import import import_tokenizer
from tests.model.hf.tokenizers_of_others import mixed_texts, save

VOCAB_SIZE = 1200
LLAMA3_TOKENS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|begin_of_text|>"]
PLAIN = (
    "What does a mill do?",
    "It grinds 1,234 grains.\n\n- wheat\n- rye",
    "def f(x):\n\treturn x  # code",
    "Gr\u00fc\u00dfe, \u4f60\u597d \U0001f642 e\u0301",
    '{"a": [1, 2]} <b>&amp;</b> {{ x }} {% y %}',
    "don't",
    "9",
)
SPACED = (" in front", "behind \n", "\n\nboth\t", "  ", "", "\u3000wide")
DEFAULT_SYSTEM = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a mill.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TRIMS = (  # writes bos, refuses system messages, and has a name of its own for the assistant
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system message') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<|im_start|>' + role + '\\n' + m.content | trim + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>model\\n' }}{% endif %}"
)
INST = (  # a system message is a part of the first question
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content + '\\n\\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}{{ bos_token }}"
    "{% for m in rest %}{% if m.role == 'user' %}{{ '[INST] ' + (system if loop.first else '') + m.content }} [/INST]"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
COLONS = (  # the prompt ends before the space that precedes an answer
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ 'ASSISTANT: ' + m.content + eos_token }}"
    "{% else %}{{ m.role | upper + ': ' + m.content + ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
THINKS = (  # writes an empty thought before the last answer alone
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
JINJA = {
    **TEMPLATES,
    "default system": DEFAULT_SYSTEM,
    "trims": TRIMS,
    "inst": INST,
    "colons": COLONS,
    "thinks": THINKS,
}
PAIRS = (  # tokenizer and template
    ("smollm", "chatml"),
    ("llama3", "llama3"),
    ("llama2", "alpaca"),
    ("qwen2", "default system"),
    ("gpt2", "trims"),
    ("llama2", "inst"),
    ("o200k", "colons"),
    ("qwen2", "thinks"),
    ("prefixed", "chatml"),
)


def imported(name: str, folder: Path) -> Tokenizer:
    """The tokenizer in folder/out, with the special tokens of Llama 3 if it is called so."""
    source = save(name, folder / "source")
    if name == "llama3":
        from tokenizers import Tokenizer as Library

        library = Library.from_file(str(source / "tokenizer.json"))
        library.add_special_tokens(LLAMA3_TOKENS)
        library.save(str(source / "tokenizer.json"))
    return import_tokenizer(source, folder / "out", VOCAB_SIZE)


def exported(folder: Path, template: str):
    """transformers' tokenizer of the files that an export of the tokenizer in `folder` has."""
    from transformers import AutoTokenizer

    out = folder / "export"
    out.mkdir(exist_ok=True)
    for name, content in read_exported_tokenizer(folder / "out", VOCAB_SIZE, template).files.items():
        (out / name).write_text(content, "utf-8")
    return AutoTokenizer.from_pretrained(out)


def conversations(
    n: int, seed: int, *, has_system: bool = True, spaced: Sequence[str] = SPACED
) -> list[Conversation]:
    rng = random.Random(seed)
    texts = [*mixed_texts(4 * n, seed), *PLAIN * n, *spaced * n]
    found = []
    for _ in range(n):
        roles = ["system"] * (has_system and rng.random() < 0.4) + ["user", "assistant"] * rng.randint(1, 4)
        found.append([Message(role, rng.choice(texts)) for role in roles])
    return found


def as_dicts(conversation: Conversation) -> list[dict[str, str]]:
    return [asdict(message) for message in conversation]
