"""Shared by the tests of the decoder and its parts: small configs over all switches; and a tiny
tokenizer with token shards that it wrote."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st

from model.cli import main
from model.data.token_shards import DESCRIPTION, write_token_shard
from model.data.tokenizer import load_tokenizer
from model.data.vocabularies import TRAINED_PATTERNS
from model.network.shape import DecoderConfig, RopeScaling
from pipeline.corpus.tokens.tokenizer import train_ranks
from pipeline.corpus.tokens.tokenizer_files import write_tokenizer

SCALINGS = (
    None,
    RopeScaling(kind="linear", factor=4.0),
    RopeScaling(kind="llama3", factor=8.0, original_max_seq_len=16, high_freq_factor=3.0),
)


@st.composite
def _decoder_configs(draw: st.DrawFn) -> DecoderConfig:
    positions = draw(st.sampled_from(["rotary", "learned"]))
    n_kv_heads = draw(st.sampled_from([1, 2, 4]))
    sliding_layers = draw(st.sampled_from([(), (0,), (1,), (0, 1)]))
    return DecoderConfig(
        vocab_size=31,
        n_layers=2,
        n_heads=4,
        n_kv_heads=n_kv_heads,
        d_model=24,
        d_head=draw(st.sampled_from([6, 8])),  # equal to d_model / n_heads, and not
        d_ff=20,
        max_seq_len=24,
        norm=draw(st.sampled_from(["rmsnorm", "layernorm", "layernorm_no_bias"])),
        norm_position=draw(st.sampled_from(["pre", "post"])),
        positions=positions,
        rope_scaling=draw(st.sampled_from(SCALINGS)) if positions == "rotary" else None,
        qk_norm=draw(st.booleans()),
        qkv_bias=draw(st.booleans()),
        output_bias=draw(st.booleans()),
        mlp=draw(st.sampled_from(["swiglu", "geglu", "gelu_tanh", "gelu", "relu2"])),
        mlp_bias=draw(st.booleans()),
        sliding_window=draw(st.integers(1, 12)) if sliding_layers else None,
        sliding_layers=sliding_layers,
        tie_embeddings=draw(st.booleans()),
    )


@pytest.fixture(scope="session")
def decoder_configs() -> st.SearchStrategy[DecoderConfig]:
    """Two layers, every switch in every position; for `data.draw`."""
    return _decoder_configs()


SYLLABLES = ["ka", "lo", "mi", "tu", "re", "sha", "bel", "dor", "fin", "gra", "hup", "jin"]


def prose(seed: int, n_words: int = 60) -> str:
    rng = random.Random(seed)
    return " ".join("".join(rng.choices(SYLLABLES, k=rng.randrange(1, 4))) for _ in range(n_words))


def write_corpus(folder: Path, n_tokens: int = 300, seed: int = 0) -> Path:
    """folder/tokenizer of `n_tokens` tokens, and folder/shards with 20, 6 and 3 documents. Returns folder."""
    ranks = train_ranks([prose(seed * 1000, 2000)], n_tokens - 1, TRAINED_PATTERNS["qwen2"])
    write_tokenizer(folder / "tokenizer", ranks, "qwen2")
    tokenizer = load_tokenizer(folder / "tokenizer")
    for split, n in (("train", 20), ("validation", 6), ("test", 3)):
        (folder / "shards" / split).mkdir(parents=True)
        texts = [prose(seed * 1000 + i, 20 + i) for i in range(n)]
        documents = [np.array([tokenizer.end_of_text, *tokenizer.encode(text)]) for text in texts]
        path, names = folder / "shards" / split / "00000.arrow", [f"{split}-{i}" for i in range(n)]
        write_token_shard(path, names, [len(text.encode()) for text in texts], documents, tokenizer.vocab_size)
    about = {"vocab_size": tokenizer.vocab_size, "end_of_text": tokenizer.end_of_text, "tokenizer": f"digest-{seed}"}
    (folder / "shards" / DESCRIPTION).write_text(json.dumps(about))
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """tokenizer/ and shards/, to read only."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def other_corpus(tmp_path_factory) -> Path:
    """Another corpus with as many tokens in its vocabulary."""
    return write_corpus(tmp_path_factory.mktemp("other_corpus"), seed=7)


TINY = ("n_layers=1", "d_model=16", "n_heads=2", "d_ff=32", "seq_len=16", "rows=4", "n_steps=12", "validate_every=5")
TINY_SETTINGS = tuple(part for setting in (*TINY, "checkpoint_every=5") for part in ("--set", setting))


@pytest.fixture(scope="session")
def tiny_settings() -> tuple[str, ...]:
    """Arguments of `model.cli train` for a training of 12 steps."""
    return TINY_SETTINGS


@pytest.fixture(scope="session")
def trained(corpus, tmp_path_factory) -> Path:
    """A model with its tokenizer, to read only."""
    out = tmp_path_factory.mktemp("trained") / "model"
    assert (
        main(["train", str(corpus / "shards"), str(out), *TINY_SETTINGS, "--tokenizer", str(corpus / "tokenizer")])
        == 0
    )
    return out


@pytest.fixture(scope="session")
def trained_encoder(corpus, tmp_path_factory) -> Path:
    """A masked language model with its tokenizer, to read only."""
    out = tmp_path_factory.mktemp("trained") / "encoder"
    train = ["train", str(corpus / "shards"), str(out), "--family", "bert", "--tokenizer", str(corpus / "tokenizer")]
    assert main([*train, *TINY_SETTINGS]) == 0
    return out
