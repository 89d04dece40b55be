"""Nothing is stranded: whatever happens to a turn, a follow_up, an adoption, a shared limit or a stop, each job runs.

Nobody looks for lost news here (`sweep_interval` is an hour), so that a wake-up that never comes is seen.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from asyncjobs import BrokerUnavailableError, Limiter, NotRunningError, Runtime
from asyncjobs.invariants import of_runtime, of_store
from asyncjobs.work.attempts import Attempts
from tests.helpers import Watcher, eventually

AN_HOUR = 3600
# Each way in which jobs of a name may be kept from starting, and whether they have groups.
KINDS: dict[str, tuple[bool, dict[str, Any]]] = {
    "four at once": (False, {"limiter": None, "concurrency": 4}),
    "one at a time": (False, {"limiter": None, "concurrency": 1}),
    "no bound": (False, {"limiter": None, "concurrency": None}),
    "ordered": (False, {"limiter": None, "ordered": True}),
    "a window": (False, {"limiter": Limiter(60, 0.1), "concurrency": 4}),
    "named": (False, {"limiter": Limiter(60, 0.1, name="mailbox"), "concurrency": 4}),
    "groups": (True, {"limiter": None}),
    "wide groups": (True, {"limiter": None, "concurrency": 3}),
    "total concurrency": (True, {"limiter": None, "total_concurrency": 3}),
    "total limiter": (True, {"limiter": None, "total_limiter": Limiter(60, 0.1)}),
    "all of them": (
        True,
        {"limiter": Limiter(60, 0.1), "total_concurrency": 4, "total_limiter": [Limiter(60, 0.1), Limiter(900, 1)]},
    ),
}


def handler(ran: Counter[Any], pause: Callable[[], float] = lambda: 0.001) -> Callable[..., Awaitable[None]]:
    async def handle(data):
        await asyncio.sleep(pause())
        ran[data] += 1

    return handle


def numbered(name: str, grouped: bool, numbers: range, groups: int = 4) -> list[tuple[Any, ...]]:
    return [(name, n, {"group_id": f"g{n % groups}"} if grouped else {}) for n in numbers]


async def all_is_well(runtime: Runtime, ask: Any = None) -> None:
    await runtime.wait_idle(20)
    await eventually(lambda: of_runtime(runtime) == [], 5, f"{of_runtime(runtime)}")
    assert await of_store(runtime, settled=True) == []


# Lost replies ------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
async def test_replies_that_are_lost_while_all_slots_are_busy_strand_nothing(own_server, prefix, kind):
    """Every connection is killed again and again, with turns, follow-ups, adoptions and questions on the wire."""
    grouped, options = KINDS[kind]
    ran: Counter[int] = Counter()
    rng = random.Random(kind)
    runtime = Runtime(own_server.url, prefix=prefix, sweep_interval=AN_HOUR, connect_timeout=20)
    runtime.job("work", attempts=3, **options, group=grouped)(handler(ran, lambda: rng.choice((0, 0, 0.002))))
    client = Redis.from_url(own_server.url)
    async with runtime:
        kills = added = 0
        while kills < 25:
            await runtime.queue.add_bulk(numbered("work", grouped, range(added, added + 40)))
            added += 40
            goal = min(added, len(ran) + 15)
            await eventually(lambda goal=goal: len(ran) >= goal)
            for one in await client.client_list():
                if int(one["id"]) != await client.client_id():
                    await client.client_kill_filter(_id=one["id"])
            kills += 1
        await eventually(lambda: len(ran) == added, 40, "every job has run")
        await all_is_well(runtime)
    await client.aclose()
    assert set(ran.values()) == {1}, "without a death nothing runs twice"


async def test_a_turn_that_arrives_after_the_question_what_is_ours_is_found_all_the_same(make_runtime, monkeypatch):
    """The server answers nobody for a while, and reads the turn last of all."""
    monkeypatch.setattr("asyncjobs.work.alarms.REPLY_TIMEOUT", 0.2)
    ran: Counter[int] = Counter()
    runtime = make_runtime(sweep_interval=AN_HOUR)
    runtime.job("work", limiter=None, concurrency=4)(handler(ran))
    async with runtime:
        await all_is_well(runtime)
        parts = runtime._assembly
        consumer, broker = parts.queues.consumers["work"], parts.broker
        late: list[Any] = []
        real_work, real_own = broker.work, broker.own
        monkeypatch.setattr(broker._adds, "follow_ups", lambda places: [])

        async def lost(lane, process, calls):
            if late:
                return await real_work(lane, process, calls)
            late.append((lane, process, calls))
            raise BrokerUnavailableError("no answer in time")

        async def own(keys, process):
            found = await real_own(keys, process)
            if late[0] is not None:
                lane, process, calls = late[0]
                late[0] = None
                await real_work(lane, process, calls)  # only now
            return found

        monkeypatch.setattr(broker, "work", lost)
        monkeypatch.setattr(broker, "own", own)
        await runtime.queue.add_bulk([("work", n) for n in range(3)])
        consumer.look_again()
        await eventually(lambda: len(ran) == 3)
        await all_is_well(runtime)


async def test_a_turn_that_arrives_under_a_name_that_was_buried_is_found(make_runtime, monkeypatch):
    """The process was silent, and is called otherwise since; what asks for its jobs asks by the new name."""
    ran: Counter[int] = Counter()
    runtime = make_runtime(sweep_interval=0.2)
    runtime.job("work", limiter=None, concurrency=4, lease=2)(handler(ran))
    runtime.job("tenant", limiter=None, group=True, lease=2)(handler(ran))
    async with runtime:
        parts = runtime._assembly
        broker, heartbeat = parts.broker, parts.heartbeat
        before = heartbeat.process
        sent: dict[str, tuple[int, Any]] = {}
        arrived = asyncio.Event()
        arrived.set()
        real_work = broker.work
        monkeypatch.setattr(broker._adds, "follow_ups", lambda places: [])

        async def work(lane, process, calls):
            sent.update((call.name, (lane, call)) for call in calls if call.free and not call.settlements)
            await arrived.wait()
            return await real_work(lane, process, calls)

        monkeypatch.setattr(broker, "work", work)
        jobs = [("work", 0, {}), ("tenant", 1, {"group_id": "acme"})]
        await runtime.queue.add_bulk(jobs)
        await all_is_well(runtime)
        await broker.bury(before, 0)
        await eventually(lambda: heartbeat.process != before)
        await all_is_well(runtime)
        arrived.clear()
        await runtime.queue.add_bulk([(name, data + 2, options) for name, data, options in jobs])
        for lane, call in sent.values():
            (reply,), _ = await real_work(lane, before, [call])
            assert len(reply.jobs) == 1
        arrived.set()
        await eventually(lambda: len(ran) == 4)
        await all_is_well(runtime)


# More queues than slots --------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
async def test_more_queues_than_slots_never_stand_still(make_runtime, seed):
    rng = random.Random(seed)
    ran: Counter[int] = Counter()
    runtime = make_runtime(concurrency=rng.choice((1, 2, 4)), sweep_interval=AN_HOUR)
    names = {kind.replace(" ", "-"): KINDS[kind] for kind in rng.sample(list(KINDS), 4)}
    for name, (grouped, options) in names.items():
        runtime.job(name, **options, group=grouped)(handler(ran, lambda: rng.choice((0, 0, 0.001, 0.004))))
    added = 0
    async with runtime:
        for name, (grouped, _) in names.items():
            if rng.random() < 0.6:
                weight = rng.choice((2, 3, 7))
                steering = (
                    runtime.queue.group(name, "g0") if grouped and rng.random() < 0.5 else runtime.queue.job(name)
                )
                await steering.set(weight=weight)
        for _ in range(60):
            jobs: list[tuple[Any, ...]] = []
            for name, (grouped, _) in names.items():
                some = rng.choice((0, 0, 1, 2, 5))
                jobs += numbered(name, grouped, range(added, added + some), groups=3)
                added += some
            if rng.random() < 0.7:
                await runtime.queue.add_bulk(jobs)
            else:
                for job in jobs:
                    await runtime.queue.add(job[0], job[1], **job[2])
            if rng.random() < 0.4:
                await eventually(lambda added=added: len(ran) == added, 5, f"{of_runtime(runtime)}")
            assert of_runtime(runtime) == []
        await eventually(lambda: len(ran) == added, 15, f"{of_runtime(runtime)}")
        await all_is_well(runtime)
    assert set(ran.values()) == {1}


# Stopping ----------------------------------------------------------------------------------------------------
class Hold:
    """A verb of the broker whose answers do not come back until `let_go`, or not at all."""

    def __init__(self, broker: Any, verb: str, monkeypatch: pytest.MonkeyPatch, only: Callable[..., bool]) -> None:
        self.reached, self._go = asyncio.Event(), asyncio.Event()
        real = getattr(broker, verb)

        async def held(*args: Any, **options: Any) -> Any:
            answer = await real(*args, **options)
            if only(*args):
                self.reached.set()
                await self._go.wait()
            return answer

        monkeypatch.setattr(broker, verb, held)

    def let_go(self) -> None:
        self._go.set()


def _as_stalled(start: Callable[..., None]) -> Callable[..., None]:
    """Start each job as one whose process has died twice."""

    def stalled(self: Attempts, taken: Any, *args: Any) -> None:
        start(self, taken._replace(stalled_count=2), *args)

    return stalled


def any_call(*args: Any) -> bool:
    return True


MOMENTS: dict[str, tuple[str, Callable[..., bool], str]] = {
    "a turn on the wire": ("work", any_call, "four at once"),
    "a turn of groups on the wire": ("work", any_call, "groups"),
    "an adoption": ("own", any_call, "four at once"),
    "a question to a shared limit": ("admit", any_call, "named"),
    "a question to a total": ("admit", any_call, "total concurrency"),
    "what was let in and not needed": ("refund", any_call, "total limiter"),
    "a late start": ("spend", any_call, "a window"),
    "a job that has stalled before": ("note", lambda *args: args[3] == "begin", "four at once"),
}


@pytest.mark.slow
@pytest.mark.parametrize("answered", [True, False], ids=["answered late", "never answered"])
@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_stop_in_the_middle_of_anything_hands_everything_back(make_runtime, monkeypatch, moment, answered):
    """It returns in time, no handler begins after it was called, and another process runs the rest."""
    verb, only, kind = MOMENTS[moment]
    grouped, options = KINDS[kind]
    ran: Counter[int] = Counter()
    begun_late = 0

    async def handle(data):
        nonlocal begun_late
        begun_late += first.state != "running"
        ran[data] += 1

    first = make_runtime(sweep_interval=AN_HOUR)
    second = make_runtime(sweep_interval=0.3)
    first.job("work", **options, lease=1, group=grouped)(handle)
    second.job("work", **options, lease=1, group=grouped)(handler(ran))
    await first.start()
    broker = first._assembly.broker
    if verb == "own":
        for consumer in first._assembly.queues.all():
            consumer.lost_reply = True
    if verb == "spend":
        monkeypatch.setattr("asyncjobs.work.consumer.least_margin", lambda *args: 0.0)
        monkeypatch.setattr("asyncjobs.limits.start_margin.least_margin", lambda *args: 0.0)
    hold = Hold(broker, verb, monkeypatch, only)
    jobs = numbered("work", grouped, range(30))
    await first.queue.add_bulk(jobs[:15])
    await first.queue.add_bulk(jobs[15:])
    if verb == "own":
        for consumer in first._assembly.queues.all():
            consumer.lost_reply = True
            consumer.look_again()
    elif verb == "note":
        await eventually(lambda: len(ran) == 30)
        ran.clear()
        monkeypatch.setattr(Attempts, "start", _as_stalled(Attempts.start))
        await first.queue.add_bulk(jobs)
    await asyncio.wait_for(hold.reached.wait(), 10)
    began = time.monotonic()
    stop = asyncio.create_task(first.stop(grace=0.3))
    if answered:
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.1, hold.let_go)
    await stop
    assert time.monotonic() - began < 0.3 + 5
    seen = len(ran)
    monkeypatch.undo()
    began = time.monotonic()
    async with second:
        await eventually(lambda: len(ran) == 30, 10, f"{30 - len(ran)} are stranded")
        if answered:
            assert time.monotonic() - began < 0.9 or seen == 30, "what came late went back by itself, before its lease"
        await all_is_well(second)
    assert begun_late == 0
    hold.let_go()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
async def test_a_stop_at_any_instant_leaves_nothing_behind(make_runtime, redis, prefix, kind):
    """Processes come and go; each leaves no job, no consumer name and no place under a limit behind."""
    grouped, options = KINDS[kind]
    ran: Counter[int] = Counter()
    rng = random.Random(kind)
    adder = make_runtime(consume=False)
    adder.job("work", **options, group=grouped)(handler(ran))
    async with adder:
        await adder.queue.add_bulk(numbered("work", grouped, range(400)))
        for _ in range(12):
            runtime = make_runtime(sweep_interval=AN_HOUR)
            runtime.job("work", **options, group=grouped)(handler(ran, lambda: rng.choice((0, 0.001, 0.05))))
            async with runtime:
                some = len(ran) + rng.randrange(1, 20)
                await eventually(lambda some=some: len(ran) >= some or len(ran) >= 400)
                await runtime.stop(grace=rng.choice((0, 0, 0.05)))
            before = ran.total()
            counts = await adder.queue.counts("work")
            assert counts["active"] == 0, "what was left is back"
            assert await of_store(adder) == []
            assert ran.total() == before, "no handler goes on after the stop"
        assert await redis.zcard(f"{{{prefix}}}:processes") == 0
        for key in [key async for key in redis.scan_iter(match=f"*{prefix}:work*:s", count=1000)]:
            names = [one["name"] for one in await redis.xinfo_consumers(key, "w")]
            assert names in ([], [b"head"]), names
        for key in [key async for key in redis.scan_iter(match=f"*{prefix}*:gate*", count=1000)]:
            if await redis.type(key) == b"hash":
                assert [field for field in await redis.hkeys(key) if field.startswith(b"h ")] == []


@pytest.mark.slow
async def test_a_limit_that_does_not_answer_is_asked_seldom_and_holds_no_slot_for_long(make_runtime, monkeypatch):
    """Four slots, eight queues under that limit with much to do, and one without a limit that goes on."""
    ran: Counter[Any] = Counter()
    runtime = make_runtime(concurrency=4, sweep_interval=AN_HOUR)
    for n in range(8):
        runtime.job(f"mail-{n}", limiter=Limiter(500, 0.1, name="mailbox"))(handler(ran))
    runtime.job("plain", limiter=None)(handler(ran))
    async with runtime:
        broker, asked = runtime._assembly.broker, 0
        real = broker.admit

        async def silence(*args: Any) -> Any:
            nonlocal asked
            asked += 1
            await asyncio.Event().wait()

        monkeypatch.setattr(broker, "admit", silence)
        await runtime.queue.add_bulk([(f"mail-{n}", f"{n}.{i}") for n in range(8) for i in range(20)])
        began = time.monotonic()
        while time.monotonic() - began < 6:
            done = ran.total()
            await runtime.queue.add("plain", done)
            await eventually(lambda done=done: ran.total() > done, 1.5, "the others go on")
            assert of_runtime(runtime) == []
        assert 2 <= asked <= 4, "one try, then later"
        monkeypatch.setattr(broker, "admit", real)
        await eventually(lambda: sum(times for data, times in ran.items() if isinstance(data, str)) == 160)
        await all_is_well(runtime)


@pytest.mark.parametrize("where", ["services", "check", "beat", "settings"])
async def test_a_stop_ends_a_start(server, make_runtime, monkeypatch, where):
    reached = asyncio.Event()
    left = []

    async def hang(*args: Any, **options: Any) -> Any:
        reached.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.append(where)

    runtime = make_runtime(services=hang if where == "services" else None)
    runtime.job("sync", group=True)(lambda data: None)
    if where != "services":
        monkeypatch.setattr(f"asyncjobs.broker.Broker.{where}", hang)
    start = asyncio.create_task(runtime.start())
    await asyncio.wait_for(reached.wait(), 5)
    began = time.monotonic()
    await asyncio.gather(runtime.stop(grace=0), runtime.stop(grace=0))
    await runtime.stop(grace=0)
    assert time.monotonic() - began < 5
    with pytest.raises(NotRunningError, match="stopped while it was starting"):
        await start
    assert left == [where]
    assert runtime.state == "stopped"
    monkeypatch.undo()
    if where != "services":
        async with runtime:
            await (await runtime.queue.add("sync", group_id="a")).wait(5)


# Registering -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("others", [False, True])
async def test_a_job_that_is_registered_while_it_runs_is_consumed_by_a_living_process(
    make_runtime, monkeypatch, grouped, others
):
    """Also where nothing was consumed before, and where the store does not answer just then."""
    ran: Counter[int] = Counter()
    runtime = make_runtime(sweep_interval=AN_HOUR)
    if others:
        runtime.job("other", limiter=None)(handler(ran))
    async with runtime:
        parts = runtime._assembly
        real, failures = parts.broker.listen_for_news, 0

        async def listen(*args: Any) -> None:
            nonlocal failures
            failures += 1
            if failures == 1:
                raise BrokerUnavailableError("not now")
            await real(*args)

        monkeypatch.setattr(parts.broker, "listen_for_news", listen)
        runtime.job("work", limiter=None, group=grouped, autorun=True)(handler(ran))
        await runtime.queue.add_bulk(numbered("work", grouped, range(10)))
        await eventually(lambda: len(ran) == 10)
        await eventually(lambda: failures == 2)
        assert parts.heartbeat.process in await parts.broker.living()
        await all_is_well(runtime)


# What wakes --------------------------------------------------------------------------------------------------
async def test_what_wakes_queues_is_kept_once_a_queue(runtime):
    """However often their alarms are set anew, and however often groups rest."""
    ran: Counter[int] = Counter()
    runtime.job("work", limiter=None, concurrency=5)(handler(ran, lambda: 0))
    runtime.job("sync", limiter=None, group=True, group_idle=600)(handler(ran, lambda: 0))
    seen = Watcher(runtime)
    async with runtime:
        for n in range(200):
            await runtime.queue.add("work", n, delay=60 - n / 10)
            await runtime.queue.add("sync", n, group_id="one")
            await seen("job.completed", count=n + 1)
        parts = runtime._assembly
        await eventually(lambda: len(parts.pump.alarms) <= 2, what=f"{len(parts.pump.alarms)} alarms")
        assert parts.queues.registries["sync"].resting == 1
