"""What was counted of each name, over all processes, and what is said of it."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from asyncjobs import ConfigError, Discard, Limiter, RateLimited, RetryLater, WorkerOptions
from asyncjobs.broker.tallying import NAMES
from asyncjobs.history import recorder as recording
from asyncjobs.history.recorder import OTHERS
from asyncjobs.history.tally import SAMPLES
from tests.helpers import Process, eventually, ledger, write

COUNTED = ("added", "completed", "failed_tries", "failed", "retried", "stalled", "cancelled", "refused")


async def flushed(*runtimes):
    for runtime in runtimes:
        await runtime._assembly.recorder.flush()


async def counted(runtime, name, range="3h"):
    """What is not 0."""
    total = (await runtime.queue.history(name, range)).total
    return {one: getattr(total, one) for one in COUNTED if getattr(total, one)}


async def test_every_outcome_is_counted_once(make_runtime):
    runtime = make_runtime()

    @runtime.job("work", limiter=None, attempts=3, backoff=0.01)
    async def work(data, job):
        if data == "fails":
            raise ValueError
        if data == "twice" and job.attempts_made < 2:
            raise ValueError
        if data == "discard":
            raise Discard("no")
        if data == "later" and not job.logs_done:
            raise RetryLater(0.01)

    later = set()

    @runtime.job("again", limiter=None)
    async def again(data, job):
        if job.id not in later:
            later.add(job.id)
            raise (RetryLater if data == "later" else RateLimited)(0.01)

    async with runtime:
        for data in ("fine", "fine", "fails", "twice", "discard"):
            await runtime.queue.add("work", data)
        await runtime.queue.add("again", "later")
        await runtime.queue.add("again", "limited", delay=0.05)
        await runtime.wait_idle(20)
        await flushed(runtime)
        assert await counted(runtime, work) == {
            "added": 5, "completed": 3, "failed_tries": 6, "failed": 2, "retried": 4,
        }  # fmt: skip
        assert await counted(runtime, "again") == {"added": 2, "completed": 2, "retried": 2}
        total = (await runtime.queue.history("work")).total
        assert total.run.samples == 3, "of tries that returned"
        assert total.wait.samples == 9


async def test_a_series_has_no_gaps_and_ends_with_the_open_span(make_runtime):
    runtime = make_runtime()
    runtime.job("work", limiter=None)(lambda data: data)
    async with runtime:
        await runtime.queue.add_bulk([("work", n) for n in range(30)])
        await runtime.wait_idle(20)
        await flushed(runtime)
        for given, step, points in [
            ("3h", 60, 181), ("15m", 60, 16), (90, 60, 3), ("48h", 600, 289), (timedelta(hours=4), 600, 25),
            ("30d", 7200, 361), (timedelta(days=3), 7200, 37),
        ]:  # fmt: skip
            found = await runtime.queue.history("work", given)
            assert (found.name, found.step, len(found.points)) == ("work", step, points), given
            assert [one.complete for one in found.points] == [True] * (points - 1) + [False]
            gaps = {(b.at - a.at).total_seconds() for a, b in zip(found.points, found.points[1:], strict=False)}
            assert gaps == {step}
            assert found.total.completed == sum(one.completed for one in found.points) == 30
            assert found.total.at == found.points[0].at
        assert found.total.wait.p50 <= found.total.wait.p95 <= found.total.wait.p99
        assert found.total.run.p50 < 1


async def test_nothing_is_invented_of_fewer_than_twenty(make_runtime):
    runtime = make_runtime(alerts=None)
    runtime.job("work", limiter=None)(lambda data: data)
    async with runtime:
        await runtime.queue.add_bulk([("work", n) for n in range(19)])
        await runtime.wait_idle(20)
        await flushed(runtime)
        total = (await runtime.queue.history("work")).total
        assert (total.run.samples, total.run.p50, total.run.p99, total.wait.p95) == (19, None, None, None)
        assert (total.backlog, total.oldest_waiting) == (None, None), "nobody has looked"
        unknown = await runtime.queue.history("never-heard-of", "1h")
        assert (unknown.total.added, unknown.total.wait.p50) == (0, None)


async def test_the_wait_is_from_when_a_job_was_due_to_its_start(make_runtime, redis):
    """Delayed jobs for which there was no room are promoted late: that they wait is counted all the same."""
    runtime = make_runtime()
    gate, began = asyncio.Event(), asyncio.Event()

    @runtime.job("work", limiter=None, concurrency=1)
    async def work(data):
        began.set()
        await gate.wait()

    async with runtime:
        await runtime.queue.add("work", "first")
        await began.wait()
        jobs = await runtime.queue.add_bulk([("work", n, {"delay": 3600}) for n in range(30)])
        delayed = runtime._assembly.broker.queue_keys("work", None).delayed
        now = int((await redis.time())[0]) * 1000
        await redis.zadd(delayed, {job.id: now - 60_000 for job in jobs})  # an hour passes, and a minute
        gate.set()
        await runtime.wait_idle(20)
        await flushed(runtime)
        total = (await runtime.queue.history("work")).total
        assert total.wait.samples == 31
        assert 45 < total.wait.p50 < 90
        assert total.run.p50 < 0.5


async def test_a_job_that_was_not_delayed_long_hardly_waits(make_runtime):
    runtime = make_runtime()
    runtime.job("work", limiter=None)(lambda data: data)
    async with runtime:
        jobs = [await runtime.queue.add("work", n, delay=0.3) for n in range(25)]
        await asyncio.gather(*(job.wait(20) for job in jobs))
        await flushed(runtime)
        assert (await runtime.queue.history("work")).total.wait.p50 < 0.2


async def test_the_start_of_a_long_job_is_counted_before_its_end(make_runtime):
    """Else nothing would be said of the wait while a queue stands still."""
    runtime = make_runtime()
    gate, began = asyncio.Event(), []

    @runtime.job("work", limiter=None, concurrency=30)
    async def work(data):
        began.append(data)
        await gate.wait()

    async with runtime:
        await runtime.queue.add_bulk([("work", n) for n in range(25)])
        await eventually(lambda: len(began) == 25)
        await flushed(runtime)
        total = (await runtime.queue.history("work")).total
        assert (total.wait.samples, total.run.samples, total.completed) == (25, 0, 0)
        gate.set()


async def test_turns_that_a_limit_refuses_are_counted(make_runtime):
    runtime = make_runtime()
    runtime.job("own", limiter=Limiter(2, 0.2))(lambda data: data)
    runtime.job("named", limiter=Limiter(2, 0.2, name="api"))(lambda data: data)
    async with runtime:
        await runtime.queue.add_bulk([(name, n) for n in range(7) for name in ("own", "named")])
        await runtime.wait_idle(30)
        await flushed(runtime)
        for name in ("own", "named"):
            assert 1 <= (await counted(runtime, name))["refused"] <= 40


async def test_a_turn_that_a_limit_refuses_does_not_count_where_there_is_no_job(make_runtime):
    """A shared limit is asked before the queue is looked at, and else a process without work would send figures."""
    runtime, api, waited = make_runtime(), Limiter(1, 1, name="api"), []
    runtime.job("idle", limiter=api)(lambda data: data)

    @runtime.job("work", limiter=api)
    async def work(data):
        idle.look_again()
        await eventually(lambda: idle.parked is not None)
        waited.append(idle.held_back)

    async with runtime:
        idle = runtime._assembly.queues.consumers["idle"]
        await eventually(lambda: not idle.hungry)
        await runtime.queue.add("work")
        await eventually(lambda: waited and idle.parked is None and not idle.hungry)
        assert waited[0] >= 1
        assert idle.held_back == 0
        assert runtime._assembly.recorder.tally("idle").frame.empty


async def test_many_jobs_are_sampled_and_all_are_counted(make_runtime):
    jobs = 100 * SAMPLES
    runtime = make_runtime(loop_budget=None)
    runtime.job("work", limiter=None, concurrency=100, remove_on_complete=True)(_noop)
    async with runtime:
        await runtime.queue.add_bulk([("work", n) for n in range(jobs)])
        await runtime.wait_idle(60)
        tally = runtime._assembly.recorder.tally("work")
        assert tally.frame.wait.samples < jobs / 2
        await flushed(runtime)
        total = (await runtime.queue.history("work")).total
        assert (total.added, total.completed) == (jobs, jobs)
        for name in ("wait", "run"):
            measured = getattr(total, name).samples
            assert 20 <= measured < jobs / 2
        stands_for = sum(sum(slot.run.counts.values()) for slot in await _slots(runtime, "work"))
        assert jobs * 0.5 < stands_for < jobs * 2, "each stands for as many others"
        assert tally.every > 1
        tally._since -= 10
        await flushed(runtime)
        assert (tally.every, tally.gap) == (1, 0), "when the rush is over each job is measured"


async def _noop(data):
    """Does nothing."""


async def _slots(runtime, name):
    from asyncjobs.history.figures import slots_of

    series = await runtime._assembly.broker.series(name, 1, 10)
    return [slot for _, slot in slots_of(series, 10, 60_000)]


async def test_the_heaviest_groups_of_a_name(make_runtime):
    runtime = make_runtime()

    @runtime.job("sync", limiter=None, group=True)
    async def sync(data):
        if data == "slow":
            await asyncio.sleep(0.05)

    async with runtime:
        jobs = [("sync", "quick", {"group_id": f"g{n % 30}"}) for n in range(90)]
        jobs += [("sync", "slow", {"group_id": "grösse: 5/%"}) for n in range(5)]
        await runtime.queue.add_bulk(jobs)
        await runtime.wait_idle(20)
        await flushed(runtime)
        groups = await runtime.queue.heaviest("sync")
        assert len(groups) == 20
        assert (groups[0].group_id, groups[0].starts) == ("grösse: 5/%", 5)
        assert groups[0].busy >= 0.2
        assert {one.starts for one in groups[1:]} == {3}
        assert len(await runtime.queue.heaviest(sync, "1h", most=3)) == 3
        assert await runtime.queue.heaviest("none-such", "1m") == ()


@pytest.mark.parametrize(
    "given", ["", "3", "3 h", "-1h", 0, -5, True, None, "31d", timedelta(days=31), "9999999d", 1e12]
)
async def test_ranges_that_are_none_are_refused(make_runtime, given):
    runtime = make_runtime(consume=False)
    async with runtime:
        with pytest.raises(ConfigError, match="range="):
            await runtime.queue.history("work", given)


async def test_hostile_names_and_ranges_are_refused_before_anything_is_sent(make_runtime):
    runtime = make_runtime(consume=False)
    async with runtime:
        for name in ("", "a:b", "{x}", "*", "a\n", "x" * 200):
            with pytest.raises(ConfigError, match="name="):
                await runtime.queue.history(name)
        with pytest.raises(ConfigError, match="an hour"):
            await runtime.queue.heaviest("work", "2h")
        with pytest.raises(ConfigError, match="most"):
            await runtime.queue.heaviest("work", most=0)
        assert (await runtime.queue.history(OTHERS)).name == OTHERS


async def test_beyond_a_hundred_names_the_rest_is_counted_together(make_runtime, monkeypatch):
    runtime = make_runtime()
    names = [f"job-{n}" for n in range(NAMES + 20)]
    for name in names:
        runtime.job(name, limiter=None)(_noop)
    async with runtime:
        await runtime.queue.add_bulk([(name, 1) for name in names[:NAMES] for _ in range(3)])
        await flushed(runtime)
        await runtime.queue.add_bulk([(name, 1) for name in names[NAMES:]])
        await runtime.wait_idle(30)
        await flushed(runtime)
        own = [await counted(runtime, name) for name in names]
        assert own[:NAMES] == [{"added": 3, "completed": 3}] * NAMES
        assert own[NAMES:] == [{}] * 20
        assert await counted(runtime, OTHERS) == {"added": 20, "completed": 20}
        monkeypatch.setattr(recording, "RANKED", 0.0)
        runtime._assembly.recorder._ranked.clear()
        await runtime.queue.add_bulk([(names[-1], n) for n in range(500)])
        await runtime.wait_idle(30)
        await flushed(runtime)
        assert await counted(runtime, names[-1]) == {"added": 500, "completed": 500}, "it has more traffic than another"


async def test_what_a_process_counts_reaches_the_store_when_it_stops(make_runtime):
    adder, worker, reader = make_runtime(consume=False), make_runtime(), make_runtime(consume=False)
    for runtime in (adder, worker):
        runtime.job("work", limiter=None)(lambda data: data)
    async with reader:
        async with adder:
            await adder.queue.add_bulk([("work", n) for n in range(40)])
        assert await counted(reader, "work") == {"added": 40}
        async with worker:
            await worker.wait_idle(20)
        assert await counted(reader, "work") == {"added": 40, "completed": 40}


async def test_it_is_flushed_every_few_seconds(make_runtime, monkeypatch):
    monkeypatch.setattr(recording.Recorder.__init__, "__defaults__", (0.2,))
    runtime = make_runtime()
    runtime.job("work", limiter=None)(lambda data: data)
    async with runtime:
        await runtime.queue.add("work", 1)

        async def there():
            return await counted(runtime, "work") == {"added": 1, "completed": 1}

        await eventually(there)


async def test_without_history_nothing_is_counted_and_nothing_written(make_runtime, keys_left):
    runtime = make_runtime(history=False)
    runtime.job("work", limiter=None)(lambda data: data)
    async with runtime:
        assert runtime._assembly.recorder is None
        await runtime.queue.add("work", 1)
        await runtime.wait_idle(20)
        assert await counted(runtime, "work") == {}
        assert "alerts" not in runtime.health()
    kinds = {key.partition("}:")[2].partition(":")[0] for key in await keys_left()}
    assert not kinds & {"m", "history", "alerts", "serves"}


async def test_where_nothing_happens_nothing_is_sent(make_runtime, monkeypatch):
    monkeypatch.setattr(recording.Recorder.__init__, "__defaults__", (0.05,))
    runtime = make_runtime(alerts=None)
    runtime.job("work", limiter=None)(lambda data: data)
    async with runtime:
        await runtime.queue.add("work", 1)
        await runtime.wait_idle(20)
        await flushed(runtime)
        sent = []
        broker = runtime._assembly.broker
        ask = broker._ask
        monkeypatch.setattr(
            broker, "_ask", lambda command, *more, **given: sent.append(command) or ask(command, *more, **given)
        )
        flush, turns = runtime._assembly.recorder.flush, []

        async def counting():
            turns.append(1)
            await flush()

        monkeypatch.setattr(runtime._assembly.recorder, "flush", counting)
        await eventually(lambda: len(turns) >= 10)
        assert [one for one in sent if "m:" in str(one[3:5])] == []
        assert "alerts" not in runtime.health()


async def test_a_flush_that_the_store_refuses_harms_nothing(make_runtime, redis, prefix, caplog):
    runtime = make_runtime()
    runtime.job("work", limiter=None)(lambda data: data)
    async with runtime:
        await redis.rpush(f"{{{prefix}:work}}:m:seen", "foreign")
        await (await runtime.queue.add("work", 1)).wait(10)
        await flushed(runtime, runtime)
        assert "figures of work cannot be kept" in caplog.text
        await redis.delete(f"{{{prefix}:work}}:m:seen")
        await (await runtime.queue.add("work", 1)).wait(10)
        await flushed(runtime)
        assert await counted(runtime, "work") == {"added": 1, "completed": 1}


WORKER = """
    import asyncio, sys
    from asyncjobs import Runtime

    runtime = Runtime(sys.argv[1], prefix=sys.argv[2])

    @runtime.job("work", limiter=None, concurrency=5)
    async def work(data):
        with open("ledger", "a") as file:
            file.write("ran\\n")
        if data == "hang":
            await asyncio.sleep(600)

    async def main():
        async with runtime:
            await asyncio.sleep(600)

    asyncio.run(main())
"""


async def test_four_processes_and_a_kill_lose_five_seconds_at_most(make_runtime, server, prefix, tmp_path):
    """What a killed process had flushed stays, nothing counts twice, and its stalls are counted by who sweeps."""
    write(tmp_path, {"worker.py": WORKER})
    runtime = make_runtime(consume=False)
    runtime.job("work", limiter=None)(_noop)
    url = server.url
    async with runtime:
        processes = [Process(tmp_path, "worker.py", url, prefix, module=False) for _ in range(4)]
        try:
            await runtime.queue.add_bulk([("work", n) for n in range(200)])
            await eventually(lambda: len(ledger(tmp_path / "ledger")) == 200, 30)

            async def all_flushed():
                await flushed(runtime)
                return (await counted(runtime, "work")).get("completed") == 200

            await eventually(all_flushed, 30, "each has flushed")
            await runtime.queue.add_bulk([("work", "hang") for n in range(20)])  # as many as there are slots
            await eventually(lambda: len(ledger(tmp_path / "ledger")) == 220, 30)
            processes[0].kill()
            processes[1].kill()

            async def stalls_counted():
                return (await counted(runtime, "work")).get("stalled", 0) >= 10

            await eventually(stalls_counted, 40, "the stalls are counted")
            found = await counted(runtime, "work")
            assert found["completed"] == 200
            assert found["stalled"] == 10
        finally:
            for process in processes:
                process.kill()
        await flushed(runtime)
        assert (await counted(runtime, "work"))["added"] == 220


async def test_options_are_checked(make_runtime):
    with pytest.raises(ConfigError, match="history"):
        make_runtime(history=1)
    with pytest.raises(ConfigError, match="alerts"):
        make_runtime(alerts=5)
    with pytest.raises(ConfigError, match="oldest"):
        make_runtime(alerts={"oldest": 5})
    assert make_runtime(alerts={"oldest_waiting": timedelta(minutes=5)}).config.alerts.oldest_waiting == 300
    assert WorkerOptions().lease == 30


async def test_cancels_are_counted_where_a_job_waits_and_where_it_runs(make_runtime):
    runtime = make_runtime()
    began = asyncio.Event()

    @runtime.job("work", limiter=None, concurrency=1)
    async def work(data):
        began.set()
        await asyncio.sleep(60)

    async with runtime:
        running = await runtime.queue.add("work", 1)
        await began.wait()
        waits = [await runtime.queue.add("work", n) for n in range(3)]
        for job in (*waits, waits[0], running):
            await job.cancel("enough")

        async def ended():
            return (await running.refresh()).state == "cancelled"

        await eventually(ended)
        await runtime.wait_idle(20)
        await flushed(runtime)
        assert await counted(runtime, "work") == {"added": 4, "cancelled": 4}
