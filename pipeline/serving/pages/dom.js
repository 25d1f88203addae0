// Makes elements and announces what happened. Texts only ever become text nodes: nothing here reads HTML.

export const find = (id) => document.getElementById(id);

// `attributes` that begin with "on" are listeners; false, null and undefined leave an attribute out.
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? "" : String(value));
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

export function button(label, onclick, attributes = {}) {
  return element("button", { type: "button", onclick, ...attributes }, label);
}

// Says something to those who do not see the page; the same words twice are said twice.
export function announce(text) {
  const region = find("announcer");
  region.replaceChildren(element("p", {}, text));
}

// The address of a document if a browser can open it. A document may name any other, such as javascript:
export function webAddress(text) {
  try {
    const url = new URL(text);
    return url.protocol === "https:" || url.protocol === "http:" ? url : null;
  } catch {
    return null;
  }
}

// Offsets of the API count characters as Python does; those of JavaScript count halves of some of them.
export function characters(text) {
  const all = Array.from(text);
  return { length: all.length, slice: (start, end) => all.slice(start, end).join("") };
}

export async function copyText(text, from) {
  try {
    await navigator.clipboard.writeText(text);
    flash(from, "Copied");
  } catch {
    flash(from, "Not copied"); // a browser gives the clipboard to https and this machine only
  }
}

function flash(from, words) {
  const label = from.dataset.label ?? from.textContent;
  from.dataset.label = label;
  from.textContent = words;
  announce(words);
  setTimeout(() => (from.textContent = label), 1600);
}

export function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}
