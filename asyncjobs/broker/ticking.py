"""Ticks: claims of a task's firings."""

from __future__ import annotations

from asyncjobs.broker import scripts
from asyncjobs.broker.calling import RetryingCaller
from asyncjobs.broker.keys import due_key, processes_key, running_key, ticks_key


class Ticking(RetryingCaller):
    """The verbs of the scheduler."""

    async def tick(
        self, task: str, scheduled_ms: int, process: str, overlap: str, lease: float, busy: bool
    ) -> tuple[str, float]:
        """Claim a firing: 'fire', 'taken', 'overlap', 'queued', or 'early' and the seconds until it is due.

        `busy`: `process` itself runs the task right now.
        """
        reply = await self._ask(
            scripts.TICK(
                ticks_key(self.prefix), running_key(self.prefix), processes_key(self.prefix), due_key(self.prefix),
                task, scheduled_ms, process, overlap, int(lease * 1000), "1" if busy else "0",
            ),
            patient=True,
        )  # fmt: skip
        return reply[0].decode(), reply[1] / 1000 if len(reply) > 1 else 0.0

    async def end_run(self, task: str, process: str, more: bool) -> int | None:
        """A run has ended. Returns the scheduled ms of the tick queued behind it, if any."""
        command = scripts.END_RUN(running_key(self.prefix), task, process, "1" if more else "0")
        queued = await self._ask(command, patient=True)
        return int(queued) if queued else None

    async def last_tick(self, task: str, baseline_ms: int) -> int:
        """The last claimed tick, in ms. A task that was never seen before counts as ticked at `baseline_ms`.

        A baseline in Redis's future, from a clock that is ahead, would block other processes' ticks until then.
        """
        key = ticks_key(self.prefix)
        seconds, micros = await self._ask(("TIME",))
        baseline_ms = min(baseline_ms, int(seconds) * 1000 + int(micros) // 1000)
        await self._ask(("HSETNX", key, task, f"{baseline_ms} -"))
        return int((await self._ask(("HGET", key, task))).partition(b" ")[0])
