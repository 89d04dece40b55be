"""Fleet: what the processes of an installation say of themselves, and what operators ask of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from asyncjobs.broker import scripts
from asyncjobs.broker.calling import RetryingCaller
from asyncjobs.broker.keys import about_key, draining_key, due_key, leases_key, paused_key, processes_key, tasks_key

DESCRIBED_AT_ONCE: Final = 100  # processes, each of a few kilobytes


class Described(NamedTuple):
    """What the store has of one process.

    Attributes:
        beat_ms: of its last beat.
        due_ms: when its shortest lease ends; None: it tells none.
        leases, about, names, draining: JSON, b'' where it says nothing.
    """

    process: str
    beat_ms: float
    due_ms: float | None
    leases: bytes
    about: bytes
    names: bytes
    draining: bytes


class Fleet(RetryingCaller):
    """The verbs of those who look at processes, and ask something of them."""

    async def living(self) -> set[str]:
        """The processes that were not given up."""
        return {one.decode(errors="replace") for one in await self._ask(("ZRANGE", processes_key(self.prefix), 0, -1))}

    async def describe(self, processes: Sequence[str]) -> tuple[float, list[Described]]:
        """The ms of the store's clock, and what is known of each of `processes` that is on the list."""
        keys = (
            processes_key(self.prefix), due_key(self.prefix), leases_key(self.prefix), about_key(self.prefix),
            draining_key(self.prefix),
        )  # fmt: skip
        parts = [processes[at : at + DESCRIBED_AT_ONCE] for at in range(0, max(1, len(processes)), DESCRIBED_AT_ONCE)]
        found: list[Described] = []
        now = 0.0
        for some in parts:
            said, *rows = await self._ask(scripts.DESCRIBE(*keys, *some))
            now = float(said)
            for process, row in zip(some, rows, strict=True):
                if row:
                    beat, due, *rest = row
                    found.append(Described(process, float(beat), float(due) if due else None, *rest))
        return now, found

    async def ask_to_drain(self, process: str, order: bytes) -> bool:
        """Ask a process to take nothing; b'': to go on. False: there is no such process."""
        keys = processes_key(self.prefix), draining_key(self.prefix)
        message = f"drain|{process}"
        return bool(await self._ask(scripts.ORDER(*keys, "zset", process, order, self.channels.orders, message)))

    async def was_asked_to_drain(self, process: str) -> bool:
        """Whether a process is to take nothing."""
        return await self._ask(("HGET", draining_key(self.prefix), process)) is not None

    async def pause_task(self, task: str, order: bytes) -> bool:
        """Let a task fire no more; b'': let it go on. False: there is no such task."""
        keys = tasks_key(self.prefix), paused_key(self.prefix)
        message = f"pause|{task}"
        return bool(await self._ask(scripts.ORDER(*keys, "hash", task, order, self.channels.orders, message)))
