// The page of the tasks: a form for the inputs of a task's model, its answer, and the request as a command.

import { ask, curl } from "./api.js";
import { announce, copyText, element, find } from "./dom.js";
import { exampleOf } from "./examples.js";
import { fillPicker } from "./picker.js";
import { clearProblem, showProblem } from "./problem.js";
import { resultOf } from "./results.js";

const MODEL = "gristmill-task-model";
const ROUTES = ["/v1/classify", "/v1/extract", "/v1/answer"];
const ONE_LINE = new Set(["question"]);

let models = [];
let running = null; // the AbortController of a request

const model = () => models.find((one) => one.id === find("model").value);
const routeOf = (one) => ROUTES.find((route) => one.routes?.includes(route));
const isTask = (one) => one.kind !== "documents" && routeOf(one) !== undefined; // documents have the chat

async function loadModels() {
  try {
    const before = model()?.id;
    models = await fillPicker(isTask, sessionStorage.getItem(MODEL), loadModels);
    if (!model() || model().id !== before) showForm();
  } catch (error) {
    showProblem(error, loadModels);
  }
}

function showForm() {
  stop();
  const one = model();
  for (const id of ["run", "example"]) find(id).disabled = !one;
  find("model-about").textContent = one ? aboutOf(one) : "No model of a task is served here.";
  const previous = Object.fromEntries(Object.entries(one?.inputs ?? {}).map(([name]) => [name, find(`in-${name}`)?.value]));
  const fields = Object.entries(one?.inputs ?? {}).map(([name, kind]) => field(name, kind, previous[name]));
  find("inputs").replaceChildren(...fields);
  find("result").replaceChildren(element("p", { class: "empty" }, "What the model answers appears here."));
  clearProblem();
  if (one) sessionStorage.setItem(MODEL, one.id);
  showRequest();
}

function aboutOf({ kind, labels }) {
  const what = kind.replaceAll("_", " ");
  return labels?.length ? `A model for ${what}, with the labels ${labels.join(", ")}.` : `A model for ${what}.`;
}

function field(name, kind, value) {
  const id = `in-${name}`;
  const label = name.charAt(0).toUpperCase() + name.slice(1).replaceAll("_", " ");
  const isLine = ONE_LINE.has(name) || kind !== "string";
  const type = kind === "string" ? "text" : "number";
  const control = isLine ? element("input", { id, type, step: "any" }) : element("textarea", { id, rows: 6 });
  control.value = value ?? "";
  control.required = true;
  return element("div", { class: "field" }, element("label", { for: id }, label), control);
}

function inputs() {
  const valueOf = (name, kind) => (kind === "string" ? find(`in-${name}`).value : find(`in-${name}`).valueAsNumber);
  return Object.fromEntries(Object.entries(model()?.inputs ?? {}).map(([name, kind]) => [name, valueOf(name, kind)]));
}

function requestOf(one, given) {
  return [routeOf(one).slice(1), { model: one.id, ...given }];
}

function showRequest() {
  find("curl").textContent = model() ? curl(...requestOf(model(), inputs())) : "";
}

function fillExample() {
  for (const [name, text] of Object.entries(exampleOf(model()))) find(`in-${name}`).value = text;
  showRequest();
  find("inputs").querySelector("input, textarea")?.focus();
}

async function run(event) {
  event?.preventDefault();
  if (running || !model()) return;
  const [one, given] = [model(), inputs()];
  const own = new AbortController();
  running = own;
  busy(true);
  clearProblem();
  const began = performance.now();
  try {
    const response = await ask(...requestOf(one, given), own.signal);
    showResult(one, given, response, performance.now() - began);
  } catch (error) {
    if (error.name !== "AbortError") showProblem(error, error.status === 404 ? loadModels : again);
    else if (running === own) announce("Stopped.");
  } finally {
    if (running === own) {
      running = null;
      busy(false);
    }
  }
}

function again() {
  find("run").focus(); // what was pressed is gone
  run();
}

function showResult(one, given, response, milliseconds) {
  const answer = response.data?.[0] ?? response;
  const { parts, said } = resultOf(one, given, answer);
  const facts = element("p", { class: "facts" }, `${one.id} · ${milliseconds.toFixed(0)} ms with the way there and back`);
  find("result").replaceChildren(...parts, facts);
  announce(said);
}

function busy(isBusy) {
  find("result").setAttribute("aria-busy", String(isBusy));
  const [shown, hidden] = isBusy ? ["stop-answer", "run"] : ["run", "stop-answer"];
  const hadFocus = document.activeElement === find(hidden);
  find(shown).hidden = false;
  find(hidden).hidden = true;
  if (hadFocus) find(shown).focus();
}

function stop() {
  running?.abort();
  running = null;
  busy(false);
}

function listen() {
  find("model").addEventListener("change", showForm);
  find("task").addEventListener("submit", run);
  find("inputs").addEventListener("input", showRequest);
  find("task").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find("task").requestSubmit();
  });
  find("stop-answer").addEventListener("click", () => (running?.abort(), find("example").focus()));
  find("example").addEventListener("click", fillExample);
  find("copy-curl").addEventListener("click", (event) => copyText(find("curl").textContent, event.currentTarget));
}

listen();
loadModels();
