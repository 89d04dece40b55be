"""Throughput of one process: adding, and draining jobs that do nothing or wait 10 ms, at several concurrencies.

Everything that a job has in production is on: records, retention, retries, fencing, leases.

    python -m benchmarks.throughput [--server memory|redis|embedded|URL] [--jobs N] [--rounds N] [--quick] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable

from benchmarks import machine
from benchmarks.load import Load
from benchmarks.report import Report, script

CONCURRENCIES = (1, 10, 100, 500)
WAIT = 0.01


async def add(load: Load, at_once: int, jobs: int) -> float:
    """Adds a second: 1 awaits each, 50 keeps fifty awaiting, 0 is one `add_bulk`."""
    load.next()
    async with load.runtime(consume=False) as runtime:
        queue = runtime.queue
        began = time.perf_counter()
        if at_once == 0:
            await queue.add_bulk([("noop", {"id": i}) for i in range(jobs)])
        else:
            numbers = iter(range(jobs))

            async def adder() -> None:
                for i in numbers:
                    await queue.add("noop", {"id": i})

            await asyncio.gather(*(adder() for _ in range(at_once)))
        return jobs / (time.perf_counter() - began)


async def bare(at_once: int, jobs: int) -> float:
    """Sleeps of `WAIT` a second with no queue at all: what the event loop itself makes of the ideal."""
    numbers = iter(range(jobs))

    async def sleeper() -> None:
        for _ in numbers:
            await asyncio.sleep(WAIT)

    began = time.perf_counter()
    await asyncio.gather(*(sleeper() for _ in range(at_once)))
    return jobs / (time.perf_counter() - began)


async def measure(options: argparse.Namespace) -> Report:
    """Every figure, `rounds` times, interleaved so that a slow moment of the machine hits all alike."""
    jobs = options.jobs
    async with machine.server(options.server) as url:
        load = Load(url)

        async def drain(concurrency: int, sleep: float) -> float:
            some = max(20, min(2 * jobs, 200 * concurrency)) if sleep else jobs
            return (await load.drain(some, concurrency=concurrency, sleep=sleep)).rate

        measures: dict[str, Callable[[], Awaitable[float]]] = {
            "add one by one": lambda: add(load, 1, max(1, jobs // 5)),
            "add, 50 awaiting": lambda: add(load, 50, jobs),
            "add in bulk": lambda: add(load, 0, jobs),
            **{f"drain no-op at {one}": lambda one=one: drain(one, 0) for one in CONCURRENCIES},  # type: ignore[misc]
            **{f"drain 10 ms at {one}": lambda one=one: drain(one, WAIT) for one in CONCURRENCIES},  # type: ignore[misc]
            "sleep 10 ms at 100, without a queue": lambda: bare(100, max(200, jobs // 2)),
        }
        values: dict[str, list[float]] = {name: [] for name in measures}
        for _ in range(options.rounds):
            for name, one in measures.items():
                values[name].append(await one())
                await load.redis.flushall()
        await load.close()
    report = Report(f"throughput, one process, server: {options.server}")
    for name, found in values.items():
        report.add(name, "jobs/s", found)
    middle = {figure.measure: figure.median for figure in report.figures}
    at_100 = middle["drain 10 ms at 100"]
    report.claim("10 ms jobs at concurrency 100, of the ideal 10,000 a second", at_100 / 10_000, 0.93)
    return report


if __name__ == "__main__":
    script(__doc__, measure, jobs=50_000, quick={"jobs": 3000, "rounds": 1})
