"""What must be known before something is done: where that is refused, it is not done; where it was not, it is found."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from asyncjobs import Runtime
from asyncjobs.broker.keys import Keys, groups_key, index_keys
from asyncjobs.errors import BrokerError, BrokerUnavailableError
from tests.helpers import eventually


async def everything(client, prefix: str, group: str) -> dict[str, object]:
    """What there is of a group's queue, and whether it would be found."""
    keys = Keys(prefix, "job", group)
    registered = await client.type(groups_key(prefix, "job")) == b"zset" and await client.zscore(
        groups_key(prefix, "job"), group
    )
    return {
        "waiting": await client.xlen(keys.stream),
        "delayed": await client.zcard(keys.delayed),
        "found": registered is not None and registered is not False,
    }


NOTHING = {"waiting": 0, "delayed": 0, "found": False}


@pytest.fixture
async def runtime(make_runtime):
    runtime = make_runtime(consume=False)
    runtime.job("job", group=True)(lambda data: None)
    runtime.job("plain")(lambda data: None)
    async with runtime:
        yield runtime


@pytest.mark.parametrize("delay", [0, 60])
@pytest.mark.parametrize("bulk", [False, True])
async def test_a_registry_of_a_foreign_type_refuses_the_add_whole(runtime, redis, prefix, delay, bulk):
    await redis.set(groups_key(prefix, "job"), "not a zset")
    many = [("job", i, {"group_id": "a", "delay": delay}) for i in range(1200 if bulk else 1)]
    with pytest.raises(BrokerError, match="WRONGTYPE"):
        await runtime.queue.add_bulk(many)
    assert (await runtime.queue.add("plain", 1)).added
    assert await everything(redis, prefix, "a") == NOTHING
    await redis.delete(groups_key(prefix, "job"))
    assert (await runtime.queue.add("job", 1, group_id="a", delay=delay, job_id="mine")).added
    assert await everything(redis, prefix, "a") == {
        "waiting": int(not delay),
        "delayed": int(bool(delay)),
        "found": True,
    }


REFUSALS = {
    "out of memory": (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
    "no permission for the registry": (
        ("ACL", "SETUSER", "guest", "resetkeys", "~{PREFIX}*", "~{PREFIX:plain}*", "~{PREFIX:job:*"),
        ("ACL", "SETUSER", "guest", "allkeys"),
    ),
    "no permission for its command": (
        ("ACL", "SETUSER", "guest", "-zadd"),
        ("ACL", "SETUSER", "guest", "+zadd"),
    ),
    "no good replica": (
        ("CONFIG", "SET", "min-replicas-to-write", "1"),
        ("CONFIG", "SET", "min-replicas-to-write", "0"),
    ),
}


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_an_add_to_a_group_that_is_refused_is_not_there(tcp_server, prefix, refusal):
    admin = tcp_server.client()
    await admin.execute_command("ACL", "SETUSER", "guest", "on", ">secret", "allkeys", "allchannels", "+@all")
    url = f"redis://guest:secret@127.0.0.1:{tcp_server.port}/0"
    shut, reopened = ([word.replace("PREFIX", prefix) for word in words] for words in REFUSALS[refusal])
    async with Runtime(url, prefix=prefix, connect_timeout=0.5, consume=False) as runtime:
        runtime.job("job", group=True)(lambda data: None)
        await admin.execute_command(*shut)
        told = await asyncio.gather(
            runtime.queue.add("job", 1, group_id="a"),
            runtime.queue.add_bulk([("job", i, {"group_id": f"g{i}"}) for i in range(20)]),
            return_exceptions=True,
        )
        assert {isinstance(one, BrokerError) for one in told} == {True}
        for group in ("a", *(f"g{i}" for i in range(20))):
            assert await everything(admin, prefix, group) == NOTHING
        await admin.execute_command(*reopened)
        await runtime.queue.add("job", 1, group_id="a")
        assert await everything(admin, prefix, "a") == {"waiting": 1, "delayed": 0, "found": True}
    await admin.aclose()


async def test_an_add_whose_answer_is_never_known_is_found_if_it_is_there(proxy, tcp_server, prefix):
    """Whatever was lost of it: the request, or the reply, again and again."""
    admin: Redis = tcp_server.client()
    async with Runtime(proxy.url, prefix=prefix, connect_timeout=0.3, consume=False) as runtime:
        runtime.job("job", group=True)(lambda data: None)
        for i in range(20):
            proxy.drop("drop-reply" if i % 2 else "drop-request", 1000)
            with pytest.raises(BrokerUnavailableError):
                await runtime.queue.add("job", 1, group_id=f"g{i}")
            proxy.mode = "pass"
            there = await everything(admin, prefix, f"g{i}")
            assert there["waiting"] in (0, 1)
            assert there["found"] or not there["waiting"]
    await admin.aclose()


@pytest.mark.parametrize("damaged", ["completed", "failed", "registry"])
@pytest.mark.parametrize("outcome", ["completed", "failed"])
async def test_a_job_of_a_group_ends_listed_or_not_at_all(make_runtime, redis, prefix, damaged, outcome):
    runtime = make_runtime()
    began = asyncio.Event()
    key = dict(zip(("completed", "failed"), index_keys(prefix, "job"), strict=False)).get(
        damaged, groups_key(prefix, "job")
    )

    @runtime.job("job", group=True, limiter=None, attempts=1)
    async def job(data):
        await redis.delete(key)
        await redis.set(key, "not a zset")
        began.set()
        if outcome == "failed":
            raise ValueError("no")

    async def states():
        return (await runtime.queue.get_job("job", added.id, "a")).state

    async with runtime:
        added = await job.add(1, group_id="a")
        await began.wait()
        broken = damaged in (outcome, "registry")
        if broken:
            refused = runtime._assembly.pump.throttled
            await eventually(lambda: refused._said, 10, "the refusal is told")
            assert await states() == "active"
            await redis.delete(key)
        await eventually(lambda: ended(states, outcome), 20)
        listed = await redis.zrange(index_keys(prefix, "job")[outcome == "failed"], 0, -1)
        assert listed == [f"1:a{added.id}".encode()]
        await redis.delete(key)


async def ended(states, outcome):
    return await states() == outcome
