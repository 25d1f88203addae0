"""Fits the weights by which html_text chooses blocks, and says what they reach on pages they were not fitted on.

In: --data (the folder of bench/extraction_pages.py). Out: word-level F1 by kind of page, cross-validated: weights,
`caution` and `sure` are all chosen inside the folds, by a second cross-validation over the training pages; several
seeds. With --write, pipeline/corpus/clean/html_weights.json from all pages.

The target of a block is the share of its text that stands in the gold text; the fit is ridge regression, each page
counts alike and within it each word.

    python -m bench.fit_extraction --data ../data/extraction --seeds 3 --write
"""

import argparse
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.extraction_pages import GoldPage, by_kind, f1, gold_pages, markdown_table, words
from pipeline.corpus.clean.html_article import article
from pipeline.corpus.clean.html_blocks import Block
from pipeline.corpus.clean.html_choice import bounded, choice, expected_f1, features, found_in, lengths, units_of
from pipeline.corpus.clean.html_text import by_resiliparse, by_trafilatura, page_blocks, parsed

WEIGHTS = Path(__file__).parents[1] / "pipeline" / "corpus" / "clean" / "html_weights.json"
RIDGE = 300.0
MODELS = {"resiliparse": ("resiliparse",), "both": ("resiliparse", "trafilatura")}
CAUTIONS = (1.0, 1.1, 1.2, 1.3, 1.4)
SURES = (0.0, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 1.1)
N_FOLDS = 5
SMALLEST_WEIGHT = 0.02  # of a block, where a page has 100 in all


@dataclass(slots=True)
class Prepared:
    page: GoldPage
    blocks: list[Block]
    units: list[Block]
    unit_of: np.ndarray  # by block
    size: np.ndarray
    matrices: dict[str, np.ndarray]  # by model, with a last column of ones
    names: dict[str, list[str]]
    target: np.ndarray
    weight: np.ndarray
    words: list[Counter[str]]  # by block
    gold: Counter[str]


@dataclass(slots=True)
class Fit:
    mean: np.ndarray
    deviation: np.ndarray
    weights: np.ndarray

    def raw(self, matrix: np.ndarray) -> np.ndarray:
        return (matrix - self.mean) / self.deviation @ self.weights


def prepare(page: GoldPage) -> Prepared | None:
    tree, text = parsed(page.page)
    found, with_noscript = ([], False) if tree is None else page_blocks(tree)
    if not found:
        return None
    blocks, unit_of = units_of(found)
    texts = {"resiliparse": by_resiliparse(text, with_noscript), "trafilatura": by_trafilatura(tree)}
    matrices, names = {}, {}
    for model, extractors in MODELS.items():
        matrix, names[model] = features(blocks, {name: texts[name] for name in extractors})
        matrices[model] = np.concatenate([matrix, np.ones((len(blocks), 1))], axis=1)
    counts = [words(block.text) for block in blocks]
    n_words = np.array([count.total() for count in counts], np.float64)
    weight = 100 * n_words / max(1.0, n_words.sum()) + SMALLEST_WEIGHT
    target = found_in(blocks, page.text)
    gold = words(page.text)
    by_block = [words(block.text) for block in found]
    return Prepared(page, found, blocks, unit_of, lengths(blocks), matrices, names, target, weight, by_block, gold)


def fitted(pages: list[Prepared], model: str) -> Fit:
    matrix = np.concatenate([page.matrices[model] for page in pages])
    target = np.concatenate([page.target for page in pages])
    weight = np.concatenate([page.weight for page in pages])[:, None]
    mean, deviation = matrix.mean(axis=0), matrix.std(axis=0) + 1e-6
    mean[-1], deviation[-1] = 0.0, 1.0
    scaled = (matrix - mean) / deviation
    penalty = np.full(len(mean), RIDGE)
    penalty[-1] = 0.0
    gram = scaled.T @ (scaled * weight) + np.diag(penalty)
    return Fit(mean, deviation, np.linalg.solve(gram, scaled.T @ (target * weight[:, 0])))


def outcomes(page: Prepared, fits: dict[str, Fit]) -> np.ndarray:
    """F1 for every (caution, sure); whether trafilatura was asked stands in the second layer."""
    expected, reached = {}, {}
    for model, fit in fits.items():
        score = bounded(page.units, fit.raw(page.matrices[model]))
        expected[model] = expected_f1(score, page.size)
        reached[model] = []
        for caution in CAUTIONS:
            kept = article(page.blocks, choice(score, page.size, caution)[page.unit_of], page.page.page)
            got = Counter[str]()
            for i in np.flatnonzero(kept):
                got.update(page.words[i])
            reached[model].append(f1(got, page.gold))
    table = np.zeros((2, len(CAUTIONS), len(SURES)))
    for j, sure in enumerate(SURES):
        asked = expected["resiliparse"] < sure
        table[0, :, j] = reached["both" if asked else "resiliparse"]
        table[1, :, j] = asked
    return table


def folds(pages: list[Prepared], seed: int) -> np.ndarray:
    """A fold for each page; pages of one kind are dealt out evenly."""
    order = np.random.default_rng(seed).permutation(len(pages))
    order = sorted(order, key=lambda i: pages[i].page.kind)
    fold = np.zeros(len(pages), np.int64)
    fold[order] = np.arange(len(pages)) % N_FOLDS
    return fold


def held_out(pages: list[Prepared], seed: int) -> list[np.ndarray]:
    """`outcomes` of every page by weights that did not see it."""
    fold, tables = folds(pages, seed), [np.zeros(0)] * len(pages)
    for k in range(N_FOLDS):
        rest = [page for page, its in zip(pages, fold, strict=True) if its != k]
        fits = {model: fitted(rest, model) for model in MODELS}
        for i in np.flatnonzero(fold == k):
            tables[i] = outcomes(pages[i], fits)
    return tables


def best(tables: list[np.ndarray], max_share: float) -> tuple[int, int]:
    """The (caution, sure) of the best mean, among those that ask trafilatura for at most `max_share` of pages."""
    mean = np.mean(tables, axis=0)
    allowed = np.where(mean[1] <= max_share, mean[0], -1.0)
    return tuple(int(i) for i in np.unravel_index(allowed.argmax(), allowed.shape))  # type: ignore[return-value]


def cross_validated(pages: list[Prepared], seed: int, max_share: float) -> tuple[list[float], list[float]]:
    """F1 of every page, and whether trafilatura was asked; nothing about a page is chosen with that page."""
    fold = folds(pages, seed)
    score, asked = [0.0] * len(pages), [0.0] * len(pages)
    for k in range(N_FOLDS):
        rest = [page for page, its in zip(pages, fold, strict=True) if its != k]
        caution, sure = best(held_out(rest, seed + 1000 + k), max_share)
        fits = {model: fitted(rest, model) for model in MODELS}
        for i in np.flatnonzero(fold == k):
            score[i], asked[i] = outcomes(pages[i], fits)[:, caution, sure]
    return score, asked


def weights_of(pages: list[Prepared], seeds: int, max_share: float) -> dict[str, Any]:
    by_seed = [held_out(pages, seed) for seed in range(seeds)]
    tables = [np.mean([held[i] for held in by_seed], axis=0) for i in range(len(pages))]
    caution, sure = best(tables, max_share)
    print("chosen:", CAUTIONS[caution], SURES[sure], np.mean(tables, axis=0)[:, caution, sure])
    made: dict[str, Any] = {"caution": CAUTIONS[caution], "sure": SURES[sure]}
    for model in MODELS:
        fit = fitted(pages, model)
        weights = fit.weights / fit.deviation
        bias = float(weights[-1] - weights[:-1] @ fit.mean[:-1])
        made[model] = {"bias": round(bias, 4)}
        made[model] |= {name: round(float(w), 4) for name, w in zip(pages[0].names[model], weights, strict=False)}
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-share", type=float, default=0.1, help="of pages that trafilatura is asked for")
    parser.add_argument("--write", action="store_true", help="write pipeline/corpus/clean/html_weights.json")
    arguments = parser.parse_args()
    every = gold_pages(arguments.data)
    prepared = {page.id: prepare(page) for page in every}
    pages = [page for page in prepared.values() if page is not None]
    header, rows = [], []
    for seed in range(arguments.seeds):
        score, asked = cross_validated(pages, seed, arguments.max_share)
        scores = {page.page.id: value for page, value in zip(pages, score, strict=True)}
        for page in every:  # without a block of text
            scores.setdefault(page.id, f1(Counter(), words(page.text)))
        means = by_kind(every, scores)
        rows.append([str(seed), *(f"{mean:.3f}" for mean in means.values()), f"{np.mean(asked):.2f}"])
        header = ["seed", *means, "share of trafilatura"]
    print(markdown_table(header, rows))
    if arguments.write:
        made = weights_of(pages, arguments.seeds, arguments.max_share)
        WEIGHTS.write_text(json.dumps(made, indent=1) + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
