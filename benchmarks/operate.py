"""What looking at jobs costs the server: a page, a count, a search, an id; among many jobs of one name and many groups.

    python -m benchmarks.operate [--jobs N] [--groups N] [--server …] [--quick] [--json]

Server time is CPU, by ``INFO cpu``, a page's the mean of twenty; of the rounds the one that the machine disturbed
least counts. Round trips are those of the connection that all reads share. Half of the jobs wait, half have failed;
every tenth group holds jobs. A search is compared with a script that reads the data of each job, 500 at a time, and
does nothing else.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from asyncjobs import Runtime
from asyncjobs.broker.keys import Keys, groups_key
from benchmarks import machine
from benchmarks.load import Load
from benchmarks.report import Report, script

PAGE_MS = 5.0
PAGE_TRIPS = 6
SEARCH_RATIO = 2.0
FIND_MS = 30.0
HOLDING = 10  # each tenth group holds jobs
BARE = """#!lua flags=no-writes
local ids = redis.call('ZRANGE', KEYS[1], ARGV[2], ARGV[2] + 499)
for i = 1, #ids do redis.call('HGET', ARGV[1] .. ids[i], 'd') end
return #ids
"""


class Cost(NamedTuple):
    """`ms` of server time, round trips, seconds, and what was found."""

    ms: float
    trips: int
    took: float
    found: Any


class Look:
    """Counts what the server and the connection do meanwhile."""

    def __init__(self, load: Load, runtime: Runtime) -> None:
        self._redis = load.redis
        assert runtime._assembly is not None
        connection: Any = runtime._assembly.broker._misc
        self._real = connection.run
        connection.run = self._run
        self.trips = 0
        self._of_asking = 0.0

    async def _run(self, commands: Any, needs: Any = ()) -> Any:
        self.trips += 1
        return await self._real(commands, needs)

    async def cpu(self) -> float:
        """Seconds of CPU that the server has used."""
        info = await self._redis.info("cpu")
        return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])

    async def cost(self, act: Callable[[], Awaitable[Any]], times: int = 1) -> Cost:
        """What `act` costs; of several times the mean, and what the last one came to."""
        self.trips, found = 0, None
        before, began = await self.cpu(), time.perf_counter()
        for _ in range(times):
            found = await act()
        took = time.perf_counter() - began
        spent = await self.cpu() - before - self._of_asking
        return Cost(max(0.0, 1000 * spent / times), self.trips // times, took / times, found)

    async def begin(self) -> None:
        """Find out what it costs to ask for that."""
        before = await self.cpu()
        for _ in range(20):
            await self.cpu()
        self._of_asking = (await self.cpu() - before) / 21

    async def floor(self, keys: Keys, jobs: int) -> float:
        """ms of server to read the data of so many failed jobs, and nothing else."""
        sha = await self._redis.script_load(BARE)
        before = await self.cpu()
        for start in range(0, jobs, 500):
            await self._redis.evalsha(sha, 1, keys.failed, keys.jobs, start)
        return 1000 * (await self.cpu() - before)


@asynccontextmanager
async def filled(load: Load, jobs: int, groups: int) -> AsyncIterator[Runtime]:
    """`jobs` of one name, half of them waiting, half failed, and `groups` of another, of which some hold jobs."""
    load.next()
    runtime = Runtime(load.url, prefix=load.prefix, consume=False, schedule=False)
    runtime.job("noop", limiter=None)(lambda data: data)
    runtime.job("tenant", limiter=None, group=True)(lambda data: data)
    redis, half = load.redis, jobs // 2
    async with runtime:
        queue = runtime.queue
        assert runtime._assembly is not None
        broker = runtime._assembly.broker
        for start in range(0, half, 20_000):
            many = range(start, min(start + 20_000, half))
            await queue.add_bulk([("noop", {"id": n, "to": f"user-{n}@example.org", "text": "x" * 200}) for n in many])
        tenants = range(0, groups, HOLDING)
        for start in range(0, len(tenants), 10_000):
            many = tenants[start : start + 10_000]
            await queue.add_bulk([("tenant", {"id": n}, {"group_id": f"group-{n}"}) for n in many for _ in range(3)])
        keys = broker.queue_keys("noop", None)
        for start in range(0, half, 10_000):
            pipeline = redis.pipeline(transaction=False)
            for n in range(start, min(start + 10_000, half)):
                # A thousand of each ms, and two thirds of them with one error, a third with another.
                at, text = 1_700_000_000_000 + n // 1000, "TimeoutError: no answer" if n % 3 else "ValueError: bad"
                error = f'{{"t":"{text} from {n}","s":"{"line " * 40}","a":{at}}}'
                data = f'{{"id":{n},"to":"user-{n}@example.org","text":"{"x" * 200}"}}'
                record = {"d": data, "t": at, "u": at, "x": "f", "F": at, "a": 1, "e1": error}
                pipeline.hset(keys.job(f"f{n:07}"), mapping=record)
                pipeline.zadd(keys.failed, {f"f{n:07}": at})
            await pipeline.execute()
        await redis.zadd(groups_key(load.prefix, "tenant"), {f"group-{n}": n for n in range(groups)})
        yield runtime


async def page_at(selection: Any, share: float, of: int) -> str | None:
    """The place behind about that share of a selection."""
    after, seen = None, 0
    async for page in selection.pages(1000, data=False):
        after, seen = page.next, seen + len(page.jobs)
        if seen >= share * of:
            break
    return after


async def measure(options: argparse.Namespace) -> Report:
    report = Report(f"looking at {options.jobs:,} jobs and {options.groups:,} groups, server: {options.server}")
    half = options.jobs // 2
    async with machine.server(options.server) as url:
        load = Load(url)
        async with filled(load, options.jobs, options.groups) as runtime:
            queue, look = runtime.queue, Look(load, runtime)
            for selection in (queue.select("noop"), queue.select("tenant")):
                await selection.page()  # the scripts are there from now on
            await look.begin()
            await pages(report, look, queue, half, options.rounds)
            await others(report, look, queue)
            await search(report, look, runtime, half)
        await load.close()
    return report


async def pages(report: Report, look: Look, queue: Any, half: int, rounds: int) -> None:
    """What a page costs."""
    kinds: list[tuple[str, Any, str | None]] = []
    for state in ("waiting", "failed"):
        for newest in (True, False):
            selection = queue.select("noop", state=state, newest_first=newest)
            what = f"{state}, {'newest' if newest else 'oldest'} first"
            middle = await page_at(selection, 0.5, half)
            kinds += [(f"{what}: first page", selection, None), (f"{what}: page in the middle", selection, middle)]
    kinds.append(("waiting over all groups: first page", queue.select("tenant", state="waiting"), None))
    kinds.append(("all states, all names: first page", queue.select(), None))
    dearest, most_trips = 0.0, 0
    for what, selection, after in kinds:
        costs = [await look.cost(lambda s=selection, a=after: s.page(a, limit=50), 20) for _ in range(rounds)]  # type: ignore[misc]
        ms, trips = [one.ms for one in costs], costs[-1].trips
        report.add(what, "ms", ms, f"{trips} trips, {len(costs[-1].found.jobs)} jobs")
        dearest, most_trips = max(dearest, min(ms)), max(most_trips, trips)
    report.claim("server ms a page", dearest, PAGE_MS, at_least=False)
    report.claim("round trips a page", most_trips, PAGE_TRIPS, at_least=False)


async def others(report: Report, look: Look, queue: Any) -> None:
    """What counts cost, and an id."""
    for what, selection in (
        ("of a state", queue.select("noop", state="failed")),
        ("over all groups", queue.select("tenant", state="waiting")),
        ("of a text", queue.select("noop", state="waiting", text="user-7@")),
    ):
        cost = await look.cost(selection.count)
        report.add(f"count {what}", "ms", [cost.ms], f"{cost.trips} trips, {cost.found}")
    cost = await look.cost(lambda: queue.find("f0000007"))
    assert len(cost.found) == 1
    report.add("find an id", "ms", [cost.ms], f"{cost.trips} trips")
    report.claim("server ms to find an id over all groups", cost.ms, FIND_MS, at_least=False)


async def search(report: Report, look: Look, runtime: Any, jobs: int) -> None:
    """What it costs to look into all jobs of a state, and which share of the server that takes."""
    keys = runtime._assembly.broker.queue_keys("noop", None)
    floor = await look.floor(keys, jobs)
    report.add("reading the data alone, a job", "µs", [1000 * floor / jobs])
    for what, options in (("a text", {"text": f"user-{jobs // 2}@"}), ("an error", {"error": f"from {jobs // 2}"})):
        selection = runtime.queue.select("noop", state="failed", **options)

        async def run(selection: Any = selection) -> list[Any]:
            return [job async for job in selection]

        cost = await look.cost(run)
        assert len(cost.found) == 1
        looked = selection.looked_at
        report.add(
            f"search for {what}, a job", "µs", [1000 * cost.ms / looked], f"{looked:,} jobs in {cost.took:.1f} s"
        )
        report.claim(f"search for {what}, of reading the data alone", cost.ms / floor, SEARCH_RATIO, at_least=False)
        report.claim(
            f"share of the server that a search for {what} takes", cost.ms / 1000 / cost.took, 0.25, at_least=False
        )


def more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--groups", type=int, default=10_000)


if __name__ == "__main__":
    script(__doc__, measure, more=more, jobs=1_000_000, rounds=3, quick={"jobs": 5000, "groups": 500, "rounds": 1})
