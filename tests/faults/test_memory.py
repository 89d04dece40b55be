"""A store that has reached its maxmemory: it takes no work, and whatever is there goes on to its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from redis.exceptions import ResponseError

from asyncjobs import BrokerError, Limiter, RateLimited, Runtime
from asyncjobs.broker import scripts
from asyncjobs.broker.keys import (
    Channels,
    about_key,
    alerts_key,
    asked_key,
    audit_key,
    cancels_key,
    draining_key,
    due_key,
    epoch_key,
    groups_key,
    history_key,
    index_keys,
    leases_key,
    names_key,
    open_operations_key,
    operation_key,
    operations_key,
    paused_key,
    runs_key,
    serves_key,
    skips_key,
    swept_key,
    tasks_key,
)
from tests.helpers import Watcher, eventually
from tests.lua.test_scripts import Desk, settle
from tests.lua.test_tally import Book

MARK = '{"s":1,"p":"p1"'

ENTRY = '"what":"retry"}'
ADDS_WORK = {"add", "register", "retry", "promote"}


async def full(redis: Any, yes: bool = True) -> None:
    await redis.config_set("maxmemory", 1 if yes else 0)


class Case:
    """One script of a queue that has two running jobs, a waiting, a delayed and a completed one."""

    def __init__(self, desk: Desk, rows: dict[str, Any], now: int) -> None:
        self.desk, self.rows, self.now, self.keys = desk, rows, now, desk.keys
        self.processes = f"{{{desk.prefix}}}:processes"
        self.prefix, self.news = desk.prefix, Channels(desk.prefix).news("job")

    async def hold(self, reply: Callable[[Any], bool], script: scripts.Script, *args: Any) -> None:
        got = await self.desk.run(script, *args)
        assert reply(got), (script.name, got)

    async def work(self) -> None:
        done = await self.desk.work(settle("c", "a", self.rows), settle("r", "b", self.rows, number=5, keep="1"),
                                    token="t2", bucket=(5, 1_000_000, 0))  # fmt: skip
        assert done[0] == "11"
        assert list(done[2]) == ["waiting"]

    async def own(self) -> None:
        args = (self.keys.stream, self.keys.jobs, "p1", "-", 1 << 20)
        await self.hold(lambda got: len(got[1]) == 16, scripts.OWN, *args)

    async def retain(self) -> None:
        await self.hold(lambda got: got == b"1", scripts.RETAIN, self.keys.stream, self.keys.jobs, "p2", "a",
                        self.rows["a"][1], "t1")  # fmt: skip

    async def owners(self) -> None:
        await self.hold(lambda got: got == [b"p1"], scripts.OWNERS, self.keys.stream, 60_000)

    async def sweep(self) -> None:
        args = (self.keys.stream, self.keys.jobs, self.news, "", "p1", "p2", "s", 5)
        await self.hold(lambda got: got[0] == [b"a", b"b"], scripts.SWEEP, *args)

    async def leave(self) -> None:
        await self.hold(lambda got: got == 0, scripts.LEAVE, self.keys.stream, "p1")

    async def note(self) -> None:
        for n, kind in enumerate(("progress", "log", "begin")):
            args = (self.keys.job("a"), "t1", kind, "5", 9, f"n{n}")
            await self.hold(lambda got: got == 1, scripts.NOTE, *args)

    async def read(self) -> None:
        await self.hold(lambda got: len(got) > 4, scripts.READ, self.keys.job("a"), self.keys.delayed, "a")

    async def watch(self) -> None:
        await self.hold(lambda got: got == [b"", b""], scripts.WATCH, self.keys.job("a"))
        assert (await self.desk.record("a"))[b"w"]

    async def count(self) -> None:
        assert await self.desk.counts() == [1, 2, 1, 1, 0]

    async def inspect(self) -> None:
        keys = self.keys
        args = (keys.stream, keys.delayed, keys.completed, keys.failed, keys.cancelled, keys.jobs, 10)
        await self.hold(lambda got: len(got) == 6, scripts.INSPECT, *args)

    async def spend(self) -> None:
        args = (self.keys.bucket, self.keys.settings, "5:60000000", 0, "")
        await self.hold(lambda got: got == 0, scripts.SPEND, *args)
        assert await self.desk.redis.exists(self.keys.bucket)

    async def index(self) -> None:
        args = (
            groups_key(self.prefix, "job"),
            *index_keys(self.prefix, "job"),
            -1,
            -1,
            -1,
            -1,
            -1,
            -1,
            "g",
            "c",
            "1:gx",
        )
        await self.hold(lambda got: got[:2] == [[], []], scripts.INDEX, *args)

    async def forget(self) -> None:
        args = (
            self.keys.completed,
            self.now + 9999,
            "c",
            self.keys.jobs,
            self.keys.completed,
            self.keys.failed,
            self.keys.cancelled,
            1,
            "done",
        )
        await self.hold(lambda got: got == b"1", scripts.FORGET, *args)

    async def trim(self) -> None:
        keys = self.keys
        args = (keys.completed, keys.failed, keys.cancelled, keys.jobs, 0, -1, -1, -1, -1, -1)
        await self.hold(lambda got: got == 1, scripts.TRIM, *args)

    async def cancel(self) -> None:
        keys = self.keys
        head = (keys.stream, keys.delayed, keys.cancelled, keys.jobs, "cancels", "done", "job", "", "{}", -1, -1)
        jobs = [one for job_id in ("a", "waiting", "later", "done", "never") for one in (job_id, "", "")]
        await self.hold(lambda got: got[::2] == [b"a", b"k", b"k", b"f", b"g"], scripts.CANCEL, *head, *jobs)
        assert await self.desk.counts() == [0, 2, 0, 1, 0, 2]

    async def remind(self) -> None:
        await self.hold(lambda got: got == 1, scripts.REMIND, cancels_key(self.prefix), 60_000, 9, "told")
        assert await self.desk.redis.zcard(cancels_key(self.prefix)) == 1

    async def hear(self) -> None:
        await self.hold(lambda got: len(got) == 1, scripts.HEAR, cancels_key(self.prefix), "0")

    async def retry(self) -> None:
        keys = self.keys
        args = (keys.stream, keys.delayed, keys.failed, keys.cancelled, keys.jobs, self.news, "", "act", ENTRY, "")
        await self.hold(lambda got: got[1] == b"1", scripts.RETRY, *args, "failed")

    async def promote(self) -> None:
        args = (self.keys.stream, self.keys.delayed, self.keys.jobs, self.news, "", "act", ENTRY, "later")
        await self.hold(lambda got: got[1] == b"1", scripts.PROMOTE, *args)

    async def remove(self) -> None:
        keys = self.keys
        args = (keys.stream, keys.delayed, keys.completed, keys.failed, keys.cancelled, keys.jobs, "done")
        jobs = [one for job_id in ("a", "waiting", "later", "done", "never") for one in (job_id, "")]
        await self.hold(lambda got: got[1] == b"a111-", scripts.REMOVE, *args, *jobs)
        assert await self.desk.counts() == [0, 2, 0, 0, 0]

    async def raze(self) -> None:
        keys = self.keys
        args = (keys.stream, keys.delayed, keys.completed, keys.failed, keys.cancelled, keys.jobs, "done")
        await self.hold(lambda got: got[3:] == [0, 2], scripts.RAZE, *args, "", 10, "", "", "")
        assert await self.desk.counts() == [0, 2, 0, 0, 0]
        await self.hold(lambda got: got[3:] == [0, 0], scripts.RAZE, *args, "1", 10, "", "", "")
        assert await self.desk.counts() == [0, 0, 0, 0, 0]

    async def locate(self) -> None:
        await self.hold(lambda got: got[1][0] == b"waiting", scripts.LOCATE, self.keys.stream, "-", 10, "waiting")

    async def unlist(self) -> None:
        await self.hold(lambda got: got == 0, scripts.UNLIST, index_keys(self.prefix, "job")[0], "1:gx", "5")

    async def audit(self) -> None:
        for _ in range(2):
            await self.hold(lambda got: got, scripts.AUDIT, audit_key(self.prefix), 100, "once", "what", "remove")
        assert await self.desk.redis.xlen(audit_key(self.prefix)) == 1, "what is sent again adds nothing"

    def operation(self) -> tuple[str, str]:
        return operation_key(self.prefix, "o"), open_operations_key(self.prefix)

    async def plan(self) -> None:
        kept = (operations_key(self.prefix), "o", operation_key(self.prefix, ""), 100)
        await self.hold(lambda got: got > 0, scripts.PLAN, *self.operation(), *kept, "what", "remove")

    async def drive(self) -> None:
        await self.plan()
        args = (*self.operation(), "o", "p1.1", 10_000)
        await self.hold(lambda got: got[0] == 1, scripts.DRIVE, *args)
        await self.hold(lambda got: b"500" in got, scripts.DRIVE, *args, "done", "500")

    async def halt(self) -> None:
        await self.plan()
        await self.hold(lambda got: got == 1, scripts.HALT, *self.operation(), "o")

    async def instant(self) -> None:
        await self.hold(lambda got: got >= self.now, scripts.INSTANT, self.keys.stream)

    async def tally(self) -> None:
        args = (self.keys.stream, "w", "-inf", "+inf", 0, self.keys.tag)
        await self.hold(lambda got: got == [1], scripts.TALLY, *args)

    async def seek(self) -> None:
        await self.hold(lambda got: got == [0], scripts.SEEK, self.keys.job("a"), "a", self.keys.tag)

    async def peek(self) -> None:
        args = (self.keys.job("done"), "c", "1", "", 1 << 20, "1", self.keys.job("done"))
        await self.hold(lambda got: got[0] == 1 and got[1][0], scripts.PEEK, *args)

    async def page_entries(self) -> None:
        args = (self.keys.stream, self.keys.jobs, "w", "1", "", "", "", "-", "+", 10, 10, 1 << 20, "1")
        await self.hold(lambda got: got[3][0][0] == b"waiting", scripts.PAGE_ENTRIES, *args)

    async def page_sorted(self) -> None:
        args = (self.keys.delayed, self.keys.jobs, "d", "1", "", "", "", "", "-inf", "+inf", 10, 10, 1 << 20, "1")
        await self.hold(lambda got: got[4][0][0] == b"later", scripts.PAGE_SORTED, *args)

    async def idle(self) -> None:
        await self.hold(lambda got: got[0] == b"", scripts.IDLE, groups_key(self.prefix, "job"), "g")

    async def reap(self) -> None:
        keys = self.keys
        args = (keys.stream, keys.delayed, keys.bucket, keys.settings)
        await self.hold(lambda got: got[0] == 0, scripts.REAP, *args)

    async def unregister(self) -> None:
        await self.hold(lambda got: got == 0, scripts.UNREGISTER, groups_key(self.prefix, "job"), "g", "5")

    async def beat(self) -> None:
        args = (self.processes, epoch_key(self.prefix), due_key(self.prefix), leases_key(self.prefix))
        said = (swept_key(self.prefix, "p1"), about_key(self.prefix), draining_key(self.prefix))
        await self.hold(
            lambda got: got[0] == 1, scripts.BEAT, *args, *said, "p1", "1", "e", 30_000, "{}", "{}", "{}", ""
        )

    async def bury(self) -> None:
        keys = (self.processes, due_key(self.prefix), leases_key(self.prefix))
        args = (*keys, about_key(self.prefix), draining_key(self.prefix), "p9", 0)
        await self.hold(lambda got: got == 0, scripts.BURY, *args)

    async def admit(self) -> None:
        args = (f"{{{self.prefix}}}:gate:x", "p1", 0, 3, 5, 30_000, "9:60000000", 0, "g1", 0, self.news, "-2|")
        await self.hold(lambda got: got[0] == 3, scripts.ADMIT, *args)
        await self.refund()

    async def refund(self) -> None:
        args = (f"{{{self.prefix}}}:gate:x", "g1", 3, 2, "9:60000000")
        await self.hold(lambda got: got == 1, scripts.REFUND, *args)

    async def steer(self) -> None:
        told = (self.news, "0|", Channels(self.prefix).orders, "set|job|")
        await self.hold(lambda got: got == 1, scripts.STEER, self.keys.settings, *told, "p", "1")
        assert await self.desk.redis.hgetall(self.keys.settings) == {b"p": b"1"}

    async def tick(self) -> None:
        keys = (f"{{{self.prefix}}}:ticks", f"{{{self.prefix}}}:running", self.processes, due_key(self.prefix))
        noted = (paused_key(self.prefix), runs_key(self.prefix, "poll"), skips_key(self.prefix, "poll"))
        args = (*keys, *noted, "poll", self.now, "p1", "skip", 30_000, "0", MARK)
        await self.hold(lambda got: got == [b"fire"], scripts.TICK, *args)

    async def end_run(self) -> None:
        keys = (f"{{{self.prefix}}}:running", paused_key(self.prefix))
        noted = (runs_key(self.prefix, "poll"), skips_key(self.prefix, "poll"))
        args = (*keys, *noted, "poll", "p1", "1", MARK, ',"o":"completed"')
        await self.hold(lambda got: got == b"", scripts.END_RUN, *args)

    async def note_run(self) -> None:
        keys = (runs_key(self.prefix, "x"), skips_key(self.prefix, "x"), paused_key(self.prefix))
        await self.hold(lambda got: got == 0, scripts.NOTE_RUN, *keys, "x", "begin", MARK, "")

    async def ask_run(self) -> None:
        args = (asked_key(self.prefix, "r"), self.news, "run|poll|r", "ask")
        await self.hold(lambda got: got == b"", scripts.ASK_RUN, *args)

    async def take_run(self) -> None:
        keys = (asked_key(self.prefix, "r"), f"{{{self.prefix}}}:running", self.processes, due_key(self.prefix))
        noted = (runs_key(self.prefix, "poll"), skips_key(self.prefix, "poll"))
        args = (*keys, *noted, "poll", "p1", "skip", 30_000, "0", "0")
        await self.hold(lambda got: got[0] in (b"fire", b"overlap", b"gone"), scripts.TAKE_RUN, *args)

    async def order(self) -> None:
        args = (tasks_key(self.prefix), paused_key(self.prefix), "hash", "poll", "", self.news, "pause|poll")
        await self.hold(lambda got: got == 0, scripts.ORDER, *args)

    async def claim(self) -> None:
        args = (swept_key(self.prefix, "p9"), "job", "p1", 10_000, "")
        await self.hold(lambda got: got == 1, scripts.CLAIM, *args)

    async def explain(self) -> None:
        keys = (self.keys.stream, self.keys.delayed, self.keys.settings, self.keys.bucket)
        await self.hold(lambda got: got[1][0] == b"a", scripts.EXPLAIN, *keys, self.keys.jobs, "a", 10)

    async def explain_name(self) -> None:
        gate = f"{{{self.prefix}:job}}:gate"
        await self.hold(lambda got: got[1][0] == 0, scripts.EXPLAIN_NAME, self.keys.settings, gate, 30_000)

    async def explain_service(self) -> None:
        keys = (self.processes, due_key(self.prefix), about_key(self.prefix), draining_key(self.prefix))
        args = (*keys, names_key(self.prefix), "job", 30_000, f"{{{self.prefix}}}:gate:", "1", "x")
        await self.hold(lambda got: got[2:4] == [0, 0], scripts.EXPLAIN_SERVICE, *args)

    async def backlog(self) -> None:
        args = (self.keys.stream, self.keys.completed, self.keys.jobs, 60_000)
        await self.hold(lambda got: got[:2] == [1, 2], scripts.BACKLOG, *args)

    async def describe(self) -> None:
        keys = (self.processes, due_key(self.prefix), leases_key(self.prefix), about_key(self.prefix))
        await self.hold(lambda got: len(got) == 2, scripts.DESCRIBE, *keys, draining_key(self.prefix), "p9")

    async def silence(self) -> None:
        await self.hold(lambda got: got == [-1], scripts.SILENCE, self.processes, "p9")

    async def chronicle(self) -> None:
        book = Book(self.desk.redis, self.prefix)
        assert await book.tally(1, counts=[1], groups=["g", 1, 1]) == 1
        assert len(await book.slots()) == 1

    async def series(self) -> None:
        assert await Book(self.desk.redis, self.prefix).slots() == []

    async def rank(self) -> None:
        await self.hold(lambda got: got == b"1", scripts.RANK, history_key(self.prefix), 100, "job", 5)

    async def gauge(self) -> None:
        await self.hold(lambda got: got[:2] == [1, 2], scripts.GAUGE, self.keys.stream, self.keys.delayed)

    async def duty(self) -> None:
        args = (alerts_key(self.prefix), serves_key(self.prefix), "p1", 90_000, "1", "{}", "")
        await self.hold(lambda got: got[0] == 1, scripts.DUTY, *args)

    async def judge(self) -> None:
        await self.duty()
        args = (alerts_key(self.prefix), "p1", self.now // 60_000, "{}", "", 60_000)
        await self.hold(lambda got: got == 1, scripts.JUDGE, *args)

    async def permit(self) -> None:
        await self.hold(lambda got: got == [], scripts.PERMIT, "k", "c")

    async def add(self) -> None:
        await self.desk.add("more")

    async def register(self) -> None:
        await self.desk.run(scripts.REGISTER, groups_key(self.prefix, "job"), "g")


@pytest.mark.parametrize("name", sorted(script.name for script in scripts.BY_SHA.values()))
async def test_every_script_but_those_that_add_work_does_its_step(own_server, prefix, name):
    async with own_server.client() as redis:
        desk = Desk(redis, prefix)
        await desk.add("done")
        _, _, rows = await desk.work(token="t0")
        await desk.work(settle("c", "done", rows, token="t0"), free=0)
        await desk.add("a", "b")
        _, _, rows = await desk.work()
        await desk.add("waiting")
        await desk.add("later", when=60_000)
        case = Case(desk, rows, int((await redis.time())[0]) * 1000)
        await full(redis)
        if name in ADDS_WORK:
            with pytest.raises(ResponseError, match=r"OOM|maxmemory"):
                await getattr(case, name)()
        else:
            assert hasattr(case, name), f"{name} is new: say what it does when memory is short"
            await getattr(case, name)()


async def commands(redis: Any) -> int:
    return int((await redis.info("stats"))["total_commands_processed"])


async def test_what_is_there_is_run_retried_limited_watched_and_steered(own_server, prefix):
    """Jobs that stalled are among it: each says in the store that it begins."""
    ran: list[int] = []
    runtimes = [Runtime(own_server.url, prefix=prefix, connect_timeout=3) for _ in range(2)]

    async def stalling(data, job):
        await job.update_progress(data)
        await job.log(f"line {data}")
        if data % 5 == 0 and not job.attempts_made:
            raise ValueError("once more")
        ran.append(data)
        return data

    async def late(data):
        time.sleep(0.03)  # the next ones are late, and take their tokens again

    for runtime in runtimes:
        runtime.job("stalling", limiter=None, lease=0.5, backoff=0.05)(stalling)
        runtime.job("tenant", limiter=Limiter(50, 0.2), group=True)(lambda data: data)
        runtime.job("late", limiter=Limiter(10, 0.2), concurrency=10)(late)
        runtime.job("hurt", limiter=None, concurrency=1)(_limited_once())
    dead, living = runtimes
    async with own_server.client() as redis:
        async with dead.only_adding() as queue:
            jobs = [await queue.add("stalling", n) for n in range(20)]
            jobs += [await queue.add("tenant", n, group_id=f"g{n % 3}") for n in range(9)]
            jobs += [await queue.add("late", n) for n in range(25)]
            jobs += [await queue.add("hurt", n) for n in range(3)]
            keys = queue._broker.queue_keys("stalling", None)
            desk = Desk(redis, prefix)
            desk.keys = keys
            await desk.work(me="gone.1", token="g", free=20)  # of a process that nobody hears of any more
        await full(redis)
        async with living:
            before = await commands(redis)
            began = time.monotonic()
            waits = [living.queue.get_job(job.name, job.id, job.group_id) for job in jobs]
            handles = await asyncio.gather(*waits)
            await asyncio.gather(*(handle.wait(20) for handle in handles))
            spent = await commands(redis) - before
            assert spent < 3000 + 500 * (time.monotonic() - began), "it does not spin"
            assert sorted(ran) == list(range(20))
            record = await living.queue.get_job("stalling", jobs[3].id)
            assert (record.progress, record.logs, record.stalled_count) == (3, ("line 3",), 1)
            with pytest.raises(BrokerError, match="out of memory and took nothing"):
                await living.queue.add("stalling", 99)
            with pytest.raises(BrokerError, match="out of memory and took nothing"):
                await living.queue.add("tenant", 99, group_id="new")
            await living.queue.job("stalling").pause()
            await living.queue.job("stalling").set(concurrency=2)
            assert (await living.queue.job("stalling").info())["paused"]
            await living.queue.job("stalling").clear()
            left = [job async for job in living.queue.select("tenant", state="completed")]
            assert (await living.queue.select("tenant", state="completed").remove()).done == len(left) == 9
            with pytest.raises(BrokerError, match="out of memory and took nothing"):
                await record.rerun()
            await living.queue.job("hurt").obliterate()
            await full(redis, False)
            assert await (await living.queue.add("stalling", 101)).wait(10) == 101


def _limited_once():
    told: set[int] = set()

    async def hurt(data):
        if data == 1 and not told:
            told.add(data)
            raise RateLimited(0.2)

    return hurt


@pytest.mark.parametrize("what", ["begin", "token"])
async def test_a_job_that_cannot_begin_is_not_taken_again_at_once(tcp_server, prefix, what, monkeypatch):
    """Whatever the store refuses of what a try needs first: the job goes back to the head, and the queue rests here."""
    runtime = Runtime(tcp_server.url, prefix=prefix, connect_timeout=3, sweep_interval=60)
    seen = Watcher(runtime)
    order: list[int] = []
    refused = 0

    async def handle(data):
        order.append(data)

    async def refuse(*args: Any) -> Any:
        nonlocal refused
        refused += 1
        raise BrokerError("the store refused a command: no")

    options = {"limiter": Limiter(1000, 1)} if what == "token" else {"limiter": None}
    runtime.job("work", concurrency=1, **options)(handle)
    async with tcp_server.client() as redis:
        async with runtime.only_adding() as queue:
            for n in range(5):
                await queue.add("work", n, job_id=str(n))
            if what == "begin":
                for n in range(5):
                    await redis.hset(queue._broker.queue_keys("work", None).job(str(n)), "s", 1)
        async with runtime:
            await seen("job.completed", count=5)
            order.clear()
            broker = runtime._assembly.broker
            if what == "begin":
                monkeypatch.setattr(broker, "note", refuse)
            else:
                monkeypatch.setattr("asyncjobs.work.attempts.in_time", refuse)
            for n in range(5, 8):
                await runtime.queue.job("work").pause()
                await runtime.queue.add("work", n, job_id=str(n))
                if what == "begin":
                    await redis.hset(broker.queue_keys("work", None).job(str(n)), "s", 1)
            await runtime.queue.job("work").resume()
            await eventually(lambda: refused)
            before, began = await commands(redis), time.monotonic()
            await eventually(lambda: refused >= 3)
            assert time.monotonic() - began > 1.5, "a second between two tries"
            assert await commands(redis) - before < 200
            counts = await runtime.queue.counts("work")
            assert counts["waiting"] + counts["active"] == 3, "others may have it meanwhile"
            monkeypatch.undo()
            await seen("job.completed", count=8)
    assert order == [5, 6, 7], "they kept their places"
