"""celery in one process, threads where jobs wait: acknowledged late, as nothing is to be lost, and results ignored."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from celery import Celery
from harness import Adapter, main, probe


class CeleryAdapter(Adapter):
    bulk = False
    uvloop = False

    async def open(self) -> None:
        self.app = Celery("bench", broker=self.url)
        self.app.conf.update(
            task_acks_late=True, task_ignore_result=True, worker_prefetch_multiplier=4, worker_hijack_root_logger=False,
            broker_connection_retry_on_startup=True,
        )  # fmt: skip

        @self.app.task(name="work")
        def work(data: dict[str, Any]) -> None:
            probe.run_in_thread()

        self.task = work

    async def add(self, data: dict[str, Any]) -> None:
        self.task.delay(data)

    async def work(self) -> None:
        pool = "threads" if probe.sleep else "solo"  # threads make jobs that do not wait slower
        # The controller without the command line around it, which wants the main thread for its signals.
        worker = self.app.WorkController(
            pool=pool, concurrency=self.concurrency, without_gossip=True, without_mingle=True, without_heartbeat=True,
        )  # fmt: skip
        threading.Thread(target=worker.start, daemon=True).start()
        await asyncio.Event().wait()


main(CeleryAdapter)
