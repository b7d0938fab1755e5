// What a run asks of a person, with plain controls: approve, edit or reject what a tool would do,
// or say anything at all. What comes from outside is text, and never HTML.

/**
 * A form for what a run has asked (`interrupts`: each with `id` and `value`).
 *
 * onAnswer  called once with what the run is to be resumed with
 */
export function decisions(interrupts, onAnswer) {
  const form = make("form", { className: "decision" });
  const asked = interrupts.map(({ id, value }) => ({ id, ...one(form, value) }));
  const send = make("button", { type: "submit", textContent: "Send decision" });
  const problem = make("p", { className: "problem", hidden: true });
  problem.setAttribute("role", "alert");
  form.append(problem, send);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    try {
      const answers = asked.map(({ id, answer }) => [id, answer()]);
      // Several questions are answered by their ids.
      onAnswer(answers.length === 1 ? answers[0][1] : Object.fromEntries(answers));
      send.disabled = true;
    } catch (error) {
      problem.textContent = error.message;
      problem.hidden = false;
    }
  });
  return form;
}

// The shape that LangChain's human-in-the-loop middleware asks in; or else anything.
function one(form, value) {
  const requests = value?.action_requests;
  if (!Array.isArray(requests)) return { answer: free(form, value) };
  const answers = requests.map((request, place) => tool(form, request, value.review_configs?.[place]));
  return { answer: () => ({ decisions: answers.map((answer) => answer()) }) };
}

function tool(form, request, review) {
  const allowed = review?.allowed_decisions ?? ["approve", "edit", "reject"];
  const box = make("fieldset");
  const choice = make("select");
  for (const word of ["approve", "edit", "reject"].filter((word) => allowed.includes(word))) {
    choice.append(make("option", { value: word, textContent: word }));
  }
  const args = make("textarea", { rows: 3, value: JSON.stringify(request.args ?? {}, null, 2) });
  const reason = make("input", { type: "text" });
  box.append(
    make("legend", { textContent: request.name }),
    labelled("Decision", choice),
    labelled("Arguments", args),
    labelled("Reason", reason),
  );
  form.append(box);
  show();
  choice.addEventListener("change", show);
  return () => {
    if (choice.value === "approve") return { type: "approve" };
    if (choice.value === "reject") return { type: "reject", message: reason.value };
    try {
      return { type: "edit", edited_action: { name: request.name, args: JSON.parse(args.value) } };
    } catch {
      throw new Error("The arguments are not JSON.");
    }
  };

  function show() {
    args.readOnly = choice.value !== "edit";
    reason.parentElement.hidden = choice.value !== "reject";
  }
}

function free(form, value) {
  const text = make("textarea", { rows: 2 });
  form.append(
    make("p", { className: "asked", textContent: plain(value) }),
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

function plain(value) {
  if (typeof value === "string") return value;
  return value === null ? "The run waits for you to let it go on." : JSON.stringify(value, null, 2);
}

function labelled(words, control) {
  const label = make("label");
  label.append(make("span", { textContent: words }), control);
  return label;
}

function make(name, properties = {}) {
  return Object.assign(document.createElement(name), properties);
}
