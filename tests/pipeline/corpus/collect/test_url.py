"""Fetching pinned files from addresses: a small server on this machine, honest and hostile."""

import gzip
import hashlib
import http.server
import io
import socket
import tarfile
import threading
import tracemalloc
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from pipeline.corpus.collect.download import LOCK
from pipeline.corpus.collect.files import FilesSource
from pipeline.corpus.collect.members import members_of
from pipeline.corpus.collect.stage import collect
from pipeline.corpus.collect.url import UrlSource, fetch_pinned, pinned
from pipeline.store.errors import SourceUnavailable
from pipeline.store.shards import read_table, shard_paths
from pipeline.store.store import Store


def tar_bytes(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zip_bytes(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


FILES = {
    "texts.tgz": gzip.compress(tar_bytes({"package/docs/a.md": b"# a", "package/package.json": b"{}"})),
    "texts.whl": zip_bytes({"texts/b.md": b"# b", "texts-1.0.dist-info/METADATA": b"Name: texts"}),
    "lines.jsonl": b'{"text": "one"}\n{"text": "two"}\n',
    "long.txt": b"A mill grinds. " * 10_000,
}


class Server(http.server.ThreadingHTTPServer):
    """Serves FILES by name.

    `faults` are the next answers: a status, 0 = as usual, -1 = cut off in the middle. `moved` are redirects by name.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults: list[int] = []
        self.moved: dict[str, str] = {}
        self.headers: dict[str, str] = {}
        self.requests: list[tuple[str, str | None]] = []  # name, asked range

    def address(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/files/{name}"

    def url(self, name: str) -> str:
        return f"{self.address(name)}#sha256={hashlib.sha256(FILES[name]).hexdigest()}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        name = self.path.partition("?")[0].rpartition("/")[2]
        start = self.headers["Range"]
        self.server.requests.append((name, start))
        fault = self.server.faults.pop(0) if self.server.faults else 0
        content = FILES.get(name, b"")
        if fault <= 0 and name in self.server.moved:
            self.send_response(302)
            self.send_header("Location", self.server.moved[name])
        elif fault > 0 or name not in FILES:
            self.send_response(fault or 404)
        elif start:
            content = content[int(start.removeprefix("bytes=").rstrip("-")) :]
            self.send_response(206)
        else:
            self.send_response(200)
        for key, value in {"Content-Length": str(len(content)), **self.server.headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if fault == -1 else content)

    def log_message(self, *args): ...


@pytest.fixture
def server(monkeypatch):
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def collected(tmp_path: Path, *urls: str, **keys) -> dict[str, bytes]:
    source = UrlSource(name="texts", urls=urls, **keys)
    built = collect(Store(root=tmp_path / "store"), source, tmp_path / "cache")
    rows = [row for path in shard_paths(built.handle.directory) for row in read_table(path).to_pylist()]
    return {row["url"]: row["content"] for row in rows}


def fetch(url: str, cache: Path, max_download_mb: float = 1.0) -> bytes:
    return fetch_pinned(pinned(url), cache, max_download_mb, waits=(0.0, 0.0)).read_bytes()


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("[!.]*") if path.is_file()]


def test_url_files_of_several_addresses_become_pages_by_their_place(server, tmp_path):
    pages = collected(tmp_path, server.url("texts.tgz"), server.url("texts.whl"), members=("**/*.md",))
    assert pages == {
        f"{server.address('texts.tgz')}!/package/docs/a.md": b"# a",
        f"{server.address('texts.whl')}!/texts/b.md": b"# b",
    }


def test_url_single_file_is_read_by_its_suffix_under_its_own_address(server, tmp_path):
    address = server.address("lines.jsonl")
    pages = collected(tmp_path, server.url("lines.jsonl"))
    assert pages == {f"{address}#line=1": b"one", f"{address}#line=2": b"two"}


def test_url_of_a_file_on_this_machine_is_copied_and_checked(tmp_path):
    path = tmp_path / "here.txt"
    path.write_bytes(FILES["long.txt"])
    url = f"{path.as_uri()}#sha256={hashlib.sha256(FILES['long.txt']).hexdigest()}"
    assert collected(tmp_path, url) == {path.as_uri(): FILES["long.txt"]}
    with pytest.raises(ValueError, match=r"here.txt is larger than max_download_mb=0.1"):
        fetch(url, tmp_path / "other", max_download_mb=0.1)
    path.unlink()
    assert fetch(url, tmp_path / "cache") == FILES["long.txt"]  # from the cache
    with pytest.raises(ValueError, match=r"here.txt: there is no such file"):
        fetch(url, tmp_path / "other")


def test_url_in_the_cache_needs_no_server_and_a_damaged_copy_is_fetched_again(server, tmp_path):
    url = server.url("long.txt")
    assert fetch(url, tmp_path) == fetch(url, tmp_path) == FILES["long.txt"]
    assert len(server.requests) == 1
    (copy,) = files_below(tmp_path)
    copy.write_bytes(b"damaged")
    assert fetch(url, tmp_path) == FILES["long.txt"] and len(server.requests) == 2


def test_url_glob_that_takes_nothing_names_the_files(server, tmp_path):
    with pytest.raises(ValueError, match=r"no file of texts.tgz, texts.whl \(source `texts`\) matches `doc/\*.md`"):
        collected(tmp_path, server.url("texts.tgz"), server.url("texts.whl"), members=("**/*.md", "doc/*.md"))


def test_url_with_other_bytes_than_pinned_is_refused_and_leaves_nothing(server, tmp_path):
    with pytest.raises(ValueError, match=r"long.txt has sha256 .* but 0{64} is expected"):
        fetch(f"{server.address('long.txt')}#sha256={'0' * 64}", tmp_path)
    assert not files_below(tmp_path)


@pytest.mark.parametrize("known_size", [True, False])
def test_url_file_larger_than_allowed_is_refused_and_leaves_nothing(server, tmp_path, known_size):
    server.headers = {} if known_size else {"Content-Length": ""}
    with pytest.raises(ValueError, match=r"long.txt is larger than max_download_mb=0.1"):
        fetch(server.url("long.txt"), tmp_path, max_download_mb=0.1)
    assert not files_below(tmp_path)


def test_url_fault_of_the_server_is_tried_again(server, tmp_path):
    server.faults = [503, 429]
    assert fetch(server.url("long.txt"), tmp_path) == FILES["long.txt"]


def test_url_answer_that_was_cut_off_is_continued(server, tmp_path):
    server.faults = [-1]
    assert fetch(server.url("long.txt"), tmp_path) == FILES["long.txt"]
    half = len(FILES["long.txt"]) // 2
    assert server.requests == [("long.txt", None), ("long.txt", f"bytes={half}-")]


def test_url_download_of_a_run_that_was_killed_is_continued(server, tmp_path):
    url, content = server.url("long.txt"), FILES["long.txt"]
    server.faults = [-1, 403]
    with pytest.raises(SourceUnavailable):
        fetch(url, tmp_path)
    assert fetch(url, tmp_path) == content
    assert server.requests[-1] == ("long.txt", f"bytes={len(content) // 2}-")


@pytest.mark.parametrize("left", [b"x" * 1000, b"x" * len(FILES["long.txt"]), FILES["long.txt"], b""])
def test_url_what_a_power_cut_left_is_continued_checked_and_not_trusted(server, tmp_path, left):
    url = server.url("long.txt")
    folder = tmp_path / pinned(url).sha256
    folder.mkdir()
    (folder / ".long.txt.part").write_bytes(left)
    assert fetch(url, tmp_path) == FILES["long.txt"]
    assert len(server.requests) == (0 if left == FILES["long.txt"] else 2 if left else 1)
    assert {path.name for path in folder.iterdir()} == {"long.txt", LOCK}


def test_url_server_that_cannot_continue_is_asked_for_all_of_it(server, tmp_path):
    server.faults = [-1, 416]
    assert fetch(server.url("long.txt"), tmp_path) == FILES["long.txt"]
    assert [asked for _, asked in server.requests] == [None, f"bytes={len(FILES['long.txt']) // 2}-", None]


def test_url_packed_by_the_server_on_its_way_keeps_its_bytes(server, tmp_path):
    server.headers = {"Content-Encoding": "gzip"}  # as some servers announce every .tgz
    assert fetch(server.url("texts.tgz"), tmp_path) == FILES["texts.tgz"]


@pytest.mark.parametrize(("faults", "n_requests"), [([503] * 3, 3), ([-1] * 3, 3), ([403], 1), ([404], 1)])
def test_url_lasting_fault_says_how_to_go_on_and_leaves_nothing(server, tmp_path, faults, n_requests):
    server.faults = faults
    sha256 = pinned(server.url("long.txt")).sha256
    with pytest.raises(
        SourceUnavailable, match=rf"long.txt could not be fetched .*put the file with sha256 {sha256}"
    ):
        fetch(server.url("long.txt"), tmp_path)
    assert len(server.requests) == n_requests and not files_below(tmp_path)


def test_url_redirects_are_followed_but_not_for_ever(server, tmp_path):
    server.moved = {"old.txt": "/files/older.txt", "older.txt": server.address("long.txt")}
    sha256 = pinned(server.url("long.txt")).sha256
    assert fetch(f"{server.address('old.txt')}#sha256={sha256}", tmp_path) == FILES["long.txt"]
    server.moved = {"old.txt": "old.txt"}
    with pytest.raises(SourceUnavailable, match="more than 10 redirects"):
        fetch(f"{server.address('old.txt')}#sha256={sha256}", tmp_path / "other")


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://example.org/x", "gopher://127.0.0.1/x"])
def test_url_redirect_to_another_scheme_is_refused(server, tmp_path, target):
    server.moved = {"long.txt": target}
    with pytest.raises(ValueError, match=r"leads to .*, which is not an address of http or https"):
        fetch(server.url("long.txt"), tmp_path)


@pytest.mark.parametrize(
    "target",
    [
        *("http://127.0.0.1:1/x", "http://2130706433/x", "http://127.1/x", "http://0.0.0.0/x", "http://10.0.0.1/x"),
        *("http://192.168.1.1/x", "http://169.254.169.254/latest/meta-data", "http://[::1]/x"),
        *("http://[::ffff:127.0.0.1]/x", "http://[fd00::1]/x", "http://me:secret@localhost/x", "//127.0.0.1/x"),
    ],
)
def test_url_redirect_from_a_public_server_into_a_private_network_is_refused(server, tmp_path, monkeypatch, target):
    """The server of the test plays public.example: its name resolves to a public address, but leads here."""
    resolve = socket.getaddrinfo

    def resolve_public(host, port, *args, **kwargs):
        if host == "public.example":
            host = "8.8.8.8" if port is None else "127.0.0.1"
        return resolve(host, port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolve_public)
    monkeypatch.setenv("NO_PROXY", "public.example")
    server.moved = {"long.txt": target}
    with pytest.raises(ValueError, match="which is an address of a private network") as caught:
        fetch(server.url("long.txt").replace("127.0.0.1", "public.example"), tmp_path)
    assert len(server.requests) == 1 and "secret" not in str(caught.value)


@dataclass(frozen=True, kw_only=True, slots=True)
class Twin(FilesSource):
    """A kind with the fields of `files`."""

    kind: ClassVar[str] = "twin"


def test_kinds_with_equal_fields_have_different_fingerprints(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    store = Store(root=tmp_path / "store")
    built = [collect(store, kind(name="a", path=str(tmp_path / "a.txt")), tmp_path) for kind in (FilesSource, Twin)]
    assert built[0].handle.fingerprint != built[1].handle.fingerprint
    assert built[0].handle.digest == built[1].handle.digest


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_archive_with_a_name_that_would_fill_the_memory_is_refused(tmp_path, kind):
    """tarfile reads long names whole: 64 MB of zeros that are packed into 64 kB."""
    header = tarfile.TarInfo("long")
    header.type, header.size = kind, 64 << 20
    path = tmp_path / "bomb.tar.gz"
    path.write_bytes(gzip.compress(header.tobuf() + bytes(header.size) + tar_bytes({"a": b"a"})))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"bomb.tar.gz is damaged or not an archive"):
            list(members_of(path))
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("query", ["X-Amz-Credential=AK&X-Amz-Signature=correct-horse", "sig=correct-horse"])
def test_address_with_a_secret_is_refused_and_not_shown(query):
    """A page keeps its address, so that a token in it would lie in every output (mlflow/mlflow#2282)."""
    with pytest.raises(ValueError, match="contains a secret, which would be recorded with the pages") as error:
        pinned(f"https://files.example.org/texts.zip?{query}#sha256={'0' * 64}")
    assert "correct-horse" not in str(error.value)
    with pytest.raises(ValueError, match="has no sha256") as error:
        pinned("https://ann:correct-horse@files.example.org/texts.zip")
    assert "correct-horse" not in str(error.value)
