// Services as Node writes them. Prints its port.

import { createHash } from "node:crypto";
import { createServer } from "node:http";

const wait = (ms) => new Promise((done) => setTimeout(done, ms));

async function sink(request, response) {
  const hash = createHash("sha256");
  let length = 0;
  for await (const part of request) {
    hash.update(part);
    length += part.length;
  }
  const { method, url, rawTrailers: trailers } = request;
  response.end(JSON.stringify({ method, url, length, sha256: hash.digest("hex"), trailers }));
}

const paths = {
  "/sink": sink,
  "/hints": async (_, response) => {
    response.writeEarlyHints({ link: ["</a.css>; rel=preload; as=style", "</b.js>; rel=preload"], "x-hint": "1" });
    await wait(20);
    response.end("hinted");
  },
  "/processing": (_, response) => {
    response.writeProcessing();
    response.end("processed");
  },
  "/trailers": (_, response) => {
    response.writeHead(200, { Trailer: "X-Sum", "Transfer-Encoding": "chunked" });
    response.write("with a trailer");
    response.addTrailers({ "X-Sum": "abc" });
    response.end();
  },
  "/slowly": async (_, response) => {
    for (let number = 0; number < 5; number++) {
      response.write(`${number}\n`.repeat(1000));
      await wait(10);
    }
    response.end();
  },
  "/cookies": (_, response) => {
    response.writeHead(200, "Fine By Me", [["Set-Cookie", "a=1"], ["x-Case", "One"], ["Set-Cookie", "b=2"], ["X-cAsE", "Two"]].flat());
    response.end("cookies");
  },
  "/cut": (_, response) => {
    response.write("only so far");
    setTimeout(() => response.destroy(), 20);
  },
  "/refused": (request, response) => {
    response.writeHead(413);
    response.end("too large");
  },
  "/early": (request, response) => {
    response.writeHead(403, { "Content-Length": 2 });
    response.end("no");
    request.resume();
  },
};

const answer = (request, response) => {
  const path = paths[new URL(request.url, "http://node.example").pathname];
  if (path) return path(request, response);
  response.writeHead(404);
  response.end("not here");
};

const server = createServer(answer);
server.on("checkContinue", (request, response) => {
  if (!request.url.startsWith("/refused")) response.writeContinue();
  answer(request, response);
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
