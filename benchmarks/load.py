"""Load on one server: runtimes with jobs that do nothing or wait, filled and drained, a prefix of its own each time."""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis.asyncio import Redis

from asyncjobs import Runtime

PATIENCE = 300.0


class Drained(NamedTuple):
    """`rate`: jobs a second from the first start to the last end; `cpu`: seconds of this process a job."""

    rate: float
    cpu: float


class Load:
    """One server under load."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.given: dict[str, Any] = {}  # options of every runtime
        self.redis: Any = Redis.from_url(url)
        self._numbers = itertools.count(1)
        self.prefix = "bench"

    def next(self) -> None:
        """A fresh prefix for what comes."""
        self.prefix = f"bench{next(self._numbers)}"

    def runtime(
        self, handle: Any = None, *, names: Sequence[str] = ("noop",), consume: bool = True, **options: Any
    ) -> Runtime:
        """One with the same handler for all `names`, without limits unless asked."""

        async def noop(data: object) -> None: ...

        runtime = Runtime(self.url, prefix=self.prefix, consume=consume, schedule=False, **self.given)
        for name in names:
            runtime.job(name, **{"limiter": None, **options})(handle or noop)
        return runtime

    async def fill(self, jobs: int, names: Sequence[str] = ("noop",), **options: Any) -> None:
        async with self.runtime(names=names, consume=False) as adder:
            for start in range(0, jobs, 20_000):
                await adder.queue.add_bulk(
                    [(names[i % len(names)], {"id": i}, options) for i in range(start, min(start + 20_000, jobs))]
                )

    async def drain(
        self, jobs: int, *, names: Sequence[str] = ("noop",), sleep: float = 0.0, expect: int = 0, **options: Any
    ) -> Drained:
        """Fill a fresh prefix and drain it; `expect` ends the measurement before all jobs have run."""
        self.next()
        await self.fill(jobs, names)
        left, first, last = expect or jobs, 0.0, 0.0
        done = asyncio.Event()

        async def handle(data: object) -> None:
            nonlocal left, first, last
            if not first:
                first = time.perf_counter()
            if sleep:
                await asyncio.sleep(sleep)
            left -= 1
            if not left:
                last = time.perf_counter()
                done.set()

        gc.collect()
        cpu = time.process_time()
        async with self.runtime(handle, names=names, **options):
            async with asyncio.timeout(PATIENCE):
                await done.wait()
            used = time.process_time() - cpu
        ran = expect or jobs
        return Drained((ran - 1) / (last - first), used / ran)

    async def server_cpu(self) -> float:
        """Seconds of CPU that the server has used so far."""
        info = await self.redis.info("cpu")
        return float(info["used_cpu_user"] + info["used_cpu_sys"])

    async def close(self) -> None:
        await self.redis.aclose()


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
