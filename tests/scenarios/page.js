// An application on a page: it reads one stream, shows its state in words, and keeps what happened, for the test.
//
// Whatever the client is, the page says what it is told and nothing else: what a client does not tell stays unsaid
// here, and is a silent failure in the test's figures.

import { ResumableEventSource } from "/.well-known/sse-sidecar/client.js";

const DONE = "[DONE]";

/** What the test reads. Times are milliseconds of the machine's clock, as the test's own. */
const seen = {
  numbers: [],
  ids: [],
  arrivals: [],
  opens: [],
  words: [],
  notes: [],
  statuses: [],
  done: false,
};
let source;

function show(words) {
  seen.words.push({ words, at: Date.now() });
  document.querySelector("#state").textContent = words;
}

/** What stays on the page: something is missing, or went wrong. */
function note(words) {
  seen.notes.push(words);
  const item = document.createElement("li");
  item.textContent = words;
  document.querySelector("#notes").append(item);
}

function take(event) {
  if (event.data === DONE) {
    seen.done = true;
    return;
  }
  seen.numbers.push(JSON.parse(event.data).number);
  seen.ids.push(event.lastEventId);
  seen.arrivals.push(Date.now());
  document.querySelector("#count").textContent = seen.numbers.length;
}

/** The stream begins anew: an application starts over. */
function startOver() {
  seen.numbers.length = seen.ids.length = 0;
}

function noteSignal(event) {
  const { code, message, lost } = JSON.parse(event.data).error;
  if (code === "reset") startOver();
  note(lost ? `${code}: ${lost} lost` : `${code}: ${message}`);
}

/** The browser's own client: two events and a state, of which an application makes what words it can. */
function watchNative(url) {
  source = new EventSource(url);
  show("Connecting…");
  source.onopen = () => {
    seen.opens.push(Date.now());
    show("Live");
  };
  source.onerror = () => {
    const isOver = source.readyState === EventSource.CLOSED;
    show(isOver ? (seen.done ? "Complete" : "Failed") : "Reconnecting…");
  };
  source.onmessage = (event) => {
    take(event);
    if (seen.done) {
      source.close();
      show("Complete");
    }
  };
  source.addEventListener("sse-sidecar", noteSignal);
  window.addEventListener("offline", () => show("Offline"));
}

const WORDS = {
  connecting: () => "Connecting…",
  live: () => "Live",
  waiting: () => "Waiting…",
  reconnecting: ({ attempt, delay }) => `Reconnecting in ${Math.round(delay / 100) / 10} s (attempt ${attempt})`,
  offline: () => "Offline",
  complete: () => "Complete",
  failed: () => "Failed",
};

function watchClient(url, options) {
  source = new ResumableEventSource(url, options);
  const tell = (detail) => {
    seen.statuses.push({ ...detail, at: Date.now() });
    show(WORDS[detail.status](detail));
  };
  tell({ status: source.status, attempt: 0, delay: 0 });
  source.addEventListener("status", (event) => tell(event.detail));
  source.addEventListener("open", () => seen.opens.push(Date.now()));
  source.addEventListener("message", take);
  source.addEventListener("gap", noteOwn);
  source.addEventListener("reset", noteOwn);
  source.addEventListener("error", noteError);
}

function noteOwn(event) {
  if (event.type === "reset") startOver();
  const { lost, message } = event.detail;
  note(`${event.type}: ${lost ? `${lost} lost` : message}`);
}

function noteError({ detail }) {
  const { problem } = detail;
  if (problem) note(`error: ${problem.code ?? problem.title ?? problem.message}`);
}

window.seen = seen;
window.make = (kind, url) => (kind === "native" ? new EventSource(url) : new ResumableEventSource(url));
window.watch = (kind, url, options) => (kind === "native" ? watchNative(url) : watchClient(url, options));
window.stats = () => ({ ...(source?.stats ?? {}) });
window.leave = () => source?.close();
