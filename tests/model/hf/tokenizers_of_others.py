"""Small tokenizers of every kind, trained here and saved as their publishers save theirs."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from model.data.tokenizer_json import PATTERNS

ALPHABET = pre_tokenizers.ByteLevel.alphabet()
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS = [
    *(
        "the",
        "mill",
        "grinds",
        "12",
        "tons",
        "1999",
        "We'll",
        "DON'T",
        "it's",
        "na\u00efve",
        "caf\u00e9",
        "stra\u00dfe",
    ),
    *("\u041c\u043e\u0441\u043a\u0432\u0430", "\u4e2d\u6587", "\u65e5\u672c\u8a9e", "\ud55c\uad6d\uc5b4"),
    *("\u0627\u0644\u0639\u0631\u0628\u064a\u0629", "\u0939\u093f\u0928\u094d\u0926\u0940", "\u0e44\u0e17\u0e22"),
    *(
        "3.14e-10",
        "foo_bar",
        "fooBar",
        "http://x.org/?a=b&c=d",
        "!!!",
        "---",
        "...",
        "\u00bd",
        "\u00b2",
        "\u2167",
        "\ufb01",
    ),
    *("\u01c5", "\U0001f469\u200d\U0001f469\u200d\U0001f467", "e\u0301", "a\u0308\u0323"),
]
SCRIPTS = (
    (0x20, 0x7E),
    (0xA0, 0x24F),
    (0x300, 0x36F),
    (0x370, 0x52F),
    (0x5D0, 0x6D3),
    (0x900, 0x97F),
    (0xE01, 0xE3A),
)
MORE_SCRIPTS = (
    (0x3040, 0x30FF),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3),
    (0x1F300, 0x1F64F),
    (0x2000, 0x206F),
    (0x00, 0x1F),
)


def mixed_texts(n_texts: int, seed: int) -> Iterator[str]:
    """Words of many scripts and characters at random, with runs of white space and digits."""
    rng = random.Random(seed)
    for _ in range(n_texts):
        parts = []
        for _ in range(rng.randrange(1, 40)):
            first, last = rng.choice((*SCRIPTS, *MORE_SCRIPTS))
            odd = "".join(chr(rng.randint(first, last)) for _ in range(rng.randrange(1, 6)))
            gap = rng.choice((" ", " ", " ", "  ", "\n", "\n\n", "\t", "\r\n", "   ", "", "\u3000", "\u00a0"))
            parts.append(rng.choice((rng.choice(WORDS), rng.choice(WORDS), odd, str(rng.randrange(10**6)))) + gap)
        yield "".join(parts)


def real_documents(n_documents: int) -> list[str]:
    """Pieces of about 1,000 characters of the sources of Python's own library."""
    found: list[str] = []
    for path in sorted(Path(random.__file__).parent.rglob("*.py")):
        text = path.read_text("utf-8", "replace")
        found += [text[i : i + 1000] for i in range(0, len(text), 1000)]
        if len(found) >= n_documents:
            break
    return found[:n_documents]


def byte_level(split: str | None, *, digits: bool = False) -> pre_tokenizers.PreTokenizer:
    own = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    first = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    if split is not None:
        first = [pre_tokenizers.Split(Regex(PATTERNS[split].replace("{1,3}+", "{1,3}")), "isolated")]
    return pre_tokenizers.Sequence([*first, own]) if first else own


def byte_pairs(split: str | None, alphabet: list[str] = ALPHABET, *, digits: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = byte_level(split, digits=digits)
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=CONTROL, initial_alphabet=alphabet, show_progress=False, min_frequency=2
    )
    tokenizer.train_from_iterator(mixed_texts(200, 1), trainer)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def gpt2() -> Tokenizer:
    return byte_pairs(None)


def smollm() -> Tokenizer:
    """Without some bytes, as the vocabulary of SmolLM2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = byte_level(None, digits=True)
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=CONTROL, show_progress=False, min_frequency=2)
    tokenizer.train_from_iterator(mixed_texts(60, 1), trainer)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def qwen2() -> Tokenizer:
    """Composes characters first, and finds two tokens in texts that are not special."""
    tokenizer = byte_pairs("qwen2")
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("<tool_call>x", normalized=False)])
    return tokenizer


def llama3() -> Tokenizer:
    """Takes a word that is a token as it is, also one that no merge makes, and opens texts."""
    content = json.loads(byte_pairs("llama3").to_str())
    vocabulary = content["model"]["vocab"]
    vocabulary |= {"zebra": len(vocabulary), "\u0120quux": len(vocabulary) + 1}
    content["model"]["ignore_merges"] = True
    tokenizer = Tokenizer.from_str(json.dumps(content))
    opened = processors.TemplateProcessing(
        single="<|endoftext|> $A", pair="<|endoftext|> $A $B", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(), opened])
    return tokenizer


def o200k() -> Tokenizer:
    return byte_pairs("o200k_base")


def tekken() -> Tokenizer:
    return byte_pairs("tekken")


def unmerged() -> Tokenizer:
    """A token that no merge makes, which `tokenizers` never gives, and a pair of tokens that are not a third one."""
    content = json.loads(byte_pairs(None).to_str())
    content["model"]["vocab"] |= {"zebra": len(content["model"]["vocab"])}
    return Tokenizer.from_str(json.dumps(content))


def prefixed() -> Tokenizer:
    """Adds a space before a text, as some files of RoBERTa."""
    tokenizer = byte_pairs(None)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def bert() -> Tokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(
        real_documents(50), trainers.WordPieceTrainer(vocab_size=900, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.enable_truncation(8)  # as in the file of all-MiniLM-L6-v2, which cuts ids silently
    tokenizer.enable_padding(length=8, pad_id=0, pad_token="[PAD]")
    return tokenizer


def t5() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=600,
        special_tokens=special,
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 9 + real_documents(50), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def llama2() -> Tokenizer:
    """Pairs of characters, and bytes for those that are none of them."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, limit_alphabet=100, show_progress=False, max_token_length=8
    )
    tokenizer.train_from_iterator(mixed_texts(100, 1), trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = content["added_tokens"][:3]  # the bytes are ordinary tokens
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


GPT_ROLES = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
BERT_ROLES = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
T5_ROLES = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
LLAMA_ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
OTHERS: dict[
    str, tuple[Callable[[], Tokenizer], dict[str, str], str]
] = {  # name -> tokenizer, its config, our engine
    "gpt2": (gpt2, GPT_ROLES, "tiktoken"),
    "smollm": (smollm, GPT_ROLES, "tiktoken"),
    "qwen2": (qwen2, GPT_ROLES, "tiktoken"),
    "llama3": (llama3, GPT_ROLES, "tiktoken"),
    "o200k": (o200k, GPT_ROLES, "tiktoken"),
    "tekken": (tekken, GPT_ROLES, "tiktoken"),
    "unmerged": (unmerged, GPT_ROLES, "tiktoken"),
    "prefixed": (prefixed, GPT_ROLES, "tokenizers"),
    "bert": (bert, BERT_ROLES, "tokenizers"),
    "t5": (t5, T5_ROLES, "tokenizers"),
    "llama2": (llama2, LLAMA_ROLES, "tokenizers"),
}


def save(name: str, folder: Path) -> Path:
    """The folder of a tokenizer, as transformers saves one."""
    make, roles, _ = OTHERS[name]
    folder.mkdir(parents=True, exist_ok=True)
    make().save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **roles}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
