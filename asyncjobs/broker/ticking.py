"""Ticks: which firings of a task were claimed, and by whom; what became of them; runs that were asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec

from asyncjobs.broker import scripts
from asyncjobs.broker.calling import RetryingCaller
from asyncjobs.broker.keys import (
    asked_key,
    due_key,
    paused_key,
    processes_key,
    running_key,
    runs_key,
    skips_key,
    tasks_key,
    ticks_key,
)


class StoredTasks(NamedTuple):
    """What the store has of tasks, by name, as JSON: what they are, and which of them are paused."""

    known: dict[str, bytes]
    paused: dict[str, bytes]


def run_mark(scheduled_ms: int, process: str, asked: bool = False) -> str:
    """How the entry of a run begins, by which it is found again; see ``lua/include/task_runs.lua``."""
    return f'{{"s":{scheduled_ms},"p":"{process}"' + (',"m":1' if asked else "")


class Ticking(RetryingCaller):
    """The verbs of the scheduler."""

    async def tick(
        self, task: str, scheduled_ms: int, process: str, overlap: str, lease: float, busy: bool
    ) -> tuple[str, float]:
        """Claim a firing: 'fire', 'taken', 'overlap', 'queued', 'paused', or 'early' and the seconds until it is due.

        `busy`: `process` itself runs the task right now.
        """
        reply = await self._ask(
            scripts.TICK(
                ticks_key(self.prefix), running_key(self.prefix), processes_key(self.prefix), due_key(self.prefix),
                paused_key(self.prefix), runs_key(self.prefix, task), skips_key(self.prefix, task),
                task, scheduled_ms, process, overlap, int(lease * 1000), "1" if busy else "0",
                run_mark(scheduled_ms, process),
            ),
            patient=True,
        )  # fmt: skip
        return reply[0].decode(), reply[1] / 1000 if len(reply) > 1 else 0.0

    async def end_run(self, task: str, process: str, more: bool, mark: str, outcome: bytes) -> int | None:
        """A run has ended: the scheduled ms of the tick queued behind it, if any.

        Args:
            process: under whose name it began.
            outcome: JSON that follows in its entry.
        """
        keys = running_key(self.prefix), paused_key(self.prefix), runs_key(self.prefix, task)
        args = (skips_key(self.prefix, task), task, process, "1" if more else "0", mark, outcome)
        queued = await self._ask(scripts.END_RUN(*keys, *args), patient=True)
        return int(queued) if queued else None

    async def note_run(self, task: str, kind: Literal["begin", "end", "skip"], mark: str, more: bytes = b"") -> bool:
        """Write down what became of a run, or of a tick. Returns whether the task is paused."""
        keys = runs_key(self.prefix, task), skips_key(self.prefix, task), paused_key(self.prefix)
        return bool(await self._ask(scripts.NOTE_RUN(*keys, task, kind, mark, more), patient=True))

    async def last_tick(self, task: str, baseline_ms: int) -> int:
        """The last claimed tick, in ms. A task that was never seen before counts as ticked at `baseline_ms`.

        A baseline in Redis's future, from a clock that is ahead, would block other processes' ticks until then.
        """
        key = ticks_key(self.prefix)
        seconds, micros = await self._ask(("TIME",))
        baseline_ms = min(baseline_ms, int(seconds) * 1000 + int(micros) // 1000)
        await self._ask(("HSETNX", key, task, f"{baseline_ms} -"))
        return int((await self._ask(("HGET", key, task))).partition(b" ")[0])

    # Tasks, and what operators ask of them ------------------------------------------------------------------
    async def declare_tasks(self, tasks: Mapping[str, bytes]) -> None:
        """Leave it here what the tasks are that this process knows."""
        if tasks:
            await self._ask(("HSET", tasks_key(self.prefix), *(word for pair in tasks.items() for word in pair)))

    async def stored_tasks(self) -> StoredTasks:
        """What any process has left of its tasks, and which of them are paused."""
        known, paused = await self.loop.gather(
            self._ask(("HGETALL", key)) for key in (tasks_key(self.prefix), paused_key(self.prefix))
        )
        return StoredTasks(_pairs(known), _pairs(paused))

    async def paused_tasks(self) -> set[str]:
        """The tasks that do not tick."""
        return set(_pairs(await self._ask(("HGETALL", paused_key(self.prefix)))))

    async def task_runs(self, tasks: Sequence[str]) -> list[tuple[list[bytes], list[bytes]]]:
        """Of each task the last runs, and the last ticks that it did not run on, newest first."""
        keys = [key for task in tasks for key in (runs_key(self.prefix, task), skips_key(self.prefix, task))]
        lists = await self.loop.gather(self._ask(("LRANGE", key, 0, -1)) for key in keys)
        return [(lists[at][::-1], lists[at + 1][::-1]) for at in range(0, len(lists), 2)]

    async def ask_run(self, task: str, request: str, last: bool = False) -> str:
        """Ask all processes for a run of a task; what became of that, or ''. `last`: it is given up."""
        key, message = asked_key(self.prefix, request), f"run|{task}|{request}"
        verdict: bytes = await self._ask(scripts.ASK_RUN(key, self.channels.orders, message, "end" if last else "ask"))
        return verdict.decode()

    async def asked_run(self, request: str) -> str:
        """What became of a run that was asked for, or ''."""
        found: bytes = await self._ask(("GET", asked_key(self.prefix, request))) or b""
        return found.decode().partition(" ")[2].partition(" ")[0]

    async def take_run(
        self, task: str, request: str, process: str, overlap: str, lease: float, busy: bool, each: bool
    ) -> tuple[str, int]:
        """Take a run that was asked for: see ``lua/take_run.lua``. Returns the verdict and its scheduled ms."""
        reply = await self._ask(
            scripts.TAKE_RUN(
                asked_key(self.prefix, request), running_key(self.prefix), processes_key(self.prefix),
                due_key(self.prefix), runs_key(self.prefix, task), skips_key(self.prefix, task),
                task, process, overlap, int(lease * 1000), "1" if busy else "0", "1" if each else "0",
            )
        )  # fmt: skip
        return reply[0].decode(), int(reply[1])


def _pairs(found: object) -> dict[str, bytes]:
    """A hash, in whichever of the two shapes it came."""
    if isinstance(found, dict):
        pairs = found.items()
    else:
        assert isinstance(found, list)
        pairs = dict(zip(found[::2], found[1::2], strict=True)).items()
    return {field.decode(errors="replace"): value for field, value in pairs}


def outcome_json(outcome: str, error: str = "") -> bytes:
    """How a run ended, as its entry goes on."""
    text = f',"o":"{outcome}"'.encode()
    return text + b',"x":' + msgspec.json.encode(error) if error else text


def skip_json(why: str, more: str = "") -> bytes:
    """Why a tick did not run, as its entry goes on."""
    text = f'"w":"{why}"'.encode()
    return text + b',"x":' + msgspec.json.encode(more) if more else text
