"""Latency: from add to the handler's start, idle and under half load; and how late what is due is.

"Idle, one process" adds in the process that works; "idle, another process" in one that only adds. The ping is one round
trip of redis-py on a connection of its own, between the same adds. Lateness is against the due time by the same
machine's clock; a negative one would be early.

    python -m benchmarks.latency [--jobs N] [--rounds N] [--server …] [--quick] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from asyncjobs import Backoff, Runtime
from benchmarks import machine
from benchmarks.load import Load, percentile
from benchmarks.report import Report, script

GAP = 0.005
DUE = 1000  # jobs due within one second
SAMPLES = 200  # of a distribution, evenly spread
TICKS = 5  # seconds with a tick each


async def idle_here(load: Load, jobs: int) -> tuple[list[float], list[float]]:
    """Waits from add to start, and pings between them."""
    load.next()
    started: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    async def handle(data: object) -> None:
        started.set_result(time.perf_counter())

    waits, pings = [], []
    async with load.runtime(handle) as runtime:
        for i in range(-20, jobs):
            await asyncio.sleep(GAP)
            began = time.perf_counter()
            adding = asyncio.ensure_future(runtime.queue.add("noop", {"id": i}))
            wait = await started - began
            await adding
            started = asyncio.get_running_loop().create_future()
            await asyncio.sleep(GAP)
            began = time.perf_counter()
            await load.redis.ping()
            if i >= 0:
                waits.append(wait)
                pings.append(time.perf_counter() - began)
    return waits, pings


async def idle_there(load: Load, jobs: int) -> list[float]:
    """The same, worked in another process: both read the machine's one monotonic clock."""
    load.next()
    command = [sys.executable, "-m", "benchmarks.latency", "--work", load.url, load.prefix]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    waits = []
    try:
        assert process.stdout is not None
        await process.stdout.readline()
        async with load.runtime(consume=False) as runtime:
            for i in range(-20, jobs):
                await asyncio.sleep(GAP)
                began = time.monotonic()
                job = await runtime.queue.add("noop", {"id": i})
                at = await job.wait(30)
                if i >= 0:
                    waits.append(at - began)
    finally:
        process.terminate()
        await process.wait()
    return waits


async def work(url: str, prefix: str) -> None:
    """The other process, until it is ended."""
    load = Load(url)
    load.prefix = prefix

    async def handle(data: object) -> float:
        return time.monotonic()

    async with load.runtime(handle):
        await asyncio.sleep(0.5)
        print("ready", flush=True)
        await asyncio.Event().wait()


async def half_load(load: Load, jobs: int) -> list[float]:
    """Waits while jobs come at half the pace at which this process adds and runs them one beside the other."""
    load.next()
    waits: list[float] = []
    ran = 0

    async def handle(data: Any) -> None:
        nonlocal ran
        ran += 1
        if data["at"]:
            waits.append(time.perf_counter() - data["at"])

    async with load.runtime(handle, concurrency=100) as runtime:
        some = max(1000, jobs)
        began = time.perf_counter()
        numbers = iter(range(some))

        async def adder() -> None:
            for _ in numbers:
                await runtime.queue.add("noop", {"at": 0})

        await asyncio.gather(*(adder() for _ in range(50)))
        await runtime.wait_idle(60)
        pace = some / (time.perf_counter() - began) / 2
        began, added, adding = time.perf_counter(), 0, set()
        while added < some:
            due = min(some, int((time.perf_counter() - began) * pace) + 1)
            for _ in range(due - added):
                one = asyncio.ensure_future(runtime.queue.add("noop", {"at": time.perf_counter()}))
                adding.add(one)
                one.add_done_callback(adding.discard)
            added = due
            await asyncio.sleep(0.001)
        await asyncio.gather(*adding)
        await runtime.wait_idle(60)
    return waits


async def delayed(load: Load) -> list[float]:
    """How late `DUE` jobs are that come due in the same second."""
    load.next()
    late: list[float] = []

    async def handle(data: Any) -> None:
        late.append(time.time() - data)

    async with load.runtime(handle, concurrency=100) as runtime:
        start = datetime.now(UTC) + timedelta(seconds=1)
        due = [start + timedelta(seconds=i / DUE) for i in range(DUE)]
        await runtime.queue.add_bulk([("noop", at.timestamp(), {"at": at}) for at in due])
        await runtime.wait_idle(30)
    return late


async def retried(load: Load, jobs: int) -> list[float]:
    """How late the second try is after the first has failed."""
    load.next()
    late: list[float] = []
    failed: dict[str, float] = {}

    async def handle(job: Any) -> None:
        if job.attempts_made:
            late.append(time.perf_counter() - failed[job.id] - 0.3)
        else:
            failed[job.id] = time.perf_counter()
            raise ValueError("the first try fails")

    async with load.runtime(handle, backoff=Backoff("fixed", 0.3), concurrency=100) as runtime:
        await runtime.queue.add_bulk([("noop", None)] * jobs)
        await runtime.wait_idle(30)
    return late


async def ticks(load: Load) -> list[float]:
    """How late a task is that ticks every second."""
    load.next()
    late: list[float] = []
    runtime = Runtime(load.url, prefix=load.prefix)

    @runtime.task("* * * * * *")
    async def tick() -> None:
        now = time.time()
        late.append(now - int(now))

    async with runtime:
        await asyncio.sleep(TICKS + 0.5)
    return late


async def measure(options: argparse.Namespace) -> Report:
    here: list[tuple[list[float], list[float]]] = []
    there, half, due, again, tick = [], [], [], [], []
    async with machine.server(options.server) as url:
        load = Load(url)
        for _ in range(options.rounds):
            here.append(await idle_here(load, options.jobs))
            there.append(await idle_there(load, options.jobs))
            half.append(await half_load(load, 10 * options.jobs))
            due.append(await delayed(load))
            again.append(await retried(load, min(100, options.jobs)))
            tick.append(await ticks(load))
            await load.redis.flushall()
        await load.close()
    report = Report(f"latency, server: {options.server}")

    def add(name: str, rounds: list[list[float]], shares: tuple[float, ...] = (0.5, 0.95, 0.99)) -> None:
        for share in shares:
            report.add(f"{name}, p{share * 100:.0f}", "ms", [1000 * percentile(one, share) for one in rounds])

    add("ping", [pings for _, pings in here], (0.5,))
    add("idle, one process: add to start", [waits for waits, _ in here])
    add("idle, another process: add to start", there)
    add("half load: add to start", half)
    add("late, 1,000 due in a second", due)
    report.add("late, 1,000 due in a second, least", "ms", [1000 * min(one) for one in due])
    add("late, retries after 0.3 s", again)
    add("late, ticks", tick, (0.5, 0.99))
    distributions = {
        "idle, one process": [waits for waits, _ in here],
        "idle, another process": there,
        "half load": half,
        "late, 1,000 due in a second": due,
    }
    for name, rounds in distributions.items():
        every = sorted(1000 * value for one in rounds for value in one)
        report.samples[name] = [round(every[i * len(every) // SAMPLES], 4) for i in range(SAMPLES)]
    middle = {figure.measure: figure.median for figure in report.figures}
    start = middle["idle, one process: add to start, p50"]
    report.claim("idle p50, of a ping", start / middle["ping, p50"], 4, at_least=False)
    report.claim("idle p99, of p50", middle["idle, one process: add to start, p99"] / start, 3, at_least=False)
    report.claim("ms by which the earliest delayed job was late", 1000 * min(map(min, due)), 0)
    report.claim(
        "p99 late of 1,000 due in a second, ms", middle["late, 1,000 due in a second, p99"], 20, at_least=False
    )
    return report


def more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--work", nargs=2, metavar=("URL", "PREFIX"), help=argparse.SUPPRESS)


if __name__ == "__main__":
    if "--work" in sys.argv:
        from asyncjobs.cli.project import run_loop

        run_loop(work(*sys.argv[sys.argv.index("--work") + 1 :]))
    else:
        script(__doc__, measure, jobs=300, quick={"jobs": 30, "rounds": 1})
