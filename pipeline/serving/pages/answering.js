// Gets an answer from a model: a language model streams it, an assistant over documents sends it whole.

import { ask, stream } from "./api.js";

const LEAST_SECONDS = 0.2; // of writing, for a rate that means something

export const isDocuments = (model) => model.kind === "documents";

// The path and the body of the request that continues `messages`.
export function requestOf(model, messages, fields) {
  if (!isDocuments(model)) {
    const options = { stream: true, stream_options: { include_usage: true } };
    return ["v1/chat/completions", { model: model.id, messages, ...fields, ...options }];
  }
  const said = messages.filter(({ role }) => role !== "system");
  const history = said.slice(0, -1);
  const question = said.at(-1)?.content ?? "";
  return ["v1/answer", { model: model.id, question, ...(history.length && model.optional_inputs?.history ? { history } : {}) }];
}

// Parts of an answer: {text} to append, then {finish, usage} or {citations, refused}.
export async function* answerParts(model, messages, fields, signal) {
  const [path, body] = requestOf(model, messages, fields);
  if (isDocuments(model)) {
    const response = await ask(path, body, signal);
    const { answer, citations = [], refused = false } = response.data?.[0] ?? response;
    yield { text: answer, citations, refused, finish: "stop" };
    return;
  }
  for await (const event of stream(path, body, signal)) {
    const choice = event.choices?.[0];
    yield { text: choice?.delta?.content ?? "", finish: choice?.finish_reason ?? null, usage: event.usage ?? null };
  }
}

// Adds up the parts of an answer, and how long they took.
export class Growing {
  constructor(message) {
    this.message = message;
    this.began = performance.now();
    this.first = null;
  }

  take({ text, finish, usage, ...others }) {
    const now = performance.now();
    if (text) this.first ??= now;
    this.message.content += text;
    if (finish) {
      this.message.finish = finish;
      this.message.seconds = (now - this.began) / 1000;
      this.message.firstSeconds = ((this.first ?? now) - this.began) / 1000;
    }
    if (usage) this.message.usage = usage;
    Object.assign(this.message, others);
  }
}

// One line about an answer: how it ended, how long it is and how fast it was written.
export function factsOf(message) {
  const facts = [message.model];
  const { usage, seconds, firstSeconds } = message;
  if (usage) facts.push(`${count(usage.completion_tokens, "token")} written`, `${usage.prompt_tokens} read${cached(usage)}`);
  const writing = seconds - firstSeconds;
  if (usage?.completion_tokens > 1 && writing >= LEAST_SECONDS) {
    facts.push(`${((usage.completion_tokens - 1) / writing).toFixed(1)} tokens/s`);
  }
  if (seconds !== undefined) facts.push(`${seconds.toFixed(1)} s`);
  return facts.filter(Boolean).join(" · ");
}

// What a reader must know of an answer that is not whole; null if it is.
export function endOf(message) {
  if (message.refused) return "The documents do not answer this question.";
  if (message.finish === "length") return "Cut off at the limit of tokens; a higher limit in the settings lets it go on.";
  if (message.finish === "stop") return null;
  return message.stopped ? "Stopped by you." : "Not complete.";
}

const count = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;

function cached(usage) {
  const n = usage.prompt_tokens_details?.cached_tokens;
  return n ? ` (${n} of them from the cache)` : "";
}
