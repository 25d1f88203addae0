"""An encoder trained further: masked with the mask token of its own tokenizer, and evaluated before and after."""

import dataclasses
import json
import random

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from model.data.masking import mask_vocabulary
from model.data.mixture import sources_of
from model.data.token_shards import read_description, read_token_shards
from model.data.tokenizer import load_tokenizer
from model.evaluate_masked import masked_document_losses
from model.hf.importing import import_model
from model.network.registry import load_model
from pipeline.corpus.tokens.tokenize import TOKENIZE, TokenizeConfig, TokenizeRecipe
from pipeline.corpus.tokens.tokenizer_files import tokenizer_in
from pipeline.defs.checks import CONTINUED_MUST_BEAT, METRICS, _beats
from pipeline.evaluation.continued_model import METRICS as CHANGES
from pipeline.evaluation.language_model import EVALUATE_MODEL, LanguageModelEvaluationConfig
from pipeline.evaluation.laws import forgets_little
from pipeline.store.outputs import read_results
from pipeline.store.records import Checkpoint, Shards
from pipeline.training.continuing import CONTINUE, ContinueConfig, continue_recipe
from tests.model.hf.tokenizers_of_others import save

WORDS = {"manual": ["open", "set", "return", "import", "class"], "wiki": ["the", "self", "and", "with", "none"]}
CFG = ContinueConfig(
    domain=("manual",), general=("wiki",), n_steps=30, rows=8, seq_len=32, lora_rank=2, lora_lr=0.05, adamw_lr=0.01
)
REPORT = LanguageModelEvaluationConfig(n_samples=1)


@pytest.fixture
def bert(tmp_path) -> Checkpoint:
    """A tiny BERT with random weights and a WordPiece tokenizer, as transformers saves one, imported."""
    save("bert", tmp_path / "theirs")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=900,
        max_position_embeddings=64,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    BertForMaskedLM(config).save_pretrained(tmp_path / "theirs")
    imported = import_model(tmp_path / "theirs", tmp_path / "bert")
    assert imported.kind == "masked_lm"
    return Checkpoint(stage="base", directory=tmp_path / "bert", fingerprint="b", digest="b", rows=0)


@pytest.fixture
def tokens(store, bert, split_corpus) -> Shards:
    rng = random.Random(0)
    rows = [
        {
            "page_id": f"{split}-{source}-{i}",
            "source": source,
            "split": split,
            "text": " ".join(rng.choices(words, k=25)),
        }
        for split, n in (("train", 30), ("validation", 8), ("test", 6))
        for source, words in WORDS.items()
        for i in range(n)
    ]
    return store.build(
        TOKENIZE, TokenizeRecipe(config=TokenizeConfig()), split_corpus(rows), tokenizer_in(bert)
    ).handle


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_continued_encoder_learns_its_domain_and_is_compared_with_its_base(store, bert, tokens, tuning):
    special = load_tokenizer(bert.directory / "tokenizer").special
    vocabulary = mask_vocabulary(tokens.directory, 900, bert.directory / "tokenizer")
    assert vocabulary.mask_id == special["mask"] and vocabulary.opening == special["cls"]
    assert read_description(tokens.directory)["end_of_text"] == special["cls"]
    model = store.build(CONTINUE, continue_recipe(dataclasses.replace(CFG, tuning=tuning)), bert, tokens).handle
    report = store.build(EVALUATE_MODEL, REPORT, model, tokens, bert).handle
    found = {one["metric"]: one for one in read_results(report.directory)}
    assert found.keys() <= {*METRICS, *CHANGES}
    shards = read_token_shards(tokens.directory, "test")
    sources = sources_of(shards)
    after, before = (
        masked_document_losses(load_model(one.directory)[0].eval(), shards, vocabulary) for one in (model, bert)
    )
    for part, which in (("domain", sources == "manual"), ("general", sources == "wiki")):
        nats = [one.nats[which].sum() / one.n_tokens[which].sum() for one in (after, before)]
        result = found[f"{part}_masked_perplexity"]
        assert result["value"] == pytest.approx(np.exp(nats[0]))
        assert result["baselines"]["base"] == pytest.approx(np.exp(nats[1]))
        assert found[f"{part}_change"]["value"] == pytest.approx(nats[0] / nats[1] - 1)
    assert _beats("beats_base", "reader", CONTINUED_MUST_BEAT).judge(report).passed
    assert forgets_little(found, 0.03).observed == found["general_change"]["value"]
    text = (report.directory / "report.md").read_text()
    assert "| base |" in text and "masked perplexity before" in text and "Training texts of wiki" in text
    assert (report.directory / "figures" / "change.png").exists()


def test_evaluation_of_an_encoder_reads_as_few_documents_as_are_asked_for(store, bert, tokens):
    cfg = dataclasses.replace(REPORT, max_documents=2, max_document_tokens=10)
    report = store.build(EVALUATE_MODEL, cfg, bert, tokens).handle
    assert report.rows == 4
    text = (report.directory / "report.md").read_text()
    assert "at most 2 documents of each source" in text and "4 test documents, 36 tokens" in text
    assert json.loads((report.directory / "results.json").read_text())[1]["baselines"].keys() == {"unigram"}
