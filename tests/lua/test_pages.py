"""Pages by place: every job that stays comes once and in order, while others come, go and move; both ways."""

from __future__ import annotations

import random

import pytest

from asyncjobs.broker.keys import Keys
from asyncjobs.broker.looking import Place, Question
from tests.lua.test_scripts import Desk, settle

IDS = ["", "a", "ab", "aB", "a\x00", "é", "Ä", "z", "~", "-", "0", "10", "9", "\U0001f600"]


def asked(state, suffix, down, looks=10_000, finds=7, size=1 << 20, least=None, most=None, whole=True, packed=b""):
    return Question(state, suffix, whole, packed, down, least, most, looks, finds, size)


@pytest.fixture
async def broker(make_runtime):
    runtime = make_runtime(consume=False)
    runtime.job("job")(lambda data: None)
    async with runtime:
        yield runtime._assembly.broker


async def everything(broker, keys, question, between=None):
    """All jobs of a queue in the order of the pages, each with how often it came."""
    came, place, pages = [], Place(), 0
    while True:
        piece = await broker.page(keys, question, place)
        assert len(piece.rows) <= question.finds
        assert piece.looked <= question.looks
        came += [row.member.decode() for row in piece.rows]
        place, pages = piece.place, pages + 1
        assert pages < 5000
        if not piece.more:
            return came
        if between is not None:
            await between()


async def fill(redis, keys, jobs):
    pipeline = redis.pipeline(transaction=False)
    for job_id, score in jobs.items():
        pipeline.hset(keys.job(job_id), mapping={"d": "{}", "t": "1", "x": "f", "F": str(score)})
        pipeline.zadd(keys.failed, {job_id: score})
    await pipeline.execute()


@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("spread", [1, 3, 1000])
async def test_a_sorted_set_is_paged_by_place_while_it_changes(broker, redis, prefix, down, spread):
    """Members of one score stand in the order of their bytes; the place may be trimmed or may move."""
    rng = random.Random(f"{down}{spread}")
    keys = Keys(prefix, "job")
    ids = [f"{one}{n}" for n in range(20) for one in IDS]
    jobs = {one: 1_700_000_000_000 + rng.randrange(spread) for one in ids}
    stays = set(rng.sample(ids, 150))
    await fill(redis, keys, jobs)
    others = [one for one in ids if one not in stays]
    rng.shuffle(others)

    async def between():
        for _ in range(4):
            if not others:
                return
            other = others.pop()
            if rng.random() < 0.7:
                await redis.zrem(keys.failed, other)
                await redis.delete(keys.job(other))
            else:
                await redis.zadd(keys.failed, {other: 1_800_000_000_000})

    came = await everything(broker, keys, asked("f", "f", down, finds=5), between)
    kept = [one for one in came if one in stays]
    right = sorted(stays, key=lambda one: (jobs[one], one.encode()), reverse=down)
    assert kept == right
    assert len(set(came)) == len(came) or not down, "what moves on comes again only behind the place"


@pytest.mark.parametrize("down", [False, True])
async def test_bounds_of_a_sorted_set_are_inclusive(broker, redis, prefix, down):
    keys = Keys(prefix, "job")
    await fill(redis, keys, {f"{n:02}": 100 + n // 3 for n in range(30)})
    came = await everything(broker, keys, asked("f", "f", down, finds=2, least=102, most=104))
    assert sorted(came) == [f"{n:02}" for n in range(6, 15)]
    assert await broker.tally([keys], "f", 102, 104) == [9]
    assert await broker.tally([keys], "f") == [30]


@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("looks", [3, 10, 10_000])
async def test_a_stream_is_paged_for_those_that_wait_and_those_that_run(broker, redis, prefix, down, looks):
    """Whatever was handed out, put back to the head, settled, or never taken."""
    desk, rng = Desk(redis, prefix), random.Random(looks)
    names = [f"{n:03}" for n in range(120)]
    await desk.add(*names)
    taken, held = {}, []
    for turn in range(8):
        _, _, rows = await desk.work(me=f"p{turn % 3}", token=f"t{turn}", free=9)
        taken |= {one: (rows[one], f"p{turn % 3}", f"t{turn}") for one in rows}
        held += rows
        for one in rng.sample(held, 4):
            op = rng.choice("bcr")
            row, me, token = taken[one]
            await desk.work(settle(op, one, {one: row}, token=token), me=me, free=0)
            held.remove(one)
    looked = await broker.inspect(desk.keys)
    waits = looked.waiting + [one for owner, one in looked.pending if owner == "head"]
    runs = [one for owner, one in looked.pending if owner != "head"]
    assert waits
    assert runs
    for state, there in (("w", waits), ("a", runs)):
        came = await everything(broker, desk.keys, asked(state, "s", down, looks=looks))
        assert sorted(came) == sorted(there), state
        entries = [row.at for row in (await broker.page(desk.keys, asked(state, "s", down, finds=200), Place())).rows]
        at = [tuple(map(int, one.split(b"-"))) for one in entries]
        assert at == sorted(at, reverse=down)
    assert await broker.tally([desk.keys], "w") == [len(waits)]
    assert await broker.tally([desk.keys], "a") == [len(runs)]


@pytest.mark.parametrize("down", [False, True])
async def test_a_stream_that_nothing_was_taken_of_is_paged(broker, redis, prefix, down):
    desk = Desk(redis, prefix)
    names = [f"{n:03}" for n in range(30)]
    await desk.add(*names)
    assert await everything(broker, desk.keys, asked("w", "s", down)) == (names[::-1] if down else names)
    assert await everything(broker, desk.keys, asked("a", "s", down)) == []
    await redis.xgroup_destroy(desk.keys.stream, "w")
    assert await everything(broker, desk.keys, asked("w", "s", down)) == (names[::-1] if down else names)


@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("taken", [0, 5, 30])
async def test_bounds_of_a_stream_are_inclusive(broker, redis, prefix, down, taken):
    desk = Desk(redis, prefix)
    keys = desk.keys
    await redis.xgroup_create(keys.stream, "w", "0", mkstream=True)
    for n in range(30):
        await redis.hset(keys.job(f"{n:02}"), mapping={"d": "{}", "t": "1"})
        await redis.xadd(keys.stream, {"j": f"{n:02}"}, id=f"{100 + n // 3}-{n % 3}")
    _, _, rows = await desk.work(free=taken)
    await desk.work(*(settle("b", one, rows) for one in rows), free=0)
    for state, expected in (("w", [f"{n:02}" for n in range(6, 15)]), ("a", [])):
        question = asked(state, "s", down, finds=2, least=102, most=104)
        assert sorted(await everything(broker, keys, question)) == expected
    _, _, rows = await desk.work(free=taken, token="t2")
    came = await everything(broker, keys, asked("a", "s", down, finds=2, least=102, most=104))
    assert sorted(came) == [one for one in sorted(rows) if "06" <= one <= "14"]


@pytest.mark.parametrize("suffix", ["f", "s"])
async def test_a_page_of_large_records_brings_no_more_than_its_bytes(broker, redis, prefix, suffix):
    """But for one record that is larger by itself."""
    desk = Desk(redis, prefix)
    keys = desk.keys
    names = [f"{n:02}" for n in range(20)]
    await desk.add(*names, data='"' + "x" * 10_000 + '"')
    if suffix == "f":
        _, _, rows = await desk.work(free=20)
        await desk.work(*(settle("f", one, rows) for one in names), free=0)
    question = asked("w" if suffix == "s" else "f", suffix, False, finds=100, size=35_000)
    assert len((await broker.page(keys, question, Place())).rows) == 3
    assert await everything(broker, keys, question) == names
    small = question._replace(size=500)
    assert len((await broker.page(keys, small, Place())).rows) == 1
    assert await everything(broker, keys, small) == names
    assert (await broker.page(keys, small, Place(), one=False)).rows == []
    slim = await broker.page(keys, question._replace(whole=False), Place())
    assert len(slim.rows) == 20
    assert not any(b"d" in row.fields[::2] for row in slim.rows)


@pytest.mark.parametrize(("state", "suffix"), [("w", "s"), ("a", "s"), ("d", "d"), ("c", "c"), ("f", "f"), ("k", "k")])
async def test_keys_that_somebody_has_overwritten_are_told(broker, redis, prefix, state, suffix):
    keys = Keys(prefix, "job")
    await redis.set(f"{keys.tag}:{suffix}", "mine")
    piece = await broker.page(keys, asked(state, suffix, True), Place())
    assert (piece.looked, piece.more, piece.rows) == (-1, False, [])
    assert await broker.tally([keys], state) == [-1]


async def test_records_that_are_none_are_passed_over(broker, redis, prefix):
    keys = Keys(prefix, "job")
    await fill(redis, keys, {f"{n}": n for n in range(1, 9)})
    await redis.delete(keys.job("2"))
    await redis.hdel(keys.job("3"), "d")
    await redis.hset(keys.job("4"), "x", "c")
    await redis.delete(keys.job("5"))
    await redis.set(keys.job("5"), "mine")
    await redis.zadd(keys.failed, {b"\xff\xfe": 5})
    piece = await broker.page(keys, asked("f", "f", False, finds=100), Place())
    assert [row.member for row in piece.rows] == [b"1", b"6", b"7", b"8"]
    assert piece.looked == 9
    slim = await broker.page(keys, asked("f", "f", False, finds=100, whole=False), Place())
    assert [row.member for row in slim.rows] == [b"1", b"6", b"7", b"8"]
    peeked = await broker.peek([(keys, f"{n}") for n in range(1, 9)], asked("f", "f", False))
    assert [bool(one) for one in peeked] == [True, False, False, False, False, True, True, True]
    assert await broker.seek([keys, Keys(prefix, "other")], "1") == [keys]
    assert await broker.seek([keys], "3") == []
    assert await broker.seek([keys], "5") == []
