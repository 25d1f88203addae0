"""examples.md and its warnings: what is wrong with labelled rows is shown before a model is trained on them."""

import json
import random

import numpy as np
import pytest

from pipeline.corpus.examples.near_texts import letters
from pipeline.corpus.examples.overview import contradictions
from pipeline.corpus.examples.splits import row_groups
from pipeline.corpus.examples.stage import LabelledFile
from pipeline.store.store import Store
from pipeline.tasks.classification import KIND, ClassificationExamplesConfig


def sentences(n_rows: int, seed: int = 0, n_words: int = 8) -> list[str]:
    rng = random.Random(seed)
    return [" ".join("".join(rng.choices("adeilmnorst", k=5)) for _ in range(n_words)) for _ in range(n_rows)]


def build(tmp_path, rows: list[tuple[str, str]], **settings):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": text, "label": label}) for text, label in rows))
    cfg = ClassificationExamplesConfig(text="text", label="label", **settings)
    return KIND.build_examples(Store(root=tmp_path / "store"), LabelledFile(path), cfg, tmp_path)


@pytest.mark.parametrize("seed", range(5))
def test_contradictions_equal_a_comparison_of_all_pairs(seed):
    rng = random.Random(seed)
    texts = [" ".join(rng.choices("abcdefgh", k=rng.randint(3, 6))) for _ in range(60)]
    strata = [(rng.choice("xy"),) for _ in texts]
    groups = row_groups(texts, [None] * 60, ["train"] * 60, 0.8)
    found = contradictions(texts, groups, strata, 0.8)
    expected = set()
    for i, one in enumerate(texts):
        for j in range(i + 1, 60):
            left, right = set(letters(one)), set(letters(texts[j]))
            if strata[i] != strata[j] and len(left & right) >= 0.8 * len(left | right):
                expected.add((i, j))
    assert {(pair.first, pair.second) for pair in found} == expected and expected
    assert [pair.similarity for pair in found] == sorted((pair.similarity for pair in found), reverse=True)


def test_contradictions_of_one_large_template_take_no_comparison_of_all_pairs():
    texts = [f"your order {i} has arrived today" for i in range(20_000)]
    strata = [("ab"[i % 2],) for i in range(20_000)]
    assert len(contradictions(texts, [0] * 20_000, strata, 0.8)) <= 200_000


def test_overview_names_drops_splits_lengths_and_near_duplicates_with_other_labels(tmp_path, caplog):
    texts = sentences(200, n_words=9)
    rows = [(text, "ab"[i % 2]) for i, text in enumerate(texts)]
    rows += [(f"{texts[0]} !", "b"), ("", "a"), (texts[1], None), (texts[2], "a"), (texts[4], "b")]
    built = build(tmp_path, rows)
    text = (built.handle.directory / "examples.md").read_text()
    assert "205 rows of rows.jsonl: 200 examples, 5 rows dropped." in text
    warning = "2 examples have a near duplicate with another label: row 1 (a) and row 201 (b), 100 % of their words"
    assert warning in text and warning in caplog.text
    assert built.record["measures"]["contradictions"] == 1
    assert "| no\\_text | 1 | row 202 |" in text and "| no\\_label | 1 | row 203 |" in text
    assert "| conflicting\\_labels | 2 | row 205, row 5 |" in text
    assert "2 examples are in groups of more than one" in text
    lengths = [len(one) for one in [*texts, f"{texts[0]} !"] if one != texts[4]]
    row = next(line for line in text.splitlines() if line.startswith("| characters |"))
    assert f"| {min(lengths)} |" in row and f"| {int(np.quantile(lengths, 0.5, method='nearest'))} |" in row
    assert "| label | train | validation | test |" in text


def test_overview_of_texts_of_one_template_says_what_to_do(tmp_path):
    rows = [(f"your order {i} has arrived today", "a") for i in range(60)]
    rows += [(text, "b") for text in sentences(200)]
    built = build(tmp_path, rows)
    text = (built.handle.directory / "examples.md").read_text()
    assert "60 of 260 examples form one group" in text and "raise the setting similarity" in text
    assert "test has 17 examples: a metric that is measured on fewer than 100 is very uncertain" in text


def test_overview_shows_no_text_of_the_rows(tmp_path):
    """It is shown with the asset, where `gristmill forget` cannot remove it."""
    texts = sentences(120)
    rows = [(text, "ab"[i % 2]) for i, text in enumerate(texts)]
    rows += [(f"{text}!", "ba"[i % 2]) for i, text in enumerate(texts)]
    text = (build(tmp_path, rows).handle.directory / "examples.md").read_text()
    assert not any(word in text for one in texts for word in one.split())
