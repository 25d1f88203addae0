"""Are conversations the same token ids here, in transformers and in llama.cpp? On exports of one model, per template.

    python -m bench.chat_templates --model DIR          a decoder of ours with its tokenizer/

Each template is exported with the model's tokenizer, as a Hugging Face folder and as a GGUF file, and 200 generated
conversations are written by all three: with texts as people write them, and with white space at the ends of messages,
where ours differ on purpose if an answer would merge with what comes before it. The last lines ask the exported model
for answers: it has to stop by itself. llama.cpp comes with the package xllamacpp, which is no dependency; without it
only transformers is compared. torch has one thread.
"""

import argparse
import importlib.util
import json
import random
import sys
import tempfile
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from model.data.chat import CHAT_TEMPLATE, ChatTemplate, Conversation, Message, load_chat_template
from model.data.chat_templates import TEMPLATES
from model.data.tokenizer import TOKENIZER, load_tokenizer
from model.generation.generate import generate
from model.generation.sample_config import SampleConfig
from model.hf.files import write_folder
from model.hf.gguf import write_gguf
from model.hf.tokenizer import Feeding, read_exported_tokenizer
from model.network.decoder import Decoder, new_decoder
from model.network.registry import load_decoder
from model.network.shape import DecoderConfig

N_CONVERSATIONS, SEED, MOST_NEW = 200, 1, 64
GREEDY = SampleConfig(max_new_tokens=MOST_NEW, temperature=0, top_k=None)
SHAPE = {"n_layers": 1, "n_heads": 2, "n_kv_heads": 2, "d_model": 64, "d_head": 32, "d_ff": 64, "max_seq_len": 4096}
TEXTS = (
    "What does a mill do?",
    "It grinds 1,234 grains, doesn't it?\n\n- wheat\n- rye",
    "def f(x):\n\treturn x  # code\n\n    pass",
    "Gr\u00fc\u00dfe, \u4f60\u597d \U0001f642 e\u0301 \u041c\u043e\u0441\u043a\u0432\u0430",
    '{"a": [1, 2], "b": null} <b>&amp;</b> {{ x }} {% y %} <tool_call>',
    "3.14159e-10 2026-12-01 0x7F",
    "http://example.org/?q=a%20b&c=d",
)
SPACED = ("  in front", "behind \n", "\n\nboth\t ", "\u3000wide")
QUESTIONS = ("What is the capital of France? Answer in one sentence.", "Say hello.", "Name a fruit.")


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of a decoder with its tokenizer/")
    model = parser.parse_args().model
    torch.set_num_threads(1)
    print(f"{'template':10} {'texts':8} {'tool':13} {'prompts equal':>14} {'conversations equal':>20}")
    tokenizer = load_tokenizer(model / TOKENIZER)
    tiny = new_decoder(DecoderConfig(vocab_size=tokenizer.vocab_size, **SHAPE, qk_norm=False), seed=0)
    for name in ("auto", *TEMPLATES):
        try:
            template = load_chat_template(tokenizer, model / TOKENIZER, name)
        except ValueError as error:
            print(f"{name:10} does not fit the tokenizer: {str(error)[:80]} ...")
            continue
        with tempfile.TemporaryDirectory() as folder:
            exports = export(Path(folder), tiny, model / TOKENIZER, template)
            compare(name, template, *exports)
    answers(model)
    return 0


def conversations(texts: Sequence[str]) -> list[Conversation]:
    rng, found = random.Random(SEED), []
    for _ in range(N_CONVERSATIONS):
        roles = ["system"] * (rng.random() < 0.4) + ["user", "assistant"] * rng.randint(1, 4)
        found.append([Message(role, " ".join(rng.choices(texts, k=rng.randint(1, 3)))) for role in roles])
    return found


def export(folder: Path, decoder: Decoder, tokenizer: Path, template: ChatTemplate) -> tuple[Path, Path]:
    """A Hugging Face folder and a GGUF file, as `gristmill export` writes them."""
    context = decoder.cfg.max_seq_len
    feeding = Feeding(max_tokens=context, truncation_side="left", padding_side="left", is_task=False)
    stops = (template.end_of_turn, *sorted(template.stops - {template.end_of_turn}))
    exported = read_exported_tokenizer(tokenizer, decoder.cfg.vocab_size, template.source, feeding, stops)
    write_folder(folder / "hf", decoder, tokenizer=exported)
    return folder / "hf", write_gguf(folder / "model.gguf", decoder, exported, name="chat", dtype="bfloat16")


def compare(name: str, template: ChatTemplate, hf: Path, gguf: Path) -> None:
    from transformers import AutoTokenizer

    theirs, server = AutoTokenizer.from_pretrained(hf), Server(gguf) if has_llama_cpp() else None
    for kind, texts in (("plain", TEXTS), ("spaced", TEXTS + SPACED)):
        chats = conversations(texts)
        prompts = [template.prompt(chat[:-1]) for chat in chats]
        dicts = [[asdict(message) for message in chat] for chat in chats]
        same = [
            list(theirs.apply_chat_template(one[:-1], add_generation_prompt=True, return_dict=False)) == prompt
            for one, prompt in zip(dicts, prompts, strict=True)
        ]
        whole = [
            list(theirs.apply_chat_template(one, return_dict=False)) == rendered.ids.tolist()
            for one, rendered in zip(dicts, template.rendered(chats), strict=True)
        ]
        print(f"{name:10} {kind:8} {'transformers':13} {share(same):>14} {share(whole):>20}", flush=True)
        if server is not None:  # which writes prompts alone
            same = [server.prompt(one[:-1]) == prompt for one, prompt in zip(dicts, prompts, strict=True)]
            print(f"{name:10} {kind:8} {'llama.cpp':13} {share(same):>14} {'-':>20}", flush=True)


def share(same: Sequence[bool]) -> str:
    return f"{sum(same)} of {len(same)}"


def has_llama_cpp() -> bool:
    return importlib.util.find_spec("xllamacpp") is not None


class Server:
    """llama.cpp's own server, on an address of this machine, for as long as the object exists."""

    def __init__(self, gguf: Path) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel, params.port = str(gguf), 512, 1, 0
        params.warmup, params.use_jinja, params.verbosity, params.cpuparams.n_threads = False, True, 0, 1
        self.server = xllamacpp.Server(params)

    def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.server.listening_address + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request) as reply:
            return json.loads(reply.read())

    def prompt(self, messages: list[dict[str, str]]) -> list[int]:
        text = self.ask("/apply-template", {"messages": messages})["prompt"]
        return self.ask("/tokenize", {"content": text, "add_special": False, "parse_special": True})["tokens"]


def answers(model: Path) -> None:
    """Greedy answers of the model itself, and of its exports by their own defaults of when to stop."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    decoder, tokenizer = load_decoder(model), load_tokenizer(model / TOKENIZER)
    if not (model / TOKENIZER / CHAT_TEMPLATE).is_file():
        return
    template = load_chat_template(tokenizer, model / TOKENIZER)
    print(f"\n{'question':56} {'ours':>18} {'transformers':>18} {'llama.cpp':>18}")
    with tempfile.TemporaryDirectory() as folder:
        hf, gguf = export(Path(folder), decoder, model / TOKENIZER, template)
        theirs, reader = AutoModelForCausalLM.from_pretrained(hf), AutoTokenizer.from_pretrained(hf)
        server = Server(gguf) if has_llama_cpp() else None
        for question in QUESTIONS:
            prompt = template.prompt([Message("user", question)])
            (ours,) = generate(decoder, [prompt], replace(GREEDY, stop_ids=tuple(template.stops)))
            chat = [{"role": "user", "content": question}]
            ids = reader.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
            found = theirs.generate(**ids, do_sample=False, max_new_tokens=MOST_NEW)[0, ids["input_ids"].size(1) :]
            said = [ending(len(ours) + 1, len(ours) < MOST_NEW)]  # ours are without the token that ends them
            said.append(ending(len(found), int(found[-1]) in template.stops))
            if server is not None:
                body = {"messages": chat, "temperature": 0, "max_tokens": MOST_NEW}
                reply = server.ask("/v1/chat/completions", body)
                stops = reply["choices"][0]["finish_reason"] == "stop"
                said.append(ending(reply["usage"]["completion_tokens"], stops))
            print(f"{question:56} " + " ".join(f"{one:>18}" for one in said), flush=True)


def ending(n_tokens: int, has_stopped: bool) -> str:
    return f"{n_tokens} tokens, {'stops' if has_stopped else 'goes on'}"


if __name__ == "__main__":
    sys.exit(main())
