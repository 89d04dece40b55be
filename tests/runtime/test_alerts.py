"""What is alerted: once in an installation, whoever looks, and heard in every process."""

from __future__ import annotations

import asyncio

import pytest

from asyncjobs import Alert, Alerts
from asyncjobs.broker.keys import alerts_key
from asyncjobs.history import watch as watching
from tests.helpers import Process, Watcher, eventually, write

MINUTE = 0.3  # seconds of a minute here
ONLY = {"store": False}


@pytest.fixture(autouse=True)
def _short_minutes(monkeypatch):
    monkeypatch.setattr(watching.Watch.__init__, "__defaults__", (None, MINUTE))


def alerted(runtime) -> set[tuple[str, str]]:
    return {(one.code, one.name) for one in runtime.health()["alerts"]}


async def test_work_that_nobody_consumes_is_alerted_once_and_heard_everywhere(make_runtime):
    web = [make_runtime(consume=False, alerts=ONLY) for _ in range(3)]
    seen = [Watcher(one) for one in web]
    worker = make_runtime(alerts=ONLY)
    for runtime in (*web, worker):
        runtime.job("mail", limiter=None)(lambda data: data)
    async with web[0], web[1], web[2]:
        await web[0].queue.add("mail", 1)
        for runtime in web:
            await eventually(lambda runtime=runtime: alerted(runtime) == {("no_consumer", "mail")})
        raised = [event for one in seen for event in one.all("alert.raised")]
        assert len(raised) == 1
        (event,) = raised
        assert (event.name, event.error) == ("mail", "1 jobs of mail wait, and no process consumes that name")
        assert isinstance(event.data, Alert)
        assert (event.data.code, event.data.value) == ("no_consumer", 1)
        async with worker:
            await worker.wait_idle(20)
            for runtime in (*web, worker):
                await eventually(lambda runtime=runtime: alerted(runtime) == set())
        cleared = [event for one in seen for event in one.all("alert.cleared")]
        assert len(cleared) == 1
        assert cleared[0].data.since == event.data.since
        assert sum(len(one.all("alert.raised")) for one in seen) == 1


async def test_a_name_that_is_consumed_is_none_even_if_it_waits(make_runtime):
    runtime = make_runtime(alerts={**ONLY, "oldest_waiting": 0.2})
    seen, gate = Watcher(runtime), asyncio.Event()

    @runtime.job("mail", limiter=None, concurrency=1)
    async def mail(data):
        await gate.wait()

    async with runtime:
        await runtime.queue.add_bulk([("mail", 1), ("mail", 2)])
        await seen("alert.raised")
        assert alerted(runtime) == {("oldest_waiting", "mail")}
        await runtime._assembly.recorder.flush()
        total = (await runtime.queue.history("mail")).total
        assert (total.backlog, total.running) == (1, 1)
        assert total.oldest_waiting > 0
        gate.set()
        await seen("alert.cleared")
        assert runtime.health()["alerts"] == []


async def test_groups_are_looked_at_together(make_runtime):
    runtime = make_runtime(consume=False, alerts=ONLY)
    seen = Watcher(runtime)
    runtime.job("sync", limiter=None, group=True)(lambda data: data)
    async with runtime:
        await runtime.queue.add_bulk([("sync", n, {"group_id": f"g{n % 7}"}) for n in range(20)])
        await runtime.queue.announce()
        (event,) = await seen("alert.raised")
        assert (event.data.code, event.data.value) == ("no_consumer", 20)


async def test_failures_and_stalls_come_from_what_was_counted(make_runtime, monkeypatch):
    runtime = make_runtime(alerts={**ONLY, "failure_share": 0.5})
    seen = Watcher(runtime)

    @runtime.job("mail", limiter=None, attempts=1)
    async def mail(data):
        raise ValueError

    async with runtime:
        await runtime.queue.add_bulk([("mail", n) for n in range(30)])
        await runtime.wait_idle(20)
        tally = runtime._assembly.recorder.tally("mail")
        tally.count("stalled", 3)
        tally.frame.began_at -= 120  # what was counted in the minute that is over
        await runtime._assembly.recorder.flush()
        await seen("alert.raised", count=2)
        raised = {event.data.code: event.data for event in seen.all("alert.raised")}
        assert set(raised) == {"failure_share", "stalls"}
        assert raised["failure_share"].value == 1.0
        assert "30 of the last 30 tries of mail failed, 100%" in raised["failure_share"].text


async def test_who_was_on_duty_dies_and_another_goes_on(make_runtime, redis, prefix):
    """What is raised stays raised, and is not told again; what comes then is told by the other."""
    first, second = (make_runtime(consume=False, alerts=ONLY) for _ in range(2))
    for runtime in (first, second):
        for name in ("mail", "bill"):
            runtime.job(name, limiter=None)(lambda data: data)
    seen = {runtime: Watcher(runtime) for runtime in (first, second)}

    async def on_duty():
        return (await redis.hget(alerts_key(prefix), "process") or b"").decode()

    async with first, second:
        await first.queue.add("mail", 1)
        await eventually(lambda: any(one.all("alert.raised") for one in seen.values()))
        dead = next(one for one in seen if seen[one].all("alert.raised"))
        other = second if dead is first else first
        for watch in ("run", "look", "leave"):
            setattr(dead._assembly.watch, watch, None)  # as if it were killed: it asks no more, and says no farewell
        dead._assembly.watch = None
        await eventually(lambda: (other._assembly.watch.alerts and other._assembly.watch._mine) or None)
        assert seen[other].all("alert.raised") == []
        await other.queue.add("bill", 1)
        await seen[other]("alert.raised", name="bill")
        assert alerted(other) == {("no_consumer", "mail"), ("no_consumer", "bill")}
        assert len(seen[other].events) == len({id(event) for event in seen[other].events})
        assert await on_duty()


async def test_what_was_raised_and_not_told_is_told_by_the_next(make_runtime, redis, prefix, monkeypatch):
    first = make_runtime(consume=False, alerts=ONLY)
    first.job("mail", limiter=None)(lambda data: data)
    second = make_runtime(consume=False, alerts=ONLY)
    seen = Watcher(second)
    told = []

    def dies(self, one):
        told.append(one)
        raise asyncio.CancelledError

    async with first:
        with monkeypatch.context() as patch:
            patch.setattr(watching.Watch, "_tell", dies)
            await first.queue.add("mail", 1)
            await eventually(lambda: told)
            await first.stop()
    async with second:
        (event,) = await seen("alert.raised")
        assert event.data.code == "no_consumer"
        assert len(await seen("alert.raised")) == 1


async def test_it_is_told_where_somebody_listens(make_runtime):
    deaf, hears = make_runtime(consume=False, alerts=ONLY), make_runtime(consume=False, alerts=ONLY)
    for runtime in (deaf, hears):
        runtime.job("mail", limiter=None)(lambda data: data)
    async with deaf:
        await eventually(lambda: deaf._assembly.watch._mine)
        seen = Watcher(hears)
        async with hears:
            await hears.queue.add("mail", 1)
            (event,) = await seen("alert.raised")
            assert event.data.name == "mail"
            await eventually(lambda: alerted(deaf) == {("no_consumer", "mail")})


async def test_a_tick_that_nobody_claims_is_alerted(make_runtime, redis, prefix, monkeypatch):
    monkeypatch.setattr(watching, "MISSED", 0.5)
    cron, web = make_runtime(alerts=ONLY), make_runtime(consume=False, schedule=False, alerts=ONLY)
    seen = Watcher(web)

    @cron.task("* * * * * *", name="poll")
    async def poll():
        """Does nothing."""

    async with web:
        async with cron:
            await eventually(lambda: cron._assembly.watch.alerts == () and cron._assembly.scheduler.planned())
            await eventually(lambda: redis.hexists(f"{{{prefix}}}:serves", cron._assembly.heartbeat.process))
            assert alerted(web) == set()
        (event,) = await seen("alert.raised", timeout=30)
        assert (event.name, event.data.code) == ("poll", "missed_task")
        async with cron:
            await seen("alert.cleared", timeout=30)


async def test_a_store_that_keeps_nothing_is_alerted(make_runtime):
    runtime = make_runtime()
    seen = Watcher(runtime)
    async with runtime:
        (event,) = await seen("alert.raised")
        assert (event.name, event.data.code) == ("store", "store_loses")
        assert "set appendonly to yes" in event.data.text


async def test_nothing_is_alerted_where_it_is_not_wanted(make_runtime, redis, prefix):
    runtime = make_runtime(alerts=None)
    async with runtime:
        assert runtime._assembly.watch is None
        assert "alerts" not in runtime.health()
        assert not await redis.exists(alerts_key(prefix))


async def test_a_subscriber_that_raises_and_a_store_that_is_strange_harm_nothing(make_runtime, redis, prefix):
    runtime = make_runtime(consume=False, alerts=ONLY)
    runtime.job("mail", limiter=None)(lambda data: data)
    seen = Watcher(runtime)

    @runtime.on("alert.raised")
    def wrong(event):
        raise ValueError

    async with runtime:
        await redis.hset(alerts_key(prefix), mapping={"state": "{", "judged": "x", "until": "y"})
        await redis.hset(f"{{{prefix}}}:serves", "somebody", "[")
        await runtime.queue.add("mail", 1)
        await redis.hset(alerts_key(prefix), mapping={"state": "{", "judged": "7"})
        await seen("alert.raised")
        assert runtime.health()["loops_down"] == []


async def test_an_installation_in_which_nothing_happens_asks_hardly_anything(make_runtime, monkeypatch):
    runtime = make_runtime(alerts=ONLY)
    for n in range(20):
        runtime.job(f"job-{n}", limiter=None)(lambda data: data)
    async with runtime:
        await runtime.wait_idle(20)
        broker, sent = runtime._assembly.broker, []
        real = broker._ask
        monkeypatch.setattr(
            broker, "_ask", lambda command, *more, **given: sent.append(command) or real(command, *more, **given)
        )
        before = runtime._assembly.watch._minutes
        await runtime._assembly.watch.look()
        looks = runtime._assembly.watch._minutes - before
        assert looks >= 1
        most = 5 if not broker.is_cluster else 30
        assert len(sent) <= most * looks, "the duty, the names, whether any holds work, the leases"


WORKER = """
    import asyncio, sys
    from asyncjobs import Runtime
    from asyncjobs.history import watch

    watch.Watch.__init__.__defaults__ = (None, 0.3)
    runtime = Runtime(sys.argv[1], prefix=sys.argv[2], consume=False, alerts={"store": False})
    runtime.job("mail", limiter=None)(lambda data: data)

    @runtime.on("alert.raised")
    def raised(event):
        with open("raised", "a") as file:
            file.write(event.name + "\\n")

    async def main():
        async with runtime:
            print("started", flush=True)
            await asyncio.sleep(600)

    asyncio.run(main())
"""


async def test_four_processes_tell_it_once_though_they_are_killed(make_runtime, server, prefix, tmp_path):
    write(tmp_path, {"worker.py": WORKER})
    runtime = make_runtime(consume=False, alerts=None)
    runtime.job("mail", limiter=None)(lambda data: data)
    async with runtime:
        processes = [Process(tmp_path, "worker.py", server.url, prefix, module=False) for _ in range(4)]
        try:
            for process in processes:
                await process.says("started")
            await runtime.queue.add("mail", 1)
            raised = tmp_path / "raised"
            await eventually(raised.exists)
            processes[0].kill()
            processes[1].kill()
            last = runtime._assembly.broker
            minute = [0]

            async def minutes_pass():
                duty = await last._ask(("HGET", alerts_key(prefix), "judged"))
                minute.append(int(duty or 0))
                return len(set(minute)) > 6

            await eventually(minutes_pass)
            assert raised.read_text() == "mail\n"
        finally:
            for process in processes:
                process.kill()


def test_the_bounds_are_those_of_the_readme():
    assert Alerts() == Alerts(
        no_consumer=True, oldest_waiting=600, failure_share=0.2, backlog=1000, stalls=1, missed_tasks=True, store=True
    )
