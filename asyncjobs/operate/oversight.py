"""Oversight: the methods of a runtime by which an operator looks at processes and tasks, and steers them."""

from __future__ import annotations

from typing import Any

from asyncjobs.broker import Broker
from asyncjobs.operate import processes, tasks
from asyncjobs.operate.processes import ProcessInfo
from asyncjobs.operate.tasks import Asked, TaskInfo


class Oversight:
    """What works from every process, one that consumes nothing too. `_queue`: the front door of the runtime."""

    _queue: Any

    def _operated(self, what: str) -> Broker:
        """The broker, for the method `what` that was called.

        Raises:
            NotRunningError: the runtime is not running, or not in this loop.
        """
        broker: Broker = self._queue._running(what, "runtime")
        return broker

    async def _write(self, broker: Broker, what: str, target: dict[str, str], reason: str = "") -> None:
        """Write an act into the audit trail, before it is done."""
        await self._queue.operator.write(broker, what, target, reason=reason)

    async def processes(self) -> list[ProcessInfo]:
        """All processes that work on this store, each as its last heartbeat has it."""
        return await processes.processes(self._operated("processes"))

    async def drain_process(self, process_id: str, reason: str = "") -> None:
        """Ask a process to take nothing more: what runs there goes on, others take the rest. It hears of it at once.

        Args:
            process_id: its `ProcessInfo.id`, or the last part of that.
            reason: kept with it.
        Raises:
            ConfigError: there is no such process; the text names those that there are.
        """
        broker, given = self._operated("drain_process"), processes.order(reason)
        process = await processes.meant(broker, process_id)
        await self._write(broker, "drain_process", {"process": process}, reason)
        await processes.ask(broker, process, given)

    async def resume_process(self, process_id: str) -> None:
        """Let a process take jobs again that was asked to drain."""
        broker = self._operated("resume_process")
        process = await processes.meant(broker, process_id)
        await self._write(broker, "resume_process", {"process": process})
        await processes.ask(broker, process, b"")

    async def tasks(self) -> list[TaskInfo]:
        """All tasks that any process has known: schedule, last runs, skipped ticks, next ticks."""
        return await tasks.tasks(self._operated("tasks"))

    async def run_task(self, name: str) -> Asked:
        """Have one of the processes that have a task run it now, as if it ticked; a pause does not keep it from that.

        Returns:
            ``"started"``; or what `overlap` makes of it while a run goes on: ``"queued"`` or ``"skipped"``.
        Raises:
            ConfigError: there is no such task.
            StateError: no living process has it.
        """
        broker = self._operated("run_task")
        await tasks.check(broker, name)
        await self._write(broker, "run_task", {"task": name})
        return await tasks.run(broker, name)

    async def pause_task(self, name: str, reason: str = "") -> None:
        """Keep a task from ticking, in all processes and over restarts; its ticks are noted as skipped.

        Raises:
            ConfigError: there is no such task.
        """
        broker, given = self._operated("pause_task"), processes.order(reason)
        await tasks.check(broker, name)
        await self._write(broker, "pause_task", {"task": name}, reason)
        await tasks.pause(broker, name, given)

    async def resume_task(self, name: str) -> None:
        """Let a task tick again."""
        broker = self._operated("resume_task")
        await tasks.check(broker, name)
        await self._write(broker, "resume_task", {"task": name})
        await tasks.pause(broker, name, b"")
