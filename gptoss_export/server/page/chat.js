/** A chat with the server of this page: what the user does, and what happens then. */
import { ApiError, servedModel, streamedChat } from "./api.js";
import { askKey, settingsDialog } from "./dialogs.js";
import { answerLine, Stopwatch, watchServer } from "./figures.js";
import { emptyState, keep, requestBody, restored } from "./memory.js";
import { Announcer, fitToViewport, Follower, growWithText } from "./screen.js";
import { AnswerView, userView } from "./turns.js";

const byId = (id) => document.getElementById(id);
const message = byId("message");
const turnList = byId("turns"); // one child for each turn of the conversation
const announcer = new Announcer(byId("spoken"));
const follower = new Follower(byId("conversation"), turnList, byId("latest"));
const actions = { edit, retry, results: () => answerAfterClick() };

let state = restored();
let stop = null; // stops the answer that streams
let edited = null; // the user's turn that the next message replaces
let aside = ""; // what stood in the message box before that
let cleared = null; // the conversation before "New conversation"
let model = null;
let leaving = false; // the tab goes to another page, or loads this one again

// ---- the conversation

function send() {
  const content = message.value.trim();
  if (!content || stop) return;
  if (edited) cutTurns(state.turns.indexOf(edited));
  edited = null;
  message.value = "";
  fitMessage();
  const turn = { role: "user", content };
  state.turns.push(turn);
  turnList.append(userView(turn, actions));
  answer();
}

async function answer() {
  const turn = { role: "assistant", content: "", reasoning: "", calls: [], open: true };
  const watch = new Stopwatch();
  const stopper = new AbortController();
  const view = new AnswerView(turn, actions, (text) => announcer.push(text));
  const request = requestBody(state);
  let usage = null;
  let refused = false;
  stop = () => stopper.abort();
  state.turns.push(turn);
  turnList.append(view.article);
  show();
  follower.follow();
  try {
    await findModel();
    for await (const chunk of streamedChat({ model, ...request }, stopper.signal)) {
      usage = chunk.usage ?? usage;
      if (chunk.choices?.length) take(chunk.choices[0], view, watch);
    }
  } catch (error) {
    if (stopper.signal.aborted) turn.note = "Stopped.";
    else turn.error = error instanceof ApiError ? error.message : `This page has a bug: ${error.message}`;
    refused = error.status === 401;
  }
  delete turn.open;
  turn.figures = watch.figures(usage?.completion_tokens);
  view.finish();
  announcer.end();
  if (!state.turns.includes(turn)) return; // a new conversation began meanwhile
  announcer.say(turn.note ?? "");
  stop = null;
  show();
  showServer();
  if (refused && (await askKey())) retry(turn);
}

function take({ delta = {}, finish_reason: finish }, view, watch) {
  const reasoning = delta.reasoning_content ?? delta.reasoning;
  if (reasoning || delta.content || delta.tool_calls?.length) watch.token();
  if (reasoning) view.addReasoning(reasoning);
  if (delta.content) view.addContent(delta.content);
  for (const call of delta.tool_calls ?? []) view.addCall(call);
  if (finish === "length") view.turn.note = "The answer ends here because it reached the greatest number of tokens.";
}

/** What had the focus is gone or will be: the stop button takes it. */
function answerAfterClick() {
  byId("send").focus({ preventScroll: true });
  answer();
}

function retry(turn) {
  if (edited) cancelEdit();
  cutTurns(state.turns.indexOf(turn));
  answerAfterClick();
}

function edit(turn) {
  if (!edited) aside = message.value;
  edited = turn;
  message.value = turn.content;
  fitMessage();
  show();
  message.focus();
}

function cancelEdit() {
  edited = null;
  message.value = aside;
  fitMessage();
  show();
  message.focus();
}

/** Forget this turn and those after it. */
function cutTurns(index) {
  state.turns.length = index;
  while (turnList.childElementCount > index) turnList.lastElementChild.remove();
}

function newConversation() {
  stop?.();
  stop = null;
  edited = null;
  if (state.turns.length) cleared = state.turns;
  state = { ...state, turns: [] };
  showTurns();
  message.focus();
}

function bringBack() {
  state = { ...state, turns: cleared };
  cleared = null;
  showTurns();
  message.focus();
}

// ---- what is shown and kept

function showTurns() {
  for (const turn of state.turns.filter(({ open }) => open)) {
    delete turn.open;
    turn.note = "Interrupted.";
  }
  const views = state.turns.map((turn) =>
    turn.role === "user" ? userView(turn, actions) : AnswerView.restored(turn, actions).article,
  );
  turnList.replaceChildren(...views);
  show();
  follower.follow();
}

function show() {
  document.body.classList.toggle("busy", stop !== null);
  byId("send").textContent = stop ? "Stop" : "Send";
  byId("empty").hidden = state.turns.length > 0;
  byId("undo").hidden = cleared === null;
  byId("editing").hidden = edited === null;
  byId("answer-figures").textContent = answerLine(state.turns.at(-1)?.figures);
  save();
}

function save() {
  if (leaving) return; // the browser breaks the answer off now: kept is what was before
  state.draft = edited ? aside : message.value;
  if (!keep(state)) byId("answer-figures").textContent = "This conversation is too long to be kept for a reload.";
}

async function findModel() {
  model ??= await servedModel();
  byId("model").textContent = document.title = model;
}

/** Show which model is there, and ask for the key at once if the server wants one. */
async function begin() {
  try {
    await findModel();
  } catch (error) {
    if (error.status === 401 && (await askKey())) await begin();
  }
}

// ---- what the user does

const fitMessage = growWithText(message);
const showServer = watchServer(byId("server-figures"), () => stop !== null);
// On a telephone there is no Shift+Enter: there Enter begins a new line, and the button sends.
const touch = matchMedia("(hover: none) and (pointer: coarse)");

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (stop) stop();
  else send();
});

message.addEventListener("keydown", (event) => {
  if (event.isComposing) return;
  if (event.key === "Enter" && !event.shiftKey && (!touch.matches || event.ctrlKey)) {
    event.preventDefault();
    send();
  }
  const last = state.turns.findLast(({ role }) => role === "user");
  if (event.key === "ArrowUp" && !message.value && last && !stop) {
    event.preventDefault();
    edit(last);
  }
});

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing || document.querySelector("dialog[open]")) return;
  if (stop) stop();
  else if (edited) cancelEdit();
});

byId("new").addEventListener("click", newConversation);
byId("undo").addEventListener("click", bringBack);
byId("cancel-edit").addEventListener("click", cancelEdit);
byId("effort").addEventListener("change", (event) => {
  state.settings.effort = event.target.value;
  save();
});
addEventListener("pagehide", () => {
  save();
  leaving = true;
});
addEventListener("pageshow", () => (leaving = false));
document.addEventListener("visibilitychange", save);

settingsDialog(() => state.settings, save);
fitToViewport();
message.value = state.draft;
fitMessage();
byId("effort").value = state.settings.effort;
showTurns();
if (!touch.matches) message.focus(); // on a telephone that would open the keyboard
begin();
