"""The chat as a person meets it: by mouse, by keyboard alone, with a screen reader, and when something fails."""

import json
import re

import pytest
from playwright.sync_api import Page, expect

from pipeline.serving.chat import read_messages
from tests.pipeline.serving.api.pages.browsing import (
    HOSTILE,
    MARKDOWN,
    assert_accessible,
    assert_reached,
    begun,
    chosen,
    message_field,
    opened_file,
    send,
    setting,
    whole_answer,
)

WATCHED = """() => {
  globalThis.watched = [];
  const look = () => watched.push([
    document.querySelector(".assistant .content")?.textContent.length ?? 0,
    !document.getElementById("stop-answer").hidden,
  ]);
  new MutationObserver(look).observe(document.getElementById("messages"), {childList: true, subtree: true});
}"""
TOKEN = "a-token-of-more-than-16-letters"


@pytest.fixture
def chat(opened, served) -> Page:
    page = opened(served.url)
    chosen(page, "writer")
    return page


def test_answer_streams_and_says_how_it_was_written(chat):
    setting(chat, "Most tokens", "800")
    chat.evaluate(WATCHED)
    send(chat, "What does a mill do?")
    assert len(whole_answer(chat)) >= 600
    seen = chat.evaluate("watched")
    lengths = [length for length, _ in seen if length]
    assert len(set(lengths)) >= 2 and lengths == sorted(lengths)  # it grows
    assert all(has_stop for length, has_stop in seen if 0 < length < lengths[-1])
    facts = chat.locator(".facts").all_inner_texts()
    assert facts[0].startswith("Cut off at the limit of tokens")
    assert re.fullmatch(r"writer · 800 tokens written · \d+ read.* (· [\d.]+ tokens/s )?· [\d.]+ s", facts[1])
    expect(message_field(chat)).to_have_value("")
    expect(message_field(chat)).to_be_focused()


def test_answer_stops_at_once_and_frees_its_place(chat, served):
    chosen(chat, "novelist")
    send(chat, "Tell me all.")
    begun(chat)
    chat.keyboard.press("Escape")
    expect(chat.get_by_text("Stopped by you.")).to_be_visible()
    stopped = whole_answer(chat)
    with chat.expect_response("**/v1/chat/completions"):  # the next one finds a place, and the first is given up
        chat.get_by_role("button", name="Regenerate").click()
    begun(chat)
    chat.get_by_role("button", name="Stop").click()
    assert whole_answer(chat) != stopped and chat.locator(".assistant").count() == 1
    is_free = re.compile(r'^gristmill_slots_busy\{model="novelist"\} 0\.0$', re.MULTILINE)
    asked = (served.get("/metrics").text for _ in range(200))
    assert any(map(is_free.search, asked))


def test_last_message_is_edited_and_the_conversation_outlives_a_reload(chat):
    setting(chat, "Most tokens", "8")
    send(chat, "First question")
    whole_answer(chat)
    send(chat, "Secnd question")
    whole_answer(chat)
    assert chat.get_by_role("button", name="Edit").count() == 1
    chat.get_by_role("button", name="Edit").click()
    changed = chat.get_by_label("Your message, changed")
    changed.press("Escape")
    expect(chat.locator(".user .content").nth(1)).to_have_text("Secnd question")
    chat.get_by_role("button", name="Edit").press("Enter")
    changed.fill("Second question")
    changed.press("Enter")
    answer = whole_answer(chat, 1)
    chat.reload()
    assert chat.locator(".user .content").all_inner_texts() == ["First question", "Second question"]
    assert chat.locator(".assistant .content").nth(1).inner_text() == answer
    expect(chat.get_by_label("Most tokens")).to_have_value("8")
    chat.get_by_role("button", name="New conversation").click()
    expect(chat.locator(".message")).to_have_count(0)
    chat.get_by_role("button", name="Bring the last one back").click()
    expect(chat.locator(".message")).to_have_count(4)


def test_settings_reach_the_model(chat):
    setting(chat, "Most tokens", "40")
    setting(chat, "Seed", "7")
    send(chat, "Hello")
    first = whole_answer(chat)
    chat.get_by_role("button", name="Regenerate").click()
    assert whole_answer(chat) == first
    setting(chat, "Stop texts", first[10])
    chat.get_by_role("button", name="Regenerate").click()
    assert whole_answer(chat) == first[: first.index(first[10])]
    chat.get_by_label("Form of the answer").select_option("JSON of a schema")
    setting(chat, "JSON Schema", "{")
    expect(chat.get_by_text("This is not JSON yet.")).to_be_visible()
    send(chat, "Again")
    expect(chat.get_by_role("alert")).to_contain_text('The setting "JSON Schema" has no valid value.')
    setting(chat, "Stop texts", "")
    setting(chat, "JSON Schema", '{"enum": ["red", "green"]}')
    send(chat, "Again")
    assert whole_answer(chat) in ('"red"', '"green"')
    expect(chat.get_by_role("alert")).to_have_count(0)


def test_hostile_texts_stay_texts(chat):
    chat.get_by_label("Form of the answer").select_option("JSON of a schema")
    setting(chat, "JSON Schema", json.dumps({"const": HOSTILE}))
    send(chat, HOSTILE)
    assert json.loads(whole_answer(chat)) == HOSTILE
    assert chat.locator(".user .content").inner_text() == HOSTILE
    opened_file(chat, [("system", HOSTILE), ("user", HOSTILE), ("assistant", MARKDOWN)])
    expect(chat.locator(".assistant .content")).to_contain_text("[a link](javascript:alert(1)) 2 * 3 * 4")
    assert chat.locator("main img, main script, #messages a, #messages [onerror]").count() == 0
    assert chat.title() == "Chat - gristmill"


def test_answer_is_shown_with_lists_and_code(chat):
    opened_file(chat, [("user", "Mills?"), ("assistant", MARKDOWN)])
    content = chat.locator(".assistant .content")
    expect(content.locator("strong")).to_have_text("mill")
    expect(content.locator("em")).to_have_text("old")
    assert content.locator("p > code, li > code").all_inner_texts() == ["grain"]
    assert content.locator("ol > li").count() == 2
    expect(content.locator("ol > li > ul > li")).to_have_text("wheel")
    expect(content.locator("pre")).to_have_text('print("<b>flour</b>")')
    content.get_by_role("button", name="Copy code").click()
    assert chat.evaluate("navigator.clipboard.readText()") == 'print("<b>flour</b>")'
    assert_accessible(chat)


def test_conversation_is_saved_as_gristmill_chat_reads_it(chat, tmp_path):
    setting(chat, "System message", "Be brief.\nBe kind.")
    setting(chat, "Most tokens", "8")
    send(chat, "Grüße 🎉")
    answer = whole_answer(chat)
    with chat.expect_download() as download:
        chat.get_by_role("button", name="Save as a file").click()
    download.value.save_as(tmp_path / "talk.jsonl")
    said = [(one.role, one.content) for one in read_messages(tmp_path / "talk.jsonl")]
    assert said == [("system", "Be brief.\nBe kind."), ("user", "Grüße 🎉"), ("assistant", answer)]
    opened_file(chat, [("user", "Old"), ("user", "Twice")])
    expect(chat.get_by_role("alert")).to_contain_text("Line 2 is no message with the role assistant")
    assert chat.locator(".message").count() == 2


def test_everything_works_by_keyboard_alone(chat):
    chosen(chat, "novelist")
    chat.reload()
    expect(chat.get_by_label("Model", exact=True)).to_have_value("novelist")
    expect(message_field(chat)).to_be_focused()  # ready to write
    chat.keyboard.type("Hello")
    chat.keyboard.press("Shift+Enter")
    chat.keyboard.type("there")
    chat.keyboard.press("Enter")
    begun(chat)
    chat.keyboard.press("Enter")  # does nothing meanwhile
    chat.keyboard.press("Escape")
    expect(chat.locator(".user .content")).to_have_text("Hello\nthere", use_inner_text=True)
    whole_answer(chat)
    assert_reached(chat, "Shift+Tab", "Regenerate")
    assert chat.evaluate("getComputedStyle(document.activeElement).outlineWidth") == "3px"
    chat.keyboard.press("Enter")
    begun(chat)
    chat.keyboard.press("Escape")
    whole_answer(chat)
    for name in ("Edit", "Open a file", "New conversation", "The request as a command", "Seed", "System message"):
        assert_reached(chat, "Shift+Tab", name)
    assert_reached(chat, "Shift+Tab", "Go to the message field")
    box = chat.locator(".skip").bounding_box()
    assert box and box["y"] >= 0  # seen while it has the focus
    chat.keyboard.press("Enter")
    expect(message_field(chat)).to_be_focused()


def test_screen_reader_hears_the_answer_once_it_is_complete(chat):
    setting(chat, "Most tokens", "30")
    send(chat, "Hello")
    answer = whole_answer(chat)
    status = chat.get_by_role("status").last
    expect(status).to_have_text(answer)
    assert [chat.locator(f".{role} h2").inner_text() for role in ("user", "assistant")] == ["You", "Answer"]


def test_wrong_request_is_explained_where_it_happened(chat):
    setting(chat, "Temperature", "5")
    send(chat, "Hello")
    expect(chat.get_by_role("alert")).to_contain_text('The setting "Temperature" has no valid value.')
    expect(chat.get_by_label("Temperature")).to_be_focused()
    chat.get_by_role("button", name="Reset the settings").click()
    setting(chat, "Most tokens", "8")
    setting(chat, "Stop texts", "\n".join(map(str, range(100, 140))))
    send(chat, "Hello")
    expect(chat.get_by_role("alert")).to_contain_text("stop is")  # the server's words
    setting(chat, "Stop texts", "")
    chat.get_by_role("button", name="Try again").click()
    assert whole_answer(chat)
    expect(chat.get_by_role("alert")).to_have_count(0)


def test_conversation_that_is_too_long_goes_on_without_its_beginning(chat):
    setting(chat, "Most tokens", "8")
    opened_file(chat, [("user", "x" * 3000), ("assistant", "y" * 3000)])
    send(chat, "And now?")
    expect(chat.get_by_role("alert")).to_contain_text("Begin a new conversation, or shorten the message.")
    assert_accessible(chat)
    chat.get_by_role("button", name="Go on without the oldest messages").click()
    assert whole_answer(chat, 1)


def test_token_is_asked_for_and_a_server_that_is_gone_is_told(opened, serve, page_models, tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    options = ("--token-file", tmp_path / "token", "--set", "max_new_tokens=90000")
    with serve([page_models["novelist"]], tmp_path, *options) as server:
        page = opened(server.url)
        expect(page.get_by_role("alert")).to_contain_text("this server needs a token")
        token = page.get_by_label("Token", exact=True)
        expect(token).to_be_focused()
        assert_accessible(page)
        token.fill("wrong-token-that-nobody-gave")
        token.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("the token is wrong")
        token.fill(TOKEN)
        token.press("Enter")
        setting(page, "Most tokens", "8")
        send(page, "Hello")
        whole_answer(page)
        assert TOKEN not in page.content()
        assert "$GRISTMILL_TOKEN" in (page.locator("#curl").text_content() or "")
        setting(page, "Most tokens", "")
        send(page, "Write for long")
        begun(page)
        server.process.kill()
        expect(page.get_by_role("alert")).to_contain_text("The connection ended before the answer did.")
        part = whole_answer(page)
        assert part and page.locator(".assistant .facts.end").last.inner_text() == "Not complete."
        page.get_by_role("button", name="Try again").click()
        expect(page.get_by_role("alert")).to_contain_text("The server does not answer.")
        assert page.locator(".user .content").all_inner_texts() == ["Hello", "Write for long"]
