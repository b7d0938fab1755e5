// What a person is told when the server refuses something, in plain sentences, and the telling.

const RELOAD = "Reload this page to sign in again.";

/** Why a question was not taken: of a `Refusal`, for the person whose question is kept. */
export function whyUnasked({ status, detail, retryAfter }) {
  const when = retryAfter ? again(retryAfter) : "Your question is kept here: try again.";
  if (status === 401) return signedOut(detail);
  if (detail) return retryAfter ? `${detail} ${when}` : detail;
  if (status === 0) return `The server cannot be reached. ${when}`;
  if (status === 403) return "You may not ask questions here.";
  if (status === 429) return `Too many questions at once. ${when}`;
  if (status === 503) return `The service is busy. ${when}`;
  return `The server could not take the question (status ${status}). ${when}`;
}

/** Why an answer is not read on: of the second argument of `onStatus` with its last word. */
export function whyUnread({ status, detail, retryAfter }) {
  if (status === 401) return signedOut(detail);
  if (!passes(status)) return detail ?? "This answer may no longer be read.";
  return `${detail ?? "The rest of the answer cannot be read right now."} ${again(retryAfter)}`;
}

/** Whether what was refused may well be granted later. */
export function passes(status) {
  return status >= 500 || [408, 425, 429].includes(status);
}

/** A wait in ms as people say it. */
export function span(milliseconds) {
  const seconds = Math.ceil(milliseconds / 1000);
  if (seconds < 120) return seconds === 1 ? "a second" : `${seconds} seconds`;
  const minutes = Math.ceil(seconds / 60);
  return minutes < 120 ? `${minutes} minutes` : `${Math.ceil(minutes / 60)} hours`;
}

/** Shows an element with these words in it; without words, hides it. */
export function tell(element, words) {
  element.textContent = words ?? "";
  element.hidden = !words;
}

function again(retryAfter) {
  return retryAfter ? `Try again in ${span(retryAfter)}.` : "Try again in a while.";
}

function signedOut(detail) {
  return `${detail ?? "Your sign-in has ended."} ${RELOAD}`;
}
