"""The RetryingCaller: one idempotent command at a time, sent until it is answered; the base of the broker's verbs."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from redis.exceptions import ResponseError

from asyncjobs import clock
from asyncjobs.broker.connection import Connection, is_transient, key_of, refusal
from asyncjobs.broker.keys import Channels, Keys
from asyncjobs.broker.reach import PATIENCE
from asyncjobs.broker.wire import Command
from asyncjobs.errors import BrokerUnavailableError
from asyncjobs.loop_budget import LoopBudget


class RetryingCaller:
    """Has a connection for all calls off the hot path, and the names under which this process speaks."""

    def __init__(
        self, prefix: str, process: str, connection: Connection, timeout: float, channels: Channels, loop: LoopBudget
    ) -> None:
        self.loop = loop
        self.prefix = prefix
        self.channels = channels
        self._process = process
        self._misc = connection
        self._timeout = timeout
        self._lines = itertools.count(1)

    def queue_keys(self, name: str, group_id: str | None) -> Keys:
        return Keys(self.prefix, name, group_id)

    async def _ask(self, command: Command, connection: Connection | None = None, patient: bool = False) -> Any:
        """Send one idempotent command until it is answered, for as long as a caller should wait.

        If the store is known to be down, the command is sent once, unless the caller is `patient`: its act is due now,
        may be late, and must not be lost.
        """
        connection = connection or self._misc
        once = not patient and connection.known_down(key_of(command))
        deadline, pause = clock.monotonic() + (PATIENCE if once else self._timeout), 0.02
        while True:
            try:
                return await connection.call(command, max(0.0, deadline - clock.monotonic()))
            except BrokerUnavailableError:
                if once or clock.monotonic() + pause >= deadline:
                    raise
            except ResponseError as error:
                if not is_transient(error):
                    raise refusal(error) from error
                if once or clock.monotonic() + pause >= deadline:
                    raise BrokerUnavailableError(f"the store is busy: {error}") from error
            await asyncio.sleep(pause)
            pause = min(pause * 2, 1.0)
