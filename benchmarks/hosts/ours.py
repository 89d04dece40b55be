"""asyncjobs in an app: the runtime that it embeds, and what it is asked to do there."""

from __future__ import annotations

import asyncio
import inspect
from contextlib import AsyncExitStack
from typing import Any

from asyncjobs import Runtime

NAME = "work"
PIECE = 20_000


class Ours:
    """One runtime. Options: jobs, groups, concurrency, payload, sync, budget (seconds, None, or left out)."""

    def __init__(self, url: str, options: dict[str, Any], probe: Any) -> None:
        self.url, self.options, self.probe = url, options, probe
        self.stack = AsyncExitStack()

    def runtime(self, consume: bool) -> Runtime:
        more: dict[str, Any] = {}
        if "budget" in self.options and "loop_budget" in inspect.signature(Runtime).parameters:
            more["loop_budget"] = self.options["budget"]
        runtime = Runtime(self.url, prefix="bench", consume=consume, schedule=False, **more)
        probe = self.probe
        job: dict[str, Any] = {"limiter": None, "group": bool(self.options.get("groups"))}
        if not job["group"]:
            job["concurrency"] = self.options.get("concurrency", 100)
        if "lease" in self.options:
            job["lease"] = self.options["lease"]

        async def work(data: object) -> None:
            await probe.run()

        def in_thread(data: object) -> None:
            probe.run_in_thread()

        runtime.job(NAME, **job)(in_thread if self.options.get("sync") else work)
        runtime.job("other", limiter=None)(work)
        return runtime

    async def open(self) -> None:
        self.queue = (await self.stack.enter_async_context(self.runtime(consume=False))).queue

    async def fill(self) -> None:
        """The backlog."""
        jobs, groups = self.options["jobs"], self.options.get("groups", 0)
        payload = "x" * self.options.get("payload", 0)
        piece = PIECE if not payload else max(1, 8_000_000 // len(payload))
        for start in range(0, jobs, piece):
            some = range(start, min(jobs, start + piece))
            if groups:
                await self.queue.add_bulk([(NAME, {"id": i}, {"group_id": str(i % groups)}) for i in some])
            else:
                await self.queue.add_bulk([(NAME, {"id": i, "payload": payload}) for i in some])

    async def work(self) -> None:
        self.embedded = await self.stack.enter_async_context(self.runtime(consume=True))
        await asyncio.Event().wait()
