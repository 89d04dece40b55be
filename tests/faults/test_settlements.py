"""A settlement that the store refuses holds up neither its neighbours nor its queue, and no slot."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from asyncjobs.errors import BrokerError
from asyncjobs.work.executor import Completed
from asyncjobs.work.refusals import Refusals
from asyncjobs.work.turn import Finished
from tests.helpers import Server, eventually
from tests.unit.test_decide import job as active_job

MEGABYTE = 1024 * 1024
grouped = pytest.mark.parametrize("group", [None, "g 1"])


@pytest.fixture
async def narrow(tcp_server: Server) -> Server:
    """A server that refuses any value over a megabyte, and hangs up."""
    async with tcp_server.client() as client:
        await client.config_set("proto-max-bulk-len", MEGABYTE)
    return tcp_server


async def in_state(runtime: Any, job: Any, *states: str) -> Any:
    async def there() -> Any:
        found = await runtime.queue.get_job(job.name, job.id, group_id=job.group_id)
        return found if found is not None and found.state in states else None

    return await eventually(there, 20, f"{job.id} in {states}")


@grouped
@pytest.mark.parametrize("bad", [{0}, {19}, {3, 4, 11}, set(range(20))])
async def test_a_result_that_the_store_refuses_fails_its_job_and_no_other(make_runtime, narrow, group, bad, caplog):
    caplog.set_level(logging.CRITICAL)
    runtime = make_runtime(narrow.url, max_result=8 * MEGABYTE)
    ran: list[int] = []

    @runtime.job("job", limiter=None, concurrency=20, group=bool(group))
    async def handle(data):
        ran.append(data)
        await eventually(lambda: len(ran) >= 20)  # all are settled together
        return "x" * 2 * MEGABYTE if data in bad else data

    runtime.job("other", limiter=None)(lambda data: data)
    async with runtime:
        jobs = await runtime.queue.add_bulk([("job", n, {"group_id": group} if group else {}) for n in range(20)])
        for n, job in enumerate(jobs):
            found = await in_state(runtime, job, "completed", "failed")
            if n in bad:
                assert found.state == "failed"
                assert "was not kept" in found.error[0].text
            else:
                assert (found.state, found.result) == ("completed", n)
        assert await (await runtime.queue.add("other", 1)).wait(10) == 1
        after = await runtime.queue.add("job", 99, group_id=group)
        assert await after.wait(10) == 99
        await eventually(lambda: runtime._assembly.queues.unsettled() == 0)
    assert sorted(ran) == [*range(20), 99], "each once"


@grouped
async def test_keys_of_a_foreign_type_hold_up_what_needs_them_alone(make_runtime, tcp_server, group, caplog):
    """Completed jobs cannot be listed: they wait apart, and are settled as soon as they can be; failures are."""
    caplog.set_level(logging.CRITICAL)
    runtime = make_runtime(tcp_server.url)

    @runtime.job("job", limiter=None, concurrency=4, attempts=1, group=bool(group))
    async def handle(data):
        if data % 2:
            raise ValueError
        return data

    async with runtime, tcp_server.client() as client:
        keys = runtime._assembly.broker.queue_keys("job", group)
        await client.set(keys.completed, "somebody else's")
        jobs = await runtime.queue.add_bulk([("job", n, {"group_id": group} if group else {}) for n in range(4)])
        for job in jobs[1::2]:
            await in_state(runtime, job, "failed")
        await client.delete(keys.completed)
        for job in jobs[::2]:
            assert (await in_state(runtime, job, "completed")).result == job.data
        await eventually(lambda: runtime._assembly.queues.unsettled() == 0)
        if group is None:
            assert runtime._assembly.queues.consumers["job"].refusals is None


@pytest.mark.parametrize("size", [1, 2, 3, 17, 500])
@pytest.mark.parametrize("bad", [0, 1, -1])
def test_what_cannot_be_settled_is_found_in_few_turns(size, bad):
    """Each turn settles something, or leaves less that may be to blame."""
    refusals, outbox = Refusals(), []
    for n in range(size):
        one = active_job()
        one.stored_id = one.id = str(n)
        outbox.append(Finished(one, _completed(one)))
    culprit = str(range(size)[bad % size])
    turns = 0
    while outbox:
        sending = refusals.next(outbox)
        turns += 1
        if any(one.job.id == culprit for one in sending):
            outbox[:0] = refusals.refused(sending, False, BrokerError("ERR no"))
        else:
            refusals.answered()
    assert [one.job.id for one in refusals.apart] == [culprit]
    assert turns <= 40
    assert not refusals.over(outbox)
    assert refusals.next(outbox) == [], "not yet"
    refusals.again_at = 0.0
    assert [one.job.id for one in refusals.next(outbox)] == [culprit]
    assert refusals.over(outbox)


def _completed(one: Any) -> Any:
    from asyncjobs.work.decide import decide

    return decide(one, Completed(b"1"))


async def test_a_result_that_the_store_refuses_holds_up_no_other_queue(make_runtime, narrow, caplog):
    """Many queues settle in one pipeline; the server hangs up in the midst of it."""
    caplog.set_level(logging.CRITICAL)
    runtime = make_runtime(narrow.url, max_result=8 * MEGABYTE)
    ran: list[int] = []

    @runtime.job("job", limiter=None, group=True)
    async def handle(data):
        ran.append(data)
        await eventually(lambda: len(ran) >= 20)
        return "x" * 2 * MEGABYTE if data in (3, 11) else data

    async with runtime:
        jobs = await runtime.queue.add_bulk([("job", n, {"group_id": f"g{n}"}) for n in range(20)])
        for n, job in enumerate(jobs):
            found = await in_state(runtime, job, "completed", "failed")
            assert found.state == ("failed" if n in (3, 11) else "completed")
        await eventually(lambda: runtime._assembly.queues.unsettled() == 0)
    assert sorted(ran) == list(range(20)), "each once"
