// The sentences that the page shows.

/** @typedef {import("./stream.js").Reason} Reason */

const RELOAD = "Reload this page to sign in again.";
/** @type {Record<string, string>} */
const NOTES = {
  cancelled: "(stopped)",
  interrupted: "(waiting for your decision)",
  length: "(cut off: the answer reached its maximum length)",
  content_filter: "(ended by the provider's content filter)",
  refusal: "(the model declined to answer)",
  context_window: "(cut off: the conversation is too long for this model)",
};

/**
 * Return why a question was not accepted, for the person who asked it.
 *
 * @param {Reason} reason
 * @returns {string}
 */
export function whyNotSent({ status, detail, retryAfter }) {
  const when = retryAfter ? again(retryAfter) : "Your question is kept here: try again.";
  if (status === 401) return signedOut(detail);
  if (detail) return retryAfter ? `${detail} ${when}` : detail;
  if (status === 0) return `The server cannot be reached. ${when}`;
  if (status === 403) return "You may not ask questions here.";
  if (status === 429) return `Too many questions at once. ${when}`;
  if (status === 503) return `The service is busy. ${when}`;
  return `The server could not take the question (status ${status}). ${when}`;
}

/**
 * Return why an answer is not read any further.
 *
 * @param {Reason} reason
 * @returns {string}
 */
export function whyNotRead({ status, detail, retryAfter }) {
  if (status === 401) return signedOut(detail);
  if (!isTemporary(status)) return detail ?? "This answer may no longer be read.";
  return `${detail ?? "The rest of the answer cannot be read right now."} ${again(retryAfter)}`;
}

/**
 * Return whether a request that got this HTTP status may succeed later.
 *
 * @param {number} status
 * @returns {boolean}
 */
export function isTemporary(status) {
  return status >= 500 || [408, 425, 429].includes(status);
}

/**
 * Return what the page says while a connection is down.
 *
 * @param {Reason} [reason]
 * @returns {string}
 */
export function reconnecting(reason) {
  if (!reason) return "Connection lost. Reconnecting…";
  const when = reason.retryAfter ? ` in ${duration(reason.retryAfter)}` : "";
  return `${reason.detail ?? "The service is busy."} Trying again${when}…`;
}

/**
 * Return the note below an answer that did not end in the usual way; null if it did.
 *
 * @param {string} status
 * @param {string | null} [finishReason]
 * @returns {string | null}
 */
export function noteBelow(status, finishReason) {
  return NOTES[status] ?? NOTES[finishReason ?? ""] ?? null;
}

/**
 * Return why an answer failed.
 *
 * @param {{ message?: string } | null} [error]
 * @param {string | null} [finishReason]
 * @returns {string}
 */
export function whyFailed(error, finishReason) {
  if (finishReason === "step_limit") return "The answer needed more steps than are allowed.";
  return error?.message ?? "The answer failed.";
}

/**
 * @param {number} milliseconds
 * @returns {string}
 */
function duration(milliseconds) {
  const seconds = Math.ceil(milliseconds / 1000);
  if (seconds < 120) return seconds === 1 ? "a second" : `${seconds} seconds`;
  const minutes = Math.ceil(seconds / 60);
  return minutes < 120 ? `${minutes} minutes` : `${Math.ceil(minutes / 60)} hours`;
}

/**
 * @param {number} retryAfter
 * @returns {string}
 */
function again(retryAfter) {
  return retryAfter ? `Try again in ${duration(retryAfter)}.` : "Try again in a while.";
}

/**
 * @param {string | null} detail
 * @returns {string}
 */
function signedOut(detail) {
  return `${detail ?? "Your sign-in has ended."} ${RELOAD}`;
}
