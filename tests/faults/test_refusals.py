"""A store that says no: what is wrong is named, nothing is half done, and what is only "not now" is tried again."""

from __future__ import annotations

import asyncio
import logging
import shutil
import subprocess
import time

import pytest

from asyncjobs import BrokerError, BrokerUnavailableError, ConfigError, Runtime
from tests.helpers import Server, Watcher, eventually, free_port

# The rule of the README, for the tests' prefix.
RULE = (
    "resetkeys resetchannels ~{%s* &%s:* -@all +@read +@write +@stream +@scripting +@connection +time +publish "
    "+subscribe +unsubscribe +wait -@dangerous +info -function"
)
NOT_NOW = [
    "MISCONF Errors writing to the AOF file: No space left on device",
    "NOREPLICAS Not enough good replicas to write.",
    "BUSY Redis is busy running a script.",
    "LOADING Redis is loading the dataset in memory",
    "MASTERDOWN Link with MASTER is down",
    "CLUSTERDOWN The cluster is down",
    "UNBLOCKED the stream key no longer exists",
    "READONLY You can't write against a read only replica.",
    "TRYAGAIN Multiple keys request during rehashing of slot",
]


@pytest.mark.parametrize("error", NOT_NOW)
async def test_what_is_only_not_now_is_tried_again(proxy, prefix, error):
    """Answered to an add, to a turn, to a heartbeat, whatever comes first, several times over."""
    runtime = Runtime(proxy.url, prefix=prefix, connect_timeout=10)
    seen = Watcher(runtime)
    runtime.job("echo", limiter=None, lease=0.4)(lambda data: data)
    async with runtime:
        for i in range(3):
            proxy.errors.extend([error] * 3)
            job = await runtime.queue.add("echo", i)
            assert await job.wait(10) == i
        await eventually(lambda: not proxy.errors)
        assert await (await runtime.queue.add("echo", "after")).wait(10) == "after"
    assert proxy.happened >= 9
    assert len(seen.all("job.completed")) == 4


async def test_an_evicting_store_is_refused_unless_told_otherwise(tcp_server, prefix, caplog):
    async with tcp_server.client() as redis:
        await redis.config_set("maxmemory-policy", "allkeys-lru")
    with pytest.raises(ConfigError, match=r"maxmemory-policy is 'allkeys-lru'.*noeviction.*allow_eviction"):
        await Runtime(tcp_server.url, prefix=prefix).start()
    caplog.set_level(logging.INFO, "asyncjobs")
    async with Runtime(tcp_server.url, prefix=prefix, allow_eviction=True) as runtime:
        assert runtime.health()["keeps"] == "nothing kept over a restart"
    assert "keeps nothing over a restart" in caplog.text
    assert "allkeys-lru" in caplog.text


async def test_what_the_store_keeps_is_said(durable_server, prefix, caplog):
    caplog.set_level(logging.INFO, "asyncjobs")
    async with Runtime(durable_server.url, prefix=prefix) as runtime:
        assert runtime.health()["keeps"] == "append-only file (fsync always)"
    assert "append-only file (fsync always), noeviction, no replica" in caplog.text
    assert "keeps nothing" not in caplog.text


async def test_a_replica_is_no_store(tcp_server, tmp_path, prefix):
    replica = Server(tmp_path, tcp=True).start("--replicaof", "127.0.0.1", str(tcp_server.port))
    try:
        with pytest.raises(BrokerUnavailableError, match="is a replica and takes no writes; name its primary"):
            await Runtime(replica.url, prefix=prefix, connect_timeout=0.5).start()
    finally:
        replica.stop()


@pytest.fixture
async def as_user(tcp_server, prefix):
    """The URL of a user with the documented rule, and `deny`, which takes one command off it."""
    redis = tcp_server.client()
    rule = (RULE % (prefix, prefix)).split()
    await redis.execute_command("ACL", "SETUSER", "jobs", "on", ">secret", *rule)

    async def deny(*commands: str) -> None:
        await redis.execute_command("ACL", "SETUSER", "jobs", "on", *rule, *(f"-{one}" for one in commands))

    yield f"redis://jobs:secret@127.0.0.1:{tcp_server.port}/0", deny
    await redis.aclose()


async def test_the_documented_rule_is_enough_for_everything(as_user, prefix):
    url, _ = as_user
    runtime = Runtime(url, prefix=prefix, sweep_interval=0.2)
    seen = Watcher(runtime)

    @runtime.job("work", limiter=None, lease=0.4, attempts=2, backoff=0.05, remove_on_complete=2)
    async def work(data, job):
        await job.update_progress(1)
        await job.log("line")
        if not job.attempts_made:
            raise ValueError
        return data

    runtime.job("tenant", group=True, group_idle=0.2, remove_on_complete=2)(lambda data: data)
    runtime.task("* * * * * *", name="poll")(lambda: None)
    async with runtime:
        for i in range(4):
            assert await (await runtime.queue.add("work", i, delay=0.05)).wait(10) == i
            assert await (await runtime.queue.add("tenant", i, group_id=f"g{i}")).wait(10) == i
        await seen("group.reaped", count=4)
        await seen("task.fired", count=2)
        assert (await runtime.queue.counts("tenant"))["completed"] == 2
        await runtime.wait_idle(10)


@pytest.mark.parametrize(
    "denied", ["xadd", "time", "publish", "xgroup|delconsumer", "subscribe", "hset", "evalsha", "zscan"]
)
async def test_a_missing_permission_is_named_at_start(as_user, prefix, denied):
    url, deny = as_user
    await deny(denied)
    name = denied.replace("|", " ").split(" ")[-1]
    with pytest.raises(BrokerError, match=rf"(?i)\b{name}\b"):
        await Runtime(url, prefix=prefix).start()


async def test_keys_or_channels_of_others_are_named_at_start(as_user, prefix):
    url, _ = as_user
    with pytest.raises(BrokerError, match=r"which begin with '\{other' and 'other:'"):
        await Runtime(url, prefix="other").start()


async def test_wrong_credentials_fail_at_once(as_user, prefix):
    url, _ = as_user
    began = time.monotonic()
    with pytest.raises(BrokerError, match="refused the credentials") as caught:
        await Runtime(url.replace("secret", "guess"), prefix=prefix).start()
    assert time.monotonic() - began < 5, "waiting does not make them right"
    assert "guess" not in str(caught.value)


async def test_a_foreign_type_at_one_queue_leaves_the_others_alone(runtime, redis, seen, prefix, caplog):
    runtime.job("plain", limiter=None)(lambda data: data)
    runtime.job("tenant", limiter=None, group=True)(lambda data: data)
    async with runtime:
        broken = [runtime.queue._broker.queue_keys("tenant", f"g{n}") for n in range(40)]
        for keys in broken:
            await redis.set(keys.stream, "somebody else's")
        for n in range(40):
            with pytest.raises(BrokerError, match="WRONGTYPE"):
                await runtime.queue.add("tenant", n, group_id=f"g{n}")
        runtime._assembly.queues.registries["tenant"].wake("g0")
        for n in range(1, 40):
            runtime._assembly.queues.registries["tenant"].wake(f"g{n}")
        assert await (await runtime.queue.add("plain", 1)).wait(5) == 1
        assert await (await runtime.queue.add("tenant", 2, group_id="whole")).wait(5) == 2
        await eventually(lambda: "is left alone" in caplog.text)
        assert await (await runtime.queue.add("plain", 3)).wait(5) == 3
        for keys in broken:
            await redis.delete(keys.stream)
        assert await (await runtime.queue.add("tenant", 4, group_id="g7")).wait(15) == 4, "it comes out of quarantine"
    assert caplog.text.count("is left alone") <= 2, "one line for all of them, not one each"


async def test_garbage_in_a_record_fails_that_job_alone(runtime, redis, seen):
    order: list[object] = []
    runtime.job("work", limiter=None, concurrency=1, attempts=5)(lambda data: order.append(data))
    adder = runtime.only_adding()
    async with adder as queue:
        jobs = [await queue.add("work", n, attempts=3) for n in range(4)]
        keys = queue._broker.queue_keys("work", None)
        await redis.hset(keys.job(jobs[0].id), "o", "\x00garbage")
        await redis.hset(keys.job(jobs[1].id), "d", "\xff{not json")
        await redis.delete(keys.job(jobs[2].id))
    async with runtime:
        await runtime.wait_idle(10)
        first, second = [await runtime.queue.get_job("work", job.id) for job in jobs[:2]]
        assert (first.state, first.attempts_made) == ("failed", 1)
        assert "options" in str(first.error)
        assert (second.state, second.attempts_made) == ("failed", 1)
        assert await runtime.queue.get_job("work", jobs[2].id) is None
    assert order == [3]


@pytest.fixture
def tls(tmp_path_factory):
    """A server that speaks TLS, and who signed for it; skipped where no server at hand can."""
    import trustme

    binary = shutil.which("redis-server")
    linked = binary and subprocess.run(["ldd", binary], capture_output=True, text=True, check=False).stdout
    if not linked or "libssl" not in linked:
        pytest.skip("no redis-server with TLS on this machine; the embedded store's binary has none")
    folder = tmp_path_factory.mktemp("tls")
    authority, stranger = trustme.CA(), trustme.CA()
    certificate = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    stranger.cert_pem.write_to_path(folder / "stranger.pem")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    port = free_port()
    server = Server(folder, tcp=True, binary=binary).start(
        "--tls-port", str(port), "--tls-cert-file", str(folder / "cert.pem"), "--tls-key-file", str(folder / "key.pem"),
        "--tls-ca-cert-file", str(folder / "ca.pem"), "--tls-auth-clients", "no",
    )  # fmt: skip
    yield server, port, folder
    server.stop()


async def test_tls_works_where_it_should_and_fails_at_once_where_not(tls, prefix):
    server, port, folder = tls
    runtime = Runtime(f"rediss://localhost:{port}/0?ssl_ca_certs={folder}/ca.pem", prefix=prefix)
    runtime.job("echo", limiter=None)(lambda data: data)
    async with runtime:
        assert await (await runtime.queue.add("echo", 1)).wait(10) == 1
    for url, reason in (
        (f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={folder}/ca.pem", "IP address mismatch|certificate"),
        (f"rediss://localhost:{port}/0?ssl_ca_certs={folder}/stranger.pem", "certificate verify failed"),
    ):
        began = time.monotonic()
        with pytest.raises(BrokerError, match=reason):
            await Runtime(url, prefix=prefix).start()
        assert time.monotonic() - began < 5
    for mixed in (f"redis://127.0.0.1:{port}/0", f"rediss://127.0.0.1:{server.port}/0?ssl_ca_certs={folder}/ca.pem"):
        with pytest.raises(BrokerUnavailableError):
            await Runtime(mixed, prefix=prefix, connect_timeout=0.5).start()


@pytest.mark.slow
async def test_two_thousand_busy_groups_share_a_handful_of_connections(make_runtime, redis):
    runtime = make_runtime(concurrency=3000)
    go, running = asyncio.Event(), 0

    @runtime.job("tenant", limiter=None, group=True)
    async def tenant(data):
        nonlocal running
        running += 1
        await go.wait()

    before = len(await redis.client_list())
    async with runtime:
        await runtime.queue.add_bulk([("tenant", n, {"group_id": f"g{n}"}) for n in range(2000)])
        await eventually(lambda: running == 2000, 30)
        assert len(await redis.client_list()) - before <= 8
        go.set()
        await runtime.wait_idle(30)
