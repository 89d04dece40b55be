"""asyncjobs, one runtime: records, retention, retries, fencing and leases as they are by default."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

from harness import Adapter, main, probe

from asyncjobs import Runtime


class Asyncjobs(Adapter):
    def runtime(self, consume: bool) -> Runtime:
        runtime = Runtime(self.url, prefix="bench", consume=consume, schedule=False)

        async def work(data: object) -> None:
            await probe.run()

        runtime.job("work", limiter=None, concurrency=self.concurrency)(work)
        return runtime

    async def open(self) -> None:
        self.stack = AsyncExitStack()
        self.queue = (await self.stack.enter_async_context(self.runtime(consume=False))).queue

    async def add(self, data: dict[str, Any]) -> None:
        await self.queue.add("work", data)

    async def add_bulk(self, jobs: list[dict[str, Any]]) -> None:
        await self.queue.add_bulk([("work", data) for data in jobs])

    async def work(self) -> None:
        async with self.runtime(consume=True):
            await asyncio.Event().wait()

    async def close(self) -> None:
        await self.stack.aclose()


main(Asyncjobs)
