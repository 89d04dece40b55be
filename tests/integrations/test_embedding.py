"""In real web servers: FastAPI under uvicorn with two workers, Starlette, aiohttp; jobs, rooms, and a bounded stop."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import sys
import time

import aiohttp
import pytest
import socketio

from tests.helpers import Process, eventually, free_port, ledger, write

FASTAPI_APP = """
    import os
    import socketio
    from fastapi import FastAPI, Request
    from asyncjobs import Runtime

    sio = socketio.AsyncServer(async_mode="asgi", client_manager=socketio.AsyncRedisManager(os.environ["IO_URL"]))
    runtime = Runtime(jobs="jobs", io=sio, grace=2)
    app = FastAPI(lifespan=runtime.lifespan)
    app.mount("/ws", socketio.ASGIApp(sio, socketio_path=None))

    @sio.event
    async def connect(sid, environ, auth):
        await sio.enter_room(sid, auth["room"])

    @app.post("/orders/{number}")
    async def order(number: int, request: Request):
        job = await request.state.jobs.queue.add("ship", {"number": number, "room": "orders"})
        return {"id": job.id, "pid": os.getpid()}
"""
AIOHTTP_APP = """
    import os, sys
    import socketio
    from aiohttp import web
    from asyncjobs import Runtime

    sio = socketio.AsyncServer(async_mode="aiohttp")
    runtime = Runtime(jobs="jobs", io=sio, grace=2)

    @sio.event
    async def connect(sid, environ, auth):
        await sio.enter_room(sid, auth["room"])

    async def order(request):
        job = await runtime.queue.add("ship", {"number": int(request.match_info["number"]), "room": "orders"})
        return web.json_response({"id": job.id, "pid": os.getpid()})

    app = web.Application()
    app.cleanup_ctx.append(runtime.cleanup_ctx)
    app.router.add_post("/orders/{number}", order)
    sio.attach(app, socketio_path="ws")
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), shutdown_timeout=1)
"""
JOBS = {
    "jobs/ship.py": """
        import os
        from asyncjobs import WorkerOptions
        worker_options = WorkerOptions(limiter=None)
        async def handle(data, job, io, queue):
            with open("ledger", "a") as file:
                file.write(f"{data['number']} {os.getpid()}\\n")
            io.to(data["room"]).emit("shipped", {"number": data["number"]})
            if data["number"] == 999:
                import asyncio
                await asyncio.sleep(60)
    """
}


async def order(port: int, number: int) -> dict:
    url = f"http://127.0.0.1:{port}/orders/{number}"
    async with aiohttp.ClientSession() as session, session.post(url) as response:
        return await response.json()


async def answers(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fastapi", "aiohttp"])
async def test_jobs_added_in_a_request_run_and_emit_and_the_app_stops_within_its_grace(tmp_path, kind, server):
    port = free_port()
    write(tmp_path, {**JOBS, "main.py": FASTAPI_APP if kind == "fastapi" else AIOHTTP_APP})
    if kind == "fastapi":
        args = ("-m", "uvicorn", "main:app", "--port", str(port), "--workers", "2", "--log-level", "warning")
    else:
        args = ("main.py", str(port))
    app = Process(tmp_path, *args, module=False, env={"IO_URL": getattr(server, "data", [server])[0].url})
    client = socketio.AsyncSimpleClient()
    try:
        await eventually(lambda: answers(port), 30, "the app answers")

        async def connected():
            try:
                await client.connect(
                    f"http://127.0.0.1:{port}", auth={"room": "orders"}, transports=["websocket"], socketio_path="ws"
                )
            except socketio.exceptions.ConnectionError:
                return False
            return True

        await eventually(connected)
        numbers, pids = itertools.count(), set()

        async def everybody_took_part():
            for _ in range(10):
                pids.add((await order(port, next(numbers)))["pid"])
            ran = {int(line.split()[1]) for line in ledger(tmp_path / "ledger")}
            return len(pids | ran) == (2 if kind == "fastapi" else 1)

        await eventually(everybody_took_part, what="both workers take part")
        count = next(numbers)
        await eventually(lambda: len(ledger(tmp_path / "ledger")) == count)
        shipped = {(await client.receive(timeout=5))[1]["number"] for _ in range(count)}
        assert shipped == set(range(count))
        await client.disconnect()
        await order(port, 999)
        await eventually(lambda: any(line.startswith("999 ") for line in ledger(tmp_path / "ledger")))
        began = time.monotonic()
        app.signal(signal.SIGTERM)
        await app.ended(15)
        assert 1.5 < time.monotonic() - began < 8, app.output
    finally:
        if client.connected:
            await client.disconnect()
        kill_session(app)


def kill_session(app: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(app.popen.pid, signal.SIGKILL)
    app.popen.wait()


async def test_starlette_state_and_several_runtimes_in_one_app(make_runtime):
    from contextlib import AsyncExitStack, asynccontextmanager

    from starlette.applications import Starlette

    mail, sync = make_runtime(), make_runtime(prefix=make_runtime().config.prefix + "-2")
    for runtime in (mail, sync):
        runtime.job("echo", limiter=None)(lambda data: data)

    @asynccontextmanager
    async def both(app):
        async with AsyncExitStack() as stack:
            yield {"mail": (await stack.enter_async_context(mail.lifespan(app)))["jobs"], "sync": sync}

    app = Starlette(lifespan=both)
    async with app.router.lifespan_context(app) as state:
        await sync.start()
        assert state["mail"] is mail
        assert await (await state["mail"].queue.add("echo", 1)).wait(5) == 1
        assert await (await sync.queue.add("echo", 2)).wait(5) == 2
        assert (await mail.queue.counts("echo"))["completed"] == 1
    assert mail.state == "stopped"
    assert sync.state == "running"


async def test_an_embedded_runtime_is_a_guest(make_runtime):
    """No signal handlers, no logging set-up, no event loop of its own, and nothing at import."""
    import logging

    before = (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), list(logging.getLogger().handlers))
    async with make_runtime() as runtime:
        after = (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), list(logging.getLogger().handlers))
        assert after == before
        assert runtime.health()["status"] in ("ok", "degraded")
    assert "asyncjobs" in sys.modules
