// The chat page: sends messages, shows answers as they come, and keeps the conversation in this tab.

import { curl } from "./api.js";
import { Growing, answerParts, isDocuments, requestOf } from "./answering.js";
import { Conversation, readFile } from "./conversation.js";
import { announce, copyText, element, find } from "./dom.js";
import { beginAnswer, showAnswer, showMessages } from "./messages.js";
import { fillPicker } from "./picker.js";
import { clearProblem, showProblem } from "./problem.js";
import * as settings from "./settings.js";

const MODEL = "gristmill-chat-model";
const NEAR_END = 120; // pixels: a reader who is so near the end follows it
const isTouch = matchMedia("(pointer: coarse)").matches;
const isNarrow = matchMedia("(max-width: 56rem)").matches;

let conversation = Conversation.kept();
let models = [];
let answering = null; // the AbortController of an answer that is being written
let put = null; // the conversation that "New conversation" put away

const model = () => models.find((one) => one.id === find("model").value);
const writes = (one) => isDocuments(one) || (one.routes ?? []).includes("/v1/chat/completions");

async function loadModels() {
  try {
    models = await fillPicker(writes, sessionStorage.getItem(MODEL), loadModels);
    showModel();
  } catch (error) {
    showProblem(error, loadModels);
  }
}

function showModel() {
  const one = model();
  if (one) sessionStorage.setItem(MODEL, one.id);
  const fromDocuments = one !== undefined && isDocuments(one);
  find("sampling").hidden = fromDocuments;
  const context = one?.context ? `Reads and writes ${one.context.toLocaleString("en")} tokens at most.` : "";
  find("model-about").textContent = fromDocuments ? "Answers from its documents and names the passages." : context;
  find("system").placeholder = one?.system ?? "";
  find("send").disabled = !one;
  find("empty").textContent = one
    ? `Write a message; ${one.id} answers here.`
    : "No model of this server writes texts. The other ones can be tried under Tasks.";
  showRequest();
}

function show() {
  showMessages(conversation, answering ? null : { regenerate, edit });
  find("empty").hidden = conversation.messages.length > 0;
  for (const id of ["new", "export"]) find(id).disabled = !conversation.messages.length || answering !== null;
  find("import").disabled = answering !== null;
  find("undo").hidden = put === null || answering !== null;
  find("send").hidden = answering !== null;
  find("stop-answer").hidden = answering === null;
  showRequest();
}

function showRequest() {
  const draft = find("message").value || "Hello";
  const messages = [...conversation.sent(settings.systemMessage()), { role: "user", content: draft }];
  const one = model();
  find("curl").textContent = one ? curl(...requestOf(one, messages, settings.requestFields())) : "";
}

function send(event) {
  event.preventDefault();
  const text = find("message").value;
  if (answering) announce("An answer is being written; Escape stops it.");
  if (answering || !text.trim() || !model()) return;
  if (!settingsAreValid()) return;
  if (conversation.last?.role === "user") conversation.messages.pop(); // it got no answer; this one is instead
  conversation.messages.push({ role: "user", content: text });
  find("message").value = "";
  answer();
}

function settingsAreValid() {
  const field = settings.invalidField();
  if (!field) return true;
  find("settings").open = true;
  field.focus();
  field.reportValidity?.();
  const name = document.querySelector(`label[for="${field.id}"]`).textContent;
  showProblem({ message: `The setting "${name}" has no valid value.`, advice: field.validationMessage });
  return false;
}

function regenerate() {
  if (!settingsAreValid()) return;
  if (conversation.last.role === "assistant") conversation.messages.pop();
  answer();
}

function edit(text) {
  if (!settingsAreValid()) return;
  conversation.messages.length = conversation.lastQuestion;
  conversation.messages.push({ role: "user", content: text });
  answer();
}

async function answer() {
  const one = model();
  const sent = conversation.sent(settings.systemMessage());
  const fields = { ...settings.requestFields(), ...(conversation.leavesOutOldest ? { truncation: "auto" } : {}) };
  const message = { role: "assistant", content: "", model: one.id };
  const growing = new Growing(message);
  answering = new AbortController();
  put = null;
  clearProblem();
  show();
  conversation.messages.push(message);
  const item = beginAnswer(message);
  find("message").focus({ preventScroll: true });
  scrollTo({ top: document.documentElement.scrollHeight });
  announce("The answer is being written.");
  let failure = null;
  try {
    for await (const part of answerParts(one, sent, fields, answering.signal)) {
      growing.take(part);
      drawSoon(item, message);
    }
  } catch (error) {
    message.stopped = error.name === "AbortError";
    failure = message.stopped ? null : error;
  }
  ended(message, failure);
}

function ended(message, failure) {
  answering = null;
  if (!message.content && !message.finish) conversation.messages.pop();
  const isFull = !conversation.keep();
  show();
  if (failure) {
    showProblem(failure, failure.status === 404 ? loadModels : regenerate, shorten);
  } else if (isFull) {
    showProblem({ message: "The conversation is too long to be kept in this tab.", advice: "Save it as a file." });
  } else announce(message.stopped ? "Stopped." : message.content);
}

// Draws at most once for every picture that the screen shows.
function drawSoon(item, message) {
  if (item.drawing) return;
  item.drawing = requestAnimationFrame(() => {
    item.drawing = null;
    if (!item.isConnected) return;
    const page = document.documentElement;
    const follows = page.scrollHeight - innerHeight - scrollY < NEAR_END;
    showAnswer(item, message);
    if (follows) scrollTo({ top: page.scrollHeight });
  });
}

// After a conversation became too long for the model.
function shorten() {
  conversation.leavesOutOldest = true;
  regenerate();
}

function stopAnswer() {
  answering?.abort();
  find("message").focus();
}

function begin() {
  put = conversation;
  conversation = new Conversation();
  conversation.keep();
  clearProblem();
  show();
  announce("A new conversation. The last one can be brought back.");
  find("message").focus();
}

function bringBack() {
  conversation = put;
  put = null;
  conversation.keep();
  show();
  find("message").focus();
}

function saveFile() {
  const text = conversation.file(settings.systemMessage());
  const href = URL.createObjectURL(new Blob([text], { type: "application/jsonl" }));
  element("a", { href, download: "conversation.jsonl" }).click();
  setTimeout(() => URL.revokeObjectURL(href));
}

async function openFile(event) {
  const [file] = event.target.files;
  event.target.value = "";
  if (!file) return;
  try {
    const { system, messages } = readFile(await file.text());
    put = conversation.messages.length ? conversation : null;
    conversation = new Conversation(messages.map((one) => (one.role === "user" ? one : { ...one, finish: "stop" })));
    settings.setSystemMessage(system);
    conversation.keep();
    clearProblem();
    show();
    announce(`The conversation has ${messages.length} messages.`);
  } catch (error) {
    showProblem({ message: error.message, advice: "A line is an object such as {\"role\": \"user\", \"content\": \"Hello\"}." });
  }
}

function keys(event) {
  const sends = event.key === "Enter" && !event.shiftKey && !event.isComposing && !isTouch;
  if (sends) find("composer").requestSubmit();
  if (sends) event.preventDefault();
}

function listen() {
  find("composer").addEventListener("submit", send);
  find("message").addEventListener("keydown", keys);
  find("message").addEventListener("input", showRequest);
  find("sampling").addEventListener("submit", (event) => event.preventDefault());
  find("sampling").addEventListener("input", () => (settings.keepSettings(), showRequest()));
  find("reset").addEventListener("click", () => (settings.resetSettings(), showRequest()));
  find("model").addEventListener("change", showModel);
  find("stop-answer").addEventListener("click", stopAnswer);
  find("new").addEventListener("click", begin);
  find("undo").addEventListener("click", bringBack);
  find("export").addEventListener("click", saveFile);
  find("import").addEventListener("change", openFile);
  find("copy-curl").addEventListener("click", (event) => copyText(find("curl").textContent, event.currentTarget));
  find("passage-close").addEventListener("click", () => find("passage").close());
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && answering) stopAnswer();
  });
  addEventListener("pagehide", () => conversation.keep());
}

find("settings").open = !isNarrow;
settings.restoreSettings();
listen();
show();
loadModels();
