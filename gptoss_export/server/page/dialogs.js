/** The two dialogs: settings, and the API key. */
import { apiKey } from "./api.js";
import { parseTools } from "./memory.js";

const byId = (id) => document.getElementById(id);

/** Let the user change `settings`, and call `changed` after a change. */
export function settingsDialog(settings, changed) {
  const dialog = byId("settings");
  const fields = ["instructions", "temperature", "tools"];
  byId("open-settings").onclick = () => {
    for (const name of fields) byId(name).value = settings()[name];
    problem("");
    dialog.showModal();
  };
  byId("close-settings").onclick = () => dialog.close();
  byId("tools").oninput = () => problem("");
  dialog.querySelector("form").onsubmit = (event) => {
    try {
      if (byId("tools").value.trim()) parseTools(byId("tools").value);
    } catch (error) {
      event.preventDefault();
      problem(`These are not tools: ${error.message}`);
      byId("tools").focus();
      return;
    }
    for (const name of fields) settings()[name] = byId(name).value;
    changed();
  };

  function problem(text) {
    byId("tools-problem").textContent = text;
    byId("tools").setAttribute("aria-invalid", String(Boolean(text)));
  }
}

/** Ask for the API key. @returns whether the user gave one, a promise */
export function askKey() {
  const dialog = byId("key-dialog");
  const given = () => byId("key").value.trim();
  problem(apiKey.get() ? "The server refused this key." : "This server wants an API key.", false);
  byId("key").value = "";
  byId("close-key").onclick = () => dialog.close();
  dialog.returnValue = "";
  dialog.querySelector("form").onsubmit = (event) => {
    if (/^[!-~]+$/.test(given())) {
      dialog.returnValue = "given";
      return;
    }
    event.preventDefault(); // a header cannot hold it
    problem("A key has letters, digits and signs of ASCII, and no spaces.", true);
    byId("key").focus();
  };
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => {
      const key = given();
      byId("key").value = "";
      const good = dialog.returnValue === "given";
      if (good) apiKey.set(key);
      resolve(good);
    };
  });

  function problem(text, wrong) {
    byId("key-problem").textContent = text;
    byId("key").setAttribute("aria-invalid", String(wrong));
  }
}
