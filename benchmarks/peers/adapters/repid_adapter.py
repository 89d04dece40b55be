"""repid: bare stream messages, acknowledged after the actor; no record, no retry, no reclaim unless asked."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

from harness import Adapter, main, probe
from repid import RedisServer, Repid, Router


class RepidAdapter(Adapter):
    bulk = False

    def make(self) -> Repid:
        app = Repid(title="bench", version="1.0.0")
        server = RedisServer(self.url, batch_size=100)
        app.servers.register_server("default", server, is_default=True)
        router = Router()

        @router.actor
        async def work(id: int) -> None:
            await probe.run()

        app.include_router(router)
        return app

    async def open(self) -> None:
        self.stack = AsyncExitStack()
        self.app = self.make()
        await self.stack.enter_async_context(self.app.servers.default.connection())

    async def add(self, data: dict[str, Any]) -> None:
        await self.app.send_message_json(channel="default", payload=data, headers={"topic": "work"})

    async def work(self) -> None:
        app = self.make()
        async with app.servers.default.connection():
            # At a limit of one its subscriber pauses and never resumes.
            await app.run_worker(tasks_limit=max(2, self.concurrency), register_signals=[])


main(RepidAdapter)
