/**
 * The browser client of sse-sidecar: EventSource's own surface, over `fetch`, so that it can POST, bear headers, see
 * heartbeats, notice silence and say what is going on.
 *
 *     import { ResumableEventSource } from "/.well-known/sse-sidecar/client.js";
 *     const answer = new ResumableEventSource("/chat", { method: "POST", body });
 *     answer.onmessage = (event) => show(event.data);
 *     answer.onstatus = ({ detail }) => tell(detail.status, detail.attempt, detail.delay);
 *
 * It knows the sidecar by what the wire carries only, and works without it as an EventSource does.
 *
 * @typedef {"connecting" | "live" | "waiting" | "reconnecting" | "offline" | "complete" | "failed" | "closed"} Status
 *
 * @typedef {{
 *   code?: string, status?: number, title?: string, detail?: string, message?: string, [fact: string]: any
 * }} Problem
 *   what went wrong: a problem document (RFC 9457) as the server sent it, a signal of the sidecar, or a code of ours
 *
 * @typedef {{ status: Status, attempt: number, delay: number, problem: Problem | null }} Detail
 *   the `detail` of `status` and `error` events; `delay` is the milliseconds until attempt number `attempt`
 *
 * @typedef {{ now(): number, setTimeout(run: () => void, ms: number): any, clearTimeout(timer: any): void }} Clock
 *
 * @typedef {object} Options
 * @property {string} [method] GET by default
 * @property {HeadersInit} [headers]
 * @property {BodyInit | null} [body]
 * @property {RequestCredentials} [credentials] "same-origin" by default, as EventSource's
 * @property {boolean} [withCredentials] EventSource's way to say `credentials: "include"`
 * @property {string} [lastEventId] begin after this event
 * @property {string} [streamId] begin at the start of this stream of the sidecar's
 * @property {string} [resumeKey] names this work in sessionStorage, so that it is resumed when the page is reloaded
 * @property {boolean} [fromStart] where there is something to resume, begin at that stream's start all the same
 * @property {string} [controlPath] the sidecar's own paths
 * @property {number} [waitingAfter] milliseconds without a byte until `waiting`
 * @property {number} [reconnectAfter] milliseconds without a byte until the connection is given up
 * @property {number} [checkEvery] milliseconds between looks at the clock, at most
 * @property {number} [minDelay] milliseconds before the first attempt to reconnect; doubled for each one after it
 * @property {number} [maxDelay]
 * @property {number} [jitter] milliseconds, of which a random share is added to each delay
 * @property {typeof fetch} [fetch]
 * @property {Clock} [clock] `now` in wall time: what stands still while a laptop sleeps would not tell that it slept
 * @property {() => number} [random]
 * @property {any} [scope] the global object: its `location`, `navigator`, `document`, `sessionStorage` and events
 */

/** What the sidecar gives as ids: the event's number, the stream, and perhaps the upstream's own id. */
const TOKEN = /^(0|[1-9]\d{0,14})-([gp][\w-]{22})(?:\.[\w-]+)?$/;
const SIGNAL = "sse-sidecar";
const EVENT_STREAM = "text/event-stream";

/** The request headers by which the sidecar tells principals apart, unless it is set otherwise. */
const CREDENTIALS = ["authorization", "x-api-key", "api-key", "x-goog-api-key", "mcp-session-id"];
const OF_THE_BODY = ["content-type", "content-encoding", "content-language", "idempotency-key"];

const MAX_SEEN = 1000; // foreign ids; a service that resumes repeats a few of them
const MAX_STREAMS = 8; // whose numbers are remembered; only the last one is read
const MAX_TIMEOUT = 2 ** 31 - 1; // a longer setTimeout fires at once, in every browser
const MAX_HEAD = 300_000; // the sidecar's own patience with an upstream's status line
const PROOF = 12_000; // the sidecar sends something every 10 s, so a connection that is well is heard by then

const DEFAULTS = {
  method: "GET",
  controlPath: "/.well-known/sse-sidecar",
  waitingAfter: 15_000,
  reconnectAfter: 30_000,
  checkEvery: 5_000,
  minDelay: 1_000,
  maxDelay: 5_000,
  jitter: 100,
};

const CONNECTING = 0;
const OPEN = 1;
const CLOSED = 2;

export class ResumableEventSource extends EventTarget {
  static CONNECTING = CONNECTING;
  static OPEN = OPEN;
  static CLOSED = CLOSED;
  CONNECTING = CONNECTING;
  OPEN = OPEN;
  CLOSED = CLOSED;

  // What is asked for.
  #options;
  #url;
  #method;
  #headers;
  /** @type {RequestCredentials} */
  #credentials;
  #asEventSource;
  #repeatable = false; // whether the same request, sent again, joins the first
  /** @type {Clock} */
  #clock;
  #fetch;

  // How it stands.
  #readyState = CONNECTING;
  /** @type {Status} */
  #status = "connecting";
  #told = ""; // the status as it was last dispatched, attempt and delay included
  #done = false; // nothing is dispatched any more
  /** @type {Connection | null} */
  #connection = null;
  /** @type {any} */
  #retryTimer = null;
  /** @type {any} */
  #checkTimer = null;
  #attempt = 0;
  #slowHeads = 0; // connections in a row that were given up before their head came
  #retry = 0; // the last `retry:`, a floor for every delay
  /** @type {number | null} */
  #lostAt = null;
  #upstreamWaits = false; // the sidecar said that it waits for the upstream
  #leaving = new AbortController(); // takes the listeners off the page
  /** @type {Promise<boolean> | null} */
  #stopped = null;
  #stopping = false;
  #onHead = () => {};

  // What has come.
  #lastEventId = "";
  #streamId = "";
  /** @type {Map<string, number>} */
  #seqs = new Map(); // stream id → number of its last event here
  /** @type {Map<string, number>} */
  #seen = new Map(); // foreign id → digest of its event
  #repeating = false; // within the run at a connection's start that may be known already
  #holeAnnounced = false;
  #lastGap = "";
  #mayMiss = false;
  #stats = { events: 0, duplicates: 0, reconnects: 0, gaps: 0, lost: 0, resets: 0, stalls: 0, reconnectMs: 0 };
  /** @type {number | null} */
  #lastReconnectMs = null;

  /**
   * @param {string | URL} url
   * @param {Options} [options]
   */
  constructor(url, options = {}) {
    super();
    const scope = options.scope ?? globalThis;
    this.#options = { ...DEFAULTS, random: Math.random, ...options, scope };
    this.#url = absolute(url, scope.location?.href);
    this.#method = this.#options.method.toUpperCase();
    this.#headers = new Headers(options.headers);
    this.#credentials = options.withCredentials ? "include" : (options.credentials ?? "same-origin");
    this.#clock = options.clock ?? clockOf(scope);
    this.#fetch = options.fetch ?? scope.fetch.bind(scope); // a browser's fetch insists on its `this`
    if (this.#method === "GET" && options.body != null) throw new TypeError("a GET has no body");
    this.#asEventSource = this.#asksAsEventSource();
    this.#identify();
    this.#begin();
    this.#listen();
    this.#connect();
  }

  get url() { return this.#url.href; }
  get withCredentials() { return this.#credentials === "include"; }
  get readyState() { return this.#readyState; }
  /** What a resume would ask to go on after. */
  get lastEventId() { return this.#lastEventId; }
  /** The sidecar's name for the stream; empty before it is known, and without a sidecar. */
  get streamId() { return this.#streamId; }
  get status() { return this.#status; }

  /** Counts since the start, and the share of the events known of that came, in percent. */
  get stats() {
    const { events, lost } = this.#stats;
    const completionRate = events + lost ? (100 * events) / (events + lost) : 100;
    return { ...this.#stats, lastReconnectMs: this.#lastReconnectMs, completionRate };
  }

  /** Leaves, now; nothing is dispatched after it. The upstream's work goes on, and can be resumed. */
  close() {
    if (this.#readyState !== CLOSED) this.#status = "closed";
    if (this.#status === "closed") this.#save(); // by a handler, before the chunk's own save
    this.#done = true;
    this.#shut();
  }

  /**
   * Ends the upstream's work, which leaving does not, and closes. Gives whether that work is known to have ended; where
   * it is not, the status is `failed` and says why.
   *
   * @returns {Promise<boolean>}
   */
  stop() {
    return (this.#stopped ??= this.#stop());
  }

  // The request

  /** The sidecar tells an EventSource by these, and answers it with 200 and `retry:` where others get a 503. */
  #asksAsEventSource() {
    if (this.#method !== "GET") return false;
    const accept = this.#headers.get("accept") ?? EVENT_STREAM;
    const control = this.#headers.get("cache-control") ?? "no-cache";
    const isMcp = [...this.#headers.keys()].some((name) => name.startsWith("mcp-"));
    return accept === EVENT_STREAM && control === "no-cache" && !isMcp;
  }

  /**
   * Gives a POST a key, by which the sidecar joins it to itself when it is sent once more, because its connection broke
   * before the answer's head. It does so for requests that bear credentials only: without them a guessed key would hand
   * out a stranger's answer. To another origin none is sent: a service that does not list the header in its
   * preflight's answer would be asked in vain. A key of the caller's own is his word that the service knows such keys.
   */
  #identify() {
    const { scope, body } = this.#options;
    let joined = this.#headers.has("idempotency-key");
    if (this.#method === "POST" && !joined && !this.#crossesOrigins()) {
      const key = scope.crypto?.randomUUID?.(); // only where the context is secure
      if (key) this.#headers.set("idempotency-key", key);
      joined = Boolean(key) && CREDENTIALS.some((name) => this.#headers.has(name));
    }
    this.#repeatable = joined && !isStream(body);
  }

  #crossesOrigins() {
    const { location } = this.#options.scope;
    return Boolean(location) && location.origin !== this.#url.origin;
  }

  #request() {
    const token = this.#token;
    const headers = new Headers(this.#headers);
    const url = new URL(this.#url);
    /** @type {RequestInit & { duplex?: "half" }} */
    const init = { method: this.#method, headers, credentials: this.#credentials };
    // Browsers and Node add `Cache-Control: no-cache` for it themselves. Set as a header, it would cost a preflight.
    init.cache = "no-store";
    if (!headers.has("accept")) headers.set("accept", EVENT_STREAM);
    if (token && this.#method !== "GET") {
      // Work is never asked for twice: what was begun with POST goes on by GET, which no service takes for an order.
      // The second type keeps this from passing for an EventSource, whose answers end cleanly without being complete.
      init.method = "GET";
      for (const name of OF_THE_BODY) headers.delete(name);
      headers.set("accept", `${EVENT_STREAM}, application/problem+json`);
    } else if (this.#options.body != null) {
      init.body = this.#options.body;
      if (isStream(this.#options.body)) init.duplex = "half";
    }
    // Unlike EventSource's, a Last-Event-ID set here makes a cross-origin request ask first, and be refused perhaps.
    if (TOKEN.test(token) && this.#crossesOrigins()) url.searchParams.set("last_event_id", token);
    else if (token) headers.set("last-event-id", bytesAsText(token));
    return { url, init };
  }

  /** What to go on after. A stream that broke before its first event has none, but may be asked for from its start. */
  get #token() {
    return this.#lastEventId || (this.#streamId && `0-${this.#streamId}`);
  }

  // One connection, from the request to its end

  #connect() {
    this.#retryTimer = null;
    const connection = (this.#connection = new Connection(this.#clock.now()));
    this.#exchange(connection).catch((error) => {
      if (connection === this.#connection) this.#onLost({ code: "network", message: String(error?.message ?? error) });
    });
    this.#watch();
  }

  /** @param {Connection} connection */
  async #exchange(connection) {
    const { url, init } = this.#request();
    const response = await this.#fetch(url.href, { ...init, signal: connection.signal });
    if (connection !== this.#connection) return;
    if (response.status === 204) {
      this.#end("complete");
    } else if (response.status !== 200 || !isOfType(response, EVENT_STREAM)) {
      await this.#onRefused(connection, response);
    } else {
      this.#onOpen(connection, response);
      await this.#read(connection, response);
      if (connection === this.#connection) this.#onCleanEnd();
    }
  }

  /** @param {Connection} connection @param {Response} response */
  #onOpen(connection, response) {
    connection.opened = true;
    connection.heard(this.#clock.now());
    connection.origin = response.url ? new URL(response.url).origin : this.#url.origin;
    this.#streamId = response.headers.get("sse-stream") ?? this.#streamId;
    this.#readyState = OPEN;
    this.#slowHeads = 0;
    this.#upstreamWaits = false;
    if (this.#lostAt !== null) {
      this.#lastReconnectMs = this.#clock.now() - this.#lostAt;
      this.#stats.reconnects += 1;
      this.#stats.reconnectMs += this.#lastReconnectMs;
      this.#lostAt = null;
      this.#repeating = true;
    }
    this.#save();
    this.#onHead();
    this.#dispatch(new Event("open"));
    this.#become("live");
    if (this.#mayMiss) this.#onGap(null, "The connection was lost, and the service gives no ids to go on by.");
    this.#mayMiss = false;
  }

  /** @param {Connection} connection @param {Response} response */
  async #read(connection, response) {
    /** @type {<T>(take: (value: T) => void) => (value: T) => void} a handler may close within a chunk */
    const whileCurrent = (take) => (value) => connection === this.#connection && take(value);
    const parser = new EventStreamParser({
      lastEventId: this.#lastEventId,
      onEvent: whileCurrent((event) => this.#onEvent(event, connection.origin)),
      onId: whileCurrent((id) => this.#onId(id)),
      onRetry: whileCurrent((ms) => (this.#retry = ms)),
      onComment: whileCurrent((text) => this.#onComment(text)),
    });
    for (const reader = response.body?.getReader(); reader; ) {
      const { done, value } = await reader.read();
      if (done || connection !== this.#connection) return;
      this.#onBytes(connection);
      parser.feed(value);
      this.#save();
    }
  }

  /**
   * A body that ended as a whole. The sidecar ends an EventSource's so to have it come back, and tells it by 204 that
   * there is no more; to everyone else it means complete. Without a sidecar a GET comes back too, as an EventSource.
   */
  #onCleanEnd() {
    if (this.#asEventSource || (this.#method === "GET" && !this.#streamId)) this.#reconnect(null);
    else this.#end("complete");
  }

  /** @param {Connection} connection @param {Response} response an answer that is no stream */
  async #onRefused(connection, response) {
    const problem = await problemOf(response);
    if (connection !== this.#connection) return;
    const { status } = response;
    // With 429 and 503 the work was not begun; of the other 5xx no one knows.
    const notBegun = (status === 429 || status === 503) && !isStream(this.#options.body);
    const passes = status === 429 || status >= 500;
    const floor = retryAfter(response, this.#clock.now());
    if (passes && (notBegun || this.#mayAskAgain)) this.#reconnect(problem, { floor });
    else this.#fail(problem);
  }

  /** @param {Problem} problem */
  #onLost(problem) {
    if (!this.#mayAskAgain) {
      const message = "The connection was lost, and the request cannot be repeated: its work could be done twice.";
      this.#fail({ ...problem, code: "not-resumable", message, cause: problem.message });
      return;
    }
    this.#reconnect(problem);
  }

  /** Whether asking once more does no work twice. A key counts until the answer begins: then there is a token. */
  get #mayAskAgain() {
    return this.#method === "GET" || Boolean(this.#token) || (this.#repeatable && !this.#connection?.opened);
  }

  // What comes

  /** @param {Connection} connection */
  #onBytes(connection) {
    connection.heard(this.#clock.now());
    if (!this.#upstreamWaits) this.#become("live");
  }

  /** @param {string} text */
  #onComment(text) {
    if (text.startsWith(" waiting")) {
      this.#upstreamWaits = true;
      this.#become("waiting");
    } else if (text !== " heartbeat") {
      this.#onUpstream(); // a comment of the upstream's own
    }
  }

  #onUpstream() {
    this.#upstreamWaits = false;
    this.#become("live");
  }

  /** @param {string} id set by a block without data, as the sidecar's first */
  #onId(id) {
    const { seq, stream } = parseToken(id);
    if (stream && seq < (this.#seqs.get(stream) ?? 0)) return;
    if (stream) this.#remember(stream, seq);
    this.#lastEventId = id;
  }

  /** @param {ParsedEvent} event @param {string} origin */
  #onEvent(event, origin) {
    const { type, data, lastEventId } = event;
    const message = new MessageEvent(type, { data, lastEventId, origin });
    const signal = type === SIGNAL ? parseJson(data)?.error : null;
    if (signal?.code) {
      this.#onSignal(signal, message);
      return;
    }
    if (!this.#isNew(event)) {
      this.#stats.duplicates += 1;
      return;
    }
    if (this.#done) return; // closed by who was told of a gap
    if (event.hasId) this.#lastEventId = lastEventId;
    this.#stats.events += 1;
    this.#attempt = 0;
    this.#onUpstream();
    this.#dispatch(message);
  }

  /** Each event once. @param {ParsedEvent} event */
  #isNew(event) {
    const { seq, stream } = parseToken(event.lastEventId);
    if (!event.hasId) return true; // the id is an earlier event's
    return stream ? this.#isNext(seq, stream) : this.#isUnseen(event);
  }

  /** @param {number} seq @param {string} stream */
  #isNext(seq, stream) {
    const before = this.#seqs.get(stream) || seq - 1; // 0 asks for a stream's start, whatever number that has
    if (seq <= before) return false;
    this.#remember(stream, seq);
    if (seq > before + 1 && !this.#holeAnnounced) this.#onGap(seq - before - 1, "Events are missing before this one.");
    this.#holeAnnounced = false;
    return true;
  }

  /**
   * Of foreign ids no order is known, and some services give one id to many events, or number each connection anew. So
   * only what a service repeats at the start of a further connection is dropped: the unbroken run that is equal, id
   * and content, to what came before.
   *
   * @param {ParsedEvent} event
   */
  #isUnseen({ lastEventId, type, data }) {
    const digest = digestOf(`${type}\n${data}`);
    this.#repeating &&= this.#seen.get(lastEventId) === digest;
    if (this.#repeating) return false;
    keep(this.#seen, lastEventId, digest, MAX_SEEN);
    return true;
  }

  /** @param {string} stream @param {number} seq */
  #remember(stream, seq) {
    keep(this.#seqs, stream, seq, MAX_STREAMS);
    this.#streamId = stream; // a stream may follow another within one answer
  }

  /**
   * What the sidecar says about the stream, which is no event of it.
   *
   * @param {Problem} signal @param {MessageEvent} message
   */
  #onSignal(signal, message) {
    const { code = "", message: text = "", lost = null } = signal;
    // A gap stands just before its event: a connection that broke between the two brings it again.
    const gap = `${code} ${this.#lastEventId}`;
    if (code === "gap" && gap === this.#lastGap) return;
    this.#dispatch(message);
    if (code === "gap") {
      this.#lastGap = gap;
      this.#holeAnnounced = true;
      this.#onGap(lost, text);
    } else if (code === "reset") {
      this.#stats.resets += 1;
      this.#dispatch(new CustomEvent("reset", { detail: signal }));
    } else if (code === "too-large" || this.#streamId.startsWith("p")) {
      this.#fail(signal); // nothing more will come, however often it is asked for
    } else {
      this.#dispatchError(signal);
    }
  }

  /** @param {number | null} lost how many, where that is known @param {string} message */
  #onGap(lost, message) {
    this.#stats.gaps += 1;
    this.#stats.lost += lost ?? 0;
    this.#dispatch(new CustomEvent("gap", { detail: { lost, message } }));
  }

  // Silence

  /** Looks at the clock often, not only when time is up: a timer that waited through a laptop's sleep waits on. */
  #watch() {
    this.#clock.clearTimeout(this.#checkTimer);
    const connection = this.#connection;
    if (!connection) return;
    const { checkEvery, waitingAfter } = this.#options;
    const quiet = connection.quiet(this.#clock.now());
    const left = [waitingAfter - quiet, this.#patience(connection) - quiet].filter((ms) => ms > 0);
    this.#checkTimer = this.#clock.setTimeout(() => this.#check(), Math.min(checkEvery, ...left));
  }

  #check() {
    const connection = this.#connection;
    if (!connection) return;
    const now = this.#clock.now();
    const silent = connection.quiet(now) >= this.#patience(connection);
    if ((silent && this.#mayGiveUp(connection)) || now >= connection.proofBy) {
      this.#onSilence(connection);
      return;
    }
    if (connection.quiet(now) >= this.#options.waitingAfter && this.#status !== "offline") this.#become("waiting");
    this.#watch();
  }

  /** A service that takes its time to answer is given more of it with each attempt. @param {Connection} connection */
  #patience(connection) {
    const { reconnectAfter } = this.#options;
    if (connection.opened) return reconnectAfter;
    return Math.max(reconnectAfter, Math.min(reconnectAfter * 2 ** this.#slowHeads, MAX_HEAD));
  }

  /** A service that gives no ids may just be quiet, and events would be lost by it. @param {Connection} connection */
  #mayGiveUp(connection) {
    return this.#mayAskAgain && (!connection.opened || Boolean(this.#token));
  }

  /** @param {Connection} connection */
  #onSilence(connection) {
    this.#become("waiting");
    if (!connection.opened) this.#slowHeads += 1;
    if (!this.#connection) return; // closed by who was told
    this.#reconnect({ code: "stalled", message: "Nothing has come for too long." }, { atOnce: true });
  }

  // The network and the page

  #listen() {
    const { scope } = this.#options;
    const { signal } = this.#leaving;
    const connection = scope.navigator?.connection; // Chromium's
    let type = connection?.type;
    const changed = () => {
      const before = type;
      type = connection.type;
      this.#onNetworkChange(type !== before, type === undefined);
    };
    const looked = () => scope.document?.visibilityState !== "hidden" && (this.#hurry() || this.#check());
    scope.addEventListener?.("online", () => this.#onOnline(), { signal });
    scope.addEventListener?.("offline", () => this.#become("offline"), { signal });
    scope.addEventListener?.("pageshow", looked, { signal });
    scope.document?.addEventListener?.("visibilitychange", looked, { signal });
    connection?.addEventListener?.("change", changed, { signal });
  }

  #onOnline() {
    if (!this.#hurry() && this.#status === "offline") this.#leave("The network was away.");
  }

  /**
   * Chromium says `change` for a new estimate of the speed too, and tells the type of the network on phones only. Where
   * it does not, the connection is given the time of one heartbeat to prove itself.
   *
   * @param {boolean} other @param {boolean} unknown
   */
  #onNetworkChange(other, unknown) {
    if (this.#hurry()) return;
    if (other) this.#leave("The network has changed.");
    else if (unknown) this.#doubt();
  }

  /** Makes the attempt now that is waited for. Says whether there was one. */
  #hurry() {
    if (this.#retryTimer === null) return false;
    this.#clock.clearTimeout(this.#retryTimer);
    this.#connect();
    return true;
  }

  /** @param {string} message why the connection can be no good any more */
  #leave(message) {
    if (this.#connection && this.#mayAskAgain) this.#reconnect({ code: "network", message }, { atOnce: true });
  }

  #doubt() {
    const connection = this.#connection;
    if (!connection?.opened || !this.#streamId) return; // only the sidecar's heartbeats can be counted on
    connection.proofBy = Math.min(connection.proofBy, this.#clock.now() + PROOF);
    this.#watch();
  }

  // Again

  /** @param {Problem | null} problem @param {{ floor?: number, atOnce?: boolean }} [how] */
  #reconnect(problem, { floor = 0, atOnce = false } = {}) {
    this.#drop();
    if (this.#stopping) return; // what is asked for is the end
    this.#readyState = CONNECTING;
    this.#mayMiss ||= Boolean(problem) && !this.#token && this.#stats.events > 0;
    this.#lostAt ??= this.#clock.now();
    const delay = atOnce ? 0 : this.#delay(floor);
    this.#attempt += 1;
    this.#retryTimer = this.#clock.setTimeout(() => this.#connect(), delay);
    this.#become(this.#options.scope.navigator?.onLine === false ? "offline" : "reconnecting", { delay, problem });
    this.#dispatchError(problem, delay); // EventSource's way to say it
    if (atOnce) this.#hurry();
  }

  /** @param {number} floor */
  #delay(floor) {
    const { minDelay, maxDelay, jitter, random } = this.#options;
    const backOff = Math.min(minDelay * 2 ** this.#attempt, maxDelay);
    return Math.min(Math.round(Math.max(backOff, this.#retry, floor) + random() * jitter), MAX_TIMEOUT);
  }

  #drop() {
    const connection = this.#connection;
    this.#connection = null;
    connection?.abort();
    this.#clock.clearTimeout(this.#checkTimer);
  }

  // The end

  /** @param {Problem} problem */
  #fail(problem) {
    this.#end("failed", problem);
  }

  /** @param {"complete" | "failed"} status @param {Problem | null} [problem] */
  #end(status, problem = null) {
    this.#shut();
    this.#storage((storage, key) => storage.removeItem(key));
    this.#attempt = 0;
    this.#become(status, { problem });
    if (problem) this.#dispatchError(problem);
    this.#done = true;
  }

  #shut() {
    this.#readyState = CLOSED;
    this.#drop();
    this.#clock.clearTimeout(this.#retryTimer);
    this.#retryTimer = null;
    this.#leaving.abort();
    this.#onHead();
  }

  async #stop() {
    // A POST with a key runs on without us; one that has none is ended by leaving it.
    while (this.#repeatable && !this.#streamId && this.#readyState === CONNECTING) {
      await new Promise((resolve) => (this.#onHead = () => resolve(null)));
    }
    if (this.#readyState === CLOSED) return this.#status === "complete";
    this.#stopping = true;
    const problem = this.#streamId ? await this.#delete() : null;
    if (!this.#done) this.#end(problem ? "failed" : "complete", problem);
    return this.#status === "complete";
  }

  /** @returns {Promise<Problem | null>} */
  async #delete() {
    const url = new URL(`${this.#options.controlPath}/streams/${this.#streamId}`, this.#url);
    const headers = new Headers(this.#headers);
    for (const name of OF_THE_BODY) headers.delete(name);
    try {
      const response = await this.#fetch(url.href, { method: "DELETE", headers, credentials: this.#credentials });
      return response.ok ? null : await problemOf(response);
    } catch (error) {
      const message = "The stop did not get through; the work may go on.";
      return { code: "not-stopped", message, cause: String(error) };
    }
  }

  // Across a reload of the page

  #begin() {
    const { lastEventId, streamId, fromStart } = this.#options;
    let id = lastEventId ?? (streamId ? `0-${streamId}` : this.#stored());
    if (fromStart) id = parseToken(id).stream && `0-${parseToken(id).stream}`;
    this.#onId(id);
  }

  #stored() {
    const stored = this.#storage((storage, key) => parseJson(storage.getItem(key)));
    return stored?.url === this.#url.href && typeof stored.id === "string" ? stored.id : "";
  }

  #save() {
    if (!this.#token || this.#done) return;
    this.#storage((storage, key) => storage.setItem(key, JSON.stringify({ url: this.#url.href, id: this.#token })));
  }

  /** @template T @param {(storage: Storage, key: string) => T} use @returns {T | undefined} */
  #storage(use) {
    const { resumeKey, scope } = this.#options;
    if (resumeKey === undefined) return undefined;
    try {
      return scope.sessionStorage && use(scope.sessionStorage, `sse-sidecar:${resumeKey}`);
    } catch {
      return undefined; // forbidden by the user, or full: there is no resume across a reload then
    }
  }

  // What is told

  /** @param {Status} status @param {{ delay?: number, problem?: Problem | null }} [facts] */
  #become(status, { delay = 0, problem = null } = {}) {
    const told = `${status} ${this.#attempt} ${delay}`;
    if (this.#done || (status === this.#status && (told === this.#told || !TELLS_ATTEMPTS.has(status)))) return;
    if (status === "waiting") this.#stats.stalls += 1;
    this.#status = status;
    this.#told = told;
    this.#dispatch(new CustomEvent("status", { detail: { status, attempt: this.#attempt, delay, problem } }));
  }

  /** @param {Problem | null} problem @param {number} [delay] */
  #dispatchError(problem, delay = 0) {
    /** @type {Detail} */
    const detail = { status: this.#status, attempt: this.#attempt, delay, problem };
    this.#dispatch(new CustomEvent("error", { detail }));
  }

  /** @param {Event} event */
  #dispatch(event) {
    if (!this.#done) this.dispatchEvent(event);
  }

  // EventSource's other way to listen

  /** @type {Map<string, (event: any) => void>} */
  #handlers = new Map();

  /** @param {string} type @param {((event: any) => void) | null} handler */
  #handle(type, handler) {
    const before = this.#handlers.get(type);
    if (before) this.removeEventListener(type, before);
    this.#handlers.delete(type);
    if (typeof handler !== "function") return;
    this.#handlers.set(type, handler);
    this.addEventListener(type, handler);
  }

  get onopen() { return this.#handlers.get("open") ?? null; }
  set onopen(handler) { this.#handle("open", handler); }
  get onmessage() { return this.#handlers.get("message") ?? null; }
  set onmessage(handler) { this.#handle("message", handler); }
  get onerror() { return this.#handlers.get("error") ?? null; }
  set onerror(handler) { this.#handle("error", handler); }
  get onstatus() { return this.#handlers.get("status") ?? null; }
  set onstatus(handler) { this.#handle("status", handler); }
  get ongap() { return this.#handlers.get("gap") ?? null; }
  set ongap(handler) { this.#handle("gap", handler); }
  get onreset() { return this.#handlers.get("reset") ?? null; }
  set onreset(handler) { this.#handle("reset", handler); }
}

/** @type {Set<Status>} */
const TELLS_ATTEMPTS = new Set(/** @type {Status[]} */ (["reconnecting", "offline"]));

/** One request and its answer. What comes of one that is no longer the current one is nobody's. */
class Connection {
  #controller = new AbortController();
  #heardAt;
  opened = false;
  origin = "";
  proofBy = Infinity; // heard nothing by then, it is given up

  /** @param {number} now */
  constructor(now) {
    this.#heardAt = now;
  }

  get signal() { return this.#controller.signal; }

  abort() {
    this.#controller.abort();
  }

  /** @param {number} now */
  heard(now) {
    this.#heardAt = now;
    this.proofBy = Infinity;
  }

  /** Milliseconds without a byte; counted anew where the clock was set back. @param {number} now */
  quiet(now) {
    this.#heardAt = Math.min(this.#heardAt, now);
    return now - this.#heardAt;
  }
}

/**
 * @typedef {{ type: string, data: string, lastEventId: string, hasId: boolean }} ParsedEvent
 *   `hasId` says whether the id is its own, and not that of an event before it
 */

/**
 * The event stream format (WHATWG HTML, 9.2.6), line for line. What is unfinished when the stream ends is never told.
 */
export class EventStreamParser {
  // It takes off the one byte order mark that the standard allows, and what is no UTF-8 becomes U+FFFD, as there.
  #decoder = new TextDecoder();
  #on;
  #line = "";
  #skipLf = false;
  #data = "";
  #type = "";
  #id;
  #hasId = false;

  /**
   * `lastEventId` is where the connection before this one ended: an event without an id bears it still.
   *
   * @param {{
   *   onEvent(event: ParsedEvent): void,
   *   onId?(id: string): void,
   *   onRetry?(ms: number): void,
   *   onComment?(text: string): void,
   *   lastEventId?: string,
   * }} on `onId` is told ids of blocks that are no event
   */
  constructor(on) {
    this.#on = on;
    this.#id = on.lastEventId ?? "";
  }

  /** @param {Uint8Array} chunk */
  feed(chunk) {
    let text = this.#decoder.decode(chunk, { stream: true });
    if (!text) return;
    // A CR ends its line at once, as no one knows when the next byte comes; an LF right after it is passed over.
    if (this.#skipLf && text[0] === "\n") text = text.slice(1);
    this.#skipLf = text.endsWith("\r");
    const lines = text.split(/\r\n|\r|\n/);
    const rest = lines.pop() ?? "";
    for (const line of lines) {
      const whole = this.#line + line;
      this.#line = "";
      this.#take(whole);
    }
    this.#line += rest;
  }

  /** @param {string} line */
  #take(line) {
    const colon = line.indexOf(":");
    if (line === "") this.#finish();
    else if (colon === 0) this.#on.onComment?.(line.slice(1));
    else if (colon < 0) this.#field(line, "");
    else this.#field(line.slice(0, colon), line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1));
  }

  /** @param {string} name @param {string} value */
  #field(name, value) {
    if (name === "data") {
      this.#data += value + "\n";
    } else if (name === "event") {
      this.#type = value;
    } else if (name === "id" && !value.includes("\0")) {
      this.#id = value;
      this.#hasId = true;
    } else if (name === "retry" && /^[0-9]+$/.test(value)) {
      this.#on.onRetry?.(Number(value));
    }
  }

  #finish() {
    const data = this.#data.slice(0, -1);
    const event = { type: this.#type || "message", data, lastEventId: this.#id, hasId: this.#hasId };
    const isEvent = this.#data !== "";
    this.#data = this.#type = "";
    this.#hasId = false;
    if (isEvent) this.#on.onEvent(event);
    else if (event.hasId) this.#on.onId?.(event.lastEventId);
  }
}

// Small things

/** Browsers want their timers called as functions of the global object. @param {any} scope @returns {Clock} */
function clockOf(scope) {
  return {
    now: Date.now,
    setTimeout: (run, ms) => scope.setTimeout(run, ms),
    clearTimeout: (timer) => scope.clearTimeout(timer),
  };
}

/** @param {string | URL} url @param {string} [base] */
function absolute(url, base) {
  try {
    return new URL(url, base);
  } catch {
    throw new DOMException(`not a URL: ${url}`, "SyntaxError"); // as EventSource's constructor
  }
}

/** @param {string} id */
function parseToken(id) {
  const [, seq = "0", stream = ""] = TOKEN.exec(id) ?? [];
  return { seq: Number(seq), stream };
}

/** A header value is bytes, and EventSource sends an id as UTF-8. @param {string} id */
function bytesAsText(id) {
  return String.fromCharCode(...new TextEncoder().encode(id));
}

/** @param {unknown} body */
function isStream(body) {
  return typeof ReadableStream !== "undefined" && body instanceof ReadableStream;
}

/** @param {Response} response @param {string} type */
function isOfType(response, type) {
  return response.headers.get("content-type")?.split(";")[0].trim().toLowerCase() === type;
}

/**
 * Why an answer is no stream. Only JSON is read: another body may never end.
 *
 * @param {Response} response @returns {Promise<Problem>}
 */
async function problemOf(response) {
  const type = response.headers.get("content-type") ?? "none";
  const body = /[/+]json\s*(;|$)/i.test(type) ? parseJson(await response.text().catch(() => "")) : null;
  const detail = response.ok ? `The answer is no event stream; its Content-Type is ${type}.` : "";
  return { title: response.statusText, detail, ...(typeof body === "object" ? body : {}), status: response.status };
}

/** In milliseconds (RFC 9110, 10.2.3). @param {Response} response @param {number} now */
function retryAfter(response, now) {
  const value = response.headers.get("retry-after") ?? "0";
  const ms = /^\d+$/.test(value) ? Number(value) * 1000 : Date.parse(value) - now;
  return ms > 0 ? ms : 0;
}

/** @param {string | null} text */
function parseJson(text) {
  try {
    return JSON.parse(text ?? "null");
  } catch {
    return null;
  }
}

/** FNV-1a; enough to tell an event from another with the same id. @param {string} text */
function digestOf(text) {
  let hash = 0x811c9dc5;
  for (let index = 0; index < text.length; index += 1) hash = Math.imul(hash ^ text.charCodeAt(index), 0x01000193);
  return hash;
}

/** @param {Map<string, number>} map @param {string} key @param {number} value @param {number} most the oldest go */
function keep(map, key, value, most) {
  map.delete(key);
  map.set(key, value);
  if (map.size > most) map.delete(/** @type {string} */ (map.keys().next().value));
}
