// A form for what a run asks of a person. A tool call can be approved, edited or rejected; any
// other question can be answered with text or JSON.

import { make } from "./dom.js";

/** @typedef {{ id: string, value: any }} Interrupt What a run asks: the data of `interrupt`. */
/** @typedef {{ name: string, args?: unknown }} ToolRequest A tool call that waits for approval. */

/**
 * Return a form for what a run has asked.
 *
 * @param {Interrupt[]} interrupts
 * @param {(answer: unknown) => void} onAnswer called once, with what the run is to be resumed with
 * @returns {HTMLFormElement}
 */
export function decisionForm(interrupts, onAnswer) {
  const form = make("form", { className: "decision" });
  const questions = interrupts.map(({ id, value }) => ({ id, answer: addQuestion(form, value) }));
  const send = make("button", { type: "submit", textContent: "Send decision" });
  const problem = make("p", { className: "problem", hidden: true });
  problem.setAttribute("role", "alert");
  form.append(problem, send);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    try {
      const answers = questions.map(({ id, answer }) => /** @type {const} */ ([id, answer()]));
      // Several questions are answered by their ids.
      onAnswer(answers.length === 1 ? answers[0][1] : Object.fromEntries(answers));
      send.disabled = true;
    } catch (error) {
      problem.textContent = error instanceof Error ? error.message : String(error);
      problem.hidden = false;
    }
  });
  return form;
}

/**
 * Add the controls for one question. Returns a function that reads the answer from them.
 *
 * @param {HTMLFormElement} form
 * @param {any} value LangChain's human-in-the-loop middleware sends `action_requests`
 * @returns {() => unknown}
 */
function addQuestion(form, value) {
  /** @type {unknown} */
  const requests = value?.action_requests;
  if (!Array.isArray(requests)) return addText(form, value);
  const answers = requests.map((request, index) =>
    addTool(form, request, value.review_configs?.[index]),
  );
  return () => ({ decisions: answers.map((answer) => answer()) });
}

/**
 * @param {HTMLFormElement} form
 * @param {ToolRequest} request
 * @param {{ allowed_decisions?: string[] }} [review]
 * @returns {() => unknown}
 */
function addTool(form, request, review) {
  const allowed = review?.allowed_decisions ?? ["approve", "edit", "reject"];
  const box = make("fieldset");
  const choice = make("select");
  for (const word of ["approve", "edit", "reject"].filter((word) => allowed.includes(word))) {
    choice.append(make("option", { value: word, textContent: word }));
  }
  const args = make("textarea", { rows: 3, value: JSON.stringify(request.args ?? {}, null, 2) });
  const reason = make("input", { type: "text" });
  const reasonLabel = labelled("Reason", reason);
  box.append(
    make("legend", { textContent: request.name }),
    labelled("Decision", choice),
    labelled("Arguments", args),
    reasonLabel,
  );
  form.append(box);
  update();
  choice.addEventListener("change", update);
  return () => {
    if (choice.value === "approve") return { type: "approve" };
    if (choice.value === "reject") return { type: "reject", message: reason.value };
    try {
      return { type: "edit", edited_action: { name: request.name, args: JSON.parse(args.value) } };
    } catch {
      throw new Error("The arguments are not JSON.");
    }
  };

  function update() {
    args.readOnly = choice.value !== "edit";
    reasonLabel.hidden = choice.value !== "reject";
  }
}

/**
 * @param {HTMLFormElement} form
 * @param {unknown} value
 * @returns {() => unknown}
 */
function addText(form, value) {
  const text = make("textarea", { rows: 2 });
  form.append(
    make("p", { className: "asked", textContent: questionText(value) }),
    labelled("Your answer", text),
  );
  return () => {
    try {
      return JSON.parse(text.value);
    } catch {
      return text.value;
    }
  };
}

/**
 * @param {unknown} value
 * @returns {string}
 */
function questionText(value) {
  if (typeof value === "string") return value;
  if (value === null) return "The run is paused. Send anything to continue it.";
  return JSON.stringify(value, null, 2);
}

/**
 * @param {string} words
 * @param {HTMLElement} control
 * @returns {HTMLLabelElement}
 */
function labelled(words, control) {
  const label = make("label");
  label.append(make("span", { textContent: words }), control);
  return label;
}
