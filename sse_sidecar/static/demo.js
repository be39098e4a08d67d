/* The demo page: two streams, what state they are in, and what breaks them. */

import { ResumableEventSource } from "/.well-known/sse-sidecar/client.js";

const STRIP_MS = 20_000;
const TICKS_SHOWN = 60;
const HOLE = "…";

const WORDS = {
  connecting: "Connecting…",
  live: "Live",
  waiting: "Waiting…",
  offline: "Offline",
  complete: "Complete",
};
const NOTES = {
  waiting: "Connected, but the service is silent.",
  reconnecting: "The connection broke. What the sidecar gets meanwhile is sent later.",
  offline: "This device has no network. The stream goes on when it has.",
};
const BROKEN = {
  cut: (seconds) => `The network is cut for ${seconds} s.`,
  stall: (seconds) => `The service is silent for ${seconds} s.`,
  restart: (seconds) => `The service is down for ${seconds} s.`,
};

/** A stream and the card that shows it. What was shown is kept across a reload, as the client keeps its place. */
class Card {
  constructor(name, { url, options = {}, take, draw, notes }) {
    this.name = name;
    this.url = url;
    this.options = { ...options, resumeKey: `demo:${name}:stream` };
    this.take = take;
    this.drawEvents = draw;
    this.notes = { ...NOTES, ...notes };
    this.root = document.getElementById(name);
    this.strip = new Strip(this.find("canvas"), this);
    this.find("[data-do=stop]").addEventListener("click", () => this.stop());
    this.find("[data-do=again]").addEventListener("click", () => this.again());
    this.shown = { ...nothing(), ...JSON.parse(sessionStorage.getItem(`demo:${name}`)) };
    this.before = { ...this.shown.counts };
  }

  /** Opens the stream, or goes on with the one that was open when the page was left. */
  open() {
    this.draw();
    if (this.isOver()) this.tell(this.shown.status, this.shown.words);
    else this.connect();
  }

  connect() {
    this.source = new ResumableEventSource(this.url, this.options);
    this.source.addEventListener("status", ({ detail }) => this.onStatus(detail));
    this.source.addEventListener("message", (event) => this.onEvent(event));
    this.source.addEventListener("gap", ({ detail }) => this.onHole(detail.lost));
    this.source.addEventListener("reset", () => this.onHole(null));
    this.onStatus();
  }

  again() {
    this.source?.close();
    sessionStorage.removeItem(`sse-sidecar:${this.options.resumeKey}`);
    const { arrivals, states } = this.shown;
    this.shown = { ...nothing(), arrivals, states };
    this.before = { ...this.shown.counts };
    this.source = null;
    this.open();
  }

  async stop() {
    this.shown.stopped = true;
    await this.source.stop();
  }

  isOver() {
    return ["complete", "failed"].includes(this.shown.status);
  }

  // What the client tells

  onEvent({ data }) {
    const now = Date.now();
    const last = this.shown.arrivals.at(-1);
    if (last && now - last.at < 100) last.number += 1;
    else this.shown.arrivals.push({ at: now, number: 1 });
    this.take(this.shown, data);
    this.draw();
  }

  onHole(lost) {
    this.shown.hole = lost === null ? "The service began anew: what it left out, no one knows." : `${lost} events are missing.`;
    this.shown.unknown ||= lost === null;
    this.take(this.shown, HOLE);
    this.draw();
  }

  onStatus(detail = {}) {
    const status = this.source.status;
    clearInterval(this.counting);
    if (status === "reconnecting") this.countDown(detail);
    else if (status === "failed") this.tell(status, `Failed: ${reason(detail.problem)}`);
    else if (status === "complete" && this.shown.stopped) this.tell(status, "Stopped");
    else this.tell(status, WORDS[status]);
  }

  countDown({ attempt, delay = 0 }) {
    const due = Date.now() + delay;
    const words = () => {
      const left = Math.round((due - Date.now()) / 1000);
      return `Reconnecting ${left > 0 ? `in ${left} s` : "now"} (attempt ${attempt})`;
    };
    this.counting = setInterval(() => write(this.find(".pill"), words()), 200);
    this.tell("reconnecting", words());
  }

  // What the page shows

  /** A new state: shown, said once to those who listen, and marked in the strip. */
  tell(status, words) {
    Object.assign(this.shown, { status, words });
    if (this.shown.states.at(-1)?.status !== status) this.shown.states.push({ at: Date.now(), status });
    this.root.dataset.state = status;
    write(this.find(".pill"), words);
    write(this.find("[role=status]"), `${this.find("h2").textContent}: ${words}`);
    this.find("[data-do=stop]").disabled = this.isOver();
    this.draw();
  }

  draw() {
    const { status, stopped, hole } = this.shown;
    const over = stopped && status === "complete" ? "Stopped: the service's work is ended as well." : this.notes[status];
    write(this.find(".note"), over || hole);
    this.drawEvents(this.shown, this.root);
    this.drawCounts();
    this.keep();
  }

  /** The client counts since the page was loaded; what was before is kept here. */
  drawCounts() {
    for (const name of Object.keys(this.before)) {
      const count = this.before[name] + (this.source?.stats[name] ?? 0);
      this.shown.counts[name] = count;
      const unknown = name === "lost" && this.shown.unknown;
      write(this.find(`[data-count=${name}]`), unknown ? `${count || ""}?` : count);
    }
  }

  keep() {
    const since = Date.now() - STRIP_MS;
    const { arrivals, states } = this.shown;
    while (arrivals.length && arrivals[0].at < since) arrivals.shift();
    while (states.length > 1 && states[1].at < since) states.shift();
    sessionStorage.setItem(`demo:${this.name}`, JSON.stringify(this.shown));
  }

  find(selector) {
    return this.root.querySelector(selector);
  }
}

function nothing() {
  const counts = { events: 0, duplicates: 0, reconnects: 0, lost: 0 };
  return { text: "", ticks: [], arrivals: [], states: [], counts, hole: "", unknown: false, status: "", words: "", stopped: false };
}

/** Arrivals over time, as bars that move to the left; where there was no live connection, the ground says so. */
class Strip {
  constructor(canvas, card) {
    this.canvas = canvas;
    this.card = card;
    this.pen = canvas.getContext("2d");
    this.style = getComputedStyle(canvas); // follows light and dark by itself
    new ResizeObserver(() => this.fit()).observe(canvas);
  }

  fit() {
    const { clientWidth, clientHeight } = this.canvas;
    this.canvas.width = clientWidth * devicePixelRatio;
    this.canvas.height = clientHeight * devicePixelRatio;
    this.draw();
  }

  color(name) {
    return this.style.getPropertyValue(`--${name}`);
  }

  draw() {
    const { width, height } = this.canvas;
    const now = Date.now();
    const x = (at) => Math.max(0, width * (1 - (now - at) / STRIP_MS));
    this.pen.clearRect(0, 0, width, height);
    this.drawStates(x, width, height);
    this.drawArrivals(x, height);
  }

  drawStates(x, width, height) {
    const { states } = this.card.shown;
    states.forEach(({ at, status }, index) => {
      if (status === "live" || status === "complete") return;
      const end = states[index + 1] ? x(states[index + 1].at) : width;
      this.pen.fillStyle = this.color("trouble-ground");
      this.pen.fillRect(x(at), 0, end - x(at), height);
    });
  }

  /** One event is a low bar; many that come at once, as after a reconnect, are a high one. */
  drawArrivals(x, height) {
    this.pen.fillStyle = this.color("accent");
    const bar = 2 * devicePixelRatio;
    for (const { at, number } of this.card.shown.arrivals) {
      const tall = height * Math.min(0.92, 0.3 + 0.14 * Math.log2(number));
      this.pen.beginPath();
      this.pen.roundRect(x(at) - bar, height - tall, bar, tall + bar, bar / 2);
      this.pen.fill();
    }
  }
}

function takeToken(shown, data) {
  if (data !== "[DONE]" && data !== HOLE) shown.text += JSON.parse(data).choices[0].delta.content;
}

function drawAnswer({ text }, root) {
  const said = root.querySelector(".said");
  write(root.querySelector(".text"), text);
  said.scrollTop = said.scrollHeight;
}

function takeTick(shown, data) {
  if (data === HOLE && !shown.ticks.length) return;
  shown.ticks = [...shown.ticks, data.replace("tick ", "")].slice(-TICKS_SHOWN);
}

function drawTicks({ ticks }, root) {
  write(root.querySelector(".latest"), ticks.findLast((tick) => tick !== HOLE) ?? "–");
  const chips = ticks.map((tick) => Object.assign(document.createElement("span"), { textContent: tick, className: tick === HOLE ? "hole" : "" }));
  root.querySelector(".text").replaceChildren(...chips);
}

function write(element, words) {
  if (element.textContent !== String(words)) element.textContent = words;
}

function reason(problem) {
  const lost = problem?.code === "upstream-lost" || problem?.status === 410;
  return lost ? "the service broke off" : problem?.title || problem?.message || "the stream cannot go on";
}

// The buttons

const notice = document.getElementById("notice");
let networkBack = 0;

/** Asks for a break, beside the network that it may cut. */
async function breakIt(kind) {
  const port = document.querySelector("meta[name=control-port]").content;
  const response = await fetch(`http://${location.hostname}:${port}/${kind}`, { method: "POST" });
  const { seconds } = await response.json();
  if (kind === "cut") networkBack = Date.now() + 1000 * seconds;
  sayFor(seconds, BROKEN[kind](seconds));
}

function sayFor(seconds, words) {
  write(notice, words);
  setTimeout(() => notice.textContent === words && write(notice, ""), 1000 * seconds);
}

/** Without a network there is no page to load. */
function reload() {
  const wait = Math.max(0, networkBack - Date.now());
  if (wait) write(notice, "The page is loaded again when the network is back.");
  setTimeout(() => location.reload(), wait);
}

const still = matchMedia("(prefers-reduced-motion: reduce)");

const cards = [
  new Card("answer", {
    url: "/chat",
    options: {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ prompt: "What happens when a stream breaks?" }),
    },
    take: takeToken,
    draw: drawAnswer,
    notes: {
      complete: "That was all of it.",
      failed: "The rest is gone. A POST is not sent again by itself.",
    },
  }),
  new Card("ticker", { url: "/ticker", take: takeTick, draw: drawTicks, notes: {} }),
];

function drawStrips() {
  for (const card of cards) card.strip.draw();
  if (still.matches) setTimeout(drawStrips, 1000);
  else requestAnimationFrame(drawStrips);
}

for (const button of document.querySelectorAll("[data-break]")) {
  button.addEventListener("click", () => breakIt(button.dataset.break));
}
document.getElementById("reload").addEventListener("click", reload);
for (const card of cards) card.open();
drawStrips();
