"""dramatiq: threads, acknowledged messages, no record unless results are asked for."""

from __future__ import annotations

import asyncio
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.worker import Worker
from harness import Adapter, main, probe


class Dramatiq(Adapter):
    bulk = False
    uvloop = False

    async def open(self) -> None:
        self.broker = RedisBroker(url=self.url)
        dramatiq.set_broker(self.broker)

        @dramatiq.actor
        def work(data: dict[str, Any]) -> None:
            probe.run_in_thread()

        self.actor = work

    async def add(self, data: dict[str, Any]) -> None:
        self.actor.send(data)

    async def work(self) -> None:
        # More threads than eight, its own default, only make work that does not wait slower.
        threads = self.concurrency if probe.sleep else min(8, self.concurrency)
        Worker(self.broker, worker_threads=threads).start()
        await asyncio.Event().wait()


main(Dramatiq)
