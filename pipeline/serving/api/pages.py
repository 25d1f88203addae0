"""Serves the pages of the server: a chat, and forms to try every task.

In: the files in pipeline/serving/pages/, which are part of the package and are read once. Out: routes that answer GET
with them, for a browser that has them already with 304. They hold nothing secret, so that they need no token; what
they show comes from the API, with the token that a person enters.

A model's answer, a document and a label are hostile input to a page. The scripts insert them as text only; and should
one of them ever fail to, the Content-Security-Policy lets a browser run nothing but the files of this folder, load
nothing from elsewhere, and refuses a text that is assigned as HTML (https://www.w3.org/TR/CSP3/,
https://www.w3.org/TR/trusted-types/).
"""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).resolve().parent.parent / "pages"
AT = {"/": "index.html", "/tasks": "tasks.html"}  # path of a page -> its file
FILES = "/pages/"  # the path of all others
ROUTE = "pages"  # their name in the metrics
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HEADERS = {
    "content-security-policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    ),
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",  # the address of a document's site must not learn where it was read
    "cache-control": "no-cache",  # ask each time, so that a new version of the server shows its own pages
}


@dataclass(frozen=True, slots=True)
class PageFile:
    content: bytes
    media_type: str
    etag: str

    async def __call__(self, request: Request) -> Response:
        if (noted := request.scope.get("noted")) is not None:  # for the metrics
            noted.route = ROUTE
        headers = HEADERS | {"etag": self.etag}
        if self.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(self.content, media_type=self.media_type, headers=headers)


def page_routes() -> list[Route]:
    """A route for every file, so that no path of a request ever becomes a path of the disk."""
    files = {path.name: _read(path) for path in sorted(FOLDER.iterdir()) if path.suffix in TYPES}
    pages = [Route(path, files[name].__call__, methods=["GET"]) for path, name in AT.items()]
    others = [name for name in files if name not in AT.values()]
    return pages + [Route(f"{FILES}{name}", files[name].__call__, methods=["GET"]) for name in others]


def _read(path: Path) -> PageFile:
    content = path.read_bytes()
    return PageFile(content, f"{TYPES[path.suffix]}; charset=utf-8", f'"{sha256(content).hexdigest()[:32]}"')
