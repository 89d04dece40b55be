"""A world to set a machine on: runtimes on one real server, each behind a link that misbehaves, and who judges it all.

Every act is one method, and short; what has been broken is found by `check` after it, and by `end` when all is drained.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Literal, NamedTuple

import pytest
from redis.asyncio import Redis

from asyncjobs import (
    Backoff,
    BrokerError,
    Discard,
    Event,
    Limiter,
    NotRunningError,
    QueueFullError,
    RateLimited,
    RetryLater,
    Runtime,
)
from asyncjobs.broker.scripts import WORK
from asyncjobs.errors import visible
from asyncjobs.invariants import of_keys, of_runtime, of_store
from benchmarks.proxy import Proxy
from tests.helpers import BOUND, eventually, most_in_window

Place = tuple[str, str | None]  # a job name, and its group
Step = Literal["return", "raise", "discard", "later", "rate", "slow", "held", "stubborn", "hang"]

WINDOW: Final = 0.3
MAILBOX: Final = Limiter(3, WINDOW, name="mailbox")
GROUPS: Final = ("a", "b", "c:{}")
ATTEMPTS: Final = 3
LEASE: Final = 1.0
PATIENCE: Final = 0.6  # seconds in which a reply must come: a link that stands still is left soon
DOUBT: Final = 0.2  # seconds in which a turn that was given up may still arrive: the proxy holds nothing longer
OURS: Final = ("could not be made ready", "could not deal with", "could not be started", "no decision could be made")


class Kind(NamedTuple):
    """A job name: what it is registered with, and what holds of its tries."""

    options: dict[str, Any]
    limit: tuple[str, int] | None = None  # the limit its starts count under, and how many it lets in
    keeps: bool = True  # its finished jobs stay

    @property
    def grouped(self) -> bool:
        return bool(self.options.get("group"))

    @property
    def ordered(self) -> bool:
        return bool(self.options.get("ordered"))


KINDS: Final[dict[str, Kind]] = {
    "plain": Kind({"concurrency": 3}),
    "single": Kind({"concurrency": 1}),
    "limited": Kind({"concurrency": 4, "limiter": Limiter(3, WINDOW)}, ("limited", 3)),
    "mail": Kind({"concurrency": 2, "limiter": MAILBOX}, ("mailbox", 3)),
    "letter": Kind({"group": True, "limiter": MAILBOX}, ("mailbox", 3)),
    "tenant": Kind({"group": True, "remove_on_complete": 2, "remove_on_fail": 1, "max_stalled_count": 1}, keeps=False),
    "fleeting": Kind({"group": True, "remove_on_complete": True, "group_idle": 0.01}, keeps=False),
    "capped": Kind({"group": True, "total_concurrency": 2, "total_limiter": Limiter(4, WINDOW)}, ("capped", 4)),
    "strict": Kind({"group": True, "ordered": True}),
}  # fmt: skip
TOTAL: Final = {"capped": 2}


class Added:
    """A job that was added, and what came of it."""

    def __init__(self, number: int, place: Place, script: tuple[Step, ...], due: float) -> None:
        self.number, self.place, self.script, self.due = number, place, script, due
        self.acknowledged = self.in_order = self.void = self.excused = False
        self.asked = self.over = False  # its cancel was asked for while it ran; it was cancelled before it ran
        self.starts: list[float] = []
        self.returned = self.failures = 0
        self.terminals: list[Event] = []

    def __repr__(self) -> str:
        flags = [one for one in ("acknowledged", "in_order", "void", "excused", "asked", "over") if getattr(self, one)]
        ends = [event.type for event in self.terminals]
        return (
            f"job {self.number} of {self.place} {self.script} {flags}: {len(self.starts)} starts, "
            f"{self.returned} returned, {self.failures} failed, {ends}"
        )


class Member:
    """A runtime behind a proxy of its own."""

    def __init__(self, world: World, number: int, slots: int) -> None:
        self.number, self.slots, self.proxy = number, slots, Proxy(world.port)
        self.world = world
        self.active: Counter[str] = Counter()
        self.active_names: Counter[str] = Counter()
        self.runtime: Runtime | None = None
        self.stopping: asyncio.Task[None] | None = None

    @property
    def up(self) -> bool:
        return self.runtime is not None and self.runtime.state == "running" and self.stopping is None

    async def start(self) -> None:
        if self.runtime is None:
            await self.proxy.__aenter__()
            self.runtime = Runtime(
                self.proxy.url, prefix=self.world.prefix, concurrency=self.slots, connect_timeout=3, sweep_interval=60,
                schedule=False, blocking_warning=None,
            )  # fmt: skip
            self.world.register(self.runtime, self)
        self.proxy.mode = "pass"
        try:
            await self.runtime.start()
        except BrokerError:
            assert self.runtime.state == "stopped"

    def stop(self, grace: float) -> None:
        assert self.runtime is not None
        runtime = self.runtime

        async def stop() -> None:
            await runtime.stop(grace=grace)

        self.stopping = asyncio.get_running_loop().create_task(stop())

    async def stopped(self) -> None:
        if self.stopping is not None:
            await self.stopping
            self.stopping = None
            if self.active.total():
                self.world.broken.append(f"handlers go on in a stopped runtime: {self.active}")


class World:
    """All that there is in one example.

    State:
        members: the runtimes that work; operator: one that only adds and looks, by a link that never fails.
        jobs: what was added, by id; active: tries that run, by place: (member, id).
        stalled: jobs that were taken from a process that was given up: these may run more than once.
        lapsed: whether a process has been given up that lives; steered: places whose concurrency was changed.
        damaged: places that a careless operator has harmed.
        broken: what does not hold, found while the loop ran.
    """

    def __init__(self, port: int, url: str, prefix: str) -> None:
        self.port, self.url, self.prefix = port, url, prefix
        self.members: list[Member] = []
        self.jobs: dict[str, Added] = {}
        self.active: dict[Place, list[tuple[Member, str]]] = {}
        self.stalled: set[str] = set()
        self.reaped: Counter[Place] = Counter()
        self.latest: dict[Place, int] = {}
        self.starts: dict[str, list[float]] = {}
        self.damaged: set[Place] = set()
        self.steered: set[str] = set()
        self.broken: list[str] = []
        self.lapsed = self.draining = False
        self.notes = 0
        self._numbers = 0
        self._adding: set[asyncio.Task[None]] = set()
        self._patch = pytest.MonkeyPatch()
        self._log = Listener(self.broken)

    # Life -------------------------------------------------------------------------------------------------
    async def begin(self) -> None:
        self._patch.setattr("asyncjobs.broker.connection.REPLY_TIMEOUT", PATIENCE)
        self._patch.setattr("asyncjobs.work.alarms.REPLY_TIMEOUT", DOUBT)
        logging.getLogger("asyncjobs").addHandler(self._log)
        self.go = asyncio.Event()
        self.redis: Any = Redis.from_url(self.url)
        self.operator = Runtime(self.url, prefix=self.prefix, consume=False, schedule=False, blocking_warning=None)
        self.register(self.operator, None)
        await self.operator.start()
        self._inspector = asyncio.get_running_loop().create_task(self._inspect())

    def register(self, runtime: Runtime, member: Member | None) -> None:
        for name, kind in KINDS.items():

            async def handle(data: Any, job: Any) -> str:
                assert member is not None
                return await self._try(member, job)

            options = {
                "limiter": None, "lease": LEASE, "attempts": ATTEMPTS, "backoff": Backoff("fixed", 0.03),
                "max_stalled_count": 1000, "remove_on_complete": False, "remove_on_fail": False,
                **({"group_idle": 0.04} if kind.grouped else {}), **kind.options,
            }  # fmt: skip
            runtime.job(name, **options)(handle)
        runtime.on("*", self._event)

    async def close(self) -> None:
        self.draining = True
        self.go.set()
        for aio_task in (self._inspector, *self._adding):
            aio_task.cancel()
        for member in self.members:
            if member.runtime is not None:
                member.proxy.mode = "pass"
                if member.stopping is None:
                    member.stop(0)
        await asyncio.gather(*(member.stopping for member in self.members if member.stopping is not None))
        for member in self.members:
            if member.runtime is not None:
                await member.proxy.__aexit__()
        await self.operator.stop(grace=0)
        keys = [key async for key in self.redis.scan_iter(match=f"*{self.prefix}[:}}]*", count=1000)]
        if keys:
            await self.redis.delete(*keys)
        await self.redis.aclose()
        logging.getLogger("asyncjobs").removeHandler(self._log)
        self._patch.undo()

    async def _inspect(self) -> None:
        """What holds between any two steps of the loop is asked now and then, also while an act is under way."""
        while True:
            for member in self.up:
                assert member.runtime is not None
                self.broken += [f"runtime {member.number}: {sentence}" for sentence in of_runtime(member.runtime)]
            await asyncio.sleep(0.002)

    # What runs --------------------------------------------------------------------------------------------
    def _event(self, event: Event) -> None:
        self.notes += 1
        if event.type == "job.stalled" and event.job_id:
            self.stalled.add(event.job_id)
        elif event.type == "group.reaped":
            self.reaped[event.name, event.group_id] += 1
        elif event.type in ("job.completed", "job.failed", "job.cancelled") and event.job_id:
            self.jobs[event.job_id].terminals.append(event)

    async def _try(self, member: Member, job: Any) -> str:
        one, place = self.jobs[job.id], (job.name, job.group_id)
        self._began(member, one, job)
        nth = len(one.starts) - 1
        step: Step = one.script[nth] if nth < len(one.script) else "return"
        self.active.setdefault(place, []).append((member, job.id))
        member.active[job.id] += 1
        member.active_names[job.name] += 1
        try:
            await self._act(step)
            one.returned += 1
            return "done"
        except ValueError:
            one.failures += 1
            raise
        finally:
            self.notes += 1
            self.active[place].remove((member, job.id))
            member.active -= Counter([job.id])
            member.active_names[job.name] -= 1

    async def _act(self, step: Step) -> None:
        if step == "raise":
            raise ValueError("as planned")
        if step == "discard":
            raise Discard("as planned")
        if step == "later":
            raise RetryLater(0.03)
        if step == "rate":
            raise RateLimited(0.05)
        if step == "slow":
            await asyncio.sleep(0.03)
        elif step == "hang":
            await asyncio.Event().wait()
        elif step in ("held", "stubborn") and not self.draining:
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                if step == "stubborn":
                    await asyncio.sleep(0.02)
                raise

    def _began(self, member: Member, one: Added, job: Any) -> None:
        """What must hold when a try begins."""
        now, place = time.monotonic(), one.place
        name, kind = place[0], KINDS[place[0]]
        self.notes += 1
        if job.stalled_count:
            self.stalled.add(job.id)
        said = f"{one!r} begins in runtime {member.number}"
        if member.active[job.id]:
            self.broken.append(f"{said} beside itself")
        if member.active.total() >= member.slots:
            self.broken.append(f"{said}, which has {member.slots} slots")
        others = member.active_names[name]
        if not kind.grouped and name not in self.steered and others >= kind.options["concurrency"]:
            self.broken.append(f"{said} beside {others} others")
        beside = [other for _, other in self.active.get(place, ()) if not self._may_be_doubled(other)]
        if kind.grouped and beside and name not in self.steered:
            self.broken.append(f"{said} beside {[self.jobs[other] for other in beside]}")
        if name in TOTAL and not self.lapsed:
            running = sum(len(tries) for (other, _), tries in self.active.items() if other == name)
            if running >= TOTAL[name]:
                self.broken.append(f"{said} beside {running} of all groups")
        if not one.starts and now < one.due - 0.002:
            self.broken.append(f"{said} {one.due - now:.3f} s before it is due")
        if kind.grouped and one.in_order and name not in self.steered and (kind.ordered or not one.starts):
            if one.number < self.latest.get(place, 0) and not self._may_be_doubled(job.id):
                self.broken.append(f"{said} after job {self.latest[place]}")
            self.latest[place] = max(self.latest.get(place, 0), one.number)
        if one.terminals and not self._may_be_doubled(job.id):
            self.broken.append(f"{said} after its end")
        if one.over and not self._may_be_doubled(job.id):
            self.broken.append(f"{said} although it was cancelled")
        one.starts.append(now)
        if kind.limit is not None:
            self.starts.setdefault(kind.limit[0], []).append(now)

    def _may_be_doubled(self, job_id: str) -> bool:
        return job_id in self.stalled or self.jobs[job_id].excused

    # Acts: adding -----------------------------------------------------------------------------------------
    @property
    def up(self) -> list[Member]:
        return [member for member in self.members if member.up]

    def _planned(self, place: Place, script: tuple[Step, ...], delay: float) -> tuple[str, Added]:
        self._numbers += 1
        one = Added(self._numbers, place, script, time.monotonic() + delay)
        job_id = f"n{self._numbers}"
        self.jobs[job_id] = one
        return job_id, one

    async def add(self, place: Place, script: tuple[Step, ...], delay: float, by: int, count: int = 1) -> None:
        """Add jobs by one of the members, or by the operator; more than one in bulk."""
        await self._add([(place, script)] * count, delay, by)

    async def add_everywhere(self, scripts: Sequence[tuple[Step, ...]], by: int) -> None:
        """A job with each script in every queue, all in bulk."""
        places: list[Place] = []
        for name, kind in KINDS.items():
            places += [(name, group) for group in GROUPS] if kind.grouped else [(name, None)]
        await self._add([(place, script) for script in scripts for place in places], 0, by)

    async def _add(self, jobs: Sequence[tuple[Place, tuple[Step, ...]]], delay: float, by: int) -> None:
        calls: list[tuple[str, None, dict[str, Any]]] = []
        planned = []
        for place, script in jobs:
            job_id, one = self._planned(place, script, delay)
            options: dict[str, Any] = {"job_id": job_id, "group_id": place[1], "delay": delay or None}
            calls.append((place[0], None, options | ({"timeout": 0.1} if "hang" in script else {})))
            planned.append(one)
        adders = [self.operator, *(member.runtime for member in self.up if member.runtime is not None)]
        queue = adders[by % len(adders)].queue

        async def add() -> None:
            try:
                if len(calls) == 1:
                    await queue.add(calls[0][0], None, **calls[0][2])
                else:
                    await queue.add_bulk(calls)
            except (BrokerError, NotRunningError, QueueFullError):
                return
            for one in planned:
                one.acknowledged = True

        await self._within(add())
        for one in planned:
            one.in_order = one.acknowledged and not delay

    async def _within(self, adding: Awaitable[None]) -> None:
        aio_task = asyncio.ensure_future(adding)
        self._adding.add(aio_task)
        aio_task.add_done_callback(self._adding.discard)
        await asyncio.wait([aio_task], timeout=0.15)
        if aio_task.done():
            aio_task.result()

    async def add_again(self, which: int) -> None:
        """The id of a job that was added: nothing is added."""
        known = [(job_id, one) for job_id, one in self.jobs.items() if one.acknowledged and not one.void]
        known = [(job_id, one) for job_id, one in known if KINDS[one.place[0]].keeps]
        if known:
            job_id, one = known[which % len(known)]
            try:
                job = await self.operator.queue.add(one.place[0], 1, job_id=job_id, group_id=one.place[1])
            except QueueFullError:
                return
            if job.added and not one.void:
                self.broken.append(f"{one!r} was added again")

    async def cancel(self, which: int) -> None:
        """An operator cancels a job that was added lately, whatever it does."""
        known = [(job_id, one) for job_id, one in self.jobs.items() if one.acknowledged and not one.void][-12:]
        if not known:
            return
        job_id, one = known[which % len(known)]
        job = await self.operator.queue.get_job(one.place[0], job_id, one.place[1])
        if job is None:
            return
        answer = await job.cancel("as planned")
        one.asked = one.asked or answer == "requested"
        one.over = one.over or answer == "cancelled"
        if answer == "finished" and [event for event in one.terminals if event.type == "job.cancelled"]:
            self.broken.append(f"{one!r} was cancelled, and has finished")
        if answer == "requested":
            notes = self.notes
            await self.until(lambda: self.notes > notes, 0.05)

    # Acts: members ----------------------------------------------------------------------------------------
    async def start(self, slots: int, again: bool) -> None:
        """One more runtime, or one that was stopped once more."""
        stopped = [one for one in self.members if one.runtime is not None and one.runtime.state == "stopped"]
        if again and stopped:
            member = stopped[0]
            await member.stopped()
        else:
            member = Member(self, len(self.members), slots)
            self.members.append(member)
        await member.start()

    async def replace(self, slots: int) -> None:
        """Where nobody works any more somebody begins."""
        if not self.up:
            await self.start(slots, again=bool(slots % 2))

    async def stop(self, which: int, grace: float) -> None:
        if self.up:
            member = self._pick(which)
            if member.proxy.mode != "pass":
                self._excuse(member)
            member.stop(grace)
            await self.until(lambda: not member.active.total(), 0.05)

    async def crash(self, which: int) -> None:
        """A runtime that ends and cannot say so: what it held comes back by its lease."""
        if self.up:
            member = self._pick(which)
            self._excuse(member)
            member.proxy.mode = "refuse"
            member.proxy.cut_all()
            member.stop(0)

    def _excuse(self, member: Member) -> None:
        """What it has run and cannot settle runs once more."""
        self.lapsed = True
        for one in self.jobs.values():
            if one.starts and not one.terminals:
                one.excused = True

    def _pick(self, which: int) -> Member:
        return self.up[which % len(self.up)]

    async def lose(
        self, which: int, what: Literal["drop-reply", "drop-request"], times: int, turns: bool = False
    ) -> None:
        """What one of them is told next is lost, or what it says; `turns`: by which it settles and takes jobs."""
        if self.up:
            proxy = self._pick(which).proxy
            if proxy.mode == "pass":
                proxy.drop(what, times, WORK.sha.encode() if turns else b"")

    async def cut(self, which: int) -> None:
        if self.up:
            self._pick(which).proxy.cut_all()

    async def freeze(self, which: int, seconds: float) -> None:
        """The store stands still for one of them; it is not given up for that."""
        if self.up:
            proxy = self._pick(which).proxy
            proxy.mode = "black-hole"
            await self.until(lambda: False, seconds)
            proxy.mode = "pass"

    async def take_over(self, place: Place, slots: int) -> None:
        """A runtime that runs a job is out of reach when that ends, and another one gets the job meanwhile."""
        await self.add(place, ("held",), 0, 0)
        await self.until(lambda: self.active.get(place), 0.2)
        if len(self.up) < 2:
            await self.start(slots, again=True)
        tries = [member for member, _ in self.active.get(place, ()) if member.up]
        if tries:
            await self.rename(self.up.index(tries[0]), swept=True, ends=True)

    async def rename(self, which: int, swept: bool, ends: bool = False) -> None:
        """A runtime that is out of reach is declared dead, perhaps loses its jobs to another one, and comes back."""
        if not self.up:
            return
        member = self._pick(which)
        assert member.runtime is not None
        parts = member.runtime._assembly
        assert parts is not None
        assert self.operator._assembly is not None
        self.lapsed = True
        before = parts.heartbeat.process
        others = [one for one in self.up if one is not member]
        member.proxy.mode = "black-hole"
        if ends:
            await self.let_go()
        if not await self.operator._assembly.broker.bury(before, 0):
            member.proxy.mode = "pass"  # it has had another name a moment ago, and has not shown itself under this one
            return
        if swept and others:
            other = others[0].runtime
            assert other is not None
            assert other._assembly is not None
            for job_id, one in self.jobs.items():
                if job_id in member.active or (one.starts and not one.terminals):
                    self.stalled.add(job_id)
            try:
                async with asyncio.timeout(1):
                    await other._assembly.recovery.sweep_strangers()
            except (BrokerError, TimeoutError):
                pass
            notes = self.notes
            await self.until(lambda: self.notes > notes + 2, 0.1)
        member.proxy.mode = "pass"
        await eventually(lambda: not member.up or parts.heartbeat.process != before, BOUND, "it has another name")

    async def come_back(self, place: Place, which: int, script: tuple[Step, ...], lost: bool) -> None:
        """A group that had work, a reply of which may be lost, is reaped and gets work again."""
        if lost:
            await self.lose(which, "drop-reply", 1, turns=True)
        await self.add(place, (), 0, which)
        reaped = self.reaped[place]
        await self.until(lambda: self.reaped[place] > reaped, 0.3)
        await self.add(place, ("held", *script), 0, 0)
        if lost:
            await self.until(self._certain, 1)

    def _certain(self) -> bool:
        """Whether nobody is going to ask any more what is his own."""
        doubts = [
            member.runtime._assembly.pump.doubts for member in self.up if member.runtime and member.runtime._assembly
        ]
        return not any(one._young or one._old or one._last for one in doubts)

    # Acts: steering ---------------------------------------------------------------------------------------
    async def steer(self, place: Place, verb: str) -> None:
        name, group = place
        whole = self.operator.queue.job(name)
        one = whole if group is None else self.operator.queue.group(name, group)
        await getattr(one, verb)()

    async def set(self, place: Place, **values: Any) -> None:
        name, group = place
        if values.get("concurrency") is not None:
            self.steered.add(name)
        one = self.operator.queue.job(name) if group is None else self.operator.queue.group(name, group)
        await one.set(**values)

    async def let_go(self) -> None:
        """Handlers that are held end."""
        self.go.set()
        self.go = asyncio.Event()
        notes = self.notes
        await self.until(lambda: self.notes > notes, 0.05)

    # Acts: harm -------------------------------------------------------------------------------------------
    async def delete(self, place: Place, what: Literal["record", "stream"]) -> None:
        """A careless operator deletes what is not his."""
        assert self.operator._assembly is not None
        keys = self.operator._assembly.broker.queue_keys(*place)
        there = [(job_id, one) for job_id, one in self.jobs.items() if one.place == place and not one.terminals]
        if there:
            for job_id, one in there[: 1 if what == "record" else None]:
                one.void = one.excused = True
                if what == "record":
                    await self.redis.delete(keys.job(job_id))
            if what == "stream":
                await self.redis.delete(keys.stream)
            self.damaged.add(place)

    # Looking ----------------------------------------------------------------------------------------------
    async def until(self, condition: Callable[[], Any], bound: float) -> None:
        """Until `condition()`, or for `bound` seconds."""
        deadline = time.monotonic() + bound
        while not condition() and time.monotonic() < deadline:
            await asyncio.sleep(0.003)

    async def some_time(self, bound: float) -> None:
        """Until nothing begins or ends any more for a moment."""
        deadline, notes = time.monotonic() + bound, -1
        while self.notes != notes and time.monotonic() < deadline:
            notes = self.notes
            await self.until(functools.partial(self._noted, notes), 0.03)

    def _noted(self, before: int) -> bool:
        return self.notes != before

    async def check(self) -> None:
        """What must hold after every act."""
        self._raise_broken()
        sentences = await self._of_store()
        if sentences:
            # Who lives is asked after who owns what, so that a runtime that leaves in between looks dead; and one that
            # was renamed settles under its old name what it could not settle before, after a rest.
            deadline = time.monotonic() + 2.5
            while any("does not live" in one for one in sentences) and time.monotonic() < deadline:
                sentences = await self._of_store()
        self.broken += sentences
        self._raise_broken()

    async def _of_store(self, settled: bool = False) -> list[str]:
        harmed = tuple(name if group is None else f"{name} of {visible(group)!r}" for name, group in self.damaged)
        # A job of a group is listed under its name before it is settled. Where that is refused, because another process
        # has taken it over and ended it otherwise, it stays listed as both until retention lets that listing go.
        listed = tuple(f"{job_id} stands in 2 places" for job_id in self.stalled)
        return [
            one
            for one in await of_store(self.operator, settled)
            if not (harmed and one.startswith(harmed)) and not (listed and one.endswith(listed))
        ]

    def _raise_broken(self) -> None:
        if self.broken:
            raise AssertionError("\n".join([*dict.fromkeys(self.broken), "", self.story()]))

    def story(self) -> str:
        lines = [repr(one) for one in self.jobs.values()]
        for member in self.members:
            if member.runtime is not None and member.runtime._assembly is not None:
                lines.append(f"{member.runtime!r} {member.runtime.health()}")
                lines += [f"  {one!r} {_shown(one)}" for one in member.runtime._assembly.queues.all()]
                lines += [
                    f"  {shared_limit!r}" for shared_limit in member.runtime._assembly.queues.shared_limits.values()
                ]
        return "\n".join(lines)

    # The end ----------------------------------------------------------------------------------------------
    async def end(self) -> None:
        """Everything goes on; all is drained within a bound, and what came of it is judged."""
        self.draining = True
        self.go.set()
        for member in self.members:
            if member.up:
                member.proxy.mode = "pass"
        for name, kind in KINDS.items():
            await self.steer((name, None), "clear")
            for group in GROUPS if kind.grouped else ():
                await self.steer((name, group), "clear")
        if not self.up:
            await self.start(3, again=False)
        await eventually(lambda: not self._adding, BOUND, "every add has been answered")
        try:
            await eventually(self._drained, BOUND, "all is drained")
        except AssertionError as error:
            self._raise_broken()
            raise AssertionError(f"{error}\n{await self._left()}\n{self.story()}") from None
        for member in self.members:
            await member.stopped()
        self._raise_broken()
        try:
            await eventually(self._settled, 10, "nothing is left")
        except AssertionError as error:
            self._raise_broken()
            left = await self._of_store(settled=True)
            groups = {name: await self.operator.queue.groups(name) for name, kind in KINDS.items() if kind.grouped}
            raise AssertionError(f"{error}\n{left}\n{groups}\n{await self._of_keys()}\n{self.story()}") from None
        await self._judge()
        self._raise_broken()

    async def _drained(self) -> bool:
        self._raise_broken()
        for name in KINDS:
            counts = await self.operator.queue.counts(name)
            if counts["waiting"] + counts["active"] + counts["delayed"]:
                return False
        return all(member.runtime is None or not member.runtime.health()["unsettled"] for member in self.up)

    async def _settled(self) -> bool:
        for name, kind in KINDS.items():
            if kind.grouped and await self.operator.queue.groups(name):
                return False
        for name, state, most in (("tenant", "completed", 2), ("tenant", "cancelled", 1), ("fleeting", "completed", 0)):
            if not self.damaged and (await self.operator.queue.counts(name))[state] > most:
                return False
        return not await self._of_store(settled=True) and not await self._of_keys()

    async def _of_keys(self) -> list[str]:
        if self.damaged:
            return []

        async def expires(key: str) -> bool:
            return bool(await self.redis.pttl(key) >= 0) or not await self.redis.exists(key)

        keys = [key.decode() async for key in self.redis.scan_iter(match=f"*{self.prefix}[:}}]*", count=1000)]
        return await of_keys(self.operator, keys, expires)

    async def _left(self) -> str:
        counts = {name: await self.operator.queue.counts(name) for name in KINDS}
        infos = {
            (name, group): await self.operator.queue.group(name, group).info()
            for name, kind in KINDS.items()
            if kind.grouped
            for group in GROUPS
        }
        held = {place: info for place, info in infos.items() if info["waiting"] or info["active"] or info["delayed"]}
        return f"{counts}\n{held}"

    async def _judge(self) -> None:
        for job_id, one in self.jobs.items():
            name, group = one.place
            # Where a job is removed at its end, the store keeps nothing to tell its ends apart. A process that has
            # lost the job and sends its outcome again cannot know whose end has removed it, and tells of its own.
            told_by_both = job_id in self.stalled and not KINDS[name].keeps
            if len(one.terminals) > (max(1, one.returned + one.failures) if told_by_both else 1):
                self.broken.append(f"{one!r} ended twice")
            if one.acknowledged and not one.void:
                if not one.starts and not (self.stalled & {job_id}) and not (one.asked or one.over):
                    self.broken.append(f"{one!r} never ran")
                job = await self.operator.queue.get_job(name, job_id, group)
                ends = {"cancelled"} if one.over else {"completed", "failed"} | ({"cancelled"} if one.asked else set())
                if KINDS[name].keeps and (job is None or job.state not in ends):
                    self.broken.append(f"{one!r} has come to {job and job.state}")
            if not self._may_be_doubled(job_id) and (one.returned > 1 or one.failures > ATTEMPTS):
                self.broken.append(f"{one!r} ran too often")
        for kind in KINDS.values():
            if kind.limit is not None:
                limit, most = kind.limit
                if (found := most_in_window(self.starts.get(limit, []), WINDOW)) > most:
                    self.broken.append(f"{found} starts within one window of {limit}, which lets {most} in")


def _shown(consumer: Any) -> dict[str, Any]:
    names = ("hungry", "queued", "starving", "parked", "lost_reply", "quiet", "resting_until", "alarm_at", "rested_at")
    return {name: getattr(consumer, name) for name in names} | {
        "turns": len(consumer.turns), "outbox": len(consumer.outbox), "ahead": len(consumer.ahead),
        "paused": consumer.limits.paused, "now": time.monotonic(),
    }  # fmt: skip


class Listener(logging.Handler):
    """ThrottledLog of the product about itself are found too."""

    def __init__(self, broken: list[str]) -> None:
        super().__init__(logging.ERROR)
        self.broken = broken

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if any(words in text for words in OURS):
            self.broken.append(text)
