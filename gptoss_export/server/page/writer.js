/**
 * Writes an answer while it arrives: paragraphs, fenced code blocks and inline code. Everything else stays as it is written.
 *
 * Text is only ever appended, so that a token costs the same however long the answer is. What more text could turn
 * into a fence or into inline code is held back until that is known.
 */
import { copyButton, make } from "./dom.js";

const FENCE = /^([ \t]*)(`{3,}|~{3,})([^`\n]*)\n/;
const PERHAPS_FENCE = /^[ \t]*(`{0,2}|~{0,2}|(`{3,}|~{3,})[^`\n]*)$/;
const FENCE_END = /^[ \t]*(`{3,}|~{3,})[ \t]*(\n|$)/;
const PERHAPS_FENCE_END = /^[ \t]*(`*|~*)[ \t]*$/;

export class Writer {
  /** @param {(text: string) => void} onProse is given what is written outside code blocks. */
  constructor(container, onProse = () => {}) {
    this.container = container;
    this.onProse = onProse;
    this.held = "";
    this.gap = ""; // line ends that are written only if the same block goes on
    this.atLineStart = true;
    this.block = null; // the open paragraph, or the <code> of the open code block
    this.fence = null; // of the open code block: its mark and its indentation
    this.inline = null; // open inline code: its mark and its element
    this.ended = false;
  }

  push(text) {
    this.held += text;
    while (this.held && this.step());
  }

  end() {
    this.ended = true;
    while (this.held && this.step());
    this.closeInline(false);
  }

  /** Consume a part of `held`. False: this needs more text. */
  step() {
    if (this.atLineStart) return this.fence ? this.beginCodeLine() : this.beginLine();
    const stop = this.held.search(this.fence ? /\n/ : /[\n`]/);
    if (stop !== 0) return this.write(this.take(stop < 0 ? this.held.length : stop));
    if (this.held[0] === "\n") {
      this.take(1);
      this.closeInline(false);
      this.gap += "\n";
      return (this.atLineStart = true);
    }
    return this.mark();
  }

  beginLine() {
    const fence = FENCE.exec(this.held);
    if (fence) return this.openCode(fence);
    const blank = /^[ \t]*\n/.exec(this.held);
    if (blank) {
      this.take(blank[0].length);
      this.block = null;
      return true;
    }
    if (PERHAPS_FENCE.test(this.held) && !this.ended) return false;
    this.atLineStart = false;
    return true;
  }

  beginCodeLine() {
    const end = FENCE_END.exec(this.held);
    if (end && end[1].startsWith(this.fence.mark) && (end[2] || this.ended)) {
      this.take(end[0].length);
      this.block = this.fence = null;
      this.gap = "";
      return true;
    }
    if (PERHAPS_FENCE_END.test(this.held) && !this.ended) return false;
    const indent = /^[ \t]*/.exec(this.held)[0].length;
    this.take(Math.min(indent, this.fence.indent));
    this.atLineStart = false;
    return true;
  }

  openCode([whole, indent, mark, info]) {
    this.take(whole.length);
    this.fence = { mark, indent: indent.length };
    this.block = make("code");
    this.gap = "";
    const code = this.block;
    const language = info.trim().split(/\s/)[0];
    const label = language ? `Code in ${language}` : "Code";
    const pre = make("pre", { tabIndex: 0, role: "group", "aria-label": label }, code);
    const caption = make("figcaption", {}, make("span", {}, language), copyButton(() => code.textContent, "this code"));
    this.container.append(make("figure", { className: "code" }, caption, pre));
    this.onProse(`\n${label}.\n`);
    return true;
  }

  /** A run of backticks: begins inline code, ends it, or is a part of it. */
  mark() {
    const run = /^`+/.exec(this.held)[0];
    if (run.length === this.held.length && !this.ended) return false;
    this.take(run.length);
    if (this.inline?.mark === run) this.closeInline(true);
    else if (this.inline) this.write(run);
    else {
      const element = make("code");
      this.write(""); // the paragraph, and the line end before
      this.block.append(element);
      this.inline = { mark: run, element };
    }
    return true;
  }

  /** Inline code ends with its line. Without its mark it was none. */
  closeInline(marked) {
    if (this.inline && !marked) this.inline.element.replaceWith(this.inline.mark + this.inline.element.textContent);
    this.inline = null;
  }

  write(text) {
    if (!this.block) {
      this.block = make("p");
      this.container.append(this.block);
      this.onProse("\n");
      this.gap = "";
    }
    const whole = this.gap + text;
    this.gap = "";
    const into = this.inline?.element ?? this.block;
    if (into.lastChild?.nodeType === Node.TEXT_NODE) into.lastChild.appendData(whole);
    else into.append(whole);
    if (!this.fence) this.onProse(whole);
    return true;
  }

  take(count) {
    const taken = this.held.slice(0, count);
    this.held = this.held.slice(count);
    return taken;
  }
}
