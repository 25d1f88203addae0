"""decontaminate: what is cut or dropped, what is left alone, and that nothing of an example stays."""

import random
import re
import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.corpus.decontaminate.stage import DECONTAMINATE, DecontaminateConfig, DecontaminateRecipe
from pipeline.corpus.examples.rows import Row
from pipeline.corpus.examples.stage import EXAMPLE
from pipeline.corpus.text_repair import normalised
from pipeline.store.engine import LocalProcesses
from pipeline.store.errors import CorruptShard
from pipeline.store.records import CONTAMINATION, CORPUS, DROPPED, Counts, Shards
from pipeline.store.shards import EVIDENCE_FOLDER, read_table, shard_paths, text_digest, write_rows
from pipeline.store.store import Outcome, Stage, Store
from pipeline.store.verdict import conservation

VOCABULARY = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "rt", "lk", "st", "mble")]


def words(rng, n):
    return rng.choices(VOCABULARY, k=n)


def prose(rng, n):
    return " ".join(words(rng, n))


@pytest.fixture
def corpus(store, neutral_document):
    """Shards as dedup leaves them, from {shard: [text]}."""

    def write(texts, where=None):
        def rows(cfg, inputs, work):
            for shard, of_shard in texts.items():
                documents = [
                    neutral_document
                    | {"id": text_digest(text), "page_id": f"{shard}-{i}", "source": shard, "url": f"x://{shard}/{i}"}
                    | {"text": text, "n_words": len(text.split()), "title": f"Title {i}"}
                    for i, text in enumerate(of_shard)
                ]
                for document in documents:
                    document.pop("split", None)
                write_rows(work.directory / f"{shard}.parquet", documents, CORPUS)
            n_rows = sum(map(len, texts.values()))
            return Outcome(rows=n_rows, counts=Counts(rows_in=n_rows, kept=n_rows))

        stage = Stage(name="dedup", version=1, function=rows, handle=Shards)
        key = text_digest(*(part for shard, own in texts.items() for part in (shard, *own)))
        return (where or store).build(stage, {"key": key}).handle

    return write


@pytest.fixture
def examples(store):
    """A task's examples as the stage of that name leaves them, from [(split, text)]."""

    def write(rows, where=None):
        def written(cfg, inputs, work):
            table = [
                {"id": text_digest(text), "text": text, "label": "x", "split": split, "group_id": str(i)}
                for i, (split, text) in enumerate(rows)
            ]
            write_rows(work.directory / "examples.parquet", table, EXAMPLE)
            return Outcome(rows=len(rows), counts=Counts(rows_in=len(rows), kept=len(rows)))

        stage = Stage(name="examples", version=1, function=written, handle=Shards)
        return (where or store).build(stage, {"key": [list(row) for row in rows]}).handle

    return write


@pytest.fixture
def run(store, corpus, examples):
    """The stage on {shard: [text]} and one task's [(split, text)]."""

    def build(texts, rows, **fields):
        recipe = DecontaminateRecipe(config=DecontaminateConfig(**fields), tasks=("moods",))
        return store.build(DECONTAMINATE, recipe, corpus(texts), examples(rows))

    return build


def rows_of(built, folder="", schema=CORPUS):
    return [
        row for path in shard_paths(built.handle.directory, folder) for row in read_table(path, schema).to_pylist()
    ]


def kept_texts(built):
    return [row["text"] for row in rows_of(built)]


def evidence_of(built):
    return rows_of(built, EVIDENCE_FOLDER, CONTAMINATION)


def test_decontaminate_without_tasks_passes_every_byte_through(store, corpus):
    rng = random.Random(1)
    given_ = corpus({"a": [prose(rng, 50), prose(rng, 60)], "b": [prose(rng, 40)], "c": []})
    built = store.build(DECONTAMINATE, DecontaminateRecipe(), given_)
    assert built.counts == Counts(rows_in=3, kept=3)
    assert built.handle.digest == given_.digest
    assert not evidence_of(built)


def test_decontaminate_cuts_an_example_with_a_margin_out_of_a_long_document(run):
    rng = random.Random(2)
    before, item, after = prose(rng, 400), prose(rng, 10), prose(rng, 400)
    text = f"{before}. {item.title()}! {after}"
    built = run({"a": [prose(rng, 300), text]}, [("test", item)], margin=100)
    (row,) = evidence_of(built)
    _, document = rows_of(built)
    assert built.counts == Counts(rows_in=2, kept=2)
    assert text[row["start"] : row["end"]] == row["preview"] == item.title()
    pieces = [text[piece["start"] : piece["end"]] for piece in row["left"]]
    assert document["text"] == "\n\n".join(pieces)
    assert all(piece in text for piece in pieces) and text.startswith(pieces[0]) and text.endswith(pieces[1])
    n_cut = len(text) - len(item) - sum(map(len, pieces))
    assert 2 * 100 <= n_cut < 2 * 100 + 2 * 10  # words are not cut
    assert document["n_words"] == len(document["text"].split())
    assert document["id"] == row["new_id"] != row["id"]
    assert (row["task"], row["example_split"], row["n_shared"], row["example_share"]) == ("moods", "test", 1, 1.0)
    assert row["document_share"] == pytest.approx(10 / 810)
    assert built.record["measures"]["cut_documents"] == 1


def test_decontaminate_examples_that_share_their_text_are_all_named(store, corpus):
    """Questions about one passage are examples with one text and ids of their own (lm-eval#1056: contamination of
    what a model is judged on must be found before it is trained)."""
    rng = random.Random(6)
    passage, before, after = prose(rng, 40), prose(rng, 400), prose(rng, 400)

    def written(cfg, inputs, work):
        rows = [
            {"id": Row(passage, key=f"question {i}").id, "text": passage, "split": split, "group_id": "passage"}
            for i, split in enumerate(["test", "test", "train"])
        ]
        write_rows(work.directory / "examples.parquet", rows, EXAMPLE)
        return Outcome(rows=3, counts=Counts(rows_in=3, kept=3))

    examples = store.build(Stage(name="examples", version=1, function=written, handle=Shards), {}).handle
    recipe = DecontaminateRecipe(config=DecontaminateConfig(), tasks=("questions",))
    built = store.build(DECONTAMINATE, recipe, corpus({"a": [f"{before} {passage} {after}"]}), examples)
    (text,) = kept_texts(built)
    assert passage not in text and built.record["measures"]["cut_documents"] == 1
    named = {row["example_id"] for row in evidence_of(built)}
    assert named <= {Row(passage, key=f"question {i}").id for i in range(2)} and named


def test_decontaminate_drops_a_document_of_which_nothing_is_left(run):
    rng = random.Random(3)
    item = prose(rng, 30)
    built = run({"a": [prose(rng, 20) + " " + item, prose(rng, 50)]}, [("validation", item)])
    assert built.counts == Counts(rows_in=2, kept=1, dropped={"contaminated": 1})
    (dropped,) = rows_of(built, "dropped", DROPPED)
    assert (dropped["page_id"], dropped["reason"], dropped["score"]) == ("a-0", "contaminated", 1.0)
    (row,) = evidence_of(built)
    assert row["new_id"] is None and row["left"] == [] and row["n_shared"] == 18


def test_decontaminate_drops_a_document_that_would_fall_into_too_many_pieces(run):
    rng = random.Random(4)
    items = [prose(rng, 10) for _ in range(4)]
    text = " ".join(part for item in items for part in (prose(rng, 300), item)) + " " + prose(rng, 300)
    rows = [("test", item) for item in items]
    assert run({"a": [text]}, rows, max_pieces=5).counts == Counts(rows_in=1, kept=1)
    assert run({"a": [text]}, rows, max_pieces=4).counts == Counts(rows_in=1, dropped={"contaminated": 1})


def test_decontaminate_drops_a_document_whose_pieces_would_make_an_example(run):
    rng = random.Random(19)
    inner, outer = words(rng, 8), words(rng, 8)
    text = " ".join([*words(rng, 50), *outer[:4], *inner, *outer[4:], *words(rng, 50)])
    rows = [("test", " ".join(inner)), ("test", " ".join(outer))]
    built = run({"a": [text]}, rows, margin=0, min_piece=1)
    assert built.counts == Counts(rows_in=1, dropped={"contaminated": 1})
    assert len(kept_texts(run({"a": [text]}, rows[:1], margin=0, min_piece=1))) == 1


def test_decontaminate_pieces_that_are_too_short_go(run):
    rng = random.Random(5)
    item = prose(rng, 10)
    start, end = prose(rng, 55), prose(rng, 500)  # 55 words are some 250 characters, of which the margin takes 200
    (text,) = kept_texts(run({"a": [f"{start} {item} {end}"]}, [("test", item)]))
    assert end.endswith(text)


@pytest.mark.parametrize(
    "change",
    [
        str.upper,
        lambda text: "\n".join(re.findall(r"(?:\S+ ?){1,3}", text)),
        lambda text: ", ".join(text.split()),
        lambda text: f"_{text.replace(' ', '_ _')}_",
        lambda text: unicodedata.normalize("NFD", text),
        lambda text: "\u00ad".join(text),
        lambda text: "".join(chr(ord(c) + 0xFEE0) if "a" <= c <= "z" else c for c in text),  # full width
    ],
)
def test_decontaminate_finds_an_example_in_another_form(run, change):
    rng = random.Random(6)
    item = prose(rng, 6) + " caf\u00e9 " + prose(rng, 6)
    long = f"{prose(rng, 300)} {change(item)} {prose(rng, 300)}"
    built = run({"a": [long]}, [("test", item)])
    (row,) = evidence_of(built)
    assert row["preview"] == change(item).strip(" _\n")[: len(row["preview"])]
    assert len(kept_texts(built)[0]) < len(long) - 300


def test_decontaminate_leaves_training_examples_and_short_ones_alone(run):
    rng = random.Random(7)
    training, short, numbers = prose(rng, 20), prose(rng, 5), " ".join(str(i) for i in range(1000, 1020))
    same = " ".join(["never"] * 8)
    text = " ".join((prose(rng, 100), training, short, numbers, same, prose(rng, 100)))
    built = run({"a": [text]}, [("train", training), ("test", short), ("test", numbers), ("validation", same)])
    assert kept_texts(built) == [text]
    assert built.record["measures"]["examples_too_short"] == 3


def test_decontaminate_a_quotation_of_a_long_example_is_allowed_and_an_excerpt_is_not(run):
    """Of an example of 300 words 15 are 3 runs; 20 are 8."""
    rng = random.Random(8)
    item = words(rng, 300)
    quoting = f"{prose(rng, 300)} {' '.join(item[100:115])} {prose(rng, 300)}"
    excerpt = f"{prose(rng, 300)} {' '.join(item[100:120])} {prose(rng, 300)}"
    built = run({"a": [quoting, excerpt]}, [("test", " ".join(item))])
    (row,) = evidence_of(built)
    assert (row["page_id"], row["n_shared"]) == ("a-1", 8)
    assert kept_texts(built)[0] == quoting


def test_decontaminate_half_of_a_short_example_counts(run):
    """Of 16 words 4 runs are made, of which 14 words hold 2."""
    rng = random.Random(9)
    item = words(rng, 16)
    texts = [f"{prose(rng, 300)} {' '.join(item[:n])} {prose(rng, 300)}" for n in (13, 14)]
    assert [row["page_id"] for row in evidence_of(run({"a": texts}, [("test", " ".join(item))]))] == ["a-1"]


def test_decontaminate_what_many_documents_hold_is_a_stock_phrase(run):
    rng = random.Random(10)
    phrase, item = prose(rng, 8), prose(rng, 8)
    texts = {"a": [f"{prose(rng, 200)} {phrase} {prose(rng, 200)}" for _ in range(6)]}
    texts["b"] = [f"{prose(rng, 200)} {phrase} {prose(rng, 200)}" for _ in range(5)]
    texts["c"] = [f"{prose(rng, 200)} {item} {prose(rng, 200)}" for _ in range(10)]
    built = run(texts, [("test", phrase), ("test", item)])
    assert {row["page_id"] for row in evidence_of(built)} == {f"c-{i}" for i in range(10)}
    assert built.record["measures"]["common_runs"] == 1
    assert built.record["measures"]["documents_passed_as_common"] == 11
    lenient = run(texts, [("test", phrase), ("test", item)], max_documents=11)
    assert len(evidence_of(lenient)) == 21


def test_decontaminate_one_example_in_the_evaluation_set_and_empty_texts(run, examples, store, corpus):
    rng = random.Random(11)
    assert run({"a": [prose(rng, 50)]}, [("test", prose(rng, 30))]).counts.kept == 1
    assert run({"a": [prose(rng, 50)]}, [("test", ""), ("test", "?!")]).counts.kept == 1
    assert run({"a": []}, [("test", prose(rng, 30))]).counts == Counts()
    assert run({"a": ["", "one"]}, [("test", prose(rng, 30))]).counts.kept == 2


def test_decontaminate_all_documents_equal_to_an_example(run):
    item = prose(random.Random(12), 30)
    built = run({"a": [item] * 10}, [("test", item)])
    assert built.counts == Counts(rows_in=10, dropped={"contaminated": 10})


def test_decontaminate_order_of_tasks_changes_no_byte(store, corpus, examples):
    rng = random.Random(13)
    items = [prose(rng, 10) for _ in range(4)]
    given_ = corpus({"a": [f"{prose(rng, 300)} {item} {prose(rng, 300)}" for item in items]})
    first, second = examples([("test", item) for item in items[:2]]), examples([("test", item) for item in items])
    one, other = (
        store.build(DECONTAMINATE, DecontaminateRecipe(tasks=names), given_, *handles)
        for names, handles in ((("x", "y"), (first, second)), (("y", "x"), (second, first)))
    )
    assert one.handle.digest == other.handle.digest
    assert evidence_of(one) == evidence_of(other)
    assert len(evidence_of(one)) == 6


def test_decontaminate_names_and_examples_must_be_as_many(store, corpus, examples):
    with pytest.raises(ValueError, match="examples of 0 tasks"):
        store.build(DECONTAMINATE, DecontaminateRecipe(tasks=("moods",)), corpus({"a": []}))


def test_decontaminate_conserves_rows(run):
    rng = random.Random(14)
    items = [prose(rng, 10) for _ in range(3)]
    built = run({"a": [*items, prose(rng, 300)], "b": [prose(rng, 40)]}, [("test", item) for item in items])
    assert built.counts == Counts(rows_in=5, kept=2, dropped={"contaminated": 3})
    verdict = conservation(built.handle)
    assert verdict.passed, verdict.details


def test_decontaminate_a_changed_shard_is_looked_at_alone_and_other_examples_look_at_all(store, corpus, examples):
    rng = random.Random(15)
    texts = {"a": [prose(rng, 50)], "b": [prose(rng, 50)]}
    seen = []

    class Watched:
        def map(self, function, items, **limits):
            items = list(items)
            seen.append([item.path.name for item in items])
            return store.engine.map(function, items)

    watching = Store(root=store.root, engine=Watched())
    recipe = DecontaminateRecipe(tasks=("moods",))
    rows = [("test", prose(rng, 10))]
    for own, of_task in ((texts, rows), (texts | {"b": [prose(rng, 50)]}, rows), (texts, [("test", prose(rng, 9))])):
        watching.build(DECONTAMINATE, recipe, corpus(own), examples(of_task))
    assert seen == [["a.parquet", "b.parquet"], ["b.parquet"], ["a.parquet", "b.parquet"]]


def test_decontaminate_truncated_shard_is_named(store, corpus, examples):
    rng = random.Random(16)
    given_ = corpus({"a": [prose(rng, 50)]})
    path = given_.directory / "a.parquet"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + b"\0" * (len(content) - len(content) // 2))
    for tasks, handles in (((), ()), (("moods",), (examples([("test", prose(rng, 10))]),))):
        with pytest.raises((CorruptShard, RuntimeError), match=r"a\.parquet"):
            store.build(DECONTAMINATE, DecontaminateRecipe(tasks=tasks), given_, *handles)


def test_decontaminate_examples_without_a_text_column_are_named(store, corpus):
    def written(cfg, inputs, work):
        write_rows(work.directory / "examples.parquet", [{"id": "x"}], EXAMPLE.remove(3).remove(2).remove(1))
        return Outcome(rows=1)

    handle = store.build(Stage(name="examples", version=1, function=written, handle=Shards), {}).handle
    with pytest.raises(CorruptShard, match="'text'"):
        store.build(DECONTAMINATE, DecontaminateRecipe(tasks=("moods",)), corpus({"a": ["x"]}), handle)


def test_decontaminate_of_fixed_documents_has_not_changed(run):
    """Raise the version of the stage when this changes on purpose."""
    rng = random.Random(17)
    items = [prose(rng, n) for n in (6, 9, 13, 40)]
    texts = [f"{prose(rng, 200)} {item} {prose(rng, 200)}" for item in items]
    built = run({"a": [*texts, *items], "b": [prose(rng, 50)]}, [("test", item) for item in items])
    digest = text_digest(*(part for row in rows_of(built) for part in (row["page_id"], row["id"], row["text"])))
    assert (digest, DECONTAMINATE.version) == ("7b7790201428c21905cdeee469629e17", 2)


@pytest.fixture(scope="module")
def laws_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("laws")


FEW = st.sampled_from(["ana", "bo", "cy", "dee", "\u00e9a", "1", "\u4e2d", "f\u00fcr", "\ufb01n", "."])
TEXTS = st.lists(st.lists(FEW, max_size=60).map(" ".join), max_size=6)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=TEXTS, items=TEXTS, limits=st.tuples(st.integers(1, 4), st.integers(0, 3), st.integers(1, 8)))
def test_decontaminate_no_example_is_left_by_plain_search(
    texts, items, limits, corpus, examples, store, laws_folder, tmp_path_factory
):
    """Few words, so that runs repeat and cuts bring others together."""
    own = Store(root=tmp_path_factory.mktemp("law"), engine=store.engine)
    cfg = DecontaminateConfig(
        n_words=4, min_words=limits[0], margin=limits[1], min_piece=limits[2], max_documents=100
    )
    rows = [("test", item) for item in items]
    given_ = corpus({"a": texts[:3], "b": texts[3:]}, own)
    built = own.build(DECONTAMINATE, DecontaminateRecipe(config=cfg, tasks=("x",)), given_, examples(rows, own))
    assert built.counts and built.counts.is_conserved() and built.counts.rows_in == len(texts)
    left = [f" {' '.join(plain_words(text))} " for text in kept_texts(built)]
    for item in items:
        of_item = plain_words(item)
        n_letters = len({word for word in of_item if any(map(str.isalpha, word))})
        if limits[0] <= len(of_item) <= 4 and n_letters >= limits[0]:
            assert not any(f" {' '.join(of_item)} " in text for text in left), item
    flagged = {row["page_id"] for row in evidence_of(built)}
    unflagged = [row["text"] for row in rows_of(built) if row["page_id"] not in flagged]
    assert set(unflagged) <= set(texts)


def plain_words(text):
    """Another way to the same words: character by character."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return "".join(f" {c} " if c == "\u4e2d" else c if c.isalnum() else " " for c in folded).split()


@pytest.mark.slow
def test_decontaminate_bytes_do_not_depend_on_workers(tmp_path, corpus, examples, monkeypatch):
    rng = random.Random(18)
    items = [prose(rng, 10) for _ in range(20)]
    texts = {f"s{i}": [f"{prose(rng, 150)} {item} {prose(rng, 150)}" for item in items[i::4]] for i in range(4)}
    outputs = []
    for n_workers in (1, 3):
        own = Store(root=tmp_path / str(n_workers), engine=LocalProcesses(n_workers=n_workers))
        handles = corpus(texts, own), examples([("test", item) for item in items], own)
        built = own.build(DECONTAMINATE, DecontaminateRecipe(tasks=("moods",)), *handles)
        folder = built.handle.directory
        outputs.append({str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.parquet")})
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) == 4 * 3  # kept, evidence and hits of every shard


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_words": 0}, "n_words is 0, expected a whole number of at least 1"),
        ({"min_words": 14}, "min_words=14 is above n_words=13"),
        ({"min_share": 0.0}, r"min_share is 0\.0"),
        ({"min_share": 1.5}, r"min_share is 1\.5"),
        ({"min_hits": 0}, "min_hits is 0"),
        ({"max_documents": 0}, "max_documents is 0"),
        ({"margin": -1}, "margin is -1"),
        ({"min_piece": 0}, "min_piece is 0"),
        ({"max_pieces": 0}, "max_pieces is 0"),
    ],
)
def test_decontaminate_config_out_of_range_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DecontaminateConfig(**fields)


def test_decontaminate_id_of_a_text_of_several_blocks_is_that_of_the_whole(run):
    rng = random.Random(20)
    item = prose(rng, 10)
    (document,) = rows_of(run({"a": [f"{prose(rng, 250_000)}  \n {item} {prose(rng, 250_000)}"]}, [("test", item)]))
    assert len(document["text"]) > 2 * 2**20
    assert document["id"] == text_digest(normalised(document["text"]))
    assert document["n_words"] == len(document["text"].split())
