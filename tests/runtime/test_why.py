"""Why a job waits: each reason made true for real, and true while it is told; the command that lifts it."""

from __future__ import annotations

import asyncio
import shlex
from datetime import UTC, datetime, timedelta

import pytest

from asyncjobs import ConfigError, JobGoneError, Limiter, RateLimited
from asyncjobs.broker.keys import Keys, about_key, due_key, processes_key
from asyncjobs.operate.why import CODES, quoted, span
from tests.helpers import eventually

GROUPS = [None, "acme & söns\n'x'"]


def codes(reasons):
    return [one.code for one in reasons]


def by_code(reasons, code):
    return next(one for one in reasons if one.code == code)


def where(group):
    return {} if group is None else {"group_id": group}


def line(verb, group, more=""):
    """The command about `work`."""
    who = f"asyncjobs queues {verb} work" if group is None else f"asyncjobs groups {verb} work {quoted(group)}"
    return f"{who} {more}".strip()


class Pair:
    """A process that works, which is started when it is needed, and one that only adds and asks."""

    def __init__(self, make_runtime, group=None, **options):
        self.group, self.gate, self.ran = group, asyncio.Event(), []
        self.web, self.worker = (
            make_runtime(consume=False, schedule=False),
            make_runtime(concurrency=options.pop("slots", 1000)),
        )
        options = {"limiter": None, "lease": 1, "group": group is not None, **options}
        for one in (self.web, self.worker):
            one.job("work", **options)(self.handle)

    async def handle(self, data, job):
        self.ran.append(data)
        if isinstance(data, float):
            raise RateLimited(data)
        if data == "fails":
            raise RuntimeError("no")
        if data == "waits":
            await self.gate.wait()

    async def add(self, data="x", **options):
        return await self.web.queue.add("work", data, **where(self.group), **options)

    def controls(self):
        queue = self.web.queue
        return queue.job("work") if self.group is None else queue.group("work", self.group)

    async def __aenter__(self):
        await self.web.start()
        return self

    async def __aexit__(self, *exc_info):
        self.gate.set()


@pytest.mark.parametrize("group", GROUPS)
async def test_no_consumer_and_what_is_not_held_back(make_runtime, group):
    async with Pair(make_runtime, group) as pair:
        job = await pair.add()
        (reason,) = await job.why()
        assert (reason.code, reason.action, reason.until) == ("no_consumer", "asyncjobs run", None)
        assert reason.text == "no living process runs work"
        assert await pair.controls().why() == [reason]
        await pair.worker.start()
        await job.wait(10)
        assert await job.why() == []
        assert await pair.controls().why() == []
        running = await pair.add("waits")
        await eventually(lambda: pair.ran[-1] == "waits")
        assert await running.why() == []
        await pair.worker.drain_process(pair.worker.health()["process"])
        await eventually(lambda: pair.worker.health()["draining"])
        reason = by_code(await (await pair.add()).why(), "no_consumer")
        assert reason.text == "every process that runs work was asked to take nothing more"
        assert reason.action == f"asyncjobs processes resume {pair.worker.health()['process']}"
        pair.gate.set()


async def test_an_earlier_release_may_be_the_consumer(make_runtime, redis, prefix):
    """It does not say what it runs, so nobody can say that nobody does."""
    async with Pair(make_runtime) as pair:
        job = await pair.add()
        now = int((await redis.time())[0]) * 1000
        await redis.zadd(processes_key(prefix), {"old": now})
        await redis.zadd(due_key(prefix), {"old": now + 60_000})
        assert await job.why() == []
        await redis.zadd(due_key(prefix), {"old": now - 1})
        assert codes(await job.why()) == ["no_consumer"], "it is gone"
        await redis.zrem(processes_key(prefix), "old")


@pytest.mark.parametrize("group", GROUPS)
async def test_not_due(make_runtime, group):
    async with Pair(make_runtime, group) as pair:
        await pair.worker.start()
        job = await pair.add(delay=600)
        (reason,) = await job.why()
        assert reason.code == "not_due"
        assert abs((reason.until - datetime.now(UTC)) - timedelta(seconds=600)) < timedelta(seconds=10)
        assert reason.text.startswith("it is due in ")
        more = "" if group is None else f" --group {quoted(group)}"
        assert reason.action == f"asyncjobs jobs promote {job.id} --name work{more}"
        assert await pair.controls().why() == [reason]


@pytest.mark.parametrize("group", GROUPS)
async def test_paused(make_runtime, group):
    async with Pair(make_runtime, group) as pair:
        await pair.worker.start()
        await pair.controls().pause()
        job, later = await pair.add(), await pair.add(delay=60)
        (reason,) = await job.why()
        assert (reason.code, reason.action) == ("paused", line("resume", group))
        assert codes(await later.why()) == ["not_due", "paused"]
        assert codes(await pair.controls().why()) == ["paused"]
        await pair.controls().resume()
        await job.wait(10)


async def test_paused_with_all_its_groups(make_runtime):
    async with Pair(make_runtime, "acme") as pair:
        await pair.worker.start()
        await pair.web.queue.job("work").pause()
        job = await pair.add()
        (reason,) = await job.why()
        assert (reason.code, reason.action) == ("paused", "asyncjobs queues resume work")
        assert await pair.web.queue.job("work").why() == [reason]
        await pair.controls().pause()
        assert [one.action for one in await job.why()] == [line("resume", "acme"), "asyncjobs queues resume work"]
        await pair.web.queue.job("work").resume()
        await pair.controls().resume()
        await job.wait(10)


@pytest.mark.parametrize("group", GROUPS)
async def test_held_by_a_handler_that_was_rate_limited(make_runtime, group):
    async with Pair(make_runtime, group, concurrency=1) as pair:
        await pair.worker.start()
        first, second = await pair.add(600.0), await pair.add()
        await eventually(lambda: pair.ran)
        reasons = await eventually(lambda: _with(first, "held"))
        assert codes(reasons) == ["held"]
        assert timedelta(seconds=500) < reasons[0].until - datetime.now(UTC) < timedelta(seconds=601)
        assert reasons[0].action == line("release", group)
        assert codes(await second.why()) == ["held", "behind"]


async def _with(job, code):
    reasons = await job.why()
    return reasons if code in codes(reasons) else None


@pytest.mark.parametrize("group", GROUPS)
async def test_held_and_ordered_behind_where_jobs_keep_their_order(make_runtime, group):
    async with Pair(make_runtime, group, ordered=True, backoff=600) as pair:
        await pair.worker.start()
        first, second = await pair.add("fails"), await pair.add()
        await eventually(lambda: pair.ran)
        reasons = await eventually(lambda: _with(second, "ordered_behind"))
        assert codes(reasons) == ["behind", "ordered_behind"]
        reason = by_code(reasons, "ordered_behind")
        assert first.id in reason.text
        assert reason.action == line("release", group)
        (own,) = await first.why()
        assert (own.code, own.text.partition(" in ")[0]) == ("held", "it has failed and is tried again")
        assert codes(await pair.controls().why()) == ["held"]


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("at_run_time", [False, True])
async def test_rate_limited_and_behind(make_runtime, group, at_run_time):
    limits = [Limiter(2, 600), Limiter(1000, 3600)]
    async with Pair(make_runtime, group, limiter=None if at_run_time else limits, concurrency=5) as pair:
        if at_run_time:
            await pair.controls().set(limiter=limits)
        jobs = [await pair.add(n) for n in range(6)]
        await pair.worker.start()
        await eventually(lambda: len(pair.ran) == 2)
        reasons = await eventually(lambda: _with(jobs[2], "rate_limited"))
        assert codes(reasons) == ["rate_limited"]
        assert reasons[0].text.startswith("2 per 600 s; the next token is back in ")
        assert reasons[0].action == line("set", group, "--limit 10/600 --limit 1000/3600")
        assert timedelta(seconds=500) < reasons[0].until - datetime.now(UTC) < timedelta(seconds=620)
        reasons = await jobs[5].why()
        assert codes(reasons) == ["rate_limited", "behind"]
        assert reasons[1].text.startswith("3 jobs of work")
        assert "at 2 per 600 s it starts in about 15 min" in reasons[1].text
        assert codes(await pair.controls().why()) == ["rate_limited"]
        await pair.controls().set(limiter=None)
        await asyncio.gather(*(job.wait(10) for job in jobs))
        assert await jobs[5].why() == []


async def test_what_was_set_for_all_groups_counts_and_a_group_s_own_goes_before(make_runtime):
    async with Pair(make_runtime, "acme") as pair:
        await pair.web.queue.job("work").set(limiter=Limiter(1, 600))
        first, second = await pair.add(), await pair.add()
        await pair.worker.start()
        await first.wait(10)
        assert codes(await eventually(lambda: _with(second, "rate_limited"))) == ["rate_limited"]
        await pair.controls().set(limiter=Limiter(5, 600))
        await second.wait(10)
        assert await second.why() == []


@pytest.mark.parametrize("how", ["limiter", "concurrency"])
async def test_total_limit(make_runtime, how):
    options = {"total_limiter": Limiter(1, 600)} if how == "limiter" else {"total_concurrency": 1}
    async with Pair(make_runtime, "acme", **options) as pair:
        await pair.worker.start()
        await pair.web.queue.add("work", "waits", group_id="other")
        await eventually(lambda: pair.ran)
        job = await pair.add()
        (reason,) = await eventually(lambda: _with(job, "total_limit"))
        assert reason.action == "asyncjobs limits"
        assert (reason.until is None) == (how == "concurrency")
        text = "1 per 600 s over all groups of work" if how == "limiter" else "1 of 1 run over all"
        assert reason.text.startswith(text)
        assert codes(await pair.web.queue.job("work").why()) == ["total_limit"]
        pair.gate.set()


@pytest.mark.parametrize("registered", [True, False])
async def test_named_limit(make_runtime, registered):
    """From a process that has not registered the name as well: the store has what others know of it."""
    shared = Limiter(1, 600, name="mailgun")
    async with Pair(make_runtime, limiter=shared) as pair:
        pair.worker.job("other", limiter=shared)(lambda data: None)
        await pair.worker.start()
        await (await pair.worker.queue.add("other")).wait(10)
        job = await pair.add()
        await eventually(lambda: _with(job, "named_limit"))
        if not registered:
            stranger = make_runtime(consume=False, schedule=False)
            await stranger.start()
            (job,) = await stranger.queue.find(job.id)
        (reason,) = await job.why()
        assert (reason.code, reason.action) == ("named_limit", "asyncjobs limits")
        assert "share 'mailgun'; the next token is back in" in reason.text


@pytest.mark.parametrize("group", GROUPS)
async def test_concurrency_full(make_runtime, group):
    async with Pair(make_runtime, group, concurrency=2) as pair:
        running = [await pair.add("waits") for _ in range(2)]
        await pair.worker.start()
        await eventually(lambda: len(pair.ran) == 2)
        job = await pair.add()
        (reason,) = await job.why()
        assert reason.code == "concurrency_full"
        assert reason.text.startswith("2 of 2 of work")
        assert all(one.id in reason.text for one in running)
        assert reason.action == line("set", group, "--concurrency 4")
        assert await pair.controls().why() == [reason]
        await pair.controls().set(concurrency=3)
        await job.wait(10)
        pair.gate.set()


async def test_slots_busy(make_runtime):
    async with Pair(make_runtime, slots=2, concurrency=None) as pair:
        for _ in range(2):
            await pair.add("waits")
        await pair.worker.start()
        await eventually(lambda: len(pair.ran) == 2)
        job = await pair.add()
        (reason,) = await eventually(lambda: _with(job, "slots_busy"))
        assert reason.text.startswith("all 2 slots of one process were in use at the last heartbeat, at most ")
        assert reason.action == "asyncjobs run"
        pair.gate.set()
        await job.wait(10)


@pytest.mark.parametrize("group", GROUPS)
async def test_suspect(make_runtime, redis, prefix, group):
    """Two jobs whose process died twice: one runs, the other waits for its turn beside it, and is put aside then."""
    async with Pair(make_runtime, group, concurrency=2) as pair:
        jobs = [await pair.add("waits") for _ in range(2)]
        keys = Keys(prefix, "work", group)
        for job in jobs:
            await redis.hset(keys.job(job.id), "s", "2")
        await pair.worker.start()
        await eventually(lambda: len(pair.ran) == 1)
        reasons = await eventually(lambda: _either(jobs, "suspect"))
        assert by_code(reasons, "suspect").text.startswith("its process died 2 times")
        reasons = await eventually(lambda: _either(jobs, "not_due"))
        assert codes(reasons) == ["not_due", "suspect"]
        assert by_code(reasons, "suspect").until == by_code(reasons, "not_due").until
        pair.gate.set()
        await asyncio.gather(*(job.wait(20) for job in jobs))


async def _either(jobs, code):
    for job in jobs:
        if reasons := await _with(job, code):
            return reasons
    return None


async def test_store_away(own_server, make_runtime):
    web = make_runtime(own_server.url, consume=False, schedule=False, connect_timeout=0.5)
    web.job("work")(lambda data: None)
    async with web:
        job = await web.queue.add("work")
        own_server.kill()
        (reason,) = await job.why()
        assert (reason.code, reason.action) == ("store_away", "asyncjobs health")
        own_server.start()


async def test_every_code_is_told_in_its_order_but_that_of_what_is_to_come(make_runtime):
    assert len(CODES) == len(set(CODES)) == 14
    async with Pair(make_runtime, "acme", limiter=Limiter(1, 600)) as pair:
        first = await pair.add()
        await pair.worker.start()
        await first.wait(10)
        await pair.worker.stop()
        await pair.web.queue.job("work").pause()
        await pair.add()
        job = await pair.add()
        found = codes(await job.why())
        assert found == ["paused", "rate_limited", "no_consumer", "behind"]
        assert sorted(found, key=CODES.index) == found


@pytest.mark.parametrize("group", GROUPS)
async def test_at_most_three_round_trips(make_runtime, monkeypatch, group):
    async with Pair(make_runtime, group) as pair:
        job = await pair.add()
        await job.why()  # the scripts are known from now on
        broker, asked = pair.web._assembly.broker, []
        ask = broker._ask

        async def counted(command, *args, **options):
            if ":m:" not in str(command):  # figures of the past are kept by a loop of their own
                asked.append(command)
            return await ask(command, *args, **options)

        monkeypatch.setattr(broker, "_ask", counted)
        for why in (job.why, pair.controls().why, pair.web.queue.job("work").why):
            asked.clear()
            assert codes(await why()) == ["no_consumer"]
            assert 1 <= len(asked) <= 3


@pytest.mark.parametrize("group", GROUPS)
async def test_the_place_of_a_job_is_counted_and_bounded(make_runtime, redis, prefix, group):
    async with Pair(make_runtime, group) as pair:
        jobs = await pair.web.queue.add_bulk([("work", n, where(group)) for n in range(3_500)])

        async def behind(n):
            return by_code(await jobs[n].why(), "behind").text

        assert (await behind(1)).startswith("1 job of work")
        assert (await behind(900)).startswith("900 jobs of work")
        assert (await behind(1_800)).startswith("more than 1,000 jobs of work"), "neither end is near"
        assert (await behind(2_600)).startswith("2,600 jobs of work"), "counted from the last"
        assert (await behind(3_499)).startswith("3,499 jobs of work")
        assert codes(await jobs[0].why()) == ["no_consumer"]
        # One that an earlier release has added says not where it stands.
        await redis.hdel(Keys(prefix, "work", group).job(jobs[3].id), "i")
        assert (await behind(3)).startswith("3 jobs of work")


async def test_what_is_gone_or_stands_before_its_turn(make_runtime, redis, prefix):
    async with Pair(make_runtime) as pair:
        job = await pair.add()
        await redis.delete(Keys(prefix, "work").job(job.id))
        with pytest.raises(JobGoneError, match=job.id):
            await job.why()
        due = await pair.add(delay=0.05)
        reasons = await eventually(lambda: _without(due, "not_due"))
        assert codes(reasons) == ["no_consumer", "behind"]


async def _without(job, code):
    reasons = await job.why()
    return reasons if code not in codes(reasons) else None


async def test_a_thousand_processes_are_looked_at_in_a_moment(make_runtime, redis, prefix):
    async with Pair(make_runtime) as pair:
        job = await pair.add()
        now = int((await redis.time())[0]) * 1000
        names = {f"p{n}": now + 60_000 for n in range(1000)}
        await redis.zadd(processes_key(prefix), dict.fromkeys(names, now))
        await redis.zadd(due_key(prefix), names)
        said = '{"jobs":["' + '","'.join(f"job-{n}" for n in range(100)) + '","worker"],"tasks":["work"]}'
        await redis.hset(about_key(prefix), mapping={f"{name} names": said for name in names})
        assert codes(await job.why()) == ["no_consumer"], "one of another name, and a task of that name"
        await redis.hset(about_key(prefix), "p7 names", '{"jobs":["work"],"tasks":[]}')
        assert await job.why() == []
        await redis.delete(processes_key(prefix), due_key(prefix), about_key(prefix))


def test_what_is_typed_is_one_argument():
    for text in ("plain", "two words", "it's", "a\nb", "$(rm -rf /)", "söns", "", "\x1b[2J", "back\\slash", "'\n\\'"):
        shown = quoted(text)
        assert shown.isprintable()
        if text.isprintable():
            assert shlex.split(shown) == [text]


def test_spans_in_words():
    said = [
        span(one) for one in (0, 0.0004, 0.05, 0.62, 1, 12.34, 60, 211, 3599.9, 3600, 8520, 90000, 86399, 59.99, -5)
    ]
    assert said == [
        "1 ms", "1 ms", "50 ms", "0.6 s", "1 s", "12.3 s", "1 min", "3 min 31 s", "1 h", "1 h", "2 h 22 min", "1 d 1 h",
        "1 d", "1 min", "1 ms",
    ]  # fmt: skip


# Preview -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("group", GROUPS)
async def test_a_preview_says_how_long_a_backlog_drains(make_runtime, group):
    async with Pair(make_runtime, group, limiter=Limiter(2, 1)) as pair:
        await pair.web.queue.add_bulk([("work", n, where(group)) for n in range(200)])
        before = await pair.controls().info()
        found = await pair.controls().preview(limiter=Limiter(20, 1))
        assert (found.waiting, found.active, found.now.rate, found.then.rate) == (200, 0, 2.0, 20.0)
        assert str(found).startswith("2/1 s, ")
        slower = await pair.controls().preview(limiter=Limiter(1, 60))
        assert slower.then.rate == pytest.approx(1 / 60)
        assert await pair.controls().info() == before, "nothing was set"


async def test_a_preview_knows_when_a_backlog_grows(make_runtime, redis, prefix):
    async with Pair(make_runtime, limiter=Limiter(2, 1)) as pair:
        now = int((await redis.time())[0]) * 1000
        stream = Keys(prefix, "work").stream
        for n in range(100):  # ten a second, for ten seconds
            await redis.xadd(stream, {"j": f"{n}"}, id=f"{now - 10_000 + n * 100}-1")
        await redis.xgroup_create(stream, "w", "0")
        found = await pair.controls().preview(limiter=Limiter(20, 1))
        assert 5 < found.arriving < 12
        assert found.now.grows_by > 100
        assert found.now.drains_in is None
        assert found.then.grows_by == 0
        assert 5 < found.then.drains_in < 30
        assert ", now grow by " in str(found)
        await redis.delete(stream)


async def test_what_came_at_once_is_no_rate(make_runtime, redis, prefix):
    async with Pair(make_runtime, limiter=Limiter(2, 1)) as pair:
        now, stream = int((await redis.time())[0]) * 1000, Keys(prefix, "work").stream
        await pair.add()
        assert (await pair.controls().preview(limiter=None)).arriving is None, "a moment tells nothing"
        await redis.delete(stream)
        for n in range(500):
            await redis.xadd(stream, {"j": f"{n}"}, id=f"{now - 30_000}-{n}")
        found = await pair.controls().preview(limiter=Limiter(20, 1))
        assert (found.arriving, found.then.drains_in) == (0.0, 25.0)
        assert str(found).endswith("500 drain in 25 s, now in 4 min 10 s (nothing arriving)")
        await redis.delete(stream)


async def test_a_preview_counts_slots_by_how_long_jobs_run(make_runtime, redis, prefix):
    async with Pair(make_runtime, "acme", concurrency=2) as pair:
        keys = Keys(prefix, "work", "acme")
        for n in range(10):  # half a second each
            await redis.zadd(keys.completed, {f"done{n}": 1_000_500})
            await redis.hset(keys.job(f"done{n}"), mapping={"d": "1", "x": "c", "u": "1000000", "F": "1000500"})
        await pair.add()
        found = await pair.controls().preview(concurrency=8)
        assert (found.run_time, found.now.rate, found.then.rate) == (0.5, 4.0, 16.0)
        for n in range(10):
            await redis.delete(keys.job(f"done{n}"))
        await redis.delete(keys.completed)


async def test_a_preview_of_what_cannot_be_is_refused(make_runtime):
    async with Pair(make_runtime, "acme") as pair:
        controls = pair.controls()
        with pytest.raises(ConfigError, match="given nothing"):
            await controls.preview()
        with pytest.raises(ConfigError, match="concurrency"):
            await controls.preview(concurrency=0)
        with pytest.raises(ConfigError, match="limiter"):
            await controls.preview(limiter=7)
        with pytest.raises(ConfigError, match="preview one of them"):
            await pair.web.queue.job("work").preview(concurrency=3)
        empty = await controls.preview(concurrency=3)
        assert (empty.waiting, empty.arriving, empty.run_time) == (0, None, None)
        assert "nothing waits" in str(empty)
