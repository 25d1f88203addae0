"""Baselines that a trained model must beat: n-gram models, the majority class, TF-IDF + logistic regression.

In: token shards (every document opens with end of text), or labelled texts. Out: nats per document, predictions.

- unigram: add-one over the whole vocabulary.
- bigram, trigram: interpolated (Jelinek and Mercer 1980; Chen and Goodman 1998, section 2.3):
  P(w | h) = a * count(h, w) / count(h) + (1 - a) * P(w | shorter h). The weight a depends on the bucket of
  count(h) and is 0 for a history that was never seen, so that every distribution sums to one.
- every 20th training document is held out from counting and used to fit the weights by EM, first the bigram's, then
  the trigram's; then its counts are added, so that the evaluated models are fitted on all training tokens.
- n-grams are sorted distinct int64 keys, merged piece by piece: memory grows with the number of distinct n-grams,
  not of tokens.

scikit-learn is imported where it is used, because the code location imports this module.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from model.data.token_shards import TokenShard

NGRAM_NAMES = ("unigram", "bigram", "trigram")
HELD_OUT_EVERY = 20  # 5 % of the documents fit the interpolation weights
N_BUCKETS = 12  # for the count of a history: 0, 1, 2-3, 4-7, ..., 1024 and more
EM_STEPS = 30  # by then the weights change only in the fourth decimal
LOGISTIC_C = 10.0  # scikit-learn's own 1 is 1.4 points worse on the sarcasm headlines
PIECE_TOKENS = 4_000_000  # counted at once: 32 MB per array


@dataclass(frozen=True, slots=True)
class Events:
    """Every predicted token with its two predecessors; before the start of a document they are end of text."""

    second_last: np.ndarray  # int64
    last: np.ndarray  # int64
    token: np.ndarray  # int64
    document: np.ndarray  # int64, index within the shard

    def where(self, mask: np.ndarray) -> "Events":
        return Events(self.second_last[mask], self.last[mask], self.token[mask], self.document[mask])


@dataclass(frozen=True, slots=True)
class Tally:
    """Sorted distinct keys with the number of occurrences of each."""

    keys: np.ndarray  # int64, token ids as digits in base vocab_size
    counts: np.ndarray  # int64

    def of(self, keys: np.ndarray) -> np.ndarray:
        """Number of occurrences of each of `keys`, int64."""
        if not len(self.keys):
            return np.zeros(len(keys), np.int64)
        place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[place] == keys, self.counts[place], 0)

    def of_histories(self, vocab_size: int) -> "Tally":
        """The same with the last token summed out."""
        return merge([Tally(self.keys // vocab_size, self.counts)])


def merge(tallies: Sequence[Tally]) -> Tally:
    """One tally of all given keys, which need not be distinct."""
    keys = np.concatenate([tally.keys for tally in tallies]) if tallies else np.zeros(0, np.int64)
    counts = np.concatenate([tally.counts for tally in tallies]) if tallies else np.zeros(0, np.int64)
    if not len(keys):
        return Tally(keys, counts)
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], counts[order]
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return Tally(keys[first], np.add.reduceat(counts, first))


@dataclass(frozen=True, slots=True)
class NgramCounts:
    unigrams: np.ndarray  # int64, one per token id
    bigrams: Tally
    trigrams: Tally

    def __add__(self, other: "NgramCounts") -> "NgramCounts":
        return NgramCounts(
            self.unigrams + other.unigrams,
            merge([self.bigrams, other.bigrams]),
            merge([self.trigrams, other.trigrams]),
        )


@dataclass(frozen=True, slots=True)
class Ratios:
    """The relative frequency of each event after its history, and the bucket of that history's count."""

    frequency: np.ndarray  # float64, 0 where the history was never seen
    bucket: np.ndarray  # int64, 0 = never seen


class NgramModel:
    """Unigram, bigram and trigram over the same counts."""

    def __init__(self, counts: NgramCounts, vocab_size: int):
        self.counts = counts
        self.vocab_size = vocab_size
        self.last = counts.bigrams.of_histories(vocab_size)
        self.last_two = counts.trigrams.of_histories(vocab_size)
        self.bigram_weights = np.zeros(N_BUCKETS)  # one per bucket
        self.trigram_weights = np.zeros(N_BUCKETS)

    def unigram(self, events: Events) -> np.ndarray:
        return (self.counts.unigrams[events.token] + 1) / (self.counts.unigrams.sum() + self.vocab_size)

    def bigram_ratios(self, events: Events) -> Ratios:
        return _ratios(self.counts.bigrams, self.last, events.last, events.token, self.vocab_size)

    def trigram_ratios(self, events: Events) -> Ratios:
        history = events.second_last * self.vocab_size + events.last
        return _ratios(self.counts.trigrams, self.last_two, history, events.token, self.vocab_size)

    def probabilities(self, events: Events) -> dict[str, np.ndarray]:
        """Name of the model -> P(token | history) of every event, float64."""
        unigram = self.unigram(events)
        bigram = interpolate(self.bigram_ratios(events), self.bigram_weights, unigram)
        trigram = interpolate(self.trigram_ratios(events), self.trigram_weights, bigram)
        return {"unigram": unigram, "bigram": bigram, "trigram": trigram}

    def document_nats(self, shards: Sequence[TokenShard], end_of_text: int) -> dict[str, np.ndarray]:
        """Name of the model -> -log P summed over each document, float64, in the order of the documents."""
        sums: dict[str, list[np.ndarray]] = {name: [np.zeros(0)] for name in NGRAM_NAMES}
        for shard in shards:
            totals = {name: np.zeros(len(shard.offsets) - 1) for name in NGRAM_NAMES}
            for events in events_of(shard, end_of_text):
                for name, probability in self.probabilities(events).items():
                    totals[name] += np.bincount(events.document, -np.log(probability), len(totals[name]))
            for name, total in totals.items():
                sums[name].append(total)
        return {name: np.concatenate(parts) for name, parts in sums.items()}


def fit_ngrams(shards: Sequence[TokenShard], vocab_size: int, end_of_text: int) -> NgramModel:
    """A model of all documents in `shards`. Raises ValueError when there are too few to hold one out."""
    first = np.cumsum([0] + [len(shard.offsets) - 1 for shard in shards])  # number of a shard's first document
    places = {shard.path: int(place) for shard, place in zip(shards, first[:-1], strict=True)}

    def held_out(shard: TokenShard, events: Events) -> np.ndarray:
        return (events.document + places[shard.path]) % HELD_OUT_EVERY == 0

    kept = count_ngrams(shards, vocab_size, end_of_text, lambda *place: ~held_out(*place))
    held = count_ngrams(shards, vocab_size, end_of_text, held_out)
    if not len(kept.bigrams.keys) or not len(held.bigrams.keys):
        raise ValueError(
            f"{first[-1]} training documents are too few for n-gram baselines, which hold out one document in"
            f" {HELD_OUT_EVERY}; add documents to the sources"
        )
    trial, fitted = NgramModel(kept, vocab_size), NgramModel(kept + held, vocab_size)
    lower, bigrams, trigrams = [], [], []
    for shard in shards:
        for every in events_of(shard, end_of_text):
            events = every.where(held_out(shard, every))
            lower.append(trial.unigram(events))
            bigrams.append(trial.bigram_ratios(events))
            trigrams.append(trial.trigram_ratios(events))
    unigram = np.concatenate(lower)
    fitted.bigram_weights = fit_weights(_joined(bigrams), unigram)
    bigram = interpolate(_joined(bigrams), fitted.bigram_weights, unigram)
    fitted.trigram_weights = fit_weights(_joined(trigrams), bigram)
    return fitted


def count_ngrams(
    shards: Sequence[TokenShard],
    vocab_size: int,
    end_of_text: int,
    chosen: Callable[[TokenShard, Events], np.ndarray] | None = None,
) -> NgramCounts:
    """Counts of the events in `shards`, or of those that `chosen` marks True."""
    unigrams = np.zeros(vocab_size, np.int64)
    bigrams, trigrams = merge([]), merge([])
    for shard in shards:
        for events in events_of(shard, end_of_text):
            if chosen is not None:
                events = events.where(chosen(shard, events))
            unigrams += np.bincount(events.token, minlength=vocab_size)
            pair = events.last * vocab_size + events.token
            triple = events.second_last * vocab_size**2 + pair
            bigrams = merge([bigrams, Tally(*np.unique(pair, return_counts=True))])
            trigrams = merge([trigrams, Tally(*np.unique(triple, return_counts=True))])
    return NgramCounts(unigrams, bigrams, trigrams)


def events_of(shard: TokenShard, end_of_text: int) -> Iterator[Events]:
    """The predicted tokens of a shard in order, a few million at once: all but the first of each document."""
    lengths = np.diff(shard.offsets)
    first = 0
    while first < len(lengths):
        last = int(np.searchsorted(shard.offsets, shard.offsets[first] + PIECE_TOKENS, side="right")) - 1
        last = max(last, first + 1)  # a document longer than a piece is one piece
        flat = shard.tokens[shard.offsets[first] : shard.offsets[last]].astype(np.int64)
        document = np.repeat(np.arange(first, last), lengths[first:last])
        place = np.arange(len(flat)) + shard.offsets[first] - shard.offsets[document]
        predicted = np.flatnonzero(place > 0)
        second_last = np.where(place[predicted] > 1, flat[predicted - 2], end_of_text)
        yield Events(second_last, flat[predicted - 1], flat[predicted], document[predicted])
        first = last


def _ratios(tally: Tally, histories: Tally, history: np.ndarray, token: np.ndarray, vocab_size: int) -> Ratios:
    seen = histories.of(history)
    frequency = tally.of(history * vocab_size + token) / np.maximum(seen, 1)
    # frexp: the number of binary digits, so that bucket b has the counts 2**(b - 1) to 2**b - 1
    return Ratios(frequency, np.minimum(np.frexp(seen.astype(np.float64))[1], N_BUCKETS - 1).astype(np.int64))


def _joined(ratios: Sequence[Ratios]) -> Ratios:
    return Ratios(np.concatenate([r.frequency for r in ratios]), np.concatenate([r.bucket for r in ratios]))


def interpolate(ratios: Ratios, weights: np.ndarray, lower: np.ndarray) -> np.ndarray:
    weight = weights[ratios.bucket]
    return weight * ratios.frequency + (1 - weight) * lower


def fit_weights(ratios: Ratios, lower: np.ndarray) -> np.ndarray:
    """Weight of the longer history per bucket that maximises the probability of its events, by EM; 0 in bucket 0."""
    weights = np.full(N_BUCKETS, 0.5)
    n_events = np.bincount(ratios.bucket, minlength=N_BUCKETS)
    for _ in range(EM_STEPS):
        weights[0] = 0.0
        share = weights[ratios.bucket] * ratios.frequency
        posterior = share / (share + (1 - weights[ratios.bucket]) * lower)
        # a pseudo-count for either side: a weight of 1 would give some unseen token probability 0
        weights = (np.bincount(ratios.bucket, posterior, N_BUCKETS) + 1) / (n_events + 2)
    weights[0] = 0.0
    return weights


def words_and_pairs() -> Any:
    """The TF-IDF of words and word pairs. scikit-learn's own pattern drops words of one letter."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\b\w+\b")


def tfidf_logistic_predictions(
    train_texts: Sequence[str], train_labels: Sequence[str], texts: Sequence[str]
) -> list[str]:
    """The most probable label of each text by `tfidf_logistic_probabilities`."""
    labels = sorted(set(train_labels))
    return [labels[place] for place in tfidf_logistic_probabilities(train_texts, train_labels, texts).argmax(axis=1)]


def tfidf_logistic_probabilities(
    train_texts: Sequence[str], train_labels: Sequence[str], texts: Sequence[str]
) -> np.ndarray:
    """Probability of each label in sorted order, float64 (N, C), by logistic regression on TF-IDF of words and word
    pairs (scikit-learn)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(words_and_pairs(), LogisticRegression(C=LOGISTIC_C, max_iter=1000))
    model.fit(list(train_texts), list(train_labels))
    return model.predict_proba(list(texts))
