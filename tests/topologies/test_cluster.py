"""A real Cluster of three primaries and three replicas: queues and groups spread over the shards and follow them."""

from __future__ import annotations

import pytest

from asyncjobs import Backoff, ConfigError, Limiter, Runtime
from asyncjobs.broker import AddCall
from benchmarks.servers import Cluster
from tests.faults.load import Load
from tests.helpers import Server, Watcher, eventually


@pytest.fixture
async def cluster():
    cluster = Cluster()
    try:
        yield await cluster.start()
    finally:
        await cluster.stop()


@pytest.mark.slow
async def test_everything_works_on_a_cluster_and_groups_spread_over_its_shards(cluster):
    runtime = Runtime(cluster.url, prefix="shop")
    seen = Watcher(runtime)
    ran: list[str] = []

    @runtime.job("echo", limiter=Limiter(50, 0.2), attempts=2, backoff=Backoff("fixed", 0.05))
    async def echo(data, job):
        if data == "retry" and job.attempts_made == 0:
            raise ValueError
        return data

    @runtime.job("sync", group=True, limiter=None, group_idle=0.3, remove_on_complete=20)
    async def sync(data, job):
        ran.append(job.group_id)

    @runtime.task("* * * * * *", name="poll")
    async def poll(): ...

    async with runtime:
        assert await (await runtime.queue.add("echo", {"n": 1})).wait(10) == {"n": 1}
        assert await (await runtime.queue.add("echo", "retry", delay=0.1)).wait(10) == "retry"
        groups = [f"tenant-{i}" for i in range(40)]
        await runtime.queue.add_bulk([("sync", i, {"group_id": group}) for group in groups for i in range(3)])
        spread = [await cluster.clients[node.port].dbsize() for node in await cluster.primaries()]
        assert all(keys > 0 for keys in spread), spread
        await runtime.wait_idle(20)
        assert sorted(ran) == sorted(groups * 3)
        await seen("group.reaped", count=40)
        assert await runtime.queue.groups("sync") == []
        await eventually(lambda: _kept(runtime, 20), what="retention is per name, over all shards")
        await seen("task.fired")
        assert (await runtime.queue.counts("echo"))["completed"] == 2


async def _kept(runtime, count):
    return (await runtime.queue.counts("sync"))["completed"] == count


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "durability"),
    [("graceful", "replicated"), ("kill -9", "replicated"), ("kill -9", "local"), ("freeze", "local")],
)
async def test_a_failover_under_load_is_followed_and_the_other_shards_go_on(cluster, how, durability):
    runtime = Runtime(cluster.url, durability=durability, connect_timeout=20)
    load = Load(runtime)
    async with runtime, load:
        await load.goes_on()
        queues = [""] + [f"g{n}" for n in range(load.groups)]
        keys = {one: runtime.queue._broker.queue_keys(*(("tenant", one) if one else ("plain", None))) for one in queues}
        owners = {one: (await cluster.owner(keys[one].stream))[1] for one in queues}
        _, registry = await cluster.owner("{asyncjobs:tenant}:groups")
        victim = next(node for node in await cluster.primaries() if node is not registry)
        others = {one for one, owner in owners.items() if owner is not victim}
        load.longest_gap.clear()
        replica = cluster.data[cluster.data.index(victim) + 3]
        if how == "graceful":
            await cluster.clients[replica.port].execute_command("CLUSTER", "FAILOVER")
        elif how == "kill -9":
            victim.kill()
        else:
            victim.freeze(True)

        async def taken_over():
            return replica in await cluster.primaries()

        if how != "freeze":  # a frozen node would be asked as well
            await eventually(taken_over, 20, "its replica has taken over")
        if how == "kill -9":
            victim.again()  # as a replica from now on: without one, nothing could be confirmed
        await load.goes_on(within=10)
        # A second for a frozen node, two for replicas that cannot confirm any more.
        pause = 2 * (durability == "replicated") + (how == "freeze") + 1.5
        assert max(load.longest_gap[one] for one in others) < pause, "other shards hardly notice"
        await load.end()
    assert load.lost == []
    assert load.twice == []


@pytest.mark.slow
async def test_slots_that_move_under_load_lose_and_repeat_nothing(cluster):
    runtime = Runtime(cluster.url, connect_timeout=20)
    load = Load(runtime)
    async with runtime, load:
        await load.goes_on()
        broker = runtime.queue._broker
        keys = [broker.queue_keys("plain", None)] + [broker.queue_keys("tenant", f"g{n}") for n in range(4)]
        for one in [*keys, *keys]:
            for node in await cluster.primaries():
                await cluster.clients[node.port].script_flush()
            slot, owner = await cluster.owner(one.stream)
            await cluster.move_slot(slot, next(node for node in await cluster.primaries() if node is not owner))
        await load.goes_on(within=20)
        await load.end()
    assert load.lost == []
    assert load.twice == []


async def test_news_that_is_lost_between_nodes_strands_no_open_group(cluster, prefix):
    """A node that heard of a job need not reach the one that this process listens to; no link of ours shows that."""
    runtime = Runtime(cluster.url, prefix=prefix, sweep_interval=0.3)
    ran: list[tuple[str, int]] = []

    @runtime.job("tenant", limiter=None, group=True)
    async def tenant(data, job):
        ran.append((job.group_id, data))

    async with runtime:
        await runtime.queue.add_bulk([("tenant", 0, {"group_id": f"g{n}"}) for n in range(150)])
        await eventually(lambda: len(ran) == 150)
        await runtime.wait_idle(10)
        broker = runtime.queue._broker

        for n in (0, 75, 149):  # as if the channel led nowhere
            place = broker.place("tenant", f"g{n}")._replace(news=f"{prefix}:nowhere")
            broker._adds.follow_ups = lambda places: []
            await broker.add([AddCall(place, f"job-{n}", "in", 0, b"1", b"", True)])
        await eventually(lambda: sorted(ran[150:]) == [("g0", 1), ("g149", 1), ("g75", 1)], 20)


async def test_one_server_is_no_cluster(own_server, tmp_path):
    tcp = Server(tmp_path, tcp=True).start()
    try:
        with pytest.raises(Exception, match="is no Cluster"):
            await Runtime(f"redis+cluster://127.0.0.1:{tcp.port}", connect_timeout=2).start()
    finally:
        tcp.stop()
    with pytest.raises(ConfigError, match="no numbered databases"):
        await Runtime("redis+cluster://127.0.0.1:1/3").start()
