"""asyncjobs in an app: the runtime that it embeds, and what it is asked to do there."""

from __future__ import annotations

import asyncio
import inspect
from contextlib import AsyncExitStack
from typing import Any

from asyncjobs import Limiter, Runtime

NAME, KEPT = "work", "kept"
PIECE = 20_000
PACED = 0.02  # seconds of a window, where the jobs are not to run as fast as they can


class Ours:
    """One runtime. Options: jobs, groups, concurrency, payload, sync, budget (seconds, None, or left out), and others.

    pace: the jobs a second that a limiter lets it run.
    """

    def __init__(self, url: str, options: dict[str, Any], probe: Any) -> None:
        self.url, self.options, self.probe = url, options, probe
        self.ending = False  # this process makes what is found later, and ends
        self.stack = AsyncExitStack()

    def runtime(self, consume: bool) -> Runtime:
        more: dict[str, Any] = {}
        job: dict[str, Any] = {"limiter": None, "group": bool(self.options.get("groups"))}
        if "budget" in self.options and "loop_budget" in inspect.signature(Runtime).parameters:
            more["loop_budget"] = self.options["budget"]
        if self.options.get("freeze"):
            more["gc_freeze"] = True
        probe = self.probe
        if not job["group"]:
            job["concurrency"] = self.options.get("concurrency", 100)
        if self.options.get("pace"):
            job["limiter"] = Limiter(max(1, round(self.options["pace"] * PACED)), PACED)
        if "lease" in self.options:
            job["lease"] = self.options["lease"]

        if self.options.get("finish") and not self.ending:
            job["remove_on_complete"] = {"count": 1, "age": None}
        elif self.options.get("finish"):
            job["remove_on_complete"] = False
        if self.options.get("die") and self.ending:
            more["concurrency"] = 2 * self.options["jobs"]

        async def work(data: object) -> None:
            if self.options.get("die") and self.ending:
                probe.ended += 1
                await asyncio.Event().wait()
            await probe.run()

        def in_thread(data: object) -> None:
            probe.run_in_thread()

        runtime = Runtime(self.url, prefix="bench", consume=consume, schedule=False, **more)
        runtime.job(NAME, **job)(in_thread if self.options.get("sync") else work)
        runtime.job(KEPT, limiter=None)(work)
        return runtime

    async def open(self) -> None:
        self.queue = (await self.stack.enter_async_context(self.runtime(consume=False))).queue

    async def fill(self) -> None:
        """The backlog."""
        if self.options.get("bulk"):
            return
        jobs, groups = self.options["jobs"], self.options.get("groups", 0)
        payload = "x" * self.options.get("payload", 0)
        piece = PIECE if not payload else max(1, 8_000_000 // len(payload))
        for start in range(0, jobs, piece):
            some = range(start, min(jobs, start + piece))
            if groups:
                await self.queue.add_bulk([(NAME, {"id": i}, {"group_id": str(i % groups)}) for i in some])
            else:
                await self.queue.add_bulk([(NAME, {"id": i, "payload": payload}) for i in some])
        if self.options.get("finish") or self.options.get("die"):
            self.ending = True
            await self.stack.enter_async_context(self.runtime(consume=True))
            while self.probe.ended < jobs:  # noqa: ASYNC110 - a count has no event
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.3)

    async def bulk(self) -> None:
        """What a request may ask for: many jobs, which nobody runs here."""
        await self.embedded.queue.add_bulk([(KEPT, {"id": i}) for i in range(self.options["bulk"])])

    async def trim(self) -> None:
        """What a timer does now and then."""
        assert self.embedded._assembly is not None
        await self.embedded._assembly.trimmer.trim_everything()

    async def work(self) -> None:
        self.embedded = await self.stack.enter_async_context(self.runtime(consume=True))
        await asyncio.Event().wait()
