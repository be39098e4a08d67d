/** What the client's tests are made of: a scripted service, a clock that is turned by hand, and a record of events. */
import { setMaxListeners } from "node:events";
import http from "node:http";
import { ResumableEventSource } from "../../sse_sidecar/static/client.js";

const PATIENCE = 5_000; // until a test that waits in vain fails; nothing is timed by it

/** @param {Promise<any>} promise @param {() => string} what */
export async function inTime(promise, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`waited in vain: ${what()}`)), PATIENCE);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** One request as the service got it, and the answer to it, byte for byte. */
class Exchange {
  constructor(request, response, body) {
    this.request = request;
    this.response = response;
    this.body = body;
    this.left = new Promise((resolve) => response.on("close", resolve));
  }

  get method() {
    return this.request.method;
  }
  get path() {
    return this.request.url;
  }
  get headers() {
    return this.request.headers;
  }
  get token() {
    return this.request.headers["last-event-id"];
  }

  begin(headers = {}, status = 200) {
    this.response.writeHead(status, { "Content-Type": "text/event-stream", ...headers });
    this.response.flushHeaders();
    return this;
  }

  /** Begins as the sidecar does. */
  stream(id, status = "new") {
    return this.begin({ "SSE-Stream": id, "SSE-Stream-Status": status });
  }

  send(bytes) {
    return new Promise((resolve) => this.response.write(bytes, resolve));
  }

  end(bytes = "") {
    this.response.end(bytes);
  }

  /** Without the chunk that ends the body. */
  cut() {
    this.response.socket.destroy();
  }

  /** Cut before the head. */
  refuse(status, body = {}, headers = {}) {
    const problem = typeof body === "string" ? body : JSON.stringify({ status, ...body });
    this.response.writeHead(status, { "Content-Type": "application/problem+json", ...headers });
    this.response.end(problem);
  }
}

/** A service whose test answers each request in turn. */
export class Service {
  #arrived = [];
  #waiting = [];
  requests = 0; // that have arrived

  static async start() {
    const service = new Service();
    service.server = http.createServer((request, response) => service.#take(request, response));
    await new Promise((resolve) => service.server.listen(0, "127.0.0.1", resolve));
    service.url = `http://127.0.0.1:${service.server.address().port}`;
    return service;
  }

  async #take(request, response) {
    this.requests += 1;
    let body = "";
    request.on("error", () => {});
    response.on("error", () => {});
    for await (const part of request) body += part;
    const exchange = new Exchange(request, response, body);
    const waiting = this.#waiting.shift();
    waiting ? waiting(exchange) : this.#arrived.push(exchange);
  }

  /** @returns {Promise<Exchange>} the next request */
  next() {
    const arrived = this.#arrived.shift();
    if (arrived) return Promise.resolve(arrived);
    return inTime(new Promise((resolve) => this.#waiting.push(resolve)), () => "a request");
  }

  stop() {
    this.server.closeAllConnections();
    return new Promise((resolve) => this.server.close(resolve));
  }
}

/** Time that passes when a test says so. */
export class Clock {
  #now = 1_000_000;
  #timers = new Map();
  #next = 1;

  now = () => this.#now;
  setTimeout = (run, ms) => {
    this.#timers.set(this.#next, { run, at: this.#now + ms });
    return this.#next++;
  };
  clearTimeout = (timer) => this.#timers.delete(timer);

  get timers() {
    return this.#timers.size;
  }

  advance(ms) {
    const until = this.#now + ms;
    for (let due; (due = this.#due(until));) {
      this.#timers.delete(due[0]);
      this.#now = Math.max(this.#now, due[1].at);
      due[1].run();
    }
    this.#now = until;
  }

  /** The machine sleeps: time passes, and timers are late. */
  sleep(ms) {
    this.#now += ms;
  }

  /** The user sets the time; timers do not follow it. */
  turnBack(ms) {
    this.#now -= ms;
    for (const timer of this.#timers.values()) timer.at -= ms;
  }

  #due(until) {
    return [...this.#timers].filter(([, { at }]) => at <= until).sort((a, b) => a[1].at - b[1].at)[0];
  }
}

export const OWN_EVENTS = ["open", "error", "status", "gap", "reset"];

/** A client and all that it told. */
export class Told {
  #waiting = new Set();
  events = [];

  constructor(source, types = []) {
    this.source = source;
    for (const type of new Set([...OWN_EVENTS, "message", ...types])) {
      source.addEventListener(type, (event) => {
        this.events.push(event);
        for (const check of [...this.#waiting]) check();
      });
    }
  }

  of(type) {
    return this.events.filter((event) => event.type === type);
  }
  details(type) {
    return this.of(type).map((event) => event.detail);
  }
  get data() {
    return this.of("message").map((event) => event.data);
  }
  get statuses() {
    return this.details("status").map((detail) => detail.status);
  }

  /** Waits until something that was told makes it true. */
  until(condition) {
    const promise = new Promise((resolve) => {
      const check = () => condition(this) && (this.#waiting.delete(check), resolve());
      this.#waiting.add(check);
      check();
    });
    return inTime(
      promise,
      () => `${condition}; told: ${this.events.map((event) => event.data ?? event.detail?.status ?? event.type)}`,
    );
  }

  untilStatus(status) {
    return this.until(() => this.source.status === status);
  }

  untilData(...data) {
    return this.until(() => this.data.length >= data.length);
  }
}

/** A page without a browser: the objects that the client looks at. */
export class Page extends EventTarget {
  navigator = { onLine: true };
  document = Object.assign(new EventTarget(), { visibilityState: "visible" });
  crypto = globalThis.crypto;
  stored = new Map();
  sessionStorage = {
    getItem: (key) => this.stored.get(key) ?? null,
    setItem: (key, value) => void this.stored.set(key, value),
    removeItem: (key) => void this.stored.delete(key),
  };

  constructor({ origin, connection } = {}) {
    super();
    setMaxListeners(0, this, this.document); // many clients on a page are no leak
    if (origin) this.location = { origin, href: `${origin}/page` };
    if (connection) this.navigator.connection = Object.assign(new EventTarget(), connection);
  }

  fire(type) {
    this.dispatchEvent(new Event(type));
  }
}

/**
 * A service, and clients of it; all is taken down after the test. `asked` counts what the clients have asked for, at
 * once, while a request takes its time to arrive.
 */
export async function setUp(test, options = {}) {
  const service = await Service.start();
  const clock = new Clock();
  const page = new Page(options.page);
  const sources = [];
  test.after(async () => {
    for (const source of sources) source.close();
    await service.stop();
  });
  const counting = (...asked) => {
    set.asked += 1;
    return fetch(...asked);
  };
  const open = (asked = {}, path = "/stream") => {
    const source = new ResumableEventSource(service.url + path, {
      clock,
      scope: page,
      random: () => 0,
      fetch: counting,
      ...asked,
    });
    sources.push(source);
    return new Told(source, asked.types);
  };
  const set = { service, clock, page, open, asked: 0 };
  return set;
}

export const G = "g" + "A".repeat(22);
export const H = "g" + "B".repeat(22);
export const P = "p" + "C".repeat(22);

/** An event as the sidecar sends it. */
export const event = (seq, stream = G, data = `${seq}`) => `data: ${data}\nid: ${seq}-${stream}\n\n`;
export const events = (first, last, stream = G) =>
  Array.from({ length: last - first + 1 }, (_, index) => event(first + index, stream)).join("");
export const numbers = (first, last) => Array.from({ length: last - first + 1 }, (_, index) => `${first + index}`);
export const prime = (seq, stream = G) => `id: ${seq}-${stream}\n\n`;
export const signal = (code, facts = {}) =>
  `event: sse-sidecar\ndata: ${JSON.stringify({ error: { code, message: `it is ${code}`, ...facts } })}\n\n`;
