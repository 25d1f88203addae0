"""N-gram models against dictionaries that count slowly, and the classification baselines."""

import math
from collections import Counter

import numpy as np
import pytest

from model.data.token_shards import read_token_shard, write_token_shard
from pipeline.evaluation.baselines import (
    HELD_OUT_EVERY,
    N_BUCKETS,
    Events,
    Ratios,
    events_of,
    fit_ngrams,
    fit_weights,
    interpolate,
    tfidf_logistic_predictions,
)

VOCAB_SIZE = 7
END_OF_TEXT = 6


def random_documents(n_documents: int, seed: int = 0) -> list[np.ndarray]:
    """Documents with a strong habit: a token is mostly followed by its successor."""
    rng = np.random.default_rng(seed)
    documents = []
    for _ in range(n_documents):
        tokens = [END_OF_TEXT]
        for _ in range(int(rng.integers(0, 30))):
            habit = (tokens[-1] + 1) % END_OF_TEXT
            tokens.append(int(habit if rng.random() < 0.7 else rng.integers(0, END_OF_TEXT)))
        documents.append(np.array(tokens))
    return documents


def write_shards(folder, documents, n_shards=3):
    shards = []
    for number, part in enumerate(np.array_split(np.arange(len(documents)), n_shards)):
        path = folder / f"{number:05d}.arrow"
        names = [f"document-{i}" for i in part]
        write_token_shard(path, names, [1] * len(part), [documents[i] for i in part], VOCAB_SIZE)
        shards.append(read_token_shard(path))
    return shards


def slow_nats(model, train, test) -> dict[str, list[float]]:
    """The three models by dictionaries, one token at a time, with the weights that `model` found."""
    words, pairs, triples, after_one, after_two = Counter(), Counter(), Counter(), Counter(), Counter()
    for document in train:
        padded = [END_OF_TEXT, *document.tolist()]
        for a, b, c in zip(padded, padded[1:], padded[2:], strict=False):
            words[c] += 1
            pairs[b, c] += 1
            triples[a, b, c] += 1
            after_one[b] += 1
            after_two[a, b] += 1
    nats = {"unigram": [], "bigram": [], "trigram": []}
    for document in test:
        sums = dict.fromkeys(nats, 0.0)
        padded = [END_OF_TEXT, *document.tolist()]
        for a, b, c in zip(padded, padded[1:], padded[2:], strict=False):
            p1 = (words[c] + 1) / (sum(words.values()) + VOCAB_SIZE)
            w2 = model.bigram_weights[min(after_one[b].bit_length(), N_BUCKETS - 1)]
            p2 = w2 * (pairs[b, c] / after_one[b] if after_one[b] else 0) + (1 - w2) * p1
            w3 = model.trigram_weights[min(after_two[a, b].bit_length(), N_BUCKETS - 1)]
            p3 = w3 * (triples[a, b, c] / after_two[a, b] if after_two[a, b] else 0) + (1 - w3) * p2
            for name, p in zip(nats, (p1, p2, p3), strict=True):
                sums[name] -= math.log(p)
        for name, value in sums.items():
            nats[name].append(value)
    return nats


def test_ngrams_random_documents_equal_slow_dictionaries(tmp_path, monkeypatch):
    train, test = random_documents(90), random_documents(11, seed=1)
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    train_shards = write_shards(tmp_path / "train", train)
    monkeypatch.setattr("pipeline.evaluation.baselines.PIECE_TOKENS", 50)  # counting must not depend on the pieces
    model = fit_ngrams(train_shards, VOCAB_SIZE, END_OF_TEXT)
    fast = model.document_nats(write_shards(tmp_path / "test", test), END_OF_TEXT)
    for name, nats in slow_nats(model, train, test).items():
        np.testing.assert_allclose(fast[name], nats, rtol=1e-12, err_msg=name)


def test_ngrams_longer_history_is_better_on_habitual_text(tmp_path):
    shards = write_shards(tmp_path, random_documents(400))
    nats = fit_ngrams(shards[:2], VOCAB_SIZE, END_OF_TEXT).document_nats(shards[2:], END_OF_TEXT)
    assert nats["bigram"].sum() < 0.75 * nats["unigram"].sum()
    assert nats["trigram"].sum() < 1.02 * nats["bigram"].sum()


def test_ngrams_any_history_sums_to_one(tmp_path):
    model = fit_ngrams(write_shards(tmp_path, random_documents(60)), VOCAB_SIZE, END_OF_TEXT)
    tokens = np.arange(VOCAB_SIZE)
    for second_last in range(VOCAB_SIZE):
        for last in range(VOCAB_SIZE):
            history = (np.full(VOCAB_SIZE, second_last), np.full(VOCAB_SIZE, last))
            events = Events(*history, tokens, np.zeros(VOCAB_SIZE, int))
            for name, probability in model.probabilities(events).items():
                assert probability.sum() == pytest.approx(1), (name, second_last, last)


def test_ngrams_no_token_is_predicted_twice_nor_across_documents(tmp_path):
    documents = random_documents(8)
    seen = [
        (int(event[0]), int(event[1]), int(event[2]))
        for shard in write_shards(tmp_path, documents)
        for events in events_of(shard, END_OF_TEXT)
        for event in zip(events.second_last, events.last, events.token, strict=True)
    ]
    padded = [[END_OF_TEXT, *document.tolist()] for document in documents]
    assert seen == [triple for p in padded for triple in zip(p, p[1:], p[2:], strict=False)]


def test_ngrams_one_document_is_refused(tmp_path):
    with pytest.raises(ValueError, match="too few"):
        fit_ngrams(write_shards(tmp_path, random_documents(1), n_shards=1), VOCAB_SIZE, END_OF_TEXT)


def test_fit_weights_are_the_best_of_a_grid():
    rng = np.random.default_rng(0)
    ratios = Ratios(rng.random(500) * (rng.random(500) < 0.6), np.full(500, 3))
    lower = rng.random(500) * 0.2 + 0.01
    weight = fit_weights(ratios, lower)[3]

    def likelihood(w: float) -> float:
        return float(np.log(interpolate(ratios, np.full(N_BUCKETS, w), lower)).sum())

    assert likelihood(weight) >= max(likelihood(w) for w in np.linspace(0.01, 0.99, 99)) - 0.01


def test_fit_weights_a_history_that_is_always_right_keeps_room_for_surprise():
    weights = fit_weights(Ratios(np.ones(50), np.full(50, 2)), np.full(50, 1e-9))
    assert 0.9 < weights[2] < 1


def test_fit_weights_held_out_documents_decide(tmp_path):
    """Trigrams of the counted documents mislead on the held-out ones, so their weight must fall."""
    rng = np.random.default_rng(0)
    documents = [np.concatenate([[END_OF_TEXT], rng.integers(0, END_OF_TEXT, 200)]) for _ in range(100)]
    habit = [np.array([END_OF_TEXT, *([0, 1, 2] * 60)]) for _ in range(100)]
    mixed = [documents[i] if i % HELD_OUT_EVERY == 0 else habit[i] for i in range(100)]
    model = fit_ngrams(write_shards(tmp_path, mixed), VOCAB_SIZE, END_OF_TEXT)
    assert model.trigram_weights[N_BUCKETS - 1] < 0.5


def test_tfidf_logistic_learns_words_that_tell_the_label():
    texts = ["good fine film", "bad awful film", "fine plot", "awful plot"] * 5
    labels = ["positive", "negative"] * 10
    assert tfidf_logistic_predictions(texts, labels, ["fine", "awful acting"]) == ["positive", "negative"]
