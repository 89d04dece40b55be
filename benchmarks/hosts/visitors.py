"""Those who visit an app: requests and a websocket at a steady pace, each timed. The standard library alone.

    python visitors.py PORT SECONDS REQUESTS_A_SECOND ECHOES_A_SECOND [PATH]

Requests leave when they are due, whether earlier ones were answered or not. Prints one JSON object: the seconds that
each took, and how many failed.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time

ENDS = b"\r\n\r\n"
PATIENCE = 20.0  # seconds that the last answers get
HELLO = b"\x81\x82\x00\x00\x00\x00hi"  # a masked text frame, and what comes back for it
ECHO = b"\x81\x02hi"


class Connection(asyncio.Protocol):
    """One connection with one question under way at most; `took`, of all, is where its answers are timed."""

    def __init__(self, took: list[float]) -> None:
        self.took = took
        self.asked = 0.0
        self.got = b""
        self.free: list[Connection] = []
        self.ends = ENDS
        self.upgraded: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def ask(self, question: bytes) -> None:
        self.asked = time.perf_counter()
        self.transport.write(question)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self.got += data
        if self.upgraded is not None and not self.upgraded.done():
            if ENDS in self.got:
                self.got = b""
                self.upgraded.set_result(None)
        elif self.upgraded is not None:
            if self.got.endswith(ECHO):
                self.answered(now)
        elif self.got.endswith(b"ok"):
            self.answered(now)

    def answered(self, now: float) -> None:
        self.got = b""
        self.took.append(now - self.asked)
        self.free.append(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self in self.free:
            self.free.remove(self)


async def paced(pace: float, seconds: float, step) -> None:  # type: ignore[no-untyped-def]
    began, sent = time.perf_counter(), 0
    while sent < pace * seconds:
        due = began + sent / pace
        rest = due - time.perf_counter()
        if rest > 0:
            await asyncio.sleep(rest)
        await step()
        sent += 1


async def visit(port: int, seconds: float, requests: float, echoes: float, path: str) -> dict[str, object]:
    loop = asyncio.get_running_loop()
    http: list[float] = []
    socket: list[float] = []
    free: list[Connection] = []
    question = f"GET {path} HTTP/1.1\r\nHost: app\r\n\r\n".encode()
    asked = 0

    async def request() -> None:
        nonlocal asked
        if not free:
            _, made = await loop.create_connection(lambda: Connection(http), "127.0.0.1", port)
            made.free = free
        else:
            made = free.pop()
        asked += 1
        made.ask(question)

    async def echoed() -> None:
        if idle:
            idle.pop().ask(HELLO)

    idle: list[Connection] = []
    if echoes:
        _, line = await loop.create_connection(lambda: Connection(socket), "127.0.0.1", port)
        line.upgraded = loop.create_future()
        line.free = idle
        line.transport.write(
            b"GET /echo HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        await asyncio.wait_for(line.upgraded, PATIENCE)
        idle.append(line)
    both = [paced(requests, seconds, request)]
    if echoes:
        both.append(paced(echoes, seconds, echoed))
    await asyncio.gather(*both)
    until = time.perf_counter() + PATIENCE
    while len(http) < asked and time.perf_counter() < until:  # noqa: ASYNC110 - answers of many connections
        await asyncio.sleep(0.01)
    return {"requests": http, "echoes": socket, "failed": asked - len(http)}


if __name__ == "__main__":
    gc.disable()
    _, port, seconds, requests, echoes, *path = sys.argv
    found = asyncio.run(visit(int(port), float(seconds), float(requests), float(echoes), path[0] if path else "/"))
    print(json.dumps(found))
