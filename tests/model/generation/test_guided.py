"""Guided texts against a plain search over the same candidates, and their laws."""

import dataclasses

import numpy as np
import pytest
import torch

from model.generation.generate import generate
from model.generation.guided import Guidance, controlled_text, mean_log_probabilities
from model.generation.sample_config import SampleConfig
from tests.model.generation.test_constraints import random_decoder, random_tokenizer

TOKENIZER = random_tokenizer(3, n_more=0)
MODEL = random_decoder(TOKENIZER, 3)
PROMPTS = [[65, 66], [67], [68, 69, 70]]
CFG = SampleConfig(max_new_tokens=10, top_k=None, temperature=1.0, stop_ids=(256,))


def n_odd(texts) -> np.ndarray:
    """A judge that likes characters with odd numbers."""
    return np.array([float(sum(ord(one) % 2 for one in text)) for text in texts])


def decoded(ids) -> str:
    return bytes(ids).decode("utf-8", "replace")


def value_of(prompt: list[int], before: list[int], new: list[int], fluency: float) -> float:
    """Score and fluency of a candidate, written apart from guided.py."""
    value = n_odd([decoded([*prompt, *before, *new])])[0]
    if fluency and new:
        ids = torch.tensor([[*prompt, *before, *new]])
        with torch.no_grad():
            log_p = MODEL(ids[:, :-1])[0].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        value += fluency * float(log_p[-len(new) :].mean())
    return value


@pytest.mark.parametrize(("by", "segment"), [("rerank", 10), ("steer", 3), ("steer", 10), ("steer", 4)])
@pytest.mark.parametrize("fluency", [0, 2.0])
def test_controlled_text_takes_the_best_candidate_of_each_segment(by, segment, fluency):
    guidance = Guidance(by=by, n_samples=4, segment=segment, fluency=fluency)
    found = controlled_text(MODEL, TOKENIZER, PROMPTS, CFG, n_odd, guidance)
    for place, prompt in enumerate(PROMPTS):
        new: list[int] = []
        for first in range(0, CFG.max_new_tokens, segment):
            part = dataclasses.replace(CFG, max_new_tokens=min(segment, CFG.max_new_tokens - first))
            numbers = [(place * CFG.max_new_tokens + first) * 4 + i for i in range(4)]
            drawn = generate(MODEL, [[*prompt, *new]] * 4, part, row_numbers=numbers)
            new += max(drawn, key=lambda one: value_of(prompt, new, one, fluency))
            if len(new) < first + part.max_new_tokens:
                break
        assert found[place] == decoded(new)


def test_controlled_text_depends_on_its_own_prompt_alone():
    together = controlled_text(MODEL, TOKENIZER, PROMPTS, CFG, n_odd)
    assert controlled_text(MODEL, TOKENIZER, PROMPTS[:1], CFG, n_odd) == together[:1]
    assert controlled_text(MODEL, TOKENIZER, PROMPTS[:2], CFG, n_odd) == together[:2]


@pytest.mark.parametrize("by", ["rerank", "steer"])
def test_controlled_text_has_more_of_what_is_scored_than_a_free_one(by):
    prompts = [[65]] * 30
    free, controlled = (
        n_odd(controlled_text(MODEL, TOKENIZER, prompts, CFG, n_odd, Guidance(by=by, n_samples=n, segment=3)))
        for n in (1, 8)
    )
    assert controlled.mean() > free.mean() + 1


@pytest.mark.parametrize("by", ["rerank", "steer"])
def test_controlled_text_ends_before_a_stop_string_and_is_judged_without_what_follows(by):
    judged: list[str] = []

    def score(texts):
        judged.extend(texts)
        return n_odd(texts)

    guidance = Guidance(by=by, n_samples=3, segment=2)
    free = controlled_text(MODEL, TOKENIZER, [[65]] * 20, CFG, n_odd, guidance)
    stop = next(text[3] for text in free if len(text) > 5)
    cfg = dataclasses.replace(CFG, stop=(stop,))
    texts = controlled_text(MODEL, TOKENIZER, [[65]] * 20, cfg, score, guidance)
    assert not any(stop in text for text in [*texts, *judged])
    assert any(len(text.encode()) < 10 for text in texts)
    if by == "steer":  # a text that has ended is not judged again
        assert len(judged) < 20 * 3 * 5


def test_controlled_text_is_judged_together_with_its_opening():
    judged: list[str] = []

    def score(texts):
        judged.extend(texts)
        return np.zeros(len(texts))

    (text,) = controlled_text(
        MODEL, TOKENIZER, [[65, 66]], CFG, score, Guidance(by="rerank", fluency=0), openings=["X: "]
    )
    assert judged[0] == f"X: {text}" and len(judged) == 8


def test_controlled_text_goes_on_beyond_the_context():
    cfg = dataclasses.replace(CFG, max_new_tokens=80, stop_ids=())
    (text,) = controlled_text(MODEL, TOKENIZER, [[65]], cfg, n_odd, Guidance(n_samples=2, segment=20))
    assert len(text) >= 60


def test_mean_log_probabilities_are_those_of_the_model():
    parts = [[70, 71], [72], [], [73] * 9]
    prompts = [[65, 66], [67, 68, 69, 70, 71], [65], [65]]
    found = mean_log_probabilities(MODEL, prompts, parts)
    for prompt, part, value in zip(prompts, parts, found, strict=True):
        expected = value_of(prompt, [], part, 1.0) - value_of(prompt, [], part, 0) if part else 0
        assert value == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"by": "fudge"}, "by='fudge' must be rerank or steer"),
        ({"n_samples": 0}, "n_samples=0"),
        ({"segment": 0}, "segment=0"),
        ({"fluency": -1}, "fluency=-1"),
    ],
)
def test_guidance_out_of_range_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Guidance(**settings)


@pytest.mark.parametrize("values", [[1.0], [float("nan")] * 8])
def test_scores_that_are_none_are_refused(values):
    with pytest.raises(ValueError, match="the score of 8 texts"):
        controlled_text(MODEL, TOKENIZER, [[65]], CFG, lambda texts: np.array(values), Guidance())


def test_prompt_longer_than_the_context_is_refused():
    with pytest.raises(ValueError, match="49 tokens, the model reads at most 48"):
        controlled_text(MODEL, TOKENIZER, [[65] * 49], CFG, n_odd)
