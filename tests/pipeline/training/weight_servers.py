"""A server on this machine that plays a package index, a Hugging Face hub and a file server of another host."""

import hashlib
import http.server
import io
import json
import re
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB_FILE = re.compile(rf"/(?P<repository>[\w.-]+/[\w.-]+)/resolve/{COMMIT}/(?P<path>.+)")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def wheel(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


class WeightServer(http.server.ThreadingHTTPServer):
    """`faults` are the next answers to downloads: a status, 0 = as usual, -1 = cut off in the middle.

    `refusal` is the answer of the hub to everything, `elsewhere` the address that it redirects downloads to.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.packages: dict[str, bytes] = {}  # file name -> content
        self.repositories: dict[str, dict[str, bytes]] = {}  # repository -> path -> content
        self.n_parameters = 0  # what the hub says about every model
        self.listings = b""  # what the hub answers instead of a list of files
        self.faults: list[int] = []
        self.refusal = 0
        self.needs_token = ""
        self.elsewhere = ""
        self.gated = ""  # the name of the file whose second half is sent when the gate is set
        self.gate = threading.Event()
        self.requests: list[tuple[str, str | None, str | None]] = []  # path, range, authorization

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def downloads(self) -> list[tuple[str, str | None]]:
        return [(path.rpartition("/")[2], start) for path, start, _ in self.requests if "/api/" not in path]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: WeightServer  # type: ignore[assignment]

    def do_GET(self):
        server, path = self.server, self.path.partition("?")[0]
        given = self.headers["Authorization"]
        server.requests.append((path, self.headers["Range"], given))
        if path.startswith("/simple/"):
            self.project(path.rstrip("/").rpartition("/")[2])
        elif path.startswith("/packages/"):
            self.file(server.packages.get(path.rpartition("/")[2]))
        elif server.refusal or (server.needs_token and given != f"Bearer {server.needs_token}"):
            self.answer(server.refusal or 401, b"refused")
        elif listing := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/revision/(\w+)", path):
            self.listing(*listing.groups())
        elif (found := HUB_FILE.fullmatch(path)) and server.elsewhere:
            self.send_response(302)
            self.send_header("Location", f"{server.elsewhere}/packages/{found['path']}")
            self.end_headers()
        else:
            self.file(server.repositories.get(found["repository"], {}).get(found["path"]) if found else None)

    def project(self, name: str) -> None:
        offered = [file for file in self.server.packages if file.startswith(f"{name.replace('-', '_')}-")]
        files = [
            {"filename": file, "url": f"/packages/{file}", "hashes": {"sha256": sha256(self.server.packages[file])}}
            for file in offered
        ]
        page = {"meta": {"api-version": "1.0"}, "name": name, "files": files}
        self.answer(200 if offered else 404, json.dumps(page).encode(), "application/vnd.pypi.simple.v1+json")

    def listing(self, repository: str, commit: str) -> None:
        files = self.server.repositories.get(repository)
        if files is None or commit != COMMIT:
            self.answer(404, b"{}")
            return
        siblings = [
            {
                "rfilename": path,
                "size": len(content),
                **({"lfs": {"sha256": sha256(content)}} if path.endswith((".safetensors", ".gguf")) else {}),
            }
            for path, content in files.items()
        ]
        answer = {"siblings": siblings, "safetensors": {"total": self.server.n_parameters}}
        self.answer(200, self.server.listings or json.dumps(answer).encode(), "application/json")

    def file(self, content: bytes | None) -> None:
        fault = self.server.faults.pop(0) if self.server.faults else 0
        if fault > 0 or content is None:
            self.answer(fault or 404, b"fault")
            return
        start = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        rest = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        half = len(rest) // 2
        self.wfile.write(rest[:half])
        if fault == -1:
            return
        if self.server.gated and self.path.endswith(self.server.gated):
            self.server.gate.wait(60)
        with suppress(ConnectionError):  # the client was killed
            self.wfile.write(rest[half:])

    def answer(self, status: int, content: bytes, media_type: str = "application/octet-stream") -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None: ...


@contextmanager
def serving() -> Iterator[WeightServer]:
    server = WeightServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
