// Shows the messages of a conversation, with what a person can do with the last ones.

import { endOf, factsOf } from "./answering.js";
import { button, copyText, element, find } from "./dom.js";
import { showMarkdown } from "./markdown.js";
import { showCited } from "./passages.js";

// `actions`: {regenerate, edit}, called with nothing and with the new text. While an answer grows there are none.
export function showMessages(conversation, actions) {
  const { messages, lastQuestion } = conversation;
  const items = messages.map((message, place) => {
    const isLast = place === messages.length - 1;
    const offered = actions && place >= lastQuestion ? actions : {};
    return messageElement(message, { ...offered, regenerate: isLast ? offered.regenerate : undefined });
  });
  find("messages").replaceChildren(...items);
}

function messageElement(message, { regenerate, edit }) {
  const isUser = message.role === "user";
  const content = element("div", { class: "content" });
  const item = element(
    "li",
    { class: `message ${message.role}` },
    element("h2", { class: "who" }, isUser ? "You" : "Answer"),
    content,
  );
  if (isUser) content.append(element("p", {}, message.content));
  else showAnswer(item, message);
  const copy = button("Copy", (event) => copyText(message.content, event.currentTarget), { class: "quiet small" });
  const again = isUser ? "Get an answer" : "Regenerate";
  item.append(
    element(
      "div",
      { class: "row actions" },
      message.content ? copy : null,
      regenerate && button(again, regenerate, { class: "quiet small" }),
      isUser && edit && button("Edit", () => editMessage(item, message, edit), { class: "quiet small" }),
    ),
  );
  return item;
}

// Brings an answer up to date; `item` is its element in the list.
export function showAnswer(item, message) {
  const content = item.querySelector(".content");
  if (message.citations?.length) showCited(content, message.content, message.citations);
  else showMarkdown(content, message.content);
  item.classList.toggle("refused", Boolean(message.refused));
  item.querySelectorAll(".facts").forEach((one) => one.remove());
  const isGrowing = item.getAttribute("aria-busy") === "true";
  const end = isGrowing ? null : endOf(message);
  const facts = isGrowing ? "" : factsOf(message);
  if (end) content.after(element("p", { class: "facts end" }, end));
  if (facts) (item.querySelector(".facts.end") ?? content).after(element("p", { class: "facts" }, facts));
}

// A place for an answer that begins now.
export function beginAnswer(message) {
  const item = messageElement(message, {});
  item.setAttribute("aria-busy", "true");
  item.querySelector(".facts")?.remove();
  item.querySelector(".actions").replaceChildren();
  find("messages").append(item);
  return item;
}

function editMessage(item, message, edit) {
  const field = element("textarea", { id: "edited", rows: 3 });
  field.value = message.content;
  const cancel = () => (form.replaceWith(...shown), item.querySelector(".actions button")?.focus());
  const onkeydown = (event) => {
    if (event.key === "Escape") (event.stopPropagation(), cancel());
    else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) (event.preventDefault(), form.requestSubmit());
  };
  const onsubmit = (event) => {
    event.preventDefault();
    if (field.value.trim()) edit(field.value);
  };
  const shown = [item.querySelector(".content"), item.querySelector(".actions")];
  const form = element(
    "form",
    { onsubmit, onkeydown, class: "editing" },
    element("label", { for: "edited", class: "unseen" }, "Your message, changed"),
    field,
    element("div", { class: "row" }, [
      element("button", { type: "submit", class: "main" }, "Send again"),
      button("Cancel", cancel, { class: "quiet" }),
    ]),
  );
  shown[0].replaceWith(form);
  shown[1].remove();
  field.focus();
}
