"""Laws of dedup on random corpora: texts from few words, with copies, excerpts, frames and concatenations in them.

What is claimed is recomputed here from the texts, by sets of tuples.
"""

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.corpus.dedup.stage import DEDUP, DedupConfig
from pipeline.store.engine import Done
from pipeline.store.records import CORPUS, DROPPED, EVIDENCE, FILTERED, Counts, Shards
from pipeline.store.shards import DROPPED_FOLDER, EVIDENCE_FOLDER, read_table, shard_paths, text_digest, write_rows
from pipeline.store.store import Outcome, Stage, Store

CFG = DedupConfig()
FEW = settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)

numbers = st.integers(0, 10**9)


class InThisProcess:
    def map(self, function, items, **limits):
        return (Done(function(item)) for item in items)


def passage(draw, n_words):
    """Words of which hardly two passages share five in a row."""
    state = draw(numbers)
    out = []
    for _ in range(n_words):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        out.append(f"w{(state >> 33) % 3000}")
    return out


def _copy(draw, own):
    for _ in range(draw(st.integers(0, 8))):
        own[draw(numbers) % len(own)] = f"e{draw(numbers)}"
    return own


def _excerpt(draw, own):
    start = draw(numbers) % len(own)
    return own[start : start + 1 + draw(numbers) % len(own)]


CHANGES = {
    "copy": _copy,
    "excerpt": _excerpt,
    "longer": lambda draw, own: own + passage(draw, draw(st.integers(1, 40))),
    "framed": lambda draw, own: passage(draw, 20) + own + passage(draw, 20),
    "equal": lambda draw, own: own,
}


@st.composite
def corpora(draw):
    """Page id -> text; each new text is unrelated or made from an earlier one."""
    texts = [passage(draw, draw(st.integers(1, 150)))]
    for _ in range(draw(st.integers(4, 16))):
        base = list(draw(st.sampled_from(texts)))
        change = draw(st.sampled_from(["new", "both", *CHANGES]))
        if change == "new":
            texts.append(passage(draw, draw(st.integers(1, 150))))
        elif change == "both":
            texts.append(base + draw(st.sampled_from(texts)))
        else:
            texts.append(CHANGES[change](draw, base))
    # capitals and line breaks are no difference
    return {
        f"p{i:02d}": ("\n" if i % 3 else " ").join(word.upper() if i % 4 == 3 else word for word in own)
        for i, own in enumerate(texts)
    }


def grams(text):
    own = re.findall(r"\w+", text.lower())
    return {tuple(own[i : i + 5]) for i in range(max(1, len(own) - 4))}


def neutral():
    row = {}
    for field in FILTERED:
        kind = str(field.type)
        empty = [] if kind.startswith(("map", "list")) else "" if "string" in kind else 0
        row[field.name] = None if field.nullable else empty
    return row


def deduplicated(texts, qualities=None, cfg=CFG):
    """Kept rows, and those of dropped/ and evidence/; `qualities` sets a measure that quality_of reads."""

    def write(_, inputs, work):
        rows = [
            neutral()
            | {"id": text_digest(" ".join(text.lower().split())), "page_id": name, "source": "s", "url": name}
            | {"text": text, "n_words": len(text.split())}
            | {"alphabetic_word_fraction": (qualities or {}).get(name, 1.0)}
            for name, text in texts.items()
        ]
        write_rows(work.directory / "s.parquet", rows, FILTERED)
        return Outcome(rows=len(rows), counts=Counts(rows_in=len(rows), kept=len(rows)))

    with TemporaryDirectory() as folder:
        store = Store(root=Path(folder), engine=InThisProcess())
        handle = store.build(Stage(name="filter", version=1, function=write, handle=Shards), {}).handle
        built = store.build(DEDUP, cfg, handle)

        def rows_of(where, schema):
            paths = shard_paths(built.handle.directory, where)
            return [row for path in paths for row in read_table(path, schema).to_pylist()]

        return SimpleNamespace(
            counts=built.counts,
            kept={row["page_id"]: row for row in rows_of("", CORPUS)},
            dropped={row["page_id"]: row for row in rows_of(DROPPED_FOLDER, DROPPED)},
            evidence={row["dropped_page_id"]: row for row in rows_of(EVIDENCE_FOLDER, EVIDENCE)},
        )


def random_qualities(texts, seed):
    return {name: ((seed >> i) % 4) / 4 for i, name in enumerate(texts)}


@FEW
@given(corpora(), numbers)
def test_dedup_nobody_goes_without_evidence_against_a_kept_document(texts, seed):
    found = deduplicated(texts, random_qualities(texts, seed))
    assert found.evidence.keys() == found.dropped.keys()
    for name, row in found.evidence.items():
        kept = row["kept_page_id"]
        assert kept in found.kept
        one, other = grams(texts[name]), grams(texts[kept])
        shared = len(one & other)
        assert abs(row["similarity"] - shared / len(one | other)) < 1e-9
        assert abs(row["containment"] - shared / min(len(one), len(other))) < 1e-9
        if row["rule"] == "exact":
            assert texts[name].lower().split() == texts[kept].lower().split()
        elif row["rule"] == "similarity":
            assert row["similarity"] >= CFG.min_similarity
        else:
            assert row["rule"] == "containment" and shared >= CFG.min_containment * len(one)
            assert len(one) <= len(other)


@FEW
@given(corpora(), numbers)
def test_dedup_rows_are_conserved_and_clusters_add_up(texts, seed):
    found = deduplicated(texts, random_qualities(texts, seed))
    assert found.counts.is_conserved() and found.counts.rows_in == len(texts)
    assert found.kept.keys() | found.dropped.keys() == texts.keys()
    assert not found.kept.keys() & found.dropped.keys()
    assert sum(row["cluster_size"] for row in found.kept.values()) == len(texts)
    assert all(found.kept[row["family_id"]]["family_id"] == row["family_id"] for row in found.kept.values())


@FEW
@given(corpora())
def test_dedup_of_its_own_output_drops_nothing(texts):
    """With qualities as they are measured on the texts; of three that each beat the next one, two may stay."""
    kept = deduplicated(texts).kept
    again = deduplicated({name: texts[name] for name in kept})
    assert again.kept.keys() == kept.keys()


@FEW
@given(corpora(), st.randoms(use_true_random=False), numbers)
def test_dedup_order_of_input_does_not_matter(texts, rng, seed):
    names = list(texts)
    rng.shuffle(names)
    qualities = random_qualities(texts, seed)
    one, other = deduplicated(texts, qualities), deduplicated({name: texts[name] for name in names}, qualities)
    assert one.kept == other.kept and one.evidence == other.evidence


@FEW
@given(corpora(), numbers)
def test_dedup_exact_copies_always_go(texts, seed):
    doubled = texts | {f"{name}-again": text.title() for name, text in texts.items()}
    found = deduplicated(doubled, random_qualities(doubled, seed))
    kept = [" ".join(texts[name.removesuffix("-again")].lower().split()) for name in found.kept]
    assert len(kept) == len(set(kept)) <= len(texts)


@FEW
@given(corpora())
def test_dedup_unrelated_document_changes_nothing_for_the_others(texts):
    before = deduplicated(texts)
    after = deduplicated(texts | {"z": " ".join(f"z{i}" for i in range(60))})
    assert after.kept.keys() == before.kept.keys() | {"z"}
    assert after.evidence == before.evidence


@FEW
@given(corpora())
def test_dedup_text_that_goes_leaves_no_passage_behind(texts):
    """No run of words of a dropped text, as long as a passage, is in no kept text."""
    found = deduplicated(texts)
    everywhere = {gram for name in found.kept for gram in grams(texts[name])}
    for name in found.dropped:
        own = re.findall(r"\w+", texts[name].lower())
        lost = [tuple(own[i : i + 5]) not in everywhere for i in range(len(own) - 4)]
        longest = max((len(run) for run in "".join(map("01".__getitem__, lost)).split("0")), default=0)
        # in the middle of a text a passage of n words makes n + 4 such runs; an article framed twice loses one frame
        assert longest < max(CFG.min_own_words, CFG.max_own_share * len(own)) + 4 or _is_framed(lost)


def _is_framed(lost):
    return lost[0] and lost[-1]
