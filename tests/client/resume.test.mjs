/** Each event once, in order, and what is missing said out loud. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { G, H, P, event, events, numbers, prime, setUp, signal } from "./helpers.mjs";

/** A client that has events 1..3 of a stream, and whose connection breaks. */
async function broken(test, options) {
  const set = await setUp(test);
  const told = set.open(options);
  const first = (await set.service.next()).stream(G);
  await first.send(prime(0) + events(1, 3));
  await told.untilData("1", "2", "3");
  first.cut();
  await told.untilStatus("reconnecting");
  set.clock.advance(1000);
  return { ...set, told, second: await set.service.next() };
}

/** The same with a service that gives ids of its own. */
async function brokenForeign(test) {
  const set = await setUp(test);
  const told = set.open();
  const first = (await set.service.next()).begin();
  await first.send("id: a\ndata: 1\n\nid: b\ndata: 2\n\nid: c\ndata: 3\n\n");
  await told.untilData("1", "2", "3");
  first.cut();
  await told.untilStatus("reconnecting");
  set.clock.advance(1000);
  return { ...set, told, second: (await set.service.next()).begin() };
}

describe("de-duplication", () => {
  it("drops what it has by the number, and counts it", async (test) => {
    const { told, second } = await broken(test);
    await second.stream(G, "resumed").send(events(2, 5));
    await told.until(() => told.data.length === 5);
    assert.deepEqual(told.data, numbers(1, 5));
    assert.equal(told.source.stats.duplicates, 2);
    assert.equal(told.source.lastEventId, `5-${G}`);
  });

  it("is not led back by an older id, with data or without", async (test) => {
    const { told, second } = await broken(test);
    await second.stream(G, "resumed").send(prime(1) + event(1) + "data: no id\n\n");
    await told.until(() => told.data.length === 4);
    assert.equal(told.source.stats.duplicates, 1);
    assert.equal(told.source.lastEventId, `3-${G}`);
  });

  it("knows the numbers of each stream apart", async (test) => {
    const { told, second } = await broken(test);
    await second.stream(G, "resumed").send(prime(3) + event(4) + prime(4, H) + event(5, H) + event(5, H) + event(6, H));
    await told.until(() => told.data.length === 6);
    assert.deepEqual(told.data, numbers(1, 6));
    assert.equal(told.source.stats.duplicates, 1);
    assert.equal(told.source.streamId, H);
  });

  it("takes a token with the upstream's id for what it is", async (test) => {
    const { told, second } = await broken(test);
    await second.stream(G, "resumed").send(`data: 3\nid: 3-${G}.YWJj\n\ndata: 4\nid: 4-${G}.YWJk\n\n`);
    await told.until(() => told.data.length === 4);
    assert.equal(told.source.stats.duplicates, 1);
    assert.equal(told.source.lastEventId, `4-${G}.YWJk`);
  });

  it("drops what a service with ids of its own repeats when asked again", async (test) => {
    const { told, second } = await brokenForeign(test);
    assert.equal(second.token, "c");
    await second.send("id: b\ndata: 2\n\nid: c\ndata: 3\n\nid: d\ndata: 4\n\n");
    await told.until(() => told.data.length === 4);
    assert.deepEqual(told.data, numbers(1, 4));
    assert.equal(told.source.stats.duplicates, 2);
  });

  it("gives an event without an id that of the one before, over a reconnect too", async (test) => {
    const { told, second } = await brokenForeign(test);
    await second.send("data: 4\n\n");
    await told.until(() => told.data.length === 4);
    assert.equal(told.of("message").at(-1).lastEventId, "c");
  });

  it("drops nothing where a service numbers each connection anew", async (test) => {
    const { told, second } = await brokenForeign(test);
    await second.send("id: a\ndata: 4\n\nid: b\ndata: 5\n\n");
    await told.until(() => told.data.length === 5);
    assert.equal(told.source.stats.duplicates, 0);
  });

  it("drops nothing where a service gives one id to many events", async (test) => {
    const { service, open } = await setUp(test);
    const told = open();
    await (await service.next()).begin().send("id: a\ndata: 1\n\nid: a\ndata: 1\n\ndata: 1\n\n");
    await told.untilData("1", "1", "1");
    assert.equal(told.source.stats.duplicates, 0);
  });

  it("remembers a bounded number of foreign ids", async (test) => {
    const { service, clock, open } = await setUp(test);
    const told = open();
    const first = (await service.next()).begin();
    const sent = (from, to) =>
      numbers(from, to)
        .map((n) => `id: ${n}\ndata: ${n}\n\n`)
        .join("");
    await first.send(sent(1, 1001));
    await told.until(() => told.data.length === 1001);
    first.cut();
    await told.untilStatus("reconnecting");
    clock.advance(1000);
    await (await service.next()).begin().send(sent(1, 3));
    await told.until(() => told.data.length === 1004);
    assert.equal(told.source.stats.duplicates, 0);
  });
});

describe("sequence recovery", () => {
  it("asks for what comes after the last event it has", async (test) => {
    const { told, second } = await broken(test);
    assert.equal(second.token, `3-${G}`);
    await second.stream(G, "resumed").send(prime(3) + events(4, 6));
    await told.until(() => told.data.length === 6);
    assert.deepEqual(told.data, numbers(1, 6));
    assert.equal(told.source.stats.gaps, 0);
  });

  it("tells a gap as the sidecar does, once", async (test) => {
    const { told, second } = await broken(test);
    await second.stream(G, "gap").send(prime(9) + signal("gap", { lost: 6 }) + event(10));
    await told.until(() => told.data.length === 4);
    assert.deepEqual(told.details("gap"), [{ lost: 6, message: "it is gap" }]);
    assert.deepEqual([told.source.stats.gaps, told.source.stats.lost, told.source.stats.events], [1, 6, 4]);
  });

  it("tells it once where there is no priming", async (test) => {
    const { told, second } = await broken(test);
    await second.stream(G, "gap").send(signal("gap", { lost: 6 }) + event(10) + event(12));
    await told.until(() => told.data.length === 5);
    assert.deepEqual(
      told.details("gap").map(({ lost }) => lost),
      [6, 1],
    );
  });

  it("tells a gap of unknown length, and lost is null", async (test) => {
    const { told, second } = await broken(test);
    await second.stream(G, "gap").send(prime(3) + signal("gap", { lost: null }) + event(4));
    await told.until(() => told.data.length === 4);
    assert.deepEqual(told.details("gap"), [{ lost: null, message: "it is gap" }]);
    assert.deepEqual([told.source.stats.gaps, told.source.stats.lost], [1, 0]);
  });

  it("tells a gap once when the connection breaks between it and its event", async (test) => {
    const { told, clock, service, second } = await broken(test);
    const gap = signal("gap", { lost: null });
    await second.stream(G, "gap").send(prime(3) + gap);
    await told.until(() => told.of("gap").length === 1);
    second.cut();
    await told.until(() => told.of("error").length === 2);
    clock.advance(2000);
    await (await service.next()).stream(G, "gap").send(prime(3) + gap + event(4));
    await told.until(() => told.data.length === 4);
    assert.equal(told.of("gap").length, 1);
  });

  it("finds a hole that no one told, before the event that follows it", async (test) => {
    const { told, second } = await broken(test);
    await second.stream(G, "resumed").send(event(6));
    await told.until(() => told.data.length === 4);
    const order = told.events.filter(({ type }) => type === "gap" || type === "message").map(({ type }) => type);
    assert.deepEqual(order.slice(-2), ["gap", "message"]);
    assert.equal(told.details("gap")[0].lost, 2);
  });

  it("dispatches no event after it was closed by who was told of the gap before it", async (test) => {
    const { told, second } = await broken(test);
    told.source.ongap = () => told.source.close();
    await second.stream(G, "resumed").send(event(6));
    await told.until(() => told.of("gap").length === 1);
    await second.left;
    assert.deepEqual(told.data, numbers(1, 3));
    assert.equal(told.source.lastEventId, `3-${G}`, "it was not given");
  });

  it("tells a reset, and goes on with the new stream", async (test) => {
    const { told, second } = await broken(test);
    await second.stream(H, "reset").send(prime(0, H) + signal("reset") + events(1, 2, H));
    await told.until(() => told.data.length === 5);
    assert.equal(told.details("reset")[0].code, "reset");
    assert.deepEqual([told.source.stats.resets, told.source.stats.duplicates, told.source.stats.gaps], [1, 0, 0]);
    assert.equal(told.source.streamId, H);
  });

  it("gives the sidecar's signal to those who listen for it as with EventSource", async (test) => {
    const { told, second } = await broken(test, { types: ["sse-sidecar"] });
    await second.stream(H, "reset").send(signal("reset"));
    await told.until(() => told.of("sse-sidecar").length === 1);
    assert.equal(JSON.parse(told.of("sse-sidecar")[0].data).error.code, "reset");
  });

  it("says that events may be missing where a service without ids was lost", async (test) => {
    const { service, clock, open } = await setUp(test);
    const told = open();
    const first = (await service.next()).begin();
    await first.send("data: 1\n\n");
    await told.untilData("1");
    first.cut();
    await told.untilStatus("reconnecting");
    clock.advance(1000);
    const second = (await service.next()).begin();
    assert.equal(second.token, undefined);
    await second.send("data: 7\n\n");
    await told.untilData("1", "7");
    assert.equal(told.details("gap")[0].lost, null);
  });

  it("goes on after an id that came without an event", async (test) => {
    const { service, clock, open } = await setUp(test);
    const told = open();
    const first = (await service.next()).begin();
    await first.send("id: 7\n\n: waiting\n\n");
    await told.untilStatus("waiting");
    first.cut();
    await told.untilStatus("reconnecting");
    clock.advance(1000);
    assert.equal((await service.next()).token, "7");
  });
});

describe("replay", () => {
  it("resumes from the id it is given", async (test) => {
    const { service, open } = await setUp(test);
    const told = open({ lastEventId: `7-${G}` });
    const first = await service.next();
    assert.equal(first.token, `7-${G}`);
    await first.stream(G, "resumed").send(events(7, 9));
    await told.until(() => told.data.length === 2);
    assert.deepEqual(told.data, ["8", "9"]);
    assert.equal(told.source.stats.duplicates, 1);
  });

  it("asks for a stream from its start by its id, whatever number that has", async (test) => {
    const { service, open } = await setUp(test);
    const told = open({ streamId: P });
    const first = await service.next();
    assert.equal(first.token, `0-${P}`);
    await first.stream(P, "resumed").send(events(42, 44, P));
    await told.until(() => told.data.length === 3);
    assert.equal(told.source.stats.gaps, 0);
  });

  it("resumes across a reload of the page, where it was", async (test) => {
    const { service, page, open } = await setUp(test);
    const told = open({ resumeKey: "chat" });
    await (await service.next()).stream(G).send(prime(0) + events(1, 3));
    await told.until(() => told.data.length === 3);
    told.source.close();
    open({ resumeKey: "chat" });
    assert.equal((await service.next()).token, `3-${G}`);
    assert.equal(page.stored.size, 1);
  });

  it("resumes a POST across a reload before its first event, by the stream's id", async (test) => {
    const { service, open } = await setUp(test);
    const told = open({ resumeKey: "chat", method: "POST", body: "{}" });
    (await service.next()).stream(P);
    await told.untilStatus("live");
    told.source.close();
    open({ resumeKey: "chat", method: "POST", body: "{}" });
    const again = await service.next();
    assert.deepEqual([again.method, again.token], ["GET", `0-${P}`]);
  });

  it("begins at the stream's start after a reload, where the page wants all of it", async (test) => {
    const { service, open } = await setUp(test);
    const told = open({ resumeKey: "chat" });
    await (await service.next()).stream(G).send(events(1, 3));
    await told.until(() => told.data.length === 3);
    told.source.close();
    open({ resumeKey: "chat", fromStart: true });
    assert.equal((await service.next()).token, `0-${G}`);
  });

  it("keeps what a handler saw before it closed", async (test) => {
    const { service, open } = await setUp(test);
    const told = open({ resumeKey: "chat" });
    told.source.onmessage = ({ data }) => data === "2" && told.source.close();
    const first = (await service.next()).stream(G);
    await first.send(events(1, 3));
    await first.left;
    assert.deepEqual(told.data, ["1", "2"]);
    open({ resumeKey: "chat" });
    assert.equal((await service.next()).token, `2-${G}`);
  });

  it("takes nothing that another URL left, and has no store where the user forbids it", async (test) => {
    const { service, page, open } = await setUp(test);
    page.stored.set("sse-sidecar:chat", JSON.stringify({ url: `${service.url}/other`, id: `3-${G}` }));
    open({ resumeKey: "chat" });
    assert.equal((await service.next()).token, undefined);
    Object.defineProperty(page, "sessionStorage", {
      get: () => {
        throw new Error("forbidden");
      },
    });
    const told = open({ resumeKey: "chat" });
    await (await service.next()).stream(G).send(event(1));
    await told.untilData("1");
  });

  it("forgets it at the end, good or bad", async (test) => {
    const { service, clock, page, open } = await setUp(test);
    for (const status of [204, 410]) {
      const told = open({ resumeKey: "chat" });
      const first = (await service.next()).stream(G);
      await first.send(event(1));
      await told.untilData("1");
      assert.equal(page.stored.size, 1);
      first.end();
      await told.untilStatus("reconnecting");
      clock.advance(1000);
      (await service.next()).refuse(status);
      await told.until(() => told.source.readyState === 2);
      assert.equal(page.stored.size, 0);
    }
  });
});

describe("completion metrics", () => {
  it("counts events, and all of none are complete", async (test) => {
    const { service, open } = await setUp(test);
    const told = open();
    assert.equal(told.source.stats.completionRate, 100);
    await (await service.next()).stream(G).send(prime(0) + "retry: 5\n\n: heartbeat\n\n" + events(1, 4));
    await told.until(() => told.data.length === 4);
    assert.deepEqual(told.source.stats, {
      events: 4,
      duplicates: 0,
      reconnects: 0,
      gaps: 0,
      lost: 0,
      resets: 0,
      stalls: 0,
      reconnectMs: 0,
      lastReconnectMs: null,
      completionRate: 100,
    });
  });

  it("gives the share of events that came", async (test) => {
    const { told, second } = await broken(test);
    await second.stream(G, "gap").send(prime(4) + signal("gap", { lost: 1 }) + events(5, 19));
    await told.until(() => told.data.length === 18);
    assert.equal(told.source.stats.completionRate, (100 * 18) / 19);
  });

  it("measures a reconnect from the loss to the answer", async (test) => {
    const { told, clock, service, second } = await broken(test);
    clock.advance(250);
    second.stream(G, "resumed");
    await told.untilStatus("live");
    assert.deepEqual([told.source.stats.reconnects, told.source.stats.lastReconnectMs], [1, 1250]);
    second.cut();
    await told.untilStatus("reconnecting");
    clock.advance(2000);
    (await service.next()).stream(G, "resumed");
    await told.untilStatus("live");
    const { reconnects, lastReconnectMs, reconnectMs } = told.source.stats;
    assert.deepEqual([reconnects, lastReconnectMs, reconnectMs], [2, 2000, 3250]);
  });

  it("counts one reconnect over several attempts, and the time of all", async (test) => {
    const { told, clock, service, second } = await broken(test);
    second.refuse(503);
    await told.until(() => told.details("status").at(-1).attempt === 2);
    clock.advance(2000);
    (await service.next()).stream(G, "resumed");
    await told.untilStatus("live");
    assert.deepEqual(
      [told.source.stats.reconnects, told.source.stats.lastReconnectMs, told.source.stats.reconnectMs],
      [1, 3000, 3000],
    );
  });
});
