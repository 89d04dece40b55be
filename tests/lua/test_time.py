"""How long the scripts hold the server: a bounded time, however much there is of whatever they look at."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from asyncjobs.broker import scripts
from asyncjobs.broker.keys import Channels, due_key, epoch_key, groups_key, index_keys, leases_key, swept_key
from tests.lua.test_scripts import Desk, settle

FEW, MANY = 1_000, 200_000
MOST_TIMES = 8.0  # as long as with a thousand; what grows with the number would take two hundred times as long
STEP = 3000.0  # µs, the length of a step of a thousand deletions, on a busy machine
WINDOW = 100_000_000  # µs


async def fill(redis: Redis, many: int, command: str, *args: object) -> None:
    """Run a line of Lua on the server for each `n` from 0 on, some thousands at a time; `f(n)` prints one in full."""
    script = f"""
        local function f(n) return string.format('%.0f', n) end
        for n = tonumber(ARGV[1]), tonumber(ARGV[2]) do {command} end
    """
    for start in range(0, many, 20_000):
        await redis.eval(script, 1, args[0], start, min(many, start + 20_000) - 1, *args[1:])  # type: ignore[misc]


class Place:
    """A queue that holds `many` of everything, and what each script is called with there."""

    def __init__(self, redis: Redis, prefix: str, many: int) -> None:
        self.redis, self.many = redis, many
        self.desk = Desk(redis, f"{prefix}-{many}")
        self.keys, self.prefix = self.desk.keys, self.desk.prefix
        self.news = Channels(self.prefix).news("job")
        self.completed, self.failed, self.cancelled = index_keys(self.prefix, "job")
        self.now = 0

    async def tokens(self, back: bool) -> None:
        """As many tokens as there are, each taken by itself; all of them back, or all still out."""
        first = self.now - 5_000_000 - self.many if back else self.now + WINDOW // 2
        row = "f(ARGV[3] + n) .. ' 1 ' .. f(n)"
        await fill(self.redis, self.many, f"redis.call('RPUSH', KEYS[1], {row})", self.keys.bucket, first)

    async def grants(self) -> None:
        shared_limit = f"{{{self.prefix}}}:gate:x"
        line = "redis.call('ZADD', KEYS[1], f(ARGV[3] + n), 'g' .. f(n) .. ' 1')"
        await fill(self.redis, self.many, line, f"{shared_limit}:1", self.now - self.many)
        await self.redis.hset(shared_limit, "u1", self.many)

    async def finished(self, zset: str, member: str = "j") -> None:
        line = "redis.call('ZADD', KEYS[1], f(ARGV[3] + n), ARGV[4] .. f(n))"
        await fill(self.redis, self.many, line, zset, self.now // 1000 - 9_000_000, member)

    async def delayed(self) -> None:
        line = "redis.call('ZADD', KEYS[1], f(ARGV[3] + n), 'd' .. f(n))"
        await fill(self.redis, self.many, line, self.keys.delayed, self.now // 1000 - self.many)

    async def waiting(self) -> None:
        await self.redis.xgroup_create(self.keys.stream, "w", "0", mkstream=True)
        await fill(self.redis, self.many, "redis.call('XADD', KEYS[1], '*', 'j', 'w' .. f(n))", self.keys.stream)

    async def pending(self, who: str) -> None:
        """Running for a process, or back at the head."""
        await self.waiting()
        line = "redis.call('HSET', KEYS[1] .. 'w' .. f(n), 'd', '1', 'x', 'a', 't', '1')"
        await fill(self.redis, self.many, line, self.keys.jobs)
        script = "redis.call('XREADGROUP', 'GROUP', 'w', ARGV[1], 'COUNT', ARGV[2], 'STREAMS', KEYS[1], '>') return 1"
        await self.redis.eval(script, 1, self.keys.stream, who, self.many)  # type: ignore[misc]

    async def groups(self) -> None:
        line = "redis.call('ZADD', KEYS[1], n, 'g' .. f(n))"
        await fill(self.redis, self.many, line, groups_key(self.prefix, "job"))

    async def processes(self) -> None:
        for zset in (f"{{{self.prefix}}}:processes", due_key(self.prefix)):
            await fill(self.redis, self.many, "redis.call('ZADD', KEYS[1], n, 'p' .. f(n))", zset)

    async def errors(self) -> None:
        await fill(self.redis, self.many, "redis.call('HSET', KEYS[1], 'e' .. f(n), '{}')", self.keys.job("a"))
        await self.redis.hset(self.keys.job("a"), "a", self.many)


Story = tuple[Callable[[Place], Awaitable[Any]], Callable[[Place], Awaitable[Any]]]
LIMIT = f"{10**6}:{WINDOW}"


def run(script: scripts.Script, *args: Callable[[Place], Any] | Any) -> Callable[[Place], Awaitable[Any]]:
    def called(place: Place) -> Awaitable[Any]:
        return place.desk.run(script, *(arg(place) if callable(arg) else arg for arg in args))

    return called


async def one_job(place: Place) -> None:
    await place.desk.add("a")


async def take(place: Place) -> Any:
    return await place.desk.work(bucket=(10**6, WINDOW, 0), free=200, token="t9")


def work_after(fill_in: Callable[[Place], Awaitable[Any]]) -> Callable[[Place], Awaitable[Any]]:
    async def prepared(place: Place) -> None:
        await fill_in(place)
        await one_job(place)

    return prepared


async def taken(place: Place) -> None:
    await one_job(place)
    _, _, place.rows = await place.desk.work(free=1)  # type: ignore[attr-defined]


def settling(op: str, **options: Any) -> Callable[[Place], Awaitable[Any]]:
    async def done(place: Place) -> Any:
        keep = options.get("keep", "")
        one = settle(op, "a", place.rows, body='"x"', keep=keep)  # type: ignore[attr-defined]
        return await place.desk.work(one, free=0, keep=options.get("bounds", (-1, -1, -1, -1)))

    return done


def both(*steps: Callable[[Place], Awaitable[Any]]) -> Callable[[Place], Awaitable[Any]]:
    async def all_of_them(place: Place) -> None:
        for step in steps:
            await step(place)

    return all_of_them


def keys(*names: str) -> list[Callable[[Place], str]]:
    return [lambda place, name=name: getattr(place.keys, name) for name in names]  # type: ignore[misc]


STORIES: dict[str, Story] = {
    "work: tokens that are back": (work_after(lambda place: place.tokens(back=True)), take),
    "work: tokens that are out": (work_after(lambda place: place.tokens(back=False)), take),
    "spend: tokens that are back": (
        lambda place: place.tokens(back=True), run(scripts.SPEND, *keys("bucket", "settings"), LIMIT, 0, "")),
    "spend: tokens that are out": (
        lambda place: place.tokens(back=False), run(scripts.SPEND, *keys("bucket", "settings"), LIMIT, 0, "")),
    "reap: tokens that are back": (
        lambda place: place.tokens(back=True),
        run(scripts.REAP, *keys("stream", "delayed", "bucket", "settings"))),
    "admit: grants that are back": (
        Place.grants, run(scripts.ADMIT, lambda place: f"{{{place.prefix}}}:gate:x", "p", 0, 3, 0, 9, LIMIT, 0, "n", 0,
                          lambda place: place.news, "-2|")),
    "work: promotes": (Place.delayed, take),
    "work: takes": (Place.waiting, take),
    "work: takes from the head": (lambda place: place.pending("head"), take),
    "work: settles beside others": (both(lambda place: place.pending("p9"), taken), settling("c")),
    "work: retention by count": (
        both(taken, lambda place: place.finished(place.keys.completed)), settling("c", bounds=(5, -1, -1, -1))),
    "work: retention by age": (
        both(taken, lambda place: place.finished(place.keys.completed)), settling("c", bounds=(-1, 1000, -1, -1))),
    "work: the rule of one add": (
        both(taken, lambda place: place.finished(place.keys.completed)), settling("c", keep="5:1000")),
    "work: errors of other releases": (both(taken, Place.errors), settling("f")),
    "trim": (
        lambda place: place.finished(place.keys.completed),
        run(scripts.TRIM, *keys("completed", "failed", "cancelled", "jobs"), 5, -1, -1, -1, -1, -1)),
    "index": (
        lambda place: place.finished(place.completed, "4:acmej"),
        run(scripts.INDEX, lambda place: groups_key(place.prefix, "job"), lambda place: place.completed,
            lambda place: place.failed, lambda place: place.cancelled, 5, 1000, -1, -1, -1, -1)),
    "sweep": (
        lambda place: place.pending("dead"),
        run(scripts.SWEEP, *keys("stream", "jobs"), lambda place: place.news, "", "dead", "p", "s", 5)),
    "own": (lambda place: place.pending("p1"), run(scripts.OWN, *keys("stream", "jobs"), "p1", "-", 1 << 21)),
    "owners": (lambda place: place.pending("p1"), run(scripts.OWNERS, *keys("stream"), 0)),
    "count": (
        both(lambda place: place.pending("p1"), Place.delayed),
        run(scripts.COUNT, *keys("stream", "delayed", "completed", "failed", "cancelled"))),
    "gauge": (both(lambda place: place.pending("head"), Place.delayed), run(scripts.GAUGE, *keys("stream", "delayed"))),
    "add": (both(lambda place: place.pending("p1"), Place.delayed), lambda place: place.desk.add("new", most="900000")),
    "beat": (
        Place.processes,
        run(scripts.BEAT, lambda place: f"{{{place.prefix}}}:processes", lambda place: epoch_key(place.prefix),
            lambda place: due_key(place.prefix), lambda place: leases_key(place.prefix),
            lambda place: swept_key(place.prefix, "me"), "me", "1", "e", 30_000, "{}")),
    "inspect": (
        both(lambda place: place.pending("p1"), Place.delayed),
        run(scripts.INSPECT, *keys("stream", "delayed", "completed", "failed", "cancelled", "jobs"), 500)),
    "leave": (lambda place: place.pending("p1"), run(scripts.LEAVE, *keys("stream"), "p1")),
    "idle": (Place.groups, run(scripts.IDLE, lambda place: groups_key(place.prefix, "job"), "g5")),
    "register": (Place.groups, run(scripts.REGISTER, lambda place: groups_key(place.prefix, "job"), "new")),
}  # fmt: skip


async def microseconds(place: Place, call: Callable[[Place], Awaitable[Any]]) -> float:
    """What the server spent on the script, as it says itself."""
    await place.redis.config_resetstat()
    await call(place)
    stats = await place.redis.info("commandstats")
    return float(stats["cmdstat_eval"]["usec"])


@pytest.mark.slow
@pytest.mark.parametrize("story", STORIES)
async def test_no_script_takes_longer_where_there_is_more(own_server, prefix, story):
    prepare, call = STORIES[story]
    spent: dict[int, float] = {}
    async with own_server.client() as redis:
        await redis.config_set("appendonly", "no")
        for many in (FEW, MANY):
            best = math.inf
            for attempt in range(3):  # the machine has other work as well
                place = Place(redis, f"{prefix}{attempt}", many)
                seconds, micros = await redis.time()
                place.now = int(seconds) * 1_000_000 + int(micros)
                await prepare(place)
                best = min(best, await microseconds(place, call))
                await redis.flushall()
                if best < STEP:
                    break
            spent[many] = best
    assert spent[MANY] < max(MOST_TIMES * spent[FEW], STEP), spent


async def test_a_bucket_stays_short_however_many_tokens_are_out(own_server, prefix):
    """Tokens that return within a thousandth of a window are one entry, and no window sees more than its most."""
    async with own_server.client() as redis:
        await redis.config_set("appendonly", "no")
        desk = Desk(redis, prefix)
        windows = "5000:2000000"
        for n in range(4000):
            if n % 2:
                assert await desk.run(scripts.SPEND, desk.keys.bucket, desk.keys.settings, windows, 0, "") == 0
            else:
                await desk.add(f"j{n}")
                _, _, rows = await desk.work(bucket=(5000, 2_000_000, 1), token=f"t{n}")
                assert len(rows) == 1
        length = await redis.llen(desk.keys.bucket)
        assert length <= 1002
        rows = [list(map(int, row.split())) for row in await redis.lrange(desk.keys.bucket, 0, -1)]
        assert rows == sorted(rows), "ever later"
        total = rows[0][2]
        for _, count, before in rows:
            assert before == total, "each tells how many were taken before it"
            total += count
        assert total == 4000
