/** What is asked for and how, and EventSource's surface. */
import assert from "node:assert/strict";
import { getEventListeners } from "node:events";
import { describe, it } from "node:test";
import { ResumableEventSource } from "../../sse_sidecar/static/client.js";
import { G, P, event, events, numbers, prime, setUp } from "./helpers.mjs";

const SECRET = { Authorization: "Bearer x" };
const post = (more = {}) => ({
  method: "POST",
  body: '{"a":1}',
  ...more,
  headers: { "Content-Type": "application/json", ...more.headers },
});

describe("a drop-in for EventSource", () => {
  it("has its surface", async (test) => {
    const { service, open } = await setUp(test);
    const { source } = open({ withCredentials: true }, "/stream?a=1");
    assert.deepEqual(
      [ResumableEventSource.CONNECTING, ResumableEventSource.OPEN, ResumableEventSource.CLOSED],
      [0, 1, 2],
    );
    assert.deepEqual([source.CONNECTING, source.OPEN, source.CLOSED], [0, 1, 2]);
    assert.equal(source.url, `${service.url}/stream?a=1`);
    assert.equal(source.withCredentials, true);
    assert.ok(source instanceof EventTarget);
    assert.deepEqual([source.onopen, source.onmessage, source.onerror], [null, null, null]);
  });

  it("dispatches MessageEvents with data, id and origin, by type", async (test) => {
    const { service, open } = await setUp(test);
    const told = open({ types: ["tick"] });
    await (await service.next()).begin().send("event: tick\nid: 7\ndata: a\ndata: b\n\ndata: c\n\n");
    await told.untilData("c");
    const [tick] = told.of("tick");
    assert.ok(tick instanceof MessageEvent);
    assert.deepEqual([tick.data, tick.lastEventId, tick.origin], ["a\nb", "7", service.url]);
    assert.equal(told.of("message")[0].lastEventId, "7");
    assert.equal(told.source.lastEventId, "7");
  });

  it("calls its handlers, and another in their place", async (test) => {
    const { service, open } = await setUp(test);
    const told = open();
    const calls = [];
    told.source.onopen = () => calls.push("open");
    told.source.onmessage = () => calls.push("never");
    told.source.onmessage = ({ data }) => calls.push(data);
    const first = (await service.next()).begin();
    await first.send("data: 1\n\n");
    await told.untilData("1");
    told.source.onmessage = null;
    await first.send("data: 2\n\n");
    await told.untilData("1", "2");
    assert.deepEqual(calls, ["open", "1"]);
  });

  it("refuses what is no URL, and a GET with a body", () => {
    assert.throws(() => new ResumableEventSource("//"), { name: "SyntaxError" });
    assert.throws(() => new ResumableEventSource("http://127.0.0.1:9/", { body: "x" }), TypeError);
  });

  it("takes a relative URL in a page", async (test) => {
    const { service, open } = await setUp(test, { page: { origin: "http://page.test" } });
    const told = open({ fetch: (url) => fetch(`${service.url}/?${url}`) }, "/../x");
    await service.next();
    assert.equal(told.source.url, `${service.url}/x`);
  });

  it("is told nothing after close, and leaves at once", async (test) => {
    const { service, clock, open } = await setUp(test);
    const told = open();
    told.source.onmessage = ({ data }) => data === "2" && told.source.close();
    const first = (await service.next()).stream(G);
    await first.send(events(1, 5));
    await first.left;
    assert.deepEqual(told.data, ["1", "2"]);
    assert.deepEqual([told.source.lastEventId, told.source.stats.events], [`2-${G}`, 2]);
    assert.deepEqual([told.source.readyState, told.source.status, clock.timers], [2, "closed", 0]);
    assert.deepEqual(told.of("error"), []);
  });

  it("can be closed by whoever is told anything", async (test) => {
    const { service, open } = await setUp(test);
    const opened = open();
    opened.source.onopen = () => opened.source.close();
    await (await service.next()).stream(G).left;
    assert.deepEqual([opened.source.status, opened.statuses], ["closed", []]);
    const failed = open();
    failed.source.onstatus = () => failed.source.close();
    (await service.next()).refuse(404);
    await failed.untilStatus("failed");
    assert.deepEqual(failed.of("error"), []);
  });

  it("can be closed before the head, and while it waits", async (test) => {
    const set = await setUp(test);
    const { service, clock, open } = set;
    const early = open();
    const first = await service.next();
    early.source.close();
    await first.left;
    const late = open();
    (await service.next()).cut();
    await late.untilStatus("reconnecting");
    late.source.close();
    clock.advance(60_000);
    assert.equal(set.asked, 2);
    assert.equal(clock.timers, 0);
    assert.deepEqual(early.events, []);
  });

  it("listens to the page no more once it is closed", async (test) => {
    const set = await setUp(test);
    const { page, service, open } = set;
    const { source } = open();
    assert.equal(getEventListeners(page, "online").length, 1);
    source.close();
    assert.deepEqual(getEventListeners(page, "online"), []);
    page.fire("online");
    page.fire("offline");
    assert.equal(source.status, "closed");
    assert.ok(set.asked <= 1);
  });
});

describe("a GET", () => {
  it("asks exactly as an EventSource does", async (test) => {
    const { service, open } = await setUp(test);
    open();
    const { method, headers } = await service.next();
    assert.deepEqual([method, headers.accept, headers["cache-control"]], ["GET", "text/event-stream", "no-cache"]);
    assert.equal(headers["last-event-id"], undefined);
    assert.equal(headers["idempotency-key"], undefined);
  });

  it("bears the headers it is given, when it comes back too", async (test) => {
    const { service, clock, open } = await setUp(test);
    const told = open({ headers: SECRET });
    const first = await service.next();
    await first.stream(G).send(event(1));
    await told.untilData("1");
    first.cut();
    await told.untilStatus("reconnecting");
    clock.advance(1000);
    assert.equal((await service.next()).headers.authorization, "Bearer x");
  });

  it("comes back after a clean end, as an EventSource, and 204 is the end", async (test) => {
    const { service, clock, open } = await setUp(test);
    const told = open();
    const first = (await service.next()).stream(G);
    first.end("retry: 2500\n\n" + event(1));
    await told.untilStatus("reconnecting");
    assert.equal(told.details("status").at(-1).delay, 2500);
    clock.advance(2500);
    (await service.next()).refuse(204);
    await told.untilStatus("complete");
    assert.deepEqual(
      told.of("error").map(({ detail }) => detail.problem),
      [null],
    );
  });

  it("that does not pass for an EventSource is complete with a clean end", async (test) => {
    const { service, open } = await setUp(test);
    for (const headers of [
      { Accept: "text/event-stream, application/json" },
      { "Cache-Control": "max-age=0" },
      { "MCP-Protocol-Version": "2025-11-25" },
    ]) {
      const told = open({ headers });
      (await service.next()).stream(G).end(event(1));
      await told.until(() => told.source.status === "complete" || told.of("error").length);
      assert.equal(told.source.status, "complete");
    }
  });

  it("comes back to a service without the sidecar, whatever it accepts", async (test) => {
    const { service, open } = await setUp(test);
    const told = open({ headers: { Accept: "*/*" } });
    (await service.next()).begin().end("data: 1\n\n");
    await told.untilStatus("reconnecting");
  });

  it("sends an id that is no ASCII as UTF-8", async (test) => {
    const { service, open } = await setUp(test);
    open({ lastEventId: "né" });
    assert.equal(Buffer.from((await service.next()).token, "latin1").toString(), "né");
  });

  it("to another origin bears its token where no preflight is needed", async (test) => {
    const { service, open } = await setUp(test, { page: { origin: "http://page.test" } });
    open({ lastEventId: `3-${G}` }, "/stream?a=1");
    const { path, token } = await service.next();
    assert.deepEqual([path, token], [`/stream?a=1&last_event_id=3-${G}`, undefined]);
  });
});

describe("a POST", () => {
  it("is sent with its body, and complete with a clean end", async (test) => {
    const { service, clock, open } = await setUp(test);
    const told = open(post());
    const first = await service.next();
    assert.deepEqual(
      [first.method, first.body, first.headers["content-type"]],
      ["POST", '{"a":1}', "application/json"],
    );
    first.stream(P).end(events(1, 2, P));
    await told.untilStatus("complete");
    assert.deepEqual([told.data, told.of("error"), clock.timers], [["1", "2"], [], 0]);
  });

  it("that is cut goes on by GET on the same URL, as no EventSource", async (test) => {
    const { service, clock, open } = await setUp(test);
    const told = open(post({ headers: SECRET }), "/chat?a=1");
    const first = (await service.next()).stream(P);
    await first.send(events(1, 2, P));
    await told.untilData("1", "2");
    first.cut();
    await told.untilStatus("reconnecting");
    clock.advance(1000);
    const { method, path, token, body, headers } = await service.next().then((second) => {
      second.stream(P, "resumed").end(events(3, 4, P));
      return second;
    });
    assert.deepEqual([method, path, token, body], ["GET", "/chat?a=1", `2-${P}`, ""]);
    assert.deepEqual(
      [headers.authorization, headers["content-type"], headers["idempotency-key"]],
      ["Bearer x", undefined, undefined],
    );
    assert.notEqual(headers.accept, "text/event-stream");
    await told.untilStatus("complete");
    assert.deepEqual(told.data, numbers(1, 4));
  });

  it("that is cut before its first event goes on by the stream's id", async (test) => {
    const { service, clock, open } = await setUp(test);
    const told = open(post());
    const first = (await service.next()).stream(P);
    await told.untilStatus("live");
    first.cut();
    await told.untilStatus("reconnecting");
    clock.advance(1000);
    const second = await service.next();
    assert.deepEqual([second.method, second.token], ["GET", `0-${P}`]);
    second.stream(P, "resumed").end(events(1, 2, P));
    await told.untilStatus("complete");
    assert.equal(told.source.stats.gaps, 0);
  });

  it("that is cut before its head is repeated with its key, where the sidecar joins it", async (test) => {
    const { service, clock, open } = await setUp(test);
    const told = open(post({ headers: SECRET }));
    const first = await service.next();
    assert.match(first.headers["idempotency-key"], /^[0-9a-f-]{36}$/);
    first.cut();
    await told.untilStatus("reconnecting");
    clock.advance(1000);
    const second = await service.next();
    assert.deepEqual(
      [second.method, second.body, second.headers["idempotency-key"]],
      ["POST", '{"a":1}', first.headers["idempotency-key"]],
    );
  });

  it("that is cut before its head is repeated with a key of the caller's", async (test) => {
    const { service, clock, open } = await setUp(test);
    const told = open(post({ headers: { "Idempotency-Key": "mine" } }));
    (await service.next()).cut();
    await told.untilStatus("reconnecting");
    clock.advance(1000);
    assert.equal((await service.next()).headers["idempotency-key"], "mine");
  });

  it("that is cut before its head is not repeated otherwise, and that is said", async (test) => {
    const set = await setUp(test);
    const { service, clock, open } = set;
    const told = open(post());
    (await service.next()).cut();
    await told.until(() => told.of("error").length === 1);
    assert.deepEqual([told.source.status, told.details("error")[0].problem.code], ["failed", "not-resumable"]);
    clock.advance(60_000);
    assert.equal(set.asked, 1);
  });

  it("to a service without ids is not repeated after it was cut", async (test) => {
    const { service, open } = await setUp(test);
    const told = open(post({ headers: SECRET }));
    const first = (await service.next()).begin();
    await first.send("data: 1\n\n");
    await told.untilData("1");
    first.cut();
    await told.untilStatus("failed");
    assert.equal(told.details("error")[0].problem.code, "not-resumable");
  });

  it("gets no key to another origin, which might not allow the header", async (test) => {
    const { service, open } = await setUp(test, { page: { origin: "http://page.test" } });
    open(post({ headers: SECRET }));
    assert.equal((await service.next()).headers["idempotency-key"], undefined);
  });

  it("is sent again after 429 and 503, which took no work up, and after 500 only with a key", async (test) => {
    const { service, clock, open } = await setUp(test);
    for (const [headers, statuses] of [
      [{}, [429, 503]],
      [SECRET, [500, 502, 504]],
    ]) {
      const told = open(post({ headers }));
      for (const status of statuses) {
        (await service.next()).refuse(status);
        await told.until(() => told.details("error").at(-1)?.problem.status === status);
        assert.equal(told.source.status, "reconnecting");
        clock.advance(5000);
      }
      await service.next();
      told.source.close();
    }
    const told = open(post());
    (await service.next()).refuse(500, { title: "Broken" });
    await told.untilStatus("failed");
    assert.equal(told.details("status").at(-1).problem.title, "Broken");
  });

  it("with a body that is read once is not sent twice", async (test) => {
    const { service, open } = await setUp(test);
    const told = open(post({ headers: SECRET, body: new Blob(["once"]).stream() }));
    const first = await service.next();
    assert.equal(first.body, "once");
    first.refuse(503);
    await told.untilStatus("failed");
  });
});

describe("a stop", () => {
  it("ends the work with DELETE and the same credentials, and closes", async (test) => {
    const { service, page, clock, open } = await setUp(test);
    const told = open(post({ headers: SECRET, resumeKey: "chat" }));
    const first = (await service.next()).stream(P);
    await first.send(event(1, P));
    await told.untilData("1");
    const stopped = told.source.stop();
    const asked = await service.next();
    assert.deepEqual(
      [asked.method, asked.path, asked.headers.authorization],
      ["DELETE", `/.well-known/sse-sidecar/streams/${P}`, "Bearer x"],
    );
    assert.equal(asked.headers["idempotency-key"], undefined);
    await first.send(event(2, P));
    await told.untilData("1", "2");
    asked.refuse(204);
    assert.equal(await stopped, true);
    assert.equal(await told.source.stop(), true);
    assert.deepEqual(
      [told.source.status, told.source.readyState, page.stored.size, clock.timers],
      ["complete", 2, 0, 0],
    );
    await first.left;
  });

  it("of a GET is no reconnect, though its stream ends first", async (test) => {
    const { service, open } = await setUp(test);
    const told = open({ controlPath: "/own" });
    const first = (await service.next()).stream(G);
    await first.send(event(1));
    await told.untilData("1");
    const stopped = told.source.stop();
    const asked = await service.next();
    assert.equal(asked.path, `/own/streams/${G}`);
    first.end();
    asked.refuse(204);
    assert.equal(await stopped, true);
    assert.deepEqual(told.statuses, ["live", "complete"]);
  });

  it("that is refused is said, and closes all the same", async (test) => {
    const { service, open } = await setUp(test);
    const told = open();
    await (await service.next()).stream(G).send(event(1));
    await told.untilData("1");
    const stopped = told.source.stop();
    (await service.next()).refuse(403, { title: "Forbidden" });
    assert.equal(await stopped, false);
    assert.deepEqual([told.source.status, told.details("error")[0].problem.title], ["failed", "Forbidden"]);
  });

  it("that does not get through is said", async (test) => {
    const { service, open } = await setUp(test);
    const told = open();
    await (await service.next()).stream(G).send(event(1));
    await told.untilData("1");
    const stopped = told.source.stop();
    (await service.next()).cut();
    assert.equal(await stopped, false);
    assert.equal(told.details("error")[0].problem.code, "not-stopped");
  });

  it("before the head waits for it where the work would go on without us", async (test) => {
    const { service, open } = await setUp(test);
    const told = open(post({ headers: SECRET }));
    const first = await service.next();
    const stopped = told.source.stop();
    first.stream(P);
    const asked = await service.next();
    assert.equal(asked.path, `/.well-known/sse-sidecar/streams/${P}`);
    asked.refuse(204);
    assert.equal(await stopped, true);
  });

  it("before the head leaves where that ends the work, and without a sidecar too", async (test) => {
    const set = await setUp(test);
    const { service, open } = set;
    const early = open(post());
    const first = await service.next();
    assert.equal(await early.source.stop(), true);
    await first.left;
    const bare = open();
    const second = (await service.next()).begin();
    await bare.untilStatus("live");
    assert.equal(await bare.source.stop(), true);
    await second.left;
    assert.equal(set.asked, 2);
  });

  it("after close is none", async (test) => {
    const set = await setUp(test);
    const told = set.open();
    (await set.service.next()).stream(G);
    await told.untilStatus("live");
    told.source.close();
    assert.equal(await told.source.stop(), false);
    assert.equal(set.asked, 1);
  });

  it("that is cut short by close ends too", async (test) => {
    const { service, open } = await setUp(test);
    const told = open(post({ headers: SECRET }));
    await service.next();
    const stopped = told.source.stop();
    told.source.close();
    assert.equal(await stopped, false);
  });
});
