"""The evaluation of a continued model: before and after, against numbers computed one by one."""

import json
import math

import numpy as np
import pytest

from model.data.mixture import Mixture
from model.data.token_shards import read_token_shards
from model.evaluate import document_losses
from model.network.registry import load_decoder
from pipeline.evaluation.continued_model import BITS, change, change_results
from pipeline.evaluation.language_model import EVALUATE_MODEL, LanguageModelEvaluationConfig
from pipeline.evaluation.laws import MOST_FORGOTTEN, forgets_little
from pipeline.training.continuing import CONTINUE, ContinueConfig, continue_recipe

RECIPE = continue_recipe(
    ContinueConfig(domain=("manual",), general=("wiki",), n_steps=20, rows=4, seq_len=8, lora_rank=2, lora_lr=0.03)
)
CFG = LanguageModelEvaluationConfig(n_samples=1, prompt_tokens=4, sample_tokens=3)


@pytest.fixture
def report(store, base, mixed_tokens):
    model = store.build(CONTINUE, RECIPE, base, mixed_tokens).handle
    return store.build(EVALUATE_MODEL, CFG, model, mixed_tokens, base).handle, model


def test_continued_results_equal_those_of_both_models_on_each_part(report, base, mixed_tokens):
    folder, model = report[0].directory, report[1]
    found = {one["metric"]: one for one in json.loads((folder / "results.json").read_text())}
    shards = read_token_shards(mixed_tokens.directory, "test")
    after, before = (document_losses(load_decoder(one.directory), shards) for one in (model, base))
    sources = np.concatenate([shard.sources.to_pylist() for shard in shards])
    for part, which in (("domain", sources == "manual"), ("general", sources != "manual")):
        n_bits = {name: one.nats[which].sum() / math.log(2) for name, one in (("b", before), ("a", after))}
        result = found[f"{part}_bits_per_byte"]
        assert result["value"] == pytest.approx(n_bits["a"] / after.n_bytes[which].sum())
        assert result["baselines"]["base"] == pytest.approx(n_bits["b"] / before.n_bytes[which].sum())
        assert found[f"{part}_change"]["value"] == pytest.approx(n_bits["a"] / n_bits["b"] - 1)
        assert not found[f"{part}_change"]["higher_is_better"]
    assert found["bits_per_byte"]["baselines"].keys() == {"base", "unigram", "bigram", "trigram"}
    text = (folder / "report.md").read_text()
    assert "## What the training changed" in text and "Training texts of wiki were mixed in" in text
    assert (folder / "figures" / "change.png").read_bytes().startswith(b"\x89PNG")


def test_continued_evaluation_of_beginnings_reads_less_and_says_so(store, report, base, mixed_tokens):
    cfg = LanguageModelEvaluationConfig(n_samples=0, max_document_tokens=5, max_documents=2)
    built = store.build(EVALUATE_MODEL, cfg, report[1], mixed_tokens, base).handle
    assert built.rows == 6  # of three sources
    text = (built.directory / "report.md").read_text()
    assert "at most 2 documents of each source" in text and "at most the first 5 tokens of each document" in text
    assert "6 test documents, 24 tokens, 24 bytes" in text


def test_a_model_that_is_not_continued_has_no_base_in_its_evaluation(store, base, mixed_tokens):
    with pytest.raises(ValueError, match="was not trained by `continue`"):
        store.build(EVALUATE_MODEL, CFG, base, mixed_tokens, base)


def test_change_of_documents_that_all_change_alike_has_an_interval_without_width():
    before = np.array([10.0, 300.0, 7.0, 55.0])
    found = change(0.9 * before, before)
    assert found.value == pytest.approx(-0.1) and found.low == pytest.approx(-0.1) == pytest.approx(found.high)


def test_change_interval_is_paired(rng=np.random.default_rng(0)):  # noqa: B008
    """Documents differ far more from each other than the two models do on one of them."""
    before = rng.uniform(1, 1000, 50)
    found = change(before * rng.normal(0.95, 0.01, 50), before)
    assert -0.06 < found.low < -0.05 < found.high < -0.04


@pytest.mark.parametrize(("value", "passed"), [(-0.1, True), (0.03, True), (0.031, False)])
def test_forgets_little_judges_the_change_of_general_text(value, passed):
    verdict = forgets_little({"general_change": {"value": value}}, MOST_FORGOTTEN)
    assert verdict.passed == passed and verdict.observed == value
    assert passed or "loss on general text by +3.1% (limit +3.0%)" in verdict.sentence()


def test_forgets_little_passes_without_general_text():
    assert forgets_little({}, MOST_FORGOTTEN).passed


def test_change_results_without_general_text_are_of_the_domain_alone():
    nats = {"model": np.array([1.0, 2.0]), "base": np.array([2.0, 2.0])}
    results = change_results(nats, np.array([3, 3]), Mixture().is_domain(np.array(["a", "b"])), 0, BITS)
    assert [one["metric"] for one in results] == ["domain_bits_per_byte", "domain_change"]
