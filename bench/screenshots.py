"""The pictures of the docs, taken from the data at hand.

In: a data folder that `gristmill demo` has filled (GRISTMILL_DATA, else data/). Out: dagster-graph.png,
launchpad.png, corpus-report.png and mlflow-curve.png. Starts `gristmill ui` on ports 3900 and 5900 and drives
Debian's chromium through Playwright. Take the tasks of the showcase out of tasks.toml of the data folder: with them
the graph is larger than its picture.

    .venv/bin/python -m bench.screenshots [--out docs]
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from pipeline.store.layout import Layout, layout_from_environment, load_current
from pipeline.tracking.server import run_url

DAGSTER_PORT, MLFLOW_PORT = 3900, 5900
CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
GROUPS = ("corpus", "base_models", "pretraining", "fine_tuning", "evaluation")
LOADED_MS = 90_000  # until every asset shows its state
SETTLE_MS = 4000  # animations of a page that is there


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    args = parser.parse_args()
    args.out.mkdir(exist_ok=True)
    layout = layout_from_environment()
    with servers(), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        show_graph(browser.new_page(viewport={"width": 2600, "height": 2200}), args.out / "dagster-graph.png")
        show_launchpad(browser.new_page(viewport={"width": 1700, "height": 1100}), args.out / "launchpad.png")
        show_report(browser.new_page(viewport={"width": 1700, "height": 1400}), args.out / "corpus-report.png")
        show_curve(browser.new_page(viewport={"width": 1600, "height": 900}), layout, args.out / "mlflow-curve.png")
        browser.close()


@contextmanager
def servers() -> Iterator[None]:
    command = [sys.executable, "-m", "pipeline", "ui"]
    ports = ["--dagster-port", str(DAGSTER_PORT), "--mlflow-port", str(MLFLOW_PORT)]
    with subprocess.Popen([*command, *ports], stdout=subprocess.PIPE, encoding="utf-8") as supervisor:
        try:
            assert supervisor.stdout is not None
            for line in supervisor.stdout:
                if "stops both" in line:
                    break
            yield
        finally:
            supervisor.terminate()
            supervisor.wait(timeout=60)


def show_graph(page: Page, path: Path) -> None:
    expanded = ",".join(f"global@global:{group}" for group in GROUPS)
    page.goto(f"http://127.0.0.1:{DAGSTER_PORT}/asset-groups/?expanded={expanded}")
    page.get_by_text("Hide navigation").click()
    page.get_by_text("foundation_model").first.wait_for()
    page.wait_for_timeout(SETTLE_MS)
    expect(page.get_by_text("Loading...")).to_have_count(0, timeout=LOADED_MS)
    page.screenshot(path=path, clip={"x": 369, "y": 112, "width": 2171, "height": 2060})  # the graph alone
    print(path)


def show_launchpad(page: Page, path: Path) -> None:
    page.goto(f"http://127.0.0.1:{DAGSTER_PORT}/locations/gristmill/jobs/pretrain/playground")
    page.get_by_text("foundation_model").first.wait_for()
    page.wait_for_timeout(SETTLE_MS)
    page.screenshot(path=path)
    print(path)


def show_report(page: Page, path: Path) -> None:
    page.goto(f"http://127.0.0.1:{DAGSTER_PORT}/assets/corpus_report?view=overview")
    page.locator("tr", has_text="data_card").get_by_text("Show Markdown").click()
    page.get_by_role("heading", name="4. Processing").evaluate("heading => heading.scrollIntoView()")
    page.wait_for_timeout(SETTLE_MS)
    page.screenshot(path=path)
    print(path)


def show_curve(page: Page, layout: Layout, path: Path) -> None:
    server = f"http://127.0.0.1:{MLFLOW_PORT}"
    url = run_url(layout, load_current(layout, "foundation_model").fingerprint, server)
    if url is None:
        raise SystemExit("foundation_model has no run in MLflow; run `gristmill demo` first")
    address, _, query = url.partition("?")
    page.goto(f"{address}/model-metrics?{query}")
    page.get_by_placeholder("Search metric charts").fill("loss|bits|learning|gradient")
    page.locator("svg.main-svg").first.wait_for()
    page.wait_for_timeout(SETTLE_MS)
    page.screenshot(path=path, clip={"x": 198, "y": 0, "width": 990, "height": 890})  # without MLflow's assistant
    print(path)


if __name__ == "__main__":
    main()
