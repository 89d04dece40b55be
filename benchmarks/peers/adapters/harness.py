"""What every adapter shares: the work, the clock, and the three things that are measured. The standard library alone.

An adapter is one file, run by the Python of its own environment, with one command a process:

    python arq_adapter.py add    URL one|many|bulk JOBS        jobs a second, adding
    python arq_adapter.py drain  URL CONCURRENCY SECONDS JOBS  jobs a second, from the first start to the last end
    python arq_adapter.py idle   URL JOBS                      seconds from add to start, each with nothing else to do

It prints one JSON object. All adapters run on uvloop where the peer can, and with the same garbage collector settings.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

PATIENCE = 240.0
WARM = 20  # jobs before the first that is timed, where latency is measured


class Probe:
    """What the handler tells: when the first job began, when the last ended, when each started."""

    def __init__(self) -> None:
        self.expected = 0
        self.sleep = 0.0
        self.begun = self.ended = 0
        self.first = self.last = 0.0
        self.done: Callable[[], None] = lambda: None
        self.on_start: Callable[[float], None] | None = None

    def start(self) -> None:
        if self.on_start is not None:
            self.on_start(time.perf_counter())
        elif not self.begun:
            self.first = time.perf_counter()
        self.begun += 1

    def end(self) -> None:
        self.ended += 1
        if self.ended == self.expected:
            self.last = time.perf_counter()
            self.done()

    async def run(self) -> None:
        """A job of an asyncio peer."""
        self.start()
        if self.sleep:
            await asyncio.sleep(self.sleep)
        self.end()

    def run_in_thread(self) -> None:
        """A job of a peer that uses threads."""
        self.start()
        if self.sleep:
            time.sleep(self.sleep)
        self.end()


probe = Probe()


class Adapter:
    """One peer that runs on asyncio. Subclasses say how it adds and how it works; `concurrency` is set before both."""

    bulk = True
    uvloop = True

    def __init__(self, url: str, concurrency: int) -> None:
        self.url, self.concurrency = url, concurrency

    async def open(self) -> None:
        """Get ready to add."""

    async def add(self, data: dict[str, Any]) -> None:
        """Add one job; return when the server has it."""
        raise NotImplementedError

    async def add_bulk(self, jobs: list[dict[str, Any]]) -> None:
        """Add many by the call that the peer has for it."""
        raise NotImplementedError

    async def work(self) -> None:
        """Work until cancelled."""
        raise NotImplementedError

    async def close(self) -> None:
        """Let go of what `open` has made."""


async def _add(adapter: Adapter, how: str, jobs: int) -> dict[str, Any]:
    await adapter.open()
    rows = [{"id": i} for i in range(jobs)]
    for row in rows[:10]:
        await adapter.add(row)
    gc.collect()
    began = time.perf_counter()
    if how == "bulk":
        await adapter.add_bulk(rows)
    elif how == "one":
        for row in rows:
            await adapter.add(row)
    else:
        left = iter(rows)

        async def adder() -> None:
            for row in left:
                await adapter.add(row)

        await asyncio.gather(*(adder() for _ in range(50)))
    took = time.perf_counter() - began
    await adapter.close()
    return {"rate": jobs / took}


async def _fill(adapter: Adapter, jobs: int) -> None:
    """Add `jobs` the quickest way there is."""
    rows = [{"id": i} for i in range(jobs)]
    if adapter.bulk:
        for start in range(0, jobs, 5000):
            await adapter.add_bulk(rows[start : start + 5000])
        return
    left = iter(rows)

    async def adder() -> None:
        for row in left:
            await adapter.add(row)

    await asyncio.gather(*(adder() for _ in range(50)))


async def _drain(adapter: Adapter, sleep: float, jobs: int) -> dict[str, Any]:
    await adapter.open()
    await _fill(adapter, jobs)
    done = asyncio.Event()
    loop = asyncio.get_running_loop()
    probe.expected, probe.sleep = jobs, sleep
    probe.done = lambda: loop.call_soon_threadsafe(done.set)
    gc.collect()
    cpu = time.process_time()
    worker = asyncio.create_task(adapter.work())
    ended = asyncio.create_task(done.wait())
    await asyncio.wait({worker, ended}, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
    if not done.is_set():
        if worker.done() and not worker.cancelled() and worker.exception() is not None:
            raise RuntimeError("the worker ended") from worker.exception()
        raise TimeoutError(f"{probe.ended} of {jobs} jobs have run")
    used = time.process_time() - cpu
    return {"rate": (jobs - 1) / (probe.last - probe.first), "cpu": used / jobs}


async def _idle(adapter: Adapter, jobs: int) -> dict[str, Any]:
    await adapter.open()
    probe.expected = -1
    loop = asyncio.get_running_loop()
    started: asyncio.Future[float] = loop.create_future()

    def on_start(at: float) -> None:
        loop.call_soon_threadsafe(lambda: started.done() or started.set_result(at))

    probe.on_start = on_start
    worker = asyncio.create_task(adapter.work())
    waits = []
    for i in range(-WARM, jobs):
        await asyncio.sleep(0.5 if i == -WARM else 0.005)
        began = time.perf_counter()
        adding = asyncio.ensure_future(adapter.add({"id": i}))
        async with asyncio.timeout(30):
            at = await started
        await adding
        started = loop.create_future()
        if worker.done():
            raise RuntimeError("the worker ended") from worker.exception()
        if i >= 0:
            waits.append(at - began)
    return {"waits": waits}


def main(make: Callable[[str, int], Adapter]) -> None:
    """Do what the command line says, print the outcome, and leave at once: a peer may take seconds to stop."""
    command, url, *rest = sys.argv[1:]
    adapter = make(url, int(rest[0]) if command == "drain" else 10)

    async def measured() -> None:
        if command == "add":
            found = await _add(adapter, rest[0], int(rest[1]))
        elif command == "drain":
            found = await _drain(adapter, float(rest[1]), int(rest[2]))
        else:
            found = await _idle(adapter, int(rest[0]))
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()
        os._exit(0)

    gc.set_threshold(10_000, 20, 50)
    factory = None
    if adapter.uvloop:
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(measured())
