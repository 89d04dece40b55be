"""The one connection that listens. What it hears is a hint, never a promise: whoever relies on it also looks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from asyncjobs.broker.address import Address

logger = logging.getLogger("asyncjobs")

QUIET: Final = 5.0  # seconds without a message after which the link is probed
LONGEST_PAUSE: Final = 5.0
LOST: Final = (RedisError, OSError, AttributeError, RuntimeError)  # the last two from a socket closed under a write


class Subscriber:
    """Listens on channels, for ever, through outages.

    State: `_handlers`, channel → callbacks; `_confirmed`, the channels the server has confirmed on the present
    connection; `_changed`, set when that grows.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self.on_lost: Callable[[], None] = lambda: None
        self._handlers: dict[str, tuple[Callable[[bytes], None], Callable[[], None]]] = {}
        self._confirmed: set[str] = set()
        self._changed = asyncio.Event()
        self._connection: AbstractConnection | None = None

    @property
    def connected(self) -> bool:
        return self._connection is not None

    async def listen(
        self, channel: str, handler: Callable[[bytes], None], on_confirmed: Callable[[], None] = lambda: None
    ) -> None:
        """Call `handler` with each message on `channel`.

        Args:
            on_confirmed: called whenever the server has confirmed the subscription, now or on a later connection:
                what was published before that may have been missed, what comes after it will be heard.
        """
        self._handlers[channel] = (handler, on_confirmed)
        if self._connection is not None:
            try:
                await self._send(self._connection, "SUBSCRIBE", channel)
            except LOST as error:
                logger.debug("subscribing to %s: %s", channel, error)

    async def confirmed(self, *channels: str) -> None:
        """Wait until the server has confirmed `channels`: from then on nothing published is missed."""
        while not self._confirmed.issuperset(channels):
            self._changed.clear()
            await self._changed.wait()

    async def run(self) -> None:
        """Connect, listen, and connect again, until cancelled."""
        pause = 0.05
        while True:
            connection = self._address.new_connection()
            try:
                await connection.connect()  # type: ignore[no-untyped-call]
                self._connection = connection
                if self._handlers:
                    await self._send(connection, "SUBSCRIBE", *self._handlers)
                pause = 0.05
                await self._read(connection)
            except (*LOST, TimeoutError) as error:
                logger.debug("the subscriber lost its connection: %s", error)
            finally:
                self._connection = None
                self._confirmed.clear()
                try:
                    await connection.disconnect(nowait=True)
                except LOST as error:
                    logger.debug("closing the subscriber: %s", error)
            self.on_lost()
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _read(self, connection: AbstractConnection) -> None:
        probed = False
        while True:
            try:
                async with asyncio.timeout(QUIET):
                    reply = await connection.read_response(disable_decoding=True, disconnect_on_error=False)
            except TimeoutError:
                if probed:
                    raise
                await self._send(connection, "PING")
                probed = True
                continue
            probed = False
            if not isinstance(reply, list) or len(reply) < 3:
                continue
            kind, channel, body = reply[0], reply[1].decode(), reply[2]
            if kind == b"subscribe":
                self._confirmed.add(channel)
                self._changed.set()
            self._hand_over(kind, channel, body)

    def _hand_over(self, kind: bytes, channel: str, body: bytes) -> None:
        handler, on_confirmed = self._handlers.get(channel, (None, None))
        if handler is None or on_confirmed is None:
            return
        try:
            if kind == b"message":
                handler(body)
            elif kind == b"subscribe":
                on_confirmed()
        except Exception:
            logger.exception("a message on %s could not be handled", channel)

    @staticmethod
    async def _send(connection: AbstractConnection, *command: str) -> None:
        packed = hiredis.pack_command(command)  # type: ignore[arg-type]
        await connection.send_packed_command(packed, check_health=False)
