/** What the whole screen does: following an answer, speaking it, and the size of the page and of its message box. */

/** Keeps the end of the conversation in view, until the reader scrolls up. */
export class Follower {
  constructor(scroller, content, toEnd) {
    this.scroller = scroller;
    this.toEnd = toEnd;
    this.following = true;
    this.last = 0;
    scroller.addEventListener("scroll", () => this.scrolled(), { passive: true });
    toEnd.addEventListener("click", () => {
      scroller.focus(); // the button goes away
      this.follow();
    });
    const observer = new ResizeObserver(() => this.grown());
    observer.observe(content);
    observer.observe(scroller);
  }

  follow() {
    this.following = true;
    this.grown();
  }

  get below() {
    return this.scroller.scrollHeight - this.scroller.scrollTop - this.scroller.clientHeight;
  }

  scrolled() {
    const top = this.scroller.scrollTop;
    // Any way up is the reader's: even a small one, or the first of a smooth scroll, ends the following.
    if (this.below <= 1) this.following = true;
    else if (top < this.last) this.following = false;
    else if (this.below < 24) this.following = true;
    this.last = top;
    this.show();
  }

  grown() {
    if (this.following) {
      this.scroller.scrollTop = this.scroller.scrollHeight;
      this.last = this.scroller.scrollTop;
    }
    this.show();
  }

  show() {
    this.toEnd.hidden = this.following || this.below < 24;
  }
}

const LONGEST_SENTENCE = 1000; // letters; what has no sentence is spoken in such parts

/** Gives a screen reader whole sentences, not tokens. */
export class Announcer {
  constructor(region) {
    this.region = region;
    this.text = "";
  }

  push(text) {
    this.text += text;
    const end = /^[^]*(?:[.!?…:;]["'”’)\]]*\s|[。！？]|\n)/.exec(this.text);
    if (end) this.say(this.take(end[0].length));
    else if (this.text.length > LONGEST_SENTENCE) this.end();
  }

  end() {
    this.say(this.take(this.text.length));
  }

  say(sentence) {
    if (!sentence.trim()) return;
    const line = document.createElement("p");
    line.textContent = sentence.trim();
    this.region.append(line);
    while (this.region.childElementCount > 20) this.region.firstElementChild.remove();
  }

  take(count) {
    const taken = this.text.slice(0, count);
    this.text = this.text.slice(count);
    return taken;
  }
}

/** Where the keyboard of a telephone covers the page, the page gets the height that is left. */
export function fitToViewport() {
  const view = window.visualViewport;
  view?.addEventListener("resize", () => {
    if (view.scale === 1) document.documentElement.style.setProperty("--height", `${view.height}px`);
  });
}

/** Let a message box grow with its text, where the browser does not do it by itself. */
export function growWithText(area) {
  if (CSS.supports("field-sizing", "content")) return () => {};
  const fit = () => {
    area.style.height = "auto";
    area.style.height = `${area.scrollHeight}px`;
  };
  area.addEventListener("input", fit);
  return fit;
}
