"""Records that hold what nobody of ours has written: they are read all the same."""

from __future__ import annotations

import asyncio
import itertools
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asyncjobs.errors import JobFailedError, PayloadError
from asyncjobs.job import read_job

GARBAGE = [
    b"", b"\xff\xfe", b"null", b"[", b'"\xc3"', b"-1", b"1e999", b"9" * 5000, b"NaN", b"inf", b"[" * 100_000,
    b"\x00", "²".encode(), b'{"t": "x"}', b'{"t":"x","s":"y","a":1e30}', b'{"t":"x","s":"y","a":-99999999999999999}',
    b'{"a": -3}', b'{"b": {"type": "fixed", "delay": "soon"}}', b'{"t": -1}', b'{"c": 5}',
]  # fmt: skip
FIELDS = [
    b"d", b"o", b"t", b"a", b"s", b"u", b"x", b"r", b"z", b"v", b"p", b"F", b"w", b"q", b"ln", b"li", b"e1", b"l1",
    b"e", b"l", b"", b"\xff", b"e\xff", "e²".encode(), "l٣".encode(), b"e" + b"9" * 5000, b"l-1", b"l 1", b"newer",
]  # fmt: skip


@pytest.fixture
async def queue(runtime):
    runtime.job("job", limiter=None)(lambda data: data)
    async with runtime:
        await runtime.queue.job("job").pause()
        yield runtime.queue


async def test_a_job_is_read_whatever_any_field_of_its_record_holds(queue, redis):
    job = await queue.add("job", {"a": 1})
    key = job._keys.job(job.id)
    whole = await redis.hgetall(key)
    for field, value in itertools.product(FIELDS, GARBAGE):
        await redis.hset(key, field, value)
        found = await queue.get_job("job", job.id)
        assert found is not None
        assert found.id == job.id
        assert repr(found)
        assert str(found.error) is not None
        await redis.delete(key)
        await redis.hset(key, mapping=whole)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    record=st.dictionaries(
        st.one_of(st.sampled_from([one.decode(errors="replace") for one in FIELDS]), st.text(max_size=4)),
        st.one_of(st.binary(max_size=40), st.sampled_from(GARBAGE)),
    ),
    due=st.one_of(st.none(), st.floats()),
)
async def test_any_fields_and_any_values(queue, record, due):
    spec = queue.spec("job")
    found = read_job(queue._broker, spec, "job", queue._broker.queue_keys("job", None), None, "id", due, record)
    assert str(found.error) + repr(found)


@pytest.mark.parametrize("put", ["set", "rpush", "sadd"])
async def test_a_record_that_somebody_has_overwritten_is_none(queue, redis, put):
    job = await queue.add("job")
    await redis.delete(job._keys.job(job.id))
    await getattr(redis, put)(job._keys.job(job.id), "x")
    assert await queue.get_job("job", job.id) is None


@pytest.mark.parametrize("value", GARBAGE)
@pytest.mark.parametrize("state", ["c", "f"])
async def test_who_waits_is_told_whatever_the_outcome_holds(queue, redis, state, value):
    job = await queue.add("job")
    await redis.hset(job._keys.job(job.id), mapping={"x": state, "a": "1", "v" if state == "c" else "e1": value})
    try:
        async with asyncio.timeout(5):
            await job.wait()
        told, text = "c", job.id
    except (PayloadError, JobFailedError) as error:
        told = "c" if isinstance(error, PayloadError) else "f"
        text = str(error)
    assert told == state
    assert job.id in text


LINES = {
    "a character across the cut": "x" + "é" * 5000,
    "three bytes": "€" * 9000,
    "four bytes": "ab" + "𝄞" * 5000,
    "to the byte": "x" * 8192,
    "one too many": "x" * 8193,
    "lone surrogates": "\ud800" * 10_000,
    "empty": "",
    "lines": "a\nb\r\n" * 3000,
    "twenty megabytes": "y" * 20_000_000,
}


async def test_log_lines_are_cut_between_characters_and_come_back(runtime):
    @runtime.job("job", limiter=None)
    async def job(data, job):
        for line in LINES.values():
            await job.log(line)
        for bad in (7, b"bytes" * 1000, None):
            with pytest.raises(PayloadError, match=r"^job.log\(.{1,100}expected text$"):
                await job.log(bad)

    async with runtime:
        added = await job.add(1)
        await added.wait(20)
        found = await runtime.queue.get_job("job", added.id)
    for given_line, line in zip(LINES.values(), found.logs, strict=True):
        written = given_line.encode(errors="replace").decode()
        assert written.startswith(line)
        assert 8188 < len(line.encode()) <= 8192 or line == written


@pytest.mark.parametrize("value", ["garbage", "", "-7", "99999999999999999999", "9007199254740993", "1.5"])
async def test_a_line_is_kept_whatever_their_number_holds(runtime, redis, value):
    @runtime.job("job", limiter=None)
    async def job(data, job):
        await redis.hset(job.keys.job(job.id), "ln", value)
        await job.log("one")
        await job.log("two")

    async with runtime:
        added = await job.add(1)
        await added.wait(20)
        assert (await runtime.queue.get_job("job", added.id)).logs == ("one", "two")


CHANNEL_GARBAGE = [b"", b"|", b"x|", b"\xff|\xfe", b"1", b"9" * 5000 + b"|", b"0|\xff", b"\x93\x00", b"-3|"]


async def test_garbage_on_a_channel_is_told_seldom_and_stops_nothing(runtime, redis, prefix, caplog):
    runtime.job("job", limiter=None)(lambda data: data)
    runtime.job("grouped", limiter=None, group=True)(lambda data: data)
    async with runtime:
        channels = runtime._assembly.broker.subscriber._handlers
        for _ in range(100):
            for channel, garbage in itertools.product(list(channels), CHANNEL_GARBAGE):
                await redis.publish(channel, garbage)
        assert await (await runtime.queue.add("job", 1)).wait(10) == 1
        assert await (await runtime.queue.add("grouped", 2, group_id="a")).wait(10) == 2
    said = [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]
    assert len(said) <= len(channels) + 1
    assert all(len(record.getMessage()) < 3000 and record.exc_info is None for record in said)
    assert not any(re.search("data_received|never retrieved", record.getMessage()) for record in caplog.records)
    assert said
