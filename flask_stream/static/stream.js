// The client for a run, for anyone's page. It knows the wire and nothing of the page around it.
//
//   import { newRun, openRun, startRun } from ".../stream.js";
//
//   const run = await startRun({ url: "/runs", body: { run: newRun(), chain: "chat", input: "Hi" } });
//   openRun({
//     url: run.urls.events,
//     onEvent: ({ type, data }) => { if (type === "chunk") console.log(data.content); },
//   });

// Every event but a chunk is named by its type.
const NAMED = [
  "start", "message_start", "tool_call", "tool_result", "step", "state", "progress",
  "custom", "usage", "interrupt", "reset", "end",
];
// No server, or a gateway that has none: the network, which is tried for as long as it takes.
const NETWORK = new Set([0, 502, 504]);
// Client errors that pass by themselves: Request Timeout, Too Early, Too Many Requests.
const PASSING = new Set([408, 425, 429]);
// Refusals in a row, and the longest Retry-After, after which nobody should be kept waiting.
const MOST_REFUSALS = 5;
const LONGEST_REFUSAL = 120_000;
const FIRST_WAIT = 500;
const LONGEST_WAIT = 30_000;
const PATIENCE = 15_000;

/**
 * Follow a run from `after` to its end: every event once and in order, whatever the connection does.
 *
 * url              the run's events URL
 * after            the seq of the last event already seen; 0 reads from the start
 * withCredentials  send cookies to another origin
 * onEvent          called with {run, seq, type, data}
 * onStatus         called on every change with `connecting`, `open`, `reconnecting`, and as the last
 *                  word one of `ended` (the end was seen), `gone` (the run is no longer kept) or
 *                  `refused` (it may not be read, or not now). Where the server has said why, which
 *                  may be after the first `reconnecting`, a second argument has {status, detail,
 *                  retryAfter}: HTTP's status, a sentence or null, a wait in ms or 0
 *
 * Answers {close, wake, last}: `close()` stops reading, which does not stop the run; `wake()`
 * tries again at once if the connection is down, unless the server has asked to wait; `last` is
 * the seq of the last event seen.
 */
export function openRun({ url, after = 0, withCredentials = false, onEvent, onStatus = () => {} }) {
  const events = new URL(url, document.baseURI);
  const listening = new AbortController();
  let last = after;
  let source = null;
  let inquiry = null;
  let timer = null;
  let tries = 0;
  let refusals = 0;
  // The server has asked for nothing to be asked of it before this time.
  let barred = 0;
  let told = null;
  let over = false;

  // A changed network leaves connections that look open and are dead.
  window.addEventListener("online", renew, { signal: listening.signal });
  document.addEventListener("visibilitychange", wake, { signal: listening.signal });
  tell("connecting");
  connect();
  return { close: () => finish(), wake, get last() { return last; } };

  function connect() {
    source = new EventSource(place(), { withCredentials });
    source.onopen = () => {
      refusals = 0;
      tell("open");
    };
    source.onerror = () => {
      // While it says CONNECTING the browser tries again by itself, with its cursor. CLOSED is
      // for ever: that is what it makes of a 204, 404, 429 or 50x, and it does not say of which.
      if (source.readyState === EventSource.CLOSED) inquire();
      else tell("reconnecting");
    };
    source.onmessage = (event) => take("chunk", event);
    for (const type of NAMED) source.addEventListener(type, (event) => take(type, event));
    // The worker is about to go. Without this, the browser would come back by itself as well, but
    // with no say of ours in when.
    source.addEventListener("reconnect", ({ data }) => later(JSON.parse(data).after * 1000));
    source.addEventListener("unauthorized", ({ data }) => {
      finish("refused", { status: 401, detail: JSON.parse(data).message, retryAfter: 0 });
    });
  }

  function place() {
    const from = new URL(events);
    if (last > 0) from.searchParams.set("after", String(last));
    return from;
  }

  function take(type, event) {
    const colon = event.lastEventId.lastIndexOf(":");
    const seq = Number(event.lastEventId.slice(colon + 1));
    // An `end` that could not be stored has no place of its own, and counts all the same.
    if (!(seq > last) && type !== "end") return;
    const data = JSON.parse(event.data);
    last = Math.max(seq, last);
    tries = 0;
    if (type === "end") finish();
    onEvent({ run: event.lastEventId.slice(0, Math.max(colon, 0)), seq, type, data });
    if (type === "end") tell("ended");
  }

  // The same request again, by a client that is told the answer. One that can be read is given up
  // with the rest of this connection: an EventSource reads it.
  async function inquire() {
    drop();
    tell("reconnecting");
    const mine = inquiry = new AbortController();
    const { status, ...why } = await look(place(), withCredentials, mine.signal);
    if (mine.signal.aborted) return;
    if (status === 200) later();
    else if (status === 204) finish("ended");
    else if (NETWORK.has(status)) later(why.retryAfter);
    else if (status === 404 || status === 410) finish("gone", { status, ...why });
    else if (status < 500 && !PASSING.has(status)) finish("refused", { status, ...why });
    else wait({ status, ...why });
  }

  // Refused for now: a limit, or a server that is full or about to go.
  function wait(why) {
    refusals += 1;
    tries = Math.max(tries, refusals + 1); // it is meant, and no blip
    if (refusals >= MOST_REFUSALS || why.retryAfter > LONGEST_REFUSAL) finish("refused", why);
    else barred = performance.now() + later(why.retryAfter, why);
  }

  function later(atLeast = 0, why = undefined) {
    drop();
    tell("reconnecting", why);
    const longest = Math.min(LONGEST_WAIT, FIRST_WAIT * 2 ** tries);
    tries += 1;
    // On top of what was asked for: all who were told the same would come back together.
    const milliseconds = Math.min(atLeast, LONGEST_REFUSAL) + jittered(longest);
    timer = setTimeout(reconnect, milliseconds);
    return milliseconds;
  }

  function renew() {
    if (performance.now() >= barred) reconnect();
  }

  function reconnect() {
    drop();
    tell("reconnecting");
    connect();
  }

  function wake() {
    if (over || document.visibilityState === "hidden") return;
    if (source?.readyState !== EventSource.OPEN) renew();
  }

  function drop() {
    clearTimeout(timer);
    inquiry?.abort();
    source?.close();
    source = null;
  }

  function finish(word, why) {
    over = true;
    listening.abort();
    drop();
    if (word) tell(word, why);
  }

  function tell(word, why) {
    if (word === told && !why) return;
    told = word;
    onStatus(word, why);
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

// How a read is answered; nothing of an answer that can be read is waited for.
async function look(events, withCredentials, signal) {
  try {
    const answer = await fetch(events, {
      headers: { Accept: "text/event-stream" },
      credentials: withCredentials ? "include" : "same-origin",
      cache: "no-store",
      signal: within(PATIENCE, signal),
    });
    const { status } = answer;
    const { detail = null } = answer.ok ? {} : await problemOf(answer);
    return { status, detail, retryAfter: waitOf(answer) };
  } catch {
    return { status: 0, detail: null, retryAfter: 0 };
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
function within(milliseconds, signal) {
  const controller = new AbortController();
  setTimeout(() => controller.abort(), milliseconds);
  signal?.addEventListener("abort", () => controller.abort(), { once: true });
  return controller.signal;
}
