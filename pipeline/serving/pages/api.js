// Asks the server: one request, or a stream of events. A failure says what went wrong and what to do about it.

const TOKEN = "gristmill-token";

export class Failure extends Error {
  constructor(message, advice, { status = 0, code = null } = {}) {
    super(message);
    Object.assign(this, { advice, status, code });
  }

  get needsToken() {
    return this.status === 401;
  }
}

export const address = (path) => new URL(path, document.baseURI);

export const hasToken = () => sessionStorage.getItem(TOKEN) !== null;

export function keepToken(token) {
  if (token) sessionStorage.setItem(TOKEN, token);
  else sessionStorage.removeItem(TOKEN);
}

// The answer to GET (no body) or POST. Raises Failure; an AbortError of `signal` passes through.
export async function ask(path, body = null, signal = undefined) {
  const response = await open(path, body, signal);
  try {
    return await response.json();
  } catch (error) {
    throw explained(error, "The answer of the server could not be read.");
  }
}

// The objects of a stream of server-sent events, up to [DONE]. Raises Failure when it ends before.
export async function* stream(path, body, signal) {
  const response = await open(path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for await (const data of eventData(reader)) {
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw failureOf(event.error, event.error.status ?? 500, null);
      yield event;
    }
  } catch (error) {
    throw explained(error, "The connection ended before the answer did.");
  } finally {
    reader.cancel().catch(() => {}); // it is over already, or nobody reads on
  }
  throw new Failure("The connection ended before the answer did.", "Try again.");
}

// https://html.spec.whatwg.org/multipage/server-sent-events.html: lines "data: ...", an empty one ends an event
async function* eventData(reader) {
  let rest = "";
  let data = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines.map((one) => one.replace(/\r$/, ""))) {
      if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
      else if (line === "" && data.length) {
        yield data.join("\n");
        data = [];
      }
    }
  }
}

async function open(path, body, signal) {
  const headers = { accept: "application/json" };
  if (hasToken()) headers.authorization = `Bearer ${sessionStorage.getItem(TOKEN)}`;
  if (body !== null) headers["content-type"] = "application/json";
  let response;
  try {
    const method = body === null ? "GET" : "POST";
    const text = body === null ? undefined : JSON.stringify(body);
    response = await fetch(address(path), { method, headers, body: text, signal, credentials: "same-origin" });
  } catch (error) {
    throw explained(error, "The server does not answer.");
  }
  if (response.ok) return response;
  const given = await response.json().catch(() => ({}));
  throw failureOf(given.error ?? {}, response.status, response.headers.get("retry-after"));
}

function explained(error, message) {
  if (error instanceof Failure || error.name === "AbortError") return error;
  return new Failure(message, "Is the server still running? `gristmill serve` starts it; then try again.");
}

function failureOf(error, status, retryAfter) {
  const message = error.message || `The server answered with the status ${status}.`;
  return new Failure(message, adviceFor(status, error.code, retryAfter), { status, code: error.code });
}

function adviceFor(status, code, retryAfter) {
  if (status === 401) return "Enter the token that the server was started with.";
  if (status === 404) return "Choose another model; the list has been read again.";
  if (status === 408 || status === 504) return "Try again with a shorter text or fewer tokens.";
  if (status === 413) return "Send a shorter text.";
  if (status === 429) return `Others are being answered. Try again in ${retryAfter ?? "a few"} seconds.`;
  if (status === 503) return "A model is being loaded, or the server is about to stop. Try again in a moment.";
  if (status >= 500) return "Try again; the log of the server says more.";
  if (code === "context_length_exceeded") return "Begin a new conversation, or shorten the message.";
  return "Change what the message names, then try again.";
}

// All models: {id, kind, inputs, outputs, labels, route, ...} as the server describes them.
export async function models() {
  const { data } = await ask("v1/models");
  return data.map(({ id, gristmill }) => ({ id, ...gristmill }));
}

// The request as a command for a shell.
export function curl(path, body) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const lines = [`curl ${quoted(address(path).href)}`, `-H 'content-type: application/json'`];
  if (hasToken()) lines.push('-H "authorization: Bearer $GRISTMILL_TOKEN"');
  return [...lines, `-d ${quoted(JSON.stringify(body))}`].join(" \\\n  ");
}
