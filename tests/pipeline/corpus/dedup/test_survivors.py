"""survivors: of two copies of a text the better made one, by its number and through the stage."""

import random

import numpy as np
import pyarrow as pa
import pytest

from pipeline.corpus.dedup.stage import DEDUP, DedupConfig
from pipeline.corpus.dedup.survivors import QUALITY_COLUMNS, STEP, quality_of
from pipeline.corpus.signals.quality import quality_signals
from pipeline.store.engine import LocalProcesses
from pipeline.store.records import CORPUS, FILTERED, Counts, Shards
from pipeline.store.shards import read_table, shard_paths, text_digest, write_rows
from pipeline.store.store import Outcome, Stage

NAVIGATION = "Home\nProducts\nAbout us\nContact\nLog in\nRegister\nShopping cart\nHelp\nNews archive\nTerms of use\n"
ONE_LINE_NAVIGATION = "Home | Products | About us | Contact | Log in | Register | Shopping cart | Help | News\n"


def prose(seed, n_sentences=30):
    rng = random.Random(seed)
    nouns = ("miller", "stone", "river", "wheel", "grain", "flour", "sack", "morning", "village", "bridge", "horse")
    verbs = ["carries", "finds", "watches", "turns", "leaves", "mends", "counts", "follows"]
    sentences = [
        f"The {rng.choice(nouns)} {rng.choice(verbs)} a {rng.choice(nouns)} near the {rng.choice(nouns)}"
        f" while {rng.choice(nouns)} number {rng.randrange(10_000)} {rng.choice(verbs)} another {rng.choice(nouns)}."
        for _ in range(n_sentences)
    ]
    return "\n\n".join(" ".join(sentences[i : i + 5]) for i in range(0, n_sentences, 5))


def row(name, text, source="mill"):
    neutral = {
        field.name: None
        if field.nullable
        else []
        if pa.types.is_nested(field.type)
        else ""
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
        else 0
        for field in FILTERED
    }
    own = {"id": text_digest(text), "page_id": name, "source": source, "url": name, "text": text}
    return neutral | quality_signals(text)[0] | own


def quality(*texts):
    rows = [row(str(i), text) for i, text in enumerate(texts)]
    return quality_of(pa.Table.from_pylist(rows, schema=FILTERED)).to_pylist()


def mojibake(text):
    return text.replace("near", "n\u00e9ar", 6).encode().decode("latin-1")


def cut_words(text):
    return text.replace("near", "ne-\nar", 6)


def spaced_words(text):
    return text.replace("another", "a n o t h e r", 4)


DAMAGES = {
    "navigation": lambda text: NAVIGATION + text,
    "navigation in one line": lambda text: ONE_LINE_NAVIGATION + text + "\n" + ONE_LINE_NAVIGATION,
    "mojibake": mojibake,
    "cut words": cut_words,
    "spaced words": spaced_words,
    "unreadable bytes": lambda text: text.replace("near", "ne\ufffdr", 6),
    "every paragraph twice": lambda text: "\n\n".join(part for part in text.split("\n\n") for _ in (0, 1)),
}


@pytest.fixture
def kept_of(store):
    """The page ids that dedup keeps of {page id: text}."""

    def kept(texts, **settings):
        def write(cfg, inputs, work):
            rows = [row(name, text, name.split("/")[0]) for name, text in texts.items()]
            write_rows(work.directory / "s.parquet", rows, FILTERED)
            return Outcome(rows=len(rows), counts=Counts(rows_in=len(rows), kept=len(rows)))

        stage = Stage(name="filter", version=1, function=write, handle=Shards)
        handle = store.build(stage, {"key": text_digest(*texts, *texts.values())}).handle
        built = store.build(DEDUP, DedupConfig(**settings), handle).handle
        return [
            one["page_id"] for path in shard_paths(built.directory) for one in read_table(path, CORPUS).to_pylist()
        ]

    return kept


@pytest.mark.parametrize("damage", DAMAGES)
def test_quality_damaged_copy_is_worse(damage):
    clean, damaged = quality(prose(1), DAMAGES[damage](prose(1)))
    assert clean >= damaged + STEP / 2


@pytest.mark.parametrize("damage", DAMAGES)
def test_dedup_of_a_clean_and_a_damaged_copy_keeps_the_clean_one(kept_of, damage):
    assert kept_of({"a/damaged": DAMAGES[damage](prose(2)), "b/clean": prose(2)}) == ["b/clean"]


def test_dedup_of_copies_of_equal_quality_keeps_the_longer(kept_of):
    text = prose(3)
    longer = text.replace("The miller", "The old miller").replace("The river", "The wide river")
    assert kept_of({"a/short": text, "b/long": longer}) == ["b/long"]


def test_dedup_of_copies_alike_in_all_keeps_that_of_the_first_source(kept_of):
    text = prose(4)
    texts = {"a/one": text, "b/two": text.replace("number", "Number")}
    assert kept_of(texts) == ["a/one"]
    assert kept_of(texts, source_priority=("b", "a")) == ["b/two"]


@pytest.mark.parametrize("share", [0.5, 0.8, 0.9, 0.97])
def test_dedup_excerpt_never_takes_the_place_of_the_whole(kept_of, share):
    """Even where the rest of the whole is of a lower quality than the excerpt, as long as it is text."""
    whole = prose(5) + "\n\nThe mills of the valley, as they were counted\nin the year after the flood and\nbefore"
    excerpt = whole[: int(share * len(whole))]
    assert kept_of({"a/excerpt": excerpt, "b/whole": whole}) == ["b/whole"]


def test_quality_is_in_steps_between_0_and_1():
    texts = [prose(6), NAVIGATION, "", "x", "\ufffd" * 50, " ".join("abcdefghij"), "\n" * 10, prose(7).upper()]
    values = np.array(quality(*texts))
    assert ((values >= 0) & (values <= 1)).all()
    assert np.allclose(values / STEP, np.round(values / STEP))
    assert values[0] > 0.7 and values[1] < 0.2


def test_quality_of_no_rows_is_empty():
    assert quality_of(FILTERED.empty_table()).to_pylist() == []


def test_quality_reads_the_columns_that_it_names():
    table = pa.Table.from_pylist([row("a", prose(8))], schema=FILTERED)
    assert quality_of(table.select(list(QUALITY_COLUMNS))) == quality_of(table)


def test_quality_does_not_depend_on_the_other_rows():
    texts = [prose(9), NAVIGATION + prose(9), "x"]
    assert quality(*texts) == [value for text in texts for value in quality(text)]


def test_quality_of_a_very_long_text_is_that_of_its_beginning():
    text = "".join(f"Sentence number {i} of a long book is short.\n" for i in range(30_000))
    table = pa.Table.from_pylist([row("a", "The mill.") | {"text": text, "n_words": 240_000}], schema=FILTERED)
    spoiled = table.set_column(
        table.column_names.index("text"), "text", pa.array([text + "\ufffd" * 100_000], pa.large_string())
    )
    assert quality_of(table) == quality_of(spoiled)


def test_quality_in_worker_processes_is_the_same():
    texts = [prose(10), mojibake(prose(10)), NAVIGATION]
    answers = LocalProcesses(n_workers=1).map(
        quality_of, [pa.Table.from_pylist([row("a", t)], schema=FILTERED) for t in texts]
    )
    assert [answer.value.to_pylist()[0] for answer in answers] == quality(*texts)
