"""A TCP proxy that misbehaves on request, between a runtime and a real server."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections import deque
from typing import Literal, Self

Mode = Literal["pass", "drop-reply", "drop-request", "black-hole", "refuse"]
QUEUE = 64 * 1024  # bytes that a narrow link holds on the side that is read
BURST = 0.05  # seconds for which a narrow link makes up for what it has missed
Writers = tuple[asyncio.StreamWriter, asyncio.StreamWriter]


class Proxy:
    """Forwards to a server; `mode` decides what happens to what passes from now on.

    ``drop-reply``: the next reply of each connection is swallowed and the connection cut: the command was applied,
    its sender cannot know. ``drop-request``: the next request likewise: it was not applied. ``black-hole``: nothing
    passes, nothing is cut. ``refuse``: new connections are cut at once. The first two fall back to ``pass`` when
    `left` of them have happened.

    Attributes:
        only: what is dropped is a request that holds these bytes, or a reply to such a one.
        rate: bytes a second that pass in each direction, all connections together; 0: as many as come.
        latency: seconds that each piece takes in each direction, give or take `jitter` of them.
        errors: each scripted pipeline that comes is answered, unapplied, by the next of these instead of by the server.
        happened, passed, connected: drops done; pieces forwarded, both ways; connections accepted.
    """

    def __init__(self, port: int, rate: int = 0) -> None:
        self._target = port
        self.rate = rate
        self._clear_at = {"drop-reply": 0.0, "drop-request": 0.0}
        self.mode: Mode = "pass"
        self.left = 0
        self.only = b""
        self.latency = self.jitter = 0.0
        self.errors: deque[str] = deque()
        self.happened = self.passed = self.connected = 0
        self.port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._rng = random.Random(1)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def __aenter__(self) -> Self:
        listening = self._socket()
        listening.bind(("127.0.0.1", 0))
        self._server = await asyncio.start_server(self._serve, sock=listening)
        self.port = listening.getsockname()[1]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._server is not None
        self._server.close()
        self.mode = "pass"
        while self._writers:
            self.cut_all()
            await asyncio.sleep(0.01)

    def _socket(self) -> socket.socket:
        """A narrow link has short queues: else the kernel would take megabytes that are not on their way yet."""
        one = socket.socket()
        if self.rate:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, QUEUE)
        return one

    def cut_all(self) -> None:
        """Cut every connection, whatever is on its way."""
        for writer in tuple(self._writers):
            writer.transport.abort()

    def drop(self, what: Literal["drop-reply", "drop-request"], times: int = 1, only: bytes = b"") -> None:
        self.mode, self.left, self.only = what, times, only

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connected += 1
        if self.mode == "refuse":
            writer.transport.abort()
            return
        try:
            to_server = self._socket()
            to_server.connect(("127.0.0.1", self._target))
            upstream, down = await asyncio.open_connection(sock=to_server)
        except OSError:
            to_server.close()
            writer.transport.abort()
            return
        self._writers |= {writer, down}
        try:
            asked = bytearray()
            await asyncio.gather(
                self._pipe(reader, down, "drop-request", (writer, down), asked),
                self._pipe(upstream, writer, "drop-reply", (writer, down), asked),
            )
        finally:
            for one in (writer, down):
                self._writers.discard(one)
                one.transport.abort()

    async def _pipe(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drop: Mode, both: Writers, asked: bytearray
    ) -> None:
        """Pass on what comes from `reader`; `asked` is what this connection has asked for last."""
        with contextlib.suppress(OSError, RuntimeError):  # uvloop's, for a write on a closed transport
            while data := await reader.read(QUEUE // 4 if self.rate else 65536):
                if self.rate:
                    await self._on_a_narrow_link(drop, len(data))
                if self.latency:
                    await asyncio.sleep(max(0.0, self.latency + self._rng.uniform(-self.jitter, self.jitter)))
                while self.mode == "black-hole":  # noqa: ASYNC110 - several pipes watch one attribute
                    await asyncio.sleep(0.01)
                if drop == "drop-request" and self.only:
                    asked[:] = data
                if self.mode == drop and self.left > 0 and self.only in (asked or data):
                    self.left -= 1
                    self.happened += 1
                    if not self.left:
                        self.mode = "pass"
                    break
                if self.errors and drop == "drop-request" and b"\r\nEVALSHA\r\n" in data:
                    error = f"-{self.errors.popleft()}\r\n".encode()
                    self.happened += 1
                    both[0].write(error * _commands(data))
                    continue
                writer.write(data)
                self.passed += 1
                await writer.drain()
        for one in both:
            one.transport.abort()

    async def _on_a_narrow_link(self, direction: str, size: int) -> None:
        now = asyncio.get_running_loop().time()
        self._clear_at[direction] = max(self._clear_at[direction], now - BURST) + size / self.rate
        await asyncio.sleep(self._clear_at[direction] - now)


def _commands(data: bytes) -> int:
    """How many whole commands a pipeline holds."""
    count = at = 0
    while at < len(data):
        end = data.index(b"\r\n", at)
        fields = int(data[at + 1 : end])
        at = end + 2
        for _ in range(fields):
            end = data.index(b"\r\n", at)
            at = end + 2 + int(data[at + 1 : end]) + 2
        count += 1
    return count
