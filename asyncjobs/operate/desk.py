"""The Desk: what an operator asks of the queue: look at jobs, act on them, steer what is set."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import datetime
from typing import Any, Self

from asyncjobs.broker import Broker
from asyncjobs.declare.add_options import group_of, group_text, id_text
from asyncjobs.declare.definition import JobSpec, checked_name
from asyncjobs.declare.values import flag
from asyncjobs.errors import ConfigError
from asyncjobs.job import Job, in_the_name_of
from asyncjobs.operate.controls import QueueControls, Shape, shape_of
from asyncjobs.operate.finding import find
from asyncjobs.operate.names import all_names, announce, strangers
from asyncjobs.operate.operations import Operations
from asyncjobs.operate.selection import Selection
from asyncjobs.operate.states import states
from asyncjobs.operate.walk import Plan
from asyncjobs.operate.wanted import Wanted
from asyncjobs.operator import AuditEntry, Operator, entry_of, trail


class Desk:
    """What works from any process, one that consumes nothing too.

    State: `_specs`, name → registered job; `operator`, in whose name jobs are acted on.
    """

    _specs: dict[str, JobSpec]
    operator: Operator

    def spec(self, job: str | Callable[..., Any]) -> JobSpec:
        """The registered job called or handled by `job`."""
        raise NotImplementedError

    def _running(self, what: str) -> Broker:
        """The broker, for the method `what` that was called."""
        raise NotImplementedError

    # Looking ----------------------------------------------------------------------------------------------
    def select(
        self,
        name: str | Callable[..., Any] | None = None,
        *,
        state: str | Iterable[str] | None = None,
        group_id: str | int | None = None,
        text: str | None = None,
        error: str | None = None,
        tag: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        newest_first: bool = True,
    ) -> Selection:
        """Jobs to look at; nothing is asked until the selection is iterated, paged or counted.

        Args:
            name: registered here or not, or a handler; None: every name that a process has ever registered.
            state: one or several of waiting, active, delayed, completed, failed, cancelled; None: all.
            group_id: None: all groups, and what has none.
            text: plain text in the payload, or ``key:value`` against what it says; a key may be a path, ``order.id:7``.
            error: text in the last error, which begins with its type.
            tag: of the job.
            since, until: aware datetimes, both inclusive; when it finished, started, comes due, or was added.
        Raises:
            ConfigError: a value that cannot be.
        """
        known = None
        if name is not None:
            known = self._specs.get(checked_name(name, "job")) if isinstance(name, str) else self.spec(name)
        if group_id is not None:
            group_id = group_text(group_id) if known is None else group_of(known, group_id)
        asked = known.name if known is not None else None if name is None else str(name)
        wanted = Wanted.of(text, error, tag, since, until)
        plan = Plan(asked, group_id, states(state), wanted, flag(newest_first, "newest_first"))
        return Selection(self._running, self._specs, plan, self.operator)

    async def find(self, job_id: str) -> list[Job]:
        """Every job with that id, over all names and groups, registered here or not."""
        found = await find(self._running("find"), self._specs, id_text(job_id, "job_id"))
        return in_the_name_of(self.operator, found)

    async def all_names(self) -> dict[str, dict[str, int]]:
        """Every job name that a process has ever registered, with how many jobs are in each state."""
        return await all_names(self._running("all_names"), self._specs)

    async def announce(self) -> None:
        """Leave it in the store which names there are here, and what holds for them."""
        await announce(self._running("announce"), self._specs)

    async def strangers(self) -> dict[str, dict[str, int]]:
        """The job names that others have registered and this runtime has not, with what is left of them by state."""
        return await strangers(self._running("strangers"), self._specs)

    # Acting -----------------------------------------------------------------------------------------------
    def acting_as(self, by: str, source: str = "python") -> Self:
        """This queue, for acts in the name of `by`: the audit trail and the record of each job tell it.

        Args:
            by: who acts, 1 to 100 characters.
            source: from where, such as "cli" or the name of an admin page.
        """
        queue = copy.copy(self)
        queue.operator = self.operator.called(id_text(by, "by"), id_text(source, "source"))
        return queue

    @property
    def operations(self) -> Operations:
        """Acts on many jobs that are kept in the store: those under way, and the last hundred."""
        return Operations(self._running("operations"), self._specs, self.operator)

    def audit(self) -> AsyncIterator[AuditEntry]:
        """The acts of operators, newest first; about the last 10,000 are kept."""
        return trail(self._running("audit"))

    def job(self, name: str | Callable[..., Any]) -> QueueControls:
        """Pause, resume, limit a whole job name, in all processes, while they run; for a grouped job, each group."""
        spec = self.spec(name)
        return QueueControls(self._running("job"), Shape.of(spec), None, self.operator, self.select)

    def group(self, name: str | Callable[..., Any], group_id: str | int) -> QueueControls:
        """The same for one group."""
        spec = self.spec(name)
        return QueueControls(
            self._running("group"), Shape.of(spec), group_of(spec, group_id), self.operator, self.select
        )

    async def controls(self, name: str, group_id: str | int | None = None) -> QueueControls:
        """The same for any name that a process has ever registered, here or elsewhere.

        Raises:
            UnknownJobError: none has.
            ConfigError: it has no groups, and one is named.
        """
        broker = self._running("controls")
        shape = await shape_of(broker, self._specs, name)
        group = None if group_id is None else group_text(group_id)
        if group is not None and not shape.grouped:
            raise ConfigError(f"{name} has no groups, so it takes no group_id")
        return QueueControls(broker, shape, group, self.operator, self.select)

    async def revert(self, entry_id: str) -> None:
        """Undo a change of settings that an entry of the audit trail tells of.

        Raises:
            ConfigError: there is no such entry, or it has changed no setting.
        """
        entry = await entry_of(self._running("revert"), entry_id)
        controls = await self.controls(entry.target.get("name", ""), entry.target.get("group_id"))
        await controls.revert(entry)
