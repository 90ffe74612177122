/** Making elements, always from text and never from markup. */

export function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "role" || key.startsWith("aria-")) element.setAttribute(key, value);
    else element[key] = value;
  }
  element.append(...children);
  return element;
}

export function button(label, onclick, className = "quiet") {
  return make("button", { type: "button", className, onclick }, label);
}

/** A button that copies `text()` and says so for a moment. */
export function copyButton(text, what) {
  const copy = button("Copy", async () => {
    copy.textContent = (await copied(text())) ? "Copied" : "Cannot copy";
    setTimeout(() => (copy.textContent = "Copy"), 1500);
  });
  copy.setAttribute("aria-label", `Copy ${what}`);
  return copy;
}

/** Browsers have a clipboard only in pages from this machine or over https. Elsewhere a selection is copied. */
async function copied(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text).then(() => true, () => false);
  const focused = document.activeElement;
  const area = make("textarea", { value: text, className: "spoken", readOnly: true });
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return done;
}
