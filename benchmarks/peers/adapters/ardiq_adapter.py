"""ardiq: a Rust core on streams, results kept for a while."""

from __future__ import annotations

from typing import Any

from ardiq import Ardiq
from harness import Adapter, main, probe


class ArdiqAdapter(Adapter):
    def make(self) -> tuple[Ardiq, Any]:
        app = Ardiq(redis_url=self.url, queue_name="bench", concurrency=self.concurrency)

        @app.task()
        async def work(data: dict[str, Any]) -> None:
            await probe.run()

        return app, work

    async def open(self) -> None:
        self.app, self.task = self.make()

    async def add(self, data: dict[str, Any]) -> None:
        await self.task.enqueue(data)

    async def add_bulk(self, jobs: list[dict[str, Any]]) -> None:
        await self.app.enqueue_many([self.task.prepare(data) for data in jobs])

    async def work(self) -> None:
        app, _ = self.make()
        await app.run()


main(ArdiqAdapter)
