// The client for a run, for anyone's page. It knows the wire and nothing of the page around it.
//
//   import { newRun, openRun, startRun } from ".../stream.js";
//
//   const run = await startRun({ url: "/runs", body: { run: newRun(), chain: "chat", input: "Hi" } });
//   openRun({
//     url: run.urls.events,
//     onEvent: ({ type, data }) => { if (type === "chunk") console.log(data.content); },
//   });

// Everything but chunks is named by its type. A `message` event is not in this list: an
// EventSource cannot tell `event: message` from an event without a name, see `unnamed`.
const NAMED = [
  "start", "tool_call", "tool_result", "step", "state", "progress",
  "custom", "usage", "interrupt", "reset", "end",
];
// Client errors that pass by themselves: Request Timeout, Too Early, Too Many Requests.
const PASSING = new Set([408, 425, 429]);
const FIRST_WAIT = 500;
const LONGEST_WAIT = 30_000;
const PATIENCE = 15_000;

/**
 * Follow a run from `after` to its end: every event once and in order, whatever the connection does.
 *
 * url              the run's events URL
 * self             the run's status URL; without it, `url` less its `/events`
 * after            the seq of the last event already seen; 0 reads from the start
 * withCredentials  send cookies to another origin
 * onEvent          called with {run, seq, type, data}
 * onStatus         called on every change with `connecting`, `open`, `reconnecting`, and as the last
 *                  word one of `ended` (the end was seen), `gone` (the run is no longer kept) or
 *                  `refused` (it may not be read)
 *
 * Answers {close, wake, last}: `close()` stops reading, which does not stop the run; `wake()`
 * tries again at once if the connection is down; `last` is the seq of the last event seen.
 */
export function openRun({
  url, self, after = 0, withCredentials = false, onEvent, onStatus = () => {},
}) {
  const events = new URL(url, document.baseURI);
  const home = self ? new URL(self, document.baseURI) : homeOf(events);
  const listening = new AbortController();
  let last = after;
  let source = null;
  let timer = null;
  let tries = 0;
  let inquiry = 0;
  let told = null;
  let over = false;

  // A changed network leaves connections that look open and are dead.
  window.addEventListener("online", inquire, { signal: listening.signal });
  document.addEventListener("visibilitychange", wake, { signal: listening.signal });
  tell("connecting");
  connect();
  return { close: () => finish(), wake, get last() { return last; } };

  function connect() {
    const from = new URL(events);
    if (last > 0) from.searchParams.set("after", String(last));
    source = new EventSource(from, { withCredentials });
    source.onopen = () => tell("open");
    source.onerror = () => {
      // While it says CONNECTING the browser tries again by itself, with its cursor. CLOSED is
      // for ever: that is what it makes of a 404, 429 or 50x, however short the trouble.
      if (source.readyState === EventSource.CLOSED) later();
      else tell("reconnecting");
    };
    source.onmessage = (event) => take(null, event);
    for (const type of NAMED) source.addEventListener(type, (event) => take(type, event));
  }

  function take(name, event) {
    const colon = event.lastEventId.lastIndexOf(":");
    const seq = Number(event.lastEventId.slice(colon + 1));
    // An `end` that could not be stored has no place of its own, and counts all the same.
    if (!(seq > last) && name !== "end") return;
    const data = JSON.parse(event.data);
    const type = name ?? unnamed(data);
    last = Math.max(seq, last);
    tries = 0;
    if (type === "end") finish();
    onEvent({ run: event.lastEventId.slice(0, Math.max(colon, 0)), seq, type, data });
    if (type === "end") tell("ended");
  }

  function later(atLeast = 0) {
    drop();
    tell("reconnecting");
    const longest = Math.min(LONGEST_WAIT, FIRST_WAIT * 2 ** tries);
    tries += 1;
    timer = setTimeout(inquire, Math.max(atLeast, jittered(longest)));
  }

  // An EventSource does not say why it closed, so the run itself is asked before it is reopened.
  async function inquire() {
    drop();
    tell("reconnecting");
    inquiry += 1;
    const mine = inquiry;
    const { status, retryAfter, body } = await look(home, withCredentials);
    if (over || mine !== inquiry) return;
    if (status === 404 || status === 410) finish("gone");
    else if (status >= 400 && status < 500 && !PASSING.has(status)) finish("refused");
    else if (status !== 200) later(Math.min(retryAfter, LONGEST_WAIT));
    else if (body.status !== "running" && body.seq <= last) finish("ended");
    else connect();
  }

  function wake() {
    if (over || document.visibilityState === "hidden") return;
    if (source?.readyState !== EventSource.OPEN) inquire();
  }

  function drop() {
    clearTimeout(timer);
    source?.close();
    source = null;
  }

  function finish(word) {
    over = true;
    listening.abort();
    drop();
    if (word) tell(word);
  }

  function tell(word) {
    if (word === told) return;
    told = word;
    onStatus(word);
  }
}

/**
 * Start a run and answer its JSON: id, conversation, URLs.
 *
 * `body.run` (see `newRun`) makes this safe to repeat: the same id is the same run, so a question
 * whose answer was lost on the way is sent again, up to `tries` times, and the model is called
 * once. What the server refuses is thrown as a `Refusal`; with status 0 it was never reached. An
 * aborted `signal` ends the trying, never a request on its way: what that one started is answered.
 */
export async function startRun({ url, body, signal, withCredentials = false, tries = 4 }) {
  for (let attempt = 1; ; attempt += 1) {
    let refusal;
    try {
      const answer = await fetch(url, {
        method: "POST",
        headers: { "Content-Type": "application/json", Accept: "application/json" },
        credentials: withCredentials ? "include" : "same-origin",
        body: JSON.stringify(body),
        signal: within(PATIENCE),
      });
      if (answer.ok) return await answer.json();
      refusal = new Refusal(answer.status, await problemOf(answer), waitOf(answer));
    } catch {
      refusal = new Refusal(0, {}, 0);
    }
    // A gateway that lost the answer is the network, too; the server's own words are final.
    const lost = refusal.status === 0 || refusal.status === 502 || refusal.status === 504;
    if (!lost || attempt >= tries || signal?.aborted) throw refusal;
    await rest(jittered(FIRST_WAIT * 2 ** (attempt - 1)), signal);
    if (signal?.aborted) throw refusal;
  }
}

/** Why a run was not started: `status`, the problem's `detail` and `field`, `retryAfter` in ms. */
export class Refusal extends Error {
  constructor(status, problem, retryAfter) {
    super(problem.detail ?? problem.title ?? `The server answered with status ${status}.`);
    this.name = "Refusal";
    this.status = status;
    this.detail = problem.detail ?? null;
    this.field = problem.field ?? null;
    this.retryAfter = retryAfter;
  }
}

/** A fresh run id. (`crypto.randomUUID` exists in secure contexts only.) */
export function newRun() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// A `chunk` comes without a name and a `message` by the name that means the same: only their data differ.
function unnamed(data) {
  return "content" in data ? "chunk" : "message";
}

function homeOf(events) {
  const home = new URL(events);
  home.pathname = home.pathname.replace(/\/events\/?$/, "");
  home.searchParams.delete("after");
  return home;
}

async function look(home, withCredentials) {
  try {
    const answer = await fetch(home, {
      headers: { Accept: "application/json" },
      credentials: withCredentials ? "include" : "same-origin",
      cache: "no-store",
      signal: within(PATIENCE),
    });
    const body = answer.ok ? await answer.json() : {};
    return { status: answer.status, retryAfter: waitOf(answer), body };
  } catch {
    return { status: 0, retryAfter: 0, body: {} };
  }
}

async function problemOf(answer) {
  const json = answer.headers.get("Content-Type")?.includes("json");
  return (json && (await answer.json().catch(() => null))) || {};
}

function waitOf(answer) {
  const seconds = Number(answer.headers.get("Retry-After"));
  return seconds > 0 ? seconds * 1000 : 0;
}

function jittered(milliseconds) {
  return milliseconds * (0.5 + Math.random() / 2);
}

function rest(milliseconds, signal) {
  return new Promise((done) => {
    setTimeout(done, milliseconds);
    signal?.addEventListener("abort", done, { once: true });
  });
}

// AbortSignal.timeout is younger than some browsers this should run in.
function within(milliseconds) {
  const controller = new AbortController();
  setTimeout(() => controller.abort(), milliseconds);
  return controller.signal;
}
