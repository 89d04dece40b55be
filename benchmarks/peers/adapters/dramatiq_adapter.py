"""dramatiq: threads, acknowledged messages, no record unless results are asked for."""

from __future__ import annotations

import asyncio
import os
from typing import Any

# Read at import, in small letters. At one thread it is twelve times what its own two bring.
os.environ["dramatiq_queue_prefetch"] = "100"  # noqa: SIM112

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
