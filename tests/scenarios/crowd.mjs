// A crowd of the real client, in one process: node crowd.mjs CLIENT URL NUMBER. One JSON line for each thing that all of
// them have come to; times are milliseconds of the machine's clock.

import { pathToFileURL } from "node:url";

const [file, url, number] = process.argv.slice(2);
const { ResumableEventSource } = await import(pathToFileURL(file));
const members = Array.from({ length: Number(number) }, () => ({ numbers: [], delays: [], backAt: 0, isCut: false }));
const reached = new Set();

function tell(what, facts = {}) {
  if (reached.has(what)) return;
  reached.add(what);
  process.stdout.write(`${JSON.stringify({ what, ...facts })}\n`);
}

function look() {
  if (members.every((member) => member.numbers.length)) tell("live");
  if (members.every((member) => member.delays.length >= 2)) tell("tried once");
  if (members.every((member) => member.isDone)) tell("done", { members });
}

function join(member) {
  const source = new ResumableEventSource(url);
  source.addEventListener("status", ({ detail }) => {
    if (detail.status === "reconnecting" && !member.backAt) member.delays.push(detail.delay);
    look();
  });
  source.addEventListener("open", () => {
    if (member.delays.length && !member.backAt) member.backAt = Date.now();
  });
  source.addEventListener("message", ({ data }) => {
    if (data === "[DONE]") {
      member.isDone = true;
      member.dropped = source.stats.duplicates;
      source.close();
    } else {
      member.numbers.push(JSON.parse(data).number);
    }
    look();
  });
}

members.forEach(join);
