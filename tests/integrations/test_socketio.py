"""Live updates to real Socket.IO clients, from the web process and from a worker-only one."""

from __future__ import annotations

import asyncio
import gc
import logging
import time

import pytest
import socketio
from aiohttp import web

from asyncjobs import JobFailedError
from asyncjobs.errors import PayloadError
from asyncjobs.live_updates import OUTBOX, LiveUpdates
from tests.helpers import Server, eventually, free_port


async def serve(sio: socketio.AsyncServer) -> tuple[web.AppRunner, str]:
    app = web.Application()
    sio.attach(app)

    @sio.event
    async def connect(sid, environ, auth):
        await sio.enter_room(sid, auth["room"])

    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    return runner, f"http://127.0.0.1:{port}"


@pytest.fixture
async def rooms():
    """A function that opens a server around a manager, and returns two clients, in the rooms `a` and `b`."""
    runners, clients = [], []

    async def open_rooms(manager=None):
        sio = socketio.AsyncServer(async_mode="aiohttp", client_manager=manager)
        runner, url = await serve(sio)
        runners.append((runner, sio))
        for room in "ab":
            client = socketio.AsyncSimpleClient()
            await client.connect(url, auth={"room": room}, transports=["websocket"])
            clients.append(client)
        return sio, clients[-2], clients[-1]

    yield open_rooms
    for client in clients:
        await client.disconnect()
    for runner, sio in runners:
        thread = getattr(sio.manager, "thread", None)
        if thread is not None:
            thread.cancel()
            await asyncio.wait([thread])
            await close(sio.manager)
        await runner.cleanup()


async def close(manager: socketio.AsyncRedisManager) -> None:
    """Socket.IO leaves its manager's connections to the garbage collector."""
    if getattr(manager, "pubsub", None) is not None:
        await manager.pubsub.aclose()
    if manager.redis is not None:
        await manager.redis.aclose()


async def test_an_emit_reaches_the_right_room_awaited_or_not(rooms, make_runtime):
    sio, a, b = await rooms()
    runtime = make_runtime(io=sio)

    @runtime.job("notify", limiter=None)
    async def notify(data, io):
        io.to(data["room"]).emit("first", {"n": 1})
        await io.to(data["room"]).emit("second", {"n": 2})
        io.emit("third", [1, 2], to=data["room"])
        io.sockets.in_(data["room"]).emit("fourth", "text")
        io.emit("everybody", None)

    async with runtime:
        await (await runtime.queue.add("notify", {"room": "a"})).wait(5)
        got = [await a.receive(timeout=5) for _ in range(5)]
        assert [one[0] for one in got] == ["first", "second", "third", "fourth", "everybody"]
        assert [one[1] for one in got[:4]] == [{"n": 1}, {"n": 2}, [1, 2], "text"]
        assert (await b.receive(timeout=5))[0] == "everybody"
    assert (runtime.io.accepted, runtime.io.sent, runtime.io.dropped) == (5, 5, 0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_worker_only_process_reaches_clients_of_the_web_process(rooms, make_runtime, own_server):
    tcp = Server(own_server.folder.parent / (own_server.folder.name + "-tcp"), tcp=True)
    tcp.folder.mkdir()
    tcp.start()
    try:
        sio, a, _ = await rooms(socketio.AsyncRedisManager(tcp.url, channel="app"))
        sio.manager.initialize()
        worker = make_runtime(io=socketio.AsyncRedisManager(tcp.url, channel="app", write_only=True))

        @worker.job("notify", limiter=None)
        def notify(data, io):
            io.to("a").emit("from-worker", {"n": data})

        async with worker:

            async def arrives():
                await (await worker.queue.add("notify", 7)).wait(5)
                try:
                    return await a.receive(timeout=0.5)
                except socketio.exceptions.TimeoutError:
                    return None

            assert await eventually(arrives) == ["from-worker", {"n": 7}]
        await close(worker.io.raw)
        sio.manager.thread.cancel()
        await asyncio.wait([sio.manager.thread])
        await close(sio.manager)
    finally:
        tcp.stop()
        await asyncio.sleep(0)
        gc.collect()  # a connection that Socket.IO's listener was opening when it was cancelled: not of our making


async def test_a_manager_that_hangs_never_holds_a_handler_or_the_stop(make_runtime):
    class Hanging:
        async def emit(self, event, data, room=None, namespace=None):
            await asyncio.Event().wait()

    runtime = make_runtime(io=Hanging())

    @runtime.job("notify", limiter=None)
    async def notify(data, io):
        for i in range(50):
            await io.to("a").emit("x", i)

    async with runtime:
        began = time.monotonic()
        await (await runtime.queue.add("notify", 1)).wait(5)
        assert time.monotonic() - began < 1
        began = time.monotonic()
    assert time.monotonic() - began < 6
    assert runtime.io.accepted == 50
    assert runtime.io.sent == 0


async def test_a_manager_that_raises_is_counted_and_complained_of_once(make_runtime, caplog):
    class Broken:
        async def emit(self, event, data, room=None, namespace=None):
            raise ConnectionError("redis is away")

    runtime = make_runtime(io=Broken())

    @runtime.job("notify", limiter=None)
    async def notify(io):
        for _ in range(5):
            io.emit("x")

    with caplog.at_level(logging.WARNING):
        async with runtime:
            await (await runtime.queue.add("notify")).wait(5)
            await eventually(lambda: runtime.io.dropped == 5)
    assert caplog.text.count("a live update was dropped") == 1


async def test_without_socketio_it_accepts_and_counts(runtime):
    @runtime.job("notify", limiter=None, attempts=1)
    async def notify(data, io):
        assert io is not None
        io.to("a").emit("x", {"when": {1, 2}} if data else {})

    async with runtime:
        await (await runtime.queue.add("notify", 0)).wait(5)
        with pytest.raises(JobFailedError, match=r"io\.emit\('x'\): the data cannot be sent"):
            await (await runtime.queue.add("notify", 1)).wait(5)
    assert runtime.io.accepted == 1


async def test_the_outbox_is_bounded():
    class Never:
        async def emit(self, *args, **kwargs):
            raise AssertionError

    io = LiveUpdates(Never())
    for i in range(OUTBOX + 10):
        io.emit("x", i)
    assert (io.accepted, io.dropped) == (OUTBOX + 10, 10)
    io.emit("binary", {"file": b"\x00\x01"})
    for bad in ("", None, 5):
        with pytest.raises(PayloadError, match="expected the name of an event"):
            io.emit(bad)
