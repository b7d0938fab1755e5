// The chat page: what is on the screen is a read of its runs, each from its start.

import { newRun, openRun, startRun } from "./stream.js";

const page = JSON.parse(document.getElementById("stream-data").textContent);
const conversation = document.getElementById("conversation");
const list = document.getElementById("turns");
const welcome = document.getElementById("welcome");
const composer = document.getElementById("composer");
const input = document.getElementById("question");
const send = document.getElementById("send");
const stop = document.getElementById("stop");
const status = document.getElementById("status");
const problem = document.getElementById("problem");
const count = document.getElementById("count");
const latest = document.getElementById("latest");
const anew = document.getElementById("new-chat");

const KEY = `flask_stream:${page.chain}`;
const UNREACHABLE = "The server cannot be reached.";
const UNASKED = { stream: null, stopping: false, gone: false, mayRetry: false, now: null, tokens: 0 };
const NOTES = {
  cancelled: "(stopped)",
  interrupted: "(waiting for a person’s decision, which cannot be given here)",
};

// Outlives a reload: the conversation, its runs, and a question whose start is not yet confirmed.
let chat = recall();
let turns = [];
// Whether the person is at the bottom, and so wants to see what is added there.
let following = true;
let frame = 0;
const unwritten = new Map();

begin();

function begin() {
  composer.addEventListener("submit", (event) => { event.preventDefault(); submit(); });
  input.addEventListener("input", fit);
  input.addEventListener("keydown", (event) => {
    // An Enter that ends an IME's composition chooses a word; Safari says so by its key code only.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    submit();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !event.isComposing && live()) halt(live());
  });
  // The second click of a double click on Send lands on Stop, and is not meant for it.
  stop.addEventListener("click", (event) => { if (event.detail < 2) halt(live()); });
  anew.addEventListener("click", startAnew);
  latest.addEventListener("click", toBottom);
  for (const button of welcome.querySelectorAll("button")) {
    button.addEventListener("click", () => { write(button.textContent); submit(); });
  }
  conversation.addEventListener("scroll", watch, { passive: true });
  new ResizeObserver(() => (following ? toBottom() : watch())).observe(conversation);

  status.textContent = "";
  for (const run of chat.runs) follow(addTurn({ run }));
  if (chat.pending) ask(addTurn(chat.pending));
  settle();
  fit();
  for (const button of [send, anew, ...welcome.querySelectorAll("button")]) button.disabled = false;
  home();
}

// Asking and stopping

function submit() {
  const question = input.value.trim();
  if (live()) return;
  if (question) {
    const parent = turns.findLast((turn) => !turn.gone)?.run ?? null;
    write("");
    ask(addTurn({ run: newRun(), question, parent }));
  }
  home();
}

async function ask(turn) {
  const { run, question, parent } = turn;
  turn.busy = true;
  turn.trying = new AbortController();
  chat.pending = { run, question, parent };
  remember();
  complain(null);
  say(turn, "connecting", "Connecting…");
  toBottom();
  const body = { chain: page.chain, input: question, run };
  if (chat.conversation) body.conversation = chat.conversation;
  if (parent) body.parent = parent;
  try {
    const made = await startRun({ url: page.runs, body, signal: turn.trying.signal });
    if (!turns.includes(turn)) return void cancel(turn);
    chat.conversation = made.conversation;
    chat.runs.push(run);
    chat.pending = null;
    remember();
    follow(turn);
    if (turn.stopping) stopRun(turn);
  } catch (refusal) {
    if (turn.stopping || !turns.includes(turn)) cancel(turn);
    if (turns.includes(turn)) refused(turn, refusal);
  }
}

// Nothing was started: the question goes back to where it can be changed and sent again.
function refused(turn, refusal) {
  const words = turn.stopping ? null : wordsFor(refusal);
  chat.pending = null;
  remember();
  turn.busy = false;
  if (input.value.trim()) {
    fail(turn, "This question was not sent.", true);
  } else {
    removeTurn(turn);
    write(turn.question);
    say(null, words ? "failed" : "stopped", words ? "Not sent" : "Stopped");
  }
  complain(words, refusal.field === "input");
  home();
}

function again(turn) {
  if (live()) return;
  chat.runs = chat.runs.filter((run) => run !== turn.run);
  Object.assign(turn, { ...UNASKED, run: newRun() });
  turn.view.clear();
  ask(turn);
  home();
}

function halt(turn) {
  if (turn.stopping) return;
  turn.stopping = true;
  if (document.activeElement === stop) home();
  stop.disabled = true;
  say(turn, status.dataset.status, null);
  if (turn.stream) stopRun(turn);
  else turn.trying.abort();
}

async function stopRun(turn) {
  if (await cancel(turn)) return turn.stream.wake();
  if (!turn.busy) return;
  turn.stopping = false;
  stop.disabled = false;
  say(turn, ...(turn.now ?? ["connecting", "Connecting…"]));
  complain("The answer could not be stopped. Try again.");
}

// Whether the run is over now, as far as anyone can tell.
function cancel(turn) {
  return fetch(`${page.runs}/${turn.run}/cancel`, { method: "POST", keepalive: true }).then(
    ({ ok, status: code }) => ok || code === 404 || code === 410,
    () => false,
  );
}

function startAnew() {
  // Nobody can come back to an answer that is left behind here, so it need not be paid for.
  const turn = live();
  if (turn?.stream) cancel(turn);
  else turn?.trying.abort();
  chat = { conversation: null, runs: [], pending: null };
  remember();
  for (const old of [...turns]) removeTurn(old);
  complain(null);
  say(null, "", "");
  home();
}

// Reading

function follow(turn) {
  turn.busy = true;
  turn.stream = openRun({
    url: `${page.runs}/${turn.run}/events`,
    onEvent: (event) => hear(turn, event),
    onStatus: (word) => heed(turn, word),
  });
}

function hear(turn, { type, data }) {
  if (type === "start") {
    turn.parent = data.parent ?? null;
    turn.question ??= data.input?.question ?? String(data.input ?? "");
    turn.view.ask(turn.question);
    work(turn, "thinking", "Thinking…");
  } else if (type === "chunk") {
    turn.view.add(data);
    if (data.kind === "text") work(turn, "answering", "Answering…");
    else work(turn, "thinking", "Thinking…");
  } else if (type === "tool_call") {
    work(turn, "thinking", `Using ${data.name}…`);
  } else if (type === "tool_result") {
    work(turn, "thinking", "Thinking…");
  } else if (type === "progress" && data.label) {
    work(turn, "thinking", `${data.label}…`);
  } else if (type === "usage") {
    turn.tokens += data.total_tokens ?? 0;
  } else if (type === "reset") {
    turn.view.clear();
    work(turn, "thinking", "Starting again…");
  } else if (type === "end") {
    finish(turn, data);
  }
}

function heed(turn, word) {
  if (word === "connecting") say(turn, "connecting", "Connecting…");
  else if (word === "open") work(turn, ...(turn.now ?? ["thinking", "Thinking…"]));
  else if (word === "reconnecting") say(turn, "reconnecting", "Connection lost. Reconnecting…");
  else if (word === "refused") fail(turn, "This answer may no longer be read.", false);
  else if (word === "ended" && turn.busy) finish(turn, { status: "done" });
  else if (word === "gone") {
    turn.gone = true;
    fail(turn, "This answer is no longer kept.", Boolean(turn.question));
  }
}

function work(turn, word, words) {
  turn.now = [word, words];
  turn.view.work(word);
  say(turn, word, words);
}

function finish(turn, { status: how, error }) {
  if (how === "failed") return fail(turn, error?.message ?? "The answer failed.", true);
  const tokens = turn.tokens ? ` · ${turn.tokens.toLocaleString("en")} tokens` : "";
  turn.busy = false;
  turn.view.end(NOTES[how] ?? null);
  if (how === "done") say(turn, "done", `Done${tokens}`);
  else say(turn, "stopped", `${how === "cancelled" ? "Stopped" : "Waiting"}${tokens}`);
}

function fail(turn, words, mayRetry) {
  turn.busy = false;
  turn.mayRetry = mayRetry;
  turn.view.end(null, words);
  say(turn, "failed", "Failed");
}

// Telling

// The status line speaks of the newest turn.
function say(turn, word, words) {
  if (turn === null || turn === turns.at(-1)) {
    const shown = turn?.busy && turn.stopping ? "Stopping…" : words;
    if (status.textContent !== shown) status.textContent = shown;
    status.dataset.status = word;
  }
  settle();
}

function settle() {
  const busy = Boolean(live());
  const left = !busy && document.activeElement === stop;
  send.hidden = busy;
  stop.hidden = !busy;
  stop.disabled &&= busy;
  welcome.hidden = turns.length > 0;
  anew.hidden = turns.length === 0;
  for (const turn of turns) turn.view.retry(!busy && turn.mayRetry && turn === turns.at(-1));
  if (left) home();
}

function complain(words, aboutInput = false) {
  problem.textContent = words ?? "";
  problem.hidden = !words;
  input.setAttribute("aria-invalid", String(aboutInput));
}

function wordsFor({ status: code, detail, retryAfter }) {
  const seconds = Math.ceil(retryAfter / 1000);
  const when = seconds
    ? `Try again in ${seconds === 1 ? "a second" : `${seconds} seconds`}.`
    : "Your question is kept here: try again.";
  if (detail) return seconds ? `${detail} ${when}` : detail;
  if (code === 0) return `${UNREACHABLE} ${when}`;
  if (code === 401 || code === 403) return "You may not ask questions here.";
  if (code === 429) return `Too many questions at once. ${when}`;
  if (code === 503) return `The service is busy. ${when}`;
  return `The server could not take the question (status ${code}). ${when}`;
}

// Turns: a question and its answer

function addTurn({ run, question, parent }) {
  const turn = { ...UNASKED, run, question, parent };
  turn.view = draw(turn);
  turns.push(turn);
  list.append(turn.view.element);
  if (question) turn.view.ask(question);
  return turn;
}

function removeTurn(turn) {
  turns = turns.filter((other) => other !== turn);
  turn.stream?.close();
  turn.view.element.remove();
}

function draw(turn) {
  const element = clone("turn");
  const find = (name) => element.querySelector(`.${name}`);
  const [question, answer, note, failure] = ["question", "answer", "note", "failure"].map(find);
  const [retry, copy] = ["retry", "copy"].map(find);
  const parts = new Map();
  retry.addEventListener("click", () => again(turn));
  copy.addEventListener("click", () => copyOut(copy, said()));
  clear();
  return { element, ask, add, work, end, clear, retry: (may) => { retry.hidden = !may; } };

  function ask(words) {
    tell(question, words);
  }

  function add({ content, message, kind }) {
    const key = `${kind}:${message}`;
    if (!parts.has(key)) parts.set(key, open(kind === "text" ? "text" : "reasoning"));
    const node = parts.get(key);
    unwritten.set(node, (unwritten.get(node) ?? "") + content);
    frame ||= requestAnimationFrame(writeOut);
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

  function end(noted, failed = null) {
    writeOut();
    element.dataset.state = "ended";
    element.setAttribute("aria-busy", "false");
    const silent = !noted && !failed && !said();
    tell(note, silent ? "(The answer is empty.)" : noted);
    tell(failure, failed);
    copy.hidden = !said();
    if (following) toBottom();
  }

  function clear() {
    element.dataset.state = "thinking";
    element.setAttribute("aria-busy", "true");
    for (const node of parts.values()) unwritten.delete(node);
    parts.clear();
    answer.replaceChildren();
    tell(note, null);
    tell(failure, null);
    copy.hidden = true;
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
  if (following) toBottom();
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

function tell(element, words) {
  element.textContent = words ?? "";
  element.hidden = !words;
}

function live() {
  return turns.find((turn) => turn.busy) ?? null;
}

// The box and the view

function write(words) {
  input.value = words;
  fit();
}

function fit() {
  const { length } = input.value;
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight}px`;
  tell(count, length > page.max_question * 0.9 ? `${length} of ${page.max_question} characters` : null);
}

// A phone's keyboard would cover what is about to be read.
function home() {
  if (!matchMedia("(pointer: coarse)").matches) input.focus();
}

function watch() {
  const below = conversation.scrollHeight - conversation.scrollTop - conversation.clientHeight;
  following = below < 40;
  latest.hidden = following || turns.length === 0;
}

function toBottom() {
  conversation.scrollTop = conversation.scrollHeight;
  watch();
}

// The tab's memory, where there is one

function recall() {
  const nothing = { conversation: null, runs: [], pending: null };
  try {
    return { ...nothing, ...JSON.parse(sessionStorage.getItem(KEY)) };
  } catch {
    return nothing;
  }
}

function remember() {
  try {
    sessionStorage.setItem(KEY, JSON.stringify(chat));
  } catch {
    // Forbidden or full: the page works, a reload starts anew.
  }
}
