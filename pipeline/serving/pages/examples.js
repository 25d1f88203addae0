// Texts to try a task with. A server does not know what its models were trained on, so these are general.

const SENTENCE = "The new coffee machine is great: it has been making strange noises for three days now.";
const NEWS =
  "On Monday Ada Lovelace flew from London to New York, where the Analytical Engine Company opens an office " +
  "next to Central Park.";
const TEXT =
  "A gristmill grinds grain into flour. The oldest ones were driven by water: a wheel in the river turned a shaft, " +
  "and the shaft turned the upper of two stones. Oliver Evans built the first fully automatic gristmill in Delaware " +
  "in 1785.";

const EXAMPLES = {
  tagging: { text: NEWS },
  question_answering: { question: "Who built the first automatic gristmill?", text: TEXT },
  multi_label_classification: { text: "What a stupid idea. Go away, nobody wants to read this." },
};

// A text for every input of the model.
export function exampleOf({ kind, inputs }) {
  const own = EXAMPLES[kind] ?? {};
  const general = { text: SENTENCE, prompt: "What does a gristmill do? Answer in one sentence.", question: "What is it about?" };
  return Object.fromEntries(Object.keys(inputs).map((name) => [name, own[name] ?? general[name] ?? SENTENCE]));
}
