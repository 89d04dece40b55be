"""SAQ: a list, a record each; its workers block on the list, one for each slot."""

from __future__ import annotations

import asyncio
from typing import Any

from harness import Adapter, main, probe
from saq import Queue, Worker


async def work(ctx: object, *, data: object) -> None:
    await probe.run()


class Saq(Adapter):
    bulk = False

    async def open(self) -> None:
        self.queue = Queue.from_url(self.url)
        await self.queue.connect()

    async def add(self, data: dict[str, Any]) -> None:
        await self.queue.enqueue("work", data=data, retries=100)  # one try is its default, and a crash is one

    async def work(self) -> None:
        queue = Queue.from_url(self.url)
        await queue.connect()
        worker = Worker(queue, [work], concurrency=self.concurrency)
        worker.SIGNALS = []
        await worker.start()
        await asyncio.Event().wait()


main(Saq)
