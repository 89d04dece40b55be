"""Rules that are said once and hold everywhere: one limit a name, what is kept, what is held, and order."""

from __future__ import annotations

import asyncio
import time

import pytest

from asyncjobs import (
    Backoff,
    ConfigError,
    Limiter,
    LoadError,
    RateLimited,
    Retention,
    RetryLater,
    Runtime,
    WorkerOptions,
)
from asyncjobs.broker.keys import index_keys, index_member
from tests.helpers import Watcher, eventually, write

# One limit a name -----------------------------------------------------------------------------------------
JOB = """
from asyncjobs import Limiter, WorkerOptions
worker_options = WorkerOptions(limiter={limiter})
async def handle(data): ...
"""
SAME = ['Limiter(5, 1, name="api")', '[Limiter(5, 1.0, name="api"), Limiter(1, 9)]', '{"max": 5, "name": "api"}']
OTHER = ['Limiter(6, 1, name="api")', 'Limiter(5, 2, name="api")', '[Limiter(1, 9), Limiter(5, 3, name="api")]']


def files(tmp_path, **limiters: str):
    return write(tmp_path, {f"jobs/{name}.py": JOB.format(limiter=one) for name, one in limiters.items()}) / "jobs"


@pytest.mark.parametrize("other", OTHER)
async def test_two_files_that_give_one_limiter_two_limits(tmp_path, other):
    runtime = Runtime(jobs=files(tmp_path, first=SAME[0], between="None", second=other))
    with pytest.raises(
        LoadError, match=r"limiter 'api' is .*job 'second'.*job 'first'.*a name has one limit"
    ) as caught:
        await runtime.load()
    assert [one.path.rpartition("/")[2] for one in caught.value.complaints] == ["second.py"]


@pytest.mark.parametrize("other", OTHER)
async def test_a_file_and_code_that_give_one_limiter_two_limits(tmp_path, other):
    runtime = Runtime(jobs=files(tmp_path, second=other))
    runtime.job("first", limiter=Limiter(5, 1, name="api"))(lambda data: None)
    with pytest.raises(LoadError, match=r"job 'second' .*job 'first' \(in code\)"):
        await runtime.load()


@pytest.mark.parametrize("when", ["before", "running", "loaded"])
async def test_code_that_gives_one_limiter_two_limits(make_runtime, tmp_path, when):
    runtime = make_runtime(jobs=files(tmp_path, filed='Limiter(9, 1, name="filed")'))
    runtime.job("first", limiter=Limiter(5, 1, name="api"), group=True)(lambda data: None)
    if when == "running":
        await runtime.start()
    elif when == "loaded":
        await runtime.load()
    for autorun in (False, True):
        with pytest.raises(ConfigError, match=r"limiter 'api' is 6 per 1 s \(api\) in job 'second' .*job 'first'"):
            runtime.job("second", limiter=Limiter(6, 1, name="api"), autorun=autorun)(lambda data: None)
    assert "second" not in runtime.queue.names
    if when != "before":
        with pytest.raises(ConfigError, match=r"job 'third' .*job 'filed'"):
            runtime.add_job("third", {"handle": lambda data: None,
                                      "worker_options": {"limiter": {"max": 8, "name": "filed"}}})  # fmt: skip
    runtime.job("second", limiter=[Limiter(5, 1, name="api"), Limiter(1, 2, name="other")])(lambda data: None)


async def test_the_same_limit_under_one_name_is_one(tmp_path):
    runtime = Runtime(jobs=files(tmp_path, a=SAME[0], b=SAME[1], c=SAME[2], d='Limiter(5, 1, name="apis")'))
    runtime.job("e", limiter=Limiter(5, 1, name="api"))(lambda data: None)
    assert len((await runtime.load()).jobs) == 5


async def test_a_lenient_load_leaves_the_later_one_out(tmp_path):
    runtime = Runtime(jobs=files(tmp_path, first=SAME[0], second=OTHER[0]), strict_load=False)
    assert [spec.name for spec in (await runtime.load()).jobs] == ["first"]


def test_one_job_names_a_limiter_once():
    runtime = Runtime()
    with pytest.raises(ConfigError, match="a name has one limit"):
        runtime.job("x", limiter=[Limiter(1, 1, name="a"), Limiter(9, 60, name="a")])(lambda data: None)


# What is kept ---------------------------------------------------------------------------------------------
def two_shapes(runtime: Runtime, **options):
    """A plain job and a grouped one; each fails if it is told to. Its adds go to two groups in turn."""

    async def handle(data):
        if data == "fail":
            raise ValueError("told to")

    runtime.job("plain", limiter=None, attempts=1, **options)(handle)
    runtime.job("tenant", limiter=None, attempts=1, group=True, **options)(handle)


async def finish(runtime: Runtime, name: str, seen: Watcher, outcome: str, job_id: str, nth: int, **own) -> None:
    group = {"group_id": "ab"[nth % 2]} if name == "tenant" else {}
    await runtime.queue.add(name, "fail" if outcome == "failed" else "", job_id=job_id, **group, **own)
    await seen(f"job.{outcome}", job_id=job_id)


async def kept_of(runtime: Runtime, name: str, ids: list[str]) -> list[str]:
    found = []
    for nth, one in enumerate(ids):
        group = {"group_id": "ab"[nth % 2]} if name == "tenant" else {}
        if await runtime.queue.get_job(name, one, **group) is not None:
            found.append(one)
    return found


NAMES = pytest.mark.parametrize("name", ["plain", "tenant"])
OUTCOMES = pytest.mark.parametrize("outcome", ["completed", "failed"])


def rule(outcome: str, value: object) -> dict[str, object]:
    return {"remove_on_complete" if outcome == "completed" else "remove_on_fail": value}


@NAMES
@OUTCOMES
@pytest.mark.parametrize("none", [True, 0, Retention(age=0), Retention(count=0, age=60)])
@pytest.mark.parametrize("own", [False, 2, Retention(age=600), Retention(age=600, count=5)])
async def test_a_name_that_keeps_none_keeps_what_one_add_wants_kept(runtime, seen, name, outcome, none, own):
    """And never removes another job than the one that finishes: not as others finish, and not by the timer."""
    two_shapes(runtime, **rule(outcome, none))
    async with runtime:
        await finish(runtime, name, seen, outcome, "kept", 0, **rule(outcome, own))
        for n in range(4):
            await finish(runtime, name, seen, outcome, f"gone{n}", n)
        await runtime._assembly.trimmer.trim_everything()
        assert await kept_of(runtime, name, ["kept"]) == ["kept"]
        assert await kept_of(runtime, name, [f"gone{n}" for n in range(4)]) == []
        assert (await runtime.queue.counts(name))[outcome] == 1


@NAMES
@OUTCOMES
async def test_a_name_that_keeps_some_loses_nothing_to_an_add_that_keeps_none(runtime, seen, name, outcome):
    two_shapes(runtime, **rule(outcome, 3))
    async with runtime:
        ids = [f"j{n}" for n in range(3)]
        for n, one in enumerate(ids):
            await finish(runtime, name, seen, outcome, one, n)
        for n in range(3):
            await finish(runtime, name, seen, outcome, f"none{n}", n, **rule(outcome, True))
        await runtime._assembly.trimmer.trim_everything()
        assert await kept_of(runtime, name, ids) == ids
        assert (await runtime.queue.counts(name))[outcome] == 3


@NAMES
@OUTCOMES
async def test_the_rule_of_one_add_decides_alone_and_over_the_whole_name(runtime, seen, name, outcome):
    two_shapes(runtime, **rule(outcome, False))
    ids = [f"j{n}" for n in range(12)]
    async with runtime:
        for n, one in enumerate(ids[:11]):
            await finish(runtime, name, seen, outcome, one, n)
        await finish(runtime, name, seen, outcome, ids[11], 11, **rule(outcome, 4))
        await eventually(lambda: _count(runtime, name, outcome, 4), what="whatever group they are of")
        assert await kept_of(runtime, name, ids) == ids[8:]
        other = "failed" if outcome == "completed" else "completed"
        await finish(runtime, name, seen, other, "other", 0)
        assert (await runtime.queue.counts(name))[other] == 1


async def _count(runtime: Runtime, name: str, state: str, count: int) -> bool:
    return (await runtime.queue.counts(name))[state] == count


@NAMES
async def test_a_wider_rule_of_one_add_is_not_narrowed_at_once(runtime, seen, name):
    two_shapes(runtime, remove_on_complete=1)
    async with runtime:
        await finish(runtime, name, seen, "completed", "a", 0)
        await finish(runtime, name, seen, "completed", "b", 1, remove_on_complete=10)
        await finish(runtime, name, seen, "completed", "c", 0, remove_on_complete=False)
        await asyncio.sleep(0.05)
        assert (await runtime.queue.counts(name))["completed"] == 3
        await finish(runtime, name, seen, "completed", "d", 1)
        await eventually(lambda: _count(runtime, name, "completed", 1), what="the name's own rule, as its job finishes")


@NAMES
async def test_a_rule_of_one_add_lets_go_of_thousands(runtime, seen, name, redis):
    """More than one script deletes."""
    two_shapes(runtime, remove_on_complete=False)
    async with runtime:
        options = [{"group_id": "ab"[n % 2]} if name == "tenant" else {} for n in range(3000)]
        await runtime.queue.add_bulk([(name, "", one) for one in options])
        await runtime.wait_idle(30)
        await finish(runtime, name, seen, "completed", "last", 0, remove_on_complete=5)
        await eventually(lambda: _count(runtime, name, "completed", 5))


async def test_a_job_that_is_listed_otherwise_than_it_has_finished_is_kept_by_its_own_rule(make_runtime, redis):
    """A settlement that is refused has listed its job already: then it stands under completed and under failed."""
    runtime = make_runtime()

    @runtime.job("tenant", limiter=None, group=True, attempts=1, remove_on_complete=1, remove_on_fail=100)
    async def tenant(data):
        if data == "fails":
            raise ValueError

    async with runtime:
        failed = await runtime.queue.add("tenant", "fails", group_id="a")
        await eventually(lambda: _count(runtime, "tenant", "failed", 1))
        completed, _, _ = index_keys(runtime.config.prefix, "tenant")
        await redis.zadd(completed, {index_member("a", failed.id): 1})
        for n in range(3):
            await runtime.queue.add("tenant", n, group_id="a")
        await eventually(lambda: _count(runtime, "tenant", "completed", 1))
        kept = await runtime.queue.get_job("tenant", failed.id, "a")
        assert kept is not None
        assert kept.state == "failed"
        assert (await runtime.queue.counts("tenant"))["failed"] == 1


# What is held ---------------------------------------------------------------------------------------------
@pytest.fixture
def held(make_runtime):
    """Two processes that work and one that only looks; the first job of each queue asks for an hour of rest."""
    runtimes = [make_runtime() for _ in range(2)] + [make_runtime(consume=False)]
    told: set[str] = set()
    ran: list[tuple[str, object]] = []

    async def handle(data, job):
        queue = job.group_id or job.name
        if queue not in told:
            told.add(queue)
            raise RateLimited(3600)
        ran.append((queue, data))

    for one in runtimes:
        one.job("plain", limiter=None, concurrency=1)(handle)
        one.job("tenant", limiter=None, group=True)(handle)
    return runtimes, ran


@pytest.mark.parametrize("verb", ["release", "clear"])
@pytest.mark.parametrize("scope", ["plain", "group", "name"])
async def test_a_hold_is_lifted_at_once_in_every_process(held, verb, scope):
    (first, second, operator), ran = held
    name = "plain" if scope == "plain" else "tenant"
    groups = [{}] if scope == "plain" else [{"group_id": one} for one in "abc"]
    async with first, second, operator:
        for group in groups:
            for n in range(3):
                await operator.queue.add(name, n, **group)

        async def all_held() -> bool:
            steered = [operator.queue.job(name) if not one else operator.queue.group(name, **one) for one in groups]
            return all([(await one.info())["held_until"] is not None for one in steered])

        await eventually(all_held)
        assert (await operator.queue.job(name).info())["held_until"] is not None
        ahead = len(ran)  # without groups two processes run two jobs, and one of them is not told to rest
        assert not ahead or scope == "plain"
        began = time.monotonic()
        lifted = groups[:1] if scope == "group" else groups
        steering = operator.queue.group("tenant", "a") if scope == "group" else operator.queue.job(name)
        for _ in range(2):
            await getattr(steering, verb)()
        await eventually(lambda: len(ran) == 3 * len(lifted), 5)
        assert time.monotonic() - began < 5
        assert (await steering.info())["held_until"] is None
        expected = "a" if scope == "group" else None
        assert all(queue == expected for queue, _ in ran) if expected else True
        for one in {queue for queue, _ in ran}:
            order = [data for queue, data in ran if queue == one]
            # Two processes share what is not grouped, each in order: only groups have one order.
            assert (sorted(order) if scope == "plain" else order) == [0, 1, 2], "in their order"
        if scope == "group":
            assert (await operator.queue.group("tenant", "b").info())["held_until"] is not None
            assert (await operator.queue.job("tenant").info())["held_until"] is not None, "of another group"
            await operator.queue.job("tenant").release()
            await eventually(lambda: len(ran) == 9, 5)


async def test_a_release_without_a_hold_changes_nothing(held):
    (first, _, operator), _ = held
    async with first, operator:
        steering = operator.queue.group("tenant", "nobody")
        await steering.set(weight=3)
        await steering.pause()
        for one in (steering, operator.queue.job("tenant"), operator.queue.job("plain")):
            await one.release()
        info = await steering.info()
        assert (info["weight"], info["paused"], info["held_until"]) == (3, True, None)


# Order ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("how", ["later", "later 0", "limited", "failure", "group of later"])
async def test_ordered_waits_for_its_head_whatever_it_waits_for(make_runtime, grouped, how):
    runtimes = [make_runtime() for _ in range(2)]
    order: list[tuple[int, int]] = []
    times: list[float] = []
    raised = {"later": RetryLater(0.2), "later 0": RetryLater(0), "limited": RateLimited(0.2),
              "failure": ValueError("not yet"), "group of later": ExceptionGroup("x", [RetryLater(0.2)])}  # fmt: skip

    async def handle(data, job):
        order.append((data, job.attempts_made))
        times.append(time.monotonic())
        if data == 1 and sum(1 for one, _ in order if one == 1) <= 2:
            raise raised[how]

    for runtime in runtimes:
        runtime.job("line", limiter=None, ordered=True, attempts=5, backoff=Backoff("fixed", 0.2), group=grouped)(
            handle
        )
    async with runtimes[0], runtimes[1]:
        group = {"group_id": "acme"} if grouped else {}
        await runtimes[0].queue.add_bulk([("line", n, group) for n in range(4)])
        await runtimes[0].wait_idle(10)
        assert (await runtimes[0].queue.counts("line"))["failed"] == 0
    assert [data for data, _ in order] == [0, 1, 1, 1, 2, 3]
    made = [attempts for data, attempts in order if data == 1]
    assert made == ([0, 1, 2] if how == "failure" else [0, 0, 0])
    assert times[2] - times[1] >= (0 if how == "later 0" else 0.19)


async def test_without_order_what_is_behind_goes_on(runtime):
    order: list[int] = []

    @runtime.job("line", limiter=None, concurrency=1)
    async def line(data):
        order.append(data)
        if data == 0 and order.count(0) == 1:
            raise RetryLater(0.2)

    async with runtime:
        await runtime.queue.add_bulk([("line", n) for n in range(3)])
        await runtime.wait_idle(5)
    assert order == [0, 1, 2, 0]


def test_the_documentation_says_so():
    assert "order" in str(RetryLater.__doc__)
    assert WorkerOptions(ordered=True).ordered
