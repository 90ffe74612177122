/** What each turn of the conversation looks like. `actions` is what its buttons do: edit(turn), retry(turn), results(turn). */
import { button, copyButton, make } from "./dom.js";
import { Writer } from "./writer.js";

export function userView(turn, actions) {
  return make(
    "article",
    { className: "turn user" },
    make("h2", { className: "spoken" }, "You"),
    make("p", { className: "said" }, turn.content),
    make(
      "div",
      { className: "actions" },
      button("Edit", () => actions.edit(turn), "quiet edit"),
    ),
  );
}

/** An answer. What is added to it is added to its turn and shown. */
export class AnswerView {
  constructor(turn, actions, onProse) {
    this.turn = turn;
    this.actions = actions;
    this.calls = [];
    this.body = make("div", { className: "body" });
    this.article = make("article", { className: "turn answer", "aria-busy": "true" });
    this.article.append(make("h2", { className: "spoken" }, "Answer"), this.body);
    this.writer = new Writer(this.body, onProse);
  }

  /** A turn that was kept, as it was. */
  static restored(turn, actions) {
    const view = new AnswerView(turn, actions);
    if (turn.reasoning) view.showReasoning(turn.reasoning);
    if (turn.content) view.writer.push(turn.content);
    turn.calls.forEach((call, index) => view.showCall(index, call.arguments));
    view.finish();
    return view;
  }

  addReasoning(text) {
    this.turn.reasoning += text;
    this.showReasoning(text);
  }

  addContent(text) {
    this.foldReasoning();
    this.turn.content += text;
    this.writer.push(text);
  }

  /** @param delta one entry of a chunk's `tool_calls` */
  addCall({ index, id, function: part }) {
    this.foldReasoning();
    this.turn.calls[index] ??= { id, name: "", arguments: "" };
    const call = this.turn.calls[index];
    call.name += part?.name ?? "";
    call.arguments += part?.arguments ?? "";
    this.showCall(index, part?.arguments ?? "");
  }

  showReasoning(text) {
    if (!this.reasoning) {
      this.summary = make("summary", { onclick: () => (this.touched = true) }, "Thinking");
      this.reasoning = make("details", { className: "reasoning", open: true }, this.summary);
      const inner = make("div");
      this.reasoning.append(inner);
      this.thoughts = new Writer(inner);
      this.body.before(this.reasoning);
      this.began = performance.now();
    }
    this.thoughts.push(text);
  }

  /** The answer begins: the reasoning folds, unless the reader has folded or opened it. */
  foldReasoning() {
    if (!this.reasoning || this.folded) return;
    this.folded = true;
    this.thoughts.end();
    this.turn.thought ??= (performance.now() - this.began) / 1000;
    const seconds = Math.round(this.turn.thought);
    this.summary.textContent = seconds ? `Thought for ${seconds} s` : "Thought for a moment";
    if (!this.touched) this.reasoning.open = false;
  }

  showCall(index, text) {
    if (!this.calls[index]) {
      const name = make("code");
      const given = make("pre", { tabIndex: 0, role: "group", "aria-label": "Arguments" });
      const section = make("section", { className: "call", "aria-label": "Tool call" });
      section.append(make("h3", {}, "Tool call ", name), given);
      this.calls[index] = { section, name, given };
      this.article.append(section);
    }
    this.calls[index].name.textContent = this.turn.calls[index].name;
    this.calls[index].given.append(text);
  }

  /** Nothing more comes. */
  finish() {
    const { turn } = this;
    this.foldReasoning();
    this.writer.end();
    this.article.removeAttribute("aria-busy");
    this.calls.forEach(({ given, section }, index) => {
      given.textContent = pretty(turn.calls[index].arguments);
      if (turn.calls[index].result !== undefined) section.append(...resultOf(turn.calls[index].result));
    });
    const waiting = turn.calls.filter((call) => call.result === undefined);
    if (waiting.length && !turn.note && !turn.error) this.askResults(waiting);
    if (turn.note) this.article.append(make("p", { className: "note" }, turn.note));
    if (turn.error) this.showError();
    else this.article.append(this.actionRow());
  }

  actionRow() {
    const row = make("div", { className: "actions" });
    if (this.turn.content) row.append(copyButton(() => this.turn.content, "this answer"));
    row.append(button("Try again", () => this.actions.retry(this.turn), "quiet retry"));
    return row;
  }

  showError() {
    const retry = button("Try again", () => this.actions.retry(this.turn), "retry");
    this.article.append(make("div", { className: "error" }, make("p", { role: "alert" }, this.turn.error), retry));
  }

  /** Boxes in which the user writes what the tools gave. */
  askResults(waiting) {
    const form = make("form", { className: "results" });
    const boxes = waiting.map((call) => {
      const box = make("textarea", { rows: 2, spellcheck: false, autocomplete: "off", className: "mono" });
      form.append(make("label", {}, `Result of ${call.name}`, box));
      return box;
    });
    form.append(make("button", { className: "main" }, boxes.length > 1 ? "Send results" : "Send result"));
    form.onsubmit = (event) => {
      event.preventDefault();
      waiting.forEach((call, index) => (call.result = boxes[index].value));
      form.remove();
      waiting.forEach((call) => this.calls[this.turn.calls.indexOf(call)].section.append(...resultOf(call.result)));
      this.actions.results();
    };
    this.article.append(form);
  }
}

function resultOf(result) {
  const shown = make("pre", { tabIndex: 0, role: "group", "aria-label": "Result" }, pretty(result));
  return [make("h3", {}, "Result"), shown];
}

/** JSON with indentation. Other text, and numbers that JavaScript would round, stay as they are. */
function pretty(text) {
  if (/\d{16}/.test(text)) return text;
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
