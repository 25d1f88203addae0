"""Cleaning: every kind of page gives its text or a reason, whatever its bytes are."""

import os
import signal
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline.corpus.clean import stage as clean_module
from pipeline.corpus.clean.stage import CLEAN, CleanConfig, Cleaned, PageItem, clean_page
from pipeline.corpus.text_repair import decode, normalised, repair
from pipeline.store.engine import LocalProcesses
from pipeline.store.records import DOCUMENT, DROPPED, PAGE, Shards
from pipeline.store.shards import read_table, shard_paths, text_digest, write_rows
from pipeline.store.store import Outcome, Stage, Store
from tests.children import python

SENTENCE = "The miller carried the grain to the mill, and the wheel turned with the water of the river."
HTML = f"""<!doctype html><html><head><title>The  mill</title></head><body>
<nav><ul><li><a href="/">Home</a></li><li><a href="/shop">Shop</a></li></ul></nav>
<main><h1>The mill<a class="headerlink" href="#m">\u00b6</a></h1><p>{SENTENCE} {SENTENCE}</p><h2>Steps</h2>
<ul><li>{SENTENCE}<pre>def grind(grain):
    return <b>flour</b>(grain)
</pre></li></ul><table><tr><td>rye</td><td>1</td></tr></table><p>{SENTENCE}</p></main>
<footer>Copyright, all rights reserved</footer></body></html>"""
WIKI = """{{Infobox mill|name=Old}}[[File:Mill.jpg|thumb|A mill]]
The '''Old mill''' ({{lang|de|Alte M\u00fchle}}; {{IPA|x}}) is a [[Water mill|mill]] in [[Corn]].<ref>{{cite|a}}</ref>
{| class="wikitable"
| a table
|}
== History ==
It grinds {{convert|5|kg}} of <i>grain</i> &ndash; daily.
* first
** second
== References ==
{{reflist}}
Nothing here.
[[Category:Mills]]"""
RST = """.. _target:

=======
Setting
=======

.. toctree::
   :maxdepth: 2

   one

See :ref:`the guide <guide>`, :class:`~mill.Wheel` and `our site <https://example.org>`_.

.. versionadded:: 1.2

.. code-block:: python
   :linenos:

    grind(x)

For example::

    turn()
"""


def item(content: bytes, media_type: str = "text/plain", **changes) -> PageItem:
    values = {"page_id": "p", "source": "s", "url": "u", "title": None, "licence": None, "too_large": False}
    return PageItem(**{**values, **changes}, media_type=media_type, content=content)


def collected(store: Store, pages: dict[str, tuple[str, bytes]], n_shards: int = 2) -> Shards:
    """Page shards as `collect` makes them, of {url: (media type, content)}."""

    def write(cfg, inputs, work) -> Outcome:
        for i in range(n_shards):
            rows = [
                {
                    "id": text_digest(url, content),
                    "source": "mill",
                    "url": url,
                    "media_type": media_type,
                    "content": content,
                    "collected_at": datetime(2026, 1, 1, tzinfo=UTC),
                    "licence": "mine",
                }
                for url, (media_type, content) in sorted(pages.items())[i::n_shards]
            ]
            write_rows(work.directory / f"mill-{i:05d}.parquet", rows, PAGE)
        return Outcome(rows=len(pages))

    key = text_digest(*(f"{url}{content!r}" for url, (_, content) in pages.items()))
    return store.build(Stage(name="pages", version=1, function=write, handle=Shards), {"key": key}).handle


def store_at(path: Path, n_workers: int = 1) -> Store:
    return Store(root=path, engine=LocalProcesses(n_workers=n_workers))


def rows_of(directory: Path, schema, folder: str = "") -> list[dict]:
    return [row for path in shard_paths(directory, folder) for row in read_table(path, schema).to_pylist()]


def bytes_of(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*.parquet")}


def test_clean_html_keeps_text_code_lists_and_tables_without_menus():
    cleaned = clean_page(item(HTML.encode(), "text/html"))
    assert cleaned.title == "The mill"
    assert cleaned.text.startswith(f"# The mill\n\n{SENTENCE} {SENTENCE}\n\n## Steps\n\n- {SENTENCE}")
    assert "\n  ```\n  def grind(grain):\n      return flour(grain)\n  ```\n" in cleaned.text
    assert "| rye | 1 |" in cleaned.text
    for menu in ("Home", "Shop", "Copyright", "\u00b6", "\u23ce", "\u2423"):
        assert menu not in cleaned.text


def test_clean_wiki_keeps_prose_headings_and_lists_only():
    assert clean_page(item(WIKI.encode(), "text/x-wiki")).text == (
        "The Old mill (Alte M\u00fchle; x) is a mill in Corn."
        "\n\n## History\n\nIt grinds 5 kg of grain \u2013 daily.\n- first\n- second"
    )


def test_clean_rst_reads_like_the_text_it_stands_for():
    assert clean_page(item(RST.encode(), "text/x-rst")).text == (
        "# Setting\n\nSee the guide, Wheel and our site."
        "\n\nversionadded 1.2\n\n    grind(x)\n\nFor example:\n\n    turn()"
    )


def test_clean_plain_text_loses_the_frame_of_project_gutenberg():
    book = (
        "The Project Gutenberg eBook of Mills\nlicence\n*** START OF THE PROJECT GUTENBERG EBOOK MILLS ***\n\n"
        + "A book.\n" * 9
        + "*** END OF THE PROJECT GUTENBERG EBOOK MILLS ***\nmore licence"
    )
    assert clean_page(item(book.encode())).text == ("A book.\n" * 9).strip()


def test_clean_markdown_loses_front_matter_and_comments():
    text = "---\nlayout: post\n---\n# Mill\n<!-- secret -->\nIt *turns*."
    assert clean_page(item(text.encode(), "text/markdown")).text == "# Mill\n\nIt *turns*."


def test_clean_id_is_equal_for_texts_that_differ_in_case_and_space_only():
    one = clean_page(item(b"The  Mill\nturns."))
    other = clean_page(item(b"the mill   TURNS.\n"))
    assert one.id == other.id == text_digest("the mill turns.") and one.text != other.text
    assert clean_page(item(b"The mill turns!")).id != one.id


@pytest.mark.parametrize(
    ("content", "media_type", "expected"),
    [
        ("\u00fcber".encode(), "text/plain", "\u00fcber"),
        ("\ufeff\u00fcber".encode(), "text/plain", "\u00fcber"),
        ("\ufeff\u00fcber".encode("utf-16-le"), "text/plain", "\u00fcber"),
        ("\ufeff\u00fcber".encode("utf-32-be"), "text/plain", "\u00fcber"),
        ("The mill turns".encode("utf-16-be"), "text/plain", "The mill turns"),
        (
            b'<meta charset="latin1">M\xfchle \x93so\x94',
            "text/html",
            '<meta charset="latin1">M\u00fchle \u201cso\u201d',
        ),
        (
            '<?xml encoding="koi8-r"?>\u043c\u0438\u0440'.encode("koi8-r"),
            "text/html",
            '<?xml encoding="koi8-r"?>\u043c\u0438\u0440',
        ),
        (b'<meta charset="utf-8">M\xfchle', "text/html", '<meta charset="utf-8">M\u00fchle'),
        (b'<meta charset="rot13">M\xfchle', "text/html", '<meta charset="rot13">M\u00fchle'),
        (("M\u00fchle " * 20).encode() + b"\xff", "text/plain", "M\u00fchle " * 20 + "\ufffd"),
    ],
)
def test_decode_finds_the_encoding(content, media_type, expected):
    assert decode(content, media_type) == (expected, "")


def test_decode_one_nul_in_a_long_text_does_not_make_it_binary():
    page = f"{SENTENCE} {SENTENCE}\x00 {SENTENCE}\n" * 5
    assert decode((SENTENCE * 20 + "\x00" + SENTENCE).encode(), "text/plain") == (
        SENTENCE * 20 + "\x00" + SENTENCE,
        "",
    )
    assert decode(page.encode(), "text/plain") == (None, "binary")


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("latin-1", "Die M\u00fchle geh\u00f6rt dem M\u00fcller, der sie f\u00fcr viel Geld verkaufen m\u00f6chte."),
        (
            "latin-1",
            "Le meunier ouvre tr\u00e8s t\u00f4t, la roue tourne d\u00e9j\u00e0.",
        ),
        ("cp1252", "A mill \u2013 an old one \u2013 grinds."),
        (
            "iso8859-2",
            "M\u0142ynarz rano otwiera drzwi, a ko\u0142a obracaj\u0105 si\u0119.",
        ),
        (
            "koi8-r",
            "\u0421\u0442\u0430\u0440\u0430\u044f \u043c\u0435\u043b\u044c\u043d\u0438\u0446\u0430.",
        ),
        (
            "cp949",
            "\uac15\uac00\uc758 \uc624\ub798\ub41c \ubb3c\ub808\ubc29\uc544.",
        ),
    ],
)
def test_decode_guesses_the_encoding_of_a_text_that_declares_none(encoding, text):
    assert decode(text.encode(encoding), "text/plain") == (text, "")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x89PNG\r\n\x1a\n" + b"text", "binary"),
        (b"%PDF-1.7 text", "binary"),
        (b"text\x00\x01\x02text", "binary"),
        (b"\x01\x02\x03\x04 a few letters", "binary"),
        (bytes(range(256)) * 20, "binary"),
        (("\ufffd" * 5 + "text").encode(), "undecodable"),
    ],
)
def test_decode_no_text_has_a_reason(content, reason):
    assert decode(content, "text/plain") == (None, reason)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\r\nb\rc\x0cd\u2028e", "a\nb\nc\nd\ne"),
        ("a  \t\n\n\n\n b \n", "a\n\n b"),
        ("M\u00c3\u00bchle", "M\u00fchle"),  # UTF-8 read as Latin-1
        ("Mu\u0308hle", "M\u00fchle"),
        ("\u201cso\u201d \ufb01ne", "\u201cso\u201d \ufb01ne"),
        ("so\u00adft\u200b hy\u2060phen\ufeff\x07", "soft hyphen"),
        ("a\u00a0b\u3000c", "a b c"),
        (
            "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 a\u200cb",
            "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 ab",
        ),
        ("&amp; stays", "&amp; stays"),
        (" \n\x00\u200b\n ", ""),
    ],
)
def test_repair_gives_sound_characters(text, expected):
    assert repair(text).strip("\n") == expected or repair(text).strip() == expected == ""
    assert repair(repair(text)) == repair(text)


def test_normalised_ignores_case_width_and_space():
    assert normalised("Stra\u00dfe \uff2d\n") == normalised("STRASSE m")


def test_clean_pathological_whitespace_is_quick():
    text = " " * 2_000_000 + "x" + "\n" * 500_000 + "([" * 50_000
    started = time.thread_time()
    for media_type in ("text/plain", "text/x-wiki", "text/x-rst", "text/markdown"):
        clean_page(item(text.encode(), media_type))
    assert time.thread_time() - started < 60  # time with the square of its length would be hours


PAGES = {
    "html": ("text/html", HTML.encode()),
    "wiki": ("text/x-wiki", WIKI.encode()),
    "rst": ("text/x-rst", RST.encode()),
    "plain": ("text/plain", SENTENCE.encode()),
    "binary": ("text/plain", b"\x89PNG\r\n"),
    "garbled": ("text/plain", ("\ufffd" * 5 + "text").encode()),
    "silent": ("text/html", b"<html><head><title>t</title></head><body><script>1</script></body></html>"),
    "large": ("text/html", b"<p>" + b"x" * 300_000),
    "strange": ("application/x-strange", b"text"),
}
REASONS = {
    "binary": "binary",
    "garbled": "undecodable",
    "silent": "no_text",
    "large": "too_large",
    "strange": "error",
}


def test_clean_every_page_is_kept_or_dropped_with_its_reason(tmp_path):
    store = store_at(tmp_path)
    built = store.build(CLEAN, CleanConfig(max_page_mb=0.2), collected(store, PAGES))
    dropped = rows_of(built.handle.directory, DROPPED, "dropped")
    assert {row["url"]: row["reason"] for row in dropped} == REASONS
    assert {(row["stage"], row["source"]) for row in dropped} == {("clean", "mill")}
    assert all(len(row["preview"]) <= 200 for row in dropped)
    kept = rows_of(built.handle.directory, DOCUMENT)
    assert {row["url"] for row in kept} == {"html", "wiki", "rst", "plain"}
    assert {(row["licence"], row["page_id"]) for row in kept} == {
        ("mine", text_digest(url, PAGES[url][1])) for url in ("html", "wiki", "rst", "plain")
    }
    assert built.counts.is_conserved() and built.counts.rows_in == 9 and built.handle.rows == 4


def test_clean_page_of_100_mb_is_refused_unread(tmp_path):
    store = store_at(tmp_path)
    pages = {"huge": ("text/html", b"<div>" * 20_000_000), "plain": PAGES["plain"]}
    handle = collected(store, pages)
    built = store.build(CLEAN, CleanConfig(), handle)
    assert built.counts.dropped == {"too_large": 1} and built.counts.kept == 1  # and none is a "timeout"


def hostile_page(page: PageItem) -> Cleaned:
    match page.url:
        case "hang":
            while True:
                pass
        case "crash":
            os.abort()
        case "eat":
            return Cleaned(None, "", None, str(len(b"x" * (3 << 30))))
    return clean_page(page)


def test_clean_hostile_pages_cost_only_themselves(tmp_path, monkeypatch):
    monkeypatch.setattr(clean_module, "clean_page", hostile_page)
    pages = {name: ("text/plain", SENTENCE.encode()) for name in ("a", "hang", "b", "crash", "c", "eat", "d")}
    store = Store(root=tmp_path, engine=LocalProcesses(n_workers=2, memory_mb=1024))
    built = store.build(CLEAN, CleanConfig(page_seconds=6.0), collected(store, pages))
    dropped = rows_of(built.handle.directory, DROPPED, "dropped")
    reasons = {row["url"]: row["reason"] for row in dropped}
    assert reasons == {"hang": "timeout", "crash": "crash", "eat": "out_of_memory"}
    assert built.counts.kept == 4 and built.counts.is_conserved()
    assert all(row["preview"].startswith("The miller") for row in dropped)


def test_clean_golden_digest(tmp_path):
    """When this fails because the output changed on purpose: raise CLEAN.version, then take the new digest.

    A digest of the values, not of the files, so that a new version of the Parquet library does not count.
    """
    store = store_at(tmp_path)
    built = store.build(CLEAN, CleanConfig(max_page_mb=0.2), collected(store, PAGES))
    rows = [*rows_of(built.handle.directory, DOCUMENT), *rows_of(built.handle.directory, DROPPED, "dropped")]
    assert (CLEAN.version, text_digest(*(f"{sorted(row.items())}" for row in rows))) == (
        4,
        "12eea7b6679612447d1609135640a08f",
    )


def test_clean_four_workers_give_the_bytes_of_one(tmp_path):
    outputs = []
    for n_workers in (1, 4):
        store = store_at(tmp_path / str(n_workers), n_workers)
        pages = {f"{name}{i}": page for i in range(6) for name, page in PAGES.items()}
        outputs.append(store.build(CLEAN, CleanConfig(max_page_mb=0.2), collected(store, pages)).handle)
    assert bytes_of(outputs[0].directory) == bytes_of(outputs[1].directory)
    assert outputs[0].digest == outputs[1].digest


def killed_after(n_pages: int, root: str) -> None:
    """Clean the pages in a process that kills itself once `n_pages` are done."""

    def show(stage: str, done: int, total: int | None, unit: str) -> None:
        if done >= n_pages:
            os.kill(os.getpid(), signal.SIGKILL)

    store = replace(store_at(Path(root), 2), show=show)
    store.build(CLEAN, CleanConfig(), collected(store, many_pages(), n_shards=6))


def many_pages() -> dict[str, tuple[str, bytes]]:
    return {f"{i:02d}": ("text/plain", f"{SENTENCE} {i}".encode()) for i in range(36)}


KILLED = """
from tests.pipeline.corpus.clean.test_clean import killed_after
killed_after({n_pages}, {store!r})
"""


@pytest.mark.parametrize("n_pages", [1, 20, 36])
def test_clean_killed_anywhere_and_run_again_gives_the_same_bytes(tmp_path, n_pages):
    killed = python("-c", KILLED.format(n_pages=n_pages, store=str(tmp_path / "killed")))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    outputs = []
    for name in ("killed", "whole"):
        store = store_at(tmp_path / name)
        built = store.build(CLEAN, CleanConfig(), collected(store, many_pages(), n_shards=6))
        assert not built.unchanged
        outputs.append(built.handle)
    assert bytes_of(outputs[0].directory) == bytes_of(outputs[1].directory)
    assert outputs[0].digest == outputs[1].digest


def test_clean_one_changed_page_costs_its_shard_only(tmp_path):
    seen = []
    store = replace(store_at(tmp_path), show=lambda stage, done, total, unit: seen.append(total))
    pages = many_pages()
    first = store.build(CLEAN, CleanConfig(), collected(store, pages, n_shards=6)).handle
    assert seen[-1] == 36
    pages["07"] = ("text/plain", b"changed")
    second = store.build(CLEAN, CleanConfig(), collected(store, pages, n_shards=6)).handle
    assert seen[-1] == 6
    before, after = bytes_of(first.directory), bytes_of(second.directory)
    assert [name for name in before if before[name] != after[name]] == ["mill-00001.parquet"]


@pytest.mark.parametrize("values", [{"page_seconds": 0.0}, {"max_page_mb": -1.0}])
def test_clean_config_outside_its_range_is_refused(values):
    with pytest.raises(ValueError, match=f"{next(iter(values))} is {next(iter(values.values()))}, expected"):
        CleanConfig(**values)
