"""The best span of a row against a search over all spans, and over several windows of a question."""

import math
import weakref

import numpy as np
import pytest
import torch

from model import evaluate
from model.data.questions import encoded_questions
from model.data.tokenizer import tokenizer_of
from model.data.vocabularies import END_OF_TEXT, TRAINED_PATTERNS
from model.generation.answer_spans import FoundAnswers, best_spans, best_threshold, found_answers
from model.network.heads import SpanClassifier
from model.network.shape import DecoderConfig, EncoderConfig, switches_of
from model.training.loss import span_loss

SIZES = {"vocab_size": 257, "n_layers": 2, "n_heads": 2, "d_model": 16, "d_head": 8, "d_ff": 24, "max_seq_len": 40}
TRUNKS = {
    "decoder": DecoderConfig(**SIZES, n_kv_heads=1),
    "bert": EncoderConfig(**SIZES, n_kv_heads=2, tie_embeddings=True, **switches_of("bert")),
}
TOKENIZER = tokenizer_of(
    {bytes([value]): value for value in range(256)}, TRAINED_PATTERNS["qwen2"], {END_OF_TEXT: 256}, 257
)
QUESTIONS = ["Who?", "Why not?", "", "Where?"]
TEXTS = ["The mill in Genoa grinds corn, and it has ground it since 1999.", "Once.", "A ship", ""]


def by_hand(logits_T2, allowed_T, null, most):
    """(start, end, score), score of no answer, log of the sum over all allowed pairs of start and end."""
    places = [place for place in range(len(allowed_T)) if allowed_T[place]]
    spans = [
        (float(logits_T2[start, 0] + logits_T2[end, 1]), -start, -end)
        for start in places
        for end in places
        if start != null and end != null and start <= end < start + most
    ]
    score, start, end = max(spans, default=(-math.inf, 0, 0))
    total = sum(math.exp(logits_T2[start, 0] + logits_T2[end, 1]) for start in places for end in places)
    return (-start, -end, score), float(logits_T2[null].sum()), math.log(total)


@pytest.mark.parametrize("most", [1, 3, 50])
@pytest.mark.parametrize("null_is_last", [False, True])
def test_best_spans_equal_a_search_over_all_spans(most, null_is_last):
    rng = np.random.default_rng(most)
    logits_BT2 = torch.from_numpy(rng.normal(size=(20, 9, 2)))
    allowed_BT, nulls_B = torch.zeros(20, 9, dtype=torch.bool), []
    for row in range(20):
        first, n_text = rng.integers(1, 4), rng.integers(1, 5)
        allowed_BT[row, first : first + n_text] = True
        nulls_B.append(int(first + n_text) if null_is_last else 0)
        allowed_BT[row, nulls_B[-1]] = True
    start_B, end_B, score_B, null_B, total_B = best_spans(logits_BT2, allowed_BT, torch.tensor(nulls_B), most)
    for row in range(20):
        best, null, total = by_hand(logits_BT2[row].numpy(), allowed_BT[row], nulls_B[row], most)
        assert (int(start_B[row]), int(end_B[row])) == best[:2]
        assert (float(score_B[row]), float(null_B[row]), float(total_B[row])) == pytest.approx((best[2], null, total))


def test_best_spans_of_equal_scores_take_the_first_and_shortest():
    allowed_BT = torch.ones(1, 5, dtype=torch.bool)
    start_B, end_B, *_ = best_spans(torch.zeros(1, 5, 2), allowed_BT, torch.tensor([0]), 3)
    assert (int(start_B), int(end_B)) == (1, 1)


def test_best_spans_row_without_text_has_none():
    allowed_BT = torch.tensor([[True, False, False]])
    *_, score_B, null_B, _ = best_spans(torch.ones(1, 3, 2), allowed_BT, torch.tensor([0]), 3)
    assert float(score_B) == -math.inf and float(null_B) == 2


@pytest.mark.parametrize("seed", range(10))
def test_best_threshold_gives_the_largest_sum_of_scores(seed):
    rng = np.random.default_rng(seed)
    margins = rng.integers(-3, 4, 12).astype(float)  # equal ones among them
    margins[: seed % 3] = np.inf  # questions on a text of nothing
    answered, unanswered = rng.random(12), rng.integers(0, 2, 12).astype(float)

    def total(threshold):
        return np.where(margins <= threshold, answered, unanswered).sum()

    best = max(total(threshold) for threshold in np.arange(-4.5, 5))
    found = best_threshold(margins, answered, unanswered)
    assert math.isfinite(found) and total(found) == pytest.approx(best)


def test_best_threshold_lies_midway_between_margins():
    assert best_threshold(np.array([-1.0, 3.0]), np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 1.0


def test_found_answers_threshold_decides_and_without_one_every_text_is_answered():
    found = FoundAnswers(
        starts_Q=np.array([0, 0, 3]),
        ends_Q=np.array([2, 0, 5]),
        margins_Q=np.array([-1.0, math.inf, 2.0]),
        probabilities_Q=np.zeros(3),
        null_probabilities_Q=np.zeros(3),
        loss=0.0,
    )
    assert found.has_answer(None).tolist() == [True, False, True]
    assert found.has_answer(0.0).tolist() == [True, False, False]
    assert found.has_answer(2.0).tolist() == [True, False, True]


@pytest.fixture(params=TRUNKS)
def model(request):
    model = SpanClassifier(TRUNKS[request.param])
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.empty(weight.shape).normal_(std=0.5, generator=generator))
    return model.eval()


def encoded(places, answers=None):
    questions, texts = ([side[place] for place in places] for side in (QUESTIONS, TEXTS))
    ids = [str(place) for place in places]
    return encoded_questions(ids, questions, texts, TOKENIZER, max_tokens=40, answers=answers)


def test_found_answers_are_the_best_spans_over_all_windows_read_one_by_one(model):
    rows = encoded(range(4))
    assert (rows.questions == 0).sum() > 2
    found = found_answers(model, rows, most=6)
    for question, text in enumerate(TEXTS):
        spans, nulls = [], []
        for row in np.flatnonzero(rows.questions == question):
            batch = rows.batch(np.array([row]))
            logits_T2 = model(batch["ids_BT"], batch["lengths_B"], batch["types_BT"])[0].detach().double().numpy()
            best, null, total = by_hand(logits_T2, rows.token_targets["allowed_BT"][row], rows.nulls[row], 6)
            spans.append((best[2], math.exp(best[2] - total), best[2] > -math.inf and rows.span(row, *best[:2])))
            nulls.append(null)
        score, probability, span = max(spans, key=lambda one: one[0])
        assert found.margins_Q[question] == pytest.approx(min(nulls) - score, abs=1e-5)
        assert found.probabilities_Q[question] == pytest.approx(probability, rel=1e-4)
        assert (found.starts_Q[question], found.ends_Q[question]) == (span or (0, 0))
        assert bool(span) == bool(text)


def test_found_answers_of_a_question_do_not_depend_on_others(model):
    together = found_answers(model, encoded(range(4)), most=6)
    for place in range(4):
        alone = found_answers(model, encoded([place]), most=6)
        assert (alone.starts_Q[0], alone.ends_Q[0]) == (together.starts_Q[place], together.ends_Q[place])
        assert alone.margins_Q[0] == pytest.approx(together.margins_Q[place], abs=1e-5)


def test_found_answers_loss_is_that_of_training(model):
    rows = encoded([0, 1, 3], [[(12, "Genoa")], [(0, "Once")], []])
    loss, n_targets = span_loss(model, rows.batch(np.arange(len(rows.tokens))))
    assert found_answers(model, rows, most=6).loss == pytest.approx(float(loss.detach() / n_targets), rel=1e-5)


def test_found_answers_pass_few_tokens_at_once_and_keep_no_logits(model, monkeypatch):
    monkeypatch.setitem(evaluate.TOKENS_PER_PASS, "cpu", 100)
    alive, sizes = weakref.WeakSet(), []

    def seen(module, inputs, logits_BT2):
        alive.add(logits_BT2)
        sizes.append(logits_BT2.size(0) * logits_BT2.size(1))
        assert len(alive) <= 2  # this pass's, and that of the pass before until its name is given to this one

    with model.register_forward_hook(seen):
        found_answers(model, encoded([0, 1, 0, 3, 0]), most=6)
    assert len(sizes) > 4 and max(sizes) <= 100
