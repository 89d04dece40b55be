"""The scripts by themselves: replies, keys left, a second call, a wrong owner, a missing key, a foreign type."""

from __future__ import annotations

import itertools

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from asyncjobs.broker import scripts
from asyncjobs.broker.keys import (
    Channels,
    Keys,
    about_key,
    draining_key,
    due_key,
    epoch_key,
    groups_key,
    index_keys,
    leases_key,
    paused_key,
    runs_key,
    skips_key,
    swept_key,
)
from tests.helpers import eventually

numbers = itertools.count(1)


class Desk:
    """Runs scripts on one queue as a process would."""

    def __init__(self, redis: Redis, prefix: str, group: str = "") -> None:
        self.redis, self.prefix = redis, prefix
        self.keys = Keys(prefix, "job", group or None)

    async def run(self, script: scripts.Script, *args: object) -> object:
        return await self.redis.eval(script.text, script.keys, *args)  # type: ignore[misc]

    async def send(self, command: tuple) -> object:
        """A command as the broker makes it."""
        return await self.run(scripts.BY_SHA[command[1]], *command[3:])

    async def add(
        self, *ids: str, kind="in", when=0, sender="me.0", number=None, named="1", data="{}", most="",
        registry="", resent=60_000,
    ):  # fmt: skip
        jobs = [field for one in ids for field in (one, kind, when, data, "", named)]
        keys = self.keys
        number = next(numbers) if number is None else number
        news = Channels(self.prefix).news("job")
        head = (keys.stream, keys.delayed, keys.senders, keys.settings, registry or keys.stream, keys.jobs)
        return (await self.run(scripts.ADD, *head, news, keys.group, sender, number, most, "", resent, *jobs))[
            1
        ].decode()

    async def work(
        self,
        *settlements,
        me="p1",
        token="t1",
        free=10,
        slots=0,
        bucket=(0, 0, 0),
        keep=(-1, -1, -1, -1),
        ahead=0,
        tell="",
        size=1 << 21,
        listing="",
        listed="",
        mark="",
    ):
        keys = self.keys
        head = (keys.stream, keys.delayed, keys.bucket, keys.completed, keys.failed, keys.settings)
        head = (*head, listing or keys.stream, keys.jobs)
        windows = f"{bucket[0]}:{bucket[1]}" if bucket[0] else ""
        channels = (Channels(self.prefix).news("job"), Channels(self.prefix).done)
        flat = [field for one in settlements for field in one]
        reply = await self.run(
            scripts.WORK,
            *head,
            *channels,
            keys.group,
            me,
            token,
            free,
            slots,
            windows,
            bucket[2],
            ahead,
            tell,
            size,
            listed,
            *keep,
            mark,
            *flat,
        )
        rows = [reply[2][i : i + 7] for i in range(0, len(reply[2]), 7)]
        return reply[0].decode(), reply[1], {row[0].decode(): row for row in rows}

    async def counts(self):
        keys = self.keys
        return await self.run(scripts.COUNT, keys.stream, keys.delayed, keys.completed, keys.failed, keys.cancelled)

    async def record(self, job_id: str) -> dict[bytes, bytes]:
        return await self.redis.hgetall(self.keys.job(job_id))


def settle(op: str, job_id: str, rows: dict, token="t1", body="", number=0, keep=""):
    return (op, job_id, rows[job_id][1], token, body, number, keep)


@pytest.fixture
def desk(redis, prefix):
    return Desk(redis, prefix)


async def test_add_then_take_then_complete_leaves_only_the_record(desk, keys_left):
    assert await desk.add("a", "b") == "11"
    assert await desk.counts() == [2, 0, 0, 0, 0]
    _, wait, rows = await desk.work()
    assert list(rows) == ["a", "b"]
    assert wait == -1
    assert await desk.counts() == [0, 2, 0, 0, 0]
    statuses, _, _ = await desk.work(settle("c", "a", rows, body="1"), settle("c", "b", rows, keep="0"))
    assert statuses == "11"
    assert await desk.counts() == [0, 0, 0, 1, 0]
    keys = desk.keys
    assert await keys_left() == sorted([keys.completed, keys.job("a"), keys.senders])
    assert await desk.redis.pttl(keys.senders) > 0


async def test_an_add_that_is_sent_again_adds_once_even_when_its_job_is_gone(desk):
    assert await desk.add("a", number=1000, named="") == "1"
    _, _, rows = await desk.work()
    await desk.work(settle("c", "a", rows, keep="0"))
    assert await desk.add("a", number=1000, named="") == "1"
    assert await desk.counts() == [0, 0, 0, 0, 0]


async def test_an_id_that_exists_in_any_state_adds_nothing(desk):
    assert await desk.add("a") == "1"
    assert await desk.add("a") == "0"
    _, _, rows = await desk.work()
    assert await desk.add("a") == "0"
    await desk.work(settle("r", "a", rows, number=60_000, keep="1"))
    assert await desk.add("a") == "0"
    assert await desk.counts() == [0, 0, 1, 0, 0]


async def test_settling_again_answers_already_and_changes_nothing(desk):
    await desk.add("a")
    _, _, rows = await desk.work()
    for op in ("c", "f", "r", "b"):
        await desk.add(op)
    _, _, more = await desk.work(token="t2")
    for op in ("c", "f", "r", "b"):
        once = settle(
            op, op, more, token="t2", body='"x"', number=5000 if op == "r" else 0, keep="1" if op == "r" else ""
        )
        assert (await desk.work(once, free=0))[0] == "1"
        before = await desk.counts()
        assert (await desk.work(once, free=0))[0] == "2"
        assert await desk.counts() == before
    assert list(rows) == ["a"]


@pytest.mark.parametrize("op", ["c", "f", "r", "b"])
async def test_a_wrong_token_is_stale_and_writes_nothing(desk, op):
    await desk.add("a")
    _, _, rows = await desk.work()
    before = await desk.record("a")
    assert (await desk.work(settle(op, "a", rows, token="zombie", keep="1"), free=0))[0] == "0"
    assert await desk.record("a") == before
    assert await desk.counts() == [0, 1, 0, 0, 0]


async def test_a_removed_job_is_gone(desk):
    await desk.add("a")
    _, _, rows = await desk.work()
    done = settle("c", "a", rows, keep="0")
    assert (await desk.work(done, free=0))[0] == "1"
    assert (await desk.work(done, free=0))[0] == "3"


async def test_a_released_job_is_back_at_the_head(desk):
    await desk.add("a", "b", "c")
    _, _, rows = await desk.work(free=1)
    await desk.work(settle("b", "a", rows), free=0)
    assert await desk.counts() == [3, 0, 0, 0, 0]
    _, _, rows = await desk.work(me="p2", token="t2", free=2)
    assert list(rows) == ["a", "b"]
    assert rows["a"][3] == b"0"


async def test_a_retry_goes_to_the_back_and_counts(desk):
    await desk.add("a", "b")
    _, _, rows = await desk.work(free=1)
    _, _, rows = await desk.work(settle("r", "a", rows, body='"e"', keep="1"), free=5, token="t2")
    assert list(rows) == ["b", "a"]
    assert rows["a"][3] == b"1"
    assert (await desk.record("a"))[b"e1"] == b'"e"'


async def test_what_is_due_is_promoted_and_the_next_due_time_told(desk):
    await desk.add("later", when=60_000)
    await desk.add("now", kind="at", when=1)
    _, wait, rows = await desk.work()
    assert list(rows) == ["now"]
    assert 59_000 < wait <= 60_000


async def test_concurrency_is_counted_over_all_processes(desk):
    await desk.add("a", "b", "c")
    _, _, rows = await desk.work(me="p1", slots=2, free=5)
    assert list(rows) == ["a", "b"]
    _, _, none = await desk.work(me="p2", slots=2, free=5, token="t2")
    assert none == {}
    _, _, rows = await desk.work(settle("c", "a", rows), me="p1", slots=2, free=5, token="t3")
    assert list(rows) == ["c"]


async def test_tokens_are_exact_and_the_wait_is_told(desk):
    await desk.add(*"abcdefgh")
    bucket = (3, 200_000, 0)
    _, wait, rows = await desk.work(bucket=bucket)
    assert list(rows) == ["a", "b", "c"]
    assert 100 < wait <= 203, "and the least margin"
    _, wait, rows = await desk.work(bucket=bucket, token="t2", me="p2")
    assert rows == {}
    assert 0 < wait <= 203
    assert 0 < await desk.redis.pttl(desk.keys.bucket) <= 204
    assert await desk.counts() == [5, 3, 0, 0, 0]


async def test_no_token_is_taken_when_nothing_is_there(desk):
    await desk.work(bucket=(3, 60_000_000, 0))
    assert await desk.redis.exists(desk.keys.bucket) == 0


async def test_a_late_start_spends_its_token_again(desk):
    await desk.add(*"abc")
    await desk.work(bucket=(2, 60_000_000, 0), free=1)
    assert await desk.run(scripts.SPEND, desk.keys.bucket, desk.keys.settings, "2:60000000", 0, "1") == 0
    _, _, rows = await desk.work(bucket=(2, 60_000_000, 0), token="t2")
    assert rows == {}


async def test_a_start_whose_token_may_be_back_waits_for_another(desk):
    for _ in range(2):
        assert await desk.run(scripts.SPEND, desk.keys.bucket, desk.keys.settings, "2:300000", 0, "") == 0
    assert 0 < await desk.run(scripts.SPEND, desk.keys.bucket, desk.keys.settings, "2:300000", 0, "") <= 300

    async def had():
        return await desk.run(scripts.SPEND, desk.keys.bucket, desk.keys.settings, "2:300000", 0, "") == 0

    await eventually(had)


async def test_a_bucket_far_in_the_future_opens_after_one_duration(desk):
    """The Redis clock was set back by an hour: the bucket must not stay closed for that long."""
    far = 10**16
    await desk.redis.rpush(desk.keys.bucket, f"{far} 2 0")
    await desk.add("a")
    _, wait, rows = await desk.work(bucket=(2, 300_000, 0))
    assert rows == {}
    assert 0 < wait <= 303


async def test_retention_is_applied_as_jobs_finish(desk):
    ids = [f"j{i}" for i in range(10)]
    await desk.add(*ids)
    _, _, rows = await desk.work()
    await desk.work(*(settle("c", one, rows) for one in ids), keep=(3, -1, -1, -1))
    assert await desk.counts() == [0, 0, 0, 3, 0]
    assert [await desk.redis.exists(desk.keys.job(one)) for one in ids] == [0] * 7 + [1] * 3


async def test_sweeping_gives_back_in_order_and_counts_a_stall(desk):
    await desk.add("a", "b", "c")
    await desk.work(me="dead", token="d1", free=2)
    keys = desk.keys
    news = Channels(desk.prefix).news("job")
    sweep = (keys.stream, keys.jobs, news, "", "dead", "p2", "s1", 1)
    assert await desk.run(scripts.SWEEP, *sweep) == [[b"a", b"b"], 0, []]
    assert await desk.run(scripts.SWEEP, *sweep) == [[], 0, []]
    _, _, rows = await desk.work(me="p2", token="t2")
    assert list(rows) == ["a", "b", "c"]
    assert [row[4] for row in rows.values()] == [b"1", b"1", b"0"]
    assert (await desk.work(settle("c", "a", rows, token="d1"), free=0))[0] == "0"


async def test_a_job_that_stalls_too_often_is_handed_to_the_sweeper(desk):
    await desk.add("a")
    keys = desk.keys
    for token in ("d1", "d2"):
        await desk.work(me="dead", token=token)
        await desk.run(scripts.NOTE, keys.job("a"), token, "begin", "", 9, "x")
        back, _, doomed = await desk.run(
            scripts.SWEEP, keys.stream, keys.jobs, Channels(desk.prefix).news("job"), "", "dead", "p2", "s" + token, 1
        )
    assert back == []
    assert [doomed[0], doomed[4]] == [b"a", b"2"]
    assert (await desk.work(("f", "a", doomed[1], "sd2", '"dead"', 0, ""), free=0, me="p2"))[0] == "1"
    assert await desk.counts() == [0, 0, 0, 0, 1]


async def test_own_lists_what_a_lost_reply_would_have_brought(desk):
    await desk.add("a", "b")
    await desk.work(me="p1", token="t9", free=1)
    following, rows = await desk.run(scripts.OWN, desk.keys.stream, desk.keys.jobs, "p1", "-", 1 << 21)
    assert (following, rows[0], rows[7]) == (b"", b"a", b"t9")
    assert await desk.run(scripts.OWN, desk.keys.stream, desk.keys.jobs, "p2", "-", 1 << 21) == [b"", []]


async def test_own_goes_on_behind_records_that_are_gone(desk):
    ids = [f"{n:03}" for n in range(503)]
    await desk.add(*ids)
    await desk.work(me="p1", free=600)
    await desk.redis.delete(desk.keys.job("001"))
    await desk.redis.delete(desk.keys.job("002"))
    await desk.redis.set(desk.keys.job("002"), "somebody else's")
    found, after = [], "-"
    while after:
        after, rows = await desk.run(scripts.OWN, desk.keys.stream, desk.keys.jobs, "p1", after, 1 << 21)
        found += [one.decode() for one in rows[::8]]
    assert found == ["000", *ids[3:]]


async def test_a_record_of_a_foreign_type_keeps_no_dead_process_from_being_swept(desk):
    await desk.add("a", "b")
    _, _, rows = await desk.work(me="dead")
    await desk.redis.delete(desk.keys.job("a"))
    await desk.redis.set(desk.keys.job("a"), "somebody else's")
    keys = desk.keys
    kept = await desk.run(
        scripts.RETAIN, keys.stream, keys.jobs, "dead", "a", rows["a"][1], "t1", "b", rows["b"][1], "t1"
    )
    assert kept == b"01"
    reply = await desk.run(scripts.SWEEP, keys.stream, keys.jobs, "news", "", "dead", "me", "t2", 5)
    assert reply == [[b"b"], 0, []]
    assert await desk.counts() == [1, 0, 0, 0, 0]


async def test_retain_moves_what_is_still_ours_to_the_new_name(desk):
    await desk.add("a", "b")
    _, _, rows = await desk.work(me="old", token="t1")
    keys = desk.keys
    tries = ("a", rows["a"][1], "t1", "b", rows["b"][1], "other")
    assert await desk.run(scripts.RETAIN, keys.stream, keys.jobs, "new", *tries) == b"10"
    assert await desk.run(scripts.OWNERS, keys.stream, 60_000) == [b"new", b"old"]
    assert (await desk.work(settle("c", "a", rows), free=0))[0] == "1"


async def test_an_idle_group_is_reaped_whole_and_a_busy_one_not(redis, prefix, keys_left):
    desk = Desk(redis, prefix, "acme")
    keys = desk.keys
    reap = (keys.stream, keys.delayed, keys.bucket, keys.settings)
    await desk.add("a")
    assert await desk.run(scripts.REAP, *reap) == [0, 0]
    _, _, rows = await desk.work(bucket=(1, 1000, 0))
    assert await desk.run(scripts.REAP, *reap) == [0, 0]
    await desk.work(settle("r", "a", rows, number=60_000, keep="1"))
    assert (await desk.run(scripts.REAP, *reap))[1] > 59_000
    await redis.zadd(keys.delayed, {"a": 1})
    _, _, rows = await desk.work(token="t2")
    await desk.work(settle("c", "a", rows, token="t2", keep="0"))

    async def reaped_whole():  # the bucket stays until its last token is back
        assert await desk.run(scripts.REAP, *reap) == [1, -1]
        return await keys_left() == [keys.senders]

    await eventually(reaped_whole)
    # Its add may still be sent again, and must be recognised then.
    assert 0 < await redis.pttl(keys.senders) <= 60_000


async def test_a_group_registered_anew_stays_registered(redis, prefix):
    desk, groups = Desk(redis, prefix, "acme"), groups_key(prefix, "job")
    await desk.run(scripts.REGISTER, groups, "acme", "umbrella")
    score, _ = await desk.run(scripts.IDLE, groups, "acme")
    await redis.zincrby(groups, 1, "acme")
    assert await desk.run(scripts.UNREGISTER, groups, "acme", score) == 0
    score, _ = await desk.run(scripts.IDLE, groups, "acme")
    assert await desk.run(scripts.UNREGISTER, groups, "acme", score) == 1
    assert await redis.zrange(groups, 0, -1) == [b"umbrella"]


async def test_the_index_says_what_is_too_many_until_it_is_forgotten(redis, prefix):
    desk = Desk(redis, prefix, "acme")
    listings = index_keys(prefix, "job")
    listed = [field for i in range(4) for field in ("acme", "c", f"4:acmej{i}")]
    bounds = (3, -1, -1, -1, -1, -1)
    over, _, now, _ = await desk.run(scripts.INDEX, groups_key(prefix, "job"), *listings, *bounds, *listed)
    assert over == [b"4:acmej0"]
    await redis.hset(desk.keys.job("j0"), mapping={"x": "c", "F": now, "d": "{}"})
    await redis.zadd(desk.keys.completed, {"j0": now})
    keys = desk.keys
    forget = (keys.jobs, keys.completed, keys.failed, keys.cancelled, 2, "j0", "never-there")
    both = (*forget, *forget)
    assert await desk.run(scripts.FORGET, keys.completed, now, "f", *both) == b"3232", "it has not failed"
    assert await desk.run(scripts.FORGET, keys.completed, now, "c", *both) == b"1222", "two groups in one call"
    assert await redis.exists(desk.keys.job("j0"), desk.keys.completed) == 0


async def test_forget_leaves_a_job_that_lives_again(desk):
    await desk.add("a")
    forget = (desk.keys.jobs, desk.keys.completed, desk.keys.failed, desk.keys.cancelled, 1, "a")
    assert await desk.run(scripts.FORGET, desk.keys.completed, 10**15, "c", *forget) == b"0"


def beat(
    prefix: str, process: str, joining: bool, draw: str = "e", lease: int = 1000, leases: str = "{}",
    about: str = "{}", names: str = "", draining: str = "",
) -> tuple:  # fmt: skip
    return scripts.BEAT(
        f"{{{prefix}}}:processes", epoch_key(prefix), due_key(prefix), leases_key(prefix), swept_key(prefix, process),
        about_key(prefix), draining_key(prefix),
        process, "1" if joining else "0", draw, lease, leases, about, names, draining,
    )  # fmt: skip


async def test_a_beat_tells_of_the_others_and_of_our_own_death(redis, prefix):
    desk, processes = Desk(redis, prefix), f"{{{prefix}}}:processes"
    gone = (processes, due_key(prefix), leases_key(prefix), about_key(prefix), draining_key(prefix))
    assert await desk.send(beat(prefix, "one", False, "first")) == [0, b"first"]
    assert await desk.send(beat(prefix, "one", True, "second", leases='{"":1000}')) == [1, b"first"]
    alive, _, other, age, leases = await desk.send(beat(prefix, "two", True))
    assert (alive, other, leases) == (1, b"one", b'{"":1000}')
    assert 0 <= age < 5000
    assert await desk.run(scripts.BURY, *gone, "one", 60_000) == 0
    assert await desk.run(scripts.BURY, *gone, "one", 0) == 1
    assert (await desk.send(beat(prefix, "one", False)))[:3] == [0, b"first", b"two"]
    for key in gone[:2]:
        assert await redis.zrange(key, 0, -1) == [b"two"]
    assert await redis.hkeys(gone[2]) == [b"two"]


async def test_an_epoch_changes_only_when_the_data_are_gone(redis, prefix):
    desk = Desk(redis, prefix)
    for draw in ("a", "b"):
        assert (await desk.send(beat(prefix, "one", True, draw)))[1] == b"a"
    await redis.delete(f"{{{prefix}}}:processes", epoch_key(prefix))
    assert (await desk.send(beat(prefix, "one", False, "c")))[:2] == [0, b"c"]


async def test_a_beat_in_the_future_counts_as_now(redis, prefix):
    """The clock was set back by an hour; the process died before it could beat again."""
    desk, processes = Desk(redis, prefix), f"{{{prefix}}}:processes"
    await desk.send(beat(prefix, "dead", True, lease=700))
    ahead = int((await redis.time())[0]) * 1000 + 3_600_000
    await redis.zadd(processes, {"dead": ahead})
    await redis.zadd(due_key(prefix), {"dead": ahead + 700})
    _, _, other, age, _ = await desk.send(beat(prefix, "one", True))
    assert (other, age) == (b"dead", 0)
    now = int((await redis.time())[0]) * 1000
    assert await redis.zscore(processes, "dead") <= now + 1000
    assert await redis.zscore(due_key(prefix), "dead") <= now + 1700


async def test_a_beat_hears_of_those_whose_lease_ends_first_among_thousands(redis, prefix):
    """An earlier release is found among them as well: it tells no lease and stands on one list alone."""
    desk, processes = Desk(redis, prefix), f"{{{prefix}}}:processes"
    now = int((await redis.time())[0]) * 1000
    living = {f"p{n}": now - n for n in range(5000)}
    await redis.zadd(processes, {**living, "short": now - 2000, "earlier": now - 60_000})
    await redis.zadd(due_key(prefix), {**{name: at + 30_000 for name, at in living.items()}, "short": now - 1000})
    reply = await desk.send(beat(prefix, "one", True))
    heard = dict(zip(reply[2::3], reply[3::3], strict=True))
    assert {b"short", b"earlier"} <= heard.keys()
    assert len(heard) <= 400


async def test_one_survivor_sweeps_and_another_goes_on_where_it_died(redis, prefix):
    desk, key = Desk(redis, prefix), swept_key(prefix, "dead")
    assert await desk.run(scripts.CLAIM, key, "mail", "a", 10_000, "") == 1
    assert await desk.run(scripts.CLAIM, key, "mail", "a", 10_000, "") == 1, "sent again"
    assert await desk.run(scripts.CLAIM, key, "mail", "b", 10_000, "") == 0
    assert await desk.run(scripts.CLAIM, key, "other", "b", 10_000, "") == 1
    assert await desk.run(scripts.CLAIM, key, "mail", "b", 0, "") == 1, "a has died too"
    assert await desk.run(scripts.CLAIM, key, "mail", "b", 10_000, "1") == 1
    assert await desk.run(scripts.CLAIM, key, "mail", "a", 0, "") == 2
    assert 0 < await redis.pttl(key) <= 3_600_000
    await desk.send(beat(prefix, "dead", True))
    assert not await redis.exists(key), "it lives, and may die again"


async def test_a_job_that_stalled_is_charged_again_only_once_its_handler_has_begun(redis, prefix):
    desk = Desk(redis, prefix)
    sweep = (desk.keys.stream, desk.keys.jobs, "news", "", "p1", "p2", "s", 9)
    await desk.add("a")
    await desk.work()
    await desk.run(scripts.SWEEP, *sweep)
    await desk.work(token="t2")
    await desk.run(scripts.SWEEP, *sweep)
    assert (await desk.record("a"))[b"s"] == b"1", "it was only waiting for its turn among the suspects"
    await desk.work(token="t3")
    assert await desk.run(scripts.NOTE, desk.keys.job("a"), "t2", "begin", "", 9, "x") == 0
    assert await desk.run(scripts.NOTE, desk.keys.job("a"), "t3", "begin", "", 9, "x") == 1
    await desk.run(scripts.SWEEP, *sweep)
    assert (await desk.record("a"))[b"s"] == b"2"


async def test_where_the_first_stall_fails_a_job_it_is_charged_only_once_its_handler_has_begun(redis, prefix):
    desk = Desk(redis, prefix)
    sweep = (desk.keys.stream, desk.keys.jobs, "news", "", "p1", "p2", "s", 0)
    await desk.add("a")
    for take in range(3):
        await desk.work(token=f"t{take}", mark="1")
        assert await desk.run(scripts.SWEEP, *sweep) == [[b"a"], 0, []], "it was only fetched"
    await desk.work(token="t3", mark="1")
    assert await desk.run(scripts.NOTE, desk.keys.job("a"), "t3", "begin", "", 9, "x") == 1
    _, _, doomed = await desk.run(scripts.SWEEP, *sweep)
    assert (doomed[0], doomed[4]) == (b"a", b"1")


async def test_the_mark_of_an_earlier_take_excuses_nothing(redis, prefix):
    """The job went back before it had begun, and a release that marks no more has taken it since."""
    desk = Desk(redis, prefix)
    await desk.add("a")
    _, _, rows = await desk.work(mark="1")
    await desk.work(settle("b", "a", rows), free=0)
    await desk.work(token="t2")
    await desk.run(scripts.SWEEP, desk.keys.stream, desk.keys.jobs, "news", "", "p1", "p2", "s", 9)
    assert (await desk.record("a"))[b"s"] == b"1"


async def test_a_record_of_a_foreign_type_is_dropped_and_its_neighbours_run(redis, prefix):
    desk = Desk(redis, prefix)
    await desk.add("a", "b", "c")
    await redis.set(desk.keys.job("b"), "not a hash")
    _, _, rows = await desk.work()
    assert sorted(rows) == ["a", "c"]
    assert (await desk.counts())[:2] == [0, 2]


@pytest.mark.parametrize("script", ["work", "spend", "reap"])
@pytest.mark.parametrize("hours", [-1, 1])
async def test_a_clock_that_jumps_leaves_between_no_token_and_all(redis, prefix, script, hours):
    """The scripts see no other clock than Redis's; here that clock jumps, by a change of their text."""

    def at(shift: int, one: scripts.Script) -> str:
        moved = f"(function() local t = redis.call('TIME') t[1] = t[1] + {shift} return t end)()"
        return one.text.replace("redis.call('TIME')", moved)

    desk = Desk(redis, prefix)
    keys = desk.keys
    await desk.add(*"abcdefgh")
    declared = (keys.stream, keys.delayed, keys.bucket, keys.completed, keys.failed, keys.settings, keys.stream)
    head = (*declared, keys.jobs, "n", "d", "")
    limits = (0, "3:1000000", 10_000, 0, "", 1 << 21, "", -1, -1, -1, -1)

    async def take(shift: int, token: str) -> tuple[int, int]:
        reply = await redis.eval(at(shift, scripts.WORK), 7, *head, "p1", token, 10, *limits)
        return len(reply[2]) // 7, reply[1]

    assert (await take(0, "t1"))[0] == 3
    jumped = hours * 3600
    if script == "spend":
        await redis.eval(at(jumped, scripts.SPEND), 2, keys.bucket, keys.settings, "3:1000000", 10_000, "1")
    elif script == "reap":
        await redis.eval(at(jumped, scripts.REAP), 4, keys.stream, keys.delayed, keys.bucket, keys.settings)
    taken, wait = await take(jumped, "t2")
    assert taken <= 3
    assert wait <= 4000, "the bucket opens after a duration or two, not after an hour"
    assert (await take(jumped + 5, "t3"))[0] + taken >= 3


MARK, DONE = '{"s":1,"p":"p1"', ',"o":"completed"'


def tick_keys(prefix: str) -> tuple[str, ...]:
    own = (f"{{{prefix}}}:{kind}" for kind in ("ticks", "running", "processes", "due", "paused"))
    return (*own, runs_key(prefix, "t"), skips_key(prefix, "t"))


async def test_a_tick_is_claimed_once_and_never_early(redis, prefix):
    desk = Desk(redis, prefix)
    keys = tick_keys(prefix)
    now = int((await redis.time())[0]) * 1000
    assert await desk.run(scripts.TICK, *keys, "poll", now, "p1", "allow", 30_000, "1", MARK) == [b"fire"]
    assert await desk.run(scripts.TICK, *keys, "poll", now, "p1", "allow", 30_000, "1", MARK) == [b"fire"], "sent again"
    assert await desk.run(scripts.TICK, *keys, "poll", now, "p2", "allow", 30_000, "1", MARK) == [b"taken"]
    assert await desk.run(scripts.TICK, *keys, "poll", now - 1000, "p2", "allow", 30_000, "1", MARK) == [b"taken"]
    early, wait = await desk.run(scripts.TICK, *keys, "poll", now + 60_000, "p2", "allow", 30_000, "1", MARK)
    assert early == b"early"
    assert 58_000 < wait <= 60_000


async def test_a_claim_in_the_future_keeps_no_tick_out(redis, prefix):
    """The store's clock was a day ahead when it was made, and was set back."""
    desk, ticks = Desk(redis, prefix), f"{{{prefix}}}:ticks"
    keys = tick_keys(prefix)
    now = int((await redis.time())[0]) * 1000
    await redis.hset(ticks, "poll", f"{now + 86_400_000} p9")
    verdict, ahead = await desk.run(scripts.TICK, *keys, "poll", now, "p1", "allow", 30_000, "1", MARK)
    assert verdict == b"fire"
    assert 86_000_000 < ahead <= 86_400_000
    assert await desk.run(scripts.TICK, *keys, "poll", now, "p2", "allow", 30_000, "1", MARK) == [b"taken"]


async def test_a_tick_does_not_overlap_a_living_run_and_ignores_a_dead_one(redis, prefix):
    desk = Desk(redis, prefix)
    running = f"{{{prefix}}}:running"
    now = int((await redis.time())[0]) * 1000
    await desk.send(beat(prefix, "p1", True, lease=60_000))
    keys = tick_keys(prefix)
    end = (running, paused_key(prefix), runs_key(prefix, "t"), skips_key(prefix, "t"), "t")
    assert await desk.run(scripts.TICK, *keys, "t", now - 3000, "p1", "queue", 30_000, "1", MARK) == [b"fire"]
    assert await desk.run(scripts.TICK, *keys, "t", now - 2000, "p2", "skip", 30_000, "1", MARK) == [b"overlap"]
    assert await desk.run(scripts.TICK, *keys, "t", now - 2000, "p2", "skip", 30_000, "1", MARK) == [b"taken"]
    assert await desk.run(scripts.TICK, *keys, "t", now - 1000, "p2", "queue", 30_000, "1", MARK) == [b"queued"]
    assert await desk.run(scripts.END_RUN, *end, "p2", "1", "", DONE) == b""
    for _ in range(2):  # sent again
        handed = await desk.run(scripts.END_RUN, *end, "p1", "1", MARK, DONE)
        assert handed == str(now - 1000).encode()
    assert await desk.run(scripts.END_RUN, *end, "p1", "1", f'{{"s":{now - 1000},"p":"p1"', DONE) == b""
    assert not await redis.hgetall(running)
    await redis.hset(running, "t", "p1")
    over = (*keys, "t", now - 500, "p1", "skip", 30_000, "0", MARK)
    assert await desk.run(scripts.TICK, *over) == [b"fire"], "its own process knows that the run is over"
    await redis.hset(running, "t", "dead")
    assert await desk.run(scripts.TICK, *keys, "t", now, "p2", "skip", 30_000, "1", MARK) == [b"fire"]


async def test_a_foreign_type_fails_the_call_and_writes_nothing(desk, keys_left):
    await desk.redis.set(desk.keys.stream, "not a stream")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await desk.add("a")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await desk.work()
    assert await keys_left() == [desk.keys.stream]


@pytest.mark.parametrize("verb", ["retry", "promote", "remove", "cancel"])
async def test_an_act_on_a_queue_with_a_key_of_a_foreign_type_changes_nothing(desk, verb):
    """Whichever key it is, and whatever state the jobs are in: none of them is half changed."""
    keys, redis = desk.keys, desk.redis
    zsets = (keys.delayed, keys.completed, keys.failed, keys.cancelled)
    touched = {
        "retry": (keys.stream, keys.delayed, keys.failed, keys.cancelled),
        "promote": (keys.stream, keys.delayed),
        "remove": (keys.stream, *zsets),
        "cancel": (keys.stream, keys.delayed, keys.cancelled),
    }
    for foreign in touched[verb]:
        await redis.delete(keys.stream, *zsets)
        await desk.add("waits")
        await redis.hset(keys.job("later"), mapping={"d": "1"})
        await redis.zadd(keys.delayed, {"later": 4_000_000_000_000})
        for state, zset in zip("cfk", zsets[1:], strict=True):
            await redis.hset(keys.job(state), mapping={"d": "1", "x": state, "F": "5"})
            await redis.zadd(zset, {state: 5})
        await redis.delete(foreign)
        await redis.set(foreign, "of another program")
        before = {one: await desk.record(one) for one in ("waits", "later", "c", "f", "k")}
        counts = [await redis.zcard(zset) for zset in zsets if zset != foreign]
        act = ("act", '"what":"it"}')
        calls = {
            "retry": (scripts.RETRY, keys.stream, keys.delayed, *zsets[2:], keys.jobs, "news", "", *act, ""),
            "promote": (scripts.PROMOTE, keys.stream, keys.delayed, keys.jobs, "news", "", *act),
            "remove": (scripts.REMOVE, keys.stream, *zsets, keys.jobs, "done"),
            "cancel": (scripts.CANCEL, *touched["cancel"], keys.jobs, "c", "d", "job", "", "{}", "", ""),
        }  # fmt: skip
        per_job = {"remove": ("",), "cancel": ("", "")}.get(verb, ())
        ids = [word for one in before for word in (one, *per_job)]
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await desk.run(*calls[verb], *ids)
        assert {one: await desk.record(one) for one in before} == before
        assert [await redis.zcard(zset) for zset in zsets if zset != foreign] == counts
        await redis.delete(*map(keys.job, before))


async def test_progress_and_log_need_the_fence(desk):
    await desk.add("a")
    _, _, rows = await desk.work()
    job = desk.keys.job("a")
    assert await desk.run(scripts.NOTE, job, "t1", "progress", "5", 1000, "n1") == 1
    for line, number in (("first", "n2"), ("first", "n2"), ("second", "n3"), ("third", "n4")):
        assert await desk.run(scripts.NOTE, job, "t1", "log", line, 2, number) == 1
    assert await desk.run(scripts.NOTE, job, "zombie", "progress", "9", 2, "n5") == 0
    record = await desk.record("a")
    assert record[b"p"] == b"5"
    assert {record.get(b"l1"), record[b"l2"], record[b"l3"]} == {None, b"second", b"third"}
    assert list(rows) == ["a"]


async def test_settled_entries_are_deleted_in_whatever_order_they_end(desk):
    """Behind the first pending one by one, before it all at once; what waits or is back at the head stays."""
    ids = [f"j{i}" for i in range(8)]
    await desk.add(*ids)
    _, _, rows = await desk.work(free=6)
    entry = {one: rows[one][1] for one in ids[:6]}
    done = [("c", one, entry[one], "t1", "", 0, "") for one in ("j4", "j1", "j0")]
    back = [("b", "j2", entry["j2"], "t1", "", 0, "")]
    statuses, _, _ = await desk.work(*done, *back, free=0)
    assert statuses == "1111"
    left = [row[1][b"j"].decode() for row in await desk.redis.xrange(desk.keys.stream)]
    assert left == ["j2", "j3", "j5", "j6", "j7"]
    assert await desk.counts() == [3, 2, 0, 3, 0]
    more = [("c", one, entry[one], "t1", "", 0, "") for one in ("j5", "j3")]
    _, _, rows = await desk.work(*more, token="t2", free=10)
    assert sorted(rows) == ["j2", "j6", "j7"]
    last = [("c", one, rows[one][1], "t2", "", 0, "") for one in ("j7", "j2", "j6")]
    assert (await desk.work(*last, free=0))[0] == "111"
    assert await desk.redis.exists(desk.keys.stream) == 0
    assert await desk.counts() == [0, 0, 0, 8, 0]


@pytest.mark.parametrize("what", ["stream", "group"])
@pytest.mark.parametrize("op", ["c", "f", "r", "b", "h"])
async def test_what_runs_survives_that_its_stream_was_deleted(desk, op, what):
    """By an operator: what was waiting has gone with it, but not the outcome of what was running, nor its next try."""
    await desk.add("a", "b")
    _, _, rows = await desk.work()
    if what == "stream":
        await desk.redis.delete(desk.keys.stream)
    else:
        await desk.redis.xgroup_destroy(desk.keys.stream, "w")
        await desk.redis.xdel(desk.keys.stream, rows["b"][1])
    keep = "1" if op == "r" else ""
    assert (await desk.work(settle(op, "a", rows, body='"x"', keep=keep), free=0))[0] == "1"
    state = {"c": b"c", "f": b"f"}.get(op, b"w")
    assert (await desk.record("a"))[b"x"] == state
    _, _, again = await desk.work(token="t2", me="p2")
    assert list(again) == (["a"] if state == b"w" else [])
    await desk.add("c")
    _, _, later = await desk.work(token="t3", me="p2")
    assert list(later) == ["c"]


async def test_what_a_process_says_of_itself_goes_with_it(redis, prefix):
    """Its names are written where they are given; what an earlier release buried others leave goes at the next join."""
    desk, about, draining = Desk(redis, prefix), about_key(prefix), draining_key(prefix)
    await desk.send(beat(prefix, "one", True, about='{"n":1}', names='{"jobs":["a"],"tasks":[]}'))
    await desk.send(beat(prefix, "one", False, about='{"n":2}'))
    assert await redis.hgetall(about) == {b"one": b'{"n":2}', b"one names": b'{"jobs":["a"],"tasks":[]}'}
    assert (await desk.send(beat(prefix, "two", True, draining="{}")))[0] == 2
    assert await redis.hgetall(draining) == {b"two": b"{}"}
    await redis.zrem(f"{{{prefix}}}:processes", "two")
    assert (await desk.send(beat(prefix, "one", False)))[0] == 1
    assert await redis.hexists(about, "two") is False
    assert await redis.exists(draining) == 0
    await redis.hset(about, mapping={f"gone{n}": "{}" for n in range(20)})
    await redis.hset(draining, "gone7", "{}")
    await desk.send(beat(prefix, "three", True))
    assert await redis.hkeys(about) == [b"one", b"one names", b"three"]
    assert await redis.exists(draining) == 0


async def test_an_order_is_kept_once_and_refused_where_nobody_is(redis, prefix):
    desk, draining = Desk(redis, prefix), draining_key(prefix)
    await desk.send(beat(prefix, "one", True))
    order = (f"{{{prefix}}}:processes", draining, "zset")
    assert await desk.run(scripts.ORDER, *order, "two", "{}", "c", "m") == 0
    for reason in ("first", "again"):
        assert await desk.run(scripts.ORDER, *order, "one", reason, "c", "m") == 1
    assert await redis.hgetall(draining) == {b"one": b"first"}
    assert await desk.run(scripts.ORDER, *order, "one", "", "c", "m") == 1
    assert await redis.exists(draining) == 0


async def test_a_run_is_written_once_and_found_again(redis, prefix):
    desk, runs, skips = Desk(redis, prefix), runs_key(prefix, "t"), skips_key(prefix, "t")
    keys = (runs, skips, paused_key(prefix), "t")
    for _ in range(2):
        assert await desk.run(scripts.NOTE_RUN, *keys, "begin", MARK, "") == 0
    (begun,) = await redis.lrange(runs, 0, -1)
    assert begun.startswith(MARK.encode() + b',"b":')
    for _ in range(2):
        await desk.run(scripts.NOTE_RUN, *keys, "end", MARK, DONE)
    (ended,) = await redis.lrange(runs, 0, -1)
    assert ended.startswith(begun[:-1] + b',"e":')
    assert ended.endswith(b',"o":"completed"}')
    for n in range(60):
        await desk.run(scripts.NOTE_RUN, *keys, "begin", f'{{"s":{n + 10},"p":"p1"', "")
    assert await redis.llen(runs) == 50
    await desk.run(scripts.NOTE_RUN, *keys, "end", MARK, DONE)
    assert (await redis.lrange(runs, -1, -1))[0].startswith(MARK.encode() + b',"e":'), "it had begun long ago"
    for process in ("p1", "p2"):
        await desk.run(scripts.NOTE_RUN, *keys, "skip", "1000", f'"w":"missed","x":"{process}"')
    assert len(await redis.lrange(skips, 0, -1)) == 1, "the other process saw the same"
    await redis.hset(paused_key(prefix), "t", "{}")
    assert await desk.run(scripts.NOTE_RUN, *keys, "begin", MARK, "") == 1
