// A conversation: what was said, kept for as long as the tab is open, and as the file that `gristmill chat` reads.

const KEPT = "gristmill-conversation";

// messages: {role: "user" | "assistant", content, ...what the page shows beside an answer}
export class Conversation {
  constructor(messages = []) {
    this.messages = messages;
    this.leavesOutOldest = false; // where the model cannot read all messages
  }

  static kept() {
    try {
      return new Conversation(JSON.parse(sessionStorage.getItem(KEPT) ?? "[]"));
    } catch {
      return new Conversation(); // of another version of this page
    }
  }

  // Whether there was room for it.
  keep() {
    try {
      sessionStorage.setItem(KEPT, JSON.stringify(this.messages));
      return true;
    } catch {
      return false;
    }
  }

  get last() {
    return this.messages.at(-1);
  }

  get lastQuestion() {
    return this.messages.findLastIndex((one) => one.role === "user");
  }

  // What a model reads, with the system message if there is one.
  sent(system) {
    const said = this.messages.map(({ role, content }) => ({ role, content }));
    return system.trim() ? [{ role: "system", content: system }, ...said] : said;
  }

  // A message a line.
  file(system) {
    return this.sent(system).map((one) => `${JSON.stringify(one)}\n`).join("");
  }
}

// {system, messages} of a file. Throws an Error that names the line that is wrong.
export function readFile(text) {
  const read = [];
  for (const [place, line] of text.split("\n").entries()) {
    if (!line.trim()) continue;
    const message = parsed(line);
    const expected = read.length === 0 ? ["system", "user"] : read.at(-1).role === "user" ? ["assistant"] : ["user"];
    if (!message || !expected.includes(message.role)) {
      const role = expected.join(" or ");
      throw new Error(`Line ${place + 1} is no message with the role ${role} and a content.`);
    }
    read.push({ role: message.role, content: message.content });
  }
  if (!read.some((one) => one.role === "user")) throw new Error("The file has no message of a user.");
  const system = read[0].role === "system" ? read.shift().content : "";
  return { system, messages: read };
}

function parsed(line) {
  try {
    const message = JSON.parse(line);
    return typeof message?.content === "string" ? message : null;
  } catch {
    return null;
  }
}
