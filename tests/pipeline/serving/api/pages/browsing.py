"""What a person does on the pages, and texts that are hostile to a page."""

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page, expect

HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
MARKDOWN = f"""# Mills
A **mill** grinds `grain`:
it is *old*.

1. water
   - wheel
2. wind

```python
print("<b>flour</b>")
```
{HOSTILE} [a link](javascript:alert(1)) 2 * 3 * 4"""


@dataclass(frozen=True, slots=True)
class Served:
    """A server that answers."""

    url: str
    process: subprocess.Popen[str]

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=60, **options)

    def post(self, path: str, body: Any) -> requests.Response:
        return requests.post(self.url + path, json=body, timeout=60)


def chosen(page: Page, model: str) -> None:
    """The model picker, once it has models."""
    picker = page.get_by_label("Model", exact=True)
    expect(picker).to_be_enabled()
    picker.select_option(model)


def setting(page: Page, name: str, value: str) -> None:
    page.get_by_label(name, exact=True).fill(value)


def message_field(page: Page) -> Locator:
    return page.get_by_label("Message", exact=True)


def send(page: Page, text: str) -> None:
    message_field(page).fill(text)
    page.get_by_role("button", name="Send", exact=True).click()


def whole_answer(page: Page, number: int = -1) -> str:
    """The text of an answer, once it is complete."""
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()
    expect(page.locator('[aria-busy="true"]')).to_have_count(0)
    return page.locator(".assistant .content").nth(number).inner_text()


def begun(page: Page) -> None:
    """Waits until a part of an answer is there, and the rest is not."""
    expect(page.locator('.assistant[aria-busy="true"] .content')).to_have_text(re.compile(".+"))


def opened_file(page: Page, messages: list[tuple[str, str]]) -> None:
    lines = "".join(json.dumps({"role": role, "content": content}) + "\n" for role, content in messages)
    page.locator("#import").set_input_files(
        {"name": "talk.jsonl", "mimeType": "text/plain", "buffer": lines.encode()}
    )


def shot(page: Page, name: str) -> None:
    if folder := os.environ.get("GRISTMILL_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{folder}/{name}.png")


def assert_accessible(page: Page) -> None:
    """By axe-core: names, roles, contrast, structure and more."""
    found = Axe().run(page)
    assert not found.violations_count, found.generate_report()
    names = {one["id"] for one in found.response["passes"]}
    assert {"color-contrast", "button-name"} <= names  # it looked


def assert_reached(page: Page, key: str, name: str) -> None:
    """The focus comes to the control of that name."""
    named = "(one => one?.labels?.[0]?.textContent.trim() || one?.textContent.trim())(document.activeElement)"
    seen = []
    for _ in range(40):
        page.keyboard.press(key)
        seen.append(page.evaluate(named))
        if seen[-1] == name:
            return
    raise AssertionError(f"{name!r} was not reached: {seen}")
