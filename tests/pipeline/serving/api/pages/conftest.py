"""A server and a browser for the tests of the pages.

Debian's chromium is driven; the tests are skipped where there is none, but never in CI. Every page is watched: an
error of a script, and whatever the Content-Security-Policy had to stop, fails the test.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.pipeline.serving.api.pages.browsing import HOSTILE
from tests.pipeline.serving.api.tiny_models import Running, running

CHROMIUM = Path("/usr/bin/chromium")
QUIET_BROWSER = [  # else it looks for Google's hosts all the time
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PAGE_MS = 60_000
FAILED_REQUEST = "Failed to load resource"  # the browser's own word for a status of 400 or more


@pytest.fixture(scope="module")
def served(tiny_models, tmp_path_factory) -> Iterator[Running]:
    """All tiny models, one more with a label that is HTML, and one that answers every question."""
    folder = tmp_path_factory.mktemp("pages")
    changed = {"hostile": ("moods", {"labels": [HOSTILE, "sad", "calm"]})}
    changed["answerer"] = ("questions", {"no_answer_threshold": None})
    for name, (original, values) in changed.items():
        shutil.copytree(tiny_models[original], folder / name)
        config = folder / name / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | values))
    models = [*tiny_models.values(), *(folder / name for name in changed)]
    with running(list(map(str, models)), folder / "data") as server:
        yield server


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
