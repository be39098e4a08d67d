/** The event stream format to the letter: each case with each line end, whole and byte by byte. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { EventStreamParser } from "../../sse_sidecar/static/client.js";

const BOM = "\ufeff";

/** What is told of a stream, one line each. */
function told(chunks, lastEventId = "") {
  const out = [];
  const parser = new EventStreamParser({
    lastEventId,
    onEvent: ({ type, data, lastEventId: id, hasId }) =>
      out.push(`${type}(${data.replaceAll("\n", "|")})${hasId ? "#" : "~"}${id}`),
    onId: (id) => out.push(`id ${id}`),
    onRetry: (ms) => out.push(`retry ${ms}`),
    onComment: (text) => out.push(`comment ${text}`),
  });
  for (const chunk of chunks) parser.feed(chunk);
  return out;
}

const CASES = {
  "an event": ["data: a\n\n", ["message(a)~"]],
  "its type, data and id": ["event: tick\ndata: a\nid: 1\n\n", ["tick(a)#1"]],
  "data over several lines": ["data: a\ndata\ndata:  b\n\n", ["message(a|| b)~"]],
  "one space after the colon is taken off, and none need be there": [
    "data:a\n\ndata:  a\n\ndata: : a\n\n",
    ["message(a)~", "message( a)~", "message(: a)~"],
  ],
  "a field without a colon is empty": ["data\n\ndata\ndata\n\n", ["message()~", "message(|)~"]],
  "a block without data is no event, and its type is forgotten": ["event: tick\n\ndata: a\n\n", ["message(a)~"]],
  "an empty type is message": ["event: tick\nevent:\ndata: a\n\n", ["message(a)~"]],
  "an id stays for the events after it": ["id: 1\ndata: a\n\ndata: b\n\n", ["message(a)#1", "message(b)~1"]],
  "an id without data sets it too": ["id: 1\n\ndata: b\n\n", ["id 1", "message(b)~1"]],
  "an empty id takes it back": ["id: 1\ndata: a\n\nid\ndata: b\n\n", ["message(a)#1", "message(b)#"]],
  "an id with a NUL is ignored": ["id: 1\n\nid: 2\0\ndata: a\n\n", ["id 1", "message(a)~1"]],
  "retry is digits and nothing else": [
    "retry: 10\nretry: +5\nretry: 1.5\nretry: 1e3\nretry:\nretry:  7\nretry:08\n",
    ["retry 10", "retry 8"],
  ],
  "comments, in an event and outside": [
    ":\n: a\ndata: b\n:c\n\n",
    ["comment ", "comment  a", "comment c", "message(b)~"],
  ],
  "unknown fields, other cases and spaced names are ignored": ["Data: a\n data: b\nx: c\ndata : d\n\n", []],
  "blank lines in a row": ["\n\n\ndata: a\n\n\n\ndata: b\n\n", ["message(a)~", "message(b)~"]],
  "an unfinished event at the end is dropped": ["data: a\n\ndata: b\nid: 2\n", ["message(a)~"]],
  "an unfinished line at the end is dropped": ["data: a\n\ndata: b", ["message(a)~"]],
  "one byte order mark at the start": [`${BOM}data: a\n\n`, ["message(a)~"]],
  "a second one is part of the name": [`${BOM}${BOM}data: a\n\n`, []],
  "one that comes later is data": [`data: ${BOM}\n\n`, [`message(${BOM})~`]],
  "characters of several bytes": ["data: é€😀\n\n", ["message(é€😀)~"]],
};
const ENDS = { LF: "\n", CR: "\r", CRLF: "\r\n" };

describe("the parser", () => {
  for (const [name, [stream, expected]] of Object.entries(CASES)) {
    for (const [end, bytes] of Object.entries(ENDS)) {
      const whole = new TextEncoder().encode(stream.replaceAll("\n", bytes));
      it(`${name}: ${end}, whole`, () => assert.deepEqual(told([whole]), expected));
      it(`${name}: ${end}, bytewise`, () =>
        assert.deepEqual(told(Array.from(whole, (byte) => Uint8Array.of(byte))), expected));
    }
  }

  it("tells an event at the CR that ends it, and swallows an LF after it", () => {
    const encode = (text) => new TextEncoder().encode(text);
    assert.deepEqual(told([encode("data: a\r\r")]), ["message(a)~"]);
    assert.deepEqual(told(["data: a\r", "", "\ndata: b\r", "\n\r", "\ndata: c\r\n\r\n"].map(encode)), [
      "message(a|b)~",
      "message(c)~",
    ]);
  });

  it("makes U+FFFD of what is not UTF-8", () => {
    assert.deepEqual(told([Uint8Array.of(0x64, 0x61, 0x74, 0x61, 0x3a, 0xff, 0x0a, 0x0a)]), ["message(\ufffd)~"]);
  });

  it("goes on with the last id of the connection before", () => {
    assert.deepEqual(told([new TextEncoder().encode("data: a\n\n")], "7"), ["message(a)~7"]);
  });

  it("takes a long line byte by byte in linear time", () => {
    const bytes = new TextEncoder().encode("x".repeat(300_000) + "\n\n");
    const parser = new EventStreamParser({ onEvent() {} });
    for (let index = 0; index < bytes.length; index += 1) parser.feed(bytes.subarray(index, index + 1));
  });
});
