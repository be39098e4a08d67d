/**
 * Against the real sidecar, which SSE_SIDECAR_COMMAND starts: a JSON array, as ["python", "-m", "sse_sidecar"].
 * Between it and the client stands a relay that cuts.
 */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { ResumableEventSource } from "../../sse_sidecar/static/client.js";
import { Clock, G, P, Page, Service, Told, inTime, numbers } from "./helpers.mjs";

const COMMAND = process.env.SSE_SIDECAR_COMMAND;
const MISSING = "SSE_SIDECAR_COMMAND is not set: how to start the sidecar";
const SECRET = { Authorization: "Bearer x" };

/** Passes bytes on, until it cuts every connection. */
class Relay {
  #sockets = new Set();

  static async to(port) {
    const relay = new Relay();
    relay.server = net.createServer((client) => relay.#join(client, port));
    await new Promise((resolve) => relay.server.listen(0, "127.0.0.1", resolve));
    relay.url = `http://127.0.0.1:${relay.server.address().port}`;
    return relay;
  }

  #join(client, port) {
    const server = net.connect(port, "127.0.0.1");
    for (const [from, to] of [
      [client, server],
      [server, client],
    ]) {
      this.#sockets.add(from);
      from.on("error", () => {});
      from.on("close", () => {
        this.#sockets.delete(from);
        to.destroy();
      });
      from.pipe(to);
    }
  }

  cut() {
    for (const socket of this.#sockets) socket.destroy();
  }

  stop() {
    this.cut();
    return new Promise((resolve) => this.server.close(resolve));
  }
}

async function startSidecar(upstream, directory) {
  const config = join(directory, "sidecar.toml");
  await writeFile(
    config,
    `
    upstream = "${upstream}"
    listen = "127.0.0.1:0"
    admin_listen = ""
    [[route]]
    path = "/small/*"
    max_stream_events = 5
    [[route]]
    path = "/stalling/*"
    stall_timeout = 0.1
    [[route]]
    path = "/away/*"
    upstream = "http://127.0.0.1:9"
  `,
  );
  const [command, ...args] = JSON.parse(COMMAND);
  // It takes each SSE_SIDECAR_* for a setting, this file's too.
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("SSE_SIDECAR_")));
  const child = spawn(command, [...args, "--config", config], { env, stdio: ["ignore", "ignore", "pipe"] });
  let log = "";
  const port = new Promise((resolve, reject) => {
    child.on("error", reject);
    child.on("exit", (code) => reject(new Error(`the sidecar ended with ${code}: ${log}`)));
    child.stderr.on("data", (data) => {
      log += data;
      const match = / on 127\.0\.0\.1:(\d+)/.exec(log);
      if (match) resolve(Number(match[1]));
    });
  });
  return { child, port: await inTime(port, () => `the sidecar's port; it says ${log}`) };
}

describe("with the sidecar", { skip: !COMMAND && process.env.CI !== "true" && MISSING }, () => {
  let service, sidecar, relay, directory;
  const sources = [];

  before(async () => {
    assert.ok(COMMAND, MISSING);
    directory = await mkdtemp(join(tmpdir(), "sse-client-"));
    service = await Service.start();
    sidecar = await startSidecar(service.url, directory);
    relay = await Relay.to(sidecar.port);
  });

  after(async () => {
    for (const source of sources) source.close();
    if (sidecar) {
      const ended = new Promise((resolve) => sidecar.child.on("exit", resolve));
      sidecar.child.kill("SIGKILL");
      await ended;
    }
    await Promise.all([relay?.stop(), service?.stop(), directory && rm(directory, { recursive: true })]);
  });

  function open(path, options = {}) {
    const clock = new Clock();
    const source = new ResumableEventSource(relay.url + path, { clock, scope: new Page(), fetch, ...options });
    sources.push(source);
    return { told: new Told(source), clock };
  }
  const post = (headers = SECRET) => ({ method: "POST", body: "{}", headers });
  const sent = (from, to) =>
    numbers(from, to)
      .map((n) => `data: ${n}\n\n`)
      .join("");

  it("a GET that is cut misses nothing, and the service is asked once", async () => {
    const { told, clock } = open("/ticker");
    const upstream = (await service.next()).begin();
    const asked = service.requests;
    await upstream.send(sent(1, 3));
    for (const last of [3, 6, 9]) {
      await told.until(() => told.data.length === last);
      relay.cut();
      await told.untilStatus("reconnecting");
      await upstream.send(sent(last + 1, last + 3));
      clock.advance(6000);
    }
    await told.until(() => told.data.length === 12);
    assert.deepEqual(told.data, numbers(1, 12));
    assert.match(told.source.streamId, /^g/);
    assert.deepEqual([told.source.stats.reconnects, told.source.stats.gaps, service.requests - asked], [3, 0, 0]);
    upstream.cut();
  });

  it("a GET that is cut before its first event misses nothing", async () => {
    const { told, clock } = open("/ticker");
    const upstream = (await service.next()).begin();
    await told.untilStatus("live");
    relay.cut();
    await told.untilStatus("reconnecting");
    await upstream.send(sent(1, 2));
    clock.advance(6000);
    await told.until(() => told.data.length === 2);
    assert.deepEqual(told.data, ["1", "2"]);
    upstream.cut();
  });

  it("a GET that is complete is ended by 204", async () => {
    const { told, clock } = open("/answer");
    (await service.next()).begin().end(sent(1, 2) + "data: [DONE]\n\n");
    await told.untilStatus("reconnecting");
    clock.advance(6000);
    await told.untilStatus("complete");
    assert.deepEqual(told.data, ["1", "2", "[DONE]"]);
  });

  it("a POST that is cut goes on by GET, and the service is asked once", async () => {
    const { told, clock } = open("/chat", post({}));
    const upstream = (await service.next()).begin();
    const asked = service.requests;
    await upstream.send(sent(1, 3));
    await told.until(() => told.data.length === 3);
    relay.cut();
    await told.untilStatus("reconnecting");
    upstream.end(sent(4, 6));
    clock.advance(6000);
    await told.untilStatus("complete");
    assert.deepEqual(told.data, numbers(1, 6));
    assert.match(told.source.streamId, /^p/);
    assert.equal(service.requests, asked);
  });

  it("a POST that is complete when it comes back is complete", async () => {
    const { told, clock } = open("/chat", post());
    const upstream = (await service.next()).begin();
    await upstream.send(sent(1, 2));
    await told.until(() => told.data.length === 2);
    relay.cut();
    await told.untilStatus("reconnecting");
    upstream.end();
    await upstream.left;
    clock.advance(6000);
    await told.untilStatus("complete");
    assert.deepEqual(told.data, ["1", "2"]);
  });

  it("a POST that is cut before its head joins itself", async () => {
    const { told, clock } = open("/chat", post());
    const upstream = await service.next();
    const asked = service.requests;
    relay.cut();
    await told.untilStatus("reconnecting");
    clock.advance(6000);
    upstream.begin().end(sent(1, 2));
    await told.untilStatus("complete");
    assert.deepEqual(told.data, ["1", "2"]);
    assert.equal(service.requests, asked);
  });

  it("a POST whose service is lost fails, and says so", async () => {
    const { told } = open("/chat", post());
    const upstream = (await service.next()).begin();
    await upstream.send(sent(1, 1));
    await told.untilData("1");
    upstream.cut();
    await told.untilStatus("failed");
    assert.equal(told.details("error").at(-1).problem.code, "upstream-lost");
  });

  it("a stop ends the service's work, and is the end of the stream", async () => {
    for (const options of [{}, post()]) {
      const { told } = open("/chat", options);
      const upstream = (await service.next()).begin();
      await upstream.send(sent(1, 1));
      await told.untilData("1");
      assert.equal(await told.source.stop(), true);
      assert.equal(told.source.status, "complete");
      await inTime(upstream.left, () => "the service to be left");
      const again = open("/chat", { lastEventId: told.source.lastEventId, ...options }).told;
      await again.untilStatus("complete");
      assert.deepEqual(again.data, []);
    }
  });

  it("a stop before the head ends the service's work too", async () => {
    const { told } = open("/chat", post());
    const upstream = await service.next();
    const stopped = told.source.stop();
    upstream.begin();
    assert.equal(await stopped, true);
    await inTime(upstream.left, () => "the service to be left");
  });

  it("a stop with other credentials is refused, and said", async () => {
    const { told } = open("/chat", post());
    const upstream = (await service.next()).begin();
    await upstream.send(sent(1, 1));
    await told.untilData("1");
    const onlyStops = (url, init) => (init.method === "DELETE" ? fetch(url, init) : new Promise(() => {}));
    const other = open("/chat", { streamId: told.source.streamId, fetch: onlyStops }).told;
    assert.equal(await other.source.stop(), false);
    assert.equal(other.details("error").at(-1).problem.status, 404);
    upstream.cut();
  });

  it("a stream is read again from its start by its id", async () => {
    const { told } = open("/chat", post());
    const upstream = (await service.next()).begin();
    upstream.end(sent(1, 3));
    await told.untilStatus("complete");
    const again = open("/chat", { ...post(), streamId: told.source.streamId }).told;
    await again.untilStatus("complete");
    assert.deepEqual(again.data, ["1", "2", "3"]);
  });

  it("what is no longer held is told as a gap, with the number lost", async () => {
    const { told, clock } = open("/small/ticker");
    const upstream = (await service.next()).begin();
    await upstream.send(sent(1, 2));
    await told.until(() => told.data.length === 2);
    relay.cut();
    await told.untilStatus("reconnecting");
    const other = open("/small/ticker", { streamId: told.source.streamId }).told; // tells when the sidecar has them
    await upstream.send(sent(3, 12));
    await other.until(() => other.data.at(-1) === "12");
    clock.advance(6000);
    await told.until(() => told.data.at(-1) === "12");
    const { lost, events, gaps } = told.source.stats;
    assert.deepEqual([gaps, lost + events], [1, 12]);
    assert.ok(lost > 0);
    upstream.cut();
  });

  it("a stream that is not held is told as a reset, and one that may not be repeated as gone", async () => {
    const { told } = open("/ticker", { lastEventId: `7-${G}` });
    const upstream = (await service.next()).begin();
    await upstream.send(sent(1, 1));
    await told.untilData("1");
    assert.deepEqual([told.of("reset").length, told.source.stats.resets], [1, 1]);
    upstream.cut();
    const gone = open("/chat", { lastEventId: `7-${P}`, ...post() }).told;
    await gone.untilStatus("failed");
    assert.deepEqual(
      [gone.details("error")[0].problem.status, gone.details("error")[0].problem.title],
      [410, "Stream gone"],
    );
  });

  it("a silent service is waited for, visibly", async () => {
    const { told } = open("/stalling/ticker");
    const upstream = (await service.next()).begin();
    await upstream.send(sent(1, 1));
    await told.untilStatus("waiting");
    await upstream.send(sent(2, 2));
    await told.untilStatus("live");
    assert.equal(told.source.stats.reconnects, 0);
    upstream.cut();
  });

  it("a service that is away is asked for again: a GET is told when, a POST fails where it might be done twice", async () => {
    const get = open("/away/x").told;
    await get.untilStatus("reconnecting");
    const { delay } = get.details("status").at(-1);
    assert.ok(delay >= 2000 && delay <= 5100, `${delay}`);
    const keyed = open("/away/x", post()).told;
    await keyed.untilStatus("reconnecting");
    assert.equal(keyed.details("error").at(-1).problem.status, 502);
    const plain = open("/away/x", post({})).told;
    await plain.untilStatus("failed");
  });

  it("the service's own refusal is the client's", async () => {
    const { told } = open("/ticker");
    (await service.next()).refuse(401, { title: "Who?" });
    await told.untilStatus("failed");
    assert.deepEqual(
      [told.details("error").at(-1).problem.status, told.details("error").at(-1).problem.title],
      [401, "Who?"],
    );
  });
});
