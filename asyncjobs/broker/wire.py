"""The Wire: a connection that redis-py makes, and that asyncjobs reads and writes itself.

redis-py resolves the address, encrypts, authenticates and selects the database. After that each pipeline is written at
once and answered at once. redis-py's reader would wake an aio_task for each reply, and make two timeouts for each
command. Here one callback parses the bytes that have arrived, which takes a third less CPU a round trip.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Self, TypeAlias

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

try:
    import fcntl
    import termios
except ImportError:  # not on Unix, so the number of bytes that the kernel has not sent is unknown
    fcntl = termios = None  # type: ignore[assignment]

logger = logging.getLogger("asyncjobs.store")

PIECE: Final = 1 << 16
LOOKS: Final = 5  # looks at a pipeline in flight, in the time for which it may stand still
Command: TypeAlias = tuple[str | bytes | int, ...]


class Wire(asyncio.Protocol):
    """A connection with one pipeline in flight, or, with `on_reply`, a connection that listens.

    State: `_replies`, the replies to the pipeline in flight so far; `_left`, the number of missing replies; `_future`,
    which waits for them; `_timer`, which looks whether they still come; `gone`, done once the connection is lost;
    `_moved`, the instant at which a byte was last seen to arrive or to leave; `_unsent`, the bytes that had not left at
    the last look, -1 before the first look.
    """

    def __init__(self, connection: AbstractConnection, on_reply: Callable[[Any], None] | None = None) -> None:
        self._connection = connection
        self._on_reply = on_reply
        self._reader = hiredis.Reader(protocolError=RedisConnectionError, replyError=connection._parser.parse_error)
        self._replies: list[Any] = []
        self._left = 0
        self._future: asyncio.Future[list[Any]] | None = None
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        writer = connection._writer
        if writer is None:
            raise RedisConnectionError("the connection was lost while it was made")
        self._transport: Any = writer.transport
        self._transport.set_protocol(self)
        self._now = self.gone.get_loop().time
        self._moved, self._unsent = self._now(), 0

    @classmethod
    async def open(cls, connection: AbstractConnection, on_reply: Callable[[Any], None] | None = None) -> Self:
        """Let redis-py connect, and take the connection over."""
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            return cls(connection, on_reply)
        except BaseException:
            await _disconnect(connection)
            raise

    @property
    def lost(self) -> bool:
        """True if the connection is lost, which is known before a command is sent."""
        return self.gone.done() or self._transport.is_closing()

    def send(self, *commands: Command) -> None:
        """Write commands without waiting for replies.

        Large pipelines go in pieces of `PIECE`, so that the server begins with one piece while the next is packed.
        Smaller pieces would cost more, because each is a packet, and each packet gets a reply of its own.

        Raises:
            redis.exceptions.ConnectionError: the connection is lost. Some commands may have been written.
        """
        if self.lost:
            raise RedisConnectionError("the connection was lost")
        pieces, size = [], 0
        try:
            for command in commands:
                pieces.append(packed := hiredis.pack_command(command))  # type: ignore[arg-type]
                size += len(packed)
                if size >= PIECE:
                    self._transport.write(b"".join(pieces))
                    pieces, size = [], 0
            if pieces:
                self._transport.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        except RuntimeError as error:  # raised by uvloop if the socket has gone before it has reported the loss
            self._lose(RedisConnectionError(str(error)))
            raise RedisConnectionError(str(error)) from error

    async def exchange(self, commands: Sequence[Command], timeout: float) -> list[Any]:
        """Send `commands` and return their replies in order, an error reply as its exception.

        A pipeline takes as long as its bytes take. It fails once no byte has arrived or left for `timeout` seconds.

        Raises:
            redis.exceptions.ConnectionError: the connection was lost, before or after the commands were applied.
            redis.exceptions.TimeoutError: the connection stood still before all commands were answered.
        """
        if not commands:
            return []
        if self._future is not None:
            raise RuntimeError("a pipeline is in flight on this connection")
        loop = asyncio.get_running_loop()
        self.send(*commands)
        future = self._future = loop.create_future()
        self._replies, self._left = [], len(commands)
        self._moved, self._unsent = self._now(), -1
        self._timer = loop.call_later(timeout / LOOKS, self._look, timeout)
        try:
            replies: list[Any] = await future
        finally:
            self._timer.cancel()
            self._future = None
        if isinstance(replies[0], RedisConnectionError):  # a server that loads its data answers so to all commands
            raise replies[0]
        return replies

    @property
    def busy(self) -> bool:
        """True while a pipeline is in flight."""
        return self._future is not None

    def still(self) -> float:
        """Seconds since a byte of the pipeline in flight was last seen to arrive or to leave."""
        unsent = self._count_unsent()
        if unsent < self._unsent:  # never true at the first look, where it is -1
            self._moved = self._now()
        self._unsent = unsent
        return self._now() - self._moved

    def _count_unsent(self) -> int:
        """Bytes that this process holds, and bytes that the kernel holds until the other side has them."""
        held: int = self._transport.get_write_buffer_size()
        sock: socket.socket | None = self._transport.get_extra_info("socket")
        if sock is None or fcntl is None:
            return held
        try:
            return held + int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        except (OSError, ValueError):  # the socket is closed, or cannot tell
            return held

    def _look(self, timeout: float) -> None:
        """Look whether the pipeline in flight still moves, and fail it if not."""
        if self._future is None or self._future.done():
            return
        left = timeout - self.still()
        if left <= 0:
            self._future.set_exception(RedisTimeoutError("no answer in time"))
        else:
            self._timer = self._future.get_loop().call_later(min(left, timeout / LOOKS), self._look, timeout)

    def data_received(self, data: bytes) -> None:
        self._moved = self._now()
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:
                if self._on_reply is not None:
                    self._on_reply(reply)
                    continue
                self._replies.append(reply)
                self._left -= 1
                if self._left == 0 and self._future is not None and not self._future.done():
                    self._future.set_result(self._replies)
        except RedisError as error:  # the bytes are no reply of Redis, so the rest cannot be parsed either
            self._lose(error)
            self._transport.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._lose(RedisConnectionError(str(exc) if exc else "the server closed the connection"))

    def _lose(self, error: RedisError) -> None:
        if not self.gone.done():
            self.gone.set_result(None)
        if self._future is not None and not self._future.done():
            self._future.set_exception(error)

    def abandon(self) -> None:
        """The loop has been closed, so nothing can be told or awaited: close the socket alone."""
        for step in (self._transport.abort, self._close_socket):
            with suppress(Exception):  # a transport of a closed loop promises nothing; uvloop has closed them itself
                step()
        self._connection._writer = None  # else redis-py would warn

    def _close_socket(self) -> None:
        self._transport._sock.close()
        self._transport._sock = None

    async def close(self) -> None:
        await _disconnect(self._connection)


async def _disconnect(connection: AbstractConnection) -> None:
    try:
        await connection.disconnect(nowait=True)
    except (RedisError, OSError, AttributeError, RuntimeError) as error:
        logger.debug("closing a connection: %s", error)
