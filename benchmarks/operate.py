"""What looking at jobs costs the server: a page, a count, a search, an id; among many jobs of one name and many groups.

    python -m benchmarks.operate [--jobs N] [--groups N] [--server …] [--quick] [--json]

Server time is that of the commands that were sent, by ``INFO commandstats``; a script's is that of all it calls. Of the
rounds the one that the machine disturbed least counts; of a search, the CPU of the server. Round trips are those of the
connection that all reads share. Half of the jobs wait, half have failed; every tenth group holds jobs.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from asyncjobs import Runtime
from asyncjobs.broker.keys import groups_key
from benchmarks import machine
from benchmarks.load import Load
from benchmarks.report import Report, script

PAGE_MS = 5.0
PAGE_TRIPS = 6
SEARCH_US = 2.0
FIND_MS = 30.0
HOLDING = 10  # each tenth group holds jobs


class Look:
    """Counts what the server and the connection do meanwhile."""

    def __init__(self, load: Load, runtime: Runtime) -> None:
        self._redis = load.redis
        assert runtime._assembly is not None
        self._connection: Any = runtime._assembly.broker._misc
        self._real = self._connection.run
        self._connection.run = self._run
        self.trips = 0
        self._sent: Counter[str] = Counter()

    async def _run(self, commands: Any, needs: Any = ()) -> Any:
        self.trips += 1
        self._sent.update(command[0].lower() for command in commands)
        return await self._real(commands, needs)

    async def _spent_us(self) -> float:
        """µs of server time of the commands that were sent; a script may have called the same ones."""
        stats = await self._redis.info("commandstats")
        return sum(number * stats[f"cmdstat_{name}"]["usec_per_call"] for name, number in self._sent.items())

    async def cpu(self) -> float:
        """Seconds of CPU that the server has used."""
        info = await self._redis.info("cpu")
        return float(info["used_cpu_user"] + info["used_cpu_sys"])

    async def cost(self, act: Callable[[], Awaitable[Any]]) -> tuple[float, int, float, Any]:
        """ms of server, round trips, seconds, and what it came to."""
        await self._redis.config_resetstat()
        self.trips = 0
        self._sent.clear()
        began = time.perf_counter()
        found = await act()
        took = time.perf_counter() - began
        return await self._spent_us() / 1000, self.trips, took, found


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


async def page_at(selection: Any, share: float, of: int) -> Callable[[], Awaitable[Any]]:
    """A page of 50 behind about that share of a selection."""
    after, seen = None, 0
    async for page in selection.pages(1000, data=False):
        after, seen = page.next, seen + len(page.jobs)
        if seen >= share * of:
            break
    return lambda: selection.page(after, limit=50)


async def measure(options: argparse.Namespace) -> Report:
    report = Report(f"looking at {options.jobs:,} jobs and {options.groups:,} groups, server: {options.server}")
    half = options.jobs // 2
    async with machine.server(options.server) as url:
        load = Load(url)
        async with filled(load, options.jobs, options.groups) as runtime:
            queue, look = runtime.queue, Look(load, runtime)
            await queue.select("noop").page()  # the scripts are there from now on
            await queue.select("tenant").page()
            dearest, most_trips = 0.0, 0
            for state in ("waiting", "failed"):
                for newest in (True, False):
                    selection = queue.select("noop", state=state, newest_first=newest)
                    order = "newest" if newest else "oldest"
                    for where, share in (("first", 0.0), ("in the middle", 0.5)):
                        act = await page_at(selection, share, half) if share else (lambda s=selection: s.page(limit=50))
                        costs = [await look.cost(act) for _ in range(options.rounds)]
                        ms = [one[0] for one in costs]
                        assert len(costs[0][3].jobs) == 50
                        report.add(f"{state}, {order} first: page {where}", "ms", ms, f"{costs[0][1]} trips")
                        dearest, most_trips = max(dearest, min(ms)), max(most_trips, costs[0][1])
            for what, selection in (
                ("waiting over all groups", queue.select("tenant", state="waiting")),
                ("all states, all names", queue.select()),
            ):
                costs = [await look.cost(lambda s=selection: s.page(limit=50)) for _ in range(options.rounds)]
                ms = [one[0] for one in costs]
                report.add(f"{what}: first page", "ms", ms, f"{costs[0][1]} trips, {len(costs[0][3].jobs)} jobs")
                dearest, most_trips = max(dearest, min(ms)), max(most_trips, costs[0][1])
            for what, selection in (
                ("of a state", queue.select("noop", state="failed")),
                ("over all groups", queue.select("tenant", state="waiting")),
                ("of a text", queue.select("noop", state="waiting", text="user-7@")),
            ):
                ms, trips, _, found = await look.cost(selection.count)
                report.add(f"count {what}", "ms", [ms], f"{trips} trips, {found}")
            ms, trips, _, found = await look.cost(lambda: queue.find("f0000007"))
            assert len(found) == 1
            report.add("find an id", "ms", [ms], f"{trips} trips")
            report.claim("server ms to find an id over all groups", ms, FIND_MS, at_least=False)
            await search(report, look, queue, half)
        await load.close()
    report.claim("server ms a page", dearest, PAGE_MS, at_least=False)
    report.claim("round trips a page", most_trips, PAGE_TRIPS, at_least=False)
    return report


async def search(report: Report, look: Look, queue: Any, jobs: int) -> None:
    """What it costs to look into all jobs of a state, and which share of the server that takes."""
    for what, options in (("a text", {"text": f"user-{jobs // 2}@"}), ("an error", {"error": f"from {jobs // 2}"})):

        async def run(options: dict[str, str] = options) -> int:
            selection = queue.select("noop", state="failed", **options)
            found = [job async for job in selection]
            assert len(found) == 1
            return int(selection.looked_at)

        before, began = await look.cpu(), time.perf_counter()
        looked = await run()
        took = time.perf_counter() - began
        ms = 1000 * (await look.cpu() - before)
        report.add(f"search for {what}, a job", "µs", [1000 * ms / looked], f"{looked:,} jobs in {took:.1f} s")
        report.add(f"search for {what}, share of the server", "", [ms / 1000 / took])
        report.claim(f"server µs to search a job for {what}", 1000 * ms / looked, SEARCH_US, at_least=False)
        report.claim(f"share of the server that a search for {what} takes", ms / 1000 / took, 0.25, at_least=False)
        await asyncio.sleep(0)


def more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--groups", type=int, default=10_000)


if __name__ == "__main__":
    script(__doc__, measure, more=more, jobs=1_000_000, rounds=5, quick={"jobs": 5000, "groups": 500, "rounds": 1})
