"""An app that embeds a job runtime: FastAPI on uvicorn, or aiohttp, with nothing to do but to answer.

    python app.py ADAPTER URL PORT '{"frame": "fastapi", "work": "noop", …}'
    python app.py ADAPTER URL fill '{"jobs": 1000, …}'

ADAPTER is a file of `benchmarks/peers/adapters` without its ending, or `asyncjobs`. Lines on standard input say what
to do, each is answered by a line of JSON: `work` begins to work, `bulk` and the like see `Ours`, `told` says what the
probe and the jobs have counted since the last time.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

ADAPTERS = Path(__file__).resolve().parents[1] / "peers" / "adapters"
sys.path[:0] = [str(ADAPTERS), str(Path(__file__).resolve().parents[2])]

import harness  # noqa: E402

TICK = 0.001


class Work(harness.Probe):
    """What a job does, by name and seconds: `noop`, `compute`, `wait`; and how many have done it."""

    def __init__(self, kind: str, seconds: float) -> None:
        super().__init__()
        self.kind, self.seconds = kind, seconds

    async def run(self) -> None:
        if self.kind == "compute":
            self.compute()
        elif self.kind == "wait":
            await asyncio.sleep(self.seconds)
        self.ended += 1

    def run_in_thread(self) -> None:
        self.ended += 1

    def compute(self) -> None:
        until = time.perf_counter() + self.seconds
        while time.perf_counter() < until:
            pass


class Probe:
    """A timer in the loop, a millisecond at a time: how late it is, and for how long one round of the loop computes.

    What the machine gives to others meanwhile counts as lateness, but not as a stretch: that is CPU of the thread.
    """

    def __init__(self) -> None:
        self.lags: list[float] = []
        self.stretches: list[float] = []
        self.collections: list[float] = []
        self.young = 0  # collections of the first generation
        self._collecting = 0.0
        self._due = self._cpu = 0.0

    def start(self) -> None:
        gc.callbacks.append(self._collected)
        self._next()

    def _next(self) -> None:
        self._due = time.perf_counter() + TICK
        self._cpu = time.thread_time()
        asyncio.get_running_loop().call_later(TICK, self._tick)

    def _tick(self) -> None:
        late, cpu = max(0.0, time.perf_counter() - self._due), time.thread_time()
        self.lags.append(late)
        self.stretches.append(min(late, cpu - self._cpu))
        self._cpu = cpu
        asyncio.get_running_loop().call_soon(self._round)

    def _round(self) -> None:
        self.stretches.append(time.thread_time() - self._cpu)
        self._next()

    def _collected(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._collecting = time.perf_counter()
        elif info["generation"] == 0:
            self.young += 1
        elif info["generation"] == 2:
            self.collections.append(time.perf_counter() - self._collecting)

    def told(self) -> dict[str, Any]:
        lags, stretches = sorted(self.lags), sorted(self.stretches)
        found = {
            "lag p50": lags[len(lags) // 2], "lag p99": lags[len(lags) * 99 // 100], "lag max": lags[-1],
            "stretch p50": stretches[len(stretches) // 2], "stretch p99": stretches[len(stretches) * 99 // 100],
            "stretch max": stretches[-1], "collection max": max(self.collections, default=0.0),
            "collections": len(self.collections), "young collections": self.young,
        }  # fmt: skip
        self.lags, self.stretches, self.collections, self.young = [], [], [], 0
        return found


def adapter_of(name: str, url: str, options: dict[str, Any]) -> Any:
    """The adapter called `name`, doing the work of `options`."""
    harness.probe = Work(options.get("work", "noop"), options.get("seconds", 0.0))
    if name == "asyncjobs":
        from benchmarks.hosts.ours import Ours

        return Ours(url, options, harness.probe)
    made: list[Any] = []
    harness.main = made.append
    __import__(f"{name}_adapter")
    return made[0](url, options.get("concurrency", 100))


async def fastapi_app(port: int, adapter: Any) -> None:
    import fastapi
    import uvicorn
    from starlette.routing import WebSocketRoute

    app = fastapi.FastAPI()

    @app.get("/")
    async def nothing() -> Any:
        return fastapi.Response(b"ok")

    @app.get("/ask/{what}")
    async def ask(what: str) -> Any:
        await getattr(adapter, what)()
        return fastapi.Response(b"ok")

    async def echo(socket: fastapi.WebSocket) -> None:
        await socket.accept()
        try:
            while True:
                await socket.send_text(await socket.receive_text())
        except fastapi.WebSocketDisconnect:
            pass

    app.router.routes.append(WebSocketRoute("/echo", echo))
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", access_log=False)
    server = uvicorn.Server(config)
    server.capture_signals = __import__("contextlib").nullcontext  # type: ignore[method-assign]
    await server.serve()


async def aiohttp_app(port: int, adapter: Any) -> None:
    from aiohttp import web

    async def nothing(request: web.Request) -> web.Response:
        return web.Response(body=b"ok")

    async def ask(request: web.Request) -> web.Response:
        await getattr(adapter, request.match_info["what"])()
        return web.Response(body=b"ok")

    async def echo(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data)
        return socket

    app = web.Application()
    app.router.add_get("/", nothing)
    app.router.add_get("/echo", echo)
    app.router.add_get("/ask/{what}", ask)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


async def host(adapter: Any, port: int, options: dict[str, Any]) -> None:
    """Serve, and obey standard input."""
    loop = asyncio.get_running_loop()
    probe = Probe()
    probe.start()
    serve = aiohttp_app if options.get("frame") == "aiohttp" else fastapi_app
    serving = asyncio.ensure_future(serve(port, adapter))
    lines: asyncio.Queue[str] = asyncio.Queue()

    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(lines.put_nowait, line.strip())
        os._exit(0)

    import threading

    threading.Thread(target=read, daemon=True).start()
    working: list[asyncio.Task[Any]] = []
    since, before, cpu = time.perf_counter(), 0, time.process_time()
    while True:
        word = await lines.get()
        found: dict[str, Any] = {}
        if word == "work":
            working.append(asyncio.create_task(adapter.work()))
        elif word == "collect":  # an app that has been running for a while has done so
            gc.collect()
        elif word == "told":
            now = time.perf_counter()
            found = {
                **probe.told(), "jobs": harness.probe.ended - before, "seconds": now - since,
                "cpu": time.process_time() - cpu,
            }  # fmt: skip
            since, before, cpu = now, harness.probe.ended, time.process_time()
        elif word:
            found = await getattr(adapter, word)() or {}
        for one in (*working, serving):
            if one.done():
                found["ended"] = repr(one.exception())
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


async def fill(adapter: Any, options: dict[str, Any]) -> None:
    await adapter.open()
    if hasattr(adapter, "fill"):
        await adapter.fill()
    else:
        await harness._fill(adapter, options["jobs"])
    os._exit(0)


def main() -> None:
    name, url, port, text = sys.argv[1:]
    options = json.loads(text)
    adapter = adapter_of(name, url, options)
    factory = None
    if options.get("loop", "uvloop") == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(fill(adapter, options) if port == "fill" else host(adapter, int(port), options))


if __name__ == "__main__":
    main()
