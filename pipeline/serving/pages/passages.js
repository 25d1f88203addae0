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
    const own = cited.find((one) => one.answer_start <= before && before <= one.answer_end + found[0].length) ?? cited[0];
    const rests = characters(text).slice(own.answer_start, own.answer_end);
    nodes.push(text.slice(done, found.index), markButton(own, rests));
    done = found.index + found[0].length;
  }
  container.replaceChildren(element("p", {}, nodes, text.slice(done)), ...sources(citations));
}

// `rests`: the words of the answer that rest on the passage.
function markButton(citation, rests) {
  const label = `Passage ${citation.n}: ${nameOf(citation)}`;
  return button(`[${citation.n}]`, () => openPassage(citation, rests), { class: "mark", "aria-label": label });
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

function openPassage(citation, rests = "") {
  find("passage-title").textContent = `Passage ${citation.n}`;
  find("passage-body").replaceChildren(...passageParts(citation, rests));
  find("passage").showModal();
  find("passage-body").querySelector("mark")?.scrollIntoView({ block: "center" });
}

function passageParts(citation, rests) {
  const { title, headings = [], url, document: id } = citation;
  const path = [title, ...headings.filter((one) => one !== title)].filter(Boolean);
  const parts = [];
  if (path.length) parts.push(element("p", { class: "path" }, path.join(" › ")));
  parts.push(element("blockquote", { class: "passage-text", tabindex: 0 }, passageText(citation, rests)));
  parts.push(...addressParts(url || id, citation.text));
  return parts;
}

// The passage between what stands before and behind it, where the server sends that. Marked is the sentence that has
// the most words of what rests on the passage, or else the whole passage.
function passageText({ text, before = "", after = "" }, rests) {
  const wanted = wordsOf(rests);
  const sentences = [...new Intl.Segmenter("en", { granularity: "sentence" }).segment(text)];
  const shared = sentences.map(({ segment }) => wordsOf(segment).intersection(wanted).size);
  const best = Math.max(...shared, 0);
  const { index, segment } = best ? sentences[shared.indexOf(best)] : { index: 0, segment: text };
  const end = index + segment.trimEnd().length;
  return [
    before && element("span", { class: "around" }, before),
    text.slice(0, index),
    element("mark", {}, text.slice(index, end)),
    text.slice(end),
    after && element("span", { class: "around" }, after),
  ];
}

const wordsOf = (text) => new Set(text.toLowerCase().match(/[\p{L}\p{N}]{2,}/gu) ?? []);

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
