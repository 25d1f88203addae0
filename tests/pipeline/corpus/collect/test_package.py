"""Fetching packages from a real index: a small server of the simple API on this machine."""

import hashlib
import http.server
import io
import json
import tarfile
import threading
import zipfile
from collections import Counter

import pytest

from pipeline.corpus.collect.download import LOCK
from pipeline.corpus.collect.package import fetch_package
from pipeline.corpus.collect.sources import PackageSource
from pipeline.corpus.collect.stage import collect
from pipeline.store.errors import SourceUnavailable
from pipeline.store.shards import read_table, shard_paths
from pipeline.store.store import Store


def sdist_bytes() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in {"docs/a.html": "<p>a</p>", "docs/deep/b.html": "<p>b</p>", "setup.py": "1/0"}.items():
            info = tarfile.TarInfo(f"texts-1.0/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue()


def wheel_bytes() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("texts/a.txt", "a text")
        archive.writestr("texts-1.0.dist-info/METADATA", "Name: texts")
    return buffer.getvalue()


FILES = {
    "texts-0.9.tar.gz": b"old",
    "texts-1.0.tar.gz": sdist_bytes(),
    "texts-1.0-py3-none-any.whl": wheel_bytes(),
    "wheely-1.0-py3-none-any.whl": wheel_bytes(),
}
SHA256 = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}


class Index(http.server.ThreadingHTTPServer):
    """Serves FILES; `faults` are status codes of the next answers, `lies` files with other bytes than their hash."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults: list[int] = []
        self.lies: set[str] = set()
        self.with_hashes = True
        self.requests: Counter[str] = Counter()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Index

    def do_GET(self):
        name = self.path.rstrip("/").rpartition("/")[2]
        self.server.requests[name] += 1
        if self.server.faults and (status := self.server.faults.pop(0)):
            self.answer(status, b"fault")
        elif name in FILES:
            self.answer(200, FILES[name][::-1] if name in self.server.lies else FILES[name])
        elif offered := [file for file in FILES if file.startswith(f"{name}-")]:
            files = [{"filename": file, "url": f"/files/{file}", "hashes": self.hashes(file)} for file in offered]
            page = {"meta": {"api-version": "1.0"}, "name": name, "files": files}
            self.answer(200, json.dumps(page).encode(), "application/vnd.pypi.simple.v1+json")
        else:
            self.answer(404, b"nothing here")

    def hashes(self, file: str) -> dict[str, str]:
        return {"sha256": SHA256[file]} if self.server.with_hashes else {}

    def answer(self, status: int, content: bytes, media_type: str = "application/octet-stream") -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args): ...


@pytest.fixture
def index(monkeypatch):
    server = Index()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://user:secret@127.0.0.1:{server.server_port}/simple/")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def source(**changes) -> PackageSource:
    values = {
        "name": "manual",
        "licence": "MIT",
        "package": "texts",
        "version": "1.0",
        "file": "sdist",
        "sha256": SHA256["texts-1.0.tar.gz"],
        "members": ("docs/**/*.html",),
    }
    return PackageSource(**{**values, **changes})


def test_package_sdist_members_become_pages_without_its_top_folder(index, tmp_path):
    built = collect(Store(root=tmp_path / "store"), source(), tmp_path / "cache")
    rows = [row for path in shard_paths(built.handle.directory) for row in read_table(path).to_pylist()]
    assert {(row["url"], row["content"], row["licence"]) for row in rows} == {
        ("pypi://texts/1.0/docs/a.html", b"<p>a</p>", "MIT"),
        ("pypi://texts/1.0/docs/deep/b.html", b"<p>b</p>", "MIT"),
    }


def test_package_wheel_members_become_pages(index, tmp_path):
    wheel = source(file="wheel", sha256=SHA256["texts-1.0-py3-none-any.whl"], members=("texts/*.txt",))
    built = collect(Store(root=tmp_path / "store"), wheel, tmp_path / "cache")
    assert built.counts.kept == 1


def test_package_in_the_cache_needs_no_index(index, tmp_path):
    path = fetch_package(source(), tmp_path)
    assert path == tmp_path / SHA256["texts-1.0.tar.gz"] / "texts-1.0.tar.gz"
    n_requests = index.requests.total()
    assert fetch_package(source(), tmp_path) == path
    assert index.requests.total() == n_requests == 2


def test_package_pages_do_not_depend_on_where_the_cache_lies(index, tmp_path):
    one, two = (collect(Store(root=tmp_path / n), source(), tmp_path / f"cache{n}") for n in ("1", "2"))
    assert one.handle.fingerprint == two.handle.fingerprint and one.handle.digest == two.handle.digest


def test_package_damaged_in_the_cache_is_fetched_again(index, tmp_path):
    path = fetch_package(source(), tmp_path)
    path.write_bytes(b"damaged")
    assert fetch_package(source(), tmp_path).read_bytes() == FILES["texts-1.0.tar.gz"]


def test_package_index_without_hashes_is_checked_all_the_same(index, tmp_path):
    index.with_hashes = False
    assert fetch_package(source(), tmp_path).exists()
    with pytest.raises(ValueError, match=r"texts-1.0.tar.gz has sha256 .* but 0000"):
        fetch_package(source(sha256="0" * 64), tmp_path)


def test_package_whose_bytes_changed_is_refused_and_leaves_nothing(index, tmp_path):
    index.lies = {"texts-1.0.tar.gz"}
    with pytest.raises(ValueError, match=f"has sha256 .* but {SHA256['texts-1.0.tar.gz']} is expected"):
        fetch_package(source(), tmp_path)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {LOCK}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"package": "textz"}, ["package `textz` does not exist"]),
        ({"version": "2.0"}, ["texts has no version 2.0", "0.9, 1.0"]),
        ({"package": "wheely"}, ["wheely 1.0 has no sdist", "wheely-1.0-py3-none-any.whl"]),
        ({"sha256": "0" * 64}, ["no sdist of texts 1.0 has the sha256 0000", SHA256["texts-1.0.tar.gz"]]),
        ({"members": ("doc/*.html",)}, ["`doc/*.html`", "texts-1.0.tar.gz (source `manual`)", "docs/a.html"]),
    ],
)
def test_package_wrong_pin_says_what_there_is(index, tmp_path, changes, expected):
    with pytest.raises(ValueError) as caught:
        collect(Store(root=tmp_path / "store"), source(**changes), tmp_path / "cache")
    for part in expected:
        assert part in str(caught.value)


def test_package_fault_of_the_server_is_tried_again(index, tmp_path):
    index.faults = [503, 0, 500]
    assert fetch_package(source(), tmp_path, waits=(0.0, 0.0)).exists()


def test_package_lasting_fault_says_how_to_go_on_and_hides_the_password(index, tmp_path):
    index.faults = [503] * 3
    with pytest.raises(
        SourceUnavailable, match=r"texts 1.0 could not be fetched .*503.*put the file with sha256"
    ) as caught:
        fetch_package(source(), tmp_path, waits=(0.0, 0.0))
    assert "secret" not in str(caught.value)
    assert fetch_package(source(), tmp_path).exists()


def test_package_refusal_is_not_tried_again(index, tmp_path):
    index.faults = [403]
    with pytest.raises(SourceUnavailable, match="403"):
        fetch_package(source(), tmp_path, waits=(0.0, 0.0))
    assert index.requests.total() == 1


def test_package_without_a_server_is_unavailable(tmp_path, monkeypatch):
    server = Index()  # takes a free port and gives it back
    server.server_close()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple/")
    with pytest.raises(SourceUnavailable, match="check the network and `pip config list`"):
        fetch_package(source(), tmp_path, waits=())
