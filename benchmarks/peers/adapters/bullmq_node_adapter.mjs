// BullMQ on Node: the commands and the output of harness.py. Completed jobs are kept within the same bounds as ours.
import { Queue, Worker } from "bullmq";

const [command, url, ...rest] = process.argv.slice(2);
const { hostname, port } = new URL(url);
const connection = { host: hostname, port: Number(port), maxRetriesPerRequest: null };
const now = () => Number(process.hrtime.bigint()) / 1e9;
const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));
const keep = { removeOnComplete: { age: 30 * 86400, count: 1000 }, removeOnFail: { age: 90 * 86400, count: 5000 } };
const queue = new Queue("bench", { connection, defaultJobOptions: { attempts: 100, backoff: 60000, ...keep } });
const rows = (jobs) => Array.from({ length: jobs }, (_, id) => ({ name: "work", data: { id } }));
const say = (found) => process.stdout.write(JSON.stringify(found) + "\n", () => process.exit(0));

async function add(how, jobs) {
  await queue.waitUntilReady();
  for (const row of rows(10)) await queue.add(row.name, row.data);
  const all = rows(jobs);
  const began = now();
  if (how === "bulk") {
    await queue.addBulk(all);
  } else {
    const left = all[Symbol.iterator]();
    const adder = async () => {
      for (const row of left) await queue.add(row.name, row.data);
    };
    await Promise.all(Array.from({ length: how === "one" ? 1 : 50 }, adder));
  }
  say({ rate: jobs / (now() - began) });
}

async function drain(concurrency, seconds, jobs) {
  for (let start = 0; start < jobs; start += 5000) await queue.addBulk(rows(Math.min(5000, jobs - start)));
  let begun = 0, ended = 0, first = 0;
  const cpu = process.cpuUsage();
  new Worker("bench", async () => {
    if (!begun++) first = now();
    if (seconds) await sleep(seconds);
    if (++ended === jobs) {
      const took = now() - first;
      const used = process.cpuUsage(cpu);
      say({ rate: (jobs - 1) / took, cpu: (used.user + used.system) / 1e6 / jobs });
    }
  }, { connection, concurrency });
}

async function idle(jobs) {
  let started = () => {};
  new Worker("bench", async () => started(now()), { connection, concurrency: 10 });
  const waits = [];
  for (let i = -20; i < jobs; i++) {
    await sleep(i === -20 ? 0.5 : 0.005);
    const at = new Promise((resolve) => (started = resolve));
    const began = now();
    const adding = queue.add("work", { id: i });
    const wait = (await at) - began;
    await adding;
    if (i >= 0) waits.push(wait);
  }
  say({ waits });
}

if (command === "add") await add(rest[0], Number(rest[1]));
else if (command === "drain") await drain(Number(rest[0]), Number(rest[1]), Number(rest[2]));
else await idle(Number(rest[0]));
