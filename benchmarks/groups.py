"""Groups at scale, in one process: opening, draining, memory, idle cost, and fairness beside one heavy tenant.

    python -m benchmarks.groups [--groups N …] [--server memory|embedded|URL] [--quick] [--json]

Redis memory counts every key of the run. Process memory is what of an idle group is alive, and what the resident size
of a fresh process has grown by after a job in each. "Of ungrouped" is the drain rate against that of one queue without
groups, at concurrency 100, in the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import gc
import json
import resource
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from rich.console import Console
from rich.table import Table

from asyncjobs import Runtime
from asyncjobs.cli.project import run_loop
from benchmarks import machine

JOBS_A_GROUP = 10
LIGHT = 1000
SETTLE = 5.0  # seconds over which idle cost is measured


def resident() -> int:
    """Bytes of this process that are in memory now, without what the allocator merely holds back."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class Bench:
    """One prefix after the other on one server."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.runs = 0
        self.redis: Any = Redis.from_url(url)

    def runtime(self, handle: Any, consume: bool = True, **options: Any) -> Runtime:
        runtime = Runtime(self.url, prefix=f"groups{self.runs}", consume=consume, schedule=False)
        runtime.job("tenant", limiter=None, group=True, group_idle=options.pop("group_idle", 600), **options)(handle)
        runtime.job("plain", limiter=None, concurrency=100)(handle)
        return runtime

    async def used(self) -> int:
        return int((await self.redis.info("memory"))["used_memory_dataset"])

    async def commands(self) -> int:
        return int((await self.redis.info("stats"))["total_commands_processed"])

    async def drain(self, jobs: int, make: Callable[[int], tuple[Any, ...]]) -> float:
        """Jobs per second from the start of a process until the last of `jobs` has run; `make` makes the nth."""
        self.runs += 1
        left, done = jobs, asyncio.Event()

        async def noop(data: object) -> None:
            nonlocal left
            left -= 1
            if not left:
                done.set()

        async with self.runtime(noop, consume=False) as adder:
            for start in range(0, jobs, 20_000):
                await adder.queue.add_bulk([make(n) for n in range(start, min(start + 20_000, jobs))])
        gc.collect()  # what adding has left behind is not to be collected while the draining is timed
        began = time.perf_counter()
        async with self.runtime(noop):
            await done.wait()
            return jobs / (time.perf_counter() - began)

    async def scale(self, groups: int) -> dict[str, float]:
        """Everything that depends on the number of groups."""
        figures: dict[str, float] = {"groups": groups}
        ungrouped = await self.drain(50_000, lambda n: ("plain", {"id": n}))
        figures["drain"] = await self.drain(
            groups * JOBS_A_GROUP, lambda n: ("tenant", {"id": n}, {"group_id": f"g{n % groups}"})
        )
        figures["of ungrouped"] = figures["drain"] / ungrouped
        await self.redis.flushall()
        command = [sys.executable, "-m", "benchmarks.groups", "--one-each", self.url, str(groups)]
        fresh = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        out, _ = await fresh.communicate()
        await self.redis.flushall()
        measured: dict[str, float] = json.loads(out)
        return figures | measured

    async def one_each(self, groups: int) -> dict[str, float]:
        """Open all with a job each; what they cost waiting, open, done, idle, reaped."""
        self.runs += 1
        left, done = groups, asyncio.Event()

        async def noop(data: object) -> None:
            nonlocal left
            left -= 1
            if not left:
                done.set()

        await asyncio.sleep(1)  # the server frees what was flushed in its own time
        empty = await self.used()
        async with self.runtime(noop, consume=False) as adder:
            for start in range(0, groups, 20_000):
                await adder.queue.add_bulk(
                    [("tenant", {"id": i}, {"group_id": f"g{i}"}) for i in range(start, min(start + 20_000, groups))]
                )
        waiting = (await self.used() - empty) / groups
        worker = self.runtime(noop, remove_on_complete=True, group_idle=3600)
        clients, size, began = len(await self.redis.client_list()), resident(), time.perf_counter()
        async with worker:
            await done.wait()
            took = time.perf_counter() - began
            await worker.wait_idle(60)
            connections = len(await self.redis.client_list()) - clients
            await asyncio.sleep(1)
            process = (resident() - size) / groups
            idle = (await self.used() - empty) / groups
            assert worker._assembly is not None
            if worker._assembly.recorder is not None:
                await worker._assembly.recorder.flush()  # what it has counted is not part of idling
            before, cpu = await self.commands(), time.process_time()
            await asyncio.sleep(SETTLE)
            commands = (await self.commands() - before - 2) / SETTLE
            busy = (time.process_time() - cpu) / SETTLE
        alive = await self._alive(groups)
        reaper = self.runtime(noop, remove_on_complete=True, group_idle=0)
        async with reaper:
            while await self.redis.exists(f"{{groups{self.runs}:tenant}}:groups"):  # noqa: ASYNC110 - another's key
                await asyncio.sleep(0.1)
        # Who has added is forgotten a minute later: until then the same add may be sent again. History goes by itself.
        found = [key async for key in self.redis.scan_iter("*:tenant*", count=1000)]
        keys = [key for key in found if not key.endswith(b":n") and b"}:m:" not in key]
        return {
            "open all, s": took, "connections": connections,
            "bytes alive a group": alive, "resident bytes a group": process,
            "Redis bytes a group, 1 waiting": waiting, "Redis bytes a group, idle": idle,
            "idle commands a second": max(0.0, commands), "idle CPU": busy, "keys left": len(keys),
        }  # fmt: skip

    async def _alive(self, groups: int) -> float:
        """Bytes of objects that an open idle group is, in a process that finds all of them at its start."""

        async def noop(data: object) -> None: ...

        gc.collect()
        tracemalloc.start(1)
        try:
            async with self.runtime(noop, remove_on_complete=True, group_idle=3600) as worker:
                while worker.health()["groups"]["tenant"] < groups:  # noqa: ASYNC110 - it is not told
                    await asyncio.sleep(0.05)
                await worker.wait_idle(60)
                gc.collect()
                return tracemalloc.get_traced_memory()[0] / groups
        finally:
            tracemalloc.stop()

    async def fairness(self, heavy: int) -> dict[str, float]:
        """p99 of the wait of a job each for a thousand light tenants, without and with a heavy one beside them."""
        alone, beside = await self._light(0), await self._light(heavy)
        return {"p99 alone, ms": alone, "p99 beside, ms": beside, "ratio": beside / alone}

    async def _light(self, heavy: int) -> float:
        self.runs += 1
        added: dict[str, float] = {}
        waits: list[float] = []
        done = asyncio.Event()

        async def work(data: Any, job: Any) -> None:
            if job.group_id != "heavy":
                waits.append(time.perf_counter() - added[job.group_id])
                if len(waits) == LIGHT:
                    done.set()
            await asyncio.sleep(0.001)

        async with self.runtime(work, consume=False) as adder:
            for start in range(0, heavy, 20_000):
                await adder.queue.add_bulk(
                    [("tenant", 0, {"group_id": "heavy"}) for _ in range(start, min(start + 20_000, heavy))]
                )
            async with self.runtime(work):
                await asyncio.sleep(0.5)
                for n in range(LIGHT):
                    added[f"light{n}"] = time.perf_counter()
                    await adder.queue.add("tenant", 0, group_id=f"light{n}")
                await done.wait()
        waits.sort()
        return 1000 * waits[int(0.99 * len(waits))]


async def one_each(url: str, groups: str) -> dict[str, float]:
    """The part that needs a process of its own."""
    bench = Bench(url)
    try:
        return await bench.one_each(int(groups))
    finally:
        await bench.redis.aclose()


async def measure(server: str, sizes: list[int], heavy: int) -> dict[str, Any]:
    """All figures."""
    async with machine.server(server) as url:
        bench = Bench(url)
        try:
            fairness = await bench.fairness(heavy)
            await bench.redis.flushall()
            return {"scale": [await bench.scale(groups) for groups in sizes], "fairness": fairness}
        finally:
            await bench.redis.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="memory", help="memory, embedded, or a URL whose data may be flushed")
    parser.add_argument("--groups", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--heavy", type=int, default=100_000, help="waiting jobs of the heavy tenant")
    parser.add_argument("--quick", action="store_true", help="1,000 groups, 5,000 heavy jobs")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the tables")
    parser.add_argument("--one-each", nargs=2, metavar=("URL", "GROUPS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one_each:
        print(json.dumps(run_loop(one_each(*options.one_each))))
        return
    if options.quick:
        options.groups, options.heavy = [1000], 5000
    found = run_loop(measure(options.server, options.groups, options.heavy))
    found = {"machine": machine.describe(), "server": options.server, "heavy": options.heavy, **found}
    if options.json:
        print(json.dumps(found))
    else:
        show(found)


def show(found: dict[str, Any]) -> None:
    """Print what was found, as a column for each number of groups."""
    table = Table("measure", title=f"groups, one process, server: {found['server']}", title_justify="left")
    for one in found["scale"]:
        table.add_column(f"{one['groups']:,}", justify="right")
    for name in found["scale"][0]:
        if name != "groups":
            table.add_row(
                name, *(f"{one[name]:,.2f}" if one[name] < 100 else f"{one[name]:,.0f}" for one in found["scale"])
            )
    console = Console(width=110)
    console.print(table)
    fair = ", ".join(f"{name} {value:.1f}" for name, value in found["fairness"].items())
    console.print(f"{LIGHT:,} light tenants beside one with {found['heavy']:,} waiting: {fair}", highlight=False)
    console.print(found["machine"], highlight=False, style="dim")


if __name__ == "__main__":
    main()
