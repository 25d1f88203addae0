// The settings of a conversation: kept in the tab, read from the form, and as the fields of a request.

import { find } from "./dom.js";

const KEPT = "gristmill-settings";
const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];
const TEXTS = ["system", "stop", "form", "schema"];

export function restoreSettings() {
  const kept = JSON.parse(sessionStorage.getItem(KEPT) ?? "{}");
  for (const name of [...NUMBERS, ...TEXTS]) find(name).value = kept[name] ?? "";
  showSchema();
}

export function keepSettings() {
  const values = [...NUMBERS, ...TEXTS].map((name) => [name, find(name).value]);
  sessionStorage.setItem(KEPT, JSON.stringify(Object.fromEntries(values)));
  showSchema();
}

export function resetSettings() {
  for (const name of [...NUMBERS, ...TEXTS]) find(name).value = "";
  keepSettings();
}

export const systemMessage = () => find("system").value;

export function setSystemMessage(text) {
  find("system").value = text;
  keepSettings();
}

// The field that has no valid value, or null.
export function invalidField() {
  for (const name of NUMBERS) if (!find(name).checkValidity()) return find(name);
  return find("form").value === "json_schema" && schema() === undefined ? find("schema") : null;
}

// What is not empty, as the API names it.
export function requestFields() {
  const numbers = NUMBERS.filter((name) => find(name).value !== "").map((name) => [name, Number(find(name).value)]);
  const stop = find("stop").value.split("\n").filter((line) => line !== "");
  const fields = Object.fromEntries(numbers);
  if (stop.length) fields.stop = stop;
  const form = find("form").value;
  if (form === "json_object") fields.response_format = { type: form };
  if (form === "json_schema") {
    fields.response_format = { type: form, json_schema: { name: "answer", schema: schema() ?? {} } };
  }
  return fields;
}

function schema() {
  try {
    return JSON.parse(find("schema").value);
  } catch {
    return undefined;
  }
}

function showSchema() {
  const asked = find("form").value === "json_schema";
  const isWrong = asked && schema() === undefined;
  find("schema-field").hidden = !asked;
  find("schema").setAttribute("aria-invalid", String(isWrong));
  find("schema-about").textContent = isWrong ? "This is not JSON yet." : "An answer will have this form.";
}
