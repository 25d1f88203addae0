"""The page of the tasks as a person meets it, and what holds for both pages: files, policy, colours, size."""

import json
import re
import shlex
from typing import Any

import pytest
import requests
from playwright.sync_api import Error, Page, expect

from tests.pipeline.serving.api.pages.browsing import (
    MARKDOWN,
    Served,
    assert_accessible,
    assert_reached,
    chosen,
    opened_file,
    shot,
)

TEXT = "Ada 🎉 met 🧑‍🚀 Grace in New York.\nThen they <b>left</b>."


@pytest.fixture
def tasks(opened, served) -> Page:
    return opened(f"{served.url}/tasks")


def answered(page: Page, served: Served, model: str, **inputs: str) -> dict[str, Any]:
    """Fills in the form of a model and runs it; returns what the API answers to the same."""
    chosen(page, model)
    for name, text in inputs.items():
        page.get_by_label(name.capitalize(), exact=True).fill(text)
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_text("with the way there and back")).to_be_visible()
    about = served.get(f"/v1/models/{model}").json()["gristmill"]
    given = {name: page.get_by_label(name.capitalize(), exact=True).input_value() for name in about["inputs"]}
    return served.post(about["routes"][0], {"model": model, **given}).json()["data"][0]


@pytest.mark.parametrize("model", ["moods", "hostile", "topics"])
def test_classification_shows_the_probability_of_every_label(tasks, served, model):
    answer = answered(tasks, served, model, text=TEXT)
    rows = tasks.locator(".probabilities tbody tr")
    shown = {row.locator("th").text_content(): row.locator(".number").inner_text() for row in rows.all()}
    chosen_labels = answer["labels"] if "labels" in answer else [answer["label"]]
    expected = {
        label + (" chosen" if label in chosen_labels else ""): f"{100 * share:.1f} %"
        for label, share in answer["label_probabilities"].items()
    }
    assert shown == expected
    assert tasks.locator("main img").count() == 0 and tasks.title() == "Tasks - gristmill"
    first = rows.first.locator(".filled")
    share = first.evaluate("one => one.clientWidth / one.parentElement.clientWidth")
    assert share == pytest.approx(max(answer["label_probabilities"].values()), abs=0.02)
    assert_accessible(tasks)


def test_tagging_marks_what_was_found_at_its_place(tasks, served):
    answer = answered(tasks, served, "names", text=TEXT)
    assert answer["entities"], "the tiny model finds something"
    marks = tasks.locator(".marked mark")
    shown = [mark.evaluate("one => [one.firstChild.data, one.lastChild.textContent]") for mark in marks.all()]
    assert shown == [[one["text"], one["label"]] for one in answer["entities"]]
    without = tasks.locator(".marked").evaluate(
        "one => { const copy = one.cloneNode(true); copy.querySelectorAll('.label').forEach(label => label.remove());"
        " return copy.textContent; }"
    )
    assert without == TEXT
    cells = tasks.locator("tbody tr").first.locator("th, td").all_inner_texts()
    entity = answer["entities"][0]
    assert cells[0].split() == entity["text"].split() and cells[1] == entity["label"]
    assert cells[3:] == [str(entity["start"]), str(entity["end"])]
    assert_accessible(tasks)


def test_answer_to_a_question_is_marked_in_its_text(tasks, served):
    answer = answered(tasks, served, "answerer", question="Who met Grace?", text=TEXT)
    assert answer["start"] >= 0
    assert tasks.locator(".marked mark").evaluate("one => one.textContent") == answer["answer"]
    before = "one => one.previousSibling?.data ?? ''"
    assert tasks.locator(".marked mark").evaluate(before) == TEXT[: answer["start"]]
    chosen(tasks, "questions")
    expect(tasks.get_by_label("Text", exact=True)).to_have_value(TEXT)  # kept for the next model
    expect(tasks.locator(".marked")).to_have_count(0)
    assert answered(tasks, served, "questions")["start"] == -1
    expect(tasks.locator(".verdict")).to_have_text("The text does not answer this question.")


def test_command_on_the_page_asks_the_same(tasks, served):
    text = 'It\'s $HOME, `date` and "quoted" \\ text.'
    answer = answered(tasks, served, "moods", text=text)
    tasks.get_by_text("The request as a command").click()
    tasks.get_by_role("button", name="Copy the command").click()
    command = tasks.evaluate("navigator.clipboard.readText()")
    words = shlex.split(command)
    assert words[0] == "curl" and words[words.index("-H") + 1] == "content-type: application/json"
    body = json.loads(words[words.index("-d") + 1])
    assert body["text"] == text
    assert requests.post(words[1], json=body, timeout=60).json()["data"][0] == answer


def test_tasks_work_by_keyboard_alone(tasks):
    chosen(tasks, "moods")
    assert_reached(tasks, "Tab", "Fill in an example")
    tasks.keyboard.press("Enter")
    expect(tasks.get_by_label("Text", exact=True)).to_be_focused()
    tasks.keyboard.press("Control+Enter")
    verdict = tasks.locator(".verdict")
    expect(verdict).to_be_visible()
    expect(tasks.get_by_role("status").last).to_contain_text(f"{verdict.inner_text()}, with a probability of")


# Both pages.


@pytest.mark.parametrize("path", ["", "/tasks"], ids=["chat", "tasks"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_is_accessible_in_light_and_dark_and_fits_a_phone(opened, served, path, scheme):
    page = opened(served.url + path, color_scheme=scheme, viewport={"width": 360, "height": 740}, has_touch=True)
    if not path:
        opened_file(page, [("user", "Mills? " + "m" * 200), ("assistant", MARKDOWN)])
    else:
        chosen(page, "hostile")
        page.get_by_role("button", name="Fill in an example").click()
        page.get_by_role("button", name="Run").click()
        expect(page.locator(".verdict")).to_be_visible()
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) < 3 * 128) == (scheme == "dark")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert_accessible(page)
    shot(page, f"{path.strip('/') or 'chat'}-{scheme}")


def test_browser_refuses_html_from_a_script_that_would_insert_it(browser, served):
    page = browser.new_page()
    page.goto(served.url)
    with pytest.raises(Error, match="TrustedHTML"):
        page.evaluate("document.body.innerHTML = '<p>no</p>'")
    page.close()


def test_files_are_served_with_a_strict_policy_and_only_those(served):
    page = served.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy
    links = re.findall(r'(?:src|href)="(pages/[^"]+)"', page.text)
    assert len(links) >= 4
    for link in links:
        file = served.get(f"/{link}")
        assert file.status_code == 200 and file.headers["x-content-type-options"] == "nosniff"
        again = served.get(f"/{link}", headers={"if-none-match": file.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    for path in ("/pages/", "/pages/none.js", "/pages/../api/pages.py", "/pages/%2e%2e/api/pages.py", "/pages.py"):
        assert served.get(path).status_code == 404
