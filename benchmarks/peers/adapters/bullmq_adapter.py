"""BullMQ's Python port."""

from __future__ import annotations

import asyncio
from typing import Any

from bullmq import Queue, Worker
from harness import Adapter, main, probe


async def work(job: object, token: str) -> None:
    await probe.run()


class BullMQ(Adapter):
    async def open(self) -> None:
        self.queue = Queue("bench", {"connection": self.url})

    async def add(self, data: dict[str, Any]) -> None:
        await self.queue.add("work", data)

    async def add_bulk(self, jobs: list[dict[str, Any]]) -> None:
        await self.queue.addBulk([{"name": "work", "data": data} for data in jobs])

    async def work(self) -> None:
        self.worker = Worker("bench", work, {"connection": self.url, "concurrency": self.concurrency})
        await asyncio.Event().wait()


main(BullMQ)
