"""Answers from documents in the chat: marks open the passage at its place, a refusal is told, no text acts."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from playwright.sync_api import Page, expect

from pipeline.serving.api.loaded import Found
from pipeline.serving.predictor import Predictor
from tests.pipeline.serving.api.pages.browsing import HOSTILE, assert_accessible, chosen, send, shot, whole_answer
from tests.pipeline.serving.api.tiny_models import Running, running

MILLS = "Mills 🎉 are old. They grind grain into flour. Many stand at a river."
QUOTE = "They grind grain into flour."
PATH = "Mills \u203a What they do"
PLACE = 1000  # of the passage in its document
ANSWER = f"Mills grind grain into flour. [1] {HOSTILE} [2] Nobody knows more. [7]"


def citation(n: int, text: str, quote: str, part: str, **others: Any) -> dict[str, Any]:
    quoted, start = PLACE + text.index(quote), ANSWER.index(part)
    places = {"start": PLACE, "end": PLACE + len(text), "quote_start": quoted, "quote_end": quoted + len(quote)}
    of_answer = {"answer_start": start, "answer_end": start + len(part)}
    return {"n": n, "document": f"d{n}", "text": text, **places, **of_answer, **others}


CITATIONS = [
    citation(
        *(1, MILLS, QUOTE, "Mills grind grain into flour. [1]"),
        url="https://example.org/mills.html#top",
        title="Mills",
        headings=["Mills", "What they do"],
    ),
    citation(
        *(2, HOSTILE, HOSTILE, f"{HOSTILE} [2]"),
        url="javascript:document.title='taken'",
        title=HOSTILE,
        headings=[],
    ),
]


class Handbook(Predictor):
    """An assistant that has learned its only answer by heart, but counts the messages before a question."""

    inputs: ClassVar = {"question": "string"}
    optional_inputs: ClassVar = {"history": [{"role": "string", "content": "string"}]}
    outputs: ClassVar = {"answer": "string", "citations": [], "refused": "boolean", "score": "double"}

    def __init__(self, directory: Path) -> None:
        del directory

    def examine(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [self._answered(row["question"], row.get("history", [])) for row in rows]

    def n_cut(self, rows: Sequence[Mapping[str, Any]]) -> int:
        return 0

    def _answered(self, question: str, history: Sequence[Any]) -> dict[str, Any]:
        if "mill" in question:
            return {"answer": ANSWER, "citations": CITATIONS, "refused": False, "score": 0.9}
        told = f"No answer after {len(history)} messages."
        return {"answer": told, "citations": [], "refused": True, "score": 0.1}


class Known:
    """The source of a model that is always the same."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def key(self) -> str:
        return "1"

    def found(self) -> Found:
        about = {"kind": "documents", "command": "answer", "predictor": Handbook}
        return Found(key="1", folder=self.folder, version="1", **about)


@pytest.fixture(scope="module")
def library(tiny_models, tmp_path_factory) -> Iterator[Running]:
    with running([], tmp_path_factory.mktemp("library"), sources={"handbook": Known(tiny_models["moods"])}) as server:
        yield server


@pytest.fixture
def page(opened, library) -> Page:
    one = opened(library.url, color_scheme="dark")
    chosen(one, "handbook")
    return one


def test_mark_opens_the_passage_with_the_sentence_that_the_answer_rests_on(page):
    expect(page.get_by_label("Temperature")).to_be_hidden()  # it has no such settings
    send(page, "What does a mill do?")
    answer = whole_answer(page)
    assert answer.startswith(ANSWER.partition(" <")[0]) and HOSTILE in answer
    assert page.locator(".mark").all_inner_texts() == ["[1]", "[2]"]  # of [7] nothing is known
    assert page.locator(".sources li").all_inner_texts() == [f"[1] {PATH}", f"[2] {HOSTILE}"]
    mark = page.get_by_role("button", name=f"Passage 1: {PATH}")
    mark.press("Enter")
    dialog = page.get_by_role("dialog", name="Passage 1")
    expect(dialog.locator(".path")).to_have_text(PATH)
    expect(dialog.locator("mark")).to_have_text(QUOTE)
    expect(dialog.locator(".passage-text")).to_have_text(MILLS)
    link = dialog.get_by_role("link", name="Open the page at this place")
    address = "https://example.org/mills.html#top:~:text=They%20grind%20grain%20into%20flour."
    assert link.get_attribute("href") == address
    assert link.get_attribute("rel") == "noopener noreferrer"
    assert_accessible(page)
    shot(page, "passage-dark")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(mark).to_be_focused()


def test_address_that_is_no_web_page_is_text_to_copy(page):
    send(page, "What does a mill do?")
    page.get_by_role("button", name="Passage 2").first.click()
    dialog = page.get_by_role("dialog", name="Passage 2")
    expect(dialog.locator("mark")).to_have_text(HOSTILE)
    assert dialog.get_by_role("link").count() == 0
    dialog.get_by_role("button", name="Copy the address").click()
    assert page.evaluate("navigator.clipboard.readText()") == "javascript:document.title='taken'"
    dialog.get_by_role("button", name="Close").click()
    assert page.title() == "Chat - gristmill" and page.locator("main script, #messages img").count() == 0


def test_refusal_is_told_and_questions_before_it_are_sent(page):
    send(page, "What does a mill do?")
    whole_answer(page)
    send(page, "And who was Napoleon?")
    assert whole_answer(page, 1) == "No answer after 2 messages."
    refused = page.locator(".assistant.refused")
    expect(refused.locator(".facts").first).to_have_text("The documents do not answer this question.")
    page.reload()
    expect(page.locator(".mark")).to_have_count(2)  # kept with the conversation
    expect(refused).to_have_count(1)
