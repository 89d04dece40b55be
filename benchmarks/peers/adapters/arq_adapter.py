"""arq: jobs in a sorted set, a record and a result each. It has no call for many at once."""

from __future__ import annotations

from typing import Any

from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import Worker
from harness import Adapter, main, probe


async def work(ctx: object, data: object) -> None:
    await probe.run()


class Arq(Adapter):
    bulk = False

    async def open(self) -> None:
        self.pool = await create_pool(RedisSettings.from_dsn(self.url))

    async def add(self, data: dict[str, Any]) -> None:
        await self.pool.enqueue_job("work", data)

    async def work(self) -> None:
        # It polls; 1 ms instead of half a second costs it nothing while there is work.
        worker = Worker(
            [work], redis_settings=RedisSettings.from_dsn(self.url), max_jobs=self.concurrency, poll_delay=0.001,
            handle_signals=False,
        )  # fmt: skip
        await worker.async_run()


main(Arq)
