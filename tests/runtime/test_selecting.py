"""Selections: which jobs they are, in which order, page by page, while jobs come and go; and what a look costs."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from redis.asyncio import RedisCluster

from asyncjobs import (
    ConfigError,
    Count,
    JobFailedError,
    JobGoneError,
    NotRunningError,
    RateLimited,
    Retention,
    RetryLater,
    UnknownJobError,
)
from asyncjobs.broker.keys import groups_key, names_key
from asyncjobs.operate import walk as walking
from tests.helpers import eventually

STATES = ("waiting", "active", "delayed", "completed", "failed")


class Stage:
    """A runtime with jobs in every state, with and without groups: `there` has (name, group) → state → ids."""

    def __init__(self, runtime) -> None:
        self.runtime, self.queue = runtime, runtime.queue
        self.gate = asyncio.Event()
        self.there: dict = {}
        runtime.job("texts")(self.handle)
        for name, options in (("plain", {}), ("other", {}), ("tenant", {"group": True})):
            runtime.job(name, attempts=1, limiter=None, concurrency=2, remove_on_complete=Retention(), **options)(
                self.handle
            )

    async def handle(self, data) -> None:
        if data["want"] == "failed":
            raise TimeoutError(f"no answer to {data['n']}")
        if data["want"] == "active":
            await self.gate.wait()

    async def fill(self, per_state: int = 3, groups: int = 3) -> None:
        queues = [("plain", None), ("other", None), *(("tenant", f"g{n}") for n in range(groups))]
        for want in ("completed", "failed", "active", "waiting", "delayed"):
            for name, group_id in queues:
                n = per_state if want != "active" else 2
                delay = 3600 if want == "delayed" else 0
                jobs = [
                    await self.queue.add(name, {"want": want, "n": i, "of": name}, group_id=group_id, delay=delay)
                    for i in range(n)
                ]
                self.there.setdefault((name, group_id), {})[want] = [one.id for one in jobs]
            if want in ("completed", "failed", "active"):
                await eventually(self.arrived)

    async def arrived(self) -> bool:
        for (name, group_id), states in self.there.items():
            counts = await self.queue.counts(name, group_id)
            if any(counts[state] != len(ids) for state, ids in states.items()):
                return False
        return True

    def ids(self, state=None, name=None, group_id=None) -> set:
        return {
            (one, where, job_id)
            for (one, where), states in self.there.items()
            for kind, ids in states.items()
            for job_id in ids
            if state in (None, kind) and name in (None, one) and group_id in (None, where)
        }


@pytest.fixture
async def stage(make_runtime):
    stage = Stage(make_runtime())
    async with stage.runtime:
        yield stage
        stage.gate.set()


def who(jobs) -> list:
    return [(job.name, job.group_id, job.id) for job in jobs]


@pytest.mark.parametrize("newest_first", [True, False])
async def test_every_state_of_every_name_and_group(stage, newest_first):
    await stage.fill()
    for state in (*STATES, None):
        for name, group_id in ((None, None), ("plain", None), ("tenant", None), ("tenant", "g1"), (None, "g2")):
            selection = stage.queue.select(name, state=state, group_id=group_id, newest_first=newest_first)
            met = [job async for job in selection]
            assert len(set(who(met))) == len(met)
            assert set(who(met)) == stage.ids(state, name, group_id), (state, name, group_id)
            assert all(state in (None, job.state) for job in met)
            assert await selection.count() == Count(len(met), True, 0)
            assert selection.looked_at == selection.of == len(met)
            paged, after = [], None
            while True:
                page = await selection.page(after, limit=4)
                paged += page.jobs
                after = page.next
                if after is None:
                    break
            assert who(paged) == who(met), "in the same order"
            slim = [job async for page in selection.pages(7, data=False) for job in page.jobs]
            assert who(slim) == who(met)
            assert all(job.data is None for job in slim)
            assert [job.added_at for job in slim] == [job.added_at for job in met]
    several = [job async for job in stage.queue.select(state=["failed", "waiting"], newest_first=newest_first)]
    assert set(who(several)) == stage.ids("failed") | stage.ids("waiting")


async def test_the_order_within_a_queue(stage, redis):
    await stage.fill(per_state=5)
    for state in ("waiting", "delayed", "completed", "failed"):
        oldest = [job.id async for job in stage.queue.select("plain", state=state, newest_first=False)]
        newest = [job.id async for job in stage.queue.select("plain", state=state)]
        assert newest == oldest[::-1]
        if state != "completed" and state != "failed":
            assert oldest == stage.there["plain", None][state]
    met = [job async for job in stage.queue.select("tenant", state="failed")]
    listing = await redis.zrange(stage.runtime._assembly.broker.queue_keys("tenant", None).failed, 0, -1, desc=True)
    assert [f"{len(job.group_id)}:{job.group_id}{job.id}".encode() for job in met] == listing, "over all groups"
    groups = [job.group_id async for job in stage.queue.select("tenant", state="waiting")]
    assert groups == sorted(groups), "one group after the other"


async def test_a_job_is_whole_as_it_is_met(stage):
    await stage.fill()
    async for job in stage.queue.select(state=STATES):
        same = await stage.queue.get_job(job.name, job.id, job.group_id)
        for field in ("data", "state", "result", "error", "attempts", "attempts_made", "added_at", "started_at",
                      "finished_at", "due_at", "progress", "logs", "stalled_count"):  # fmt: skip
            assert getattr(job, field) == getattr(same, field), field
        assert repr(job) == repr(same)
        assert job.history == same.history
    failed = [job async for job in stage.queue.select("plain", state="failed", newest_first=False)]
    assert (failed[0].tags, failed[0].copied_from, failed[0].cancelled_by) == ((), None, None)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("newest_first", [True, False])
@pytest.mark.parametrize("state", ["waiting", "delayed", "completed", "failed", "all"])
async def test_what_stays_is_met_once_while_others_come_finish_are_retried_and_trimmed(
    make_runtime, redis, state, newest_first, grouped, monkeypatch
):
    """Jobs that stay in their state from before the walk to its end, among those that go through all of them."""
    monkeypatch.setattr("asyncjobs.operate.selection.AT_ONCE", 5)
    rng = random.Random(state)
    runtime = make_runtime()
    stay = {"keep": Retention(), "let": Retention(count=10)}

    async def handle(data) -> None:
        if rng.random() < 0.4:
            raise ValueError("again")

    for name, rule in stay.items():
        runtime.job(
            name, attempts=3, backoff=0.01, limiter=None, group=grouped, remove_on_complete=rule, remove_on_fail=rule,
            concurrency=5,
        )(handle)  # fmt: skip
    adder = make_runtime(consume=False)
    adder.job("still", group=grouped)(handle)
    async with runtime, adder:
        queue = runtime.queue

        def where(n) -> dict:
            return {"group_id": f"g{n % 5}"} if grouped else {}

        for n in range(40):
            await adder.queue.add("still", {"n": n}, **where(n))
            await adder.queue.add("still", {"n": n}, delay=3600, **where(n))
            await queue.add("keep", {"n": n}, **where(n))
        await eventually(lambda: _settled(queue, "keep"))
        staying = {}
        for kind in ("waiting", "delayed", "completed", "failed"):
            staying[kind] = {(one.name, one.group_id, one.id) async for one in queue.select(state=kind)}
        assert len(staying["waiting"]) == len(staying["delayed"]) == 40, await queue.counts("still")
        assert len(staying["completed"]) + len(staying["failed"]) == 40
        wanted = set().union(*staying.values()) if state == "all" else staying[state]
        stop = asyncio.Event()

        async def churn() -> None:
            n = 0
            while not stop.is_set():
                n += 1
                delay = rng.choice([0, 0, 0.01, 0.05])
                await queue.add(rng.choice(["let", "keep"]), {"n": n}, delay=delay, **where(n))

        churning = asyncio.create_task(churn())
        for _ in range(3):
            met = []
            async for job in queue.select(state=None if state == "all" else state, newest_first=newest_first):
                met.append((job.name, job.group_id, job.id))
                if len(met) % 7 == 0:
                    await asyncio.sleep(0.002)  # others go on
            assert len(set(met)) == len(met), "none twice"
            assert wanted <= set(met), "none missed"
        paged, after = [], None
        while True:
            page = await queue.select(state=None if state == "all" else state, newest_first=newest_first).page(after, 9)
            paged += [(job.name, job.group_id, job.id) for job in page.jobs]
            after = page.next
            if after is None:
                break
        assert wanted <= set(paged)
        if state != "all":
            assert len(set(paged)) == len(paged)
        stop.set()
        await churning


@pytest.mark.parametrize("error", [RetryLater(3600), RateLimited(3600)])
async def test_a_job_that_was_met_running_is_not_met_again_where_it_is_put_back_to(make_runtime, monkeypatch, error):
    """Its entry, or the place where it is delayed to, tells nothing of when it came there."""
    monkeypatch.setattr("asyncjobs.operate.selection.AT_ONCE", 1)
    runtime = make_runtime()
    gate = asyncio.Event()

    async def handle(data) -> None:
        await gate.wait()
        raise error

    runtime.job("job", limiter=None, concurrency=1)(handle)
    async with runtime:
        first = await runtime.queue.add("job")
        others = [await runtime.queue.add("job"), await runtime.queue.add("job", delay=3600)]
        await eventually(lambda: _is(first, "active"))
        for newest_first in (True, False):
            search = aiter(runtime.queue.select("job", newest_first=newest_first))
            assert (await anext(search)).id == first.id
            if newest_first:
                await search.aclose()
        await runtime.queue.job("job").pause()
        gate.set()
        await eventually(lambda: _is(first, "delayed" if isinstance(error, RetryLater) else "waiting"))
        assert {job.id async for job in search} <= {one.id for one in others}


async def _settled(queue, name) -> bool:
    counts = await queue.counts(name)
    return not (counts["waiting"] + counts["active"] + counts["delayed"])


@pytest.mark.parametrize("newest_first", [True, False])
async def test_jobs_of_one_instant_are_paged_right(stage, redis, newest_first):
    """A thousand finished in the same ms, of one name and of its groups."""
    broker = stage.runtime._assembly.broker
    pipeline = redis.pipeline(transaction=False)
    at = 1_700_000_000_000
    for n in range(500):
        for name, group_id in (("plain", None), ("tenant", f"g{n % 3}")):
            keys = broker.queue_keys(name, group_id)
            pipeline.hset(keys.job(f"j{n}"), mapping={"d": f'{{"n":{n}}}', "t": at, "x": "c", "F": at, "a": 1})
            pipeline.zadd(keys.completed, {f"j{n}": at})
            if group_id is not None:
                pipeline.zadd(broker.queue_keys(name, None).completed, {f"{len(group_id)}:{group_id}j{n}": at})
    await pipeline.execute()
    for name in ("plain", "tenant"):
        selection = stage.queue.select(name, state="completed", newest_first=newest_first)
        first, after = [], None
        while True:
            page = await selection.page(after, limit=37)
            first += [job.data["n"] for job in page.jobs]
            after = page.next
            if after is None:
                break
        assert sorted(first) == list(range(500))
    got = [job.id async for job in stage.queue.select("plain", state="completed", newest_first=newest_first)]
    assert got == sorted((f"j{n}" for n in range(500)), reverse=newest_first)


async def test_a_cursor_is_another_processs_as_well(stage, make_runtime):
    """That has registered nothing; and what comes after the first page is none of the next ones."""
    await stage.fill()
    selection = stage.queue.select(state="waiting", newest_first=False)
    page = await selection.page(limit=5)
    await stage.queue.add("plain", {"want": "completed", "n": 99})
    async with make_runtime(consume=False) as other:
        rest = await other.queue.select(state="waiting", newest_first=False).page(page.next, limit=100)
        assert rest.next is None
        assert set(who(page.jobs)) | set(who(rest.jobs)) == stage.ids("waiting")
        assert not set(who(page.jobs)) & set(who(rest.jobs))
        for bad in ("", "x", "AAAA", page.next[:-3], "~" * 9000, 7):
            with pytest.raises(ConfigError, match="after="):
                await other.queue.select(state="waiting").page(bad)
        with pytest.raises(ConfigError, match="another selection"):
            await other.queue.select(state="failed").page(page.next)


async def test_text_and_keys_and_errors(stage):
    jobs = [
        {"to": "ana@example.org", "company": 7, "of": "x"},
        {"to": "bob", "company": 77, "lines": [{"sku": "a-1"}, {"sku": "b-2"}]},
        {"to": 'say "ana"', "note": "Grüße\nan alle", "company": None, "done": True},
        {"a.b": {"c": 1.5}, "when": "12:30"},
        ["plain", "list", 7],
    ]
    await stage.queue.job("texts").pause()
    ids = [(await stage.queue.add("texts", data)).id for data in jobs]

    async def found(text) -> list[int]:
        return sorted([ids.index(job.id) async for job in stage.queue.select("texts", text=text, state="waiting")])

    assert await found("ana") == [0, 2]
    assert await found('say "ana"') == [2]
    assert await found("Grüße\nan") == [2]
    assert await found("company:7") == [0]
    assert await found("to:bob") == [1]
    assert await found("to:bo") == []
    assert await found("company:null") == [2]
    assert await found("done:true") == [2]
    assert await found("lines.sku:b-2") == [1]
    assert await found("a.b.c:1.5") == [3]
    assert await found("12:30") == [3]
    assert await found("nothing") == []
    await stage.fill()
    errors = [job.data["n"] async for job in stage.queue.select("plain", error="TimeoutError")]
    assert sorted(errors) == [0, 1, 2]
    errors = [job async for job in stage.queue.select(error="no answer to 1")]
    assert {(job.name, job.group_id) for job in errors} == set(stage.there)
    assert [job async for job in stage.queue.select(error="line ")] == [], "the stack is not searched"
    both = stage.queue.select("tenant", state="failed", text="n:2", error="Timeout")
    assert {job.group_id async for job in both} == {"g0", "g1", "g2"}
    assert (both.looked_at, both.of) == (9, 9)
    assert await both.count() == Count(3, True, 9)
    assert [job async for job in stage.queue.select(tag="none-yet")] == []


async def test_instants(stage):
    await stage.fill()
    for state, instant in (
        ("completed", "finished_at"), ("failed", "finished_at"), ("active", "started_at"), ("delayed", "due_at"),
        ("waiting", "added_at"),
    ):  # fmt: skip
        jobs = [job async for job in stage.queue.select(state=state)]
        at = sorted(getattr(job, instant) for job in jobs)
        for bound in (at[0], at[len(at) // 2], at[-1]):
            for options, right in (
                ({"since": bound}, [job for job in jobs if getattr(job, instant) >= bound]),
                ({"until": bound}, [job for job in jobs if getattr(job, instant) <= bound]),
                ({"since": bound, "until": bound}, [job for job in jobs if getattr(job, instant) == bound]),
            ):
                selection = stage.queue.select(state=state, **options)
                assert who([job async for job in selection]) == who(right), (state, options)
                assert (await selection.count()).number == len(right)
                assert (await selection.count()).exact


async def test_a_count_looks_into_some_thousands_at_most(stage, monkeypatch):
    monkeypatch.setattr("asyncjobs.operate.counting.MOST_LOOKS", 20)
    monkeypatch.setattr("asyncjobs.operate.counting.LOOKS", 10)
    monkeypatch.setattr(walking, "LOOKS", 10)
    await stage.queue.job("plain").pause()
    await stage.queue.add_bulk([("plain", {"n": n}) for n in range(100)])
    assert await stage.queue.select("plain", state="waiting").count() == Count(100, True, 0)
    assert await stage.queue.select("plain", state="waiting", text="n:").count() == Count(0, False, 20)
    some = await stage.queue.select("plain", state="waiting", text='"n"').count()
    assert some == Count(20, False, 20)
    since = datetime.now(UTC) - timedelta(hours=1)
    assert await stage.queue.select("plain", state="waiting", since=since).count() == Count(20, False, 20)


async def test_a_search_leaves_the_store_to_others_and_can_be_stopped(stage, monkeypatch):
    monkeypatch.setattr(walking, "LOOKS", 10)
    await stage.queue.job("plain").pause()
    await stage.queue.add_bulk([("plain", {"n": n}) for n in range(100)])
    slept: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds, *args):
        slept.append(seconds)
        await sleep(0)

    monkeypatch.setattr("asyncjobs.operate.selection.asyncio.sleep", note)
    selection = stage.queue.select("plain", state="waiting", text='"n"')
    search = aiter(selection)
    assert search.of is None
    first = await anext(search)
    assert first.data["n"] == 99, "what is found comes at once"
    assert (search.looked_at, search.of) == (10, 100) == (selection.looked_at, selection.of)
    await search.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(search)
    assert search.looked_at == 10
    slept.clear()
    assert len([job async for job in selection]) == 100
    assert len([one for one in slept if one > 0]) >= 10, "a pause for each step"


async def test_a_page_of_large_payloads_travels_in_parts(make_runtime):
    runtime = make_runtime(consume=False)
    for name, grouped in (("large", False), ("tenant", True)):
        runtime.job(name, group=grouped)(lambda data: None)
    async with runtime:
        for n in range(8):
            await runtime.queue.add("large", {"n": n, "text": "x" * 1_000_000})
            await runtime.queue.add("tenant", {"n": n, "text": "x" * 1_000_000}, group_id=f"g{n}")
        largest = 0
        broker = runtime._assembly.broker
        real = broker.page

        async def page(*args, **options):
            nonlocal largest
            piece = await real(*args, **options)
            largest = max(largest, sum(len(value) for row in piece.rows for value in row.fields))
            return piece

        broker.page = page
        for name in ("large", "tenant"):
            met = [job.data["n"] async for job in runtime.queue.select(name, newest_first=False)]
            assert met == list(range(8)), name
            first = await runtime.queue.select(name).page(limit=8)
            assert 1 <= len(first.jobs) <= 8
        assert largest < 2.5 * 1024 * 1024


async def test_names_outlive_their_files(make_runtime):
    before = make_runtime()
    before.job("gone", group=True, remove_on_complete=Retention(count=7))(lambda data: data["n"])
    before.job("plain", attempts=3)(lambda data: data["n"])
    async with before:
        done = await before.queue.add("gone", {"n": 1}, group_id="acme")
        await done.wait(10)
        later = await before.queue.add("gone", {"n": 2}, group_id="acme", delay=3600)
        await before.queue.add("plain", {"n": 3}, delay=3600)
    async with make_runtime(consume=False) as other:
        assert other.queue.names == ()
        names = await other.queue.all_names()
        assert list(names) == ["gone", "plain"]
        assert (names["gone"]["completed"], names["gone"]["delayed"], names["plain"]["delayed"]) == (1, 1, 1)
        met = [job async for job in other.queue.select("gone")]
        assert who(met) == [("gone", "acme", later.id), ("gone", "acme", done.id)]
        assert [job.data["n"] for job in met] == [2, 1]
        assert met[1].result == 1
        assert await met[1].wait(5) == 1
        assert [job.data["n"] async for job in other.queue.select("gone", group_id="acme", state="completed")] == [1]
        assert who(await other.queue.find(done.id)) == [("gone", "acme", done.id)]
        with pytest.raises(UnknownJobError, match="did you mean 'gone'"):
            await other.queue.select("gonne").page()


async def test_what_the_store_is_told_of_a_name_and_what_another_release_has_told(make_runtime, redis, prefix):
    runtime = make_runtime()
    runtime.job("job", group=True, attempts=7, remove_on_fail=False)(lambda data: None)
    await redis.hset(names_key(prefix), mapping={"older": '{"grouped":true}', "odd": "\xff{", "newer": '{"grouped":9}'})
    async with runtime:
        await runtime.queue.announce()
        told = msgspec.json.decode(await redis.hget(names_key(prefix), "job"))
        assert (told["grouped"], told["attempts"]) == (True, 7)
        assert b'"grouped":true' in await redis.hget(names_key(prefix), "job"), "what earlier releases look for"
        assert set(await runtime.queue.all_names()) == {"job", "newer", "odd", "older"}
        assert (await runtime.queue.select().page()).jobs == []
        runtime.job("late")(lambda data: None)
        await eventually(lambda: redis.hexists(names_key(prefix), "late"))


async def test_find(make_runtime, redis):
    runtime = make_runtime()
    runtime.job("plain")(lambda data: data)
    runtime.job("tenant", group=True, group_idle=0.05)(lambda data: data)
    reaped = []
    runtime.on("group.reaped", reaped.append)
    odd = "a*b?[c]^-\\d:é\n"
    async with runtime:
        assert await runtime.queue.find("none") == []
        for job_id in ("same", odd):
            await (await runtime.queue.add("plain", 1, job_id=job_id)).wait(5)
            for group_id in ("g1", "g:2"):
                await (await runtime.queue.add("tenant", 2, group_id=group_id, job_id=job_id)).wait(5)
        await runtime.queue.add("tenant", 3, group_id="g3", job_id="same", delay=3600)
        await eventually(lambda: len(reaped) >= 2)
        found = await runtime.queue.find("same")
        assert sorted((job.name, job.group_id or "", job.state) for job in found) == [
            ("plain", "", "completed"), ("tenant", "g1", "completed"), ("tenant", "g3", "delayed"),
            ("tenant", "g:2", "completed"),
        ]  # fmt: skip
        assert sorted(job.group_id or "" for job in await runtime.queue.find(odd)) == ["", "g1", "g:2"]
        assert all("\n" not in repr(job) for job in await runtime.queue.find(odd))
        for bad in ("", 7, None, "x" * 600):
            with pytest.raises(ConfigError, match="job_id"):
                await runtime.queue.find(bad)


async def test_refresh_and_wait_bring_a_job_up_to_date(make_runtime, redis):
    runtime = make_runtime()
    gate = asyncio.Event()

    @runtime.job("job", attempts=1)
    async def handle(data, job):
        await gate.wait()
        await job.update_progress(0.5)
        if data == "bad":
            raise ValueError("no")
        return [data]

    runtime.job("gone", remove_on_complete=True)(lambda data: data)
    async with runtime:
        job, bad = await runtime.queue.add("job", "good"), await runtime.queue.add("job", "bad")
        assert job.state == "waiting"
        await eventually(lambda: _is(job, "active"))
        assert await job.refresh() is job
        gate.set()
        assert await job.wait(10) == ["good"]
        same = await runtime.queue.get_job("job", job.id)
        assert (job.state, job.result, job.finished_at, job.progress) == ("completed", ["good"], same.finished_at, 0.5)
        with pytest.raises(JobFailedError):
            await bad.wait(10)
        assert bad.state == "failed"
        assert bad.error[-1].text == "ValueError: no"
        assert bad.finished_at is not None
        gone = await runtime.queue.add("gone", {"n": 1})
        assert await gone.wait(10) == {"n": 1}
        assert (gone.state, gone.result) == ("completed", {"n": 1})
        assert gone.finished_at is not None
        await redis.delete(gone._keys.job(gone.id))
        with pytest.raises(JobGoneError, match=f"gone {gone.id} is gone"):
            await gone.refresh()


async def _is(job, state) -> bool:
    return (await job.refresh()).state == state


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"state": "done"}, "state='done'"), ({"state": []}, r"state=\[\]"), ({"state": 7}, "state=7"),
        ({"state": ["failed", None]}, "state=None"), ({"text": ""}, "text=''"), ({"text": 7}, "text=7"),
        ({"text": "x" * 2000}, "text="), ({"error": "\ud800"}, "surrogate"), ({"since": 5}, "since=5"),
        ({"since": datetime(2026, 1, 1)}, "timezone-aware"),
        ({"since": datetime(2026, 2, 1, tzinfo=UTC), "until": datetime(2026, 1, 1, tzinfo=UTC)}, "nothing can"),
        ({"newest_first": 1}, "newest_first=1"), ({"group_id": ""}, "group_id=''"), ({"group_id": "x" * 600}, "group"),
        ({"name": "a b"}, "job name 'a b'"), ({"name": "plain", "group_id": "g"}, "plain has no groups"),
    ],
)  # fmt: skip
async def test_what_cannot_be_is_refused_before_anything_is_asked(stage, options, text):
    with pytest.raises(ConfigError, match=text):
        stage.queue.select(**options)


async def test_bounds_of_a_page(stage):
    for limit in (0, 1001, "5", None, 1.5):
        with pytest.raises(ConfigError, match="limit="):
            await stage.queue.select().page(limit=limit)


async def test_hostile_ids_groups_and_keys(stage, redis, make_runtime):
    """Nothing of it ends an iteration."""
    ids = ["4:acme", "a\nb", "ü" * 100, "{x}", "*", "0", "'; --", "%"]
    groups = ["a:b", "{}", "g\n", "é", "../../x", "%2F", "x" * 300, "1:1"]
    await stage.fill()
    right = stage.ids()
    for n, (one, group_id) in enumerate(zip(ids, groups, strict=True)):
        await stage.queue.add("plain", {"want": "completed", "n": n}, job_id=one, delay=3600)
        await stage.queue.add("tenant", {"want": "completed", "n": n}, job_id=one, group_id=group_id)
        right |= {("plain", None, one), ("tenant", group_id, one)}
    await eventually(lambda: _counted(stage.queue, "tenant", "completed", 9 + len(ids)))
    assert set(who([job async for job in stage.queue.select()])) == right
    broker = stage.runtime._assembly.broker
    plain, name = broker.queue_keys("plain", None), broker.queue_keys("tenant", None)
    await redis.zadd(plain.completed, {b"\xff": 1, b"no record": 2})
    await redis.zadd(name.completed, {b"\xff": 1, b"9999:x": 2, b"2:g0no record": 3, b"2:g0": 4})
    await redis.zadd(groups_key(broker.prefix, "tenant"), {b"\xff\xfe": 5})
    assert set(who([job async for job in stage.queue.select()])) == right
    await redis.set(broker.queue_keys("other", None).failed, "mine")
    page = await stage.queue.select("other", state="failed").page()
    assert page.jobs == []
    assert "not readable" in page.scope
    assert "failed jobs of other" in page.scope
    left = set(who([job async for job in stage.queue.select()]))
    assert left == right - stage.ids("failed", "other")
    await redis.set(broker.queue_keys("tenant", "g1").delayed, "mine")
    page = await stage.queue.select("tenant", state="delayed").page()
    assert set(who(page.jobs)) == stage.ids("delayed", "tenant") - stage.ids("delayed", "tenant", "g1")
    assert "delayed jobs of tenant of 'g1'" in page.scope
    await redis.delete(broker.queue_keys("tenant", "g1").delayed, broker.queue_keys("other", None).failed)


async def _counted(queue, name, state, number) -> bool:
    return (await queue.counts(name))[state] == number


async def test_a_stopped_runtime_is_told_when_it_is_asked(make_runtime):
    runtime = make_runtime()
    runtime.job("job")(lambda data: None)
    selection = runtime.queue.select("job")
    with pytest.raises(NotRunningError):
        await selection.page()
    async with runtime:
        assert (await selection.page()).jobs == []
    with pytest.raises(NotRunningError):
        await anext(aiter(selection))


async def test_a_sync_handler_selects_as_well(make_runtime):
    runtime = make_runtime()
    seen = []

    @runtime.job("job")
    def handle(data, queue):
        for job in queue.select("other", state="delayed"):
            job.refresh()
            seen.append(job.data)
        page = queue.select("other").page(limit=2)
        seen.append(len(page.jobs))
        seen.append(queue.select("other").count().number)

    runtime.job("other")(lambda data: None)
    async with runtime:
        for n in range(3):
            await runtime.queue.add("other", n, delay=3600)
        await (await runtime.queue.add("job")).wait(10)
    assert seen == [2, 1, 0, 2, 3]


async def test_a_page_takes_few_round_trips(make_runtime, redis, prefix):
    """With some hundred groups, of which few hold a job, and with many names."""
    runtime = make_runtime(consume=False)
    runtime.job("tenant", group=True)(lambda data: None)
    for n in range(30):
        runtime.job(f"plain-{n}")(lambda data: None)
    async with runtime:
        for n in range(30):
            await runtime.queue.add(f"plain-{n}", n)
            await runtime.queue.add("tenant", n, group_id=f"full-{n:03}")
        # The groups of a Cluster lie in slots of their own, so each is asked by itself, fifty in a trip.
        in_cluster = isinstance(redis, RedisCluster)
        empty = 100 if in_cluster else 900
        await redis.zadd(groups_key(prefix, "tenant"), {f"empty-{n:04}": 1 for n in range(empty)})
        connection = runtime._assembly.broker._misc
        real, trips = connection.run, 0

        async def run(commands, needs=()):
            nonlocal trips
            trips += any(command[0] != "PING" for command in commands)
            return await real(commands, needs)

        connection.run = run
        for name, state, limit, expected, of in (
            ("tenant", "waiting", 50, 30, 30), ("tenant", "waiting", 7, 7, 30), (None, "waiting", 50, 50, 60),
            (None, None, 60, 30, 60), ("plain-1", None, 50, 1, 1),
        ):  # fmt: skip
            trips = 0
            page = await runtime.queue.select(name, state=state).page(limit=limit)
            assert len(page.jobs) == min(limit, expected), (name, state)
            assert (page.next is None) == (len(page.jobs) == of)
            assert trips <= (6 if not in_cluster else 6 + 2 * (empty + 31) / 50), (name, state)
