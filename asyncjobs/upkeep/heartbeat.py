"""Heartbeat: the heartbeat of this process, and the consequences when another process falls silent.

A process is alive as long as it renews one heartbeat; the leases of all its tries depend on that. A process that finds
another one silent for longer than a lease gives the other's jobs back. Processes renew first and sweep later: after an
outage of the store all processes look silent, so for one lease no process is given up.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

from asyncjobs import clock
from asyncjobs.broker import Beat, Broker, Silent, Word
from asyncjobs.errors import BrokerError

logger, of_the_store = logging.getLogger("asyncjobs"), logging.getLogger("asyncjobs.store")

LONGEST_NAP_WITHOUT: Final = 2.0  # seconds between two tries to reach a store that does not answer
BEATS_A_LEASE: Final = 4  # the lease's expiry is detected exactly, so a death is found within one lease
BURIED_AFTER: Final = 3  # leases; by then each living process has swept the jobs that it alone knows


def _host() -> str:
    """This boot and process namespace; '' if the system does not tell. Equal names mean comparable pids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")[:12]
        return boot + os.readlink("/proc/self/ns/pid").strip("pid:[]")
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process of this host began, in clock ticks; '' if it does not exist. A zombie does not exist."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def new_process_name() -> str:
    """``host.pid.started.random``: unique per boot of a process, and per declared death."""
    return f"{_host() or '-'}.{os.getpid()}.{_started(os.getpid()) or '-'}.{os.urandom(4).hex()}"


def died_here(process: str) -> bool:
    """True if `process` ran on this very host and is gone. Then its jobs can go back before its lease is over."""
    host, _, rest = process.partition(".")
    pid, _, rest = rest.partition(".")
    started = rest.partition(".")[0]
    if host in ("", "-") or host != _host() or not pid.isdigit() or started in ("", "-"):
        return False
    return _started(int(pid)) != started


class Speaks(Protocol):
    """Who says what goes with a beat."""

    def word(self, joining: bool) -> Word:
        """What to say now."""

    def heard(self, word: Word) -> None:
        """The store has it."""


class Heartbeat:
    """Beats, and tells the runtime which processes fell silent.

    State: `process`, the present name of this process; `_last`, the monotonic instant of its last acknowledged beat;
    `_hold_until`, the instant before which no process is given up; `_heard`, the processes that were silent for longer
    than a lease at the last beat, and for how long; `_given_up`, process that is being given up → job names that need
    no look any more; `_lapsed`, this process was silent itself; `_epoch`, the mark of the store's data;
    `data_lost_at`, when the mark was last found changed, until the loss is acknowledged; `_told_at`, the instant up to
    which the beats have told of cancels.
    """

    def __init__(
        self,
        broker: Broker,
        leases: Callable[[], Mapping[str, float]],
        on_silent: Callable[[str, Silent, set[str]], Awaitable[bool]],
        on_declared_dead: Callable[[str], Awaitable[None]],
        speaker: Speaks,
        on_draining: Callable[[bool, float], None],
        on_told: Callable[[bytes], None] = lambda _: None,
    ) -> None:
        self._broker = broker
        self._leases = leases
        self._on_silent = on_silent
        self._on_declared_dead = on_declared_dead
        self._speaker, self._on_draining = speaker, on_draining
        self._on_told = on_told
        self._told_at = b"+inf"
        self.process = new_process_name()
        self._last = clock.monotonic()
        self._hold_until = 0.0
        self._given_up: dict[str, set[str]] = {}
        self._epoch = b""
        self._heard: dict[str, Silent] = {}
        self._news = asyncio.Event()
        self._lapsed = self.joined = False
        self.data_lost_at: datetime | None = None

    def _shortest_lease(self) -> float:
        return min(self._leases().values())

    def _longest_lease(self) -> float:
        return max(self._leases().values())

    async def join(self) -> None:
        """Send the first beat, before the process takes jobs."""
        beat = await self._say(joining=True)
        self._epoch, self._told_at = beat.epoch, beat.at
        self._last = clock.monotonic()
        self.joined = True

    async def _say(self, joining: bool) -> Beat:
        """One beat, and all that goes with it."""
        word, sent_at = self._speaker.word(joining), clock.monotonic()
        since = b"+inf" if joining else self._told_at
        beat = await self._broker.beat(self.process, self._leases(), joining, word, since)
        if beat.alive:
            self._speaker.heard(word)
            self._on_draining(beat.draining, sent_at)
        return beat

    def since_last_beat(self) -> float:
        """Seconds since the store last acknowledged a beat of this process."""
        return clock.monotonic() - self._last

    async def run(self) -> None:
        """Beat until cancelled, also while the runtime drains. Any other wait in this loop would delay a beat."""
        # The store may have been away until just now, so that all processes look silent.
        self._hold_until = clock.monotonic() + self._shortest_lease()
        nap = self._shortest_lease() / BEATS_A_LEASE
        while True:
            await asyncio.sleep(nap)
            try:
                nap = await self._beat()
            except BrokerError as error:
                logger.debug("no beat: %s", error)
                nap = min(LONGEST_NAP_WITHOUT, self._shortest_lease() / BEATS_A_LEASE)

    async def _beat(self) -> float:
        """Beat once, and read the reply. Returns the seconds until the next beat."""
        lease = self._shortest_lease()
        alive, epoch, others, _, told, self._told_at = await self._say(joining=False)
        gap, self._last = self.since_last_beat(), clock.monotonic()
        for message in told:
            try:
                self._on_told(message)
            except Exception as error:  # somebody else has written it
                logger.debug("a cancel that cannot be read is left out: %s", error)
        lost_data = epoch != self._epoch
        if lost_data:
            self._epoch, self.data_lost_at = epoch, clock.now()
            of_the_store.critical(
                "the store has lost its data: jobs that were waiting or delayed are gone. It was flushed, or came back "
                "without what it had; new jobs run. Runtime.health() is degraded until acknowledge_data_loss()"
            )
        if gap > lease / 2:
            self._hold_until = self._last + lease
        if not alive and not lost_data:
            logger.warning("this process was silent for %.1f s and was declared dead; it goes on under a new name", gap)
        if not alive:
            self.process = new_process_name()
            await self._say(joining=True)
        if not alive or gap > lease:
            self._lapsed = True
        held = self._last < self._hold_until
        silent = {other: one for other, one in others.items() if one.seconds >= (one.shortest or lease) and not held}
        gone = {other: one._replace(seconds=float("inf")) for other, one in others.items() if died_here(other)}
        self._heard = {**silent, **gone}
        self._news.set()
        left = [(one.shortest or lease) - one.seconds for one in others.values()]
        return min([lease / BEATS_A_LEASE, *(max(0.02, seconds + 0.005) for seconds in left if seconds > 0)])

    async def run_consequences(self) -> None:
        """Act on the replies of beats, until cancelled: check the own tries after a lapse, give up silent processes."""
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                if self._lapsed:
                    await self._on_declared_dead(self.process)
                    self._lapsed = False
                silent = self._heard
                # A process that came back may die once more.
                self._given_up = {other: done for other, done in self._given_up.items() if other in silent}
                for other, one in silent.items():
                    await self._give_up(other, one)
            except BrokerError as error:
                logger.debug("a silent process is given up after the next beat: %s", error)

    async def _give_up(self, other: str, silent: Silent) -> None:
        """Sweep each job name of the process `other` once its lease is over, and bury the process in the end."""
        if other not in self._given_up:
            if silent.seconds == float("inf"):
                await self._broker.end_leases(other)
            self._given_up[other] = set()
            logger.warning("process %s shows no sign of life; giving back what it ran", other)
        longest = max(silent.leases.values(), default=self._longest_lease())
        if await self._on_silent(other, silent, self._given_up[other]) and silent.seconds >= BURIED_AFTER * longest:
            await self._broker.bury(other, BURIED_AFTER * longest)
