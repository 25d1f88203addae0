"""verification: copies and templates at equal Jaccard indexes, who goes for whom, and the planted duplicates."""

import random
import runpy
from pathlib import Path

import pytest

from pipeline.corpus.dedup.stage import DEDUP, DedupConfig
from pipeline.store.records import CORPUS, EVIDENCE
from pipeline.store.shards import EVIDENCE_FOLDER, read_table, shard_paths

BENCH = Path(__file__).parents[4] / "bench"


@pytest.fixture(scope="module")
def planting():
    return runpy.run_path(str(BENCH / "planted_duplicates.py"))


@pytest.fixture
def removed(store, written_documents):
    """{dropped page id: evidence} of {page id: text}."""

    def run(texts, **settings):
        rows = [("s", "x", name, text) for name, text in texts.items()]
        built = store.build(DEDUP, DedupConfig(**settings), written_documents(rows))
        kept = {r["page_id"] for p in shard_paths(built.handle.directory) for r in read_table(p, CORPUS).to_pylist()}
        found = {
            row["dropped_page_id"]: row
            for path in shard_paths(built.handle.directory, EVIDENCE_FOLDER)
            for row in read_table(path, EVIDENCE).to_pylist()
        }
        assert kept | found.keys() == texts.keys() and all(row["kept_page_id"] in kept for row in found.values())
        return found

    return run


def words(seed, n):
    rng = random.Random(seed)
    return [f"w{rng.randrange(10_000)}" for _ in range(n)]


def text(*parts):
    return " ".join(word for part in parts for word in part)


def test_verification_planted_sets_are_judged_within_the_bounds(planting, removed):
    total = planting["Score"]()
    for seed in (1, 2):
        planted = planting["planted_set"](seed, 150)
        found = {name: row["kept_page_id"] for name, row in removed(planted.texts).items()}
        planting["score"](planted, found, total)
    assert total.by_bin["0.7-0.8"][1] >= 40 and total.by_bin["0.8-0.9"][1] >= 60
    assert total.recall(0.8) >= 0.95, total.missed
    assert total.recall(0.7, 0.8) >= 0.8, total.missed
    assert total.n_removed >= 200 and total.precision >= 0.99, total.wrong


@pytest.mark.parametrize("size", [2, 3, 40])
def test_verification_pages_of_one_template_stay(removed, size):
    """A Jaccard index of 0.76, as of a copy with many edits, but the content stands in one piece."""
    frame = words(0, 200)
    texts = {f"p{i:02d}": text(frame[:120], words(i + 1, 25), frame[120:]) for i in range(size)}
    assert removed(texts) == {}
    copy = {
        "original": text(words(0, 225)),
        "copy": text([w if i % 30 else "edit" for i, w in enumerate(words(0, 225))]),
    }
    assert removed(copy).keys() == {"copy"}


def test_verification_of_a_large_template_only_true_copies_go(removed):
    frame = words(0, 200)
    texts = {f"p{i:02d}": text(frame[:120], words(i + 1, 40), frame[120:]) for i in range(60)}
    changed = words(8, 40)
    changed[20] = "changed"
    found = removed(texts | {"p07-copy": text(frame[:120], changed, frame[120:])})
    assert len(found) == 1 and found.keys() <= {"p07", "p07-copy"}


def test_verification_fillings_of_a_form_stay_and_edited_copies_of_a_text_go(removed):
    """Both differ in a few scattered words. Fillings differ at the same places, each from all others."""
    fixed = words(0, 400)
    forms = {}
    for i in range(4):
        own = list(fixed)
        for place in range(10, 400, 45):
            own[place] = f"name{i}x{place}"
        forms[f"form{i}"] = text(own)
    assert removed(forms) == {}
    rng = random.Random(1)
    copies = {"original": text(fixed)}
    for i in range(4):
        own = list(fixed)
        for place in rng.sample(range(400), 5):
            own[place] = f"edit{i}x{place}"
        copies[f"copy{i}"] = text(own)
    assert len(removed(copies)) == 4


def test_verification_article_in_the_frame_of_another_site_goes(removed):
    """The frames are passages of their own, but stand on other pages of their sites."""
    sites = {site: (words(f"{site} head", 25), words(f"{site} foot", 18)) for site in "ab"}
    texts = {
        f"{site}{i}": text(head, words(f"{site}{i}", 200), foot)
        for site, (head, foot) in sites.items()
        for i in range(8)
    }
    for site, (head, foot) in sites.items():
        texts[f"{site}-shared"] = text(head, words("shared", 300), foot)
    assert len(removed(texts)) == 1 and removed(texts).keys() <= {"a-shared", "b-shared"}


def test_verification_article_in_two_frames_of_its_own_goes(removed):
    texts = {name: text(words(name, 22), words("article", 300), words(f"{name} foot", 22)) for name in "ab"}
    assert len(removed(texts)) == 1


def test_verification_texts_with_different_endings_both_stay(removed):
    texts = {name: text(words("licence", 300), words(name, 40)) for name in "ab"}
    assert removed(texts) == {}


@pytest.mark.parametrize("n_own", [5, 14, 30])
def test_verification_passage_of_its_own_keeps_a_text(removed, n_own):
    texts = {"long": text(words(0, 400)), "short": text(words(0, 400)[:320], words(1, n_own))}
    assert removed(texts).keys() == (set() if n_own == 30 else {"short"})
    assert removed(texts, max_own_share=1.0).keys() == {"short"}


def test_verification_parts_go_for_the_page_that_holds_both(removed):
    one, other = words(1, 150), words(2, 90)
    found = removed({"one": text(one), "other": text(other), "both": text(one, other)})
    assert {name: row["kept_page_id"] for name, row in found.items()} == {"one": "both", "other": "both"}
    assert {row["rule"] for row in found.values()} == {"containment"}


@pytest.mark.parametrize(("n_edits", "gone"), [(2, {"excerpt", "edited"}), (6, {"excerpt"})])
def test_verification_texts_that_went_for_one_that_goes_are_judged_again(removed, n_edits, gone):
    """The excerpt is better made, comes first and takes its edited copy; then it goes for the whole, which is less
    like the copy: with many edits the copy stays."""
    own = words(0, 300)
    excerpt = own[:210]
    edited = list(excerpt)
    for i in range(n_edits):
        edited[7 + 33 * i] = "edit"
    whole = text(own) + "\nHome | News | About | Contact | Help\n"  # the last line makes it worse
    found = removed({"excerpt": text(excerpt), "edited": text(edited), "whole": whole})
    assert found.keys() == gone and {row["kept_page_id"] for row in found.values()} == {"whole"}
