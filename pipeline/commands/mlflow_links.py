"""Redirects the links to MLflow in Dagster's metadata, which is kept for ever, while MLflow's port may change.

In: a layout and the current address of MLflow. Out: a server on LINK_PORT that redirects /runs/<fingerprint> to the
page of that run. It runs as long as `gristmill ui` does.
"""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from pipeline.serving.same_origin import refusal
from pipeline.store.layout import Layout
from pipeline.tracking.server import LINK_HOST, LINK_PORT, run_url

RUN = re.compile(r"/runs/([0-9a-f]+)")


@contextmanager
def links_resolved(layout: Layout, mlflow: str, port: int = LINK_PORT) -> Iterator[int | None]:
    """Yields the port, or None if another program, such as a second `gristmill ui`, uses it."""
    try:
        server = ThreadingHTTPServer((LINK_HOST, port), _handler(layout, mlflow))
    except OSError:
        yield None
        return
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(layout: Layout, mlflow: str) -> type[BaseHTTPRequestHandler]:
    class Redirect(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            refused = refusal("GET", self.headers.items())
            match = RUN.fullmatch(self.path)
            if refused:
                self.send_error(refused.status, refused.reason)
            elif match and (url := run_url(layout, match[1], mlflow)):
                self.send_response(302)
                self.send_header("Location", url)
                self.end_headers()
            else:
                self.send_error(404, "MLflow has no such run, or has not answered since it was built")

        def log_message(self, format: str, *args: object) -> None: ...

    return Redirect
