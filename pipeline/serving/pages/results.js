// Shows the answer of a task's model: bars of probabilities, marked places of a text, or a written text.

import { characters, element, percent } from "./dom.js";
import { showMarkdown } from "./markdown.js";

const N_COLOURS = 8; // of labels, in tasks.css

// Elements that show `answer` to `inputs` in the page, and one sentence that says it.
export function resultOf(model, inputs, answer) {
  if (Array.isArray(answer.entities)) return entities(model, inputs, answer.entities);
  if (Array.isArray(answer.labels)) return severalLabels(answer);
  if (typeof answer.label === "string") return oneLabel(answer);
  if (Number.isInteger(answer.start) && "text" in inputs) return answerInText(inputs.text, answer);
  if (typeof answer.answer === "string") return written(answer.answer);
  const shown = element("pre", { class: "mono", tabindex: 0 }, JSON.stringify(answer, null, 2));
  return { parts: [shown], said: JSON.stringify(answer) };
}

function oneLabel({ label, probability, label_probabilities: all }) {
  const said = `${label}, with a probability of ${percent(probability)}`;
  const bars = probabilityTable(all ?? { [label]: probability }, new Set([label]));
  return { parts: [element("p", { class: "verdict" }, label), bars], said };
}

function severalLabels({ labels, probabilities, label_probabilities: all }) {
  const own = Object.fromEntries(labels.map((label, place) => [label, probabilities[place]]));
  const said = labels.length ? labels.map((one) => `${one}, ${percent(own[one])}`).join("; ") : "None of the labels";
  const verdict = element("p", { class: "verdict" }, labels.length ? labels.join(", ") : "None of the labels");
  return { parts: [verdict, probabilityTable(all ?? own, new Set(labels))], said };
}

// The likeliest label first; the bar repeats the number for the eye.
function probabilityTable(probabilities, chosen) {
  const rows = Object.entries(probabilities).sort(([, a], [, b]) => b - a);
  const body = rows.map(([label, share]) => {
    const filled = element("span", { class: "filled" });
    filled.style.width = `${100 * Math.min(1, Math.max(0, share))}%`;
    const name = element("th", { scope: "row" }, label, chosen.has(label) && element("span", { class: "chosen" }, " chosen"));
    return element(
      "tr",
      { class: chosen.has(label) ? "is-chosen" : null },
      name,
      element("td", { class: "bar", "aria-hidden": "true" }, element("span", { class: "track" }, filled)),
      element("td", { class: "number" }, percent(share)),
    );
  });
  const head = element(
    "thead",
    { class: "unseen" },
    element("tr", {}, [
      element("th", { scope: "col" }, "Label"),
      element("td", {}),
      element("th", { scope: "col" }, "Probability"),
    ]),
  );
  return element("table", { class: "probabilities", "aria-label": "Probability of every label" }, head, element("tbody", {}, body));
}

function entities(model, inputs, found) {
  const labels = model.labels ?? [...new Set(found.map((one) => one.label))];
  const marked = markedText(inputs.text, found, (one) => labels.indexOf(one.label));
  const n = found.length;
  const said = n ? `${n} found: ${found.map((one) => `${one.text}, ${one.label}`).join("; ")}` : "Nothing was found";
  const head = (name, place) => element("th", { scope: "col", class: place > 1 ? "number" : null }, name);
  const heads = ["Text", "Label", "Probability", "From", "To"].map(head);
  const rows = found.map((one) =>
    element("tr", {}, [
      element("th", { scope: "row" }, one.text),
      element("td", {}, one.label),
      element("td", { class: "number" }, percent(one.probability)),
      element("td", { class: "number" }, String(one.start)),
      element("td", { class: "number" }, String(one.end)),
    ]),
  );
  const table = element("table", {}, [
    element("caption", {}, n ? `${n} found` : "Nothing was found"),
    n ? element("thead", {}, element("tr", {}, heads)) : null,
    element("tbody", {}, rows),
  ]);
  return { parts: [marked, element("div", { class: "scrolls", tabindex: 0, role: "region", "aria-label": "What was found" }, table)], said };
}

function answerInText(text, { answer, start, end, probability }) {
  const isAnswer = start >= 0;
  const verdict = isAnswer ? answer : "The text does not answer this question.";
  const spans = isAnswer ? [{ start, end }] : [];
  const parts = [
    element("p", { class: "verdict" }, verdict),
    element("p", { class: "facts" }, `Probability ${percent(probability)}`),
    markedText(text, spans, () => 0),
  ];
  return { parts, said: `${verdict} Probability ${percent(probability)}` };
}

function written(text) {
  const shown = element("div", { class: "content" });
  showMarkdown(shown, text);
  return { parts: [shown], said: text };
}

// The text with its spans marked; a label stands behind its span, so that no colour alone tells it.
function markedText(text, spans, colourOf) {
  const all = characters(text);
  const nodes = [];
  let done = 0;
  for (const span of spans.toSorted((a, b) => a.start - b.start)) {
    if (span.start < done || span.end > all.length) continue; // never of our models
    const colour = Math.max(0, colourOf(span)) % N_COLOURS;
    const label = span.label && element("span", { class: "label" }, span.label);
    const mark = element("mark", { class: `colour-${colour}` }, all.slice(span.start, span.end), label);
    nodes.push(all.slice(done, span.start), mark);
    done = span.end;
  }
  return element("p", { class: "marked" }, nodes, all.slice(done));
}
