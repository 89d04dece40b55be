"""What it costs to count: the same work with history and without, one after the other in one run.

Of each pair the ratio is taken, and of the ratios the median. CPU says more than jobs a second do on a machine that
others use as well.

    python -m benchmarks.history [--server …] [--jobs N] [--rounds N] [--quick] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

from benchmarks import machine
from benchmarks.load import Load
from benchmarks.report import Report, script

IDLE = 12.0  # seconds, longer than two flushes
MOST = 1.025  # of a job that does nothing
GROUPS = 100


async def drain(load: Load, jobs: int, concurrency: int) -> float:
    """CPU of this process a job that does nothing."""
    return (await load.drain(jobs, concurrency=concurrency)).cpu


async def groups(load: Load, jobs: int) -> float:
    """The same over many groups."""
    load.next()
    left, done = jobs, asyncio.Event()

    async def handle(data: object) -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set()

    async with load.runtime(consume=False, group=True) as adder:
        await adder.queue.add_bulk([("noop", {"id": i}, {"group_id": f"g{i % GROUPS}"}) for i in range(jobs)])
    cpu = time.process_time()
    async with load.runtime(handle, group=True):
        await done.wait()
        return (time.process_time() - cpu) / jobs


async def add(load: Load, jobs: int) -> float:
    """CPU of an add that is awaited alone."""
    load.next()
    async with load.runtime(consume=False) as runtime:
        cpu = time.process_time()
        for i in range(jobs):
            await runtime.queue.add("noop", {"id": i})
        return (time.process_time() - cpu) / jobs


async def idle(load: Load, seconds: float) -> float:
    """Commands while nothing happens."""
    load.next()
    async with load.runtime(names=[f"job-{i}" for i in range(20)]) as runtime:
        await runtime.wait_idle(60)
        await asyncio.sleep(1.0)
        before = await commands(load)
        await asyncio.sleep(seconds)
        return await commands(load) - before - 1


async def commands(load: Load) -> int:
    return int((await load.redis.info("stats"))["total_commands_processed"])


async def measure(options: argparse.Namespace) -> Report:
    report = Report(f"history on, of off, server: {options.server}")
    async with machine.server(options.server) as url:
        load = Load(url)
        jobs = options.jobs
        measures: dict[str, Callable[[], Awaitable[float]]] = {
            "no-op at 100": lambda: drain(load, jobs, 100),
            "no-op at 1": lambda: drain(load, jobs // 2, 1),
            f"no-op in {GROUPS} groups": lambda: groups(load, jobs // 2),
            "add one by one": lambda: add(load, jobs // 10),
        }
        ratios: dict[str, list[float]] = {name: [] for name in measures}
        costs: dict[str, list[float]] = {name: [] for name in measures}
        for n in range(options.rounds):
            for name, one in measures.items():
                found = {}
                for on in (True, False) if n % 2 else (False, True):
                    load.given = {"history": on}
                    found[on] = await one()
                    await load.redis.flushall()
                ratios[name].append(found[True] / found[False])
                costs[name].append(1e6 * found[True])
        sent = []
        for on in (True, False):
            load.given = {"history": on, "alerts": None}
            sent.append(await idle(load, options.idle))
        await load.close()
    for name in measures:
        report.add(f"{name}: CPU with history", "µs", costs[name])
        report.add(f"{name}: of without", "", ratios[name])
        report.claim(f"{name}: CPU with history, of without", statistics.median(ratios[name]), MOST, at_least=False)
    report.add("commands while nothing happens", "", [sent[0]])
    report.claim(
        "commands while nothing happens, beyond those without history", max(0, sent[0] - sent[1]), 0, at_least=False
    )
    return report


def more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--idle", type=float, default=IDLE, metavar="SECONDS")


if __name__ == "__main__":
    script(__doc__, measure, jobs=50_000, rounds=9, more=more, quick={"jobs": 2000, "rounds": 1, "idle": 12.0})
