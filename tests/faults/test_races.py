"""Many at once: adds against the reaper, two releases on one store, a backlog, a million due, ids that mean harm."""

from __future__ import annotations

import asyncio
import json
import random
import resource
from collections import Counter

import pytest

from asyncjobs import Runtime
from asyncjobs.broker.keys import Keys, encode_group
from tests.helpers import Process, Watcher, eventually, ledger, write


@pytest.mark.slow
async def test_five_thousand_adds_race_an_eager_reaper(make_runtime, keys_left):
    runtimes = [make_runtime() for _ in range(2)]
    watchers = [Watcher(runtime) for runtime in runtimes]
    ran: Counter[int] = Counter()
    for runtime in runtimes:

        @runtime.job("sync", limiter=None, group=True, group_idle=0, remove_on_complete=True)
        async def sync(data):
            ran[data] += 1

    rng = random.Random(5)
    async with runtimes[0], runtimes[1]:
        for n in range(5000):
            await runtimes[n % 2].queue.add("sync", n, group_id=f"g{rng.randrange(4)}")
        await eventually(lambda: len(ran) == 5000, 30)
        await eventually(lambda: all(not runtime.health()["groups"]["sync"] for runtime in runtimes))
        assert sum(len(one.all("group.reaped")) for one in watchers) > 100, "it was eager indeed"
    assert set(ran.values()) == {1}
    own = (":processes", ":epoch", ":names", ":n", ":history", ":alerts", ":serves")
    assert [key for key in await keys_left() if not key.endswith(own) and "}:m:" not in key] == []


def test_two_thousand_hostile_group_ids_neither_meet_nor_escape():
    rng = random.Random(2)
    alphabet = ["{", "}", ":", "*", "%", "~", "\x00", "\n", "/", "é", "𝄞", "\u202e", " ", "a", "..", "'", "[", "?"]
    ids = {"".join(rng.choices(alphabet, k=rng.randrange(1, 60))) for _ in range(1900)}
    ids |= {"x" * n for n in range(1, 101)} | {"x" * 400 + str(n) for n in range(100)}
    ids |= {encode_group(one) for one in list(ids)[:200]}
    keys = {one: Keys("asyncjobs", "job", one) for one in ids}
    assert len(ids) >= 2000
    assert len({one.stream for one in keys.values()}) == len(ids), "distinct ids have distinct keys"
    others = {Keys("asyncjobs", name).stream for name in ("job", "job-a", "jobs")}
    for one in keys.values():
        tag = one.stream[: one.stream.index("}") + 1]
        assert one.stream == tag + ":s"
        assert tag.count("{") == tag.count("}") == 1, "one hash tag, so one slot"
        assert all(key.startswith(tag) for key in (one.delayed, one.bucket, one.completed, one.failed, one.job("x")))
        assert one.stream.isascii()
        assert not set("*?[]\n\x00 ") & set(one.stream)
        assert one.stream not in others


@pytest.mark.slow
async def test_hostile_ids_are_served_like_any_other(runtime, redis):
    ran: set[str] = set()

    @runtime.job("sync", limiter=None, group=True, remove_on_complete=True)
    async def sync(data, job):
        assert data == job.group_id
        ran.add(job.group_id)

    rng = random.Random(3)
    alphabet = "{}:*%~\x00\n/é𝄞 a'[?\"\\|"
    ids = sorted({"".join(rng.choices(alphabet, k=rng.randrange(1, 40))) for _ in range(2000)})
    async with runtime:
        await redis.set("mine", "untouched")
        await runtime.queue.add_bulk([("sync", one, {"group_id": one}) for one in ids])
        await runtime.wait_idle(30)
        assert sorted(await runtime.queue.groups("sync")) == ids
    assert ran == set(ids)
    assert await redis.get("mine") == b"untouched"


@pytest.mark.slow
async def test_two_releases_with_different_scripts_share_one_store(durable_server, tmp_path):
    """The one has every script with a line more, so that nothing of it is known to the server by the same digest."""
    write(
        tmp_path,
        {
            "jobs/work.py": """
                import asyncio, os
                from asyncjobs import WorkerOptions
                worker_options = WorkerOptions(limiter=None, concurrency=20, lease=1)
                async def handle(data):
                    with open("ledger", "a") as file:
                        file.write(f"{data} {os.getpid()}\\n")
                    await asyncio.sleep(0.005)
            """
        },
    )
    other = (
        "import asyncjobs.broker.scripts as scripts\n"
        "for script in list(scripts.BY_SHA.values()):\n"
        "    del scripts.BY_SHA[script.sha]\n"
        "    object.__setattr__(script, 'text', script.text + '\\n-- another release')\n"
        "    object.__setattr__(script, 'sha', scripts.digest(script.text))\n"
        "    scripts.BY_SHA[script.sha] = script\n"
        "from asyncjobs.cli import main; main()"
    )
    env = {"ASYNCJOBS_REDIS_URL": durable_server.url}

    def start(release: str) -> Process:
        return Process(tmp_path, "-c", release, module=False, env=env)

    same = "from asyncjobs.cli import main; main()"
    processes = {same: start(same), other: start(other)}
    runtime = Runtime(durable_server.url, jobs=tmp_path / "jobs", consume=False)
    try:
        async with runtime:
            for process in processes.values():
                await process.says("ready")
            pids = {process.popen.pid for process in processes.values()}
            for n in range(0, 4000, 200):
                await runtime.queue.add_bulk([("work", one) for one in range(n, n + 200)])
                if n % 1000 == 0:
                    release = other if n % 2000 else same
                    processes[release].kill()
                    processes[release] = start(release)
                    await processes[release].says("ready")
                    pids.add(processes[release].popen.pid)
            await runtime.wait_idle(40)
            assert (await runtime.queue.counts("work"))["failed"] == 0
    finally:
        for process in processes.values():
            process.kill()
    ran = [line.split() for line in ledger(tmp_path / "ledger")]
    assert {int(number) for number, _ in ran} == set(range(4000))
    assert len({pid for _, pid in ran}) >= 4, "both releases worked"
    assert len(ran) <= 4000 + 4 * 20


@pytest.mark.slow
async def test_a_backlog_of_one_group_starves_no_other_and_fills_no_memory(make_runtime):
    adder = make_runtime(consume=False)
    runtime = make_runtime(concurrency=50)
    seen = Watcher(runtime)

    async def sync(data):
        await asyncio.sleep(0.001)

    for one in (adder, runtime):
        one.job("sync", limiter=None, group=True, concurrency=20, remove_on_complete=True)(sync)
    async with adder:
        for _ in range(10):
            await adder.queue.add_bulk([("sync", n, {"group_id": "heavy"}) for n in range(10_000)])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        async with runtime:
            await seen("group.opened")
            await adder.queue.add_bulk([("sync", n, {"group_id": "light"}) for n in range(10)])
            await seen("job.completed", group_id="light", count=10, timeout=5)
            left = (await adder.queue.counts("sync", "heavy"))["waiting"]
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            assert left > 50_000, "the other one is far from done"
    assert grown < 50 * 1024


@pytest.mark.slow
async def test_a_hundred_thousand_due_at_once_make_no_script_long(make_runtime, redis):
    runtime = make_runtime()
    ran = 0

    @runtime.job("work", limiter=None, concurrency=200, remove_on_complete=True)
    async def work(data):
        nonlocal ran
        ran += 1

    async with runtime.only_adding() as queue:
        for _ in range(10):
            await queue.add_bulk([("work", n, {"delay": 3600}) for n in range(10_000)])
        key = queue._broker.queue_keys("work", None).delayed
        await redis.eval(  # all of them are due now
            "for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do redis.call('ZADD', KEYS[1], 1, id) end",
            1,
            key,
        )
    await redis.config_set("slowlog-log-slower-than", 50_000)
    await redis.slowlog_reset()
    async with runtime:
        await runtime.wait_idle(60)
    assert ran == 100_000
    slow = [entry for entry in await redis.slowlog_get() if b"EVALSHA" in entry["command"].upper()]
    assert slow == [], json.dumps([str(one) for one in slow])


@pytest.mark.slow
async def test_retention_never_touches_what_has_not_run(runtime):
    ran: Counter[int] = Counter()

    @runtime.job("work", limiter=None, concurrency=100, remove_on_complete=10, remove_on_fail=10)
    async def work(data):
        ran[data] += 1

    async with runtime.only_adding() as queue:
        for n in range(0, 50_000, 10_000):
            await queue.add_bulk([("work", one) for one in range(n, n + 10_000)])
    async with runtime:
        await runtime.wait_idle(60)
        assert (await runtime.queue.counts("work"))["completed"] == 10
    assert len(ran) == 50_000
    assert set(ran.values()) == {1}


async def test_a_job_that_only_another_process_knows_waits_for_it(make_runtime):
    knows, does_not = make_runtime(), make_runtime()
    knows.job("x", limiter=None)(lambda data: data)
    does_not.job("y", limiter=None)(lambda data: data)
    async with does_not:
        async with knows.only_adding() as queue:
            job = await queue.add("x", 1)
        await (await does_not.queue.add("y", 2)).wait(5)
        async with knows:
            assert await (await knows.queue.get_job("x", job.id)).wait(5) == 1
            assert (await knows.queue.get_job("x", job.id)).attempts_made == 1
