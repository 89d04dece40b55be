"""Cancel: a job that waits, or runs in whatever process, is over, once, and whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import signal
import threading
import time

import pytest

from asyncjobs import (
    Backoff,
    ConfigError,
    Discard,
    JobCancelledError,
    JobFailedError,
    Limiter,
    RateLimited,
    RetryLater,
)
from asyncjobs.broker import WorkCall
from asyncjobs.broker.keys import Keys, cancels_key, index_keys
from asyncjobs.broker.reading import Finish
from asyncjobs.work.prefetch import Prefetched
from tests.helpers import Process, Watcher, eventually, ledger, write

SHAPES = pytest.mark.parametrize("group", [None, "acme"])


async def state(runtime, job) -> str | None:
    found = await runtime.queue.get_job(job.name, job.id, job.group_id)
    return None if found is None else found.state


async def cancelled(runtime, job):
    return await eventually(lambda: _is(runtime, job, "cancelled"), what=f"{job} is cancelled")


async def _is(runtime, job, wanted: str):
    found = await runtime.queue.get_job(job.name, job.id, job.group_id)
    return found if found is not None and found.state == wanted else None


class Pair:
    """A process that works and one that only asks, with a plain and a grouped job whose handler does as it is told."""

    def __init__(self, make_runtime, group, **options) -> None:
        self.worker, self.asker = make_runtime(), make_runtime(consume=False)
        self.seen, self.asked = Watcher(self.worker), Watcher(self.asker)
        self.group = group
        self.began, self.go = asyncio.Event(), asyncio.Event()
        self.notes: list[object] = []
        options = {"limiter": None, "lease": 2, "backoff": Backoff("fixed", 60), "concurrency": 1} | options

        async def handle(data, job):
            self.notes.append(data)
            self.began.set()
            if callable(self.act):
                return await self.act(data, job)
            return data

        self.act = None
        for runtime in (self.worker, self.asker):
            runtime.job("job", group=group is not None, **options)(handle)

    async def __aenter__(self):
        await self.worker.start()
        await self.asker.start()
        return self

    async def __aexit__(self, *_):
        pass

    async def add(self, data=None, **options):
        job = await self.worker.queue.add("job", data, group_id=self.group, **options)
        return await self.asker.queue.get_job("job", job.id, self.group)


@pytest.fixture
def pair(make_runtime):
    return lambda group=None, **options: Pair(make_runtime, group, **options)


async def hang(data, job):
    await asyncio.Event().wait()


# Jobs that wait ---------------------------------------------------------------------------------------------------
@SHAPES
@pytest.mark.parametrize("kind", ["waiting", "delayed", "retrying", "again at once"])
async def test_a_job_that_waits_is_cancelled_at_once_from_any_process(pair, all_in_place, group, kind):
    async with pair(group, attempts=3, backoff=None if kind == "again at once" else 60) as two:
        first, added = None, asyncio.Event()
        if kind in ("waiting", "again at once"):

            async def hold(data, job):
                if data == "job" and kind == "again at once" and not job.attempts_made:
                    await added.wait()
                    raise ValueError("once more, behind the other")
                await two.go.wait()

            two.act = hold
            if kind == "waiting":
                first = await two.add("first")
                await two.began.wait()
        else:

            async def fail(data, job):
                raise ValueError("later")

            two.act = fail
        job = await two.add("job", delay=60 if kind == "delayed" else None)
        if kind == "again at once":
            first = await two.add("first")
            added.set()
            await two.seen("job.retrying", job_id=job.id)
            await two.seen("job.active", job_id=first.id)
        elif kind == "retrying":
            await two.seen("job.retrying", job_id=job.id)
        # One that was fetched beyond the slot goes back in a moment.
        await eventually(lambda: _is(two.asker, job, "delayed" if kind in ("delayed", "retrying") else "waiting"))
        waiting = asyncio.ensure_future(two.worker.queue._running("add").finished(job._keys, job.id, 2))
        await eventually(lambda: _watched(two, job))
        assert await job.cancel("not any more") == "cancelled"
        after = await two.asker.queue.get_job("job", job.id, group)
        assert (after.state, after.cancelled_by.reason, after.cancelled_by.source) == (
            "cancelled", "not any more", "python",
        )  # fmt: skip
        assert after.attempts_made == (1 if kind in ("retrying", "again at once") else 0)
        assert after.finished_at is not None
        assert len(after.error) == after.attempts_made, "what it failed with stays"
        assert (await waiting).op == "k"
        with pytest.raises(JobCancelledError, match=r"was cancelled: not any more") as caught:
            await job.wait(5)
        assert isinstance(caught.value, JobFailedError)
        assert (caught.value.name, caught.value.job_id, caught.value.reason) == ("job", job.id, "not any more")
        (event,) = two.asked.all("job.cancelled")
        assert (event.job_id, event.group_id, event.error) == (job.id, group, "not any more")
        assert await job.cancel("once more") == "cancelled"
        assert (await two.asker.queue.get_job("job", job.id, group)).cancelled_by.reason == "not any more"
        assert len(two.asked.all("job.cancelled")) == 1
        for where in (group, None):
            counts = await two.asker.queue.counts("job", where)
            assert counts == {"waiting": 0, "active": 1 if first else 0, "delayed": 0, "completed": 0, "failed": 0,
                              "cancelled": 1}  # fmt: skip
        two.go.set()
        await two.worker.wait_idle(10)
        assert two.notes.count("job") == after.attempts_made
        assert await all_in_place(two.worker) == []


async def _watched(two, job) -> bool:
    _, record = await two.asker.queue._running("add").read(job._keys, job.id)
    return "w" in record


async def test_what_is_not_there_or_has_finished_is_told_and_left(pair):
    async with pair() as two:
        job = await two.add(1)
        assert await job.wait(10) == 1
        assert await job.cancel() == "finished"
        assert await state(two.asker, job) == "completed"
        assert (await two.asker.queue.get_job("job", job.id)).cancelled_by is None
        gone = await two.add(2, remove_on_complete=True)
        if gone is not None:
            await two.worker.wait_idle(10)
            assert await gone.cancel() == "gone"
        assert (await two.asker.queue.counts("job"))["cancelled"] == 0
        assert two.asked.all("job.cancelled") == []


@pytest.mark.parametrize("reason", [7, None, b"bytes", "\ud800"])
async def test_a_reason_that_is_none_is_refused_before_anything_is_sent(pair, reason):
    async with pair() as two:
        job = await two.add(1, delay=60)
        with pytest.raises(ConfigError, match="reason"):
            await job.cancel(reason)
        assert await state(two.asker, job) == "delayed"


async def test_counts_name_cancelled_jobs_only_where_there_are_some(pair):
    async with pair() as two:
        counts = await two.asker.queue.counts("job")
        assert counts == dict.fromkeys(("waiting", "active", "delayed", "completed", "failed"), 0)
        assert counts["cancelled"] == 0
        with pytest.raises(KeyError):
            counts["canceled"]


@SHAPES
@pytest.mark.parametrize("entry", [None, "0-1", "not an entry", "+", "other"])
async def test_a_job_whose_record_does_not_name_its_entry_is_found(pair, redis, all_in_place, group, entry):
    """An earlier release has added it, or put it back; or somebody has made something else of the field."""
    async with pair(group) as two:
        two.act = lambda data, job: two.go.wait()
        await two.add("first")
        await two.began.wait()
        jobs = [await two.add(n) for n in range(3)]
        key = jobs[1]._keys.job(jobs[1].id)
        if entry is None:
            await redis.hdel(key, "i")
        else:
            other = await redis.hget(jobs[2]._keys.job(jobs[2].id), "i")
            await redis.hset(key, "i", other if entry == "other" else entry)
        if entry == "0-1":
            await redis.hset(key, "t", str(int(time.time() * 1000) + 1_000_000))  # the clock was set back since
        assert await jobs[1].cancel() == "cancelled"
        assert await state(two.asker, jobs[1]) == "cancelled"
        two.go.set()
        await two.worker.wait_idle(10)
        assert two.notes == ["first", 0, 2]
        assert await all_in_place(two.worker) == []


async def test_a_job_that_stands_nowhere_is_cancelled_all_the_same(pair, redis):
    async with pair() as two:
        two.act = lambda data, job: two.go.wait()
        await two.add("first")
        await two.began.wait()
        job = await two.add("job")
        await redis.xdel(job._keys.stream, await redis.hget(job._keys.job(job.id), "i"))
        assert await job.cancel() == "cancelled"
        assert await state(two.asker, job) == "cancelled"
        two.go.set()


async def test_an_entry_of_a_cancelled_job_runs_nothing(pair, redis):
    async with pair() as two:
        two.act = lambda data, job: two.go.wait()
        await two.add("first")
        await two.began.wait()
        job = await two.add("job")
        await job.cancel()
        await redis.xadd(job._keys.stream, {"j": job.id})
        last = await two.add("last")
        two.go.set()
        await last.wait(10)
        await two.worker.wait_idle(10)
        assert two.notes == ["first", "last"]
        assert await state(two.asker, job) == "cancelled"


@SHAPES
async def test_a_paused_queue_and_a_foreign_record(pair, redis, group):
    async with pair(group) as two:
        steering = two.asker.queue.group("job", group) if group else two.asker.queue.job("job")
        await steering.pause()
        job, other = await two.add(1), await two.add(2)
        await redis.delete(other._keys.job(other.id))
        await redis.set(other._keys.job(other.id), "not a hash")
        assert await other.cancel() == "gone"
        assert await job.cancel() == "cancelled"
        assert await state(two.asker, job) == "cancelled"
        assert (await two.asker.queue.counts("job"))["cancelled"] == 1


async def test_an_id_of_anything_is_cancelled(pair):
    group = 'a b:{}%\n"ü'
    async with pair(group) as two:
        for job_id in ('{"} \n:', "ü" * 200, "-", "0-1"):
            job = await two.add(1, delay=60, job_id=job_id)
            assert await job.cancel('because "of" it\n') == "cancelled"
            assert (await two.asker.queue.get_job("job", job_id, group)).cancelled_by.reason == 'because "of" it\n'
            with pytest.raises(JobCancelledError, match=r"because \"of\" it\\n"):
                await job.wait(5)


# Jobs that run ----------------------------------------------------------------------------------------------------
@SHAPES
async def test_a_job_that_runs_elsewhere_is_cancelled_and_may_clean_up(pair, all_in_place, group):
    async with pair(group) as two:
        cleaned = asyncio.Event()

        async def handle(data, job):
            try:
                await asyncio.Event().wait()
            finally:
                two.notes.append(job.cancelled)
                await asyncio.sleep(0.05)
                cleaned.set()

        two.act = handle
        job = await two.add("job")
        await two.began.wait()
        waiting = asyncio.ensure_future(job.wait(10))
        assert await job.cancel("enough") == "requested"
        with pytest.raises(JobCancelledError, match="enough"):
            await waiting
        assert cleaned.is_set()
        assert two.notes == ["job", True]
        after = await cancelled(two.asker, job)
        assert (after.attempts_made, after.cancelled_by.reason) == (1, "enough")
        assert after.finished_at >= after.started_at
        (event,) = await two.seen("job.cancelled")
        assert (event.job_id, event.group_id, event.error, event.attempts_made) == (job.id, group, "enough", 1)
        assert not two.seen.all("job.failed") + two.seen.all("job.retrying") + two.seen.all("job.completed")
        assert await job.cancel() == "cancelled"
        two.act = None
        assert await (await two.add("next")).wait(10) == "next", "its slot is free"
        assert await all_in_place(two.worker) == []


async def test_one_that_swallows_it_is_settled_without_its_handler(pair):
    async with pair(concurrency=2) as two:

        async def stubborn(data, job):
            while not two.go.is_set():
                try:
                    await two.go.wait()
                except asyncio.CancelledError:
                    two.notes.append("swallowed")
            return "done after all"

        two.act = stubborn
        job = await two.add("job")
        await two.began.wait()
        began = time.monotonic()
        assert await job.cancel() == "requested"
        await cancelled(two.asker, job)
        assert time.monotonic() - began >= 0.9
        assert two.notes == ["job", "swallowed"]
        (consumer,) = two.worker._assembly.queues.all()
        assert consumer.attempts.zombies == 1, "it keeps its slot"
        two.go.set()
        await eventually(lambda: consumer.attempts.zombies == 0)
        assert await state(two.asker, job) == "cancelled"


@pytest.mark.parametrize("looks", [True, False])
async def test_a_thread_sees_it_and_is_settled_without(make_runtime, looks):
    runtime = make_runtime()
    began, go, seen = threading.Event(), threading.Event(), []

    @runtime.job("job", limiter=None, concurrency=2)
    def job(data, job, queue):
        began.set()
        while not go.wait(0.01):
            if looks and job.cancelled:
                seen.append("looked")
                try:
                    queue.add("job", 1)
                except JobCancelledError as error:
                    seen.append(error)
                return "half done"

    async with runtime:
        handle = await runtime.queue.add("job")
        await eventually(began.is_set)
        began_at = time.monotonic()
        assert await handle.cancel("why") == "requested"
        await cancelled(runtime, handle)
        assert (time.monotonic() - began_at < 0.9) == looks
        if looks:
            assert [str(one) for one in seen] == ["looked", f"job job {handle.id} was cancelled: why"]
        (consumer,) = runtime._assembly.queues.all()
        assert consumer.attempts.zombies == (0 if looks else 1)
        go.set()
        await eventually(lambda: consumer.attempts.zombies == 0)
        assert await state(runtime, handle) == "cancelled"


async def test_a_thread_of_a_group_keeps_its_group_to_itself_until_it_ends(make_runtime):
    """The store counts the slots of a group, and would give that of a job that is settled to the next one."""
    runtime = make_runtime()
    began, go, ran = threading.Event(), threading.Event(), []

    @runtime.job("job", group=True, limiter=None)
    def job(data, job):
        ran.append(data)
        began.set()
        go.wait(20)

    async with runtime:
        first = await runtime.queue.add("job", 1, group_id="a")
        await runtime.queue.add("job", 2, group_id="a")
        await eventually(began.is_set)
        assert await first.cancel() == "requested"
        (consumer,) = runtime._assembly.queues.all()
        await eventually(lambda: next(iter(consumer.attempts.running.values())).cancelled)
        assert ran == [1]
        assert await state(runtime, first) == "active"
        go.set()
        await cancelled(runtime, first)
        await runtime.wait_idle(10)
        assert ran == [1, 2]


async def _own_cancel():
    raise asyncio.CancelledError


OUTCOMES = {  # what a handler that was cancelled makes of it
    "lets go": None,
    "returns": lambda job: "value",
    "raises": lambda job: _raise(ValueError("in cleaning up")),
    "RetryLater": lambda job: _raise(RetryLater(0)),
    "RateLimited": lambda job: _raise(RateLimited(0.01)),
    "Discard": lambda job: _raise(Discard("no")),
    "discard and raise": lambda job: (job.discard(), _raise(ValueError())),
    "SystemExit": lambda job: _raise(SystemExit(1)),
}


def _raise(error):
    raise error


@SHAPES
@pytest.mark.parametrize("what", OUTCOMES)
async def test_whatever_a_cancelled_handler_makes_of_it_there_is_one_outcome(pair, all_in_place, group, what):
    async with pair(group, attempts=3) as two:

        async def handle(data, job):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if OUTCOMES[what] is None:
                    raise
                return OUTCOMES[what](job)

        two.act = handle
        job = await two.add("job")
        await two.began.wait()
        assert await job.cancel() == "requested"
        after = await cancelled(two.asker, job)
        assert after.attempts_made == 1
        await two.seen("job.cancelled")
        ends = [one.type for one in two.seen.events if one.type in ("job.completed", "job.failed", "job.retrying")]
        assert ends == []
        await two.worker.wait_idle(10)
        assert two.notes == ["job"]
        assert await all_in_place(two.worker) == []


@SHAPES
@pytest.mark.parametrize("first", ["cancel", "outcome"])
@pytest.mark.parametrize("what", ["return", "raise", "raise at the last", "later", "rate", "timeout", "its own cancel"])
async def test_who_finishes_first_has_finished(pair, all_in_place, monkeypatch, group, first, what):
    """The process does not hear of the cancel, or hears of it when the handler has ended."""
    last = what == "raise at the last"
    async with pair(group, attempts=1 if last else 3, timeout=0.2 if what == "timeout" else None) as two:

        async def handle(data, job):
            if what != "timeout":
                await two.go.wait()
            match what:
                case "return":
                    return "value"
                case "raise" | "raise at the last":
                    raise ValueError("as planned")
                case "later":
                    raise RetryLater(60)
                case "rate":
                    raise RateLimited(60)
                case "its own cancel":
                    raise asyncio.CancelledError
                case "timeout":
                    await asyncio.Event().wait()

        two.act = handle
        broker = two.worker._assembly.broker
        del broker.subscriber._handlers[broker.channels.cancels]
        job = await two.add("job")
        await two.began.wait()
        ends = {"return": "completed", "raise at the last": "failed"}
        if first == "cancel":
            assert await job.cancel("enough") == "requested"
            two.go.set()
        else:
            two.go.set()
            told = "job.completed" if what == "return" else "job.failed" if last else "job.retrying"
            await two.seen(told)
            assert await job.cancel("enough") == ("finished" if what in ends else "cancelled")
        wanted = ends.get(what, "cancelled")
        after = await eventually(lambda: _is(two.asker, job, wanted))
        assert (after.cancelled_by is None) == (what in ends)
        assert after.attempts_made == (0 if first == "outcome" and what in ("later", "rate") else 1)
        events = [*two.seen.all("job.cancelled"), *two.asked.all("job.cancelled")]
        assert [one.job_id for one in events] == ([] if what in ends else [job.id])
        await two.asker.queue.group("job", group).release() if group else await two.asker.queue.job("job").release()
        await two.worker.wait_idle(10)
        assert two.notes == ["job"]
        assert await all_in_place(two.worker) == []


async def test_a_handlers_own_cancelled_error_is_no_cancel(pair):
    async with pair(attempts=1) as two:

        async def handle(data, job):
            raise asyncio.CancelledError

        two.act = handle
        job = await two.add("job")
        with pytest.raises(JobFailedError, match="CancelledError") as caught:
            await job.wait(10)
        assert not isinstance(caught.value, JobCancelledError)


@SHAPES
async def test_a_stop_and_a_cancel_at_once_leave_one_outcome(pair, make_runtime, group):
    async with pair(group) as two:
        release = asyncio.Event()

        async def handle(data, job):
            try:
                await asyncio.Event().wait()
            finally:
                await release.wait()

        two.act = handle
        job = await two.add("job")
        await two.began.wait()
        stopping = asyncio.ensure_future(two.worker.stop(grace=0))
        (consumer,) = two.worker._assembly.queues.all()
        await eventually(lambda: consumer.attempts.running[job.id].leaving == "stop")
        assert await job.cancel("enough") == "requested"
        release.set()
        await stopping
        assert await state(two.asker, job) == "cancelled"
        assert two.notes == ["job"]


@SHAPES
async def test_a_process_that_has_missed_the_message_hears_of_it_by_its_beat(pair, redis, prefix, group):
    async with pair(group) as two:
        two.act = hang
        broker = two.worker._assembly.broker
        del broker.subscriber._handlers[broker.channels.cancels]
        job = await two.add("job")
        await two.began.wait()
        began = time.monotonic()
        assert await job.cancel("unheard") == "requested"
        after = await cancelled(two.asker, job)
        assert after.cancelled_by.reason == "unheard"
        assert time.monotonic() - began < 2, "a lease; the beat comes four times in one"
        assert 0 < await redis.pttl(cancels_key(prefix)) <= 3_600_000
        assert await redis.zcard(cancels_key(prefix)) == 1


async def test_a_cancel_that_is_asked_for_again_is_told_again(pair, redis, prefix):
    async with pair(lease=600) as two:
        two.act = hang
        broker = two.worker._assembly.broker
        handlers = broker.subscriber._handlers.pop(broker.channels.cancels)
        job = await two.add("job")
        await two.began.wait()
        assert await job.cancel("first") == "requested"
        broker.subscriber._handlers[broker.channels.cancels] = handlers
        assert await job.cancel("second") == "requested"
        assert (await cancelled(two.asker, job)).cancelled_by.reason == "first"
        assert await redis.zcard(cancels_key(prefix)) == 1


@pytest.mark.parametrize("when", ["before the start", "while it runs"])
async def test_a_foreign_key_of_cancels_keeps_nobody_from_living(pair, redis, prefix, when):
    if when == "before the start":
        await redis.set(cancels_key(prefix), "not a zset")
    async with pair(lease=1) as two:
        await redis.set(cancels_key(prefix), "not a zset")
        beat = two.worker._assembly.heartbeat
        last = beat._last
        await eventually(lambda: beat._last > last)
        two.act = hang
        job = await two.add("job")
        await two.began.wait()
        with pytest.raises(Exception, match="WRONGTYPE"):
            await job.cancel()
        await cancelled(two.asker, job)


@pytest.mark.parametrize("rubbish", [b"", b"\xff", b"\x95\x01\x02\x03\x04\x05", b"\x95\xa1a\xa0\xa1b\xa1c\xa0"])
async def test_rubbish_on_the_channel_or_in_the_list_harms_nobody(pair, redis, prefix, rubbish):
    async with pair(lease=1) as two:
        two.act = hang
        job = await two.add("job")
        await two.began.wait()
        channels, beat = two.worker._assembly.broker.channels, two.worker._assembly.heartbeat
        await redis.publish(channels.cancels, rubbish)
        now = int((await redis.time())[0]) * 1000
        await redis.zadd(cancels_key(prefix), {rubbish: now + 60_000})
        last = beat._last
        await eventually(lambda: beat._last > last)
        assert await job.cancel() == "requested"
        await cancelled(two.asker, job)
        assert two.worker.health()["loops_down"] == []


@SHAPES
async def test_a_message_of_an_earlier_take_cancels_nothing(pair, redis, group):
    async with pair(group) as two:
        two.act = lambda data, job: two.go.wait()
        job = await two.add("job")
        await two.began.wait()
        (consumer,) = two.worker._assembly.queues.all()
        consumer.cancel(job.id, b"another take", b"{}")
        consumer.cancel("another job", consumer.attempts.running[job.id].token, b"{}")
        assert not consumer.attempts.running[job.id].leaving
        two.go.set()
        assert await job.wait(10) is True


@SHAPES
@pytest.mark.parametrize("limited", [False, True])
async def test_a_marked_job_that_waits_is_met_by_the_take_and_does_not_run(pair, redis, all_in_place, group, limited):
    """An earlier release ran it, did not know of the mark, and has put it back."""
    limits = {"limiter": Limiter(1, 60)} if limited else {}
    async with pair(group, **limits) as two:
        steering = two.asker.queue.group("job", group) if group else two.asker.queue.job("job")
        await steering.pause()
        jobs = [await two.add(n) for n in range(3)]
        for job in jobs[:2]:
            await redis.hset(job._keys.job(job.id), "k", b'{"by":"ana","reason":"old","at":1700000000000}')
        await steering.resume()
        assert await jobs[2].wait(10) == 2, "what does not run takes no token"
        for job in jobs[:2]:
            after = await cancelled(two.asker, job)
            assert (after.cancelled_by.by, after.cancelled_by.reason, after.attempts_made) == ("ana", "old", 0)
            assert after.started_at is None
        assert [one.error for one in await two.seen("job.cancelled", count=2)] == ["old", "old"]
        assert two.notes == [2]
        assert await all_in_place(two.worker) == []


@SHAPES
async def test_a_job_that_is_held_beyond_its_slot_is_cancelled_as_well(pair, group):
    async with pair(group) as two:
        two.act = lambda data, job: two.go.wait()
        first = await two.add("first")
        await two.began.wait()
        (consumer,) = two.worker._assembly.queues.all()
        job = await two.add("job")
        held = consumer.attempts.running[first.id]
        call = WorkCall("job", consumer.keys, group is not None, b"ahead", 1, 0, "", 0, 1, (-1,) * 4, [])
        process = two.worker._assembly.heartbeat.process
        ((reply,), _) = await two.worker._assembly.broker.work(0, process, [call])
        (taken,) = reply.jobs
        consumer.ahead.hold([Prefetched(taken, 0.0, 0.0)])
        assert await job.cancel("ahead") == "requested"
        await cancelled(two.asker, job)
        assert held.leaving == ""
        two.go.set()
        await first.wait(10)
        assert two.notes == ["first"]


@SHAPES
async def test_a_cancelled_job_that_is_retried_runs_and_no_message_of_before_harms_it(pair, all_in_place, group):
    async with pair(group) as two:
        two.act = hang
        job = await two.add("job")
        await two.began.wait()
        told = []
        broker = two.worker._assembly.broker
        handlers = broker.subscriber._handlers
        handler, confirmed = handlers[broker.channels.cancels]
        handlers[broker.channels.cancels] = (lambda message: (told.append(message), handler(message)), confirmed)
        assert await job.cancel("by mistake") == "requested"
        job = await cancelled(two.asker, job)
        two.began.clear()
        two.act = lambda data, job: two.go.wait()
        await job.retry()
        await two.began.wait()
        again = await two.asker.queue.get_job("job", job.id, group)
        assert (again.state, again.cancelled_by) == ("active", None)
        for message in told:
            two.worker._assembly.queues.cancel(message)
        two.go.set()
        assert await again.wait(10) is True
        assert await two.asker.queue.counts("job") == {"waiting": 0, "active": 0, "delayed": 0, "completed": 1,
                                                       "failed": 0}  # fmt: skip
        assert await all_in_place(two.worker) == []


async def test_who_has_cancelled_stands_in_the_audit_trail(pair):
    from asyncjobs.operator import trail

    async with pair() as two:
        job = await two.add("job", delay=60)
        ana = two.asker.queue.acting_as("ana", source="cli")
        theirs = await ana.get_job("job", job.id)
        assert await theirs.cancel("tidying up") == "cancelled"
        after = await two.asker.queue.get_job("job", job.id)
        assert (after.cancelled_by.by, after.cancelled_by.source) == ("ana", "cli")
        (entry,) = [one async for one in trail(two.asker.queue._running("add"))]
        assert (entry.what, entry.by, entry.reason, entry.target["ids"]) == ("cancel", "ana", "tidying up", [job.id])


async def test_a_link_that_is_cut_again_and_again_loses_no_cancel(make_runtime, own_server, prefix):
    """Each message may come while the process does not listen; the beat brings it within a quarter of the lease."""
    runtimes = [make_runtime(own_server.url), make_runtime(own_server.url, consume=False)]
    for runtime in runtimes:

        @runtime.job("job", limiter=None, concurrency=20, lease=2)
        async def handle(data, job):
            await asyncio.Event().wait()

    worker, asker = runtimes
    async with worker, asker, own_server.client() as redis:
        jobs = [await asker.queue.add("job", n) for n in range(20)]
        await eventually(lambda: worker._assembly.queues.running() == 20)

        async def cut() -> None:
            while True:
                await redis.client_kill_filter(_type="pubsub")
                await asyncio.sleep(0.01)

        cutting = asyncio.ensure_future(cut())
        try:
            assert {await job.cancel() for job in jobs} == {"requested"}
            for job in jobs:
                await cancelled(asker, job)
        finally:
            cutting.cancel()


# What is kept -----------------------------------------------------------------------------------------------------
@SHAPES
@pytest.mark.parametrize("runs", [False, True])
@pytest.mark.parametrize("rule", ["name", "add", "none", "none of the add"])
async def test_cancelled_jobs_are_kept_as_failed_ones_are(pair, redis, prefix, all_in_place, group, runs, rule):
    options = {"name": {"remove_on_fail": 2}, "none": {"remove_on_fail": True}}.get(rule, {})
    own = {"add": {"remove_on_fail": 2}, "none of the add": {"remove_on_fail": True}}.get(rule, {})
    async with pair(group, **options) as two:
        two.act = hang
        jobs = []
        for _ in range(5):
            two.began.clear()
            job = await two.add(1, delay=None if runs else 60, **own)
            jobs.append(job)
            waiting = asyncio.ensure_future(two.asker.queue._running("add").finished(job._keys, job.id, 2))
            await eventually(lambda job=job: _watched(two, job))
            if runs:
                await two.began.wait()
            assert await job.cancel("why") == ("requested" if runs else "cancelled")
            finish: Finish = await waiting
            assert (finish.op, b"why" in finish.body) == ("k", True)
        left = 0 if rule.startswith("none") else 2

        async def kept():
            counts = await two.asker.queue.counts("job")
            return counts["cancelled"] == left

        await eventually(kept)
        for job in jobs[:3]:
            found = await two.asker.queue.get_job("job", job.id, group)
            assert found is None or rule.startswith("none"), "a record that was watched stays for a minute"
        keys = Keys(prefix, "job", group)
        assert await redis.zcard(keys.cancelled) == left
        if group:
            assert await redis.zcard(index_keys(prefix, "job")[2]) == left
        assert await all_in_place(two.worker) == []


async def test_the_timer_trims_cancelled_jobs_too(pair, redis):
    async with pair(remove_on_fail={"age": 0.1}) as two:
        job = await two.add(1, delay=60)
        assert await job.cancel() == "cancelled"
        await asyncio.sleep(0.15)
        await two.worker._assembly.trimmer.trim_everything()
        assert await state(two.asker, job) is None


async def test_its_id_may_be_used_again_once_it_is_let_go(pair):
    async with pair(remove_on_fail=True) as two:
        job = await two.add(1, delay=60, job_id="mine")
        await job.cancel()
        again = await two.worker.queue.add("job", 2, job_id="mine")
        assert again.added
        assert await again.wait(10) == 2


# Processes --------------------------------------------------------------------------------------------------------
PROJECT = {
    "jobs/slow.py": """
        import asyncio, os
        from asyncjobs import WorkerOptions
        worker_options = WorkerOptions(limiter=None, concurrency=10, lease=2)
        async def handle(data, job):
            with open("ran", "a") as file:
                file.write(f"{job.id}\\n")
            try:
                await asyncio.sleep(60)
            finally:
                with open("cleaned", "a") as file:
                    file.write(f"{job.id}\\n")
    """,
    "jobs/tenant.py": """
        import asyncio
        from asyncjobs import WorkerOptions
        group = True
        worker_options = WorkerOptions(limiter=None, lease=2)
        async def handle(data, job):
            with open("ran", "a") as file:
                file.write(f"{job.id}\\n")
            try:
                await asyncio.sleep(60)
            finally:
                with open("cleaned", "a") as file:
                    file.write(f"{job.id}\\n")
    """,
}


@pytest.fixture
async def fleet(tmp_path, make_runtime, own_server):
    """`fleet(n)`: so many processes that run the project, and a runtime that consumes nothing."""
    write(tmp_path, PROJECT)
    processes: list[Process] = []

    async def start(count: int):
        for _ in range(count):
            processes.append(Process(tmp_path, "run", "--redis", own_server.url))
        asker = make_runtime(own_server.url, prefix="asyncjobs", jobs=tmp_path / "jobs", consume=False)
        await asker.start()
        return processes, asker

    yield start
    for process in processes:
        process.signal(signal.SIGCONT) if process.popen.poll() is None else None
        process.kill()


@pytest.mark.slow
async def test_over_four_processes_each_cancelled_job_ends_once_wherever_it_runs(fleet, tmp_path):
    _, asker = await fleet(4)
    jobs = await asker.queue.add_bulk([("slow", n) for n in range(30)])
    jobs += await asker.queue.add_bulk([("tenant", n, {"group_id": f"g{n % 10}"}) for n in range(20)])
    await eventually(lambda: len(ledger(tmp_path / "ran")) == 40, 60)
    answers = await asyncio.gather(*(job.cancel("all of them") for job in jobs))
    assert answers.count("requested") >= 40 - answers.count("finished")
    for job in jobs:
        await cancelled(asker, job)
        await job.cancel()
    counts = await asker.queue.counts("tenant")
    assert (counts["cancelled"], counts["waiting"], counts["active"]) == (20, 0, 0)
    ran, cleaned = ledger(tmp_path / "ran"), ledger(tmp_path / "cleaned")
    assert len(ran) == len(set(ran)), "none twice"
    assert sorted(ran) == sorted(cleaned)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["slow", "tenant"])
async def test_a_process_that_dies_between_the_mark_and_the_settlement_runs_nothing_twice(fleet, tmp_path, name):
    processes, asker = await fleet(1)
    options = {"group_id": "a"} if name == "tenant" else {}
    job = await asker.queue.add(name, 1, **options)
    await eventually(lambda: ledger(tmp_path / "ran"), 60)
    processes[0].signal(signal.SIGSTOP)
    assert await job.cancel("while it hangs") == "requested"
    processes[0].kill()
    await fleet(1)
    after = await cancelled(asker, job)
    assert (after.attempts_made, after.stalled_count, after.cancelled_by.reason) == (0, 0, "while it hangs")
    assert ledger(tmp_path / "ran") == [job.id]
    assert ledger(tmp_path / "cleaned") == []
