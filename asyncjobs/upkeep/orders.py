"""Orders: what operators ask of processes, heard at once and looked up where the news of it may have been lost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from asyncjobs.broker import Broker
from asyncjobs.supervisor import Supervisor
from asyncjobs.upkeep.draining import Draining


class Orders:
    """Args:
    look_at_tasks: sees which tasks are paused.
    run: takes a run of a task that was asked for: its name, and the request.
    relearn: reads what was set of a queue: its name, and its group or ''.
    """

    def __init__(
        self,
        broker: Broker,
        supervisor: Supervisor,
        draining: Draining,
        process: Callable[[], str],
        look_at_tasks: Callable[[], Awaitable[None]],
        run: Callable[[str, str], Awaitable[None]],
        relearn: Callable[[str, str], Awaitable[None]],
    ) -> None:
        self._broker, self._supervisor, self._draining, self._process = broker, supervisor, draining, process
        self._look_at_tasks, self._run, self._relearn = look_at_tasks, run, relearn

    async def listen(self) -> None:
        """From now on they are heard."""
        await self._broker.subscriber.listen(self._broker.channels.orders, self._on_message, self._look)

    def _look(self) -> None:
        """News may have been lost."""
        self._supervisor.once("looking what was asked of this process", self._look_at_all)

    async def _look_at_all(self) -> None:
        await self._draining.look()
        await self._look_at_tasks()

    def _on_message(self, message: bytes) -> None:
        kind, _, rest = message.decode().partition("|")
        if kind == "drain" and rest == self._process():
            self._supervisor.once("looking whether this process is to drain", self._draining.look)
        elif kind == "pause":
            self._supervisor.once("looking which tasks are paused", self._look_at_paused)
        elif kind == "run":
            task, _, request = rest.partition("|")
            self._supervisor.once(f"taking a run of {task}, {request}", lambda: self._take(task, request))

        elif kind == "set":
            name, _, group_id = rest.partition("|")
            self._supervisor.once(f"reading what was set of {rest!r}", lambda: self._reread(name, group_id))

    async def _reread(self, name: str, group_id: str) -> None:
        await self._relearn(name, group_id)

    async def _look_at_paused(self) -> None:
        await self._look_at_tasks()

    async def _take(self, task: str, request: str) -> None:
        await self._run(task, request)
