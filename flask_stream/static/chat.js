// The chat page: what is on the screen is a read of its runs, each from its start. Here questions
// are asked and answers stopped; a turn itself, its reading and its drawing, is in turn.js.

import { newRun, startRun } from "./stream.js";
import { Turn } from "./turn.js";
import { tell, whyUnasked } from "./words.js";

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

// Outlives a reload: the conversation, its runs, a question whose start is not yet confirmed, and
// what is in the box.
let chat = recall();
let turns = [];
// Whether the person is at the bottom, and so wants to see what is added there.
let following = true;

begin();

async function begin() {
  composer.addEventListener("submit", (event) => { event.preventDefault(); submit(); });
  input.addEventListener("input", keep);
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
  if (page.conversation && page.conversation !== chat.conversation) await open(page.conversation);
  for (const run of chat.runs) addTurn({ run }).follow();
  if (chat.pending) ask(addTurn(chat.pending));
  settle();
  write(input.value || chat.draft);
  for (const button of [send, anew, ...welcome.querySelectorAll("button")]) button.disabled = false;
  home();
}

// A conversation that this tab does not know: the branch that ends with its newest run.
async function open(id) {
  chat = blank();
  const answer = await fetch(`${page.conversations}/${id}`).catch(() => null);
  if (!answer?.ok) return complain("This conversation cannot be opened here.");
  const runs = new Map((await answer.json()).runs.map((run) => [run.run, run]));
  chat.conversation = id;
  for (let run = [...runs.values()].at(-1); run; run = runs.get(run.parent)) {
    chat.runs.unshift(run.run);
  }
  remember();
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
  const { run, question, parent, resume } = turn;
  turn.busy = true;
  turn.trying = new AbortController();
  chat.pending = { run, question, parent, resume };
  remember();
  complain(null);
  turn.say("connecting", "Connecting…");
  toBottom();
  const said = resume === undefined ? { input: question } : { resume };
  const body = { chain: page.chain, run, ...said };
  if (chat.conversation) body.conversation = chat.conversation;
  if (parent) body.parent = parent;
  try {
    const made = await startRun({ url: page.runs, body, signal: turn.trying.signal });
    if (!turns.includes(turn)) return void cancel(turn);
    chat.conversation = made.conversation;
    chat.runs.push(run);
    chat.pending = null;
    remember();
    turn.follow();
    if (turn.stopping) stopRun(turn);
  } catch (refusal) {
    if (turn.stopping || !turns.includes(turn)) cancel(turn);
    if (turns.includes(turn)) refused(turn, refusal);
  }
}

// Nothing was started: the question goes back to where it can be changed and sent again.
function refused(turn, refusal) {
  const words = turn.stopping ? null : whyUnasked(refusal);
  chat.pending = null;
  remember();
  turn.busy = false;
  if (input.value.trim()) {
    turn.fail("This question was not sent.", "ask", null);
  } else {
    removeTurn(turn);
    write(turn.question ?? "");
    say(null, words ? "failed" : "stopped", words ? "Not sent" : "Stopped");
  }
  complain(words, refusal.field === "input");
  home();
}

function again(turn) {
  if (live()) return;
  if (turn.retry === "read") {
    turn.readOn();
  } else {
    chat.runs = chat.runs.filter((run) => run !== turn.run);
    turn.renew(newRun());
    ask(turn);
  }
  home();
}

// What a run has asked is answered by the run that follows it.
function answered(turn, resume) {
  if (live()) return;
  ask(addTurn({ run: newRun(), question: null, parent: turn.run, resume }));
}

function halt(turn) {
  if (turn.stopping) return;
  turn.stopping = true;
  if (document.activeElement === stop) home();
  stop.disabled = true;
  turn.say(status.dataset.status, null);
  if (turn.stream) stopRun(turn);
  else turn.trying.abort();
}

async function stopRun(turn) {
  if (await cancel(turn)) return turn.stream.wake();
  if (!turn.busy) return;
  turn.stopping = false;
  stop.disabled = false;
  turn.say(...(turn.now ?? ["connecting", "Connecting…"]));
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
  chat = { ...blank(), draft: input.value };
  remember();
  for (const old of [...turns]) removeTurn(old);
  complain(null);
  say(null, "", "");
  home();
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
  for (const turn of turns) turn.view.retry(!busy && turn.retry && turn === turns.at(-1));
  if (left) home();
}

function complain(words, aboutInput = false) {
  tell(problem, words);
  input.setAttribute("aria-invalid", String(aboutInput));
}

// Turns

function addTurn(asked) {
  const turn = new Turn(asked, {
    runs: page.runs,
    onStatus: say,
    onDrawn: () => { if (following) toBottom(); },
    onRetry: again,
    onAnswer: answered,
  });
  turns.push(turn);
  list.append(turn.view.element);
  return turn;
}

function removeTurn(turn) {
  turns = turns.filter((other) => other !== turn);
  turn.stream?.close();
  turn.view.element.remove();
}

function live() {
  return turns.find((turn) => turn.busy) ?? null;
}

// The box and the view

function write(words) {
  input.value = words;
  keep();
}

function keep() {
  chat.draft = input.value;
  remember();
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
  try {
    return { ...blank(), ...JSON.parse(sessionStorage.getItem(KEY)) };
  } catch {
    return blank();
  }
}

function blank() {
  return { conversation: null, runs: [], pending: null, draft: "" };
}

function remember() {
  try {
    sessionStorage.setItem(KEY, JSON.stringify(chat));
  } catch {
    // Forbidden or full: the page works, a reload starts anew.
  }
}
