// A turn of the conversation: a question and its answer, drawn as the run's events arrive.

import { decisionForm } from "./decisions.js";
import { clone, find, make, showText } from "./dom.js";
import { openRun } from "./stream.js";
import { isTemporary, noteBelow, reconnecting, whyFailed, whyNotRead } from "./words.js";

/** @typedef {import("./stream.js").OpenRun} OpenRun */
/** @typedef {import("./stream.js").Reason} Reason */
/** @typedef {import("./stream.js").RunEvent} RunEvent */
/** @typedef {import("./stream.js").Status} Status */
/** @typedef {import("./decisions.js").Interrupt} Interrupt */

/**
 * What a turn is made of. A question that was not sent yet has no run on the server.
 *
 * @typedef {object} TurnStart
 * @property {string} run
 * @property {string | null} [question]
 * @property {string | null} [parent]
 * @property {unknown} [resume] the answer to what the parent run has asked
 */

/**
 * @typedef {object} TurnOptions
 * @property {string} runs the URL of all runs
 * @property {(turn: Turn, state: string, words: string | null) => void} onStatus
 * @property {() => void} onDrawn called when there is more of it to see
 * @property {(turn: Turn) => void} onRetry called when the person presses Try again
 * @property {(turn: Turn, answer: unknown) => void} onAnswer called with the answer to an interrupt
 */

/** @typedef {ReturnType<typeof createView>} View */

let frame = 0;
/** Text that is to be drawn in the next animation frame. @type {Map<Text, string>} */
const undrawn = new Map();

/** One turn. */
export class Turn {
  /** The answer is being requested or read. */
  busy = false;
  /** The person has pressed Stop. */
  stopping = false;
  /** The run is no longer stored. */
  gone = false;
  /** What Try again does: ask again, or read on. @type {"ask" | "read" | null} */
  retry = null;
  /** @type {OpenRun | null} */
  stream = null;
  /** Ends the attempts to start the run. @type {AbortController | null} */
  starting = null;
  /** What is going on, as a state and words. @type {[string, string] | null} */
  activity = null;
  tokens = 0;
  /** @type {Interrupt[]} */
  interrupts = [];

  /**
   * @param {TurnStart} start
   * @param {TurnOptions} options
   */
  constructor({ run, question, parent, resume }, { runs, onStatus, onDrawn, onRetry, onAnswer }) {
    this.run = run;
    this.question = question;
    this.parent = parent;
    this.resume = resume;
    this.runs = runs;
    this.onStatus = onStatus;
    this.onAnswer = onAnswer;
    this.view = createView(onDrawn, () => onRetry(this));
    if (question) this.view.showQuestion(question);
  }

  /**
   * Remove the answer, to ask the question again as another run.
   *
   * @param {string} run
   */
  renew(run) {
    this.run = run;
    this.stopping = false;
    this.gone = false;
    this.retry = null;
    this.stream = null;
    this.activity = null;
    this.tokens = 0;
    this.interrupts = [];
    this.view.clear();
  }

  /** Read the run from its start. */
  follow() {
    this.#open(0);
  }

  /** Read the run from where reading was refused. */
  readOn() {
    this.retry = null;
    this.stopping = false;
    this.view.resume(this.activity?.[0] ?? "thinking");
    this.#open(this.stream?.last ?? 0);
  }

  /**
   * Report what is going on.
   *
   * @param {string} state
   * @param {string | null} words
   */
  report(state, words) {
    this.onStatus(this, state, words);
  }

  /**
   * End the turn with a sentence.
   *
   * @param {string} words
   * @param {"ask" | "read" | null} retry
   * @param {string | null} reference what the person can quote to the operator
   */
  fail(words, retry, reference = this.run) {
    this.busy = false;
    this.retry = retry;
    this.view.end(null, words, reference);
    this.report("failed", "Failed");
  }

  /** @param {number} after */
  #open(after) {
    this.busy = true;
    this.stream = openRun({
      url: `${this.runs}/${this.run}/events`,
      after,
      onEvent: (event) => this.#onEvent(event),
      onStatus: (status, reason) => this.#onConnection(status, reason),
    });
  }

  /** @param {RunEvent} event */
  #onEvent({ type, data }) {
    if (type === "start") {
      this.parent = data.parent ?? null;
      this.question ??= inputText(data.input);
      this.view.showQuestion(this.question);
      this.#work("thinking", "Thinking…");
    } else if (type === "chunk") {
      this.view.addChunk(data);
      if (data.kind === "text") this.#work("answering", "Answering…");
      else this.#work("thinking", "Thinking…");
    } else if (type === "tool_call") {
      this.view.addTool(data.id, `${data.name}(${JSON.stringify(data.args)})`);
      this.#work("thinking", `Using ${data.name}…`);
    } else if (type === "tool_result") {
      this.view.addTool(data.id, `→ ${asText(data.content)}`);
      this.#work("thinking", "Thinking…");
    } else if (type === "interrupt") {
      this.interrupts.push(data);
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

  /** @type {(status: Status, reason?: Reason) => void} */
  #onConnection(status, reason) {
    if (status === "connecting") this.report("connecting", "Connecting…");
    else if (status === "open") this.#work(...(this.activity ?? ["thinking", "Thinking…"]));
    else if (status === "reconnecting") this.report("reconnecting", reconnecting(reason));
    else if (status === "refused" && reason) {
      this.fail(whyNotRead(reason), isTemporary(reason.status) ? "read" : null);
    } else if (status === "ended" && this.busy) {
      this.#finish({ status: "done" });
    } else if (status === "gone") {
      this.gone = true;
      this.fail("This answer is no longer kept.", this.question ? "ask" : null);
    }
  }

  /** @type {(state: string, words: string) => void} */
  #work(state, words) {
    this.activity = [state, words];
    this.view.showState(state);
    this.report(state, words);
  }

  /** @param {{ status: string, finish_reason?: string | null, error?: any }} end */
  #finish({ status, finish_reason: reason, error }) {
    if (status === "failed") return this.fail(whyFailed(error, reason), "ask");
    const tokens = this.tokens ? ` · ${this.tokens.toLocaleString("en")} tokens` : "";
    this.busy = false;
    this.view.end(noteBelow(status, reason));
    if (status === "interrupted") {
      this.view.addForm(decisionForm(this.interrupts, (answer) => this.onAnswer(this, answer)));
    }
    if (status === "done") this.report("done", `Done${tokens}`);
    else this.report("stopped", `${status === "cancelled" ? "Stopped" : "Waiting"}${tokens}`);
  }
}

/**
 * Return what the page shows as the question of a run with this input.
 *
 * @param {any} input
 * @returns {string}
 */
function inputText(input) {
  if (typeof input?.question === "string") return input.question;
  if (input && "resume" in input) return `Decision: ${asText(input.resume)}`;
  return asText(Object.values(input ?? {}).find((value) => typeof value === "string") ?? input);
}

/**
 * @param {unknown} value
 * @returns {string}
 */
function asText(value) {
  return typeof value === "string" ? value : JSON.stringify(value);
}

/**
 * Create the elements of a turn, and what changes them.
 *
 * @param {() => void} onDrawn
 * @param {() => void} onRetry
 */
function createView(onDrawn, onRetry) {
  const element = clone("turn");
  /** @param {string} name */
  const part = (name) => find(element, `.${name}`, HTMLElement);
  const [question, answer, note, failure] = ["question", "answer", "note", "failure"].map(part);
  const [reference, retry, copy] = ["reference", "retry", "copy"].map(part);
  /** The text node of each message and tool call. @type {Map<string, Text>} */
  const texts = new Map();
  retry.addEventListener("click", onRetry);
  copy.addEventListener("click", () => copyText(copy, answerText()));
  clear();
  return {
    element, showQuestion, addChunk, addTool, addForm, showState, end, resume, clear,
    /** @param {boolean} allowed */
    showRetry: (allowed) => { retry.hidden = !allowed; },
  };

  /** @param {string | null} text */
  function showQuestion(text) {
    showText(question, text);
  }

  /** @param {{ content: string, message: string, kind: string }} chunk */
  function addChunk({ content, message, kind }) {
    draw(textNode(`${kind}:${message}`, kind === "text" ? "text" : "reasoning"), content);
  }

  // A call and its result share a box, however far apart they arrive.
  /** @type {(id: string, line: string) => void} */
  function addTool(id, line) {
    draw(textNode(`tool:${id}`, "tool"), `${line}\n`);
  }

  /** @param {HTMLFormElement} form */
  function addForm(form) {
    answer.append(form);
    onDrawn();
  }

  /** @type {(key: string, template: string) => Text} */
  function textNode(key, template) {
    let node = texts.get(key);
    if (!node) {
      const box = clone(template);
      const holder = box.matches(".text") ? box : find(box, ".text", HTMLElement);
      node = holder.appendChild(document.createTextNode(""));
      answer.append(box);
      texts.set(key, node);
    }
    return node;
  }

  /** @type {(node: Text, text: string) => void} */
  function draw(node, text) {
    undrawn.set(node, (undrawn.get(node) ?? "") + text);
    frame ||= requestAnimationFrame(() => { drawAll(); onDrawn(); });
  }

  /** @param {string} state */
  function showState(state) {
    element.dataset.state = state;
  }

  /** @type {(noteText: string | null, failed?: string | null, quoted?: string | null) => void} */
  function end(noteText, failed = null, quoted = null) {
    drawAll();
    element.dataset.state = "ended";
    element.setAttribute("aria-busy", "false");
    const silent = !noteText && !failed && !answerText();
    showText(note, silent ? "(The answer is empty.)" : noteText);
    showText(failure, failed);
    find(reference, "code", HTMLElement).textContent = quoted;
    reference.hidden = !quoted;
    copy.hidden = !answerText();
    onDrawn();
  }

  /** @param {string} state */
  function resume(state) {
    showState(state);
    element.setAttribute("aria-busy", "true");
    showText(note, null);
    showText(failure, null);
    reference.hidden = true;
    copy.hidden = true;
  }

  function clear() {
    for (const node of texts.values()) undrawn.delete(node);
    texts.clear();
    answer.replaceChildren();
    resume("thinking");
  }

  function answerText() {
    const answers = [...texts].filter(([key]) => key.startsWith("text:"));
    return answers.map(([, node]) => node.data).join("\n\n");
  }
}

function drawAll() {
  cancelAnimationFrame(frame);
  frame = 0;
  for (const [node, text] of undrawn) node.appendData(text);
  undrawn.clear();
}

/**
 * @param {HTMLElement} button
 * @param {string} text
 */
async function copyText(button, text) {
  const label = find(button, ".word", HTMLElement);
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
  } else {
    // Pages over plain http have no clipboard API.
    const carrier = make("textarea", { value: text });
    button.append(carrier);
    carrier.select();
    document.execCommand("copy");
    carrier.remove();
    button.focus();
  }
  label.textContent = "Copied";
  setTimeout(() => { label.textContent = "Copy"; }, 2000);
}
