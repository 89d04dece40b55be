"""Work that goes on while something breaks: adds repeated until they are acknowledged, and what ran of them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Self

from asyncjobs import BrokerError, Runtime
from tests.helpers import eventually


class Load:
    """One plain job and one grouped job on `runtime`, added to without a pause between `__aenter__` and `end`.

    Attributes:
        acknowledged: numbers whose add returned.
        ran: number → how often its handler came to its end.
        latest: group → when a job of it last ended, by the monotonic clock.
    """

    def __init__(self, runtime: Runtime, groups: int = 12) -> None:
        self.runtime, self.groups = runtime, groups
        self.acknowledged: set[int] = set()
        self.ran: Counter[int] = Counter()
        self.latest: dict[str, float] = {}
        self.longest_gap: Counter[str] = Counter()
        self._adders: list[asyncio.Task[None]] = []

        async def work(data, job):
            self.ran[data] += 1
            group, now = job.group_id or "", time.monotonic()
            gap = now - self.latest.get(group, now)
            self.longest_gap[group] = max(self.longest_gap[group], gap)
            self.latest[group] = now

        # An add that was refused may have been applied, where replicas did not confirm it in time. By its record the
        # next one knows; were that gone, it would be another job.
        runtime.job("plain", limiter=None, remove_on_complete=False)(work)
        runtime.job("tenant", limiter=None, group=True, remove_on_complete=False)(work)

    async def __aenter__(self) -> Self:
        self._adders = [asyncio.create_task(self._add(n)) for n in range(self.groups + 1)]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for adder in self._adders:
            adder.cancel()

    async def _add(self, n: int) -> None:
        number = n
        while True:
            name, group = ("plain", None) if n == self.groups else ("tenant", f"g{n}")
            while number not in self.acknowledged:
                try:
                    await self.runtime.queue.add(name, number, group_id=group, job_id=f"n{number}")
                    self.acknowledged.add(number)
                except BrokerError:
                    await asyncio.sleep(0.05)
            number += self.groups + 1
            await asyncio.sleep(0.005)

    async def goes_on(self, within: float = 10, groups: set[str] | None = None) -> None:
        """New work of every group, or of `groups`, is added and run."""
        since = time.monotonic()
        wanted = groups if groups is not None else {"", *(f"g{n}" for n in range(self.groups))}
        await eventually(
            lambda: all(self.latest.get(group, 0) > since for group in wanted), within, "work of every group goes on"
        )

    async def end(self, within: float = 30) -> None:
        """Add no more, and wait until what was acknowledged has run."""
        for adder in self._adders:
            adder.cancel()
        try:
            await eventually(lambda: not self.lost, within, "all that was acknowledged has run")
        except AssertionError as error:
            raise AssertionError(f"{error}; {await self._told()}") from None
        await self.runtime.wait_idle(within)

    async def _told(self) -> str:
        """What is known of what has not run."""
        assembly, lost = self.runtime._assembly, self.lost
        assert assembly is not None
        pump = assembly.pump
        said = [
            f"{len(lost)} of {len(self.acknowledged)} have not run",
            f"the pump holds {pump.held}, ring {pump.ring}",
        ]
        states = ("hungry", "queued", "turns", "lost_reply", "alarm_at", "resting_until", "refusals", "quiet")
        for number in lost[:3]:
            n = number % (self.groups + 1)
            name, group = ("plain", None) if n == self.groups else ("tenant", f"g{n}")
            job = await self.runtime.queue.get_job(name, f"n{number}", group)
            place = pump.find(assembly.broker.place(name, group))
            state = {one: getattr(place, one, "?") for one in states}
            said.append(f"n{number} of {group}: {job!r}, {place!r} {state}")
            said.append(str(await assembly.broker.inspect(assembly.broker.queue_keys(name, group))))
        return "\n".join([*said, str(self.runtime.health())])

    @property
    def lost(self) -> list[int]:
        return sorted(self.acknowledged - self.ran.keys())

    @property
    def twice(self) -> list[int]:
        return sorted(number for number, times in self.ran.items() if times > 1)
