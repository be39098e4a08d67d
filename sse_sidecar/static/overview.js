/**
 * The live page of the admin port: one snapshot a second, what of it wants to be looked at, and the last five minutes.
 *
 * A snapshot is shown as it is; what is kept beside it is what rates and lines are made of. Times are the sidecar's
 * own, so that a wrong clock of this device does not matter.
 *
 * @typedef {{ received: number, delivered: number, replayed: number, lost: number, duplicates: number }} Events
 *
 * @typedef {Events & {
 *   name: string, streams: number, readers: number, stalls: number, errors: number, completion_rate: number
 * }} Route
 *
 * @typedef {{ stream: string, route: string, events: number, seconds: number }} Lagging
 *
 * @typedef {{ time: number, route: string, code: string, stream: string, count: number }} Problem
 *
 * @typedef {{
 *   stream: string, route: string, method: string, state: string, readers: number, first: number, last: number,
 *   bytes: number, age: number, quiet: number
 * }} Active
 *
 * @typedef {{ bounds: number[], counts: number[], sum: number, count: number }} Distribution
 *   how many were within each bound and above the one before it, and above the last
 *
 * @typedef {{
 *   time: number, version: string, started: number, ready: boolean,
 *   streams: Record<string, number>, concurrent: number, unread: number, readers: number,
 *   limits: { streams: number, readers: number }, memory: { held: number, limit: number },
 *   events: Events, bytes: { received: number, delivered: number },
 *   stalls: number, heartbeats: number, completion_rate: number,
 *   resumes: Record<string, number>, reconnect_ms: Distribution, evictions: Record<string, number>,
 *   routes: Route[], lagging: Lagging[], errors: Problem[], active: Active[]
 * }} Snapshot
 *
 * @typedef {{ in: number, out: number }} Rates events per second
 *
 * @typedef {{
 *   time: number, started: number, events: Events, stalls: number, reconnects: { sum: number, count: number },
 *   routes: Map<string, Events>, rates: Rates | null
 * }} Point
 *   what is kept of a snapshot
 *
 * @typedef {{ now: Snapshot, past: Past, wrong: Set<string> }} View
 *
 * @typedef {[names: string, where: string, what: string, isSo: (view: View) => boolean]} Trouble
 *   the names that the figures it is about bear as `data-trouble`, the part of the page to look at, and a sentence
 *   without changing figures, as it is read out when it changes
 *
 * @typedef {[x: number, y: number][]} Run points of a line, seconds to the right and percent down
 *
 * @typedef {string | { words: string, wrong: boolean }} Cell
 *
 * @typedef {((row: any, view: View) => Cell)[]} Columns
 */

const WINDOW = 300; // seconds that the lines go back, and for which a trouble is told
const RATE_OVER = 5; // seconds that a rate is the mean of
const SLACK = 0.5; // seconds that a snapshot may be late
const SILENT_MS = 5000; // without a snapshot, until the page says so
const GIVEN_UP_MS = 10_000; // without one on a connection, until another is opened
const AGAIN_MS = 2000; // until another is opened where EventSource has given up
const SHOWN_OF_ID = 8;
const FITS = 12; // characters, in any column
/** @type {[string, number][]} */
const UNITS = [["d", 86_400], ["h", 3600], ["min", 60]];

const CALM = "Within the last five minutes no event was lost, no service fell silent, and no request failed.";

// What the alerts are about as well.
const ENOUGH = 99.5; // percent delivered without a replay
const SLOW_MS = 5000;
const MANY_DUPLICATES = 0.01;
const FULL = 0.9; // of a bound

// Numbers and times in words

/** @param {Intl.NumberFormatOptions} options */
const numbers = (options) => new Intl.NumberFormat("en", options);
const whole = numbers({ maximumFractionDigits: 0 });
const tenths = numbers({ minimumFractionDigits: 1, maximumFractionDigits: 1 });
const hundredths = numbers({ minimumFractionDigits: 2, maximumFractionDigits: 2 });
const short = numbers({ notation: "compact", maximumFractionDigits: 2 });
const shortest = numbers({ notation: "compact", maximumFractionDigits: 1 });
const precise = numbers({ maximumFractionDigits: 2 });
const clock = new Intl.DateTimeFormat("en-GB", {
  day: "2-digit", month: "short", hour: "2-digit", minute: "2-digit", second: "2-digit",
});

/** @param {number} number */
const count = (number) => (number < 1e6 ? whole : short).format(number);

/** @param {number} number @param {string} one @param {string} [many] */
const some = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

/** @param {number} number */
const rate = (number) => (number < 1e4 ? tenths.format(number) : count(number));

/** What is not all is not rounded up to all. @param {number} percent */
const share = (percent) => `${hundredths.format(Math.floor(percent * 100) / 100)} %`;

/** @param {string} id */
const cut = (id) => (id.length > SHOWN_OF_ID ? `${id.slice(0, SHOWN_OF_ID)}…` : id);

/** @param {number} at epoch seconds */
const moment = (at) => clock.format(at * 1000);

/** @param {number} bytes */
function size(bytes) {
  const power = Math.min(4, Math.floor(Math.log2(Math.max(bytes, 1)) / 10));
  return power ? `${tenths.format(bytes / 1024 ** power)} ${"KMGT"[power - 1]}iB` : `${bytes} B`;
}

/** Two units at most, so that it keeps its width. @param {number} seconds */
function span(seconds) {
  const index = UNITS.findIndex(([, unit]) => seconds >= unit);
  if (index < 0) return `${(seconds < 10 ? tenths : whole).format(Math.max(0, Math.floor(seconds * 10) / 10))} s`;
  const [[name, unit], [nextName, next]] = [UNITS[index], UNITS[index + 1] ?? ["s", 1]];
  const rest = String(Math.floor((seconds % unit) / next)).padStart(2, "0");
  const most = `${count(Math.floor(seconds / unit))} ${name}`;
  return seconds < 10 * unit ? `${most} ${rest} ${nextName}` : most;
}

/** @param {number} ms a bound or a mean */
function duration(ms) {
  if (ms < 1000) return `${whole.format(ms)} ms`;
  return ms < 60_000 ? `${precise.format(ms / 1000)} s` : `${precise.format(ms / 60_000)} min`;
}

// The last five minutes

/** Points in the order of their times, of this run of the sidecar and of those before it. */
class Past {
  /** @type {Point[]} */
  points = [];

  get last() {
    return this.points[this.points.length - 1];
  }

  /** @param {Snapshot} snapshot */
  add({ time, started, events, stalls, reconnect_ms: reconnects, routes }) {
    if (this.points.length && time === this.last.time) return; // what is sent at once to who comes back may be known
    if (this.points.length && time < this.last.time) this.points = []; // the sidecar's clock was set back
    const named = new Map(routes.map((route) => [route.name, route]));
    this.points.push({ time, started, events, stalls, reconnects, routes: named, rates: null });
    while (this.points[0].time < time - WINDOW - SLACK) this.points.shift();
    this.last.rates = this.rates((point) => point.events);
  }

  /** The first point of this run that is no older: totals begin at 0 with each run. @param {number} seconds */
  first(seconds) {
    const since = this.last.time - seconds - SLACK;
    return this.points.find(({ time, started }) => time >= since && started === this.last.started) ?? this.last;
  }

  /** By how much a total has risen. @param {(point: Point) => number} total */
  rise(total) {
    return total(this.last) - total(this.first(WINDOW));
  }

  /**
   * Null where there is nothing to compare with: at the start, after a restart or a lost feed.
   * @param {(point: Point) => Events | undefined} of
   * @returns {Rates | null}
   */
  rates(of) {
    const first = this.first(RATE_OVER);
    const [from, to, seconds] = [of(first), of(this.last), this.last.time - first.time];
    if (!from || !to || !seconds) return null;
    return { in: (to.received - from.received) / seconds, out: (to.delivered - from.delivered) / seconds };
  }

  reconnects() {
    return { sum: this.rise((point) => point.reconnects.sum), count: this.rise((point) => point.reconnects.count) };
  }
}

// What wants to be looked at

/** Whether there was such an error. @param {Snapshot} now @param {(problem: Problem) => boolean} is */
const lately = ({ time, errors }, is) => errors.some((problem) => problem.time > time - WINDOW && is(problem));

/** @param {string[]} codes @returns {(view: View) => boolean} */
const any = (...codes) => ({ now }) => lately(now, ({ code }) => codes.includes(code));

/** @param {Problem} problem */
const isFailure = ({ code }) => /^5..$|^max_/.test(code);

/** A 4xx is between a client and the service, and a drain is meant. @param {Problem} problem */
const isFault = ({ code }) => !/^4..$|^draining$/.test(code);

/** @param {View} view */
function isSlow({ past }) {
  const { sum, count } = past.reconnects();
  return sum > SLOW_MS * count;
}

/** @param {View} view */
function repeatsMuch({ past }) {
  const duplicates = past.rise(({ events }) => events.duplicates);
  return duplicates > MANY_DUPLICATES * (duplicates + past.rise(({ events }) => events.received));
}

/** @type {Trouble[]} */
const TROUBLES = [
  ["draining", "top", "The sidecar is draining: it takes no new requests.", ({ now }) => !now.ready],
  ["lost gap", "errors", "Events were lost: a resume asked for what the history no longer held.",
    (view) => any("gap")(view) || view.past.rise(({ events }) => events.lost) > 0],
  ["reset", "errors", "A service began anew and may have left events out.", any("reset")],
  ["gone", "errors", "A client came back for what is not held any more, and was refused.", any("gone")],
  ["broken", "errors", "A stream broke off: its service's connection did not last.", any("upstream-lost", "too-large")],
  ["reconnecting", "states", "A service's connection is lost and is being asked for again.",
    ({ now }) => now.streams.reconnecting > 0],
  ["stalls", "errors", "A service fell silent.",
    (view) => any("stall")(view) || view.past.rise(({ stalls }) => stalls) > 0],
  ["failures", "errors", "Requests were refused or failed.", ({ now }) => lately(now, isFailure)],
  ["completion", "routes", `Under ${ENOUGH} % of the events were delivered without a replay.`,
    ({ now }) => now.completion_rate < ENOUGH],
  ["duplicates", "routes", "Over 1 % of what the services sent was sent twice.", repeatsMuch],
  ["slow", "reconnects", "Clients took over 5 s to come back, on average.", isSlow],
  ["memory", "bounds", "Nine tenths of the memory are in use.",
    ({ now }) => now.memory.held >= FULL * now.memory.limit],
  ["streams", "bounds", "Nine tenths of the streams allowed are open.",
    ({ now }) => now.concurrent + now.unread >= FULL * now.limits.streams],
  ["readers", "bounds", "Nine tenths of the readers allowed are connected.",
    ({ now }) => now.readers >= FULL * now.limits.readers],
];

/** @param {View} view */
const troubles = (view) => TROUBLES.filter(([, , , isSo]) => isSo(view));

// What the figures say

/** @param {View} view */
function totals({ now: { events, bytes, heartbeats } }) {
  const received = `${some(events.received, "event")} in (${size(bytes.received)})`;
  const delivered = `${count(events.delivered)} out (${size(bytes.delivered)})`;
  return `Since the start: ${received}, ${delivered}, ${some(heartbeats, "heartbeat")}.`;
}

/** @type {Record<string, [string, string]>} */
const EVICTED = {
  finished: ["finished stream", "finished streams"],
  dormant: ["dormant stream", "dormant streams"],
  tombstone: ["note of a stream's end", "notes of streams' ends"],
  passed: ["batch of events that all readers had", "batches of events that all readers had"],
  reader: ["reader cut off", "readers cut off"],
};

/** @param {View} view */
function evicted({ now: { evictions } }) {
  const causes = Object.entries(EVICTED).filter(([cause]) => evictions[cause]);
  const words = causes.map(([cause, [one, many]]) => some(evictions[cause], one, many));
  return `Let go of for want of memory since the start: ${words.join(", ") || "nothing"}.`;
}

/** @param {View} view */
function reconnects({ now: { reconnect_ms: times } }) {
  if (!times.count) return "No client has resumed since the start.";
  return `Half were back ${within(times, 0.5)}, 95 % ${within(times, 0.95)}; ${mean(times)} on average.`;
}

/** The bound that such a part of all was within. @param {Distribution} times @param {number} part */
function within({ bounds, counts, count }, part) {
  let sum = 0;
  const index = counts.findIndex((number) => (sum += number) >= part * count);
  return index < bounds.length ? `within ${duration(bounds[index])}` : `after over ${duration(bounds[index - 1])}`;
}

/** @param {{ sum: number, count: number }} times */
const mean = ({ sum, count }) => duration(Math.round(sum / count));

/** @param {View} view */
function reconnectsLately({ past }) {
  const times = past.reconnects();
  const words = times.count ? `${some(times.count, "resume")}, after ${mean(times)} on average` : "no resume";
  return `In the last five minutes, as far as this page has been open: ${words}.`;
}

/**
 * By their name, a `data-figure`. One that is not here is a number of the snapshot.
 * @type {Record<string, (view: View) => string>}
 */
const FIGURES = {
  ready: ({ now }) => (now.ready ? "Ready" : "Draining"),
  version: ({ now }) => now.version,
  since: ({ now }) => `${moment(now.started)} (${span(now.time - now.started)})`,
  zone: () => clock.resolvedOptions().timeZone,
  completion: ({ now }) => share(now.completion_rate),
  in: ({ past }) => (past.last.rates ? rate(past.last.rates.in) : "–"),
  out: ({ past }) => (past.last.rates ? rate(past.last.rates.out) : "–"),
  "memory.held": ({ now }) => size(now.memory.held),
  "memory.limit": ({ now }) => `of ${size(now.memory.limit)}`,
  "limits.streams": ({ now }) => `of ${count(now.limits.streams)}`,
  "limits.readers": ({ now }) => `of ${count(now.limits.readers)}`,
  open: ({ now }) => count(now.concurrent + now.unread),
  totals,
  evicted,
  reconnects,
  lately: reconnectsLately,
};

/** A number of the snapshot by its path. @param {any} now @param {string} path */
const numberAt = (now, path) => count(path.split(".").reduce((part, name) => part[name], now));

/** How far the bars of a list reach, in its order, 0 to 1. @type {Record<string, (now: Snapshot) => number[]>} */
const BARS = {
  held: ({ streams }) => parts([streams.live, streams.reconnecting, streams.complete, streams.dormant, streams.broken]),
  got: ({ resumes }) => parts(["resumed", "gap", "reset", "new", "over", "gone"].map((status) => resumes[status])),
  used: ({ memory, concurrent, unread, readers, limits }) => [
    memory.held / memory.limit, (concurrent + unread) / limits.streams, readers / limits.readers,
  ],
};

/** @param {number[]} values */
function parts(values) {
  const sum = values.reduce((one, other) => one + other, 0);
  return values.map((value) => value / (sum || 1));
}

// The tables, by their ids: the rows, and the cells of a row

/** What is none of these is a status that a client got. @type {Record<string, string>} */
const MEANING = {
  gap: "Events were missing from the history",
  reset: "The service began anew",
  "upstream-lost": "The service's connection broke",
  "too-large": "An event over max_event_bytes",
  stall: "The service fell silent",
  gone: "A resume of what is not held any more",
  max_streams: "Refused: max_streams is reached",
  max_readers: "Refused: max_readers is reached",
  draining: "Refused: shutting down",
  502: "No proper answer from the service",
  504: "No answer from the service in time",
};

/** @param {View} view @param {Route} route @param {string} code */
const had = ({ now }, { name }, code) => lately(now, (problem) => problem.route === name && problem.code === code);

/** @param {View} view @param {Route} route @param {"in" | "out"} way */
function rateOf({ past }, { name }, way) {
  const rates = past.rates((point) => point.routes.get(name));
  return rates ? rate(rates[way]) : "–";
}

/** @type {Record<string, [(now: Snapshot) => any[], Columns]>} */
const TABLES = {
  "error-rows": [(now) => now.errors, /** @type {((problem: Problem, view: View) => Cell)[]} */ ([
    ({ time }, { now }) => span(now.time - time),
    (problem, { now }) => ({ words: problem.code, wrong: problem.time > now.time - WINDOW && isFault(problem) }),
    ({ code }) => MEANING[code] ?? "Answered with this status",
    ({ route }) => route,
    ({ stream }) => cut(stream) || "–",
    ({ count: times }) => count(times),
    ({ time }) => moment(time),
  ])],
  "route-rows": [(now) => now.routes, /** @type {((route: Route, view: View) => Cell)[]} */ ([
    ({ name }) => name,
    ({ streams }) => count(streams),
    ({ readers }) => count(readers),
    (route, view) => rateOf(view, route, "in"),
    (route, view) => rateOf(view, route, "out"),
    ({ received }) => count(received),
    ({ delivered }) => count(delivered),
    ({ replayed }) => count(replayed),
    (route, view) => ({ words: count(route.lost), wrong: had(view, route, "gap") }),
    ({ duplicates }) => count(duplicates),
    (route, view) => ({ words: count(route.stalls), wrong: had(view, route, "stall") }),
    ({ errors }) => count(errors),
    ({ completion_rate: rate }) => ({ words: share(rate), wrong: rate < ENOUGH }),
  ])],
  "active-rows": [(now) => now.active, /** @type {((active: Active, view: View) => Cell)[]} */ ([
    ({ stream }) => cut(stream),
    ({ route }) => route,
    ({ method }) => method,
    ({ state }) => ({ words: state, wrong: state === "reconnecting" }),
    ({ readers }) => count(readers),
    ({ first, last }) => (last < first ? "none" : `${first}–${last}`),
    ({ bytes }) => size(bytes),
    ({ age }) => span(age),
    ({ quiet }) => span(quiet),
  ])],
  "lagging-rows": [(now) => now.lagging, /** @type {((lagging: Lagging, view: View) => Cell)[]} */ ([
    ({ stream }) => cut(stream),
    ({ route }) => route,
    ({ events }) => count(events),
    ({ seconds }) => span(seconds),
  ])],
};

// The page

/** @param {string} id @returns {any} */
const find = (id) => document.getElementById(id);

/** @param {Element} element @param {string} words */
function write(element, words) {
  if (element.textContent !== words) element.textContent = words; // a selection stays, and nothing is read out twice
}

/** @param {string} tag @param {string} [words] @param {Record<string, string>} [attributes] */
function make(tag, words = "", attributes = {}) {
  const element = Object.assign(document.createElement(tag), { textContent: words });
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/** A bar of its own; `drawBar` says how far it reaches. @param {boolean} [upright] */
function makeBar(upright = false) {
  const [svg, rect] = ["svg", "rect"].map((tag) => document.createElementNS("http://www.w3.org/2000/svg", tag));
  svg.setAttribute("viewBox", "0 0 100 100");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("class", upright ? "bar upright" : "bar");
  svg.setAttribute("aria-hidden", "true");
  for (const side of ["width", "height"]) rect.setAttribute(side, "100");
  svg.append(rect);
  return svg;
}

/** Something is more than nothing, however little it is. @param {Element} bar @param {number} part */
function drawBar(bar, part) {
  const length = part ? Math.min(100, Math.max(1, 100 * part)) : 0;
  const upright = bar.classList.contains("upright");
  bar.firstElementChild?.setAttribute(upright ? "height" : "width", String(length));
  if (upright) bar.firstElementChild?.setAttribute("y", String(100 - length));
}

/** @param {View} view */
function drawFigures(view) {
  for (const element of document.querySelectorAll("[data-figure]")) {
    const name = element.getAttribute("data-figure") ?? "";
    write(element, FIGURES[name]?.(view) ?? numberAt(view.now, name));
  }
  for (const element of document.querySelectorAll("[data-trouble]")) {
    element.classList.toggle("wrong", view.wrong.has(element.getAttribute("data-trouble") ?? ""));
  }
}

/** @param {View} view */
function drawBars({ now }) {
  for (const [id, reach] of Object.entries(BARS)) {
    const bars = find(id).querySelectorAll(".bar");
    reach(now).forEach((part, index) => drawBar(bars[index], part));
  }
}

/** @param {View} view */
function drawTables(view) {
  for (const [id, [rows, columns]] of Object.entries(TABLES)) {
    const table = find(id);
    drawRows(table.tBodies[0], rows(view.now), columns, view);
    table.hidden = !rows(view.now).length;
    table.nextElementSibling.hidden = !table.hidden;
  }
}

/** @param {any} body @param {any[]} rows @param {Columns} columns @param {View} view */
function drawRows(body, rows, columns, view) {
  while (body.rows.length > rows.length) body.deleteRow(-1);
  while (body.rows.length < rows.length) body.append(makeRow(columns.length));
  rows.forEach((row, index) => {
    const { cells } = body.rows[index];
    columns.forEach((column, place) => drawCell(cells[place], column(row, view)));
  });
}

/** @param {number} cells */
function makeRow(cells) {
  const row = make("tr");
  row.append(make("th", "", { scope: "row" }), ...Array.from({ length: cells - 1 }, () => make("td")));
  return row;
}

/** @param {HTMLElement} element @param {Cell} cell */
function drawCell(element, cell) {
  const { words, wrong } = typeof cell === "string" ? { words: cell, wrong: false } : cell;
  write(element, words);
  const title = words.length > FITS ? words : "";
  if (element.title !== title) element.title = title;
  element.classList.toggle("wrong", wrong);
}

/** The distribution of the times that clients were away. @param {View} view */
function drawTimes({ now: { reconnect_ms: { bounds, counts } } }) {
  const list = find("times");
  while (list.children.length < counts.length) list.append(makeTime(bounds[list.children.length]));
  const most = Math.max(1, ...counts);
  counts.forEach((number, index) => {
    const [shown, bar, , said] = list.children[index].children;
    write(shown, number ? shortest.format(number) : "");
    drawBar(bar, number / most);
    write(said, `${timeWords(bounds, index)}: ${count(number)}`);
  });
}

/** What is shown is short, and so said in other words. @param {number | undefined} bound */
function makeTime(bound) {
  const item = make("li");
  const [number, below] = ["", tick(bound)].map((words) => make("span", words, { "aria-hidden": "true" }));
  item.append(number, makeBar(true), below, make("span", "", { class: "hidden" }));
  return item;
}

/** @param {number[]} bounds @param {number} index */
function timeWords(bounds, index) {
  return index < bounds.length ? `up to ${duration(bounds[index])}` : `over ${duration(bounds[index - 1])}`;
}

/** A bound as short as can be: there are many side by side. @param {number | undefined} ms */
function tick(ms) {
  if (ms === undefined) return "∞";
  return ms < 60_000 ? precise.format(ms / 1000).replace(/^0/, "") : `${precise.format(ms / 60_000)}m`;
}

/** @param {View} view */
function drawLines({ past }) {
  const rates = past.points.flatMap((point) => point.rates ?? []);
  const most = Math.max(0, ...rates.flatMap((rate) => [rate.in, rate.out]));
  const [incoming, outgoing] = [runs(past, "in", ceiling(most)), runs(past, "out", ceiling(most))];
  const svg = find("lines");
  svg.querySelector(".in").setAttribute("d", incoming.map(line).join(""));
  svg.querySelector(".out").setAttribute("d", outgoing.map(line).join(""));
  svg.querySelector(".area").setAttribute("d", outgoing.map(area).join(""));
  svg.setAttribute("aria-label", `Events per second in the last five minutes, at most ${rate(most)}`);
  write(find("scale"), count(ceiling(most)));
}

/** Of 1, 2, 5, 10, 20 ... the least that is no less: the scale stands still while a line moves. @param {number} most */
function ceiling(most) {
  const unit = 10 ** Math.floor(Math.log10(Math.max(most, 1)));
  return unit * ([1, 2, 5].find((step) => step * unit >= most) ?? 10);
}

/**
 * The parts of a line: it is broken where nothing is known.
 * @param {Past} past
 * @param {"in" | "out"} way
 * @param {number} top
 */
function runs({ points, last }, way, top) {
  /** @type {Run[]} */
  const found = [[]];
  for (const { time, rates } of points) {
    if (rates) found[found.length - 1].push([tenth(WINDOW - last.time + time), tenth(99 - (97 * rates[way]) / top)]);
    else found.push([]);
  }
  return found.filter((run) => run.length);
}

/** @param {number} number */
const tenth = (number) => Math.round(10 * number) / 10;

/** @param {Run} run */
const line = (run) => `M${run.join("L")}`;

/** @param {Run} run */
const area = (run) => `M${run[0][0]},100L${run.join("L")}V100Z`;

/** @param {View} view */
function drawVerdict(view) {
  const found = troubles(view);
  const list = find("troubles");
  tell(found.length ? `${some(found.length, "thing")} to look at` : "Nothing is wrong");
  if (list.dataset.of === String(found.map(([names]) => names))) return;
  list.dataset.of = String(found.map(([names]) => names));
  list.replaceChildren(...(found.length ? found.map(makeTrouble) : [make("li", CALM)]));
}

/** @param {Trouble} trouble */
function makeTrouble([, where, what]) {
  const line = make("li", "", { class: "wrong" });
  line.append(make("a", what, { href: `#${where}` }));
  return line;
}

/** @param {string} words */
function tell(words) {
  write(find("verdict"), words);
  document.title = `${words} · sse-sidecar`;
}

// The feed

/** Snapshots as they come. EventSource comes back by itself; where it gave up, or hears nothing, another is opened. */
class Feed {
  /** @type {EventSource | null} */
  source = null;
  heardAt = Date.now(); // wall time: another would stand still while a laptop sleeps
  openedAt = 0;
  isLost = false;

  /** @param {string} url @param {{ onSnapshot: (now: Snapshot) => void, onLost: (silentFor: number) => void }} to */
  constructor(url, to) {
    this.url = url;
    this.to = to;
    this.open();
    setInterval(() => this.check(), 1000);
  }

  open() {
    this.source?.close();
    this.source = new EventSource(this.url);
    this.source.onmessage = ({ data }) => this.take(JSON.parse(data));
    this.source.onerror = () => this.lost();
    this.openedAt = Date.now();
  }

  /** @param {Snapshot} now */
  take(now) {
    this.to.onSnapshot(now);
    this.heardAt = Date.now();
    this.isLost = false;
  }

  lost() {
    this.isLost = true;
    this.to.onLost((Date.now() - this.heardAt) / 1000);
  }

  check() {
    const silent = Date.now() - this.heardAt;
    if (this.isLost || silent > SILENT_MS) this.lost();
    const waits = Date.now() - Math.max(this.heardAt, this.openedAt);
    if (waits > GIVEN_UP_MS || (this.source?.readyState === EventSource.CLOSED && waits > AGAIN_MS)) this.open();
  }
}

const past = new Past();

/** @param {Snapshot} now */
function show(now) {
  past.add(now);
  const view = { now, past, wrong: new Set() };
  for (const [names] of troubles(view)) names.split(" ").forEach((name) => view.wrong.add(name));
  for (const draw of [drawFigures, drawBars, drawTables, drawTimes, drawLines, drawVerdict]) draw(view);
  setFeed("live", "Live");
  write(find("lost"), "");
}

/** @param {number} silentFor seconds */
function lose(silentFor) {
  const since = past.points.length ? `since ${moment(past.last.time)}` : "yet";
  setFeed("lost", "Not live");
  tell("Not live");
  write(find("lost"), `Not live: nothing has come from the sidecar ${since}. It is being asked again.`);
  write(find("age"), past.points.length ? `These figures are ${some(Math.floor(silentFor), "second")} old.` : "");
}

/** @param {"live" | "lost"} state @param {string} words */
function setFeed(state, words) {
  document.body.dataset.feed = state;
  write(find("feed"), words);
}

for (const row of document.querySelectorAll(".bars > div")) {
  const bar = make("dd", "", { "aria-hidden": "true" });
  bar.append(makeBar());
  row.append(bar);
}
new Feed("events", { onSnapshot: show, onLost: lose });
