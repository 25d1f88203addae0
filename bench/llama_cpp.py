"""Are exported GGUF files what they should be? llama.cpp, which shares no code with ours, opens and runs them.

    python -m bench.llama_cpp                                 random decoders of every architecture
    python -m bench.llama_cpp --model data/store/.../ab12     a trained model and its tokenizer as well

For each file: the largest difference of the logits as a share of the largest logit, whether greedy text is equal, and
whether texts become the same tokens. llama-cpp-python is no dependency: install it (pip builds it from source, ten
minutes and more), or the script says so and ends. Its keys and values are float32 here, as ours are; in
gpt2 the difference is larger, perhaps by its GELU, which we did not isolate.
"""

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.data.tokenizer import Tokenizer, load_tokenizer
from model.generation.generate import generate
from model.generation.sample_config import SampleConfig
from model.hf.gguf import write_gguf
from model.hf.tokenizer import ExportedTokenizer, read_exported_tokenizer
from model.network.decoder import Decoder
from model.network.registry import load_decoder
from model.network.shape import DecoderConfig, RopeScaling
from pipeline.corpus.tokens.tokenizer_files import write_tokenizer

CONTEXT, PROMPT, N_NEW, SEED = 128, 12, 40, 1
TEXTS = (
    "Once upon a time there was a mill.",
    "  two  spaces, a tab\tand\n\nlines ",
    "Numbers 1234567 and don't, I'LL.",
    "Grüße, 你好 and 🙂 <|endoftext|> spelled out",
)
PAIRS = (b"th", b"he", b" t", b"in", b"er", b" a", b"on", b" th", b"ing", b" the")
SHAPE = {
    "n_layers": 3,
    "n_heads": 4,
    "n_kv_heads": 2,
    "d_model": 64,
    "d_head": 16,
    "d_ff": 96,
    "max_seq_len": CONTEXT,
}
LLAMA = {"qk_norm": False}
BIASES = {"qkv_bias": True, "output_bias": True, "mlp_bias": True}
LLAMA3 = RopeScaling(kind="llama3", factor=8.0, original_max_seq_len=32)
RANDOM: dict[str, dict[str, Any]] = {
    "gpt2": {
        **LLAMA,
        **BIASES,
        "n_kv_heads": 4,
        "norm": "layernorm",
        "norm_eps": 1e-5,
        "positions": "learned",
        "mlp": "gelu_tanh",
        "tie_embeddings": True,
    },
    "llama": LLAMA,
    "llama, llama3 scaling, tied": {**LLAMA, "rope_scaling": LLAMA3, "tie_embeddings": True},
    "llama, biases": {**LLAMA, **BIASES},
    "llama, linear scaling": {**LLAMA, "rope_scaling": RopeScaling(kind="linear", factor=4.0)},
    "qwen3": {"d_head": 32},
    "qwen2": {**LLAMA, "qkv_bias": True},
    "arcee": {**LLAMA, "mlp": "relu2"},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--model", type=Path, help="folder of a trained decoder with its tokenizer/")
    args = parser.parse_args()
    if importlib.util.find_spec("llama_cpp") is None:
        print("llama-cpp-python is not installed: nothing was compared")
        return 0
    torch.set_num_threads(1)
    print(f"{'model':34} {'dtype':9} {'logits differ by':>17} {'greedy tokens equal':>20} {'tokens of texts':>16}")
    with tempfile.TemporaryDirectory() as folder:
        for name, decoder, tokenizer, exported in contestants(Path(folder), args.model):
            for dtype in ("float32", "float16", "bfloat16") if "demo" in name or name == "qwen3" else ("float32",):
                path = write_gguf(Path(folder) / "model.gguf", decoder, exported, name=name, dtype=dtype)
                print(f"{name:34} {dtype:9} {compare(path, decoder, tokenizer)}", flush=True)
    return 0


def contestants(folder: Path, model: Path | None) -> Iterator[tuple[str, Decoder, Tokenizer, ExportedTokenizer]]:
    """Name, decoder, and its tokenizer to run and to export."""
    ranks = {token: i for i, token in enumerate([*(bytes([i]) for i in range(256)), *PAIRS])}
    write_tokenizer(folder / "tokenizer", ranks, "qwen2")
    tokenizer = load_tokenizer(folder / "tokenizer")
    exported = read_exported_tokenizer(folder / "tokenizer", tokenizer.vocab_size)
    for name, switches in RANDOM.items():
        yield name, random_decoder(DecoderConfig(vocab_size=267, **{**SHAPE, **switches})), tokenizer, exported
    if model is not None:
        decoder = load_decoder(model)
        tokenizer = load_tokenizer(model / "tokenizer")
        yield "demo", decoder, tokenizer, read_exported_tokenizer(model / "tokenizer", decoder.cfg.vocab_size)


@torch.no_grad()
def random_decoder(cfg: DecoderConfig) -> Decoder:
    """Large weights, norms that are not 1 and biases that are not 0: nothing that goes wrong hides."""
    generator, decoder = torch.Generator().manual_seed(SEED), Decoder(cfg)
    for name, weight in decoder.named_parameters():
        weight.normal_(std=0.2, generator=generator)
        if weight.ndim == 1 and name.endswith("weight"):
            weight.add_(1.0)
    return decoder.eval()


@torch.no_grad()
def compare(path: Path, decoder: Decoder, tokenizer: Tokenizer) -> str:
    import llama_cpp

    length = min(CONTEXT, decoder.cfg.max_seq_len)
    opened = llama_cpp.Llama(
        str(path), n_ctx=length, logits_all=True, n_threads=1, n_threads_batch=1, verbose=False,
        type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32,
    )  # fmt: skip
    ids = np.random.default_rng(SEED).integers(0, decoder.cfg.vocab_size, length).tolist()
    opened.eval(ids)
    theirs_TV = torch.from_numpy(opened.scores[:length].copy())
    ours_TV = decoder(torch.tensor([ids]))[0]
    share = ((ours_TV - theirs_TV).abs().max() / ours_TV.abs().max()).item()
    prompt = [tokenizer.end_of_text, *tokenizer.encode(TEXTS[0])][:PROMPT]
    (ours,) = generate(decoder, [prompt], SampleConfig(max_new_tokens=N_NEW, temperature=0, top_k=None))
    n_equal = next((i for i, (a, b) in enumerate(zip(ours, greedy(opened, prompt), strict=True)) if a != b), N_NEW)
    n_same = sum(
        opened.tokenize(text.encode(), add_bos=True, special=False)
        == [tokenizer.end_of_text, *tokenizer.encode(text)]
        for text in TEXTS
    )
    opened.close()
    return f"{share:17.1e} {n_equal:>14} of {N_NEW} {n_same:>11} of {len(TEXTS)}"


def greedy(opened: Any, prompt: list[int]) -> list[int]:
    opened.reset()
    opened.eval(prompt)
    found: list[int] = []
    for _ in range(N_NEW):
        found.append(int(opened.scores[opened.n_tokens - 1].argmax()))
        opened.eval(found[-1:])
    return found


if __name__ == "__main__":
    sys.exit(main())
