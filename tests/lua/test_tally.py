"""The scripts of history and alerts by themselves."""

from __future__ import annotations

import random

import msgspec
import pytest

from asyncjobs.broker import scripts
from asyncjobs.broker.keys import alerts_key, history_key, history_of, serves_key
from asyncjobs.broker.tallying import GROUP_BYTES, MOST_GROUPS, RESENT_MS, TIERS
from asyncjobs.history.figures import Slot
from asyncjobs.history.histogram import BUCKETS
from asyncjobs.history.tally import COUNTERS
from tests.lua.test_scripts import Desk

MINUTE, DAY = 60_000, 86_400_000
MOST_BYTES = 220_000  # of a name


class Book:
    """The history of one name, as scripts write and read it; `shift`: by how many seconds the server's clock is off."""

    def __init__(self, redis, prefix: str, name: str = "job") -> None:
        self.redis, self.prefix, self.history = redis, prefix, history_of(prefix, name)
        self.shift = 0.0

    async def run(self, script: scripts.Script, *args: object):
        moved = f"(function() local t = redis.call('TIME') t[1] = t[1] + ({self.shift}) return t end)()"
        text = script.text.replace("redis.call('TIME')", moved)
        return await self.redis.eval(text, script.keys, *args)

    async def tally(self, number, *, process="p1", age=0, counts=(), gauges=(), wait=(0, 0), run=(0, 0), groups=()):
        figures = msgspec.msgpack.encode([[*counts], [*gauges], [*wait], [*run], [*groups]])
        tiers = [one for tier in TIERS for one in tier]
        head = (self.history + "seen", self.history, process, number, age, figures, RESENT_MS, MOST_GROUPS, GROUP_BYTES)
        return await self.run(scripts.CHRONICLE, *head, *tiers)

    async def slots(self, tier: object = 1, count: int = 20) -> list:
        """All that are not empty, the oldest first."""
        minutes = 10 if tier == "g" else 10 * int(str(tier))
        _, _, *blocks = await self.run(
            scripts.SERIES, self.history + "seen", f"{self.history}{tier}:", minutes * MINUTE, count
        )
        return [slot for block in blocks if block for slot in msgspec.msgpack.decode(block) if slot]


@pytest.fixture
def book(redis, prefix):
    return Book(redis, prefix)


async def test_figures_are_added_to_all_tiers_and_go_by_themselves(book, redis):
    assert await book.tally(1, counts=[3, 2], wait=[0, 2, 4, 2], run=[0, 1, 7, 1]) == 1
    assert await book.tally(2, counts=[1, 0, 5], wait=[0, 1, 5, 1], gauges=[50, 7, 1]) == 1
    assert await book.tally(3, gauges=[20, 9, 1]) == 1
    for minutes, kept, _ in TIERS:
        (slot,) = await book.slots(minutes)
        found = Slot(slot)
        assert found.counts[:3] == [4, 2, 5]
        assert found.wait.counts == {4: 2, 5: 1}
        assert (found.wait.samples, found.run.samples) == (3, 1)
        assert found.gauges == [50, 9, 1], "the most that was seen"
        (key,) = [one async for one in redis.scan_iter(match=f"{book.history}{minutes}:*", count=1000)]
        assert 0 < await redis.pttl(key) <= kept
    assert 0 < await redis.pttl(book.history + "seen") <= RESENT_MS


async def test_what_is_sent_again_counts_once(book):
    for number in (1, 1, 2, 1, 2):
        await book.tally(number, counts=[1])
    assert await book.tally(1, process="p2", counts=[1]) == 1, "another process has numbers of its own"
    ((counts, *_),) = await book.slots()
    assert counts == [3]


async def test_figures_count_where_they_were_counted(book):
    await book.tally(1, counts=[1], age=3 * MINUTE)
    await book.tally(2, counts=[2])
    await book.tally(3, counts=[4], age=10 * 3600 * 1000)
    found = await book.slots(count=40)
    assert [slot[0][0] for slot in found] == [4, 1, 2], "at most three hours back"


async def test_histograms_of_different_scales_are_added(book):
    await book.tally(1, wait=[0, 3, 4, 1, 5, 1, 6, 1])
    await book.tally(2, wait=[1, 2, 2, 1, 3, 1])
    ((_, _, wait, _),) = await book.slots()
    scale, samples, *flat = wait
    assert (scale, samples) == (1, 5)
    assert dict(zip(flat[::2], flat[1::2], strict=True)) == {2: 3, 3: 2}


async def test_a_slot_never_grows_beyond_its_bytes_and_keeps_every_count(book):
    rng = random.Random(1)
    total = 0
    for number in range(1, 60):
        flat = [one for at in range(BUCKETS) for one in (at, rng.randrange(1, 10**6))]
        total += sum(flat[1::2])
        await book.tally(
            number, counts=[10**9] * len(COUNTERS), gauges=[10**9] * 3, wait=[0, 9, *flat], run=[0, 9, *flat]
        )
    for minutes, _, most in TIERS:
        (slot,) = await book.slots(minutes)
        assert len(msgspec.msgpack.encode(slot)) <= most
        found = Slot(slot)
        assert sum(found.wait.counts.values()) == sum(found.run.counts.values()) == total
        assert max(found.wait.scale, found.run.scale) <= 5


@pytest.mark.slow
async def test_a_name_that_is_always_busy_in_every_way_takes_less_than_is_promised(book, redis):
    """Every slot of every tier full, with as many buckets and groups as there can be."""
    rng = random.Random(1)
    number = 0
    for minutes, kept, _ in reversed(TIERS):
        step = minutes * 60
        for back in range(kept // 1000 // step, -1, -1):
            book.shift, number = -back * step, number + 1
            waits = [one for at in range(BUCKETS) for one in (at, rng.randrange(1, 300 * minutes))]
            groups = [one for n in range(30) for one in (f"tenant-{rng.randrange(99):07}", 10**4 + n, 10**6)]
            await book.tally(
                number, counts=[rng.randrange(10**5) * minutes for _ in COUNTERS], gauges=[10**7, 10**6, 1000],
                wait=[0, 9, *waits], run=[0, 9, *waits], groups=groups,
            )  # fmt: skip
    book.shift = 0
    size, blocks = 0, {}
    async for key in redis.scan_iter(match=book.history + "*", count=1000):
        kind, _, at = key.decode().removeprefix(book.history).partition(":")
        if kind != "seen":
            blocks.setdefault(kind, {})[int(at)] = await redis.memory_usage(key)
    kept = {str(minutes): kept // (minutes * 10 * MINUTE) + 1 for minutes, kept, _ in TIERS} | {"g": 7}
    assert kept == {"1": 19, "10": 29, "120": 37, "g": 7}
    for kind, most in kept.items():
        newest = sorted(blocks[kind].items())[-most:]  # what is older has gone by then
        size += sum(one for _, one in newest)
    assert 100_000 < size < MOST_BYTES


async def test_the_heaviest_groups_of_a_minute_are_kept_in_a_bounded_room(book):
    many = [one for n in range(200) for one in (f"g{n}", n, 1)]
    await book.tally(1, counts=[1], groups=many)
    await book.tally(2, counts=[1], groups=["g199", 5, 5, "new", 10_000, 0])
    (flat,) = await book.slots("g")
    assert flat[:6] == ["new", 10_000, 0, "g199", 204, 6]
    assert len(flat) == 3 * MOST_GROUPS
    await book.tally(3, counts=[1], groups=[one for n in range(9) for one in (f"{n}" * 250, 10**6, 0)])
    (flat,) = await book.slots("g")
    assert sum(len(one) for one in flat[::3]) <= GROUP_BYTES


@pytest.mark.parametrize("hours", [-1000, -5, 5, 1000])
async def test_a_jump_of_the_clock_spoils_nothing(book, redis, hours):
    await book.tally(1, counts=[1])
    book.shift = hours * 3600
    assert await book.tally(2, counts=[2]) == 1
    assert await book.tally(2, counts=[2]) == 0
    book.shift = 0
    assert await book.tally(3, counts=[4]) == 1
    ((counts, *_),) = await book.slots(count=2)
    assert counts == [5]
    async for key in redis.scan_iter(match=book.history + "*", count=1000):
        assert await redis.pttl(key) > 0


async def test_what_somebody_else_has_written_is_begun_anew(book, redis):
    await book.tally(1, counts=[1])
    strange = (b"what", msgspec.msgpack.encode([1, 2]), msgspec.msgpack.encode([3] * 10), b"\xc1")
    for number, body in enumerate(strange, 2):
        async for key in redis.scan_iter(match=book.history + "1:*", count=1000):
            await redis.set(key, body)
        await book.tally(number, counts=[7])
        ((counts, *_),) = [slot for slot in await book.slots() if isinstance(slot, list)]
        assert counts == [7]


async def test_the_processes_of_long_ago_are_not_remembered(book, redis):
    book.shift = -3 * 3600
    for n in range(100):
        await book.tally(1, process=f"old-{n}", counts=[1])
    book.shift = 0
    for n in range(10):
        await book.tally(1, process=f"new-{n}", counts=[1])
    assert await redis.hlen(book.history + "seen") <= 45


async def test_a_hundred_names_have_a_history_and_more_traffic_takes_the_place_of_less(book, prefix):
    key = history_key(prefix)

    async def rank(*flat: object) -> str:
        return (await book.run(scripts.RANK, key, 3, *flat)).decode()

    assert await rank("a", 100, "b", 10, "c", 1000) == "111"
    assert await rank("d", 5) == "0"
    assert await rank("d", 15) == "0", "not for a little more: names would change places all the time"
    assert await rank("d", 500) == "1"
    assert await rank("b", 1) == "0", "it has made room"
    assert await rank("a", 1, "c", 1, "d", 1) == "111"
    book.shift = 20 * 86400
    assert await rank("new", 1) == "1", "what was long ago counts little"
    book.shift = 0
    assert await rank("c", 1) in "01"


async def test_what_waits_and_for_how_long(redis, prefix):
    desk = Desk(redis, prefix)
    keys = desk.keys

    async def gauge():
        return await desk.run(scripts.GAUGE, keys.stream, keys.delayed)

    assert await gauge() == [0, 0, -1]
    await desk.add("a", "b", "c")
    waiting, active, oldest = await gauge()
    assert (waiting, active) == (3, 0)
    assert 0 <= oldest < 20_000
    _, _, rows = await desk.work(free=1)
    assert (await gauge())[:2] == [2, 1]
    await desk.work(("b", "a", rows["a"][1], "t1", "", 0, ""), free=0)  # back to the head
    assert (await gauge())[:2] == [3, 0]
    _, _, rows = await desk.work(token="t2")
    assert await gauge() == [0, 3, -1]
    await redis.zadd(keys.delayed, {"late": 1000, "soon": 4e12})
    waiting, active, oldest = await gauge()
    assert (waiting, active) == (1, 3)
    assert oldest > 1e12, "it was due in 1970, and nobody has come for it"


async def test_a_job_that_was_promoted_late_says_since_when_it_was_due(redis, prefix):
    desk = Desk(redis, prefix)
    keys = desk.keys
    await desk.add("a", "b")
    now = int((await redis.time())[0]) * 1000
    await redis.zadd(keys.delayed, {"late": now - 60_000, "later": now - 30_000})
    for one in ("late", "later"):
        await redis.hset(keys.job(one), mapping={"d": "{}", "t": now})
    head = (keys.stream, keys.delayed, keys.bucket, keys.completed, keys.failed, keys.settings, keys.stream)
    args = (keys.jobs, "n", "d", "", "p1", "t1", 10, 0, "", 0, 0, "", 1 << 21, "", -1, -1, -1, -1, "")
    reply = await redis.eval(scripts.WORK.text, 7, *head, *args)
    now_us, refused, *late = reply[3]
    assert (now_us // 10**6 - now // 1000) in range(-1, 30)
    assert refused == 0
    entries = {row: reply[2][i * 7 + 1] for i, row in enumerate(reply[2][::7])}
    assert late == [entries[b"late"], str(now - 60_000).encode(), entries[b"later"], str(now - 30_000).encode()]


async def test_one_process_is_on_duty_and_one_that_listens_goes_first(redis, prefix):
    book = Book(redis, prefix)
    keys = alerts_key(prefix), serves_key(prefix)

    async def duty(process, listens="", serves="", leaving="", lease=90_000):
        reply = await book.run(scripts.DUTY, *keys, process, lease, listens, serves, leaving)
        return reply[0]

    assert await duty("p1", serves='{"names":["a"]}') == 1
    assert await duty("p2") == 0
    assert await duty("p1") == 1
    assert await duty("p2", listens="1") == 1, "somebody listens there"
    assert await duty("p1") == 0
    assert await duty("p3", listens="1") == 0
    book.shift = 100
    assert await duty("p1") == 1, "the other has not asked again"
    assert await duty("p1", leaving="1") == 0
    assert await duty("p3") == 1
    book.shift = -30_000
    assert await duty("p1") == 1, "a duty that lies far ahead was taken by a clock that was set back"
    assert await redis.hgetall(keys[1]) == {b"p1": b'{"names":["a"]}'}
    assert await redis.pttl(keys[0]) > 0
    assert await redis.pttl(keys[1]) > 0


async def test_a_minute_is_judged_once_and_by_who_is_on_duty(redis, prefix):
    book = Book(redis, prefix)
    keys = alerts_key(prefix), serves_key(prefix)
    minute = int((await redis.time())[0]) // 60

    async def judge(process, minute, again=""):
        return await book.run(scripts.JUDGE, keys[0], process, minute, "{}", again, 60_000)

    await book.run(scripts.DUTY, *keys, "p1", 90_000, "", "", "")
    assert await judge("p2", minute) == 0
    assert await judge("p1", minute) == 1
    assert await judge("p1", minute) == 0
    assert await judge("p1", minute, again="1") == 1
    assert await judge("p1", minute + 5000) == 1
    assert await judge("p1", minute + 1) == 1, "the clock was set back since"
