// The browser client for runs. It depends on nothing else, so any page can use it.
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
// The network: no response at all, or one from a gateway without a server. Retried without limit.
const NETWORK = new Set([0, 502, 504]);
// Client errors that may pass: Request Timeout, Too Early, Too Many Requests.
const TEMPORARY = new Set([408, 425, 429]);
// After this many refusals in a row, or a longer Retry-After, the client gives up.
const MAX_REFUSALS = 5;
const MAX_RETRY_AFTER = 120_000;
const FIRST_DELAY = 500;
const MAX_DELAY = 30_000;
const REQUEST_TIMEOUT = 15_000;

/**
 * One event of a run. What `data` holds depends on `type`.
 *
 * @typedef {{ run: string, seq: number, type: string, data: any }} RunEvent
 */

/**
 * Why a request failed: the HTTP status (0 for no response), the server's sentence, and how long
 * to wait in milliseconds (0 if the server did not say).
 *
 * @typedef {{ status: number, detail: string | null, retryAfter: number }} Reason
 */

/**
 * `ended`: the end was read. `gone`: the run is no longer stored. `refused`: it may not be read, or
 * not now. These three are final.
 *
 * @typedef {"connecting" | "open" | "reconnecting" | "ended" | "gone" | "refused"} Status
 */

/**
 * `close` stops reading, which does not stop the run. `wake` reconnects at once if the connection
 * is down, unless the server has asked to wait. `last` is the seq of the last event read.
 *
 * @typedef {{ close: () => void, wake: () => void, readonly last: number }} OpenRun
 */

/**
 * Read a run to its end: every event once and in order, however often the connection breaks.
 *
 * @param {object} options
 * @param {string | URL} options.url the run's events URL
 * @param {number} [options.after] the seq of the last event already read; 0 reads from the start
 * @param {boolean} [options.withCredentials] send cookies to another origin
 * @param {(event: RunEvent) => void} options.onEvent
 * @param {(status: Status, reason?: Reason) => void} [options.onStatus] called on every change; the
 *   reason is there if the server gave one, and may follow a first `reconnecting` without it
 * @returns {OpenRun}
 */
export function openRun({ url, after = 0, withCredentials = false, onEvent, onStatus = () => {} }) {
  const events = new URL(url, document.baseURI);
  const listeners = new AbortController();
  let last = after;
  /** @type {EventSource | null} */
  let source = null;
  /** @type {AbortController | null} */
  let inquiry = null;
  let timer = 0;
  let tries = 0;
  let refusals = 0;
  // The server has asked for no request before this time.
  let notBefore = 0;
  /** @type {Status | null} */
  let lastStatus = null;
  let over = false;

  // After a change of network, a connection can look open although it is dead.
  window.addEventListener("online", renew, { signal: listeners.signal });
  document.addEventListener("visibilitychange", wake, { signal: listeners.signal });
  report("connecting");
  connect();
  return { close: () => finish(), wake, get last() { return last; } };

  function connect() {
    const opened = source = new EventSource(eventsUrl(), { withCredentials });
    opened.onopen = () => {
      refusals = 0;
      report("open");
    };
    opened.onerror = () => {
      // While it is CONNECTING the browser retries by itself, with its cursor. CLOSED is final: a
      // 204, 404, 429 or 50x leads to it, and the browser does not tell which one.
      if (opened.readyState === EventSource.CLOSED) inquire();
      else report("reconnecting");
    };
    opened.onmessage = (event) => receive("chunk", event);
    for (const type of NAMED) opened.addEventListener(type, (event) => receive(type, event));
    // The worker is about to stop: reconnect when it says, to another one.
    opened.addEventListener("reconnect", ({ data }) => later(JSON.parse(data).after * 1000));
    opened.addEventListener("unauthorized", ({ data }) => {
      finish("refused", { status: 401, detail: JSON.parse(data).message, retryAfter: 0 });
    });
  }

  function eventsUrl() {
    const from = new URL(events);
    if (last > 0) from.searchParams.set("after", String(last));
    return from;
  }

  /** @type {(type: string, event: MessageEvent) => void} */
  function receive(type, event) {
    const colon = event.lastEventId.lastIndexOf(":");
    const seq = Number(event.lastEventId.slice(colon + 1));
    // An `end` that could not be stored has no seq of its own, and counts all the same.
    if (!(seq > last) && type !== "end") return;
    const data = JSON.parse(event.data);
    last = Math.max(seq, last);
    tries = 0;
    if (type === "end") finish();
    onEvent({ run: event.lastEventId.slice(0, Math.max(colon, 0)), seq, type, data });
    if (type === "end") report("ended");
  }

  // Repeat the request with `fetch`, which can read the status. If the response is a stream, it is
  // dropped: an EventSource reads it.
  async function inquire() {
    drop();
    report("reconnecting");
    const mine = inquiry = new AbortController();
    const reason = await probe(eventsUrl(), withCredentials, mine.signal);
    if (mine.signal.aborted) return;
    const { status } = reason;
    if (status === 200) later();
    else if (status === 204) finish("ended");
    else if (NETWORK.has(status)) later(reason.retryAfter);
    else if (status === 404 || status === 410) finish("gone", reason);
    else if (status < 500 && !TEMPORARY.has(status)) finish("refused", reason);
    else refuse(reason);
  }

  // Refused for now: by a limit, or by a server that is full or about to stop.
  /** @param {Reason} reason */
  function refuse(reason) {
    refusals += 1;
    tries = Math.max(tries, refusals + 1); // unlike a lost connection, this will not pass at once
    if (refusals >= MAX_REFUSALS || reason.retryAfter > MAX_RETRY_AFTER) finish("refused", reason);
    else notBefore = performance.now() + later(reason.retryAfter, reason);
  }

  /** @type {(atLeast?: number, reason?: Reason) => number} */
  function later(atLeast = 0, reason = undefined) {
    drop();
    report("reconnecting", reason);
    const delay = Math.min(MAX_DELAY, FIRST_DELAY * 2 ** tries);
    tries += 1;
    // In addition to what the server asked for, or all its clients would come back together.
    const milliseconds = Math.min(atLeast, MAX_RETRY_AFTER) + jittered(delay);
    timer = setTimeout(reconnect, milliseconds);
    return milliseconds;
  }

  function renew() {
    if (performance.now() >= notBefore) reconnect();
  }

  function reconnect() {
    drop();
    report("reconnecting");
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

  /** @type {(status?: Status, reason?: Reason) => void} */
  function finish(status, reason) {
    over = true;
    listeners.abort();
    drop();
    if (status) report(status, reason);
  }

  /** @type {(status: Status, reason?: Reason) => void} */
  function report(status, reason) {
    if (status === lastStatus && !reason) return;
    lastStatus = status;
    onStatus(status, reason);
  }
}

/**
 * Start a run and return its JSON.
 *
 * With a `body.run` (see `newRun`) this is safe to repeat: the same id is the same run. If the
 * response is lost, the request is sent again, up to `tries` times, and the model is called once.
 * Aborting `signal` ends the retries but never a request that is under way, which may have started
 * the run. Throws a `Refusal`; its status is 0 if the server was not reached.
 *
 * @param {object} options
 * @param {string | URL} options.url
 * @param {Record<string, unknown>} options.body
 * @param {AbortSignal} [options.signal]
 * @param {boolean} [options.withCredentials] send cookies to another origin
 * @param {number} [options.tries]
 * @returns {Promise<{ run: string, conversation: string, urls: { events: string } }>}
 */
export async function startRun({ url, body, signal, withCredentials = false, tries = 4 }) {
  for (let attempt = 1; ; attempt += 1) {
    /** @type {Refusal} */
    let refusal;
    try {
      const response = await fetch(url, {
        method: "POST",
        headers: { "Content-Type": "application/json", Accept: "application/json" },
        credentials: withCredentials ? "include" : "same-origin",
        body: JSON.stringify(body),
        signal: within(REQUEST_TIMEOUT),
      });
      if (response.ok) return await response.json();
      refusal = new Refusal(response.status, await problemOf(response), retryAfterOf(response));
    } catch {
      refusal = new Refusal(0, {}, 0);
    }
    if (!NETWORK.has(refusal.status) || attempt >= tries || signal?.aborted) throw refusal;
    await sleep(jittered(FIRST_DELAY * 2 ** (attempt - 1)), signal);
    if (signal?.aborted) throw refusal;
  }
}

/** @typedef {{ title?: string, detail?: string, field?: string }} Problem */

/** Why a run was not started. `field` is the part of the request that is wrong, or null. */
export class Refusal extends Error {
  /**
   * @param {number} status
   * @param {Problem} problem
   * @param {number} retryAfter in milliseconds
   */
  constructor(status, problem, retryAfter) {
    super(problem.detail ?? problem.title ?? `The server answered with status ${status}.`);
    this.name = "Refusal";
    this.status = status;
    this.detail = problem.detail ?? null;
    this.field = problem.field ?? null;
    this.retryAfter = retryAfter;
  }
}

/**
 * Return a new run id. (`crypto.randomUUID` exists in secure contexts only.)
 *
 * @returns {string}
 */
export function newRun() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * Request a run's events and return the response's status, without reading a stream.
 *
 * @param {URL} url
 * @param {boolean} withCredentials
 * @param {AbortSignal} signal
 * @returns {Promise<Reason>}
 */
async function probe(url, withCredentials, signal) {
  try {
    const response = await fetch(url, {
      headers: { Accept: "text/event-stream" },
      credentials: withCredentials ? "include" : "same-origin",
      cache: "no-store",
      signal: within(REQUEST_TIMEOUT, signal),
    });
    const { status } = response;
    const { detail = null } = response.ok ? {} : await problemOf(response);
    return { status, detail, retryAfter: retryAfterOf(response) };
  } catch {
    return { status: 0, detail: null, retryAfter: 0 };
  }
}

/**
 * @param {Response} response
 * @returns {Promise<Problem>}
 */
async function problemOf(response) {
  const json = response.headers.get("Content-Type")?.includes("json");
  return (json && (await response.json().catch(() => null))) || {};
}

/**
 * @param {Response} response
 * @returns {number}
 */
function retryAfterOf(response) {
  const seconds = Number(response.headers.get("Retry-After"));
  return seconds > 0 ? seconds * 1000 : 0;
}

/**
 * @param {number} milliseconds
 * @returns {number}
 */
function jittered(milliseconds) {
  return milliseconds * (0.5 + Math.random() / 2);
}

/**
 * @param {number} milliseconds
 * @param {AbortSignal} [signal] ends the wait early
 * @returns {Promise<void>}
 */
function sleep(milliseconds, signal) {
  return new Promise((done) => {
    setTimeout(done, milliseconds);
    signal?.addEventListener("abort", () => done(), { once: true });
  });
}

/**
 * Return a signal that aborts after some time, or with another signal.
 *
 * `AbortSignal.timeout` and `AbortSignal.any` are missing in some browsers that this supports.
 *
 * @param {number} milliseconds
 * @param {AbortSignal} [signal]
 * @returns {AbortSignal}
 */
function within(milliseconds, signal) {
  const controller = new AbortController();
  setTimeout(() => controller.abort(), milliseconds);
  signal?.addEventListener("abort", () => controller.abort(), { once: true });
  return controller.signal;
}
