"""Sentry over its real transport to a real envelope endpoint."""

from __future__ import annotations

import asyncio
import gzip
import json
import sys

import pytest
from aiohttp import web

from asyncjobs import Discard, JobFailedError, RetryLater
from tests.helpers import eventually, free_port

SECRETS = ("hunter2-in-payload", "hunter2-in-local")


class Endpoint:
    """Collects the events of the envelopes it is sent."""

    def __init__(self) -> None:
        self.events: list[dict] = []
        self.raw = b""

    async def receive(self, request: web.Request) -> web.Response:
        body = await request.read()
        if body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        self.raw += body
        lines = body.split(b"\n")
        for header, item in zip(lines[1::2], lines[2::2], strict=False):
            if header and json.loads(header).get("type") == "event":
                self.events.append(json.loads(item))
        return web.json_response({})


@pytest.fixture
async def endpoint():
    received, app = Endpoint(), web.Application()
    app.router.add_post("/api/1/envelope/", received.receive)
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    received.dsn = f"http://key@127.0.0.1:{port}/1"
    yield received
    await runner.cleanup()


@pytest.fixture
async def sentry(endpoint):
    import sentry_sdk

    sentry_sdk.init(dsn=endpoint.dsn, traces_sample_rate=0)
    yield endpoint
    client = sentry_sdk.get_client()
    await asyncio.to_thread(client.close, 1)
    sentry_sdk.get_global_scope().set_client(None)


async def run_to_failure(runtime, name="charge", data=None):
    job = await runtime.queue.add(name, data or {"password": SECRETS[0]})
    with pytest.raises(JobFailedError):
        await job.wait(10)
    return job


async def test_every_failed_try_is_captured_with_its_tags_and_without_payload(sentry, runtime):
    @runtime.job("charge", attempts=3, backoff=0.01, limiter=None, group=True)
    async def charge(data, job):
        local = SECRETS[1]
        raise ValueError(f"declined {len(local)}")

    async with runtime:
        job = await runtime.queue.add("charge", {"password": SECRETS[0]}, group_id="acme")
        with pytest.raises(JobFailedError):
            await job.wait(10)
    await eventually(lambda: len(sentry.events) == 3)
    assert [event["level"] for event in sentry.events] == ["warning", "warning", "error"]
    assert [event["tags"]["asyncjobs.attempt"] for event in sentry.events] == ["1", "2", "3"]
    tags = sentry.events[0]["tags"]
    assert tags["asyncjobs.job"] == "charge"
    assert tags["asyncjobs.queue"] == "charge-acme"
    assert tags["asyncjobs.group"] == "acme"
    assert tags["asyncjobs.id"] == job.id
    (value,) = sentry.events[0]["exception"]["values"]
    assert (value["type"], value["value"]) == ("ValueError", "declined 16")
    assert [frame["function"] for frame in value["stacktrace"]["frames"]] == ["charge"], "no frames of ours"
    assert sentry.events[0]["fingerprint"] == ["charge", "ValueError"]
    for secret in SECRETS:
        assert secret.encode() not in sentry.raw.replace(b"local = SECRETS", b"")


async def test_only_the_last_try_and_the_payload_where_asked_for(sentry, make_runtime):
    runtime = make_runtime(sentry_capture="final", sentry_payload=True)

    @runtime.job("charge", attempts=3, backoff=0.01, limiter=None)
    def charge(data):
        raise ValueError("declined")

    async with runtime:
        await run_to_failure(runtime)
    await eventually(lambda: len(sentry.events) == 1)
    assert sentry.events[0]["level"] == "error"
    assert set(sentry.events[0]["extra"]["payload"]) == {"password"}


async def test_steering_is_not_captured_but_what_discard_throws_is(sentry, runtime):
    @runtime.job("steer", attempts=3, backoff=0.01, limiter=None)
    async def steer(data, job):
        if data == "later" and not steer.__dict__.setdefault("again", False):
            steer.again = True
            raise RetryLater(0.01)
        if data == "Discard":
            raise Discard("known")
        if data == "discard":
            job.discard()
            raise KeyError("thrown")

    async with runtime:
        await (await runtime.queue.add("steer", "later")).wait(5)
        await run_to_failure(runtime, "steer", "Discard")
        await run_to_failure(runtime, "steer", "discard")
    await eventually(lambda: sentry.events)
    assert [event["exception"]["values"][0]["type"] for event in sentry.events] == ["KeyError"]
    assert sentry.events[0]["level"] == "error"


async def test_parallel_jobs_never_mix_their_scopes(sentry, runtime):
    import sentry_sdk

    barrier = asyncio.Barrier(5)

    @runtime.job("mixed", attempts=1, limiter=None, concurrency=5)
    async def mixed(data):
        sentry_sdk.set_tag("mine", data)
        sentry_sdk.add_breadcrumb(message=f"crumb {data}")
        await barrier.wait()
        raise ValueError(data)

    async with runtime:
        for job in await runtime.queue.add_bulk([("mixed", str(i)) for i in range(5)]):
            with pytest.raises(JobFailedError):
                await job.wait(10)
    await eventually(lambda: len(sentry.events) == 5)
    for event in sentry.events:
        mine = event["exception"]["values"][0]["value"]
        assert event["tags"]["mine"] == mine
        assert [one["message"] for one in event["breadcrumbs"]["values"]] == [f"crumb {mine}"]


async def test_a_failing_task_is_captured(sentry, runtime, seen):
    @runtime.task("* * * * * *", name="poll")
    async def poll():
        raise LookupError("nothing there")

    async with runtime:
        await seen("task.failed")
    await eventually(lambda: sentry.events)
    assert sentry.events[0]["tags"]["asyncjobs.task"] == "poll"
    assert sentry.events[0]["level"] == "error"
    assert all("asyncjobs.task" in event["tags"] for event in sentry.events), "its log line is no event of its own"


@pytest.mark.parametrize("how", ["refused", "black hole"])
async def test_a_dead_sentry_harms_nobody(runtime, how):
    import sentry_sdk

    swallowing: list[asyncio.StreamWriter] = []

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        swallowing.append(writer)
        while await reader.read(4096):
            pass

    hole = await asyncio.start_server(swallow, "127.0.0.1", 0)
    port = hole.sockets[0].getsockname()[1] if how == "black hole" else free_port()
    sentry_sdk.init(dsn=f"http://key@127.0.0.1:{port}/1")
    try:

        @runtime.job("charge", attempts=1, limiter=None)
        async def charge(data):
            raise ValueError("declined")

        async with runtime:
            for _ in range(20):
                await run_to_failure(runtime)
            began = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - began < 6
    finally:
        await asyncio.to_thread(sentry_sdk.get_client().close, 0.1)
        sentry_sdk.get_global_scope().set_client(None)
        hole.close()
        for writer in swallowing:
            writer.transport.abort()


async def test_an_app_without_sentry_pays_nothing(tmp_path):
    code = (
        "import asyncio, sys\n"
        "from asyncjobs import Runtime\n"
        "runtime = Runtime(data_dir='store')\n"
        "@runtime.job('x', attempts=1, limiter=None)\n"
        "async def x(data): raise ValueError\n"
        "async def main():\n"
        "    async with runtime:\n"
        "        await x.add(1)\n"
        "        await runtime.wait_idle(10)\n"
        "    print('sentry_sdk' in sys.modules, 'socketio' in sys.modules)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, cwd=tmp_path, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert out.decode().strip() == "False False"
