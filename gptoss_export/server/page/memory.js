/**
 * The conversation: how it is kept for a reload of this tab, and how it is sent.
 *
 * A turn is {role: "user", content} or {role: "assistant", content, reasoning, calls: [{id, name, arguments, result?}],
 * thought?: seconds of reasoning, note?: why it ended early, error?: message, figures?, open?: still streaming}.
 */

const PLACE = "gptoss-export conversation";
const VERSION = 1;

export function emptyState() {
  const settings = { effort: "medium", instructions: "", temperature: "", tools: "" };
  return { version: VERSION, turns: [], settings, draft: "" };
}

/** What was kept, or an empty conversation where nothing was, or where another version of this page kept it. */
export function restored() {
  try {
    const state = JSON.parse(sessionStorage.getItem(PLACE));
    if (state?.version === VERSION) return state;
  } catch {
    // Not JSON: not ours.
  }
  return emptyState();
}

/** False: the browser has no room for it. */
export function keep(state) {
  try {
    sessionStorage.setItem(PLACE, JSON.stringify(state));
    return true;
  } catch {
    return false;
  }
}

/** The body of a request for the next answer. */
export function requestBody({ turns, settings }) {
  const body = { messages: messages(turns, settings.instructions.trim()), reasoning_effort: settings.effort };
  if (settings.temperature !== "") body.temperature = Number(settings.temperature);
  if (settings.tools.trim()) body.tools = parseTools(settings.tools);
  return body;
}

function messages(turns, instructions) {
  const all = instructions ? [{ role: "system", content: instructions }] : [];
  for (const turn of turns) {
    if (turn.role === "user") {
      all.push({ role: "user", content: turn.content });
      continue;
    }
    // The API refuses a call without a result. So a call that the user passed over is left out.
    const calls = turn.calls.filter((call) => call.result !== undefined);
    if (!turn.content && !calls.length) continue;
    const message = { role: "assistant", content: turn.content || null };
    if (calls.length) {
      message.tool_calls = calls.map(({ id, name, arguments: given }) => ({
        id, type: "function", function: { name, arguments: given },
      }));
      // The model goes on with its own reasoning after a tool's result.
      if (turn.reasoning) message.reasoning_content = turn.reasoning;
    }
    all.push(message, ...calls.map((call) => ({ role: "tool", tool_call_id: call.id, content: call.result })));
  }
  return all;
}

/** The tools of a JSON text, each in the API's form. Throws Error with what is wrong. */
export function parseTools(text) {
  const tools = JSON.parse(text);
  if (!Array.isArray(tools)) throw new Error("expected a JSON list: [ ... ]");
  return tools.map((tool, index) => {
    const whole = tool?.type === "function" ? tool : { type: "function", function: tool };
    if (typeof whole.function?.name !== "string") throw new Error(`tool ${index + 1} has no "name"`);
    return whole;
  });
}
