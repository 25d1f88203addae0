"""Chat models on their way in and out: the check of their template, and the tokens that end an answer."""

import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM

from model.hf.files import write_folder
from model.hf.importing import import_model
from model.hf.tokenizer import ExportedTokenizer, read_exported_tokenizer
from model.network.decoder import Decoder
from model.network.shape import DecoderConfig
from pipeline.corpus.tokens.tokenizer_files import write_tokenizer

SIZES = {"n_layers": 1, "n_heads": 2, "n_kv_heads": 2, "d_model": 32, "d_head": 16, "d_ff": 32, "max_seq_len": 64}
CONFIG = DecoderConfig(vocab_size=257, **SIZES, qk_norm=False)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> ExportedTokenizer:
    """A tokenizer whose tokens are the bytes, and the end of a text."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, {bytes([i]): i for i in range(256)}, "qwen2")
    return read_exported_tokenizer(folder, CONFIG.vocab_size)


def test_import_checks_the_chat_template_and_keeps_one_that_cannot_be_used(exported, large_weights, tmp_path):
    decoder = large_weights(Decoder(CONFIG), seed=1)
    works = "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
    works += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    for template, fault in (
        (works, None),
        (works.replace("m.content", "(m.content | upper)"), "the chat template changes message 1 (user)"),
        ("{% for", "not a chat template, line 1"),
        ("{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}" + works, "1,000,000 steps"),
    ):
        files = {**exported.files, "chat_template.jinja": template}
        write_folder(tmp_path / "theirs", decoder, tokenizer=dataclasses.replace(exported, files=files))
        imported = import_model(tmp_path / "theirs", tmp_path / "ours")
        assert (
            imported.has_chat_template and (tmp_path / "ours/tokenizer/chat_template.jinja").read_text() == template
        )
        assert imported.chat_fault is None if fault is None else fault in imported.chat_fault


def test_export_of_a_chat_model_ends_with_each_of_its_stops(exported, large_weights, tmp_path):
    decoder = large_weights(Decoder(CONFIG), seed=1)
    write_folder(tmp_path / "out", decoder, tokenizer=dataclasses.replace(exported, stops=(10, 256)))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert theirs.generation_config.eos_token_id == [10, 256]
    biased = theirs.lm_head.weight.data
    biased.zero_()
    prompt = torch.tensor([[1, 2, 3]])
    state = theirs.model(prompt).last_hidden_state[0, -1]
    biased[10] = state * 100  # by far the likeliest token
    assert theirs.generate(prompt, do_sample=False, max_new_tokens=9).tolist() == [[1, 2, 3, 10]]
