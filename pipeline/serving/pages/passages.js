// Shows an answer with its marks [n], and opens the passage that a mark stands for.

import { button, characters, copyText, element, find, webAddress } from "./dom.js";

const MARK = /\[(\d{1,4})\]/g;

// `container` gets the text with a button for every mark that has a citation, and the list of what was cited.
export function showCited(container, text, citations) {
  const nodes = [];
  let done = 0;
  for (const found of text.matchAll(MARK)) {
    const cited = citations.filter((one) => one.n === Number(found[1]));
    if (!cited.length) continue;
    const before = characters(text.slice(0, found.index)).length;
    const own = cited.find((one) => one.answer_start <= before && before < one.answer_end) ?? cited[0];
    nodes.push(text.slice(done, found.index), markButton(own));
    done = found.index + found[0].length;
  }
  container.replaceChildren(element("p", {}, nodes, text.slice(done)), ...sources(citations));
}

function markButton(citation) {
  const label = `Passage ${citation.n}: ${nameOf(citation)}`;
  return button(`[${citation.n}]`, () => openPassage(citation), { class: "mark", "aria-label": label });
}

function sources(citations) {
  const firsts = [...new Map(citations.toReversed().map((one) => [one.n, one])).values()].sort((a, b) => a.n - b.n);
  if (!firsts.length) return [];
  const items = firsts.map((one) =>
    element("li", {}, button(`[${one.n}] ${nameOf(one)}`, () => openPassage(one), { class: "source" })),
  );
  return [element("p", { class: "heading" }, "Passages"), element("ul", { class: "sources", role: "list" }, items)];
}

const nameOf = ({ title, headings = [], document }) => {
  const path = headings.filter((heading) => heading !== title);
  return [title, ...path].filter(Boolean).join(" › ") || document;
};

function openPassage(citation) {
  find("passage-title").textContent = `Passage ${citation.n}`;
  find("passage-body").replaceChildren(...passageParts(citation));
  find("passage").showModal();
  find("passage-body").querySelector("mark")?.scrollIntoView({ block: "center" });
}

function passageParts(citation) {
  const { title, headings = [], url, document: id } = citation;
  const path = [title, ...headings.filter((one) => one !== title)].filter(Boolean);
  const parts = [];
  if (path.length) parts.push(element("p", { class: "path" }, path.join(" › ")));
  const marked = element("blockquote", { class: "passage-text", tabindex: 0 }, passageText(citation));
  parts.push(marked);
  parts.push(...addressParts(url || id, marked.querySelector("mark").textContent));
  return parts;
}

// The passage with the sentence marked that the answer rests on, whose place counts characters of the document.
function passageText({ text, start, quote_start: from = start, quote_end: to = start }) {
  const all = characters(text);
  const [first, end] = to > from ? [from - start, to - start] : [0, all.length];
  return [all.slice(0, first), element("mark", {}, all.slice(first, end)), all.slice(end)];
}

function addressParts(url, text) {
  const web = webAddress(url);
  if (web) {
    web.hash = `${web.hash ? web.hash.slice(1) : ""}:~:text=${fragment(text)}`;
    const link = { href: web.href, target: "_blank", rel: "noopener noreferrer" };
    return [element("p", {}, element("a", link, "Open the page at this place"), " (in a new tab)"), place(url)];
  }
  const copy = button("Copy the address", (event) => copyText(url, event.currentTarget), { class: "quiet" });
  return [place(url), copy]; // a page may not open files
}

const place = (url) => element("p", { class: "address" }, url);

// https://wicg.github.io/scroll-to-text-fragment: the first and the last words of what a browser scrolls to
function fragment(text) {
  const words = text.trim().split(/\s+/);
  const encoded = (some) => encodeURIComponent(some.join(" ")).replaceAll("-", "%2D");
  return words.length > 12 ? `${encoded(words.slice(0, 6))},${encoded(words.slice(-6))}` : encoded(words);
}
