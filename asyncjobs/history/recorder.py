"""The Recorder: the tallies of one process, and their way to the store.

Every few seconds, and when the process stops, one script for each name that anything happened to adds its figures to
the history of the name. One whose answer was lost is sent again under the same number, and counts once. A process that
is killed takes the figures of its last seconds along, and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Final, NamedTuple

from asyncjobs import clock
from asyncjobs.broker import Broker
from asyncjobs.errors import BrokerError, BrokerUnavailableError
from asyncjobs.history.tally import ADDED, Frame, Tally
from asyncjobs.logs import ThrottledLog

logger = logging.getLogger("asyncjobs")

OTHERS: Final = "*other"  # stands for all names beyond those that have a history of their own
EVERY: Final = 5.0  # seconds
JITTER: Final = 0.2  # of that, either way: processes that began together do not flush together
RANKED: Final = 600.0  # seconds until it is asked again whether a name has a history of its own
GIVEN_UP: Final = 3600.0  # seconds after which figures whose answer was lost are not sent again
RANKED_AT_ONCE: Final = 200  # names


class Sent(NamedTuple):
    """Figures on their way: the instant at which they were counted, by the monotonic clock, and when they were sent."""

    number: int
    body: bytes
    counted_at: float
    since: float


class Ranked(NamedTuple):
    """Whether a name has a history of its own, and until when that is known."""

    own: bool
    until: float


class Recorder:
    """Has a tally for each name, and flushes them.

    State:
        tallies: by name.
        _sent: name → figures whose answer is not known.
        _ranked: name → where its figures go. `_traffic`: what happened to it since that was asked.
        _flushing: one flush at a time.
    """

    def __init__(self, broker: Broker, process: str, every: float = EVERY) -> None:
        self._broker, self._process, self._every = broker, process, every
        self.tallies: dict[str, Tally] = {}
        self._sent: dict[str, Sent] = {}
        self._ranked: dict[str, Ranked] = {}
        self._traffic: dict[str, int] = {}
        self._number = 0
        self._flushing = asyncio.Lock()
        self._throttled = ThrottledLog(logger)

    def tally(self, name: str) -> Tally:
        """What is counted of a name."""
        tally = self.tallies.get(name)
        if tally is None:
            tally = self.tallies[name] = Tally(name)
        return tally

    def added(self, name: str, number: int) -> None:
        """The store has added so many jobs of a name."""
        self.tally(name).frame.counts[ADDED] += number

    def cancelled(self, name: str, number: int) -> None:
        """The store has cancelled so many jobs of a name that did not run."""
        self.tally(name).count("cancelled", number)

    async def run(self) -> None:
        """Flush every few seconds, until cancelled."""
        while True:
            await asyncio.sleep(self._every * random.uniform(1 - JITTER, 1 + JITTER))
            await self.flush()

    async def flush(self) -> None:
        """Send what was counted; where the store does not answer it is sent with the next flush. Never raises."""
        async with self._flushing:
            if self._sent:
                await self._send(list(self._sent))
            frames: dict[str, Frame] = {}
            for name, tally in tuple(self.tallies.items()):
                if name not in self._sent and (frame := tally.turn_over()) is not None:
                    frames[name] = frame
            if frames:
                await self._send(await self._number_all(frames))

    async def _number_all(self, frames: dict[str, Frame]) -> list[str]:
        """Make what is sent of `frames`, those of names without a history of their own together; the names."""
        now = clock.monotonic()
        for name, frame in frames.items():
            self._traffic[name] = self._traffic.get(name, 0) + frame.traffic
        await self._rank([name for name in frames if name not in self._ranked or self._ranked[name].until < now], now)
        places: dict[str, Frame] = {}
        for name, frame in frames.items():
            place = name if name not in self._ranked or self._ranked[name].own else OTHERS
            if place == OTHERS:
                frame.groups = None
            if place not in places:
                places[place] = frame
            else:
                places[place].merge(frame)
        if OTHERS in places and OTHERS in self._sent:  # the answer to the ones before is still unknown
            self.tally(OTHERS).frame.merge(places.pop(OTHERS))
        for place, frame in places.items():
            self._number += 1
            self._sent[place] = Sent(self._number, frame.encode(), (frame.began_at + now) / 2, now)
        return list(places)

    async def _rank(self, names: list[str], now: float) -> None:
        """Ask which of `names` have a history of their own; where there is no answer it stays as it was."""
        names = [name for name in names if name != OTHERS]
        self._ranked.setdefault(OTHERS, Ranked(True, float("inf")))
        for start in range(0, len(names), RANKED_AT_ONCE):
            some = {name: self._traffic.get(name, 0) for name in names[start : start + RANKED_AT_ONCE]}
            try:
                answers = await self._broker.rank(some)
            except BrokerError as error:
                logger.debug("names were not ranked: %s", error)
                return
            for name, own in answers.items():
                self._ranked[name] = Ranked(own, now + RANKED)
                self._traffic.pop(name, None)

    async def _send(self, names: list[str]) -> None:
        await self._broker.loop.gather(self._send_one(name) for name in names)

    async def _send_one(self, name: str) -> None:
        sent, now = self._sent[name], clock.monotonic()
        try:
            await self._broker.chronicle(
                name, self._process, sent.number, round((now - sent.counted_at) * 1000), sent.body
            )
        except BrokerUnavailableError as error:
            logger.debug("the figures of %s are sent again: %s", name, error)
            if now - sent.since < GIVEN_UP:
                return
        except BrokerError as error:  # it refuses these, and would refuse them for ever
            self._throttled.warning("tally", "figures of %s cannot be kept: %s", name, error)
        self._sent.pop(name, None)
