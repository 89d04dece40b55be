"""The Broker: one method a transition, one round trip each, every one safe to send again.

Its connections, whatever the number of queues: adds, two for work, one for everything else, the heartbeat and
the subscriber.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import msgspec
from redis.exceptions import ResponseError

from asyncjobs import clock
from asyncjobs.broker import scripts
from asyncjobs.broker.address import Address
from asyncjobs.broker.adds import LAST_CHANCE, AddBatcher, AddCall, AddReply, Place, Ride
from asyncjobs.broker.cluster import ClusterLane, Topology
from asyncjobs.broker.connection import BYTES_A_PIPELINE, Lane, is_transient, refusal, stopped
from asyncjobs.broker.keeping import Keeping
from asyncjobs.broker.keys import (
    Channels,
    Keys,
    groups_key,
    index_keys,
    index_member,
    names_key,
)
from asyncjobs.broker.limiting import CHANGED, ROOM, Limiting
from asyncjobs.broker.preflight import Store, examine
from asyncjobs.broker.reach import Reach
from asyncjobs.broker.subscriber import Subscriber
from asyncjobs.broker.taken import TakenJob, taken
from asyncjobs.broker.ticking import Ticking
from asyncjobs.broker.wire import Command
from asyncjobs.errors import BrokerError, BrokerUnavailableError

WORK_LANES: Final = 2
LOG_LINES: Final = 1000
HEAVY: Final = 1024 * 1024  # bytes; a server may be set to refuse values from there on, but never smaller ones
NO_LIMIT: Final = (-1, -1, -1, -1)

Op = Literal["c", "f", "r", "b", "h"]


class Settlement(NamedTuple):
    """What becomes of one finished try; see ``lua/work.lua`` by `op`. An id is bytes if it is no UTF-8."""

    op: Op
    job_id: str | bytes
    entry: bytes
    token: bytes
    body: bytes = b""
    number: int = 0
    keep: str = ""


class WorkCall(NamedTuple):
    """One queue's turn: what to settle, and how much to take.

    Attributes:
        free: slots to fill; 0 settles only.
        slots: most active jobs over all processes, 0 for no such bound.
        windows: of the limiter, ``max:µs max:µs …``; '' for none.
        margin: µs that a start may lag behind its token.
        ahead: how many of `free` are beyond the only slot, to run one after the other.
        retention: completed count and age in ms, failed count and age in ms; -1 for no bound.
    """

    name: str
    keys: Keys
    grouped: bool
    token: bytes
    free: int
    slots: int
    windows: str
    margin: int
    ahead: int
    retention: tuple[int, int, int, int]
    settlements: Sequence[Settlement]


class WorkReply(NamedTuple):
    """`statuses`: a character a settlement, see ``lua/work.lua``; `wait`: seconds until more may be had, or None.

    Attributes:
        settings: windows, concurrency, weight as they were set at run time, '' for what was not; None: nothing was.
    """

    statuses: bytes
    wait: float | None
    jobs: list[TakenJob]
    settings: tuple[str, str, str] | None = None


class Excess(NamedTuple):
    """Finished jobs of a name that a rule may let go; of a grouped one over all its groups."""

    name: str
    retention: tuple[int, int, int, int]


def rule(op: Op, keep: str) -> tuple[int, int, int, int]:
    """The rule that one add gave, ``count:age``, as a retention."""
    count, _, age = keep.partition(":")
    return (int(count), int(age), -1, -1) if op == "c" else (-1, -1, int(count), int(age))


OnWork: TypeAlias = Callable[["WorkReply | BrokerError"], None]


class BrokerBusyError(BrokerError):
    """The server said "not now" and applied nothing; the same call may succeed in a moment."""


class Finish(NamedTuple):
    """The news that a watched job has finished: 'c' and its result, or 'f' and its last error."""

    op: str
    body: bytes


class Broker(Keeping, Ticking, Limiting):
    """All that is stored in Redis, as verbs."""

    def __init__(self, target: Any, *, prefix: str, process: str, connect_timeout: float, replicas: int = 0) -> None:
        self.address = Address(target, connect_timeout)
        topology = Topology(self.address, connect_timeout)
        reach = Reach(connect_timeout)

        def lane() -> Lane:
            if self.address.seeds:
                return ClusterLane(self.address, connect_timeout, topology)
            return Lane(self.address, connect_timeout, reach)

        super().__init__(prefix, process, lane(), connect_timeout, Channels(prefix, self.address.database))
        self._adds = AddBatcher(lane(), process, connect_timeout, replicas, bool(self.address.seeds))
        self._work = [lane() for _ in range(WORK_LANES)]
        self._beats = lane()
        self._scattered = bool(self.address.seeds)
        self.subscriber = Subscriber(self.address, None if self._scattered else reach)
        self._abandoned = False
        self._watched: dict[str, list[asyncio.Future[Finish]]] = {}
        self._places: dict[str, Place] = {}

    # Connections ------------------------------------------------------------------------------------------
    async def check(self) -> Store:
        """Reach the store, and see what it is.

        Raises:
            BrokerUnavailableError: not reached, or not ready, within the connection timeout.
            ConfigError: it is too old.
            BrokerError: reached, but it refuses us.
        """
        deadline, pause = clock.monotonic() + self._timeout, 0.1
        while True:
            try:
                async with asyncio.timeout(max(0.05, deadline - clock.monotonic())):
                    return await examine(self._misc, self.prefix, self.channels)
            except (BrokerUnavailableError, TimeoutError) as error:
                await self._misc.close()  # what answers next may be another server
                left = deadline - clock.monotonic()
                if left <= 0.1:
                    text = str(error) or f"{self.address.text} is out of reach"
                    raise BrokerUnavailableError(f"{text} (tried for {self._timeout:g} s)") from error
            await asyncio.sleep(min(pause, left - 0.05))
            pause = min(pause * 1.5, 1.0)

    async def listen_for_news(
        self,
        name: str,
        on_news: Callable[[str, float], None],
        on_confirmed: Callable[[], None],
        on_changed: Callable[[], None] = lambda: None,
        on_room: Callable[[], None] = lambda: None,
    ) -> None:
        """Call `on_news` with a group id and the seconds until due, whenever an idle queue of `name` got work.

        `on_changed` is called when something was set for all groups of `name`, `on_room` when their gate has room
        again. `on_confirmed` is called when listening has begun, or begun again: time to look what is there.
        """

        def on_message(message: bytes) -> None:
            due, _, group = message.partition(b"|")
            if int(due) == CHANGED:
                on_changed()
            elif int(due) == ROOM:
                on_room()
            else:
                on_news(group.decode(), int(due) / 1000)

        await self.subscriber.listen(self.channels.news(name), on_message, on_confirmed)

    async def close(self, timeout: float = LAST_CHANCE) -> None:
        """Send the adds on their way for `timeout` seconds at most, then close every connection for good."""
        if self._abandoned:
            with suppress(Exception):
                await self.address.close()
            return
        try:
            await self._adds.close(timeout)
        finally:
            for lane in self._lanes():
                await lane.shut()
            for futures in self._watched.values():
                for future in futures:
                    if not future.done():
                        future.set_exception(stopped())
            await self.address.close()

    def _lanes(self) -> list[Lane]:
        return [*self._work, self._misc, self._beats]

    def abandon(self) -> None:
        """The loop of all connections has been closed: let go of them, from another one."""
        self._abandoned = True
        for lane in (*self._lanes(), self._adds.lane):
            lane.abandon()
        self.subscriber.abandon()

    # Adding and reading -----------------------------------------------------------------------------------
    async def add(self, calls: Sequence[AddCall]) -> list[AddReply]:
        """Add jobs, once each however often it is sent.

        Raises:
            BrokerUnavailableError: no answer; each job is wholly there or not at all, `job_ids` names them.
            BrokerError: the store refused; nothing was added.
        """
        return await self._adds.add(calls)

    def place(self, name: str, group_id: str | None) -> Place:
        """Where jobs of a name, or of one of its groups, are added; remembered for a name, of which there are few."""
        place = self._places.get(name) if group_id is None else None
        if place is None:
            registry = "" if group_id is None else groups_key(self.prefix, name)
            place = Place(self.queue_keys(name, group_id), name, self.channels.news(name), registry)
            if group_id is None:
                self._places[name] = place
        return place

    async def read(self, keys: Keys, job_id: str) -> tuple[float | None, dict[str, bytes]]:
        """When a job is due (ms; None unless delayed), and the fields of its record (none: no such job)."""
        due, *rest = await self._ask(scripts.READ(keys.job(job_id), keys.delayed, job_id))
        pairs = zip(rest[::2], rest[1::2], strict=True)
        return (float(due) if due else None), {key.decode(errors="replace"): value for key, value in pairs}

    async def counts(self, keys: Keys) -> list[int]:
        """How many jobs of a queue are waiting, active, delayed, completed, failed."""
        counts: list[int] = await self._ask(scripts.COUNT(keys.stream, keys.delayed, keys.completed, keys.failed))
        return counts

    async def stirring(self, queues: Sequence[Keys]) -> list[Keys]:
        """Those of `queues` that hold a waiting, active or delayed job."""
        return await self._holding([(one, (one.stream, one.delayed)) for one in queues])

    async def ended(self, queues: Sequence[Keys]) -> list[Keys]:
        """Those of `queues` that hold a completed or failed job."""
        return await self._holding([(one, (one.completed, one.failed)) for one in queues])

    async def _holding(self, queues: Sequence[tuple[Keys, tuple[str, str]]]) -> list[Keys]:
        """Those of which one of the keys exists; where none does, one command says so, but for a Cluster."""
        if self._scattered or len(queues) < 2:
            counts = await asyncio.gather(*(self._ask(("EXISTS", *keys)) for _, keys in queues))
            return [one for (one, _), count in zip(queues, counts, strict=True) if count]
        if not await self._ask(("EXISTS", *(key for _, keys in queues for key in keys))):
            return []
        middle = len(queues) // 2
        halves = await asyncio.gather(self._holding(queues[:middle]), self._holding(queues[middle:]))
        return [*halves[0], *halves[1]]

    async def total_counts(self, name: str) -> list[int]:
        """The same over all groups of a job name, and what lies under it without a group."""
        whole, groups = await asyncio.gather(
            self.counts(self.queue_keys(name, None)), self._ask(("ZCARD", groups_key(self.prefix, name)))
        )
        totals, kept = whole[:3], whole[3:]
        if not groups:
            return whole
        async for group_ids in self.groups(name):
            queues = (self.queue_keys(name, group_id) for group_id in group_ids)
            for counts in await asyncio.gather(*(self.counts(keys) for keys in queues)):
                totals = [total + one for total, one in zip(totals, counts, strict=False)]
        return [*totals, *kept]

    async def holds(self, name: str) -> AsyncIterator[dict[str, int]]:
        """The groups of a job name that are held, each with the ms until when, in pieces of a bounded size."""
        async for page in self.groups(name):
            keys = [self.queue_keys(name, group_id).settings for group_id in page]
            found = await asyncio.gather(*(self._ask(("HGET", one, "h")) for one in keys))
            yield {group_id: int(until) for group_id, until in zip(page, found, strict=True) if until}

    async def know(self, names: Mapping[str, bool]) -> dict[str, bool]:
        """Leave it here which job names there are and whether they are grouped. Returns all that anybody has left."""
        key = names_key(self.prefix)
        if names:
            about = [
                one
                for name, grouped in names.items()
                for one in (name, b'{"grouped":%s}' % (b"true" if grouped else b"false"))
            ]
            await self._ask(("HSET", key, *about))
        found = await self._ask(("HGETALL", key))
        known = found.items() if isinstance(found, dict) else zip(found[::2], found[1::2], strict=True)
        return {name.decode(errors="replace"): b'"grouped":true' in about for name, about in known}

    async def watch(self, keys: Keys, job_id: str) -> Finish | None:
        """How a job has finished; None: not yet. Op 'x': there is no such job."""
        op, body = await self._ask(scripts.WATCH(keys.job(job_id)))
        return Finish(op.decode(), body) if op else None

    async def finished(self, keys: Keys, job_id: str, look_every: float) -> Finish:
        """Wait until a job finishes; heard from the subscriber, and looked at every `look_every` seconds."""
        self._misc.check_loop()
        channel, key = self.channels.done, keys.job(job_id)
        future: asyncio.Future[Finish] = asyncio.get_running_loop().create_future()
        self._watched.setdefault(key, []).append(future)
        try:
            await self.subscriber.listen(channel, self._on_finish)
            while True:
                try:
                    async with asyncio.timeout(look_every):
                        await self.subscriber.confirmed(channel)
                except TimeoutError:
                    pass
                known = await self.watch(keys, job_id)
                if known is not None:
                    return future.result() if future.done() else known
                done, _ = await asyncio.wait([future], timeout=look_every)
                if done:
                    return future.result()
        finally:
            if future.done():
                future.exception()  # the runtime stopped, and this is told so by something else
            futures = self._watched[key]
            futures.remove(future)
            if not futures:
                del self._watched[key]

    def _on_finish(self, message: bytes) -> None:
        key, op, body = msgspec.msgpack.decode(message, type=tuple[str, str, str])
        for future in self._watched.get(key, ()):
            if not future.done():
                future.set_result(Finish(op, body.encode()))

    # Working ----------------------------------------------------------------------------------------------
    async def work(
        self, lane: int, process: str, calls: Sequence[WorkCall]
    ) -> tuple[list[WorkReply | BrokerError], list[Excess]]:
        """Settle and take on several queues in one pipeline.

        Returns:
            A reply for each call, or `BrokerBusyError`, or `BrokerUnavailableError` where one node of a Cluster gave
            no answer, or another `BrokerError` where it was refused; and what is to be trimmed now that they have
            finished.
        Raises:
            BrokerUnavailableError: no answer. Settle again with the same tokens, and adopt what was taken.
        """
        heavy = [call for call in calls if call.settlements and max([len(one[4]) for one in call.settlements]) >= HEAVY]
        if not heavy or len(calls) == 1:
            return await self._work_together(lane, process, calls)
        alone = set(map(id, heavy))
        light = [call for call in calls if id(call) not in alone]
        replies, over = await self._work_together(lane, process, light) if light else ([], [])
        found = dict(zip(map(id, light), replies, strict=True))
        for call in heavy:  # a server that refuses to read one hangs up, and answers nothing of what lies behind it
            try:
                (found[id(call)],), more = await self._work_together(lane, process, [call])
                over += more
            except BrokerError as error:
                found[id(call)] = error
        return [found[id(call)] for call in calls], over

    async def _work_together(
        self, lane: int, process: str, calls: Sequence[WorkCall]
    ) -> tuple[list[WorkReply | BrokerError], list[Excess]]:
        names, indexing = self._index_commands(calls)
        size = BYTES_A_PIPELINE // max(1, sum(call.free > 0 for call in calls))
        commands = [*indexing, *(self._work_command(process, call, size) for call in calls)]
        places = {name: i for i, name in enumerate(names)}
        needs = [-1] * len(names) + [places.get(call.name, -1) if call.settlements else -1 for call in calls]
        replies = await self._work[lane].run(commands, needs if names else ())
        over = [
            Excess(call.name, rule(one.op, one.keep))
            for call in calls
            for one in call.settlements
            if len(one.keep) > 1  # of this one job, and applied to its whole name
        ]
        kept = {call.name: Excess(call.name, call.retention) for call in calls} if names else {}
        refused: dict[str, ResponseError] = {}
        for name, reply in zip(names, replies, strict=False):
            if isinstance(reply, ResponseError):
                refused[name] = reply
            elif not isinstance(reply, BrokerError) and (reply[0] or reply[1]):
                over.append(kept[name])
        answers = replies[len(names) :]
        for i, call in enumerate(calls):
            if call.name in refused and call.settlements and isinstance(answers[i], ResponseError):
                answers[i] = refused[call.name]  # why it was not settled
        return [_work_reply(call, reply) for call, reply in zip(calls, answers, strict=True)], over

    def offer_rides(self, make: Callable[[list[Place]], list[tuple[str, WorkCall, OnWork]]]) -> None:
        """Let turns travel behind adds: `make` says which, and by which process, for the places that are added to.

        They settle nothing. Each is told its reply, or the error, as `work` would have returned or raised it.
        """

        def told(call: WorkCall, tell: OnWork, reply: Any) -> None:
            tell(_work_reply(call, reply))

        def rides(places: list[Place]) -> list[Ride]:
            made = make(places)
            size = BYTES_A_PIPELINE // max(1, len(made))
            return [
                Ride(call.keys.tag, self._work_command(process, call, size, "1"), functools.partial(told, call, tell))
                for process, call, tell in made
            ]

        self._adds.rides = rides

    def _index_commands(self, calls: Sequence[WorkCall]) -> tuple[list[str], list[Command]]:
        """Jobs of groups are listed under their name before they finish: a listed job without record is harmless."""
        by_name: dict[str, list[str | bytes | int]] = {}
        for call in calls:
            if not call.grouped or not call.settlements:
                continue
            args = by_name.get(call.name)
            if args is None:
                completed, failed = index_keys(self.prefix, call.name)
                args = [groups_key(self.prefix, call.name), completed, failed, *NO_LIMIT]
                by_name[call.name] = args
            group = call.keys.group
            for one in call.settlements:
                if one.keep == "" and one.op in "cf":  # by the rule of the name, which is asked about
                    at = 3 if one.op == "c" else 5
                    args[at : at + 2] = call.retention[at - 3 : at - 1]
                listed = _is_listed(one)
                args += (group, one.op if listed else "", index_member(group, str(one.job_id)) if listed else "")
        return list(by_name), [scripts.INDEX(*args) for args in by_name.values()]

    def _listing(self, call: WorkCall) -> tuple[str, str]:
        """Where one of the jobs that a call settles is listed by then, and as what; nowhere on a Cluster, which does
        not send the call at all where listing was refused."""
        if call.grouped and call.settlements and not self._scattered:
            for one in call.settlements:
                if _is_listed(one):
                    completed, failed = index_keys(self.prefix, call.name)
                    return completed if one.op == "c" else failed, index_member(call.keys.group, str(one.job_id))
        return call.keys.tag + ":s", ""

    def _work_command(self, process: str, call: WorkCall, size: int, tell: str = "") -> Command:
        """`size`: bytes of payloads after which it takes no further job."""
        tag = call.keys.tag
        listing, listed = self._listing(call)
        args: list[str | bytes | int] = [
            tag + ":s", tag + ":d", tag + ":b", tag + ":c", tag + ":f", tag + ":o", listing,
            tag + ":j:", self.channels.news(call.name), self.channels.done, call.keys.group, process,
            call.token, call.free, call.slots, call.windows, call.margin, call.ahead, tell, size, listed,
            *(NO_LIMIT if call.grouped else call.retention),
        ]  # fmt: skip
        for settlement in call.settlements:
            args += settlement
        return scripts.WORK(*args)

    async def own(self, keys: Keys, process: str) -> list[TakenJob]:
        """Everything of one queue that is pending for `process`: what a lost reply would have brought.

        Raises:
            BrokerUnavailableError: no answer, or not now; at once, since whoever asks has other queues to serve.
        """
        jobs: list[TakenJob] = []
        after: bytes | str = "-"
        while True:
            try:
                owned = scripts.OWN(keys.stream, keys.jobs, process, after, BYTES_A_PIPELINE)
                after, rows = await self._misc.call(owned)
            except ResponseError as error:
                raise BrokerUnavailableError(str(error)) if is_transient(error) else refusal(error) from error
            jobs += taken(rows, 8)
            if not after:
                return jobs

    async def retain(self, keys: Keys, process: str, tries: Sequence[tuple[str, bytes, bytes]]) -> list[bool]:
        """Which running tries (id, entry, token) of one queue are still ours, now under the name `process`."""
        kept: list[bool] = []
        for start in range(0, len(tries), 500):
            flat = [field for one in tries[start : start + 500] for field in one]
            reply = await self._ask(scripts.RETAIN(keys.stream, keys.jobs, process, *flat))
            kept += [flag == 0x31 for flag in reply]
        return kept

    async def note(self, keys: Keys, job_id: str, token: bytes, kind: str, value: bytes) -> bool:
        """Write the progress or a log line of a running job; False: it is not ours any more."""
        line = f"{self._process}.{next(self._lines)}"
        return bool(await self._ask(scripts.NOTE(keys.job(job_id), token, kind, value, LOG_LINES, line)))


def _is_listed(settlement: Settlement) -> bool:
    """Whether a job of a group, so settled, is listed under its name."""
    return settlement.op in "cf" and settlement.keep != "0" and isinstance(settlement.job_id, str)


def _work_reply(call: WorkCall, reply: Any) -> WorkReply | BrokerError:
    """What ``lua/work.lua`` has answered."""
    if isinstance(reply, BrokerError):
        return reply
    if isinstance(reply, ResponseError):
        return BrokerBusyError(str(reply)) if is_transient(reply) else refusal(reply)
    statuses, wait, rows = reply[:3]
    settings = None
    if len(reply) > 3:
        windows, concurrency, weight = (one.decode(errors="replace") for one in reply[3:6])
        settings = (windows, concurrency, weight)
    return WorkReply(statuses, None if wait < 0 else wait / 1000, taken(rows, 7, call.token), settings)
