"""A server and a browser for the tests of the pages.

Debian's chromium is driven; the tests are skipped where there is none, but never in CI. Every page is watched: an
error of a script, and whatever the Content-Security-Policy had to stop, fails the test.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.browser import CHROMIUM, QUIET_BROWSER
from tests.pipeline.serving.api.pages.browsing import HOSTILE, Served

LONG = ("--set", "max_new_tokens=90000")
ROOT = Path(__file__).resolve().parents[5]
PAGE_MS = 60_000
FAILED_REQUEST = "Failed to load resource"  # the browser's own word for a status of 400 or more


@contextmanager
def serving(models: Iterable[Path], data: Path, *options: str | Path) -> Iterator[Served]:
    """`gristmill serve` in a process of its own: a tiny model in this one would leave the test no time to look."""
    command = [sys.executable, "-m", "pipeline", "serve", *models, "--port", "0", "--access-log", "none", *options]
    environment = {**os.environ, "GRISTMILL_DATA": str(data)}
    with subprocess.Popen(
        list(map(str, command)),
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            lines = []
            while not any("Serving at" in line for line in lines):
                lines.append(process.stdout.readline())
                assert lines[-1], f"the server ended: {lines}"
            yield Served(lines[-1].split()[2], process)
        finally:
            process.kill()


@pytest.fixture(scope="session")
def page_models(tiny_models, tmp_path_factory) -> dict[str, Path]:
    """All tiny models; one more with a label that is HTML, one that answers every question, and one that writes so
    much that there is time to stop it."""
    folder = tmp_path_factory.mktemp("page_models")
    changed = {
        "hostile": ("moods", {"labels": [HOSTILE, "sad", "calm"]}),
        "answerer": ("questions", {"no_answer_threshold": None}),
        "novelist": ("writer", {"max_seq_len": 100_000}),
    }
    for name, (original, values) in changed.items():
        shutil.copytree(tiny_models[original], folder / name)
        config = folder / name / "config.json"
        description = json.loads(config.read_text())
        for key, value in values.items():
            (description["model"] if key in description["model"] else description)[key] = value
        config.write_text(json.dumps(description))
    return {**tiny_models, **{name: folder / name for name in changed}}


@pytest.fixture(scope="session")
def served(page_models, tmp_path_factory) -> Iterator[Served]:
    with serving(page_models.values(), tmp_path_factory.mktemp("pages"), *LONG) as one:
        yield one


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        if os.environ.get("CI"):
            pytest.fail(f"no {CHROMIUM}; .ci/run installs it")
        pytest.skip(f"no {CHROMIUM}; apt-get install chromium runs this test")
    expect.set_options(timeout=PAGE_MS)
    with sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=str(CHROMIUM), args=QUIET_BROWSER)
        yield one
        one.close()


@pytest.fixture(scope="session")
def serve() -> Callable[..., AbstractContextManager[Served]]:
    """Starts `gristmill serve`: models, a data folder, options."""
    return serving


@pytest.fixture
def opened(browser) -> Iterator[Callable[..., Page]]:
    """Opens an address in a new session; what a script or the policy of the page complains about fails the test."""
    contexts, complaints = [], list[str]()

    def open_page(url: str, **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
        contexts.append(context)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.set_default_timeout(PAGE_MS)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not [said for said in complaints if not said.startswith(FAILED_REQUEST)]
