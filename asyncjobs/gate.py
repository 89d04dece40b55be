"""The Gate: a limit over many queues. All groups of a job together, or all jobs that name one limiter.

The queues lie in different slots, so no one script can see the limit and the jobs: a gate is asked first, how many may
start, then jobs are taken for that many, and what found no job is given back.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from typing import TYPE_CHECKING, Final

from asyncjobs import clock
from asyncjobs.broker import Broker
from asyncjobs.config import Limiter
from asyncjobs.errors import BrokerError
from asyncjobs.terms import terms

if TYPE_CHECKING:
    from asyncjobs.consumer import Consumer

logger = logging.getLogger("asyncjobs")

LET_IN: Final = 64  # queues that are looked at when there is room again; more follow while there is
BLIND: Final = 1.0  # seconds until the next look, where the store did not say when


class Grant:
    """How many may start under one gate, and the words by which they are given back."""

    __slots__ = ("count", "gate", "token")

    def __init__(self, gate: Gate, token: str, count: int) -> None:
        self.gate, self.token, self.count = gate, token, count


class Gate:
    """One such limit, as this process sees it.

    State: `running`, jobs of this process under it; `pending`, those let in that are being fetched; `_parked`, queues
    with work that it keeps waiting, first come first served; `_told`, what the store was last told is running.
    """

    def __init__(
        self, broker: Broker, key: str, name: str, limiters: tuple[Limiter, ...], slots: int | None, lease: float
    ) -> None:
        self._broker, self._key, self._name, self._lease = broker, key, name, lease
        self._slots = slots or 0
        self._terms = terms(limiters, None)
        self._tokens = (f"{broker.process_id}.{n}" for n in itertools.count(1))
        self._parked: deque[Consumer] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._told = 0
        self._asking = asyncio.Lock()
        self.running = self.pending = 0

    @property
    def window(self) -> float:
        return self._terms.window

    @property
    def margin(self) -> float:
        return self._terms.least_margin

    @property
    def stale(self) -> bool:
        """Whether the store believes that more runs here than does."""
        return bool(self._slots) and self._told > self.running + self.pending

    async def admit(self, want: int) -> Grant:
        """How many of `want` may start now; while it is fewer, whoever is parked waits.

        Raises:
            BrokerError: no answer; nothing may start.
        """
        token = next(self._tokens)
        async with self._asking:  # what another turn is being granted counts as running
            return await self._admit(want, token)

    async def _admit(self, want: int, token: str) -> Grant:
        granted, wait = await self._broker.admit(
            self._key, self._name, self.running + self.pending, want, self._slots, self._lease, self._terms.windows,
            round(self.margin * 1e6), token,
        )  # fmt: skip
        self.pending += granted
        self._told = self.running + self.pending
        if granted < want:
            self._open_in(wait)
        elif want:
            self.open()
        return Grant(self, token, granted)

    async def give_back(self, grant: Grant, unused: int) -> None:
        """`unused` of a grant found no job."""
        if not unused:
            return
        self.pending -= unused
        self.open()
        if not self._terms.windows:
            return  # what runs is told anew with the next question
        try:
            await self._broker.refund(self._key, grant.token, grant.count, unused, self._terms.windows)
            grant.count -= unused
        except BrokerError as error:
            logger.debug("a grant of %s was not given back, it runs out by itself: %s", self._key, error)

    async def pass_again(self, since: float) -> float:
        """A token again for a start that comes late; since when it counts. Its slot, if there are any, it has."""
        while self._terms.windows:
            grant = await self.admit(1)
            self.pending -= grant.count  # it runs already
            if grant.count:
                return clock.monotonic()
            await asyncio.sleep(self.margin)
        return since

    async def tell(self) -> None:
        """Say what runs here: that there is room again, or that we still live."""
        if self._slots and (self.running or self._told):
            await self.admit(0)

    def park(self, consumer: Consumer, first: bool = False) -> None:
        """Let `consumer` wait until there is room."""
        if not consumer.parked:
            consumer.parked = True
            (self._parked.appendleft if first else self._parked.append)(consumer)

    def open(self) -> None:
        """There may be room: the first that wait look again."""
        for _ in range(min(LET_IN, len(self._parked))):
            consumer = self._parked.popleft()
            consumer.parked = False
            consumer.look_again()

    def _open_in(self, wait: float | None) -> None:
        if wait is None and self._slots:
            return  # told by news, or by a job of ours that ends
        at = clock.monotonic() + (BLIND if wait is None else wait)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(max(0.0, at - clock.monotonic()), self.open)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
