"""The ceiling: what the server and redis-py do when nothing is kept, fenced, retried or limited.

``RAW`` in the environment says which: ``pipeline`` reads and acknowledges batches of a stream; ``script`` settles a
batch and takes the next in one script, makes a task for each job and decodes its JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import msgspec
from harness import Adapter, main, probe
from redis.asyncio import Redis

SETTLE_AND_TAKE = """
if #ARGV > 1 then
  local done = {}
  for i = 2, #ARGV do done[i - 1] = ARGV[i] end
  redis.call('XACK', KEYS[1], 'w', unpack(done))
  redis.call('XDEL', KEYS[1], unpack(done))
end
return redis.call('XREADGROUP', 'GROUP', 'w', 'c', 'COUNT', ARGV[1], 'STREAMS', KEYS[1], '>')
"""
BATCH = 100


class Raw(Adapter):
    async def open(self) -> None:
        self.redis: Any = Redis.from_url(self.url)
        await self.redis.xgroup_create("raw", "w", "0", mkstream=True)

    async def add(self, data: dict[str, Any]) -> None:
        await self.redis.xadd("raw", {"d": json.dumps(data)})

    async def add_bulk(self, jobs: list[dict[str, Any]]) -> None:
        for start in range(0, len(jobs), 500):
            pipe = self.redis.pipeline(transaction=False)
            for data in jobs[start : start + 500]:
                pipe.execute_command("XADD", "raw", "*", "d", msgspec.json.encode(data))
            await pipe.execute()

    async def work(self) -> None:
        await (self.pipelines() if os.environ.get("RAW") == "pipeline" else self.scripts())

    async def pipelines(self) -> None:
        acks: list[bytes] = []
        while True:
            pipe = self.redis.pipeline(transaction=False)
            if acks:
                pipe.execute_command("XACK", "raw", "w", *acks)
            pipe.execute_command("XREADGROUP", "GROUP", "w", "c", "COUNT", BATCH, "STREAMS", "raw", ">")
            read = (await pipe.execute())[-1]
            entries = _entries(read)
            acks = [entry for entry, _ in entries]
            for _ in entries:
                probe.start()
                probe.end()
            if not entries:
                await asyncio.sleep(0.001)

    async def scripts(self) -> None:
        run = self.redis.register_script(SETTLE_AND_TAKE)
        loop = asyncio.get_running_loop()
        decode = msgspec.json.Decoder().decode
        done: list[bytes] = []

        async def job(raw: bytes) -> None:
            decode(raw)
            await probe.run()

        while True:
            entries = _entries(await run(keys=["raw"], args=[BATCH, *done]))
            done = [entry for entry, _ in entries]
            tasks = [loop.create_task(job(fields[1])) for _, fields in entries]
            if tasks:
                await asyncio.wait(tasks)
            else:
                await asyncio.sleep(0.001)


def _entries(read: Any) -> list[Any]:
    if not read:
        return []
    return next(iter(read.values()))[0] if isinstance(read, dict) else read[0][1]


main(Raw)
