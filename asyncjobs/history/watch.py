"""The Watch: one process of an installation looks every minute for what should be alerted, and tells it.

Each process asks once a minute who is on duty, says what it serves, and hears which alerts there are. The one on duty
looks at the minute that is over. What it finds stands in the store before it is told, and is marked as told after that:
so another one that takes its place tells what it did not, and nothing twice unless it died in between.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from asyncjobs import clock
from asyncjobs.broker import Broker, Duty, Store
from asyncjobs.declare.options import Alerts
from asyncjobs.errors import BrokerError
from asyncjobs.events import EventBus
from asyncjobs.history.alerts import LOOKED_AT, Alert, Held, OfName, State, findings
from asyncjobs.history.figures import slots_of
from asyncjobs.history.recorder import OTHERS, Recorder

logger = logging.getLogger("asyncjobs")

EVERY: Final = 60.0  # seconds
LEASE: Final = 1.5  # minutes for which a process is on duty unless it asks again
BEHIND: Final = 0.17  # of a minute: until then all processes have flushed what they counted in the one before
JITTER: Final = 0.08  # of a minute
MISSED: Final = 90.0  # seconds behind its instant after which a tick that nobody has claimed is missed
FORGOTTEN: Final = 86_400.0  # seconds after which it is not looked at any more
NAMES: Final = 1000  # that are looked at
STORE_ASKED: Final = 10  # minutes between two looks at what the store is


class Serves(msgspec.Struct):
    """What a process serves: job names, and of each task the ms of its last tick that was due and of the next one."""

    names: list[str] = []
    tasks: dict[str, tuple[int, int]] = {}


class Watch:
    """The loop of one process.

    State:
        alerts: those of the installation, as they were heard last.
        _mine: whether this process is on duty.
        _minutes: how many it has looked at.
    """

    def __init__(
        self,
        broker: Broker,
        bus: EventBus,
        bounds: Alerts,
        recorder: Recorder,
        process: Callable[[], str],
        serves: Callable[[], Serves],
        store: Store | None = None,
        every: float = EVERY,
    ) -> None:
        self._broker, self._bus, self._bounds, self._recorder = broker, bus, bounds, recorder
        self._process, self._serves, self._every = process, serves, every
        self.store = store
        self.alerts: tuple[Alert, ...] = ()
        self._mine = False
        self._minutes = 0

    async def run(self) -> None:
        """Look now and every minute, until cancelled."""
        while True:
            now_ms = 1000 * clock.wall()
            try:
                now_ms = await self.look()
            except BrokerError as error:
                logger.debug("looking for alerts: %s", error)
            into = now_ms / 1000 % self._every
            await asyncio.sleep(self._every * (1 + BEHIND + JITTER * random.random()) - into)

    async def look(self) -> int:
        """Ask who is on duty; if it is this process, look. Returns the ms of the store's clock.

        Raises:
            BrokerError: the store does not answer.
        """
        process, serves = self._process(), self._serves()
        body = msgspec.json.encode(serves) if serves.names or serves.tasks else b""
        listens = self._bus.wants("alert.raised") or self._bus.wants("alert.cleared")
        duty = await self._broker.duty(process, LEASE * self._every, listens, body)
        state = State.decode(duty.state)
        self.alerts, self._mine = tuple(state.alerts), duty.mine
        minute = int(duty.now_ms / 1000 // self._every)
        if duty.mine and (not state.held or duty.judged < minute or duty.judged > minute + 1):
            await self._judge(process, minute, duty, state)
        return duty.now_ms

    async def leave(self) -> None:
        """This process stops: another one may be on duty.

        Raises:
            BrokerError: the store does not answer; the lease ends the duty.
        """
        if self._mine:
            self._mine = False
            await self._broker.duty(self._process(), 0.0, False, b"", leaving=True)

    async def _judge(self, process: str, minute: int, duty: Duty, state: State) -> None:
        names = await self._look_at_names(duty)
        missed = await self._missed(duty)
        if self._minutes % STORE_ASKED == STORE_ASKED - 1 and self._bounds.store:
            self.store = await self._broker.check()
        self._minutes += 1
        found = state.after(findings(self._bounds, names, missed, self.store), duty.now_ms)
        if not (found.held or state.held):
            return  # all is well, and nothing needs to be kept
        if not await self._broker.judge(process, minute, found.encode(), self._every):
            return
        self.alerts = tuple(found.alerts)
        if found.untold:
            for one in found.untold:
                self._tell(one)
            await self._broker.judge(process, minute, found.all_told().encode(), self._every, again=True)

    def _tell(self, one: Held) -> None:
        alert = one.alert
        if one.raised:
            logger.warning("alert: %s", alert.text)
        else:
            logger.info("no longer alerted: %s", alert.text)
        kind = "alert.raised" if one.raised else "alert.cleared"
        self._bus.emit(kind, alert.name, error=alert.text, data=alert)

    # Looking ----------------------------------------------------------------------------------------------
    async def _look_at_names(self, duty: Duty) -> Mapping[str, OfName]:
        """What is known of each name that holds work, or did something of late."""
        known = await self._broker.told_names()
        some = {name: b'"grouped":true' in about for name, about in sorted(known.items())[:NAMES]}
        lively = await self._broker.lively(some, duty.now_ms)
        if not lively:
            return {}
        served = await self._served(duty)
        looked = await self._broker.loop.gather(self._look_at(name, some[name], duty) for name in lively)
        for name, one in zip(lively, looked, strict=True):
            one.served = name in served
        return dict(zip(lively, looked, strict=True))

    async def _look_at(self, name: str, grouped: bool, duty: Duty) -> OfName:
        gauge = await self._broker.gauge(name, grouped)
        series = await self._broker.series(name, 1, LOOKED_AT + 1)
        slots = [slot for _, slot in slots_of(series, LOOKED_AT + 1, 60_000)]
        busy = gauge.backlog or gauge.running or any(any(slot.counts) for slot in slots[-2:])
        if busy and name != OTHERS:  # else a look would be followed by another for ever
            self._recorder.tally(name).look(gauge.oldest_ms or 0, gauge.backlog, gauge.running)
        return OfName(gauge, True, slots[:-1])

    async def _served(self, duty: Duty) -> set[str]:
        """The names that living processes consume."""
        living = await self._broker.leased(duty.now_ms)
        return {name for process, body in duty.serves.items() if process in living for name in _decoded(body).names}

    async def _missed(self, duty: Duty) -> dict[str, float]:
        """Task → seconds since its tick was due that nobody has claimed.

        The dead have a say only where no living process has any task: those that are gone from the code are forgotten.
        """
        if not duty.serves:
            return {}
        told = {process: _decoded(body) for process, body in duty.serves.items()}
        living = await self._broker.leased(duty.now_ms)
        heard = [one for process, one in told.items() if process in living and one.tasks]
        oldest = duty.now_ms - 1000 * FORGOTTEN
        gone = [
            process
            for process, one in told.items()
            if process not in living and (heard or all(last < oldest for pair in one.tasks.values() for last in pair))
        ]
        await self._broker.forget_served(gone)
        due: dict[str, int] = {}
        for one in heard or told.values():
            for task, instants in one.tasks.items():
                for instant in instants:
                    if oldest <= instant <= duty.now_ms - 1000 * MISSED:
                        due[task] = max(due.get(task, 0), instant)
        claimed = await self._broker.ticked(list(due)) if self._bounds.missed_tasks else {}
        return {task: (duty.now_ms - due[task]) / 1000 for task, last_ms in claimed.items() if last_ms < due[task]}


def _decoded(body: bytes) -> Serves:
    try:
        return msgspec.json.decode(body, type=Serves)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return Serves()
