"""An operation whose process is killed in the middle: of several others one goes on, and each job is reached once."""

from __future__ import annotations

import pytest

from asyncjobs import Runtime
from tests.helpers import Process, eventually

NUMBER = 4000
PROGRAM = """
import asyncio, sys
from asyncjobs import Runtime
from asyncjobs.operate import operations

url, prefix, grouped, verb = sys.argv[1:]
operations.LEASE = 0.5
runtime = Runtime(url, prefix=prefix, sweep_interval=0.2, consume=not verb)
runtime.job("send", limiter=None, group=bool(grouped))(lambda data: None)

async def main():
    async with runtime:
        print("it is up")
        if verb:
            await getattr(runtime.queue.select("send", state="failed"), verb)()
        await asyncio.sleep(600)

asyncio.run(main())
"""


async def failed_jobs(runtime, redis, grouped: bool) -> None:
    """As if they had failed at many instants; the queue is paused, so that those that wait can be counted."""
    pipeline = redis.pipeline(transaction=False)
    for n in range(NUMBER):
        group, at = (f"g{n % 20}" if grouped else None), 1_700_000_000_000 + n // 10
        keys = runtime.queue._broker.queue_keys("send", group)
        pipeline.hset(keys.job(str(n)), mapping={"d": "1", "x": "f", "a": "1", "F": at, "t": "1"})
        pipeline.zadd(keys.failed, {str(n): at})
        if group is not None:
            name = runtime.queue._broker.queue_keys("send", None)
            pipeline.zadd(name.failed, {f"{len(group)}:{group}{n}": at})
            pipeline.zadd(f"{name.tag}:groups", {group: at})
    await pipeline.execute()
    await runtime.queue.job("send").pause()


@pytest.mark.slow
@pytest.mark.parametrize("grouped", [False, True], ids=["plain", "grouped"])
@pytest.mark.parametrize("verb", ["retry", "remove", "rerun"])
async def test_each_job_is_reached_once_although_the_driver_is_killed(tcp_server, prefix, tmp_path, verb, grouped):
    (tmp_path / "program.py").write_text(PROGRAM)
    runtime = Runtime(tcp_server.url, prefix=prefix, consume=False)
    runtime.job("send", limiter=None, group=grouped)(lambda data: None)
    args = (str(tmp_path / "program.py"), tcp_server.url, prefix, "1" if grouped else "")
    processes: list[Process] = []
    try:
        async with runtime, tcp_server.client() as redis:
            await failed_jobs(runtime, redis, grouped)
            processes.append(Process(tmp_path, *args, verb, module=False))

            async def half_way():
                found = await runtime.queue.operations.all()
                return found[0] if found and found[0].done else None

            operation = await eventually(half_way)
            processes[0].kill()
            assert (await runtime.queue.operations.read(operation.id)).state == "running"
            processes += [Process(tmp_path, *args, "", module=False) for _ in range(2)]

            async def over():
                return (await runtime.queue.operations.read(operation.id)).state != "running"

            await eventually(over, 60, str([one.output for one in processes]))
            operation = await runtime.queue.operations.read(operation.id)
            assert (operation.state, operation.done, operation.skipped) == ("done", NUMBER, {})
            counts = await runtime.queue.counts("send")
            there = {"retry": (NUMBER, 0), "remove": (0, 0), "rerun": (NUMBER, NUMBER)}[verb]
            assert (counts["waiting"], counts["failed"]) == there
            waiting = [one async for one in runtime.queue.select("send", state="waiting")]
            ids = [one.id if verb == "retry" else one.copied_from.id for one in waiting]
            assert len(ids) == len(set(ids)) == there[0]
            assert [one.what async for one in runtime.queue.audit()] == [verb, "pause"]
    finally:
        for one in processes:
            one.kill()
