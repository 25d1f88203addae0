// Shows an answer as paragraphs, lists, headings and code. Everything else, HTML and links too, stays the text it is.

import { button, copyText, element } from "./dom.js";

const FENCE = /^ {0,3}(```+|~~~+)\s*([\w+#.-]*)\s*$/;
const HEADING = /^#{1,6}\s+(.*?)\s*#*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
// at most 300 characters each, so that the time for a long text with many lonely marks stays proportional to it
const INLINE =
  /(`{1,3})(.{1,300}?)\1|\*\*(?=\S)(.{1,300}?)(?<=\S)\*\*|(?<![\w*])\*(?=[^\s*])(.{1,300}?)(?<=[^\s*])\*(?![\w*])/s;
const MOST_DEPTH = 6; // of a list in lists

// Brings `container` up to date with `text`, which has grown; blocks that did not change stay as they are, so that
// what a reader has selected stays selected.
export function showMarkdown(container, text) {
  const blocks = blocksOf(text);
  const shown = container.blocks ?? [];
  const same = blocks.findIndex((block, place) => JSON.stringify(block) !== shown[place]);
  const first = same === -1 ? blocks.length : same;
  while (container.childElementCount > first) container.lastElementChild.remove();
  container.append(...blocks.slice(first).map(blockElement));
  container.blocks = blocks.map((block) => JSON.stringify(block));
}

// {kind: "text" | "heading" | "code" | "list", ...} in their order.
export function blocksOf(text) {
  const blocks = [];
  let lines = [];
  let fence = null;
  const flush = () => {
    if (lines.length) blocks.push(...textBlocks(lines));
    lines = [];
  };
  for (const line of text.split("\n")) {
    const mark = FENCE.exec(line);
    if (fence && mark && mark[1].startsWith(fence.mark) && !mark[2]) fence = null;
    else if (fence) fence.block.lines.push(line);
    else if (mark) {
      flush();
      fence = { mark: mark[1], block: { kind: "code", language: mark[2], lines: [] } };
      blocks.push(fence.block);
    } else if (line.trim() === "") flush();
    else lines.push(line);
  }
  flush();
  return joinedLists(blocks);
}

function textBlocks(lines) {
  const blocks = [];
  for (const line of lines) {
    const last = blocks.at(-1);
    const heading = HEADING.exec(line);
    const item = ITEM.exec(line);
    if (heading) blocks.push({ kind: "heading", text: heading[1] });
    else if (item && (last?.kind === "list" || startsList(item, last))) {
      const depth = Math.min(Math.floor(item[1].replaceAll("\t", "    ").length / 2), MOST_DEPTH);
      const one = { depth, text: item[3] };
      if (last?.kind === "list") last.items.push({ ...one, ordered: /\d/.test(item[2]) });
      else blocks.push({ kind: "list", start: startOf(item[2]), items: [{ ...one, ordered: /\d/.test(item[2]) }] });
    } else if (last?.kind === "list") last.items.at(-1).text += `\n${line.trim()}`;
    else if (last?.kind === "text") last.text += `\n${line}`;
    else blocks.push({ kind: "text", text: line });
  }
  return blocks;
}

// In the middle of a paragraph, "1984. A good year" is no list.
const startsList = (item, last) => last?.kind !== "text" || !/\d/.test(item[2]) || startOf(item[2]) === 1;
const startOf = (mark) => (/\d/.test(mark) ? Number.parseInt(mark, 10) : null);

// Items with empty lines between them are one list.
function joinedLists(blocks) {
  const joined = [];
  for (const block of blocks) {
    const last = joined.at(-1);
    const goesOn = block.kind === "list" && last?.kind === "list" && (block.start ?? 2) !== 1;
    if (goesOn && last.items[0].ordered === block.items[0].ordered) last.items.push(...block.items);
    else joined.push(block);
  }
  return joined;
}

function blockElement(block) {
  if (block.kind === "heading") return element("p", { class: "heading" }, inline(block.text));
  if (block.kind === "text") return element("p", {}, inline(block.text));
  if (block.kind === "list") return listElement(block.items, block.start);
  const code = block.lines.join("\n");
  const copy = button("Copy code", (event) => copyText(code, event.currentTarget), { class: "quiet small" });
  const label = `Code${block.language ? ` in ${block.language}` : ""}`;
  return element(
    "figure",
    { class: "code" },
    element("figcaption", {}, element("span", {}, block.language || "code"), copy),
    element("pre", { tabindex: 0, role: "region", "aria-label": label }, element("code", {}, code)),
  );
}

function listElement(items, start) {
  const list = element(items[0].ordered ? "ol" : "ul", { start: items[0].ordered && start > 1 ? start : null });
  const own = items[0].depth;
  for (let place = 0; place < items.length; ) {
    let next = place + 1;
    while (next < items.length && items[next].depth > own) next += 1;
    const below = items.slice(place + 1, next);
    list.append(element("li", {}, inline(items[place].text), below.length ? listElement(below, 1) : null));
    place = next;
  }
  return list;
}

// `code`, **strong** and *emphasis*; the rest is text, line breaks included (the style keeps them).
function inline(text) {
  const nodes = [];
  for (let rest = text; rest; ) {
    const found = INLINE.exec(rest);
    if (!found) return [...nodes, rest];
    if (found.index) nodes.push(rest.slice(0, found.index));
    if (found[1]) nodes.push(element("code", {}, found[2].trim() || found[2]));
    else if (found[3]) nodes.push(element("strong", {}, inline(found[3])));
    else nodes.push(element("em", {}, inline(found[4])));
    rest = rest.slice(found.index + found[0].length);
  }
  return nodes;
}
