// A turn of the conversation: a question and its answer, drawn as the run's events come in.

import { decisions } from "./decisions.js";
import { openRun } from "./stream.js";
import { passes, span, tell, whyUnread } from "./words.js";

const UNASKED = { stream: null, stopping: false, gone: false, retry: null, now: null, tokens: 0, asked: [] };
const NOTES = {
  cancelled: "(stopped)",
  interrupted: "(waiting for your decision)",
};

let frame = 0;
const unwritten = new Map();

/**
 * One turn. `busy` is whether it is being asked or answered, `gone` whether its run is kept no
 * longer, and `retry` what Try again would do: `ask` anew, `read` on, or null for nothing.
 *
 * runs      the URL of all runs
 * onStatus  called with the turn, a word for the status and words for a person
 * onDrawn   called when there is more of it to see
 * onRetry   called with the turn when a person presses Try again
 * onAnswer  called with the turn and a person's answer to what the run has asked
 */
export class Turn {
  constructor({ run, question, parent, resume }, { runs, onStatus, onDrawn, onRetry, onAnswer }) {
    Object.assign(this, UNASKED, { run, question, parent, resume, runs, onStatus, onAnswer });
    Object.assign(this, { busy: false, asked: [] });
    this.view = draw(onDrawn, () => onRetry(this));
    if (question) this.view.ask(question);
  }

  /** Forget what was said: it is to be asked anew, as this run. */
  renew(run) {
    Object.assign(this, UNASKED, { run, asked: [] });
    this.view.clear();
  }

  /** Read the run from its start. */
  follow() {
    this.#open(0);
  }

  /** Read the run from where it was refused. */
  readOn() {
    this.retry = null;
    this.stopping = false;
    this.view.goOn(this.now?.[0] ?? "thinking");
    this.#open(this.stream.last);
  }

  /** Say what it is doing. */
  say(word, words) {
    this.onStatus(this, word, words);
  }

  /** End it with a sentence; `reference` is what a person can quote of it. */
  fail(words, retry, reference = this.run) {
    this.busy = false;
    this.retry = retry;
    this.view.end(null, words, reference);
    this.say("failed", "Failed");
  }

  #open(after) {
    this.busy = true;
    this.stream = openRun({
      url: `${this.runs}/${this.run}/events`,
      after,
      onEvent: (event) => this.#hear(event),
      onStatus: (word, why) => this.#heed(word, why),
    });
  }

  #hear({ type, data }) {
    if (type === "start") {
      this.parent = data.parent ?? null;
      this.question ??= words(data.input);
      this.view.ask(this.question);
      this.#work("thinking", "Thinking…");
    } else if (type === "chunk") {
      this.view.add(data);
      if (data.kind === "text") this.#work("answering", "Answering…");
      else this.#work("thinking", "Thinking…");
    } else if (type === "tool_call") {
      this.view.tool(data.id, `${data.name}(${JSON.stringify(data.args)})`);
      this.#work("thinking", `Using ${data.name}…`);
    } else if (type === "tool_result") {
      this.view.tool(data.id, `→ ${written(data.content)}`);
      this.#work("thinking", "Thinking…");
    } else if (type === "interrupt") {
      this.asked.push(data);
    } else if (type === "progress" && data.label) {
      this.#work("thinking", `${data.label}…`);
    } else if (type === "usage") {
      this.tokens += data.total_tokens ?? 0;
    } else if (type === "reset") {
      this.view.clear();
      this.#work("thinking", "Starting again…");
    } else if (type === "end") {
      this.#finish(data);
    }
  }

  #heed(word, why) {
    if (word === "connecting") this.say("connecting", "Connecting…");
    else if (word === "open") this.#work(...(this.now ?? ["thinking", "Thinking…"]));
    else if (word === "reconnecting") this.say("reconnecting", waiting(why));
    else if (word === "refused") this.fail(whyUnread(why), passes(why.status) ? "read" : null);
    else if (word === "ended" && this.busy) this.#finish({ status: "done" });
    else if (word === "gone") {
      this.gone = true;
      this.fail("This answer is no longer kept.", this.question ? "ask" : null);
    }
  }

  #work(word, words) {
    this.now = [word, words];
    this.view.work(word);
    this.say(word, words);
  }

  #finish({ status: how, error }) {
    if (how === "failed") return this.fail(error?.message ?? "The answer failed.", "ask");
    const tokens = this.tokens ? ` · ${this.tokens.toLocaleString("en")} tokens` : "";
    this.busy = false;
    this.view.end(NOTES[how] ?? null);
    if (how === "interrupted") {
      this.view.decide(decisions(this.asked, (answer) => this.onAnswer(this, answer)));
    }
    if (how === "done") this.say("done", `Done${tokens}`);
    else this.say("stopped", `${how === "cancelled" ? "Stopped" : "Waiting"}${tokens}`);
  }
}

function words(input) {
  if (typeof input?.question === "string") return input.question;
  if (input && "resume" in input) return `Decision: ${written(input.resume)}`;
  return written(Object.values(input ?? {}).find((value) => typeof value === "string") ?? input);
}

function written(value) {
  return typeof value === "string" ? value : JSON.stringify(value);
}

function waiting(why) {
  if (!why) return "Connection lost. Reconnecting…";
  const when = why.retryAfter ? ` in ${span(why.retryAfter)}` : "";
  return `${why.detail ?? "The service is busy."} Trying again${when}…`;
}

// Drawing: what comes from outside is text, and never HTML

function draw(onDrawn, onRetry) {
  const element = clone("turn");
  const find = (name) => element.querySelector(`.${name}`);
  const [question, answer, note, failure] = ["question", "answer", "note", "failure"].map(find);
  const [reference, retry, copy] = ["reference", "retry", "copy"].map(find);
  const parts = new Map();
  retry.addEventListener("click", onRetry);
  copy.addEventListener("click", () => copyOut(copy, said()));
  clear();
  return {
    element, ask, add, tool, decide, work, end, goOn, clear,
    retry: (may) => { retry.hidden = !may; },
  };

  function ask(words) {
    tell(question, words);
  }

  function add({ content, message, kind }) {
    const key = `${kind}:${message}`;
    if (!parts.has(key)) parts.set(key, open(kind === "text" ? "text" : "reasoning"));
    const node = parts.get(key);
    unwritten.set(node, (unwritten.get(node) ?? "") + content);
    frame ||= requestAnimationFrame(() => { writeOut(); onDrawn(); });
  }

  // A call and its result, in one place however far apart they come.
  function tool(id, line) {
    const key = `tool:${id}`;
    if (!parts.has(key)) parts.set(key, open("tool"));
    const node = parts.get(key);
    unwritten.set(node, `${unwritten.get(node) ?? ""}${line}\n`);
    frame ||= requestAnimationFrame(() => { writeOut(); onDrawn(); });
  }

  function decide(form) {
    answer.append(form);
    onDrawn();
  }

  function open(template) {
    const part = clone(template);
    const text = part.matches(".text") ? part : part.querySelector(".text");
    const node = text.appendChild(document.createTextNode(""));
    answer.append(part);
    return node;
  }

  function work(word) {
    element.dataset.state = word;
  }

  function end(noted, failed = null, quoted = null) {
    writeOut();
    element.dataset.state = "ended";
    element.setAttribute("aria-busy", "false");
    const silent = !noted && !failed && !said();
    tell(note, silent ? "(The answer is empty.)" : noted);
    tell(failure, failed);
    reference.querySelector("code").textContent = quoted;
    reference.hidden = !quoted;
    copy.hidden = !said();
    onDrawn();
  }

  function goOn(word) {
    work(word);
    element.setAttribute("aria-busy", "true");
    tell(note, null);
    tell(failure, null);
    reference.hidden = true;
    copy.hidden = true;
  }

  function clear() {
    for (const node of parts.values()) unwritten.delete(node);
    parts.clear();
    answer.replaceChildren();
    goOn("thinking");
  }

  function said() {
    const texts = [...parts].filter(([key]) => key.startsWith("text:"));
    return texts.map(([, node]) => node.data).join("\n\n");
  }
}

function writeOut() {
  cancelAnimationFrame(frame);
  frame = 0;
  for (const [node, text] of unwritten) node.appendData(text);
  unwritten.clear();
}

async function copyOut(button, text) {
  const word = button.querySelector(".word");
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
  } else {
    // Plain http has no clipboard API.
    const carrier = document.createElement("textarea");
    carrier.value = text;
    button.append(carrier);
    carrier.select();
    document.execCommand("copy");
    carrier.remove();
    button.focus();
  }
  word.textContent = "Copied";
  setTimeout(() => { word.textContent = "Copy"; }, 2000);
}

function clone(id) {
  return document.getElementById(id).content.firstElementChild.cloneNode(true);
}
