"""Working: the turns of queues, adoption after lost replies, and the notes of running tries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from msgspec.structs import astuple
from redis.exceptions import ResponseError

from asyncjobs.broker import scripts
from asyncjobs.broker.calling import RetryingCaller
from asyncjobs.broker.connection import BYTES_A_PIPELINE, Connection, is_transient, refusal
from asyncjobs.broker.keys import (
    Keys,
    groups_key,
    index_keys,
    index_member,
)
from asyncjobs.broker.taken import TakenJob, marked, taken
from asyncjobs.broker.wire import Command
from asyncjobs.errors import BrokerError, BrokerUnavailableError
from asyncjobs.record import Record

LOG_LINES: Final = 1000
HEAVY: Final = 1024 * 1024  # bytes; a server may be configured to refuse larger values, but never smaller ones
NO_LIMIT: Final = (-1, -1, -1, -1)
Bounds: TypeAlias = tuple[int, ...]  # completed count and age in ms, the same of failed and of cancelled ones; -1: none

Op = Literal["c", "f", "r", "b", "h", "k"]


class Settlement(Record, frozen=True, gc=False):
    """The settlement of a finished try. ``lua/work.lua`` lists the values of `op`. An id is bytes if it is no UTF-8."""

    op: Op
    job_id: str | bytes
    entry: bytes
    token: bytes
    body: bytes = b""
    number: int = 0
    keep: str = ""


class WorkCall(NamedTuple):
    """One queue's turn: the settlements, and how many jobs to take.

    Attributes:
        free: slots to fill; 0: only settle.
        slots: most active jobs over all processes; 0: no such bound.
        windows: the limiter's windows, ``max:µs max:µs …``; '': no limiter.
        margin: µs that a start may lag behind its token.
        ahead: how many of `free` are beyond the only slot, to run one after the other.
        retention: completed count and age in ms, failed count and age in ms; -1: no bound.
        mark: each job is charged with the death of its process only once it has begun.
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
    mark: bool = False


class WorkReply(NamedTuple):
    """The reply to a turn.

    Attributes:
        statuses: a character for each settlement, see ``lua/work.lua``.
        wait: seconds until more jobs may be taken, or None.
        settings: windows, concurrency, weight as set at run time, '' for each that was not set; None: none was set.
        marked: taken jobs that must not run, because their cancel was asked for.
    """

    statuses: bytes
    wait: float | None
    jobs: list[TakenJob]
    settings: tuple[str, str, str] | None = None
    marked: Sequence[TakenJob] = ()


class Excess(NamedTuple):
    """A name, and a rule that its finished jobs may exceed; for a grouped name over all its groups."""

    name: str
    retention: Bounds


def bounds(retention: tuple[int, int, int, int]) -> Bounds:
    """The bounds of a name's finished jobs. Cancelled jobs are kept as many and as long as failed ones."""
    return (*retention, *retention[2:])


def rule(op: Op, keep: str) -> Bounds:
    """The bounds of the rule that one add gave, ``count:age``, for jobs that ended by `op`."""
    count, _, age = keep.partition(":")
    found, at = [-1] * 6, 2 * "cfk".index(op)
    found[at : at + 2] = int(count), int(age)
    return tuple(found)


class BrokerBusyError(BrokerError):
    """The server said "not now", and applied nothing. The same call may succeed in a moment."""


OnWork: TypeAlias = Callable[["WorkReply | BrokerError"], None]


class Working(RetryingCaller):
    """The verbs of taking, settling and running jobs."""

    _scattered: bool  # the store is a Cluster, where the groups of a name lie in different slots
    _work: list[Connection]  # connections for turns alone

    async def work(
        self, connection: int, process: str, calls: Sequence[WorkCall]
    ) -> tuple[list[WorkReply | BrokerError], list[Excess]]:
        """Settle and take on several queues in one pipeline.

        Returns:
            For each call a reply, or `BrokerBusyError`, or `BrokerUnavailableError` if one node of a Cluster gave no
            answer, or another `BrokerError` if it was refused; and the names with finished jobs that must be trimmed.
        Raises:
            BrokerUnavailableError: no answer. Settle again with the same tokens, and adopt the jobs that were taken.
        """
        heavy = [
            call for call in calls if call.settlements and max([len(one.body) for one in call.settlements]) >= HEAVY
        ]
        if not heavy or len(calls) == 1:
            return await self._work_together(connection, process, calls)
        alone = set(map(id, heavy))
        light = [call for call in calls if id(call) not in alone]
        replies, over = await self._work_together(connection, process, light) if light else ([], [])
        found = dict(zip(map(id, light), replies, strict=True))
        for call in heavy:  # a server that refuses a large value hangs up, and answers no later command
            try:
                (found[id(call)],), more = await self._work_together(connection, process, [call])
                over += more
            except BrokerError as error:
                found[id(call)] = error
        return [found[id(call)] for call in calls], over

    async def _work_together(
        self, connection: int, process: str, calls: Sequence[WorkCall]
    ) -> tuple[list[WorkReply | BrokerError], list[Excess]]:
        names, indexing = self._index_commands(calls)
        size = BYTES_A_PIPELINE // max(1, sum(call.free > 0 for call in calls))
        commands = [*indexing, *(self.work_command(process, call, size) for call in calls)]
        places = {name: i for i, name in enumerate(names)}
        needs = [-1] * len(names) + [places.get(call.name, -1) if call.settlements else -1 for call in calls]
        replies = await self._work[connection].run(commands, needs if names else ())
        over = [
            Excess(call.name, rule(one.op, one.keep))
            for call in calls
            for one in call.settlements
            if len(one.keep) > 1  # this job's own rule, which is applied to its whole name
        ]
        kept = {call.name: Excess(call.name, bounds(call.retention)) for call in calls} if names else {}
        refused: dict[str, ResponseError] = {}
        for name, reply in zip(names, replies, strict=False):
            if isinstance(reply, ResponseError):
                refused[name] = reply
            elif not isinstance(reply, BrokerError) and (reply[0] or reply[1] or reply[3]):
                over.append(kept[name])
        answers = replies[len(names) :]
        for i, call in enumerate(calls):
            if call.name in refused and call.settlements and isinstance(answers[i], ResponseError):
                answers[i] = refused[call.name]  # the reason for which the turn was not settled
        return [work_reply(call, reply) for call, reply in zip(calls, answers, strict=True)], over

    def _index_commands(self, calls: Sequence[WorkCall]) -> tuple[list[str], list[Command]]:
        """List groups' jobs under their name before they finish, because a listed job without a record is harmless."""
        by_name: dict[str, list[str | bytes | int]] = {}
        for call in calls:
            if not call.grouped or not call.settlements:
                continue
            args = by_name.get(call.name)
            if args is None:
                args = [groups_key(self.prefix, call.name), *index_keys(self.prefix, call.name), *NO_LIMIT, -1, -1]
                by_name[call.name] = args
            group = call.keys.group
            for one in call.settlements:
                if one.keep == "" and one.op in "cfk":  # by the rule of the name, which is asked about
                    at = 4 + 2 * "cfk".index(one.op)
                    args[at : at + 2] = call.retention[:2] if one.op == "c" else call.retention[2:]
                listed = _is_listed(one)
                args += (group, one.op if listed else "", index_member(group, str(one.job_id)) if listed else "")
        return list(by_name), [scripts.INDEX(*args) for args in by_name.values()]

    def _listing(self, call: WorkCall) -> tuple[str, str]:
        """The listing of one of the jobs that a call settles, and the member there. A Cluster needs none, because it
        does not send the call if the listing was refused."""
        if call.grouped and call.settlements and not self._scattered:
            for one in call.settlements:
                if _is_listed(one):
                    listing = index_keys(self.prefix, call.name)["cfk".index(one.op)]
                    return listing, index_member(call.keys.group, str(one.job_id))
        return call.keys.tag + ":s", ""

    def work_command(self, process: str, call: WorkCall, size: int, tell: str = "") -> Command:
        """The command of a turn. `size`: bytes of payloads after which the turn takes no further job."""
        tag = call.keys.tag
        listing, listed = self._listing(call)
        args: list[str | bytes | int] = [
            tag + ":s", tag + ":d", tag + ":b", tag + ":c", tag + ":f", tag + ":o", listing,
            tag + ":j:", self.channels.news(call.name), self.channels.done, call.keys.group, process,
            call.token, call.free, call.slots, call.windows, call.margin, call.ahead, tell, size, listed,
            *(NO_LIMIT if call.grouped else call.retention), "1" if call.mark else "",
        ]  # fmt: skip
        for settlement in call.settlements:
            args += astuple(settlement)
        return scripts.WORK(*args)

    async def own(self, keys: Keys, process: str) -> list[TakenJob]:
        """All jobs of one queue that are pending for `process`, among them those of a lost reply.

        Raises:
            BrokerUnavailableError: no answer, or "not now". Raised at once, since the caller has other queues to serve.
        """
        jobs: list[TakenJob] = []
        after: bytes | str = "-"
        while True:
            try:
                owned = scripts.OWN(keys.stream, keys.jobs, process, after, BYTES_A_PIPELINE)
                after, rows, *cancelled = await self._misc.call(owned)
            except ResponseError as error:
                raise BrokerUnavailableError(str(error)) if is_transient(error) else refusal(error) from error
            jobs += taken(rows, 8)
            for some in cancelled:
                jobs += marked(some, 8)
            if not after:
                return jobs

    async def retain(self, keys: Keys, process: str, tries: Sequence[tuple[str, bytes, bytes]]) -> list[bool]:
        """Which running tries (id, entry, token) of one queue this process still owns, now under the name `process`."""
        kept: list[bool] = []
        for start in range(0, len(tries), 500):
            flat = [field for one in tries[start : start + 500] for field in one]
            reply = await self._ask(scripts.RETAIN(keys.stream, keys.jobs, process, *flat))
            kept += [flag == 0x31 for flag in reply]
        return kept

    async def note(self, keys: Keys, job_id: str, token: bytes, kind: str, value: bytes) -> bool:
        """Write the progress or a log line of a running job. False: this process does not own the job any more."""
        line = f"{self._process}.{next(self._lines)}"
        return bool(await self._ask(scripts.NOTE(keys.job(job_id), token, kind, value, LOG_LINES, line)))


def _is_listed(settlement: Settlement) -> bool:
    """True if the settlement of a group's job lists that job under its name."""
    return settlement.op in "cfk" and settlement.keep != "0" and isinstance(settlement.job_id, str)


def work_reply(call: WorkCall, reply: Any) -> WorkReply | BrokerError:
    """The WorkReply in the answer of ``lua/work.lua``."""
    if isinstance(reply, BrokerError):
        return reply
    if isinstance(reply, ResponseError):
        return BrokerBusyError(str(reply)) if is_transient(reply) else refusal(reply)
    statuses, wait, rows = reply[:3]
    settings: tuple[str, str, str] | None = None
    cancelled: Sequence[TakenJob] = ()
    if len(reply) > 3:
        windows, concurrency, weight = (one.decode(errors="replace") for one in reply[3:6])
        settings = (windows, concurrency, weight) if windows or concurrency or weight else None
        cancelled = marked(reply[6], 7, call.token) if len(reply) > 6 else ()
    return WorkReply(statuses, None if wait < 0 else wait / 1000, taken(rows, 7, call.token), settings, cancelled)
