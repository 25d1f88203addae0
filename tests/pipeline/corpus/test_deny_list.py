"""The deny list: what it denies, where it acts, and that neither people nor killed processes break it."""

import codecs
import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.corpus import deny_list as deny_list_module
from pipeline.corpus.clean.stage import CLEAN, CleanConfig
from pipeline.corpus.collect.sources import FilesSource
from pipeline.corpus.collect.stage import CollectConfig, collect
from pipeline.corpus.deny_list import (
    DENY_LIST,
    Denial,
    DenyListRecipe,
    change_denials,
    deny_list,
    keys_of,
    keys_of_source,
    read_denials,
    read_keys,
)
from pipeline.corpus.examples.stage import LabelledFile, document_id, read_examples
from pipeline.corpus.filter.rules import FilterConfig, FilterRecipe
from pipeline.corpus.filter.stage import FILTER
from pipeline.corpus.signals.stage import MEASURE, SignalsConfig
from pipeline.store.records import DROPPED
from pipeline.store.shards import read_table, shard_paths
from pipeline.store.store import Built, Store
from pipeline.store.verdict import conservation
from pipeline.tasks.classification import KIND
from pipeline.tasks.classification import ClassificationExamplesConfig as ExamplesConfig

ROOT = Path(__file__).parents[3]
RECIPE = FilterRecipe(config=FilterConfig(rules=(), languages=()))
SECRET = "Nobody is to read of the heron that stood behind the old mill at noon."


def denial(**values) -> Denial:
    return Denial(**{"date": "2026-01-31", "reason": "asked for", **values})


def write(path: Path, *rows: Denial) -> Path:
    change_denials(path, lambda before: ([], rows))
    return path


def dropped(built: Built) -> list[dict]:
    paths = shard_paths(built.handle.directory, "dropped")
    return [row for path in paths for row in read_table(path, DROPPED).to_pylist()]


@pytest.fixture
def pages(tmp_path) -> Path:
    folder = tmp_path / "pages"
    (folder / "copies").mkdir(parents=True)
    for i in range(12):
        (folder / f"{i:02}.txt").write_text(f"The miller of village number {i} has {i * 7} sacks of grain.")
    (folder / "secret.txt").write_text(SECRET)
    (folder / "binary.bin").write_bytes(b"\x00\x01 the nest of the egret")
    return folder


def documents(store: Store, folder: Path, denied: Path, *, source: str = "mill") -> tuple[Built, Built]:
    """What collect and filter make of a folder."""
    pages = collect(
        store,
        FilesSource(name=source, path=str(folder)),
        store.root / "cache",
        CollectConfig(n_shards=2),
        denied=denied,
    )
    cleaned = store.build(CLEAN, CleanConfig(), pages.handle).handle
    measured = store.build(MEASURE, SignalsConfig(), cleaned).handle
    return pages, store.build(FILTER, RECIPE, cleaned, measured, *deny_list(store, denied))


def test_denied_page_is_counted_at_collect_and_its_words_are_nowhere(store, pages, tmp_path):
    url = (pages / "secret.txt").as_uri()
    before, _ = documents(store, pages, tmp_path / "denied.jsonl")
    fresh = replace(store, root=tmp_path / "fresh")
    built, filtered = documents(fresh, pages, write(tmp_path / "denied.jsonl", denial(url=url)))
    assert built.counts.rows_in == before.counts.rows_in and built.counts.is_conserved()
    assert built.counts.dropped == before.counts.dropped | {"denied": 1}
    (row,) = [row for row in dropped(built) if row["reason"] == "denied"]
    page_id = {
        row["url"]: row["id"] for p in shard_paths(before.handle.directory) for row in read_table(p).to_pylist()
    }
    assert (row["url"], row["page_id"], row["preview"]) == (url, page_id[url], "")
    assert conservation(built.handle).passed and conservation(filtered.handle).passed
    assert not [path for path in fresh.root.rglob("*") if path.is_file() and holds(path, "heron")]


def holds(path: Path, text: str) -> bool:
    """Whether a table, or any other file, has the text in it."""
    if path.suffix == ".parquet":
        return any(text in str(row) for row in read_table(path).to_pylist())
    return text.encode() in path.read_bytes()


def test_denied_page_that_is_refused_anyhow_leaves_no_preview(store, pages, tmp_path):
    """A file of an unknown kind is refused with its first bytes as preview."""
    denied = write(tmp_path / "denied.jsonl", denial(url=(pages / "binary.bin").as_uri()))
    built, _ = documents(store, pages, denied)
    (row,) = [row for row in dropped(built) if row["url"].endswith("binary.bin")]
    assert (row["reason"], row["preview"]) == ("denied", "")


def test_denied_page_id_spares_another_text_at_the_same_address(store, tmp_path):
    lines = [{"text": f"Message number {i} of the same talk.", "link": "https://talk.example/1"} for i in range(3)]
    (tmp_path / "talk").mkdir()
    (tmp_path / "talk" / "all.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = FilesSource(name="talk", path=str(tmp_path / "talk"), url_key="link")
    cache, denied = tmp_path / "cache", tmp_path / "denied.jsonl"
    first = collect(store, source, cache)
    (path,) = shard_paths(first.handle.directory)
    middle = read_table(path).to_pylist()[1]
    again = collect(store, source, cache, denied=write(denied, denial(page_id=middle["id"])))
    (path,) = shard_paths(again.handle.directory)
    assert (again.counts.kept, again.counts.dropped) == (2, {"denied": 1})
    assert middle["id"] not in read_table(path)["id"].to_pylist()


def test_denied_text_at_a_new_address_is_dropped_without_preview(store, pages, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "other.txt").write_text("  " + SECRET.upper() + "\n")
    (elsewhere / "fine.txt").write_text("The wheel of the mill turns with the water.")
    denied = write(tmp_path / "denied.jsonl", denial(document_id=document_id(SECRET), source="mill"))
    _, filtered = documents(store, elsewhere, denied, source="letters")
    assert filtered.counts.dropped == {"denied": 1} and filtered.counts.kept == 1
    (row,) = dropped(filtered)
    assert (row["url"], row["preview"], row["score"]) == ((elsewhere / "other.txt").as_uri(), "", None)


def test_denial_rebuilds_the_shard_that_holds_the_page_and_no_other(store, pages, tmp_path):
    denied, worked = tmp_path / "denied.jsonl", []
    store = replace(store, show=lambda stage, done, total, unit: worked.append((stage, done, total)))
    before, documents_before = documents(store, pages, denied)
    worked.clear()
    after, documents_after = documents(store, pages, write(denied, denial(url=(pages / "secret.txt").as_uri())))
    changed = changed_shards(before, after)
    assert len(changed) == 1 and changed_shards(documents_before, documents_after) == changed
    cleaned = {total for stage, _, total in worked if stage == "clean"}
    (shard,) = changed
    assert cleaned == {read_table(after.handle.directory / shard).num_rows}


def test_denied_text_makes_only_the_shard_anew_that_holds_it(store, pages, tmp_path):
    denied, filtered = tmp_path / "denied.jsonl", []
    _, before = documents(store, pages, denied)
    show = lambda stage, done, total, unit: filtered.append(done) if stage == "filter" else None  # noqa: E731
    _, after = documents(
        replace(store, show=show), pages, write(denied, denial(document_id=document_id(SECRET), source="mill"))
    )
    (shard,) = changed_shards(before, after)
    assert filtered == [read_table(before.handle.directory / shard).num_rows]
    _, unrelated = documents(store, pages, write(denied, denial(document_id="no such text")))
    assert unrelated.handle.digest == after.handle.digest


def changed_shards(before: Built, after: Built) -> set[str]:
    files = before.record["files"], after.record["files"]
    names = {name for name in (*files[0], *files[1]) if "/" not in name}
    digests = [{name: file["digest"] for name, file in given.items()} for given in files]
    return {name for name in names if digests[0].get(name) != digests[1].get(name)}


def test_denial_of_another_source_leaves_the_pages_unchanged(store, pages, tmp_path):
    denied = tmp_path / "denied.jsonl"
    documents(store, pages, denied)
    pages_again, _ = documents(store, pages, write(denied, denial(url="https://a.example/", source="letters")))
    assert pages_again.unchanged


def test_reason_and_order_of_rows_are_no_part_of_what_is_built(store, tmp_path):
    rows = [denial(url="https://a.example/"), denial(document_id="d")]
    other = [replace(row, reason="law", asked_by="Ann") for row in reversed(rows)]
    one, two = (deny_list(store, write(tmp_path / name, *own)) for name, own in (("1", rows), ("2", other)))
    assert one == two and read_keys(one) == keys_of(rows)
    assert deny_list(store, tmp_path / "absent") == () and not read_keys(())


def test_deny_list_golden_digest(store):
    keys = keys_of([denial(url="https://a.example/"), denial(page_id="p", document_id="d")])
    built = store.build(DENY_LIST, DenyListRecipe(digest=keys.digest(), keys=keys))
    assert (DENY_LIST.version, built.handle.digest) == (1, "d232b698ff3e46170dbb75b77d9eb345")


def test_keys_of_source_are_its_own_and_those_of_no_source():
    rows = [denial(url="1", source="a"), denial(url="2", source="b"), denial(url="3"), denial(document_id="4")]
    assert keys_of_source(rows, "a").url == {"1", "3"} and not keys_of_source(rows, "a").document_id


def test_denied_example_is_dropped_without_preview(tmp_path):
    rng = random.Random(1)
    texts = [" ".join("".join(rng.choices("abcdefgh", k=5)) for _ in range(6)) for _ in range(60)]
    lines = [{"text": text, "mood": ("sad", "glad")[i % 2]} for i, text in enumerate(texts)]
    path = tmp_path / "moods.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    store, cfg = Store(root=tmp_path / "store"), ExamplesConfig(text="text", label="mood")

    def built(denied: Path) -> Built:
        return KIND.build_examples(store, LabelledFile(path), cfg, tmp_path, denied=denied)

    before = built(tmp_path / "none")
    after = built(write(tmp_path / "denied.jsonl", denial(document_id=document_id(texts[7]))))
    assert after.counts.dropped == {"denied": 1} and after.counts.kept == before.counts.kept - 1
    assert conservation(after.handle).passed
    (row,) = dropped(after)
    assert (row["reason"], row["preview"]) == ("denied", "")
    kept = [text for side in ("train", "validation", "test") for text in texts_of(after, side)]
    assert sorted(kept) == sorted(set(texts) - {texts[7]})


def texts_of(built: Built, side: str) -> list[str]:
    return read_examples(built.handle.directory, side)["text"].to_pylist()


@pytest.mark.parametrize(
    ("content", "line", "part"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), 1, "not a JSON object"),
        (
            b'{"url": "https://a.example/", "date": "2026-01-31", "reason": "x"}\n{"uri": "b"}\n',
            2,
            "unknown key `uri`",
        ),
        (b'\n{"date": "2026-01-31", "reason": "x"}\n', 2, "denies nothing"),
        (b'{"url": "https://a.example/", "reason": "x"}\n', 1, "key `date` is missing"),
        (b'{"url": "https://a.example/", "date": "31.1.2026", "reason": "x"}\n', 1, "expected YYYY-MM-DD"),
        (b'{"url": 7, "date": "2026-01-31", "reason": "x"}\n', 1, "url is 7, expected a text"),
        (b'{"url": "\\ud800", "date": "2026-01-31", "reason": "x"}\n', 1, "expected a text"),
        (b'["https://a.example/"]\n', 1, "not a JSON object"),
        (b"[" * 90_000 + b"\n", 1, "not a JSON object"),
        (b"x" * 10_000_000, 1, "longer than 100,000 bytes"),
    ],
)
def test_bad_deny_file_is_refused_with_its_line(tmp_path, content, line, part):
    path = tmp_path / "denied.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_denials(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line {line}: ") and part in message and len(message) < 500


def test_rows_that_people_wrote_stay_as_they_are(tmp_path):
    path = tmp_path / "denied.jsonl"
    own = '{ "reason" : "by hand",  "date":"2026-01-30", "url":"https://a.example/caf\u00e9\u2028" }'
    path.write_bytes(b"\xef\xbb\xbf" + own.encode() + b"\r\n\n")
    added = denial(document_id="d")
    change_denials(path, lambda before: ([], [added]))
    assert own in path.read_text("utf-8") and len(read_denials(path)) == 2
    change_denials(path, lambda before: ([before[0]], []))
    assert read_denials(path) == [added]


def append_rows(path: str, name: str, n_rows: int) -> None:
    for i in range(n_rows):
        change_denials(Path(path), lambda before: ([], [denial(url=f"https://a.example/{name}/{i}")]))  # noqa: B023


ADD = """
import sys
sys.path.insert(0, {root!r})
from tests.pipeline.corpus.test_deny_list import append_rows
append_rows({path!r}, {name!r}, {n_rows})
"""


def adding(path: Path, name: str, n_rows: int) -> subprocess.Popen:
    program = ADD.format(root=str(ROOT), path=str(path), name=name, n_rows=n_rows)
    return subprocess.Popen([sys.executable, "-c", program])


def test_two_that_write_at_once_lose_nothing(tmp_path):
    path, n_rows = tmp_path / "denied.jsonl", 20
    for process in [adding(path, name, n_rows) for name in ("one", "two")]:
        assert process.wait(timeout=600) == 0
    assert {row.url for row in read_denials(path)} == {
        f"https://a.example/{name}/{i}" for name in ("one", "two") for i in range(n_rows)
    }


def test_killed_while_it_writes_leaves_the_list_of_before_and_the_next_goes_on(tmp_path, monkeypatch):
    path = write(tmp_path / "denied.jsonl", denial(url="https://a.example/1"))
    before = path.read_bytes()

    child = os.fork()
    if not child:  # dies between the new file and its renaming
        monkeypatch.setattr(Path, "replace", lambda self, target: os.kill(os.getpid(), signal.SIGKILL))
        write(path, denial(url="https://a.example/2"))
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert path.read_bytes() == before
    write(path, denial(url="https://a.example/2"))
    assert len(read_denials(path)) == 2
    assert not list(tmp_path.glob(".*.part"))


def test_denial_has_no_field_that_could_hold_the_text():
    """What must be forgotten must not be kept by the list of what is forgotten."""
    assert not {"text", "title", "preview", "content"} & set(deny_list_module.Denial.__dataclass_fields__)


def test_deny_list_of_an_editor_that_writes_a_byte_order_mark(tmp_path):
    """Notepad begins a file with U+FEFF, and the first row was refused (own trials)."""
    path = write(tmp_path / "denied.jsonl", denial(url="https://a.example/1"))
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes().replace(b"\n", b"\r\n"))
    assert [one.url for one in read_denials(path)] == ["https://a.example/1"]
    change_denials(path, lambda rows: ((), [denial(url="https://a.example/2")]))
    assert [one.url for one in read_denials(path)] == ["https://a.example/1", "https://a.example/2"]
