// Shows a failure where it happened, with what to do about it: try again, or enter the token.

import { keepToken } from "./api.js";
import { button, element, find } from "./dom.js";

// `again` is called after the token was entered, or when a person tries again; `shorten` to go on with a conversation
// that the model cannot read whole. Without them there is nothing to try.
export function showProblem(error, again = null, shorten = null) {
  const parts = [element("p", { class: "problem-what" }, error.message)];
  if (error.advice) parts.push(element("p", {}, error.advice));
  if (error.needsToken) parts.push(tokenForm(again));
  else if (again) {
    const isTooLong = shorten && error.code === "context_length_exceeded";
    const choices = [["Try again", again], ...(isTooLong ? [["Go on without the oldest messages", shorten]] : [])];
    parts.push(element("div", { class: "row" }, choices.map(([label, act]) => button(label, () => (clearProblem(), act())))));
  }
  find("problem").replaceChildren(element("div", { class: "problem", role: "alert" }, parts));
  (find("token") ?? find("problem").firstChild).scrollIntoView({ block: "nearest" });
  find("token")?.focus();
}

export function clearProblem() {
  find("problem").replaceChildren();
}

function tokenForm(again) {
  const field = element("input", { id: "token", type: "password", autocomplete: "off", required: true });
  const enter = async (event) => {
    event.preventDefault();
    keepToken(field.value.trim());
    clearProblem();
    await again?.();
  };
  return element(
    "form",
    { class: "row", onsubmit: enter },
    element("label", { for: "token" }, "Token"),
    field,
    element("button", { type: "submit", class: "main" }, "Use this token"),
    element("p", { class: "hint" }, "It is kept until this tab is closed."),
  );
}
