"""pydocket: streams, a record of each run. It looks for work every millisecond, a hundred times its default."""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

from docket import Docket, Worker
from harness import Adapter, main, probe


async def work(data: dict[str, Any]) -> None:
    await probe.run()


class Pydocket(Adapter):
    async def open(self) -> None:
        self.stack = AsyncExitStack()
        self.docket = await self.stack.enter_async_context(Docket(name="bench", url=self.url + "?max_connections=1000"))
        self.docket.register(work)

    async def add(self, data: dict[str, Any]) -> None:
        await self.docket.add(work)(data)

    async def add_bulk(self, jobs: list[dict[str, Any]]) -> None:
        await self.docket.add_many(self.docket.call(work)(data) for data in jobs)

    async def work(self) -> None:
        async with Docket(name="bench", url=self.url + "?max_connections=1000") as docket:
            docket.register(work)
            worker = Worker(
                docket,
                concurrency=self.concurrency,
                minimum_check_interval=timedelta(milliseconds=1),
                scheduling_resolution=timedelta(milliseconds=1),
            )
            async with worker:
                await worker.run_forever()


main(Pydocket)
