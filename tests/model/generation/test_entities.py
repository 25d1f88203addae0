"""Entities in texts: by a network that tags a token by its first letter, so that what is right is known."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from model import evaluate
from model.data.spans import Span, tags_of_spans
from model.data.tagged_texts import supervised, text_windows
from model.data.tokenizer import load_tokenizer
from model.generation import entities
from model.generation.entities import entities_of, tag_scores, tagging_values
from model.network.encoder import new_masked_lm
from model.network.heads import token_classifier_from
from model.network.shape import EncoderConfig, switches_of
from tests.model.conftest import prose

LABELS = ["place"]
CONTEXT = 24


@pytest.fixture(scope="module")
def tokenizer(corpus):
    return load_tokenizer(corpus / "tokenizer")


class FirstLetters(nn.Module):
    """A word with Z is the first of an entity, one with Q a later one."""

    def __init__(self, tokenizer) -> None:
        super().__init__()
        tags = [{b"Z": 1, b"Q": 2}.get(token.strip()[:1], 0) for token in tokenizer.tokens]
        self.scores_VC = nn.Parameter(4.0 * torch.eye(3)[tags])

    def forward(self, ids_BT, lengths_B, types_BT=None):
        assert ids_BT.size(1) <= CONTEXT
        return self.scores_VC[ids_BT]


def found(tokenizer, texts: list[str]) -> list[list[str]]:
    windows = text_windows(tokenizer, texts, CONTEXT)
    answers = entities_of(FirstLetters(tokenizer), windows, LABELS)
    return [[text[one["start"] : one["end"]] for one in of] for text, of in zip(texts, answers, strict=True)]


def test_entities_are_the_characters_of_their_words(tokenizer):
    texts = ["ka Zlo  Qmi, tu (Zre)", "", "ka lo", " \n", "Zka Zlo Qlo"]
    assert found(tokenizer, texts) == [["Zlo  Qmi", "Zre"], [], [], [], ["Zka", "Zlo Qlo"]]


def test_the_last_entity_of_a_text_of_many_contexts_is_found_and_counted(tokenizer):
    """A text longer than the context was cut, and the gold entities with it, so that F1 was too high
    (transformers#18050)."""
    text = prose(0, 80) + " Zka Qlo"
    (windows,) = text_windows(tokenizer, [text], CONTEXT)
    assert sum(len(window.tokens) for window in windows.windows) > 3 * CONTEXT
    assert found(tokenizer, [text]) == [["Zka Qlo"]]
    gold = [Span(len(text) - len("Zka Qlo"), len(text), "place")]
    encoded = supervised(["0"], [windows], [tags_of_spans(windows.words_W2, gold, {"place": 0})])
    assert encoded.n_cut == 0
    assert tagging_values(FirstLetters(tokenizer), encoded)["validation_f1"] == 1.0
    blind = FirstLetters(tokenizer)
    nn.init.zeros_(blind.scores_VC)
    assert tagging_values(blind, encoded)["validation_f1"] == 0.0


def test_an_entity_at_the_border_of_two_windows_is_one(tokenizer):
    for n_words in range(4, 30):
        text = prose(n_words, n_words) + " Zka Qlo Qmi Qtu"
        assert found(tokenizer, [text]) == [["Zka Qlo Qmi Qtu"]], n_words


def test_probabilities_are_those_of_exactly_these_words(tokenizer):
    windows = text_windows(tokenizer, ["Zka Qlo ka"], CONTEXT)
    (answer,) = entities_of(FirstLetters(tokenizer), windows, LABELS)
    right, wrong = np.exp([4, 0]) / (np.exp(4) + 2)
    assert answer == [{"start": 0, "end": 7, "label": "place", "probability": pytest.approx(right**2 * (1 - wrong))}]
    json.dumps(answer)


def test_validation_counts_entities_of_whole_texts(tokenizer):
    texts = ["Zka lo", "Zka Qlo", "ka"]
    gold = [[Span(0, 3, "place")], [Span(0, 3, "place")], [Span(0, 2, "place")]]
    windows = list(text_windows(tokenizer, texts, CONTEXT))
    tags = [tags_of_spans(one.words_W2, of, {"place": 0}) for one, of in zip(windows, gold, strict=True)]
    encoded = supervised(["a", "b", "c"], windows, tags)
    values = tagging_values(FirstLetters(tokenizer), encoded)
    assert values["validation_f1"] == pytest.approx(2 * 1 / (2 + 3))
    right, wrong = -np.log(np.exp([4, 0]) / (np.exp(4) + 2))
    assert values["validation_loss"] == pytest.approx((3 * right + 2 * wrong) / 5)


@pytest.fixture(scope="module")
def classifier(tokenizer):
    cfg = EncoderConfig(
        **{**dict.fromkeys(("n_layers", "n_heads", "n_kv_heads"), 2), "d_model": 16, "d_head": 8, "d_ff": 24},
        **{"vocab_size": tokenizer.vocab_size, "max_seq_len": CONTEXT, **switches_of("bert")},
        tie_embeddings=True,
    )
    model = token_classifier_from(new_masked_lm(cfg, seed=0), 3, seed=0)
    nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(1))
    return model.eval()


def test_scores_do_not_depend_on_the_other_texts_or_the_size_of_a_pass(classifier, tokenizer, monkeypatch):
    texts = [windows.windows for windows in text_windows(tokenizer, [prose(i, 3 + 9 * i) for i in range(6)], CONTEXT)]
    together = tag_scores(classifier, texts)
    alone = [tag_scores(classifier, [text])[0] for text in texts]
    monkeypatch.setitem(evaluate.TOKENS_PER_PASS, "cpu", 30)
    for some in (alone, tag_scores(classifier, texts)):
        for one, other in zip(together, some, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


def test_memory_does_not_grow_with_the_number_of_texts(classifier, tokenizer, monkeypatch):
    """Scores of every token of an evaluation were kept until its end (transformers#8476)."""
    monkeypatch.setattr(entities, "TEXTS_AT_ONCE", 4)
    sizes: list[int] = []
    score = entities.tag_scores

    def counted(network, texts):
        sizes.append(len(texts))
        return score(network, texts)

    monkeypatch.setattr(entities, "tag_scores", counted)
    texts = [prose(i, 5) for i in range(10)]
    assert len(list(entities_of(classifier, text_windows(tokenizer, texts, CONTEXT), LABELS))) == 10
    assert sizes == [4, 4, 2]
