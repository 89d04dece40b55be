"""Two databases of one server: nothing of the one is heard, or believed, in the other."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from redis.asyncio import Redis

from asyncjobs import Runtime
from asyncjobs.broker.address import Address
from asyncjobs.broker.keys import Channels
from benchmarks.servers import Sentinels
from tests.helpers import Server, eventually


@pytest.fixture
def tcp(tmp_path: Path):
    server = Server(tmp_path, tcp=True).start()
    yield server
    server.stop()


@pytest.fixture
def unix(own_server):
    return own_server


WAYS = ["path", "query", "client", "client of a URL"]


async def store(server: Server, how: str, database: int):
    """A database of the server, named in one of the ways there are."""
    if how == "path":
        return f"redis://127.0.0.1:{server.port}/{database}"
    if how == "query":
        base = f"redis://127.0.0.1:{server.port}" if server.tcp else server.url
        return f"{base}?db={database}"
    if how == "client":
        return Redis(port=server.port, db=database)
    return Redis.from_url(f"redis://127.0.0.1:{server.port}/{database}")


def runtime_of(target, results: dict[str, list], word: str, prefix="same") -> Runtime:
    runtime = Runtime(target, prefix=prefix, sweep_interval=3600)

    @runtime.job("echo", limiter=None)
    async def echo(data):
        results.setdefault(word, []).append(data)
        return f"{word} {data}"

    @runtime.job("tenant", limiter=None, group=True)
    async def tenant(data):
        return f"{word} {data}"

    return runtime


@pytest.mark.parametrize("how", WAYS)
async def test_a_result_is_heard_in_its_own_database_alone(tcp, how):
    ran: dict[str, list] = {}
    targets = [await store(tcp, how, database) for database in (0, 1, 12)]
    runtimes = [runtime_of(one, ran, f"db{n}") for n, one in zip((0, 1, 12), targets, strict=True)]
    async with runtimes[0], runtimes[1], runtimes[2]:
        for name, options in (("echo", {}), ("tenant", {"group_id": "acme"})):
            for n in range(5):
                job_id = f"{name}-{n}"
                jobs = [await one.queue.add(name, n, job_id=job_id, delay=0.02 * (3 - i), **options)
                        for i, one in enumerate(runtimes)]  # fmt: skip
                results = await asyncio.gather(*(job.wait(10) for job in jobs))
                assert results == [f"db0 {n}", f"db1 {n}", f"db12 {n}"]
    for target in targets:
        if isinstance(target, Redis):
            await target.aclose()


@pytest.mark.parametrize("how", WAYS)
async def test_no_channel_is_common_to_two_databases(tcp, how):
    """Of those that are listened to, and of those that are spoken on."""
    redis = tcp.client()
    heard: dict[int, set[bytes]] = {}
    spoken: dict[int, set[bytes]] = {}
    for database in (0, 1, 2):
        target = await store(tcp, how, database)
        everything = redis.pubsub()
        await everything.psubscribe("*")
        runtime = runtime_of(target, {}, "x")
        async with runtime:
            waiting = [
                await runtime.queue.add("echo", 1, delay=1),  # somebody waits for it by then, on a busy machine too
                await runtime.queue.add("tenant", 1, group_id="g"),
            ]
            await asyncio.gather(*(job.wait(10) for job in waiting))
            await runtime.queue.job("echo").pause()
            await runtime.queue.job("tenant").pause()
            heard[database] = set(await redis.pubsub_channels())
        messages = []
        while (message := await everything.get_message(timeout=0.2)) is not None:
            messages.append(message)
        spoken[database] = {one["channel"] for one in messages if one["type"] == "pmessage"}
        await everything.aclose()
        if isinstance(target, Redis):
            await target.aclose()
        assert spoken[database] <= heard[database]
        assert len(spoken[database]) == 4, "the news of two names, what has finished, and what is set"
        assert all(one.startswith(b"same:") for one in heard[database]), "as the README's rule allows"
    assert not heard[0] & heard[1]
    assert not heard[0] & heard[2]
    assert not heard[1] & heard[2]
    await redis.aclose()


async def test_the_database_of_a_unix_socket(unix):
    ran: dict[str, list] = {}
    first, second = runtime_of(unix.url, ran, "a"), runtime_of(f"{unix.url}?db=1", ran, "b")
    async with first, second:
        one = await first.queue.add("echo", 1, job_id="x", delay=0.1)
        two = await second.queue.add("echo", 2, job_id="x", delay=0.2)
        assert await asyncio.gather(one.wait(5), two.wait(5)) == ["a 1", "b 2"]
    assert ran == {"a": [1], "b": [2]}


@pytest.mark.slow
async def test_the_database_behind_sentinels():
    trio = Sentinels()
    try:
        await trio.start()
        ran: dict[str, list] = {}
        first, second = runtime_of(trio.url, ran, "a"), runtime_of(trio.url.rpartition("/")[0] + "/3", ran, "b")
        async with first, second:
            assert (first._assembly.broker.channels.database, second._assembly.broker.channels.database) == (0, 3)
            one = await first.queue.add("echo", 1, job_id="x", delay=0.1)
            two = await second.queue.add("echo", 2, job_id="x", delay=0.2)
            assert await asyncio.gather(one.wait(5), two.wait(5)) == ["a 1", "b 2"]
    finally:
        await trio.stop()


async def test_news_of_one_database_wake_nobody_in_the_other(tcp):
    first, second = [runtime_of(await store(tcp, "path", database), {}, f"{database}") for database in (0, 1)]

    async with first, second:
        await eventually(lambda: first.health()["connected"] and second.health()["connected"])
        redis = Redis(port=tcp.port, db=1)
        await (await second.queue.add("echo", 0)).wait(5)
        await asyncio.sleep(0.2)
        looked = second._assembly.queues.consumers["echo"].calls
        for n in range(20):
            await (await first.queue.add("echo", n)).wait(5)
        assert second._assembly.queues.consumers["echo"].calls == looked
        await redis.aclose()


def test_a_cluster_has_one_database_and_database_0_keeps_its_names():
    assert Address("redis+cluster://127.0.0.1:1", 1).database == 0
    assert Address("redis://127.0.0.1:1", 1).database == 0
    assert Address("redis+sentinel://127.0.0.1:1/mymaster/4", 1).database == 4
    assert (Channels("p").news("a"), Channels("p").done) == ("p:news:a", "p:done")
    assert (Channels("p", 4).news("a"), Channels("p", 4).done) == ("p:4:news:a", "p:4:done")
