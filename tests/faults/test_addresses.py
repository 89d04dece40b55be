"""Addresses that cannot be, or lead elsewhere: one error each, with what to do, and without a piece of a password."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import string
import traceback
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.asyncio.sentinel import Sentinel

from asyncjobs import BrokerError, BrokerUnavailableError, ConfigError, Runtime
from asyncjobs.broker.address import Address
from asyncjobs.broker.url import parsed
from benchmarks.servers import Cluster, Sentinels, free_port
from tests.helpers import Server, command_line

SECRET = "Xq7zKv9wJ"


# What a URL says -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("url", "hosts", "options"),
    [
        ("redis://localhost", [("localhost", 6379)], {}),
        ("redis://localhost/", [("localhost", 6379)], {}),
        (" redis://h:1/2\n", [("h", 1)], {"db": 2}),
        ("REDIS://h:1", [("h", 1)], {}),
        ("redis://[::1]:7000/3", [("::1", 7000)], {"db": 3}),
        ("redis://u:p@[2001:db8::1]", [("2001:db8::1", 6379)], {"username": "u", "password": "p"}),
        ("redis://:p%2F%23%3F%40@h", [("h", 6379)], {"password": "p/#?@"}),
        ("redis://:a:b@c@h", [("h", 6379)], {"password": "a:b@c"}),
        ("redis://h?db=4&client_name=web+1", [("h", 6379)], {"db": 4, "client_name": "web 1"}),
        ("redis://h?password=a%26b&username=u", [("h", 6379)], {"username": "u", "password": "a&b"}),
        ("redis+sentinel://[::1]:1,b,[::2]/m/5", [("::1", 1), ("b", 26379), ("::2", 26379)], {"db": 5}),
        ("redis+cluster://u:p@[::1]:1,b", [("::1", 1), ("b", 6379)], {"username": "u", "password": "p"}),
        ("rediss://h?ssl_cert_reqs=CERT_NONE&ssl_check_hostname=false", [("h", 6379)],
         {"ssl_cert_reqs": "none", "ssl_check_hostname": False}),
        ("rediss+cluster://h?ssl_min_version=1.3", [("h", 6379)], {"ssl_min_version": 772}),
        ("rediss+sentinel://h/m?ssl_cert_reqs=none", [("h", 26379)], {"ssl_cert_reqs": "none"}),
        ("unix:///tmp/a%20b@c.sock?db=1", [], {"db": 1}),
        ("unix://u:p@/tmp/x", [], {"username": "u", "password": "p"}),
    ],
)  # fmt: skip
def test_a_url_is_taken_apart(url, hosts, options):
    made = parsed(url)
    assert (made.hosts, made.options) == (hosts, options)
    assert "p%2F" not in made.shown
    assert Address(url, 1).text == made.shown


def test_every_scheme_takes_the_options_of_tls(tmp_path):
    (tmp_path / "ca.pem").write_text("")
    for rest in ("rediss://h", "rediss+sentinel://h/m", "rediss+cluster://h"):
        pool = Address(f"{rest}?ssl_ca_certs={tmp_path}/ca.pem&ssl_cert_reqs=optional", 1)._pool
        given = {name: pool.connection_kwargs[name] for name in ("ssl_ca_certs", "ssl_cert_reqs")}
        assert given == {"ssl_ca_certs": f"{tmp_path}/ca.pem", "ssl_cert_reqs": "optional"}


BAD = [
    ("", "unknown scheme, expected redis://"),
    ("localhost:6379", "unknown scheme, expected redis://"),
    (f"user:{SECRET}@host", "unknown scheme, expected redis://"),
    (f"http://:{SECRET}@host", "unknown scheme http://, expected redis://"),
    (f"redi://:{SECRET}@host", "did you mean redis://"),
    (f"redis:/:{SECRET}@host", "unknown scheme, expected redis://"),
    (f"redis+sentinell://:{SECRET}@host", r"did you mean redis\+sentinel://"),
    ("redis://", "names no host"),
    ("redis:///0", "names no host"),
    (f"redis://:{SECRET}@", "names no host"),
    (f"redis://:{SECRET}@:6379/0", "names no host"),
    (f"redis://:{SECRET}", "names no host|port is a number"),
    (f"redis://user:{SECRET}", "port is a number"),
    (f"redis://:{SECRET}@h:", "port is a number"),
    (f"redis://:{SECRET}@h:abc", "port is a number"),
    (f"redis://:{SECRET}@h:0", "port is a number"),
    (f"redis://:{SECRET}@h:65536", "port is a number"),
    (f"redis://:{SECRET}@h:1:2", "host is none"),
    (f"redis://:{SECRET}@::1", "names no host|in brackets"),
    (f"redis://:{SECRET}@fe80::1:6379", "in brackets"),
    (f"redis://:{SECRET}@[::1", "names no host|in brackets"),
    (f"redis://:{SECRET}@[::1]6379", "in brackets"),
    (f"redis://:{SECRET}@a b", "host is none"),
    (f"redis://:{SECRET}@h,i", "host is none"),
    (f"redis://:{SECRET}@h/x", "database is a number"),
    (f"redis://:{SECRET}@h/-1", "database is a number"),
    (f"redis://:{SECRET}@h/0/1", "database is a number"),
    (f"redis://:{SECRET}@h?db=x", "option db is a number"),
    (f"redis://:{SECRET}@h/1?db=2", "db is given twice"),
    (f"redis://:{SECRET}@h?ssl_ca_certs=/dev/null", "needs TLS, rediss://|not there"),
    (f"redis://:{SECRET}@h?ssl_cert_reqs=none", "needs TLS, rediss://"),
    (f"rediss://:{SECRET}@h?ssl_cert_reqs=nope", "one of none, optional, required"),
    (f"rediss://:{SECRET}@h?ssl_cert_req=none", "did you mean ssl_cert_reqs"),
    (f"rediss://:{SECRET}@h?ssl_ca_certs=/no/such/file", "ssl_ca_certs names a file that is not there"),
    (f"rediss://:{SECRET}@h?ssl_check_hostname=maybe", "is true or false"),
    (f"rediss://:{SECRET}@h?ssl_min_version=2", "is 1.2 or 1.3"),
    (f"redis://:{SECRET}@h?nonsense=1", "no option nonsense; .*allowed: username"),
    (f"redis://:{SECRET}@h?pasword={SECRET}", "did you mean password"),
    (f"redis://:{SECRET}@h?db", "name=value"),
    (f"redis://:{SECRET}@h?db=1&db=1", "given twice"),
    (f"redis://:{SECRET}@h?password={SECRET}2", "given twice"),
    (f"redis://:{SECRET}@h/0#x", "percent-encoded, %23"),
    (f"redis+sentinel://:{SECRET}@h", "names the service"),
    (f"redis+sentinel://:{SECRET}@h,/m", "names no host"),
    (f"redis+sentinel://:{SECRET}@h/m/x", "database is a number"),
    (f"redis+sentinel://:{SECRET}@h:x/m", "port is a number"),
    (f"redis+sentinel://h/m?sentinel_pass={SECRET}", "did you mean sentinel_password"),
    (f"redis+sentinel://h/m?sentinel_ssl_cert_reqs=none&sentinel_password={SECRET}", "need sentinel_ssl=true"),
    (f"redis+cluster://:{SECRET}@h/1", "no numbered databases"),
    (f"redis+cluster://:{SECRET}@h?db=1", "no numbered databases"),
    (f"redis+cluster://:{SECRET}@h,i:x", "port is a number"),
    (f"redis+cluster://:{SECRET}@", "names no host"),
    ("unix://tmp/x.sock", "whole path"),
    (f"unix://:{SECRET}@tmp/x.sock", "whole path"),
    ("unix://", "whole path"),
    (f"unix:///tmp/x?database={SECRET}", "no option database"),
    *(
        (f"{scheme}://{user}:{SECRET}{char}{SECRET}@{rest}", "percent-encoded")
        for scheme, rest in (("redis", "h:1/0"), ("rediss", "h"), ("redis+sentinel", "h,i/m"), ("redis+cluster", "h"))
        for user in ("", "user")
        for char in "/#?"
    ),
    *((f"unix://:{SECRET}{char}{SECRET}@/tmp/x", "percent-encoded") for char in "/#?"),
]


@pytest.mark.parametrize(("url", "text"), BAD)
async def test_a_url_that_cannot_be_is_one_error_without_any_secret(url, text, caplog):
    caplog.set_level(logging.DEBUG)
    runtime = Runtime(url) if url else None
    with pytest.raises(ConfigError, match=text) as caught:
        await (runtime.start() if runtime is not None else asyncio.sleep(0, Address(url, 1)))
    assert_silent(SECRET, caught.value, caplog.text, repr(runtime), str(runtime and runtime.health()))


def test_the_command_line_shows_no_secret(tmp_path):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "a.py").write_text("async def handle(data): ...\n")
    for url in (f"redis://:{SECRET}/{SECRET}@host/0", f"redis://:{SECRET}@host:x", f"htp://{SECRET}@host"):
        done = command_line(tmp_path, "stats", "--redis", url)
        assert done.returncode == 2
        assert done.stderr.startswith("error: redis=")
        assert SECRET not in done.stdout + done.stderr
        done = command_line(tmp_path, "stats", env={"ASYNCJOBS_REDIS_URL": url})
        assert done.returncode == 2
        assert SECRET not in done.stdout + done.stderr
    for key in (f'redis_url = "redis://:{SECRET}@host"', f'redis = ["redis://:{SECRET}@host"]'):
        (tmp_path / "pyproject.toml").write_text(f"[tool.asyncjobs]\n{key}\n")
        done = command_line(tmp_path, "stats")
        assert done.returncode == 2
        assert SECRET not in done.stdout + done.stderr


@pytest.mark.parametrize("target", [f"redis://:{SECRET}@h".encode(), Path(f"redis/{SECRET}"), 5, [f"redis://{SECRET}"]])
def test_what_is_no_url_is_named_by_its_type(target):
    with pytest.raises(ConfigError, match=f"redis={type(target).__name__}") as caught:
        Address(target, 1)
    assert SECRET not in str(caught.value)


# No piece of a secret ------------------------------------------------------------------------------------
def told(error: BaseException) -> str:
    """All that an error says, and what it was caused by, and what was being handled, as a log would print it."""
    text = "".join(traceback.format_exception(error))
    seen: list[BaseException] = [error]
    for one in seen:
        text += f"{one}\n{one!r}\n{one.args!r}\n"
        seen += [more for more in (one.__cause__, one.__context__) if more is not None and more not in seen]
    return text


def assert_silent(secret: str, error: BaseException, *texts: str, known: str = "") -> None:
    """No piece of `secret` of 4 characters is said, unless all say that anyway."""
    said = "\n".join([told(error), *texts])
    lines = [line for line in said.splitlines() if "Error(f" not in line and "SECRET" not in line]
    said = "\n".join(lines)
    pieces = {secret[i : i + 4] for i in range(max(1, len(secret) - 3))} if len(secret) >= 4 else set()
    assert [piece for piece in pieces if piece in said and piece not in known] == []


# What follows in a message anyway is no secret; letters that no message holds make up the pieces.
ALPHABET = "ÄÖXQZ%/#?@:[]&=+ ,;~^é漢\U0001f600\\'\"<>{}|0189"
PASSWORDS = st.one_of(st.text(ALPHABET, min_size=4, max_size=24), st.text(min_size=4, max_size=24),
                      st.text(string.punctuation + "QXZ", min_size=4, max_size=24))  # fmt: skip
TEMPLATES = [
    "redis://:{}@127.0.0.1:{port}/0", "redis://user:{}@127.0.0.1:{port}", "rediss://:{}@127.0.0.1:{port}",
    "redis://127.0.0.1:{port}/0?password={}", "redis+sentinel://:{}@127.0.0.1:{port}/mymaster",
    "redis+sentinel://127.0.0.1:{port}/mymaster?sentinel_password={}", "redis+cluster://:{}@127.0.0.1:{port}",
    "unix://:{}@/nowhere/x.sock", "redis://:{}@127.0.0.1:{port}/0?nonsense=1", "redis://:{}@127.0.0.1:x",
    "redis://:{}@", "redis://:{}@/0", "redis://:{}", "redis:/:{}@127.0.0.1", "{}", "redis://:{}@127.0.0.1:{port}/x",
    "redis://:{}@[::1]:{port}/0", "rediss://127.0.0.1:{port}?ssl_keyfile=/dev/null&ssl_password={}",
]  # fmt: skip


@pytest.fixture(scope="module")
def closed_port() -> int:
    return free_port()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(password=PASSWORDS, template=st.sampled_from(TEMPLATES), encoded=st.booleans())
@example(password="obs ", template=TEMPLATES[0], encoded=False)
@example(password="XQZ/XQZX#", template=TEMPLATES[0], encoded=False)
@example(password="XQZ@XQZX/ZZQ", template=TEMPLATES[0], encoded=False)
@example(password="XQZX://XQZX", template="{}", encoded=False)
@example(password="%ffXQZX\r\nXQZX", template=TEMPLATES[0], encoded=False)
def test_no_message_holds_a_piece_of_a_password(closed_port, caplog, password, template, encoded):
    caplog.set_level(logging.DEBUG)
    caplog.clear()

    def url_of(secret: str) -> str:
        given = quote(secret, safe="", errors="surrogatepass") if encoded else secret
        return template.replace("{port}", str(closed_port)).replace("{}", given)

    async def outcome(url: str) -> tuple[BaseException, str]:
        runtime = Runtime(url, connect_timeout=0.05)
        try:
            await runtime.start()
        except (ConfigError, BrokerError) as error:
            return error, repr(runtime) + str(runtime.health()) + caplog.text
        raise AssertionError("nobody is there")

    # What is said of another password is no secret; what a parser takes for a host is none either.
    other, said = asyncio.run(outcome(url_of("uuuuuuuu")))
    error, more = asyncio.run(outcome(url_of(password)))
    known = told(other) + said + url_of("")
    if "@" in password and "@" not in template:
        return  # then it is a host, for all that anybody can tell
    assert_silent(password, error, more, known=known)


async def test_no_secret_of_a_server_that_refuses_it_or_repeats_it(tcp_server, caplog):
    """A server without AUTH, or a proxy, may repeat the command with its arguments."""
    caplog.set_level(logging.DEBUG)
    async with liar(f"-ERR unknown command 'AUTH', with args beginning with: 'user' '{SECRET}' \r\n") as port:
        with pytest.raises(BrokerError) as caught:
            await Runtime(f"redis://user:{SECRET}@127.0.0.1:{port}", connect_timeout=0.5).start()
        assert_silent(SECRET, caught.value, caplog.text)
    async with liar(f"-ERR {SECRET} is wrong\r\n") as port:
        with pytest.raises(BrokerError) as caught:
            await Runtime(f"redis://user:{SECRET}@127.0.0.1:{port}", connect_timeout=0.5).start()
        assert_silent(SECRET, caught.value, caplog.text)
        client = Redis(port=port, password=SECRET)
        with pytest.raises(BrokerError) as caught:
            await Runtime(client, connect_timeout=0.5).start()
        assert_silent(SECRET, caught.value, caplog.text)
        await client.aclose()
    with pytest.raises(BrokerError, match="refused the credentials") as caught:
        await Runtime(f"redis://:{SECRET}@127.0.0.1:{tcp_server.port}", connect_timeout=0.5).start()
    assert_silent(SECRET, caught.value, caplog.text)


async def test_no_secret_of_sentinels_that_do_not_answer(caplog, closed_port):
    caplog.set_level(logging.DEBUG)
    url = f"redis+sentinel://:{SECRET}1@127.0.0.1:{closed_port}/mymaster?sentinel_password={SECRET}2"
    with pytest.raises(BrokerUnavailableError) as caught:
        await Runtime(url, connect_timeout=0.3).start()
    assert_silent(SECRET, caught.value, caplog.text)
    manager = Sentinel([("127.0.0.1", closed_port)], sentinel_kwargs={"password": SECRET}, password=SECRET)
    client = manager.master_for("mymaster")
    with pytest.raises(BrokerUnavailableError) as caught:
        await Runtime(client, connect_timeout=0.3).start()
    assert_silent(SECRET, caught.value, caplog.text)
    await client.aclose()
    for one in manager.sentinels:
        await one.aclose()


# What answers is something else ----------------------------------------------------------------------------
@contextlib.asynccontextmanager
async def liar(answer: str | bytes, greets: bool = False) -> AsyncIterator[int]:
    """Something that answers whatever comes with `answer`."""
    data = answer.encode() if isinstance(answer, str) else answer

    serving: set[Any] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        with contextlib.suppress(OSError):
            if greets:
                writer.write(data)
            while await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await asyncio.wait(serving, timeout=5)
    await server.wait_closed()


HTTP = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nnonsense\r\n"


@pytest.mark.parametrize("credentials", ["", f":{SECRET}@"])
@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
@pytest.mark.parametrize(
    ("answer", "greets"),
    [(HTTP, False), ("220 mail.example.com ESMTP\r\n", True), ("SSH-2.0-OpenSSH_9.2\r\n", True),
     (b"\x15\x03\x01\x00\x02\x02\x46", False), (b"J\0\0\0\x0a5.7.0\0", True)],
    ids=["http", "smtp", "ssh", "tls", "mysql"],
)  # fmt: skip
async def test_another_service_is_said_to_be_one_at_once(credentials, scheme, answer, greets, caplog):
    async with liar(answer, greets) as port, asyncio.timeout(5):
        with pytest.raises(BrokerError, match=r"what answers there is no Redis .*another service\?") as caught:
            await Runtime(f"{scheme}://{credentials}127.0.0.1:{port}", connect_timeout=10).start()
    assert f"127.0.0.1:{port}" in str(caught.value)
    assert_silent(SECRET, caught.value, caplog.text)


async def test_another_service_with_tls_asked_of_it():
    async with liar(HTTP) as port:
        with pytest.raises(BrokerError, match="TLS failed"):
            await Runtime(f"rediss://127.0.0.1:{port}", connect_timeout=10).start()


async def test_a_service_that_never_answers_is_out_of_reach():
    async with liar(b"") as port:
        with pytest.raises(BrokerUnavailableError, match=f"redis://127.0.0.1:{port}/0 is out of reach"):
            await Runtime(f"redis://127.0.0.1:{port}", connect_timeout=0.3).start()


@pytest.mark.parametrize("how", ["/99", "?db=99", "client"])
async def test_a_database_that_is_not_there(tcp_server, how):
    url = f"redis://127.0.0.1:{tcp_server.port}"
    client = Redis(port=tcp_server.port, db=99) if how == "client" else None
    with pytest.raises(
        BrokerError, match=r"/99 refused the connection: .*no database of that number, name a lower one"
    ):
        await Runtime(client or url + how, connect_timeout=10).start()
    if client is not None:
        await client.aclose()


@pytest.mark.parametrize("host", ["a" * 70 + ".example", "no-such-host.invalid", "..", "-", "256.256.256.256"])
async def test_a_host_that_cannot_be_looked_up(host):
    with pytest.raises(BrokerError) as caught:
        await Runtime(f"redis://:{SECRET}@{host}:6379", connect_timeout=0.3).start()
    assert host in str(caught.value)
    assert_silent(SECRET, caught.value)


async def test_a_server_is_no_sentinel(tcp_server):
    with pytest.raises(BrokerError, match="name the ports of Sentinels"):
        await Runtime(f"redis+sentinel://127.0.0.1:{tcp_server.port}/mymaster", connect_timeout=0.5).start()


async def test_the_apps_own_client_of_a_wrong_kind():
    import redis

    with pytest.raises(ConfigError, match=r"redis=Redis\(…\): expected a URL") as caught:
        await Runtime(redis.Redis(password=SECRET)).start()
    assert_silent(SECRET, caught.value)


# IPv6 ------------------------------------------------------------------------------------------------------
def has_ipv6() -> bool:
    import socket

    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


six = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on this machine")


async def round_trip(target: Any, prefix: str) -> str:
    runtime = Runtime(target, prefix=prefix)
    runtime.job("echo", limiter=None)(lambda data: data)
    async with runtime:
        assert await (await runtime.queue.add("echo", 1)).wait(10) == 1
        return str(runtime.health()["store"])


@six
async def test_an_ipv6_address_in_brackets(tmp_path, prefix):
    server = Server(tmp_path, tcp=True).start("--bind", "127.0.0.1", "::1")
    try:
        assert await round_trip(f"redis://[::1]:{server.port}/1", prefix) == f"redis://[::1]:{server.port}/1"
        client = Redis(host="::1", port=server.port)
        assert await round_trip(client, prefix) == f"redis://[::1]:{server.port}/0"
        await client.aclose()
    finally:
        server.stop()


@six
@pytest.mark.slow
async def test_an_ipv6_address_of_a_sentinel_or_a_cluster_in_brackets(prefix, monkeypatch):
    launch = Server._launch

    def on_both(self: Server, command: list[str]) -> Server:
        extra = [] if "--sentinel" in command else ["--bind", "127.0.0.1", "::1"]
        return launch(self, [*command, *extra])

    monkeypatch.setattr(Server, "_launch", on_both)
    cluster = Cluster(replicas=False)
    try:
        await cluster.start()
        assert "[::1]" in await round_trip(f"redis+cluster://[::1]:{cluster.data[0].port}", prefix)
    finally:
        await cluster.stop()
    trio = Sentinels()
    try:
        await trio.start()
        port = trio.url.partition("://")[2].partition(",")[0].partition("/")[0].rpartition(":")[2]
        url = f"redis+sentinel://[::2]:{port},127.0.0.1:{port}/{trio.url.split('/')[-2]}/0"
        assert "[::2]" in await round_trip(url, prefix)
    finally:
        await trio.stop()
