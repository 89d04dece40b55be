"""Acts whose replies are lost: each is done once, told as done, and is in the audit trail once."""

from __future__ import annotations

import asyncio

import pytest

from asyncjobs import JobFailedError, Runtime
from asyncjobs.broker import scripts
from tests.helpers import eventually

SCRIPTS = {"retry": scripts.RETRY, "promote": scripts.PROMOTE, "remove": scripts.REMOVE, "cancel": scripts.CANCEL}


@pytest.fixture(params=[False, True], ids=["plain", "grouped"])
async def runtime(request, tcp_server, proxy, prefix):
    async with (
        tcp_server.client() as redis
    ):  # else it is the answer that the server has not got the script that is lost
        for script in (*SCRIPTS.values(), scripts.AUDIT, scripts.PLAN, scripts.DRIVE):
            await redis.script_load(script.text)
    runtime = Runtime(proxy.url, prefix=prefix, connect_timeout=10, consume=False)
    worker = Runtime(proxy.url, prefix=prefix, connect_timeout=10)
    ran: list[str] = []

    async def send(data, job):
        ran.append(job.id)
        raise ValueError("no")

    for one in (runtime, worker):
        one.job("send", limiter=None, attempts=1, group=request.param)(send)
    async with runtime, worker:
        runtime.ran = ran
        yield runtime


async def jobs_for(runtime, verb: str, number: int) -> list:
    group = {"group_id": "a"} if runtime.queue.spec("send").grouped else {}
    delay = None if verb == "retry" else 3600
    jobs = await runtime.queue.add_bulk([("send", n, {**group, "delay": delay}) for n in range(number)])
    if verb == "retry":
        for job in jobs:
            with pytest.raises(JobFailedError):
                await job.wait(20)
    return jobs


async def once(runtime, proxy, verb: str, jobs: list, act) -> object:
    """What `act` returns although the reply of its script was lost; then that it was done once."""
    proxy.drop("drop-reply", 1, SCRIPTS[verb].sha.encode())
    answer = await act
    assert proxy.happened == 1
    if verb in ("retry", "promote"):
        tries = 2 if verb == "retry" else 1
        await eventually(lambda: len(runtime.ran) == tries * len(jobs))
        await eventually(lambda: _failed(runtime, len(jobs)))
        assert sorted(runtime.ran) == sorted([job.id for job in jobs] * tries)
        assert [one.what for one in (await jobs[0].refresh()).history if one.what != "failed"] == [verb]
    else:
        counts = await runtime.queue.counts("send")
        assert sum(counts.values()) == counts["cancelled"] == (len(jobs) if verb == "cancel" else 0)
    assert [one.what async for one in runtime.queue.audit()] == [verb]
    return answer


async def _failed(runtime, number: int) -> bool:
    return (await runtime.queue.counts("send"))["failed"] == number


@pytest.mark.parametrize("verb", sorted(SCRIPTS))
async def test_on_one_job(runtime, proxy, verb):
    jobs = await jobs_for(runtime, verb, 1)
    answer = await once(runtime, proxy, verb, jobs, getattr(jobs[0], verb)())
    assert answer == ("cancelled" if verb == "cancel" else None)


@pytest.mark.parametrize("verb", sorted(SCRIPTS))
async def test_on_many(runtime, proxy, verb):
    jobs = await jobs_for(runtime, verb, 20)
    state = "failed" if verb == "retry" else "delayed"
    done = await once(runtime, proxy, verb, jobs, getattr(runtime.queue.select("send", state=state), verb)())
    assert (done.done, done.skipped) == (20, {})


@pytest.mark.parametrize("verb", sorted(SCRIPTS))
async def test_the_audit_trail_has_it_once(runtime, proxy, verb):
    jobs = await jobs_for(runtime, verb, 1)
    proxy.drop("drop-reply", 1, scripts.AUDIT.sha.encode())
    await getattr(jobs[0], verb)()
    assert proxy.happened == 1
    assert [one.what async for one in runtime.queue.audit()] == [verb]


@pytest.mark.parametrize("script", [scripts.PLAN, scripts.DRIVE, scripts.REMOVE], ids=lambda one: one.name)
async def test_an_operation(runtime, proxy, script):
    await jobs_for(runtime, "remove", 1200)
    removing = asyncio.ensure_future(runtime.queue.select("send", state="delayed").remove())
    proxy.drop("drop-reply", 2, script.sha.encode())
    done = await removing
    assert (done.done, done.skipped) == (1200, {})
    assert [(one.what, one.target["number"]) async for one in runtime.queue.audit()] == [("remove", 1200)]
    assert len(await runtime.queue.operations.all()) == 1
