// The chat page. Everything on the screen is read from the runs, each from its start. This module
// asks questions and stops answers; turn.js reads and draws a turn.

import { byId, showText } from "./dom.js";
import { newRun, Refusal, startRun } from "./stream.js";
import { Turn } from "./turn.js";
import { whyNotSent } from "./words.js";

/** @typedef {import("./turn.js").TurnStart} TurnStart */

/**
 * What the server tells the page: names, limits and URLs.
 *
 * @typedef {object} PageData
 * @property {string} chain
 * @property {string | null} conversation
 * @property {string} conversations
 * @property {string} runs
 * @property {number} max_question
 */

/**
 * What outlives a reload: the conversation, its runs, a question whose start is not confirmed yet,
 * and the text in the box.
 *
 * @typedef {object} Chat
 * @property {string | null} conversation
 * @property {string[]} runs
 * @property {TurnStart | null} pending
 * @property {string} draft
 */

/** @type {PageData} */
const page = JSON.parse(byId("stream-data", HTMLScriptElement).text);
const conversation = byId("conversation", HTMLElement);
const list = byId("turns", HTMLElement);
const welcome = byId("welcome", HTMLElement);
const composer = byId("composer", HTMLFormElement);
const input = byId("question", HTMLTextAreaElement);
const send = byId("send", HTMLButtonElement);
const stop = byId("stop", HTMLButtonElement);
const status = byId("status", HTMLElement);
const problem = byId("problem", HTMLElement);
const count = byId("count", HTMLElement);
const latest = byId("latest", HTMLButtonElement);
const newChat = byId("new-chat", HTMLButtonElement);

const KEY = `flask_stream:${page.chain}`;

let chat = recall();
/** @type {Turn[]} */
let turns = [];
// Whether the person is at the bottom, and so wants to see what is added there.
let following = true;

begin();

async function begin() {
  composer.addEventListener("submit", (event) => { event.preventDefault(); submit(); });
  input.addEventListener("input", saveDraft);
  input.addEventListener("keydown", (event) => {
    // Enter may end an IME's composition. Safari tells only by the key code.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    submit();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !event.isComposing) halt(activeTurn());
  });
  // The second click of a double click on Send lands on Stop and must not stop the answer.
  stop.addEventListener("click", (event) => { if (event.detail < 2) halt(activeTurn()); });
  newChat.addEventListener("click", startNewChat);
  latest.addEventListener("click", toBottom);
  for (const button of welcome.querySelectorAll("button")) {
    button.addEventListener("click", () => { setQuestion(button.textContent ?? ""); submit(); });
  }
  conversation.addEventListener("scroll", updateFollowing, { passive: true });
  new ResizeObserver(() => (following ? toBottom() : updateFollowing())).observe(conversation);

  status.textContent = "";
  if (page.conversation && page.conversation !== chat.conversation) await openConversation(page.conversation);
  for (const run of chat.runs) addTurn({ run }).follow();
  if (chat.pending) ask(addTurn(chat.pending));
  updateControls();
  setQuestion(input.value || chat.draft);
  for (const button of [send, newChat, ...welcome.querySelectorAll("button")]) button.disabled = false;
  focusInput();
}

/**
 * Show a conversation that this tab does not know: the branch that ends with its newest run.
 *
 * @param {string} id
 */
async function openConversation(id) {
  chat = blank();
  const response = await fetch(`${page.conversations}/${id}`).catch(() => null);
  if (!response?.ok) return complain("This conversation cannot be opened.");
  /** @type {{ runs: { run: string, parent: string }[] }} */
  const found = await response.json();
  const runs = new Map(found.runs.map((run) => [run.run, run]));
  chat.conversation = id;
  for (let run = [...runs.values()].at(-1); run; run = runs.get(run.parent)) {
    chat.runs.unshift(run.run);
  }
  remember();
}

// Asking and stopping

function submit() {
  const question = input.value.trim();
  if (activeTurn()) return;
  if (question) {
    const parent = turns.findLast((turn) => !turn.gone)?.run ?? null;
    setQuestion("");
    ask(addTurn({ run: newRun(), question, parent }));
  }
  focusInput();
}

/** @param {Turn} turn */
async function ask(turn) {
  const { run, question, parent, resume } = turn;
  turn.busy = true;
  const starting = turn.starting = new AbortController();
  chat.pending = { run, question, parent, resume };
  remember();
  complain(null);
  turn.report("connecting", "Connecting…");
  toBottom();
  /** @type {Record<string, unknown>} */
  const body = { chain: page.chain, run };
  if (resume === undefined) body.input = question;
  else body.resume = resume;
  if (chat.conversation) body.conversation = chat.conversation;
  if (parent) body.parent = parent;
  try {
    const started = await startRun({ url: page.runs, body, signal: starting.signal });
    if (!turns.includes(turn)) return void cancel(turn);
    chat.conversation = started.conversation;
    chat.runs.push(run);
    chat.pending = null;
    remember();
    turn.follow();
    if (turn.stopping) stopRun(turn);
  } catch (refusal) {
    if (!(refusal instanceof Refusal)) throw refusal;
    if (turn.stopping || !turns.includes(turn)) cancel(turn);
    if (turns.includes(turn)) refused(turn, refusal);
  }
}

/**
 * Put a question that was not sent back into the box, where it can be changed and sent again.
 *
 * @param {Turn} turn
 * @param {Refusal} refusal
 */
function refused(turn, refusal) {
  const words = turn.stopping ? null : whyNotSent(refusal);
  chat.pending = null;
  remember();
  turn.busy = false;
  if (input.value.trim()) {
    turn.fail("This question was not sent.", "ask", null);
  } else {
    removeTurn(turn);
    setQuestion(turn.question ?? "");
    showStatus(null, words ? "failed" : "stopped", words ? "Not sent" : "Stopped");
  }
  complain(words, refusal.field === "input");
  focusInput();
}

/** @param {Turn} turn */
function retry(turn) {
  if (activeTurn()) return;
  if (turn.retry === "read") {
    turn.readOn();
  } else {
    chat.runs = chat.runs.filter((run) => run !== turn.run);
    turn.renew(newRun());
    ask(turn);
  }
  focusInput();
}

/**
 * Answer what a run has asked, with a run that follows it.
 *
 * @param {Turn} turn
 * @param {unknown} resume
 */
function answerInterrupt(turn, resume) {
  if (activeTurn()) return;
  ask(addTurn({ run: newRun(), question: null, parent: turn.run, resume }));
}

/** @param {Turn | null} turn */
function halt(turn) {
  if (!turn || turn.stopping) return;
  turn.stopping = true;
  if (document.activeElement === stop) focusInput();
  stop.disabled = true;
  turn.report(status.dataset.status ?? "", null);
  if (turn.stream) stopRun(turn);
  else turn.starting?.abort();
}

/** @param {Turn} turn */
async function stopRun(turn) {
  if (await cancel(turn)) return turn.stream?.wake();
  if (!turn.busy) return;
  turn.stopping = false;
  stop.disabled = false;
  turn.report(...(turn.activity ?? /** @type {const} */ (["connecting", "Connecting…"])));
  complain("The answer could not be stopped. Try again.");
}

/**
 * Stop a run on the server. Returns whether it is over.
 *
 * @param {Turn} turn
 * @returns {Promise<boolean>}
 */
function cancel(turn) {
  return fetch(`${page.runs}/${turn.run}/cancel`, { method: "POST", keepalive: true }).then(
    ({ ok, status: code }) => ok || code === 404 || code === 410,
    () => false,
  );
}

function startNewChat() {
  // An answer that nobody can come back to should not cost anything more.
  const turn = activeTurn();
  if (turn?.stream) cancel(turn);
  else turn?.starting?.abort();
  chat = { ...blank(), draft: input.value };
  remember();
  for (const old of [...turns]) removeTurn(old);
  complain(null);
  showStatus(null, "", "");
  focusInput();
}

// Status

/**
 * Show the status of the newest turn, or of no turn.
 *
 * @param {Turn | null} turn
 * @param {string} state
 * @param {string | null} words
 */
function showStatus(turn, state, words) {
  if (turn === null || turn === turns.at(-1)) {
    const shown = turn?.busy && turn.stopping ? "Stopping…" : words;
    if (status.textContent !== shown) status.textContent = shown;
    status.dataset.status = state;
  }
  updateControls();
}

function updateControls() {
  const busy = Boolean(activeTurn());
  const moveFocus = !busy && document.activeElement === stop;
  send.hidden = busy;
  stop.hidden = !busy;
  stop.disabled &&= busy;
  welcome.hidden = turns.length > 0;
  newChat.hidden = turns.length === 0;
  for (const turn of turns) turn.view.showRetry(!busy && turn.retry !== null && turn === turns.at(-1));
  if (moveFocus) focusInput();
}

/** @type {(words: string | null, aboutInput?: boolean) => void} */
function complain(words, aboutInput = false) {
  showText(problem, words);
  input.setAttribute("aria-invalid", String(aboutInput));
}

// Turns

/**
 * @param {TurnStart} start
 * @returns {Turn}
 */
function addTurn(start) {
  const turn = new Turn(start, {
    runs: page.runs,
    onStatus: showStatus,
    onDrawn: () => { if (following) toBottom(); },
    onRetry: retry,
    onAnswer: answerInterrupt,
  });
  turns.push(turn);
  list.append(turn.view.element);
  return turn;
}

/** @param {Turn} turn */
function removeTurn(turn) {
  turns = turns.filter((other) => other !== turn);
  turn.stream?.close();
  turn.view.element.remove();
}

/** @returns {Turn | null} */
function activeTurn() {
  return turns.find((turn) => turn.busy) ?? null;
}

// The box and the view

/** @param {string} text */
function setQuestion(text) {
  input.value = text;
  saveDraft();
}

function saveDraft() {
  chat.draft = input.value;
  remember();
  fitInput();
}

function fitInput() {
  const { length } = input.value;
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight}px`;
  showText(count, length > page.max_question * 0.9 ? `${length} of ${page.max_question} characters` : null);
}

// Not on a phone, where the keyboard would cover the answer.
function focusInput() {
  if (!matchMedia("(pointer: coarse)").matches) input.focus();
}

function updateFollowing() {
  const below = conversation.scrollHeight - conversation.scrollTop - conversation.clientHeight;
  following = below < 40;
  latest.hidden = following || turns.length === 0;
}

function toBottom() {
  conversation.scrollTop = conversation.scrollHeight;
  updateFollowing();
}

// The tab's memory

/** @returns {Chat} */
function recall() {
  try {
    return { ...blank(), ...JSON.parse(sessionStorage.getItem(KEY) ?? "null") };
  } catch {
    return blank();
  }
}

/** @returns {Chat} */
function blank() {
  return { conversation: null, runs: [], pending: null, draft: "" };
}

function remember() {
  try {
    sessionStorage.setItem(KEY, JSON.stringify(chat));
  } catch {
    // Storage is forbidden or full: the page works, but a reload starts a new chat.
  }
}
