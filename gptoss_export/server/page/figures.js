/** The figures in the footer: of the last answer, and of the server. */
import { metricsText } from "./api.js";

const RUNNING = "gptoss_requests_running";
const WAITING = "gptoss_requests_waiting";
const PAGES_USED = "gptoss_kv_pages_used";
const PAGES = "gptoss_kv_pages";

/** Times an answer. Seconds. */
export class Stopwatch {
  constructor() {
    this.begin = performance.now();
    this.first = this.last = null;
  }

  token() {
    this.last = performance.now();
    this.first ??= this.last;
  }

  /** @param tokens how many the server says it made, where it said so */
  figures(tokens) {
    if (this.first === null) return null;
    const seconds = (this.last - this.first) / 1000;
    const rate = tokens > 1 && seconds > 0 ? (tokens - 1) / seconds : null;
    return { firstToken: (this.first - this.begin) / 1000, tokens: tokens ?? null, rate };
  }
}

export function answerLine(figures) {
  if (!figures) return "";
  const parts = [`first token ${figures.firstToken.toFixed(2)} s`];
  if (figures.tokens !== null) parts.push(`${figures.tokens} tokens`);
  if (figures.rate !== null) parts.push(`${figures.rate.toFixed(figures.rate < 10 ? 1 : 0)} tokens/s`);
  return parts.join(" · ");
}

/** @param text Prometheus' text format */
export function serverLine(text) {
  const sums = new Map();
  for (const line of text.split("\n")) {
    const sample = /^([a-zA-Z_:][\w:]*)(?:\{.*\})?\s+(\S+)/.exec(line);
    if (sample) sums.set(sample[1], (sums.get(sample[1]) ?? 0) + Number(sample[2]));
  }
  const parts = [];
  if (sums.has(RUNNING)) parts.push(`${sums.get(RUNNING)} running`);
  if (sums.has(WAITING)) parts.push(`${sums.get(WAITING)} waiting`);
  if (sums.get(PAGES)) parts.push(`${sums.get(PAGES_USED)} of ${sums.get(PAGES)} KV pages`);
  return parts.join(" · ");
}

/** Show the server's figures in `element`: often while `busy()`, rarely otherwise, never while nobody looks. */
export function watchServer(element, busy) {
  let ticks = 0;
  const show = async () => {
    element.textContent = await metricsText().then(serverLine, (error) => (error.status ? "" : "server not reachable"));
  };
  setInterval(() => {
    ticks += 1;
    if (!document.hidden && (busy() || ticks % 10 === 0)) show();
  }, 1000);
  show();
  return show;
}
