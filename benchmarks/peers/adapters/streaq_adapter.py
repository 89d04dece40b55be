"""streaQ: streams, a record and a result each, pipelines, prefetching."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

from harness import Adapter, main, probe
from streaq import Worker


class Streaq(Adapter):
    def make(self) -> tuple[Worker[Any], Any]:
        worker: Worker[Any] = Worker(
            redis_url=self.url, concurrency=self.concurrency, prefetch=256, handle_signals=False
        )

        @worker.task
        async def work(data: object) -> None:
            await probe.run()

        return worker, work

    async def open(self) -> None:
        self.worker, self.task = self.make()
        self.stack = AsyncExitStack()
        await self.stack.enter_async_context(self.worker)

    async def add(self, data: dict[str, Any]) -> None:
        await self.task.enqueue(data)

    async def add_bulk(self, jobs: list[dict[str, Any]]) -> None:
        await self.worker.enqueue_many([self.task.enqueue(data) for data in jobs])

    async def work(self) -> None:
        worker, _ = self.make()
        await worker.run_async()


main(Streaq)
