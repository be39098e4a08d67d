/** Silence, back-off, the network's comings and goings, and the state that tells of them. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { G, P, event, events, prime, setUp, signal } from "./helpers.mjs";

/** A client with one event of the sidecar's. */
async function live(test, { page, ...options } = {}) {
  const set = await setUp(test, { page });
  const told = set.open(options);
  const first = (await set.service.next()).stream(G);
  await first.send(prime(0) + event(1));
  await told.untilData("1");
  return Object.assign(set, { told, first });
}

describe("stall detection", () => {
  it("waits after 15 s without a byte, and is live with the next one", async (test) => {
    const { told, clock, first } = await live(test);
    clock.advance(14_999);
    assert.equal(told.source.status, "live");
    clock.advance(1);
    assert.equal(told.source.status, "waiting");
    await first.send(": heartbeat\n\n");
    await told.untilStatus("live");
    assert.equal(told.source.stats.stalls, 1);
    assert.equal(told.source.readyState, 1);
  });

  it("reconnects after 30 s, at once, and goes on where it was", async (test) => {
    const set = await live(test);
    const { told, clock, service, first } = set;
    clock.advance(29_999);
    assert.equal(set.asked, 1);
    clock.advance(1);
    assert.equal(told.source.status, "reconnecting");
    assert.equal(told.details("error")[0].problem.code, "stalled");
    const second = await service.next();
    await first.left;
    assert.equal(second.token, `1-${G}`);
    await second.stream(G, "resumed").send(events(1, 2));
    await told.untilData("1", "2");
    assert.deepEqual(
      [told.source.stats.reconnects, told.source.stats.lastReconnectMs, told.source.stats.duplicates],
      [1, 0, 1],
    );
  });

  it("is never stalled while heartbeats come", async (test) => {
    const set = await live(test);
    const { told, clock, service, first } = set;
    for (let times = 0; times < 6; times += 1) {
      clock.advance(15_000);
      await first.send(": heartbeat\n\n");
      await told.until(() => told.statuses.filter((status) => status === "live").length === times + 2);
    }
    assert.equal(set.asked, 1);
  });

  it("waits at the sidecar's word, until the upstream is heard: heartbeats are the sidecar's own", async (test) => {
    const { told, first } = await live(test);
    await first.send(": waiting for upstream\n\n");
    await told.untilStatus("waiting");
    await first.send(": heartbeat\n\n: waiting for upstream\n\n: heartbeat\n\n");
    await first.send(event(2));
    await told.untilData("1", "2");
    assert.deepEqual(told.statuses, ["live", "waiting", "live"]);
    await first.send(": waiting for upstream\n\n");
    await told.untilStatus("waiting");
    await first.send(": a comment of the upstream\n\n");
    await told.untilStatus("live");
  });

  it("takes the comment as one line too", async (test) => {
    const { told, first } = await live(test);
    await first.send(": waiting for upstream\n");
    await told.untilStatus("waiting");
  });

  it("looks at the clock right after a laptop wakes", async (test) => {
    const { told, clock, service } = await live(test);
    clock.sleep(3_600_000);
    clock.advance(0); // the timer that was due meanwhile
    assert.equal(told.source.status, "reconnecting");
    assert.equal((await service.next()).token, `1-${G}`);
  });

  for (const [type, target] of [
    ["pageshow", "page"],
    ["visibilitychange", "document"],
  ]) {
    it(`looks at the clock at ${type}, before a timer fires`, async (test) => {
      const { told, clock, page, service } = await live(test);
      clock.sleep(31_000);
      (target === "page" ? page : page.document).dispatchEvent(new Event(type));
      assert.equal(told.source.status, "reconnecting");
      assert.equal((await service.next()).token, `1-${G}`);
    });
  }

  it("looks every 5 s or finer", async (test) => {
    const { clock, told } = await live(test);
    const due = [];
    const { setTimeout } = clock;
    clock.setTimeout = (run, ms) => {
      due.push(ms);
      return setTimeout(run, ms);
    };
    clock.advance(29_000);
    assert.ok(due.length >= 5 && Math.max(...due) <= 5_000, `${due}`);
    assert.equal(told.source.status, "waiting");
  });

  it("has its times set", async (test) => {
    const { clock, told, service } = await live(test, { waitingAfter: 100, reconnectAfter: 200 });
    clock.advance(100);
    assert.equal(told.source.status, "waiting");
    clock.advance(100);
    await service.next();
  });

  it("does not leave a quiet service that gives no ids: events would be lost", async (test) => {
    const set = await setUp(test);
    const { clock, service, open } = set;
    const told = open();
    const first = (await service.next()).begin();
    await first.send("data: 1\n\n");
    await told.untilData("1");
    clock.advance(600_000);
    assert.equal(told.source.status, "waiting");
    await first.send("data: 2\n\n");
    await told.untilData("1", "2");
    assert.equal(set.asked, 1);
  });

  it("gives a service that is slow to answer more time with each attempt", async (test) => {
    const set = await setUp(test);
    const { clock, service, open } = set;
    const told = open();
    await service.next();
    clock.advance(15_000);
    assert.equal(told.source.status, "waiting");
    clock.advance(15_000);
    await service.next();
    clock.advance(59_999);
    assert.equal(set.asked, 2);
    clock.advance(1);
    (await service.next()).stream(G).response.destroy();
    await told.until(() => told.of("error").length === 3);
    clock.advance(5_000);
    await service.next();
    clock.advance(30_000);
    assert.equal(set.asked, 5, "an answer sets it back");
  });

  it("finds a stall though the clock was set back", async (test) => {
    const set = await live(test);
    set.clock.turnBack(3_600_000);
    set.clock.advance(35_000); // counted from the first look after it
    assert.equal(set.asked, 2);
  });

  it("does not reconnect when it was closed by who was told of the silence", async (test) => {
    const set = await live(test);
    set.told.source.onstatus = () => set.told.source.close();
    set.clock.sleep(3_600_000);
    set.clock.advance(60_000);
    assert.deepEqual([set.told.source.status, set.asked, set.clock.timers], ["closed", 1, 0]);
  });

  it("is not kept waiting by what the connection before was told", async (test) => {
    const { told, clock, service, first } = await live(test);
    await first.send(": waiting\n\n");
    await told.untilStatus("waiting");
    first.cut();
    await told.untilStatus("reconnecting");
    clock.advance(1000);
    const second = (await service.next()).stream(G, "resumed");
    await told.untilStatus("live");
    clock.advance(15_000);
    assert.equal(told.source.status, "waiting");
    await second.send(": heartbeat\n\n");
    await told.untilStatus("live");
  });

  it("does not give up work that was ordered and cannot be ordered again", async (test) => {
    const { clock, service, open } = await setUp(test);
    const told = open({ method: "POST", body: "{}" });
    const first = await service.next();
    clock.advance(600_000);
    assert.equal(told.source.status, "waiting");
    await first.stream(P).send(event(1, P));
    await told.untilData("1");
  });
});

describe("reconnect back-off", () => {
  it("waits 1, 2, 4 and then 5 s", async (test) => {
    const set = await live(test);
    const { told, clock, service, first } = set;
    first.cut();
    for (const [index, delay] of [1000, 2000, 4000, 5000, 5000].entries()) {
      await told.until(() => told.details("status").at(-1).attempt === index + 1);
      assert.deepEqual(told.details("status").at(-1).delay, delay);
      clock.advance(delay - 1);
      assert.equal(set.asked, index + 1);
      clock.advance(1);
      (await service.next()).refuse(502);
    }
  });

  it("adds up to 100 ms of jitter", async (test) => {
    const { told, first } = await live(test, { random: () => 0.5 });
    first.cut();
    await told.untilStatus("reconnecting");
    assert.equal(told.details("status").at(-1).delay, 1050);
  });

  it("begins anew with an event, and with less it does not", async (test) => {
    const { told, clock, service, first } = await live(test);
    first.cut();
    await told.untilStatus("reconnecting");
    clock.advance(1000);
    const second = (await service.next()).stream(G, "resumed");
    await second.send(prime(1) + event(1) + ": heartbeat\n\n: waiting\n\n");
    await told.untilStatus("waiting");
    second.cut();
    await told.untilStatus("reconnecting");
    assert.equal(told.details("status").at(-1).delay, 2000);
    clock.advance(2000);
    const third = (await service.next()).stream(G, "resumed");
    await third.send(event(2));
    await told.untilData("1", "2");
    third.cut();
    await told.untilStatus("reconnecting");
    assert.equal(told.details("status").at(-1).delay, 1000);
  });

  it("has the last retry as a floor, and not as a bound", async (test) => {
    const { told, clock, service, first } = await live(test);
    await first.send("retry: 9000\nretry: 3000\n\n: waiting\n\n");
    await told.untilStatus("waiting");
    first.cut();
    for (const [index, delay] of [3000, 3000, 4000].entries()) {
      await told.until(() => told.details("status").at(-1).attempt === index + 1);
      assert.equal(told.details("status").at(-1).delay, delay);
      clock.advance(delay);
      (await service.next()).refuse(502);
    }
  });

  it("does not take a huge retry for none", async (test) => {
    const set = await live(test);
    const { told, first, clock, service } = set;
    await first.send(`retry: ${"9".repeat(400)}\n\n: waiting\n\n`);
    await told.untilStatus("waiting");
    first.cut();
    await told.untilStatus("reconnecting");
    assert.equal(told.details("status").at(-1).delay, 2 ** 31 - 1);
    clock.advance(100_000);
    assert.equal(set.asked, 1);
  });

  it("has Retry-After as a floor, in seconds and as a date", async (test) => {
    const { told, clock, service, first } = await live(test);
    first.cut();
    await told.untilStatus("reconnecting");
    clock.advance(1000);
    (await service.next()).refuse(503, {}, { "Retry-After": "7" });
    await told.until(() => told.details("status").at(-1).delay === 7000);
    clock.advance(7000);
    (await service.next()).refuse(
      429,
      {},
      { "Retry-After": new Date(Math.ceil(clock.now() / 1000) * 1000 + 60_000).toUTCString() },
    );
    await told.until(() => told.details("status").at(-1).attempt === 3);
    assert.ok(Math.abs(told.details("status").at(-1).delay - 60_000) < 1000);
  });

  it("spreads clients over the jitter's width", async (test) => {
    const delays = new Set();
    const { service, open } = await setUp(test);
    const all = Array.from({ length: 20 }, (_, index) => open({ random: () => index / 20 }));
    for (const _ of all) (await service.next()).cut();
    for (const told of all) {
      await told.untilStatus("reconnecting");
      delays.add(told.details("status").at(-1).delay);
    }
    assert.equal(delays.size, 20);
    assert.ok(Math.max(...delays) - Math.min(...delays) >= 95);
  });
});

describe("network resilience", () => {
  it("tries again at once when the network is back", async (test) => {
    const { told, page, service, first } = await live(test);
    page.navigator.onLine = false;
    page.fire("offline");
    page.fire("offline");
    assert.deepEqual(told.statuses, ["live", "offline"]);
    first.cut();
    await told.until(() => told.of("error").length === 1);
    assert.deepEqual([told.source.status, told.source.readyState], ["offline", 0]);
    page.navigator.onLine = true;
    page.fire("online");
    const second = await service.next();
    assert.equal(second.token, `1-${G}`);
    await second.stream(G, "resumed").send(event(2));
    await told.untilData("1", "2");
    assert.equal(told.source.status, "live");
  });

  it("does not call offline waiting, and gives the connection up after 30 s as ever", async (test) => {
    const set = await live(test);
    set.page.fire("offline");
    set.clock.advance(29_000);
    assert.equal(set.told.source.status, "offline");
    set.clock.advance(1_000);
    assert.equal(set.asked, 2);
  });

  it("tries on while offline, which a browser may only believe", async (test) => {
    const { told, page, clock, service, first } = await live(test);
    page.navigator.onLine = false;
    first.cut();
    await told.untilStatus("offline");
    clock.advance(1000);
    (await service.next()).stream(G, "resumed");
    await told.untilStatus("live");
  });

  it("makes the attempt now that it waits for, and no second one", async (test) => {
    const set = await live(test);
    set.first.cut();
    await set.told.untilStatus("reconnecting");
    set.page.fire("online");
    assert.equal(set.asked, 2);
    set.page.fire("online");
    set.clock.advance(10_000);
    assert.equal(set.asked, 2);
  });

  it("leaves a connection that stood while the network was away", async (test) => {
    const { told, page, service, first } = await live(test);
    page.fire("offline");
    page.fire("online");
    await service.next();
    await first.left;
    assert.equal(told.details("error")[0].problem.code, "network");
  });

  it("takes nothing more of a connection that it has left", async (test) => {
    const { told, page, service, first } = await live(test);
    told.source.addEventListener("message", ({ data }) => {
      if (data !== "2") return;
      page.fire("offline");
      page.fire("online");
    });
    await first.send(events(2, 4));
    const second = await service.next();
    assert.deepEqual([second.token, told.data], [`2-${G}`, ["1", "2"]]);
  });

  it("keeps one that was heard meanwhile", async (test) => {
    const set = await live(test);
    const { told, page, service, first } = set;
    page.fire("offline");
    await first.send(": heartbeat\n\n");
    await told.untilStatus("live");
    page.fire("online");
    assert.equal(told.source.status, "live");
    assert.equal(set.asked, 1);
  });

  it("reconnects at once when the network is another", async (test) => {
    const { page, service, first } = await live(test, { page: { connection: { type: "wifi" } } });
    page.navigator.connection.type = "cellular";
    page.navigator.connection.dispatchEvent(new Event("change"));
    assert.equal((await service.next()).token, `1-${G}`);
    await first.left;
  });

  it("does not for a new estimate of its speed", async (test) => {
    const set = await live(test, { page: { connection: { type: "wifi" } } });
    const { told, page, clock, service, first } = set;
    page.navigator.connection.dispatchEvent(new Event("change"));
    clock.advance(14_000);
    await first.send(event(2));
    await told.untilData("1", "2");
    assert.equal(set.asked, 1);
  });

  it("gives a connection one heartbeat's time, where the network's type is not told", async (test) => {
    const set = await live(test, { page: { connection: {} } });
    const { page, clock, service } = set;
    page.navigator.connection.dispatchEvent(new Event("change"));
    clock.advance(11_000);
    assert.equal(set.asked, 1);
    clock.advance(5_000);
    await service.next();
  });

  it("cuts a wait short at a network change, and when the page is looked at again", async (test) => {
    const set = await live(test, { page: { connection: {} } });
    const { told, page, service, first } = set;
    first.cut();
    await told.untilStatus("reconnecting");
    page.navigator.connection.dispatchEvent(new Event("change"));
    (await service.next()).refuse(502);
    await told.until(() => told.details("status").at(-1).attempt === 2);
    page.document.visibilityState = "hidden";
    page.document.dispatchEvent(new Event("visibilitychange"));
    assert.equal(set.asked, 2);
    page.document.visibilityState = "visible";
    page.document.dispatchEvent(new Event("visibilitychange"));
    await service.next();
  });

  it("comes back when the service refuses connections for a while", async (test) => {
    const { service, clock, open } = await setUp(test);
    let refusals = 3;
    const flaky = (...args) => (refusals-- > 0 ? fetch("http://127.0.0.1:9/") : fetch(...args));
    const told = open({ fetch: flaky });
    for (const attempt of [1, 2, 3]) {
      await told.until(() => told.details("status").at(-1)?.attempt === attempt);
      assert.equal(told.details("error").at(-1).problem.code, "network");
      clock.advance(5000);
    }
    await (await service.next()).stream(G).send(event(1));
    await told.untilData("1");
  });

  it("survives a cut at each byte of the stream", async (test) => {
    const { service, clock, open } = await setUp(test);
    const bytes = Buffer.from(prime(0) + event(1, G, "é") + "retry: 1\n\n" + event(2, G, "b\ndata: c"));
    for (let cut = 0; cut <= bytes.length; cut += 7) {
      const told = open();
      const first = (await service.next()).stream(G);
      await told.until(() => told.of("open").length === 1);
      await first.send(bytes.subarray(0, cut));
      first.response.destroy();
      await told.untilStatus("reconnecting");
      clock.advance(1000);
      const second = await service.next();
      const seq = Number(/^\d+/.exec(second.token)[0]);
      const all = [event(1, G, "é"), event(2, G, "b\ndata: c"), event(3)];
      await second.stream(G, "resumed").send(prime(seq) + all.slice(seq).join(""));
      await told.until(() => told.data.at(-1) === "3");
      assert.deepEqual(told.data, ["é", "b\nc", "3"]);
      assert.equal(told.source.stats.gaps + told.source.stats.duplicates, 0);
      told.source.close();
    }
  });
});

describe("stream state", () => {
  it("goes from connecting to live to complete", async (test) => {
    const { service, clock, open } = await setUp(test);
    const told = open();
    assert.deepEqual([told.source.status, told.source.readyState], ["connecting", 0]);
    const first = (await service.next()).stream(G);
    await first.send(event(1));
    await told.untilData("1");
    assert.equal(told.source.readyState, 1);
    first.end();
    await told.untilStatus("reconnecting");
    clock.advance(1000);
    (await service.next()).refuse(204);
    await told.untilStatus("complete");
    assert.equal(told.source.readyState, 2);
    assert.deepEqual(told.statuses, ["live", "reconnecting", "complete"]);
    assert.equal(clock.timers, 0);
  });

  it("is told with attempt and delay", async (test) => {
    const { told, first } = await live(test);
    first.cut();
    await told.untilStatus("reconnecting");
    const { status, attempt, delay, problem } = told.details("status").at(-1);
    assert.deepEqual([status, attempt, delay, problem.code], ["reconnecting", 1, 1000, "network"]);
    assert.deepEqual(told.details("error").at(-1), told.details("status").at(-1));
  });

  for (const status of [400, 401, 403, 404, 410, 422]) {
    it(`fails at ${status}, with the problem document, as status and as error`, async (test) => {
      const set = await setUp(test);
      const { service, clock, open } = set;
      const told = open();
      (await service.next()).refuse(status, { title: "No", detail: "It may not be." });
      await told.until(() => told.of("error").length === 1);
      assert.deepEqual([told.source.status, told.source.readyState], ["failed", 2]);
      const { problem } = told.details("error")[0];
      assert.deepEqual([problem.status, problem.title, problem.detail], [status, "No", "It may not be."]);
      assert.deepEqual(told.details("status").at(-1).problem, problem);
      assert.equal(clock.timers, 0);
      assert.equal(set.asked, 1);
    });
  }

  it("fails with the status alone where there is no problem document", async (test) => {
    const { service, open } = await setUp(test);
    const told = open();
    (await service.next()).refuse(404, "<p>no</p>", { "Content-Type": "text/html" });
    await told.untilStatus("failed");
    assert.deepEqual(told.details("error")[0].problem, { title: "Not Found", detail: "", status: 404 });
  });

  it("fails at an answer that is no event stream, though it may never end", async (test) => {
    const { service, open } = await setUp(test);
    const told = open();
    const first = (await service.next()).begin({ "Content-Type": "text/html" });
    await first.send("<p>");
    await told.until(() => told.of("error").length === 1);
    assert.match(told.details("error")[0].problem.detail, /text\/html/);
    await first.left;
  });

  it("does not fail at 500, 502, 503, 504 and 429", async (test) => {
    const { service, clock, open } = await setUp(test);
    const told = open();
    for (const [index, status] of [500, 502, 503, 504, 429].entries()) {
      (await service.next()).refuse(status, { title: "Later" });
      await told.until(() => told.details("status").at(-1)?.attempt === index + 1);
      assert.equal(told.details("error").at(-1).problem.status, status);
      clock.advance(5000);
    }
    await (await service.next()).stream(G).send(event(1));
    await told.untilData("1");
  });

  it("tells a lost upstream as an error, and asks again where that may be", async (test) => {
    const { told, first, clock, service } = await live(test);
    await first.send(signal("upstream-lost"));
    await told.until(() => told.of("error").length === 1);
    assert.equal(told.details("error")[0].problem.code, "upstream-lost");
    first.end();
    await told.untilStatus("reconnecting");
    clock.advance(1000);
    assert.equal((await service.next()).token, `1-${G}`);
    assert.equal(told.source.stats.events, 1);
  });

  it("fails where it may not be asked again", async (test) => {
    const { service, open } = await setUp(test);
    const told = open({ method: "POST", body: "{}" });
    const first = (await service.next()).stream(P);
    await first.send(event(1, P) + signal("upstream-lost"));
    await told.until(() => told.of("error").length === 1);
    assert.deepEqual([told.source.status, told.details("error")[0].problem.code], ["failed", "upstream-lost"]);
    await first.left;
  });

  it("fails at an event that is too large", async (test) => {
    const { told, first } = await live(test);
    await first.send(signal("too-large"));
    await told.until(() => told.of("error").length === 1);
    assert.deepEqual([told.source.status, told.details("error")[0].problem.code], ["failed", "too-large"]);
  });

  it("tells each state once", async (test) => {
    const { told, first } = await live(test);
    await first.send(events(2, 30));
    await told.until(() => told.data.length === 30);
    assert.deepEqual(told.statuses, ["live"]);
  });
});
