"""Outputs of models of tasks: those of each text alone, and no more than one pass of them in memory."""

import weakref

import numpy as np
import pytest
import torch

from model.evaluate import TOKENS_PER_PASS, answers_of_texts, outputs_of_texts
from model.network.heads import SequenceClassifier, SpanClassifier, TokenClassifier
from model.network.shape import DecoderConfig, EncoderConfig, switches_of

SIZES = {"vocab_size": 31, "n_layers": 2, "n_heads": 2, "d_model": 16, "d_head": 8, "d_ff": 24, "max_seq_len": 64}
CONFIGS = {
    "decoder": DecoderConfig(**SIZES, n_kv_heads=1),
    "bert": EncoderConfig(**SIZES, n_kv_heads=2, tie_embeddings=True, **switches_of("bert")),
}


@pytest.fixture(params=CONFIGS)
def cfg(request):
    torch.manual_seed(0)
    return CONFIGS[request.param]


def with_drawn_head(model):
    torch.nn.init.normal_(model.score.weight)
    return model.eval()


def texts(n: int, longest: int = 64) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 31, length) for length in rng.integers(1, longest + 1, n)]


def types_of(tokens):
    return [(np.arange(len(ids)) > len(ids) // 3).astype(np.int64) for ids in tokens]


@pytest.mark.parametrize("with_types", [False, True])
@pytest.mark.parametrize("tokens_per_pass", [None, 1, 200])
def test_outputs_are_those_of_each_text_alone(cfg, tokens_per_pass, with_types):
    model, tokens = with_drawn_head(SequenceClassifier(cfg, 3)), texts(30)
    types = types_of(tokens) if with_types else None
    found = outputs_of_texts(
        model, tokens, lambda logits: logits.softmax(dim=-1), types=types, tokens_per_pass=tokens_per_pass
    )
    for i, ids in enumerate(tokens):
        of_types = {} if types is None else {"types_BT": torch.tensor(types[i])[None]}
        logits = model(torch.tensor(ids)[None], torch.tensor([len(ids)]), **of_types)
        np.testing.assert_allclose(found[i], logits[0].softmax(dim=-1).detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("tokens_per_pass", [None, 1, 200])
def test_answers_per_token_are_those_of_each_text_alone(cfg, tokens_per_pass):
    model, tokens = with_drawn_head(TokenClassifier(cfg, 4)), texts(30)

    def best(logits, places):
        return [one[: len(tokens[place])].argmax(dim=-1).tolist() for one, place in zip(logits, places, strict=True)]

    found = answers_of_texts(model, tokens, best, tokens_per_pass=tokens_per_pass)
    for ids, answer in zip(tokens, found, strict=True):
        assert answer == model(torch.tensor(ids)[None], torch.tensor([len(ids)]))[0].argmax(dim=-1).tolist()


def test_one_pass_of_outputs_is_in_memory_and_it_is_bounded_by_tokens(cfg):
    """Trainers of others kept the logits of all examples until the end, gigabytes of them (transformers#8476)."""
    model, tokens = with_drawn_head(SpanClassifier(cfg)), texts(200)
    outputs: list[weakref.ref] = []
    most_alive = most_tokens = 0

    def start_and_end(logits, places):
        nonlocal most_alive, most_tokens
        outputs.append(weakref.ref(logits))
        most_alive = max(most_alive, sum(one() is not None for one in outputs))
        most_tokens = max(most_tokens, logits.size(0) * logits.size(1))
        return logits.argmax(dim=1).tolist()

    found = answers_of_texts(model, tokens, start_and_end, tokens_per_pass=500)
    assert len(found) == 200 and len(outputs) >= sum(map(len, tokens)) // 500
    assert most_alive <= 2  # that of the pass before is replaced when the next one has been computed
    assert most_tokens <= 500


def test_a_pass_of_long_texts_has_few_of_them(cfg):
    """256 texts of 512 tokens at once took gigabytes for attention."""
    model, rows = with_drawn_head(SequenceClassifier(cfg, 2)), []

    def count(logits):
        rows.append(len(logits))
        return logits

    outputs_of_texts(model, [np.zeros(64, np.int64)] * 100, count)
    assert sum(rows) == 100 and max(rows) == TOKENS_PER_PASS["cpu"] // 64


def test_answers_of_another_number_than_the_texts_are_refused(cfg):
    with pytest.raises(ValueError, match="zip"):
        answers_of_texts(with_drawn_head(TokenClassifier(cfg, 4)), texts(3), lambda logits, places: [1])
