"""Fetching packages of npm and Debian from a real server: a small mirror of both on this machine."""

import gzip
import hashlib
import http.server
import io
import json
import lzma
import random
import tarfile
import threading
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.corpus.collect import registry_npm
from pipeline.corpus.collect.members import members_of
from pipeline.corpus.collect.package import fetch_package
from pipeline.corpus.collect.registry_debian import MIRROR_VARIABLE, Suite, offers, suites
from pipeline.corpus.collect.sources import PackageSource
from pipeline.corpus.collect.stage import collect
from pipeline.store.errors import SourceUnavailable
from pipeline.store.records import DROPPED
from pipeline.store.shards import read_table, shard_paths
from pipeline.store.store import Store

PAGES = {"./usr/share/doc/manual/html/a.html": b"<p>a</p>", "./usr/share/doc/manual/html/deep/b.html": b"<p>b</p>"}
LARGE = {f"./{i}.html": random.Random(i).randbytes(9_000) for i in range(9)}
COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}


def tar_bytes(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def ar_bytes(parts: dict[str, bytes]) -> bytes:
    """An ar archive, as Debian packages are; each part begins at an even place."""
    pieces = [b"!<arch>\n"]
    for name, content in parts.items():
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        pieces += [header, content, b"\n" * (len(content) % 2)]
    return b"".join(pieces)


def deb_bytes(data: bytes, suffix: str = ".xz") -> bytes:
    control = gzip.compress(tar_bytes({"./postinst": b"#!/bin/sh\nexit 1\n"}))
    return ar_bytes(
        {"debian-binary": b"2.0\n", "control.tar.gz": control, f"data.tar{suffix}": COMPRESS[suffix](data)}
    )


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


DEB = deb_bytes(tar_bytes(PAGES))
TGZ = gzip.compress(tar_bytes({"package/docs/a.md": b"# a", "package/package.json": b"{}"}))
VERSION = "1:2.0-1+deb12u1"
POOL = "pool/main/m/manual/manual-doc_2.0-1+deb12u1_all.deb"
INDEX = f"""Package: bystander
Version: 1
Filename: pool/bystander.deb
SHA256: {"0" * 64}

Package: manual-doc
Architecture: all
Version: {VERSION}
Description: a manual
 Version: 9
Filename: {POOL}
Size: {len(DEB)}
SHA256: {sha256(DEB)}
"""


class Mirror(http.server.ThreadingHTTPServer):
    """Serves `files` by path; `faults` are the next answers: a status, 0 = as usual, -1 = cut off in the middle."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: list[int] = []
        self.requests: list[str] = []
        self.logins: set[str | None] = set()

    def address(self, user: str = "") -> str:
        return f"http://{user}127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self):
        path = self.path.lstrip("/")
        self.server.requests.append(path)
        self.server.logins.add(self.headers["Authorization"])
        content = self.server.files.get(path)
        status = self.server.faults.pop(0) if self.server.faults else 0
        length = len(content or b"")
        if status == -1 and content:
            status, content = 200, content[: length // 2]
        self.send_response(status or (404 if content is None else 200))
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *args): ...


@pytest.fixture
def mirror(monkeypatch, tmp_path):
    server = Mirror()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv(MIRROR_VARIABLE, f"{server.address('user:secret@')}/debian bookworm main")
    monkeypatch.setenv("npm_config_registry", server.address("user:secret@") + "/npm")
    monkeypatch.setenv("PATH", str(tmp_path))  # npm of this machine is not asked: it takes a second to answer
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    server.files = {
        "debian/dists/bookworm/main/binary-amd64/Packages.xz": lzma.compress(INDEX.encode()),
        f"debian/{POOL}": DEB,
        "npm/texts": listing(server, "texts"),
        "npm/@scope%2Ftexts": listing(server, "texts"),
        "npm/files/texts-1.0.0.tgz": TGZ,
    }
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def listing(server: Mirror, name: str) -> bytes:
    dist = {"tarball": f"{server.address()}/npm/files/{name}-1.0.0.tgz"}
    return json.dumps({"name": name, "versions": {"0.10.0": {}, "1.0.0": {"dist": dist}, "0.9.0": {}}}).encode()


def debian(**changes) -> PackageSource:
    values = {
        "name": "manual",
        "registry": "debian",
        "package": "manual-doc",
        "version": VERSION,
        "sha256": sha256(DEB),
        "members": ("usr/share/doc/manual/html/**/*.html",),
    }
    return PackageSource(**{**values, **changes})


def npm(**changes) -> PackageSource:
    values = {"name": "texts", "registry": "npm", "package": "texts", "version": "1.0.0"}
    return PackageSource(**{**values, "sha256": sha256(TGZ), "members": ("docs/*.md",), **changes})


def collected(source: PackageSource, tmp_path: Path) -> dict[str, bytes]:
    built = collect(Store(root=tmp_path / "store"), source, tmp_path / "cache")
    rows = [row for path in shard_paths(built.handle.directory) for row in read_table(path).to_pylist()]
    assert {row["licence"] for row in rows} == {None}
    return {row["url"]: row["content"] for row in rows}


def test_debian_members_become_pages_by_their_place_in_the_system(mirror, tmp_path):
    assert collected(debian(), tmp_path) == {
        f"debian://manual-doc/{VERSION}/usr/share/doc/manual/html/a.html": b"<p>a</p>",
        f"debian://manual-doc/{VERSION}/usr/share/doc/manual/html/deep/b.html": b"<p>b</p>",
    }


def test_npm_members_become_pages_without_the_top_folder(mirror, tmp_path):
    assert collected(npm(), tmp_path) == {"npm://texts/1.0.0/docs/a.md": b"# a"}


def test_npm_package_of_a_scope_is_found(mirror, tmp_path):
    scoped = npm(package="@scope/texts")
    assert fetch_package(scoped, tmp_path) == tmp_path / scoped.sha256 / "scope-texts-1.0.0.tgz"


@pytest.mark.parametrize("source", [debian(), npm()], ids=["debian", "npm"])
def test_registry_login_of_the_address_is_sent_with_every_request(mirror, tmp_path, source):
    fetch_package(source, tmp_path)
    assert len(mirror.requests) == 2 and len(mirror.logins) == 1 and None not in mirror.logins


def test_npm_login_is_not_sent_to_another_server(mirror, tmp_path):
    other = listing(mirror, "texts").replace(b"127.0.0.1", b"localhost")
    mirror.files["npm/texts"] = other
    fetch_package(npm(), tmp_path)
    assert None in mirror.logins


@pytest.mark.parametrize("source", [debian(), npm()], ids=["debian", "npm"])
def test_registry_package_in_the_cache_needs_no_server(mirror, tmp_path, source):
    path = fetch_package(source, tmp_path)
    assert path.parent == tmp_path / source.sha256
    n_requests = len(mirror.requests)
    assert fetch_package(source, tmp_path) == path and len(mirror.requests) == n_requests


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (debian(package="manul-doc"), ["package `manul-doc` does not exist in bookworm (main)"]),
        (
            debian(version="1:1.0-1"),
            ["manual-doc 1:1.0-1 is not in bookworm", VERSION, sha256(DEB), "newest version"],
        ),
        (debian(sha256="0" * 64), ["no file of manual-doc", "sha256 0000", sha256(DEB)]),
        (
            debian(members=("usr/*.html",)),
            ["`usr/*.html`", "deb (source `manual`)", "usr/share/doc/manual/html/a.html"],
        ),
        (npm(package="textz"), ["package `textz` does not exist in the npm registry"]),
        (npm(version="2.0.0"), ["texts has no version 2.0.0", "newest are 0.9.0, 0.10.0, 1.0.0"]),
        (npm(version="0.9.0"), ["names no file of texts 0.9.0"]),
        (npm(sha256="0" * 64), ["texts-1.0.0.tgz has sha256", sha256(TGZ), "but 0000"]),
    ],
)
def test_registry_wrong_pin_says_what_there_is_and_leaves_nothing(mirror, tmp_path, source, expected):
    with pytest.raises(ValueError) as caught:
        collected(source, tmp_path)
    for part in expected:
        assert part in str(caught.value)
    if source.members == debian().members or source.registry == "npm":
        assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_debian_file_that_is_not_what_its_index_says_is_refused(mirror, tmp_path):
    mirror.files[f"debian/{POOL}"] = DEB[::-1]
    with pytest.raises(ValueError, match=f"manual-doc_2.0-1.deb12u1.deb has sha256 .* but {sha256(DEB)} is expected"):
        fetch_package(debian(), tmp_path)


@pytest.mark.parametrize("source", [debian(), npm()], ids=["debian", "npm"])
@pytest.mark.parametrize("faults", [[503, 0, 500], [0, -1]], ids=["errors", "cut off"])
def test_registry_fault_of_the_server_is_tried_again(mirror, tmp_path, source, faults):
    mirror.faults = faults
    assert fetch_package(source, tmp_path, waits=(0.0, 0.0)).exists()


@pytest.mark.parametrize("source", [debian(), npm()], ids=["debian", "npm"])
@pytest.mark.parametrize("faults", [[503] * 3, [0, -1] * 3, [-1] * 3, [403]])
def test_registry_lasting_fault_says_how_to_go_on_and_hides_the_password(mirror, tmp_path, source, faults):
    mirror.faults = list(faults)
    with pytest.raises((SourceUnavailable, ValueError)) as caught:
        fetch_package(source, tmp_path, waits=(0.0, 0.0))
    assert isinstance(caught.value, SourceUnavailable) or faults == [-1] * 3
    assert "secret" not in str(caught.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    if faults == [403]:
        assert len(mirror.requests) == 1  # such an answer is final
    mirror.faults = []
    assert fetch_package(source, tmp_path).exists()


def test_debian_package_gone_from_the_pool_is_named(mirror, tmp_path):
    del mirror.files[f"debian/{POOL}"]
    with pytest.raises(SourceUnavailable, match=r"manual-doc .* could not be fetched .*404"):
        fetch_package(debian(), tmp_path)


def test_debian_index_may_be_packed_by_gzip_and_lie_in_a_later_suite(mirror, tmp_path, monkeypatch):
    monkeypatch.setenv(
        MIRROR_VARIABLE, f"{mirror.address()}/gone trixie main; {mirror.address()}/debian bookworm main"
    )
    mirror.files["debian/dists/bookworm/main/binary-amd64/Packages.gz"] = gzip.compress(INDEX.encode())
    del mirror.files["debian/dists/bookworm/main/binary-amd64/Packages.xz"]
    assert fetch_package(debian(), tmp_path).exists()


def test_debian_offers_of_an_archive_name_version_and_hash(mirror):
    (offer,) = offers({"manual-doc", "unknown"})
    assert (offer.package, offer.version, offer.sha256) == ("manual-doc", VERSION, sha256(DEB))


@pytest.mark.parametrize(
    "content",
    [b"no archive at all", lzma.compress(INDEX.encode() * 50)[:200], lzma.compress(b"Package: " + b"x" * 10_000_000)],
    ids=["no xz", "cut off", "endless line"],
)
def test_debian_broken_index_is_refused_or_holds_nothing(mirror, tmp_path, content):
    mirror.files["debian/dists/bookworm/main/binary-amd64/Packages.xz"] = content
    with pytest.raises(ValueError, match=r"index of bookworm \(main\) is broken|does not exist in bookworm"):
        fetch_package(debian(), tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"<html>", b"[" * 100_000, b"[]", b'{"versions": []}', b'{"versions": {"1.0.0": {"dist": {"tarball": 3}}}}'],
)
def test_npm_answer_that_is_no_listing_is_a_named_error(mirror, tmp_path, content):
    mirror.files["npm/texts"] = content
    with pytest.raises(ValueError, match="the npm registry"):
        fetch_package(npm(), tmp_path)


def test_npm_answer_without_an_end_is_refused(mirror, tmp_path, monkeypatch):
    monkeypatch.setattr(registry_npm, "MAX_LISTING", 100)
    with pytest.raises(ValueError, match="larger than 0 MB; is this a registry"):
        fetch_package(npm(), tmp_path)


def test_debian_without_any_archive_says_what_to_set(tmp_path, monkeypatch):
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
    with pytest.raises(SourceUnavailable, match=f"no archive of Debian packages is known.*{MIRROR_VARIABLE}"):
        suites(tmp_path)


def test_npm_without_any_address_says_what_to_set(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("npm_config_registry", raising=False)
    with pytest.raises(SourceUnavailable, match="no address of an npm registry is known; install npm, or set"):
        fetch_package(npm(), tmp_path)


def test_npm_address_comes_from_its_settings_file_without_npm(mirror, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("npm_config_registry")
    (tmp_path / ".npmrc").write_text(
        f"; mine\n@scope:registry = {mirror.address()}/npm/\nregistry=http://0.0.0.0:1\n"
    )
    assert fetch_package(npm(package="@scope/texts"), tmp_path / "cache").exists()


def test_debian_mirror_in_a_wrong_form_is_explained(monkeypatch):
    monkeypatch.setenv(MIRROR_VARIABLE, "bookworm")
    with pytest.raises(ValueError, match=rf'{MIRROR_VARIABLE} is expected as "ADDRESS SUITE COMPONENT'):
        suites()


def test_debian_archives_are_those_of_apt_in_both_formats(tmp_path, monkeypatch):
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
    folder = tmp_path / "sources.list.d"
    folder.mkdir()
    (tmp_path / "sources.list").write_text(
        "# deb http://old.test/x bookworm main\n"
        "deb [arch=amd64 signed-by=/a/key] http://one.test/debian bookworm main contrib  # mine\n"
        "deb-src http://one.test/debian bookworm main\n"
        "deb cdrom:[Debian]/ bookworm main\n"
        "deb http://flat.test ./\n"
    )
    (folder / "two.sources").write_text(
        "Types: deb deb-src\nURIs: http://two.test/debian\n# a remark\nSuites: bookworm\n bookworm-updates\n"
        "Components: main\nSigned-By:\n -----BEGIN PGP-----\n .\n\nTypes: deb\nEnabled: no\n"
        "URIs: http://off.test\nSuites: x\nComponents: main\n"
    )
    (folder / "disabled.list.save").write_text("deb http://saved.test bookworm main\n")
    assert suites(tmp_path) == (
        Suite("http://one.test/debian", "bookworm", "main"),
        Suite("http://one.test/debian", "bookworm", "contrib"),
        Suite("http://two.test/debian", "bookworm", "main"),
        Suite("http://two.test/debian", "bookworm-updates", "main"),
    )


@pytest.mark.parametrize("suffix", COMPRESS)
def test_deb_is_read_however_its_data_is_packed(tmp_path, suffix):
    path = tmp_path / "a.deb"
    path.write_bytes(deb_bytes(tar_bytes(PAGES), suffix))
    read = {}
    for member in members_of(path):
        with member.open() as file:
            read[member.name] = file.read()
    assert read == {name.removeprefix("./"): content for name, content in PAGES.items()}


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (b"", "does not begin as a Debian package"),
        (b"PK\x03\x04" + DEB, "does not begin as a Debian package"),
        (ar_bytes({"debian-binary": b"2.0\n"}), "it holds no data.tar"),
        (ar_bytes({"data.tar.rar": b"x"}), "data.tar.rar is packed in a way that is not known"),
        (ar_bytes({"data.tar.xz": b"no xz"}), "xz|format|header|support"),
        (ar_bytes({"data.tar.zst": b"no zstd"}), "."),
        (ar_bytes({"data.tar": b"x" * 512}), "."),
        (DEB[:-100], "its end is missing"),
        (DEB[:40], "broken header"),
        (DEB.replace(b"`\n", b"??", 1), "broken header"),
        (b"!<arch>\n" + f"{'data.tar':<48}{-5:<10}`\n".encode(), "broken header"),
        (ar_bytes({"data.tar.xz": lzma.compress(tar_bytes(LARGE))[:40_000]}), "[Ee]nd|[Tt]runcated"),
        (ar_bytes({"data.tar.gz": gzip.compress(tar_bytes(LARGE))[:40_000]}), "[Ee]nd|[Tt]runcated"),
        (ar_bytes({"data.tar.zst": COMPRESS[".zst"](tar_bytes(LARGE))[:40_000]}), "[Ee]nd|[Tt]runcated"),
    ],
)
def test_deb_broken_is_named(tmp_path, content, detail):
    path = tmp_path / "a.deb"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"a\.deb is broken or no archive \(.*{detail}.*\); replace it by a good copy"
    ):
        list(members_of(path))


def test_deb_members_that_lead_outside_and_links_are_drops(mirror, tmp_path):
    buffer = io.BytesIO(tar_bytes({"./../up.html": b"x", "/etc/abs.html": b"x", "./usr/good.html": b"<p>x</p>"}))
    with tarfile.open(fileobj=buffer, mode="a") as archive:
        for name, kind in {"s": tarfile.SYMTYPE, "h": tarfile.LNKTYPE, "d": tarfile.BLKTYPE}.items():
            info = tarfile.TarInfo(f"./usr/{name}.html")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    hostile = deb_bytes(buffer.getvalue())
    path = tmp_path / "cache" / sha256(hostile) / "a.deb"
    path.parent.mkdir(parents=True)
    path.write_bytes(hostile)
    source = debian(sha256=sha256(hostile), members=("**/*.html",))
    built = collect(Store(root=tmp_path / "store"), source, tmp_path / "cache")
    dropped = [
        row for p in shard_paths(built.handle.directory, "dropped") for row in read_table(p, DROPPED).to_pylist()
    ]
    assert built.counts.kept == 1 and built.counts.is_conserved() and not mirror.requests
    names = {row["url"].rpartition("/")[2]: row["reason"] for row in dropped}
    assert names == dict.fromkeys(["up.html", "abs.html", "s.html", "h.html", "d.html"], "unsafe_member_name")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("suffix", ["deb", "tar.gz"])
def test_archive_with_a_name_that_would_fill_the_memory_is_refused(tmp_path, kind, suffix):
    """tarfile reads long names whole: 64 MB of zeros that are packed into 64 kB."""
    header = tarfile.TarInfo("long")
    header.type, header.size = kind, 64 << 20
    data = header.tobuf() + bytes(header.size) + tar_bytes(PAGES)
    path = tmp_path / f"bomb.{suffix}"
    path.write_bytes(deb_bytes(data, ".gz") if suffix == "deb" else gzip.compress(data))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=rf"bomb.{suffix} is broken or no archive"):
            list(members_of(path))
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_deb_page_that_is_a_bomb_is_a_drop_in_bounded_memory(mirror, tmp_path):
    hostile = deb_bytes(tar_bytes({"./bomb.html": bytes(300_000_000), "./good.html": b"<p>x</p>"}), ".zst")
    path = tmp_path / "cache" / sha256(hostile) / "a.deb"
    path.parent.mkdir(parents=True)
    path.write_bytes(hostile)
    source = debian(sha256=sha256(hostile), members=("*.html",))
    built = collect(Store(root=tmp_path / "store"), source, tmp_path / "cache")
    assert built.counts.dropped == {"too_large": 1} and built.counts.kept == 1
