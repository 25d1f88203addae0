// Chooses a model among those that a page is for.

import { models } from "./api.js";
import { element, find } from "./dom.js";

const LOADING_MS = 2000;

// Fills the list with the models that `wanted` takes, and returns them. `previous` is chosen if it is there. While
// the server still loads one, `again` is called a little later.
export async function fillPicker(wanted, previous, again) {
  const all = await models();
  const own = all.filter(wanted);
  const chosen = find("model").value || previous;
  find("model").replaceChildren(...own.map((one) => element("option", { value: one.id }, one.id)));
  if (own.some((one) => one.id === chosen)) find("model").value = chosen;
  find("model").disabled = own.length === 0;
  const loading = all.filter((one) => one.ready === false).map((one) => one.id);
  find("loading").textContent = loading.length ? `Being loaded: ${loading.join(", ")}.` : "";
  if (loading.length) setTimeout(again, LOADING_MS);
  return own;
}
