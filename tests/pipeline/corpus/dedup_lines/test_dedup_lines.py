"""dedup_lines: which lines go from where, what is said about them, and that nothing else decides it."""

import random
import signal
import subprocess
import sys
import time
import unicodedata
from collections import Counter, defaultdict

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from pipeline.corpus.dedup_lines.line_frequency import LINES_FOLDER, LINES_VERSION
from pipeline.corpus.dedup_lines.stage import DEDUP_LINES, DedupLinesConfig, find_repeated
from pipeline.store.database import open_database
from pipeline.store.engine import LocalProcesses
from pipeline.store.errors import CorruptShard, DiskFull
from pipeline.store.records import CORPUS, DROPPED, REPEATED, Counts, Shards
from pipeline.store.shards import DROPPED_FOLDER, EVIDENCE_FOLDER, read_table, shard_paths, write_rows
from pipeline.store.store import Outcome, Stage, Store
from tests.children import python

LETTERS = "abcdefghijklmnopqrstuvwxyz"
MENU = ["- Home", "- Products", "- Prices", "- About us"]
FOOTER = ["Terms of use", "Privacy", "All prices include the tax of the country that we ship your order to."]
LETTER = "Our letter comes every month and tells you what is new in the shop. Write your address below."
HTML = "text/html"


def word(rng):
    return "".join(rng.choices(LETTERS, k=rng.randrange(3, 9)))


def sentence(rng, n_words=12):
    return " ".join(word(rng) for _ in range(n_words)).capitalize() + "."


def article(rng, n_paragraphs=5):
    return [" ".join(sentence(rng) for _ in range(3)) for _ in range(n_paragraphs)]


def digest_of(text):
    """The id of a document, written for this test."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split()).encode()
    return xxhash.xxh3_128_hexdigest(len(plain).to_bytes(8, "little") + plain)


def corpus_row(url, text, *, source="web", media_type=HTML, code_language=None, cluster_size=1):
    empty = {field.name: None if field.nullable else [] if field.name == "pii" else 0 for field in CORPUS}
    empty |= {field.name: "" for field in CORPUS if not field.nullable and "string" in str(field.type)[:12]}
    return {
        **empty,
        "id": digest_of(text),
        "page_id": url,
        "source": source,
        "url": url,
        "media_type": media_type,
        "code_language": code_language,
        "pii": [],
        "text": text,
        "n_words": len(text.split()),
        "cluster_id": url,
        "cluster_size": cluster_size,
        "family_id": url,
    }


@pytest.fixture
def written():
    """Documents as `dedup` leaves them, from {shard: rows}."""

    def write(store, shards):
        def documents(cfg, inputs, work):
            n_rows = 0
            for shard, rows in shards.items():
                write_rows(work.directory / f"{shard}.parquet", rows, CORPUS)
                n_rows += len(rows)
            return Outcome(rows=n_rows, counts=Counts(rows_in=n_rows, kept=n_rows))

        stage = Stage(name="dedup", version=1, function=documents, handle=Shards)
        key = repr(shards)
        return store.build(stage, {"key": xxhash.xxh3_128_hexdigest(key.encode())}).handle

    return write


@pytest.fixture
def build(store, written):
    """The stage's result for rows, in three shards."""

    def run(rows, *, n_shards=3, in_store=store, **settings):
        shards = defaultdict(list, {f"s{i}": [] for i in range(n_shards)})
        for i, row in enumerate(rows):
            shards[f"s{i % n_shards}"].append(row)
        return in_store.build(DEDUP_LINES, DedupLinesConfig(**settings), written(store, shards))

    return run


def site(n_pages, host="shop.example", *, seed=1, footer=FOOTER, menu=MENU, every=1):
    """Pages of a site: an article each, with what the site puts around every `every`-th one."""
    rng = random.Random(f"{host} {seed}")
    rows = []
    for i in range(n_pages):
        parts = [f"# {sentence(rng, 4)}", *article(rng)]
        if i % every == 0:
            parts = ["\n".join(menu), *parts, "\n".join(footer)]
        rows.append(corpus_row(f"https://{host}/{i:03d}", "\n\n".join(part for part in parts if part)))
    return rows


def rows_in(handle, folder="", schema=CORPUS):
    return [row for path in shard_paths(handle.directory, folder) for row in read_table(path, schema).to_pylist()]


def evidence_of(built):
    return rows_in(built.handle, EVIDENCE_FOLDER, REPEATED)


def texts_of(built):
    return {row["url"]: row["text"] for row in rows_in(built.handle)}


def file_bytes(handle):
    return {
        str(path.relative_to(handle.directory)): path.read_bytes() for path in handle.directory.rglob("*.parquet")
    }


def test_dedup_lines_planted_boilerplate_goes_and_nothing_else(build):
    """Around some and inside other pages of five sites; what is left has to be the text before planting."""
    rng = random.Random(3)
    rows, clean, planted = [], {}, Counter()
    for number, share in enumerate((1.0, 0.9, 0.7, 0.6, 0.35)):
        menu = [f"- {word(rng).title()}" for _ in range(rng.randrange(3, 9))]
        footer = [sentence(rng, rng.randrange(4, 16)) for _ in range(4)]
        inside = sentence(rng, 14)
        for i in range(40):
            url = f"http://site{number}.example/{i}"
            paragraphs = [f"# {sentence(rng, 5)}", *article(rng, rng.randrange(2, 9))]
            clean[url] = "\n\n".join(paragraphs)
            if rng.random() < share:
                if share >= 0.6:
                    paragraphs.insert(rng.randrange(2, len(paragraphs) + 1), inside)
                    planted[url] += 1
                paragraphs = ["\n".join(menu), *paragraphs, *footer]
                planted[url] += len(menu) + len(footer)
            rows.append(corpus_row(url, "\n\n".join(paragraphs)))
    built = build(rng.sample(rows, len(rows)))
    assert texts_of(built) == clean
    assert Counter(row["page_id"] for row in evidence_of(built)) == planted


def test_dedup_lines_new_text_has_its_own_id_and_number_of_words(build):
    rows = site(12)
    for before, after in zip(rows, sorted(rows_in(build(rows).handle), key=lambda row: row["url"]), strict=True):
        assert after["id"] == digest_of(after["text"]) != before["id"]
        assert after["n_words"] == len(after["text"].replace("# ", "").split()) < before["n_words"]
        assert {**after, "id": 0, "text": 0, "n_words": 0} == {**before, "id": 0, "text": 0, "n_words": 0}


def test_dedup_lines_evidence_says_what_went_from_where_and_how_often_it_stands(build):
    rows = site(12) + site(9, "other.example", menu=["- Start", *MENU[1:]])
    built = build(rows)
    before = {row["page_id"]: row for row in rows}
    gone = defaultdict(list)
    for row in evidence_of(built):
        text = before[row["page_id"]]["text"]
        assert text[row["position"] : row["position"] + row["characters"]] == row["preview"]
        assert (row["id"], row["source"]) == (before[row["page_id"]]["id"], "web")
        assert (row["site"], row["documents"], row["site_documents"]) in {
            ("shop.example", 12, 12),
            ("other.example", 9, 9),
        }
        assert row["kept_id"] is None and row["kept_page_id"] is None
        gone[row["page_id"]].append(row["preview"])
    assert gone["https://shop.example/003"] == MENU + FOOTER
    assert gone["https://other.example/003"] == ["- Start", *MENU[1:], *FOOTER]
    measures = built.record["measures"]
    assert measures["removed_lines"] == 21 * 7 and measures["changed_documents"] == 21
    n_before = sum(len(row["text"]) for row in rows)
    n_after = sum(map(len, texts_of(built).values()))
    assert measures["removed_fraction_web"] == pytest.approx(1 - n_after / n_before, abs=1e-12)


@pytest.mark.parametrize(
    ("n_pages", "n_others", "goes"), [(5, 0, False), (6, 0, True), (6, 18, True), (6, 19, False)]
)
def test_dedup_lines_needs_documents_and_their_share_of_the_site(build, n_pages, n_others, goes):
    others = site(n_others, seed=2, menu=[], footer=[])
    for i, row in enumerate(others):
        row["url"] = row["page_id"] = f"https://shop.example/other/{i}"
    assert bool(evidence_of(build([*site(n_pages), *others]))) == goes


def test_dedup_lines_frequency_is_that_of_one_site(build):
    """The same menu on five pages each of four hosts is no site's."""
    rows = [row for host in "abcd" for row in site(5, f"{host}.example")]
    assert not evidence_of(build(rows))
    assert evidence_of(build([{**row, "url": row["url"].replace("b.ex", "a.ex")} for row in rows]))


def pages(common, n_pages=20, *, media_type=HTML, code_language=None, where=lambda paragraphs: len(paragraphs) // 2):
    """Pages that all hold the block `common`, in the middle or where `where` says."""
    rng = random.Random(5)
    rows = []
    for i in range(n_pages):
        paragraphs = article(rng)
        paragraphs.insert(where(paragraphs), common)
        text = "\n\n".join(paragraphs)
        rows.append(corpus_row(f"https://x.example/{i}", text, media_type=media_type, code_language=code_language))
    return rows


PLAY = "HAMLET\n\nExeunt.\n\n[Enter a Messenger.]\n\nACT I\n\nMy lord?"
CODE = "```python\nimport numpy as np\nfrom collections.abc import Callable, Iterable, Mapping, Sequence\n```"
TABLE = "| name of the parameter | what it means for you | the default |\n| --- | --- | --- |"
LINKS = "https://x.example/a/very/long/path/to/0123456789/0123456789/of/a/page"
STANZA = (
    "Tyger Tyger, burning bright,\nIn the forests of the night;\nWhat immortal hand or eye,\n"
    "Could frame thy fearful symmetry?\nIn what distant deeps or skies.\nBurnt the fire of thine eyes?"
)


@pytest.mark.parametrize(
    "common",
    [
        PLAY,
        CODE,
        TABLE,
        LINKS,
        "## A heading that is long enough to look like a sentence",
        "- ## A heading that is an item of a list and as long as that",
        "    return {name: value for name, value in items.items() if value is not None and value[0] != ''}",
        "x = f(a, b) + g(c, d) * h(e, f) - (1 / 2) ** 3 + k[0][1][2] / z[7]",
        "True",
        "Parameters:",
    ],
)
def test_dedup_lines_content_that_repeats_stays(build, common):
    rows = pages(common)
    built = build(rows)
    assert not evidence_of(built) and texts_of(built) == {row["url"]: row["text"] for row in rows}


@pytest.mark.parametrize(
    "end", ["Exeunt.", "Amen.", "THE END", "by William Shakespeare", "Yours sincerely,\n\nthe editors"]
)
def test_dedup_lines_short_ends_and_beginnings_stay(build, end):
    for where in (len, lambda paragraphs: 0):
        assert not evidence_of(build(pages(end, where=where)))


def test_dedup_lines_note_that_stands_often_on_a_page_is_content(build):
    note = "The data belongs to the caller, who has to free it when it is of no more use."
    assert evidence_of(build(pages(f"{note}\n\n{sentence(random.Random(1))}\n\n{note}")))
    assert not evidence_of(build(pages(f"{note}\n\nOne.\n\n{note}\n\nTwo.\n\n{note}")))


def test_dedup_lines_heading_goes_with_all_that_stood_below_it_and_never_alone(build):
    tail = ["## Read on", "- The first of our articles", "- The second of our articles", "- And a third one"]
    rows = pages("\n\n".join([tail[0], "\n".join(tail[1:])]), where=len)
    assert all(text.endswith(".") and "##" not in text for text in texts_of(build(rows)).values())
    own = pages("\n\n".join([tail[0], "\n".join(tail[1:])]), where=len)
    own = [{**row, "text": f"{row['text'][: -len(tail[3])]}- Page {row['url']}"} for row in own]
    assert not evidence_of(build(own))


def test_dedup_lines_document_of_nothing_else_is_dropped_with_its_lines_as_evidence(build):
    rows = site(12)
    rows.append(corpus_row("https://shop.example/empty", "\n\n".join(["\n".join(MENU), "# Nothing", *FOOTER])))
    built = build(rows)
    (dropped,) = rows_in(built.handle, DROPPED_FOLDER, DROPPED)
    assert (dropped["page_id"], dropped["reason"]) == ("https://shop.example/empty", "only_repeated_lines")
    assert (dropped["stage"], dropped["score"], dropped["id"]) == ("dedup_lines", 1.0, rows[-1]["id"])
    assert sum(row["page_id"] == dropped["page_id"] for row in evidence_of(built)) == 7
    assert built.counts.is_conserved() and built.counts.dropped == {"only_repeated_lines": 1}
    assert build(rows, min_words=1).handle.rows == 13


def test_dedup_lines_of_documents_that_became_equal_one_stays_and_stands_for_all(build):
    rng = random.Random(4)
    text = "\n\n".join(article(rng))
    rows = site(10)
    framed = "\n\n".join(["\n".join(MENU), text, "\n".join(FOOTER)])
    rows.append(corpus_row("https://shop.example/framed", framed, cluster_size=2))
    rows.append(corpus_row("https://shop.example/longer", framed.replace("- Home\n", ""), cluster_size=3))
    rows.append(corpus_row("https://else.example/plain", text.upper(), source="mirror"))
    built = build(rows)
    assert built.counts.dropped == {"exact_duplicate": 2} and built.counts.is_conserved()
    (kept,) = [row for row in rows_in(built.handle) if row["id"] == digest_of(text)]
    assert (kept["url"], kept["cluster_size"]) == ("https://else.example/plain", 6)
    equal = [row for row in evidence_of(built) if row["kind"] == "document"]
    assert {row["page_id"] for row in equal} == {"https://shop.example/framed", "https://shop.example/longer"}
    for row in equal:
        assert (row["kept_page_id"], row["kept_id"]) == (kept["page_id"], kept["id"])
        assert (row["documents"], row["site_documents"]) == (3, 12)
    dropped = rows_in(built.handle, DROPPED_FOLDER, DROPPED)
    assert {row["page_id"] for row in dropped} == {row["page_id"] for row in equal}
    total = sum(len(row["text"]) for row in rows if row["source"] == "web")
    left = sum(len(row["text"]) for row in rows_in(built.handle) if row["source"] == "web")
    assert built.record["measures"]["removed_fraction_web"] == pytest.approx(1 - left / total, abs=1e-12)
    assert built.record["measures"]["removed_fraction_mirror"] == 0


def test_dedup_lines_no_documents_or_one_give_what_they_got(build, store, written):
    assert build([]).handle.rows == 0
    assert store.build(DEDUP_LINES, DedupLinesConfig(), written(store, {})).handle.rows == 0
    assert texts_of(build(site(1)))
    assert not evidence_of(build([corpus_row(f"https://a.example/{i}", "") for i in range(8)]))


def test_dedup_lines_pages_with_the_same_lines_become_one(build):
    rows = [corpus_row(f"https://a.example/{i}", "\n\n".join([LETTER, "x" * i, LETTER + "!"])) for i in range(8)]
    built = build(rows, min_words=0)
    assert built.counts.is_conserved() and built.handle.rows == 8
    equal = build([{**row, "text": row["text"].replace("x", "")} for row in rows], min_words=0)
    assert equal.counts.dropped == {"exact_duplicate": 7}
    assert build(rows).counts.dropped == {"only_repeated_lines": 8}


def test_dedup_lines_bytes_do_not_depend_on_workers_and_facts_not_on_shards(tmp_path, build):
    rows = site(30) + pages(LETTER) + site(9, "b.example", every=2)
    rows.append({**rows[0], "page_id": "again", "url": "https://shop.example/again", "text": rows[0]["text"] + " "})
    serial = build(rows)
    parallel = build(rows, in_store=Store(root=tmp_path / "other", engine=LocalProcesses(n_workers=2)))
    assert file_bytes(serial.handle) == file_bytes(parallel.handle) and evidence_of(serial)
    mixed = build(random.Random(1).sample(rows, len(rows)), n_shards=5)

    def facts(built):
        evidence = [(row["page_id"], row["position"], row["documents"], row["kind"]) for row in evidence_of(built)]
        return texts_of(built), sorted(evidence), built.counts.dropped, built.record["measures"]

    assert facts(mixed) == facts(serial)


@pytest.mark.parametrize(("n_threads", "memory_mb"), [(1, 64), (8, 4096)])
def test_dedup_lines_repeated_lines_do_not_depend_on_threads_or_memory(tmp_path, build, n_threads, memory_mb):
    folder = build(site(30) + pages(LETTER)).handle.directory / LINES_FOLDER

    def found(name, **limits):
        with open_database(tmp_path / name, **limits) as database:
            find_repeated(DedupLinesConfig(), database, folder, tmp_path / f"{name}.parquet")
        return (tmp_path / f"{name}.parquet").read_bytes()

    assert found("one", n_threads=n_threads, memory_mb=memory_mb) == found("two", n_threads=2, memory_mb=512)


def test_dedup_lines_one_changed_shard_is_counted_again_and_no_setting_counts(build, store):
    rows = site(30)
    build(rows)
    parts = set((store.root / "dedup_lines" / "parts").iterdir())
    build([*rows[:-1], {**rows[-1], "text": "another text"}])
    assert len(set((store.root / "dedup_lines" / "parts").iterdir()) - parts) == 1
    parts = set((store.root / "dedup_lines" / "parts").iterdir())
    build(rows, min_documents=9)
    assert set((store.root / "dedup_lines" / "parts").iterdir()) == parts


BUILD_AND_DIE = """
import os, signal, sys
from pathlib import Path
from pipeline.corpus.dedup_lines.stage import DEDUP_LINES, DedupLinesConfig
from pipeline.store.engine import LocalProcesses
from pipeline.store.store import Store, read_handle

calls = 0
def show(stage, done, total, unit):
    global calls
    calls += unit == sys.argv[3]
    if calls == 2:
        os.kill(os.getpid(), signal.SIGKILL)

store = Store(root=Path(sys.argv[2]), engine=LocalProcesses(n_workers=1), show=show)
store.build(DEDUP_LINES, DedupLinesConfig(), read_handle(Path(sys.argv[1])))
"""


def equal_ones():
    """A site of which two pages become equal, so that every step has something to do."""
    rows = site(30)
    twin = rows[1]["text"].replace("- Home\n", "")
    return [*rows, corpus_row("https://shop.example/twin", twin)]


@pytest.mark.parametrize("unit", ["documents", "shards"])
def test_dedup_lines_killed_and_run_again_gives_the_same_bytes(tmp_path, build, store, written, unit):
    expected = build(equal_ones())
    (source,) = (store.root / "dedup").glob("*/record.json")
    root = tmp_path / "killed"
    assert python("-c", BUILD_AND_DIE, str(source.parent), str(root), unit).returncode == -signal.SIGKILL
    assert not list((root / "dedup_lines").glob("*/record.json"))
    again = build(equal_ones(), in_store=Store(root=root, engine=store.engine))
    assert file_bytes(again.handle) == file_bytes(expected.handle)
    assert expected.counts.dropped == {"exact_duplicate": 1}
    assert not (again.handle.directory / ".scratch").exists()


@pytest.mark.slow
def test_dedup_lines_killed_at_twenty_random_moments_gives_the_same_bytes(tmp_path, build, store):
    expected = build(equal_ones())
    (source,) = (store.root / "dedup").glob("*/record.json")
    command = [sys.executable, "-c", BUILD_AND_DIE, str(source.parent)]
    started = time.monotonic()
    subprocess.run([*command, str(tmp_path / "whole"), "none"], check=True, timeout=120)
    seconds = time.monotonic() - started
    rng = random.Random(1)
    for i in range(20):
        root = tmp_path / f"killed{i}"
        process = subprocess.Popen([*command, str(root), "none"])
        try:
            process.wait(timeout=seconds * rng.random())
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        again = build(equal_ones(), in_store=Store(root=root, engine=store.engine))
        assert file_bytes(again.handle) == file_bytes(expected.handle)


def test_dedup_lines_full_disk_says_so_and_the_next_run_goes_on(tmp_path, build, store, written):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        rng = random.Random(2)
        rows = [row for i in range(60) for row in site(8, f"{i}.example", seed=rng.random())]
        handle = build(rows).handle
        with pytest.raises(DiskFull, match=r"no space left to write `dedup_lines`.*run again"):
            build(rows, in_store=Store(root=disk / "store", engine=store.engine))
        assert not list((disk / "store" / "dedup_lines").glob("*/.scratch"))
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        again = build(rows, in_store=Store(root=disk / "store", engine=store.engine))
        assert file_bytes(again.handle) == file_bytes(handle)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_dedup_lines_unreadable_shard_is_named(build, store):
    build(site(8))
    (record,) = (store.root / "dedup").glob("*/record.json")
    path = record.parent / "s1.parquet"
    path.write_bytes(path.read_bytes()[:-200] + b"x" * 200)
    with pytest.raises(CorruptShard, match=r"s1\.parquet"):
        build(site(8), min_documents=7)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("min_documents", 1),
        ("min_fraction", 0.0),
        ("min_edge_fraction", 1.5),
        ("min_characters", 0),
        ("max_characters", 39),
        ("min_words", -1),
    ],
)
def test_dedup_lines_config_out_of_range_is_refused(field, value):
    with pytest.raises(ValueError, match=f"{field}(=| is ){value}"):
        DedupLinesConfig(**{field: value})


def test_dedup_lines_output_for_fixed_texts_has_not_changed(build):
    """Raise the version of the stage, and that of the lines, when this digest changes on purpose."""
    built = build(site(30) + pages(LETTER) + pages(STANZA, media_type="text/plain"))
    facts = sorted((row["url"], row["id"], row["n_words"]) for row in rows_in(built.handle))
    facts += sorted(tuple(row.values()) for row in evidence_of(built))
    lines = [pq.read_table(path) for path in shard_paths(built.handle.directory, LINES_FOLDER)]
    facts += [tuple(row.values()) for row in pa.concat_tables(lines).to_pylist()]
    digest = xxhash.xxh3_128_hexdigest(repr(facts).encode())
    assert (digest, DEDUP_LINES.version, LINES_VERSION) == ("5409b246c1f36c7decd6f4a97fbc3527", 1, 1)


@pytest.mark.slow
def test_dedup_lines_document_of_a_hundred_megabytes_is_one_of_many(build):
    rng = random.Random(6)
    block = "\n\n".join(article(rng, 200))
    rows = site(12)
    long = "\n\n".join(
        ["\n".join(MENU), *[f"{i} {block}" for i in range(100_000_000 // len(block))], "\n".join(FOOTER)]
    )
    built = build([*rows, corpus_row("https://shop.example/long", long)], n_shards=1)
    text = texts_of(built)["https://shop.example/long"]
    assert len(text) == len(long) - len("\n".join(MENU)) - len("\n".join(FOOTER)) - 4 > 99_000_000


def test_dedup_lines_shards_that_lose_nothing_are_as_they_were(build):
    rows = pages(CODE)
    built = build(rows)
    (source,) = (built.handle.directory.parents[1] / "dedup").glob("*/s0.parquet")
    assert (built.handle.directory / "s0.parquet").read_bytes() == source.read_bytes()
    assert pq.read_schema(built.handle.directory / "s0.parquet").equals(CORPUS)
