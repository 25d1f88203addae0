"""Real tokenizers of others give the ids of transformers on 10,000 documents: SmolLM2 in a GGUF file, and MiniLM."""

import pytest
import regex
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoTokenizer

from bench.open_weights import minilm_folder, smollm2_file
from model.data.tokenizer_tiktoken import TiktokenEngine
from model.hf.gguf_read import read_gguf
from model.hf.tokenizer_import import import_gguf_tokenizer, import_tokenizer
from pipeline.corpus.laws import HARD_TEXTS
from tests.model.hf.tokenizers_of_others import mixed_texts, real_documents

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def documents() -> list[str]:
    return [*HARD_TEXTS, *real_documents(7_000 - len(HARD_TEXTS)), *mixed_texts(3_000, 9)]


def ids_of(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def test_smollm2_gives_the_ids_of_transformers(documents, tmp_path):
    """transformers 5.23 does not cut digits out first, as its publisher and llama.cpp do: texts with two spaces
    before a digit get other ids there, and so do numbers that are not 0 to 9."""
    file = smollm2_file()
    ours = import_gguf_tokenizer(read_gguf(file).fields, tmp_path, 49_152)
    auto = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    theirs = auto.backend_tokenizer
    theirs.encode_special_tokens = True
    assert isinstance(ours.engine, TiktokenEngine)
    found = ours.encode_batch(documents)
    plain = [i for i, text in enumerate(documents) if not regex.search(r"\s\s\p{N}|(?![0-9])\p{N}", text)]
    assert len(plain) > 2_000
    assert [found[i] for i in plain] == ids_of(theirs, [documents[i] for i in plain])
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    theirs.pre_tokenizer = pre_tokenizers.Sequence(steps)
    assert found == ids_of(theirs, documents)
    assert (ours.special["bos"], ours.special["eos"], ours.special["pad"]) == (1, 2, 2)
    assert ours.stops == {0, auto.eos_token_id} and ours.end_of_text == 0


def test_minilm_gives_the_ids_of_transformers_and_cuts_none(documents, tmp_path):
    source = minilm_folder()
    ours = import_tokenizer(source, tmp_path, 30_522)
    auto = AutoTokenizer.from_pretrained(source, split_special_tokens=True)
    theirs = auto.backend_tokenizer
    theirs.no_truncation()  # its file cuts after 128 tokens
    theirs.no_padding()
    assert ours.encode_batch(documents) == ids_of(theirs, documents)
    assert [*ours.opening, *ours.encode("ab"), *ours.closing] == auto("ab", padding=False)["input_ids"]
