"""Tallying: the history of each name, which names have one, and who looks for alerts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from asyncjobs.broker import scripts
from asyncjobs.broker.calling import RetryingCaller
from asyncjobs.broker.keys import Keys, alerts_key, due_key, groups_key, history_key, history_of, serves_key, ticks_key

# Minutes of a slot, ms that it is kept, bytes of it: all blocks and the groups of a name are less than 220 kB.
TIERS: Final = ((1, 3 * 3_600_000, 150), (10, 48 * 3_600_000, 160), (120, 30 * 86_400_000, 200))
SLOTS: Final = 10  # of a block
GROUPS_KEPT: Final = 60  # minutes
MOST_GROUPS: Final = 20
GROUP_BYTES: Final = 600  # of a minute
RESENT_MS: Final = 2 * 3_600_000  # longer than figures are sent again
NAMES: Final = 100
LOOKED_AT: Final = 10_000  # groups of a name at most, in one look; of a Cluster a fifth


class Series(NamedTuple):
    """Blocks of a history: the store's ms, the number of the first, and each as it is stored, b'' for none."""

    now_ms: int
    first: int
    blocks: list[bytes]


class Gauge(NamedTuple):
    """What waits and runs of a name, and for how many ms the oldest job has waited; None: none waits."""

    backlog: int
    running: int
    oldest_ms: int | None


class Duty(NamedTuple):
    """What a process hears that asks who looks for alerts.

    Attributes:
        mine: it is this process.
        judged: the last minute that was looked at, -1 for none.
        state: what was found then, JSON.
        serves: process → JSON, as each has said; of a process on duty alone.
    """

    mine: bool
    now_ms: int
    judged: int
    state: bytes
    serves: dict[str, bytes]


class Tallying(RetryingCaller):
    """The verbs of history and alerts."""

    _scattered: bool  # a Cluster, where the groups of a name lie in different slots

    @abstractmethod
    async def _holding(self, queues: Sequence[tuple[Keys, tuple[str, ...]]]) -> list[Keys]:
        """Those of which one of the keys exists."""

    async def chronicle(self, name: str, process: str, number: int, age_ms: int, figures: bytes) -> bool:
        """Add figures to the history of a name, once however often they are sent; False: that was done before."""
        history = history_of(self.prefix, name)
        tiers = [one for tier in TIERS for one in tier]
        command = scripts.CHRONICLE(
            history + "seen", history, process, number, age_ms, figures, RESENT_MS, MOST_GROUPS, GROUP_BYTES, *tiers,
        )  # fmt: skip
        return bool(await self._ask(command))

    async def rank(self, traffic: Mapping[str, int]) -> dict[str, bool]:
        """Which of some names have a history of their own, by their traffic since it was told last."""
        if not traffic:
            return {}
        flat = [one for pair in traffic.items() for one in pair]
        answers = await self._ask(scripts.RANK(history_key(self.prefix), NAMES, *flat))
        return {name: answer == 0x31 for name, answer in zip(traffic, answers, strict=True)}

    async def series(self, name: str, tier: int, slots: int) -> Series:
        """The newest blocks of a name's history that hold `slots` of a tier, the open one included."""
        return await self._blocks(name, str(tier), tier * SLOTS, slots)

    async def group_series(self, name: str, minutes: int) -> Series:
        """The same of its heaviest groups, for so many minutes."""
        return await self._blocks(name, "g", SLOTS, minutes)

    async def _blocks(self, name: str, tier: str, minutes: int, slots: int) -> Series:
        history, count = history_of(self.prefix, name), -(-slots // SLOTS) + 1
        now, first, *blocks = await self._ask(
            scripts.SERIES(history + "seen", f"{history}{tier}:", minutes * 60_000, count)
        )
        return Series(now, first, blocks)

    async def gauge(self, name: str, grouped: bool) -> Gauge:
        """What waits and runs of a name now; of one with groups over as many of them as are looked at."""
        parts = [await self._gauge(Keys(self.prefix, name))]
        if grouped:
            left, cursor = LOOKED_AT // (5 if self._scattered else 1), b"0"
            while left > 0:
                cursor, rows = await self._ask(("ZSCAN", groups_key(self.prefix, name), cursor, "COUNT", 500))
                some = [Keys(self.prefix, name, row.decode(errors="replace")) for row in rows[::2]]
                holding = await self._holding([(keys, (keys.stream, keys.delayed)) for keys in some])
                parts += await self.loop.gather(self._gauge(keys) for keys in holding)
                left -= len(some)
                if cursor == b"0":
                    break
        ages = [one.oldest_ms for one in parts if one.oldest_ms is not None]
        return Gauge(sum(one.backlog for one in parts), sum(one.running for one in parts), max(ages) if ages else None)

    async def _gauge(self, keys: Keys) -> Gauge:
        waiting, active, oldest = await self._ask(scripts.GAUGE(keys.stream, keys.delayed))
        return Gauge(waiting, active, None if oldest < 0 else oldest)

    async def duty(self, process: str, lease: float, listens: bool, serves: bytes, leaving: bool = False) -> Duty:
        """Say what this process serves, and hear whether it is to look for alerts, and which there are."""
        keys = alerts_key(self.prefix), serves_key(self.prefix)
        flags = "1" if listens else "", serves, "1" if leaving else ""
        mine, now, judged, state, *rest = await self._ask(scripts.DUTY(*keys, process, round(lease * 1000), *flags))
        return Duty(bool(mine), now, _whole(judged, -1), state, _pairs(rest))

    async def judge(self, process: str, minute: int, state: bytes, length: float, again: bool = False) -> bool:
        """Keep what was found of a minute, `length` seconds; False: somebody else is on duty, or has judged it."""
        flags = "1" if again else "", round(length * 1000)
        return bool(await self._ask(scripts.JUDGE(alerts_key(self.prefix), process, minute, state, *flags)))

    async def lively(self, names: Mapping[str, bool], now_ms: int) -> list[str]:
        """Those of `names`, each with whether it is grouped, that hold work or groups, or were counted of late."""
        last = now_ms // (SLOTS * 60_000)
        keys: list[tuple[Keys, tuple[str, ...]]] = []
        for name, grouped in names.items():
            one, blocks = Keys(self.prefix, name), history_of(self.prefix, name) + "1:"
            groups = (groups_key(self.prefix, name),) if grouped else ()
            keys.append((one, (one.stream, one.delayed, *groups, f"{blocks}{last}", f"{blocks}{last - 1}")))
        found = {one.tag for one in await self._holding(keys)}
        return [name for name, (one, _) in zip(names, keys, strict=True) if one.tag in found]

    async def leased(self, now_ms: int) -> set[str]:
        """The processes whose leases have not ended."""
        found = await self._ask(("ZRANGEBYSCORE", due_key(self.prefix), now_ms, "+inf"))
        return {one.decode(errors="replace") for one in found}

    async def ticked(self, tasks: Sequence[str]) -> dict[str, int]:
        """Task → ms of the last tick that was claimed, 0 for none."""
        if not tasks:
            return {}
        found = await self._ask(("HMGET", ticks_key(self.prefix), *tasks))
        return {task: _whole((claim or b"").partition(b" ")[0], 0) for task, claim in zip(tasks, found, strict=True)}

    async def forget_served(self, processes: Sequence[str]) -> None:
        """Those are gone: what they served counts no more."""
        if processes:
            await self._ask(("HDEL", serves_key(self.prefix), *processes))


def _whole(text: bytes, otherwise: int) -> int:
    """A number as it is stored; `otherwise`: somebody has written something else there, or nothing."""
    return int(text) if text.isdigit() and len(text) < 16 else otherwise


def _pairs(flat: Sequence[Any]) -> dict[str, bytes]:
    return {key.decode(errors="replace"): value for key, value in zip(flat[::2], flat[1::2], strict=True)}
