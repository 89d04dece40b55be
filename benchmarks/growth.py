"""Growth: what a job costs at backlogs of a thousand to a million, and at one to a thousand job names.

A job's cost is the CPU of this process and of the server while the first `--jobs` of the backlog are drained. Names
have ten jobs each, all in one process.

    python -m benchmarks.growth [--backlogs N …] [--names N …] [--jobs N] [--rounds N] [--server …] [--quick] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import time

from benchmarks import machine
from benchmarks.load import PATIENCE, Load
from benchmarks.report import Report, script


async def backlog_cost(load: Load, size: int, jobs: int) -> tuple[float, float]:
    """µs of CPU a job, ours and the server's, and jobs a second; small backlogs are filled and drained repeatedly."""
    load.next()
    ran, cost, took = 0, 0.0, 0.0
    target = 0
    reached = asyncio.Event()

    async def handle(data: object) -> None:
        nonlocal ran
        ran += 1
        if ran == target:
            reached.set()

    async with load.runtime(handle, concurrency=100) as runtime:
        steering = runtime.queue.job("noop")
        total = 0
        while total < jobs:
            await steering.pause()
            await load.fill(size)
            part = min(size, jobs)
            reached.clear()
            target = ran + part
            before, cpu, began = await load.server_cpu(), time.process_time(), time.perf_counter()
            await steering.resume()
            async with asyncio.timeout(PATIENCE):
                await reached.wait()
            took += time.perf_counter() - began
            cost += time.process_time() - cpu + await load.server_cpu() - before
            total += part
        await steering.pause()
    return 1e6 * cost / total, total / took


async def measure(options: argparse.Namespace) -> Report:
    costs: dict[int, list[float]] = {size: [] for size in options.backlogs}
    rates: dict[int, list[float]] = {size: [] for size in options.backlogs}
    by_names: dict[int, list[float]] = {names: [] for names in options.names}
    connections: set[int] = set()
    async with machine.server(options.server) as url:
        load = Load(url)
        for _ in range(options.rounds):
            for size in options.backlogs:
                cost, rate = await backlog_cost(load, size, options.jobs)
                costs[size].append(cost)
                rates[size].append(rate)
                await load.redis.flushall()
            for many in options.names:
                names = [f"job-{i}" for i in range(many)]
                watching = asyncio.create_task(watch_connections(load, connections))
                drained = await load.drain(max(10 * many, min(options.jobs, 10_000)), names=names, concurrency=10)
                watching.cancel()
                by_names[many].append(drained.rate)
                await load.redis.flushall()
        await load.close()
    report = Report(f"growth, one process, server: {options.server}")
    for size, values in costs.items():
        report.add(f"CPU a job, process and server, at a backlog of {size:,}", "µs", values)
    for size, values in rates.items():
        report.add(f"drain at 100 from a backlog of {size:,}", "jobs/s", values)
    for many, values in by_names.items():
        report.add(f"drain of {many:,} job names", "jobs/s", values)
    report.add("most connections", "", [max(connections)])
    middle = {figure.measure: figure.median for figure in report.figures}
    least, most = min(options.backlogs), max(options.backlogs)
    ratio = middle[f"CPU a job, process and server, at a backlog of {most:,}"]
    ratio /= middle[f"CPU a job, process and server, at a backlog of {least:,}"]
    report.claim(f"cost of a job at a backlog of {most:,}, of that at {least:,}", ratio, 1.2, at_least=False)
    many = max(options.names)
    ratio = middle[f"drain of {many:,} job names"] / middle[f"drain of {min(options.names):,} job names"]
    report.claim(f"drain of {many:,} names, of that of {min(options.names):,}", ratio, 0.3)
    report.claim("connections", max(connections), 8, at_least=False)
    return report


async def watch_connections(load: Load, seen: set[int]) -> None:
    """Note how many connections the server has, beside the one that looks, until cancelled."""
    while True:
        seen.add(len(await load.redis.client_list()) - 1)
        await asyncio.sleep(0.05)


def more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backlogs", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--names", type=int, nargs="+", default=[1, 10, 100, 1000])


if __name__ == "__main__":
    quick = {"jobs": 2000, "rounds": 1, "backlogs": [1000, 10_000], "names": [1, 50]}
    script(__doc__, measure, more=more, jobs=20_000, quick=quick)
