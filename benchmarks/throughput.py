"""Throughput of one process: adding one by one, 50 at once and in bulk; draining no-op jobs at concurrency 1, 10, 100.

Everything that a job has in production is on: records, retention, retries, fencing.

    python -m benchmarks.throughput [--server memory|embedded|URL] [--jobs N] [--rounds N] [--quick] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable

from rich.console import Console
from rich.table import Table

from asyncjobs import Runtime
from asyncjobs.cli.project import run_loop
from benchmarks import machine

CONCURRENCIES = (1, 10, 100)
Measure = Callable[[], Awaitable[float]]


class Bench:
    """One prefix on one server; each measure returns jobs per second."""

    def __init__(self, url: str, jobs: int) -> None:
        self.url, self.jobs = url, jobs
        self.rounds = 0

    def _runtime(self, handle: Callable[..., Awaitable[None]], concurrency: int, consume: bool) -> Runtime:
        runtime = Runtime(self.url, prefix=f"bench{self.rounds}", consume=consume, schedule=False)
        runtime.job("noop", limiter=None, concurrency=concurrency)(handle)
        return runtime

    async def add(self, at_once: int) -> float:
        """Adding: 1 awaits each, 50 keeps fifty awaiting, 0 is one `add_bulk`."""
        self.rounds += 1

        async def noop(data: object) -> None: ...

        async with self._runtime(noop, 1, consume=False) as runtime:
            queue = runtime.queue
            jobs = self.jobs if at_once != 1 else max(1, self.jobs // 5)
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

    async def drain(self, concurrency: int) -> float:
        """Draining: from the start of the consumer until the last handler has run."""
        self.rounds += 1
        jobs = self.jobs if concurrency > 1 else max(1, self.jobs // 5)
        left, done = jobs, asyncio.Event()

        async def noop(data: object) -> None:
            nonlocal left
            left -= 1
            if not left:
                done.set()

        async with self._runtime(noop, concurrency, consume=False) as adder:
            await adder.queue.add_bulk([("noop", {"id": i}) for i in range(jobs)])
        began = time.perf_counter()
        async with self._runtime(noop, concurrency, consume=True):
            await done.wait()
            return jobs / (time.perf_counter() - began)


async def measure(server: str, jobs: int, rounds: int) -> dict[str, list[float]]:
    """Every figure, `rounds` times, interleaved so that a slow moment of the machine hits all alike."""
    async with machine.server(server) as url:
        bench = Bench(url, jobs)
        measures: dict[str, Measure] = {
            "add one by one": lambda: bench.add(1),
            "add, 50 awaiting": lambda: bench.add(50),
            "add in bulk": lambda: bench.add(0),
            **{f"drain no-op at {one}": lambda one=one: bench.drain(one) for one in CONCURRENCIES},  # type: ignore[misc]
        }
        figures: dict[str, list[float]] = {name: [] for name in measures}
        for _ in range(rounds):
            for name, one in measures.items():
                figures[name].append(await one())
        return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="memory", help="memory, embedded, or a URL")
    parser.add_argument("--jobs", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="3,000 jobs, one round")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    options = parser.parse_args()
    if options.quick:
        options.jobs, options.rounds = 3000, 1
    figures = run_loop(measure(options.server, options.jobs, options.rounds))
    if options.json:
        print(json.dumps({"machine": machine.describe(), "server": options.server, "jobs_per_second": figures}))
        return
    table = Table("measure", title=f"asyncjobs, one process, server: {options.server}", title_justify="left")
    for column in ("median jobs/s", "min", "max"):
        table.add_column(column, justify="right")
    for name, values in figures.items():
        table.add_row(name, *(f"{one:,.0f}" for one in (statistics.median(values), min(values), max(values))))
    console = Console(width=100)
    console.print(table)
    console.print(f"{machine.describe()}; {options.jobs:,} jobs, {options.rounds} rounds", highlight=False)


if __name__ == "__main__":
    main()
