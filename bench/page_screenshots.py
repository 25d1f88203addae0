"""The pictures of the server's pages for the docs.

In: models of the data folder (GRISTMILL_DATA, else data/): one that writes, one that tags, and perhaps an assistant
over documents with a question that its documents answer. Out: page-chat.png, page-tasks.png and page-documents.png.
Starts `gristmill serve` on port 8990 and drives Debian's chromium through Playwright.

    .venv/bin/python -m bench.page_screenshots --chat smollm2 --task tweet_entities [--documents NAME QUESTION]
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from bench.screenshots import CHROMIUM, FLAGS

PORT = 8990
URL = f"http://127.0.0.1:{PORT}"
ANSWER_MS = 600_000  # on a machine that is busy
COLOURS = 128  # of a PNG
SYSTEM = "You answer briefly and clearly."
QUESTIONS = ("Explain what a watermill is in two sentences.", "Write a Python function that adds two numbers.")
TWEET = "Taylor Swift plays at Madison Square Garden in New York tonight, and I fly there from London with my iPhone."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chat", default="smollm2")
    parser.add_argument("--task", default="tweet_entities")
    parser.add_argument("--documents", nargs=2, metavar=("NAME", "QUESTION"))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    args = parser.parse_args()
    expect.set_options(timeout=ANSWER_MS)
    with serving(args.chat, args.task, *(args.documents or ())[:1]), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        show_chat(browser, args.chat, args.out / "page-chat.png")
        show_task(browser, args.task, args.out / "page-tasks.png")
        if args.documents:
            show_documents(browser, *args.documents, args.out / "page-documents.png")
        browser.close()


@contextmanager
def serving(*models: str) -> Iterator[None]:
    command = [sys.executable, "-m", "pipeline", "serve", *models, "--port", str(PORT), "--access-log", "none"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as server:
        try:
            assert server.stdout is not None
            if not any("Serving at" in line for line in server.stdout):
                raise SystemExit(f"`{' '.join(command[2:])}` ended")
            yield
        finally:
            server.terminate()
            server.wait(timeout=60)


def opened(browser: Browser, path: str, model: str, *, scheme: str = "light") -> Page:
    page = browser.new_page(viewport={"width": 1180, "height": 850}, color_scheme=scheme)
    page.goto(URL + path)
    expect(page.locator("#model")).to_be_enabled()
    page.locator("#model").select_option(name_of(model))
    return page


def name_of(model: str) -> str:
    """As `gristmill serve` names it: NAME=MODEL, or the model itself."""
    return model.partition("=")[0]


def show_chat(browser: Browser, model: str, path: Path) -> None:
    page = opened(browser, "/", model)
    page.get_by_label("System message").fill(SYSTEM)
    page.get_by_label("Temperature").fill("0")
    for question in QUESTIONS:
        asked(page, question)
    keep(page, path)


def show_task(browser: Browser, model: str, path: Path) -> None:
    page = opened(browser, "/tasks", model)
    page.locator("#inputs textarea").first.fill(TWEET)
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.locator("#result .facts").last).to_be_visible()
    keep(page, path, clip={"x": 0, "y": 0, "width": 1180, "height": 620})


def show_documents(browser: Browser, model: str, question: str, path: Path) -> None:
    page = opened(browser, "/", model, scheme="dark")
    asked(page, question)
    page.locator(".mark").first.click()
    keep(page, path)


def asked(page: Page, question: str) -> None:
    page.locator("#message").fill(question)
    page.locator("#message").press("Enter")
    expect(page.locator(".assistant")).to_have_count(page.locator(".user").count())
    expect(page.locator("#send")).to_be_visible()


def keep(page: Page, path: Path, **options: dict[str, int]) -> None:
    page.screenshot(path=path, animations="disabled", caret="hide", **options)
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(COLOURS).save(path, optimize=True)
    print(f"{path} {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
