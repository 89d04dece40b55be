"""The Selection: jobs by name, state, group, text, error and instant; nothing is asked until it is read."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final, NamedTuple, Self

from asyncjobs import clock
from asyncjobs.broker import Broker
from asyncjobs.declare.definition import JobSpec
from asyncjobs.declare.values import flag, whole
from asyncjobs.job import Job, in_the_name_of
from asyncjobs.operate.acting import GOES_WITH, Done, DryRun, Order, act_on, names_of
from asyncjobs.operate.counting import Count, count
from asyncjobs.operate.operations import STEP, Operations
from asyncjobs.operate.place import Cursor
from asyncjobs.operate.states import EVERY, states
from asyncjobs.operate.walk import Plan, Walk
from asyncjobs.operator import Operator, reason_text

MOST_A_PAGE: Final = 1000
A_PAGE: Final = 50
AT_ONCE: Final = 200  # jobs that an iteration reads at a time
MOST_TRIPS: Final = 6  # round trips a page
SAMPLE: Final = 5  # jobs that a dry run shows
SHARE: Final = 0.2  # of the time in which a search makes the store work; the rest is left to others


class Page(NamedTuple):
    """Some jobs of a selection, in its order.

    Attributes:
        jobs: those found; fewer than asked for, or none, where many had to be looked at or their records are large.
        next: give it as `after` for the next page, in any process; None: this is the last one.
        scope: in words, what was looked at and what could not be read.
        looked_at: how many jobs were looked at for this page.
    """

    jobs: list[Job]
    next: str | None
    scope: str
    looked_at: int


class Found:
    """The jobs of a selection, one after the other, while they come and go; ends early by `aclose`.

    State: `_walk`, once it has begun; `_ready`, what is read and not handed out.

    Attributes:
        looked_at: how many jobs have been looked at so far, found or not.
        of: how many there were to look at when it began; None until it has.
    """

    def __init__(self, make: Callable[[], Walk], searches: bool, operator: Operator) -> None:
        self._make, self._searches, self._operator = make, searches, operator
        self._walk: Walk | None = None
        self._ready: list[Job] = []
        self._closed = False
        self.of: int | None = None

    @property
    def looked_at(self) -> int:
        return self._walk.looked_at if self._walk is not None else 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Job:
        while not self._ready:
            if self._closed or (self._walk is not None and self._walk.done):
                raise StopAsyncIteration
            await self._read()
        return self._ready.pop()

    async def _read(self) -> None:
        began = clock.monotonic()
        if self._walk is None:
            walk = self._make()
            await walk.begin()
            self.of = await walk.total()
            self._walk = walk
        elif not self._walk.done:
            self._ready = in_the_name_of(self._operator, await self._walk.further(AT_ONCE))[::-1]
            if self._searches:
                await asyncio.sleep((clock.monotonic() - began) * (1 / SHARE - 1))

    async def aclose(self) -> None:
        """Look no further."""
        self._closed = True
        self._ready = []


class Selection:
    """Jobs that match, read anew each time; see `Queue.select` for what they are chosen by.

    ``async for job in selection`` meets each job that is in a state of it throughout, and none twice, while jobs come,
    finish, are retried and trimmed; what came to its state after the iteration began is left out. The order is that of
    ``asyncjobs/operate/walk.py``.
    """

    def __init__(
        self, running: Callable[[str], Broker], specs: Mapping[str, JobSpec], plan: Plan, operator: Operator
    ) -> None:
        self._running, self._specs, self._plan, self._operator = running, specs, plan, operator
        self._latest: Found | None = None

    def __repr__(self) -> str:
        return f"<Selection {self.scope}>"

    @property
    def scope(self) -> str:
        """What is selected, in words."""
        return self._plan.words()

    @property
    def looked_at(self) -> int:
        """How many jobs the latest iteration has looked at so far."""
        return 0 if self._latest is None else self._latest.looked_at

    @property
    def of(self) -> int | None:
        """How many jobs there were for the latest iteration to look at; None before it has begun."""
        return None if self._latest is None else self._latest.of

    def __aiter__(self) -> Found:
        self._latest = Found(self._walk, self._plan.wanted.searches, self._operator)
        return self._latest

    async def page(self, after: str | None = None, limit: int = A_PAGE) -> Page:
        """Some jobs, in at most six round trips.

        Args:
            after: `next` of the page before; None: the first one.
            limit: how many at most, up to 1000.
        Raises:
            ConfigError: an `after` that no page of this selection has handed out.
            UnknownJobError: no process has ever registered that name.
        """
        most = whole(limit, "limit", least=1, most=MOST_A_PAGE)
        walk = self._walk(after)
        await walk.begin()
        return await self._next_page(walk, most, MOST_TRIPS)

    async def pages(self, limit: int = 500, after: str | None = None, data: bool = True) -> AsyncIterator[Page]:
        """All jobs, page by page, as the iteration has them; each page's `next` is where to go on after a crash.

        Args:
            data: False for jobs without data, result, errors, progress and logs: who they are, and when.
        """
        most = whole(limit, "limit", least=1, most=MOST_A_PAGE)
        walk = self._walk(after)
        await walk.begin()
        while not walk.done:
            began = clock.monotonic()
            yield await self._next_page(walk, most, walk.trips + MOST_TRIPS, data)
            if self._plan.wanted.searches:
                await asyncio.sleep((clock.monotonic() - began) * (1 / SHARE - 1))

    async def count(self) -> Count:
        """How many there are. Where each would have to be looked into, only some thousands are; see `Count`."""
        walk = self._walk()
        await walk.begin()
        return await count(walk)

    # Acting -----------------------------------------------------------------------------------------------
    async def cancel(self, reason: str = "", *, dry_run: bool = False) -> Done | DryRun:
        """`Job.cancel` for all that match and have not finished. Those that run are told, and count as done."""
        return await self._act("cancel", {}, reason, dry_run)

    async def retry(self, reset: bool = False, *, reason: str = "", dry_run: bool = False) -> Done | DryRun:
        """`Job.retry` for all that match and are failed or cancelled."""
        return await self._act("retry", {"reset": flag(reset, "reset")}, reason, dry_run)

    async def rerun(self, *, reason: str = "", dry_run: bool = False, **changes: Any) -> Done | DryRun:
        """`Job.rerun` for all that match; `changes`: what differs, the same for all, but no `job_id`.

        Raises:
            UnknownJobError, PayloadError, ConfigError: changes that cannot be; nothing was done.
        """
        return await self._act("rerun", self._operator.changes_for(self._plan.name, changes), reason, dry_run)

    async def promote(self, *, reason: str = "", dry_run: bool = False) -> Done | DryRun:
        """`Job.promote` for all that match and are delayed."""
        return await self._act("promote", {}, reason, dry_run)

    async def remove(self, *, reason: str = "", dry_run: bool = False) -> Done | DryRun:
        """`Job.remove` for all that match and do not run."""
        return await self._act("remove", {}, reason, dry_run)

    async def _act(self, what: str, args: Mapping[str, Any], reason: str, dry_run: bool) -> Done | DryRun:
        """Do it to all that match.

        More than `STEP` jobs are an operation that is kept in the store: should this process die, another one goes on.
        What comes to its state after this has begun is left as it is.
        """
        reason, dry_run, plan = reason_text(reason), flag(dry_run, "dry_run"), self._plan
        if plan.states == EVERY:
            plan = dataclasses.replace(plan, states=states(GOES_WITH[what]))
        narrowed = Selection(self._running, self._specs, plan, self._operator)
        number = await narrowed.count()
        if dry_run:
            return DryRun(number.number, number.exact, (await narrowed.page(limit=SAMPLE)).jobs)
        broker = self._running(what)
        operations = Operations(broker, self._specs, self._operator)
        if number.exact and number.number <= STEP and what != "rerun":
            return await narrowed._act_at_once(broker, what, args, reason)
        operation_id = await operations.begin(plan, what, args, reason, number.number)
        return (await operations.drive(operation_id)).outcome

    async def _act_at_once(self, broker: Broker, what: str, args: Mapping[str, Any], reason: str) -> Done:
        act = self._operator.new_act(what, reason)
        order = Order(what, args, self._operator, reason, act, self._specs)
        await self._operator.write(
            broker, what, {"name": self._plan.name, "group_id": self._plan.group_id, "scope": self.scope}, reason=reason
        )
        done, skipped = 0, Counter[str]()
        async for page in self.pages(data=False):
            reached, left = await act_on(broker, order, names_of(page.jobs))
            done, skipped = done + reached, skipped + left
        return Done(done, dict(skipped))

    def _walk(self, after: str | None = None) -> Walk:
        cursor = None if after is None else Cursor.read(after)
        return Walk(self._running("select"), self._specs, self._plan, cursor)

    async def _next_page(self, walk: Walk, limit: int, most_trips: int, data: bool = True) -> Page:
        jobs: list[Job] = []
        before, first = walk.looked_at, True
        while not walk.done and len(jobs) < limit and (first or walk.trips + walk.next_trips <= most_trips):
            jobs += in_the_name_of(self._operator, await walk.further(limit - len(jobs), data))
            first = False
        cursor = walk.cursor()
        scope = self.scope
        if walk.unread:
            scope += f"; not readable, as something else is stored there: {', '.join(walk.unread)}"
        return Page(jobs, None if cursor is None else cursor.text(), scope, walk.looked_at - before)
