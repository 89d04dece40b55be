"""taskiq with its Redis stream broker (acknowledged) and no result backend, its quickest durable set-up."""

from __future__ import annotations

from typing import Any

from harness import Adapter, main, probe
from taskiq.api import run_receiver_task
from taskiq_redis import RedisStreamBroker


class Taskiq(Adapter):
    bulk = False

    def make(self) -> tuple[RedisStreamBroker, Any]:
        broker = RedisStreamBroker(self.url, consumer_id="0")

        @broker.task(task_name="work")
        async def work(data: dict[str, Any]) -> None:
            await probe.run()

        return broker, work

    async def open(self) -> None:
        self.broker, self.task = self.make()
        await self.broker.startup()

    async def add(self, data: dict[str, Any]) -> None:
        await self.task.kiq(data)

    async def work(self) -> None:
        broker, _ = self.make()
        broker.is_worker_process = True
        await run_receiver_task(broker, max_async_tasks=self.concurrency, max_prefetch=100, run_startup=True)


main(Taskiq)
