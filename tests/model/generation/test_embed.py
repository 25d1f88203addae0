"""Sentence embeddings against the recipe of sentence-transformers on transformers' own model: the mean of the hidden
states of all real tokens, divided by its length."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from bench.open_weights import minilm_folder
from model.cli import main
from model.data.tokenizer import load_model_tokenizer
from model.generation import embed as module
from model.generation.embed import embed, embed_tokens
from model.hf.files import write_folder
from model.hf.importing import import_model
from model.network.encoder import Encoder
from model.network.registry import load_encoder

TEXTS = ["kalo mitu", "re", "", "sha bel dor fin gra hup", "kalo mitu lo", "jin jin jin jin jin jin jin jin jin"]
SENTENCES = [
    "A man is eating food.",
    "Un hombre come — ¿qué? 猫が寝ている 🙂",
    "The girl is carrying a baby. " * 40,
    "",
    "A cheetah is running behind its prey, and \t the  prey is running faster!",
    "monkey",
]


@pytest.fixture(scope="module")
def encoder(trained_encoder):
    model = load_encoder(trained_encoder)
    return model, load_model_tokenizer(trained_encoder, model.cfg.vocab_size)


def expected_vectors(theirs, batch: dict[str, torch.Tensor]) -> np.ndarray:
    with torch.no_grad():
        x_BTD = theirs(**batch).last_hidden_state
    weight_BT1 = batch["attention_mask"].unsqueeze(-1)
    return F.normalize((x_BTD * weight_BT1).sum(dim=1) / weight_BT1.sum(dim=1), dim=-1).numpy()


def right_padded(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    width = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in rows]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in rows]),
    }


def test_embeddings_equal_the_normalised_means_of_transformers(encoder, tmp_path):
    model, tokenizer = encoder
    write_folder(tmp_path / "theirs", model)
    theirs = AutoModelForMaskedLM.from_pretrained(tmp_path / "theirs", dtype=torch.float32).eval().base_model
    rows = [[*tokenizer.opening, *tokenizer.encode(text), *tokenizer.closing] for text in TEXTS]
    vectors_ND = embed(model, tokenizer, TEXTS)
    assert (vectors_ND.shape, vectors_ND.dtype) == ((len(TEXTS), model.cfg.d_model), np.float32)
    np.testing.assert_allclose(vectors_ND, expected_vectors(theirs, right_padded(rows)), atol=1e-5)


@pytest.mark.parametrize("n_tokens", [1, 10, 10_000])
def test_a_vector_depends_on_its_text_alone(encoder, monkeypatch, n_tokens):
    model, tokenizer = encoder
    alone = np.concatenate([embed(model, tokenizer, [text]) for text in TEXTS])
    monkeypatch.setitem(module.TOKENS_PER_PASS, "cpu", n_tokens)
    order = [3, 0, 5, 1, 4, 2]
    np.testing.assert_allclose(embed(model, tokenizer, [TEXTS[i] for i in order]), alone[order], atol=1e-6)
    assert embed(model, tokenizer, []).shape == (0, model.cfg.d_model)


def test_long_texts_are_cut_to_what_the_model_reads(encoder):
    model, tokenizer = encoder
    text = "kalo " * 500
    ids = [*tokenizer.opening, *tokenizer.encode(text)]
    for max_tokens, most in ((None, model.cfg.max_seq_len), (5, 5)):
        expected = embed_tokens(model, [np.array(ids[:most])])
        np.testing.assert_allclose(embed(model, tokenizer, [text], max_tokens), expected, atol=1e-6)
    for wrong in (0, model.cfg.max_seq_len + 1):
        with pytest.raises(ValueError, match=rf"max_tokens={wrong} must be from 1 to {model.cfg.max_seq_len}"):
            embed(model, tokenizer, [text], wrong)


def test_embed_prints_a_line_of_numbers_for_each_text(trained_encoder, trained, encoder, capsys):
    assert main(["embed", str(trained_encoder), *TEXTS[:2]]) == 0
    printed = [json.loads(line) for line in capsys.readouterr()[0].splitlines()]
    np.testing.assert_allclose(printed, embed(*encoder, TEXTS[:2]), atol=1e-6)
    assert main(["embed", str(trained), "a text"]) == 1
    assert "expected an encoder" in capsys.readouterr()[1]


@pytest.mark.slow  # 23 million weights
@torch.no_grad()
def test_minilm_gives_hidden_states_and_embeddings_of_transformers(tmp_path):
    minilm = minilm_folder()
    imported = import_model(minilm, tmp_path / "minilm")
    assert (imported.family, imported.kind, imported.n_parameters) == ("bert", "encoder", 22_713_216)
    ours = load_encoder(tmp_path / "minilm")
    assert isinstance(ours, Encoder)
    tokenizer = load_model_tokenizer(tmp_path / "minilm", ours.cfg.vocab_size)
    theirs, their_tokenizer = AutoModel.from_pretrained(minilm).eval(), AutoTokenizer.from_pretrained(minilm)
    batch = their_tokenizer(SENTENCES, padding=True, truncation=True, max_length=512, return_tensors="pt")
    expected = theirs(**batch)
    for i, text in enumerate(SENTENCES):
        ids = [*tokenizer.opening, *tokenizer.encode(text)[:510], *tokenizer.closing]
        is_real_T = batch["attention_mask"][i].bool()
        assert ids == batch["input_ids"][i][is_real_T].tolist()
        x_BTD = ours(torch.tensor([ids]))
        torch.testing.assert_close(x_BTD[0], expected.last_hidden_state[i][is_real_T], atol=1e-3, rtol=0)
        torch.testing.assert_close(ours.pooled(x_BTD)[0], expected.pooler_output[i], atol=1e-3, rtol=0)
    theirs_ND = expected_vectors(theirs, dict(batch))
    assert ((embed(ours, tokenizer, SENTENCES) * theirs_ND).sum(axis=1) > 0.99999).all()
