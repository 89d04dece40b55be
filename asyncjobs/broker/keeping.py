"""Keeping order: heartbeats, jobs of dead processes, retention, and idle groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final, Literal, NamedTuple, TypeAlias

import msgspec
from redis.exceptions import ResponseError

from asyncjobs.broker import scripts
from asyncjobs.broker.calling import RetryingCaller
from asyncjobs.broker.connection import Connection, is_transient, refusal
from asyncjobs.broker.keys import (
    Keys,
    about_key,
    cancels_key,
    draining_key,
    due_key,
    epoch_key,
    groups_key,
    index_keys,
    leases_key,
    processes_key,
    split_member,
    swept_key,
    text_of,
)
from asyncjobs.broker.taken import TakenJob, marked, shown_id, taken
from asyncjobs.broker.working import Bounds
from asyncjobs.errors import BrokerError, BrokerUnavailableError

ASKED_AT_ONCE: Final = 500  # processes
SWEEPER_PATIENCE_MS: Final = 10_000
UNUSED: Final = 60_000  # ms after which a process that holds no job of a queue loses its name in the stream
LEFT_AT_ONCE: Final = 500  # queues
FORGOTTEN_AT_ONCE: Final = 250  # records, about 1 ms of server time
STAYS, NO_RECORD = b"02"
Listed: TypeAlias = tuple[str | bytes, str | bytes]  # a job's id, and how the index lists it


class Overflow(NamedTuple):
    """Finished jobs of groups that are beyond their name's retention."""

    name: str
    before_ms: int
    completed: list[str | bytes]
    failed: list[str | bytes]
    cancelled: list[str | bytes]


class Silent(NamedTuple):
    """Another process: seconds since its last beat, and its leases by job name ('' for all other names).

    A process of an earlier release tells no leases, so they are empty.
    """

    seconds: float
    leases: dict[str, float]

    @property
    def shortest(self) -> float | None:
        return min(self.leases.values(), default=None)


class Beat(NamedTuple):
    """The reply to a beat: whether this process still counts as alive, and the processes that were silent for longest.

    Attributes:
        epoch: the mark of the store's data. A changed mark means that the data were lost in between.
        draining: whether it was asked to take nothing.
        told: the messages about cancels since the last beat, some of them for the second time; `at`: up to when.
    """

    alive: bool
    epoch: bytes
    others: dict[str, Silent]
    draining: bool = False
    told: Sequence[bytes] = ()
    at: bytes = b""


class Word(NamedTuple):
    """What a process says of itself with a beat, as JSON.

    Attributes:
        about: where it runs, and what.
        names: its job and task names; b'' where the store has them already.
        draining: where it joins under a new name and was asked to take nothing.
    """

    about: bytes = b"{}"
    names: bytes = b""
    draining: bytes = b""


NO_WORD: Final = Word()


class Keeping(RetryingCaller):
    """The verbs of upkeep: heartbeat, recovery, retention."""

    _scattered: bool  # the store is a Cluster, where the groups of a name lie in different slots
    _beats: Connection  # a connection for beats alone, so that a beat never queues behind another command

    async def owners(self, queues: Sequence[Keys]) -> list[list[str]]:
        """The processes that hold jobs, for each queue."""
        replies = await self.loop.gather(self._ask(scripts.OWNERS(keys.stream, UNUSED)) for keys in queues)
        return [[name.decode(errors="replace") for name in names] for names in replies]

    async def sweep(
        self, name: str, keys: Keys, dead: str, process: str, token: bytes, most: int
    ) -> tuple[list[str], list[TakenJob]]:
        """Give back the jobs of a dead process on one queue.

        Returns:
            The ids of the jobs given back, and the jobs that `process` owns now and must end: those that stalled more
            often than `most`, and those whose cancel was asked for, by their mark.
        """
        back: list[str] = []
        doomed: list[TakenJob] = []
        news = self.channels.news(name)
        while True:
            ids, more, rows, *cancelled = await self._ask(
                scripts.SWEEP(keys.stream, keys.jobs, news, keys.group, dead, process, token, most)
            )
            back += [shown_id(one) for one in ids]
            doomed += taken(rows, 7, token)
            for some in cancelled:
                doomed += marked(some, 7, token)
            if not more:
                return back, doomed

    async def leave(self, queues: Sequence[Keys], process: str) -> None:
        """Take a stopping process's name off the queues it served, and off the list of processes.

        If the process still owns jobs, its name stays on the list, so that other processes notice its silence and give
        the jobs back.
        """
        gone = True
        for start in range(0, len(queues), LEFT_AT_ONCE):
            some = queues[start : start + LEFT_AT_ONCE]
            left = await self.loop.gather(self._ask(scripts.LEAVE(keys.stream, process)) for keys in some)
            gone = gone and all(left)
        if gone:
            await self.bury(process, 0.0)

    async def beat(
        self,
        process: str,
        leases: Mapping[str, float],
        joining: bool,
        word: Word = NO_WORD,
        since: bytes = b"+inf",
    ) -> Beat:
        """Send a beat; see `Beat`. A joining beat waits for a store that is busy, any other does not.

        Args:
            leases: job name → lease, '' for all other names. Other processes judge this one by these leases alone.
            since: `Beat.at` of the last beat. Without it, a beat brings no earlier messages.
        """
        draw = f"{self._process}.{next(self._lines)}"
        ms = {name: round(lease * 1000) for name, lease in leases.items()}
        command = scripts.BEAT(
            processes_key(self.prefix), epoch_key(self.prefix), due_key(self.prefix), leases_key(self.prefix),
            swept_key(self.prefix, process), about_key(self.prefix), draining_key(self.prefix),
            process, "1" if joining else "0", draw, min(ms.values()), msgspec.json.encode(ms), *word,
        )  # fmt: skip
        hear = scripts.HEAR(cancels_key(self.prefix), since)
        if joining:
            reply, told = await self._ask(command, patient=True), [b"0"]
            with suppress(BrokerError):  # then the next beat brings what was told before, which concerns no job here
                told = await self._ask(hear, patient=True)
        else:
            reply, told = await self._beats.run([command, hear])
        if isinstance(reply, BrokerError):
            raise reply
        if isinstance(reply, ResponseError):
            raise BrokerUnavailableError(str(reply)) if is_transient(reply) else refusal(reply)
        alive, epoch, *rest = reply
        others: dict[str, Silent] = {}
        for i in range(0, len(rest), 3):
            others[rest[i].decode(errors="replace")] = Silent(rest[i + 1] / 1000, _leases(rest[i + 2]))
        if isinstance(told, Exception):  # a key of a foreign type keeps nobody from living
            return Beat(bool(alive), epoch, others, alive == 2, (), since)
        return Beat(bool(alive), epoch, others, alive == 2, told[1:], told[0])

    async def silent_for(self, processes: Sequence[str]) -> dict[str, float]:
        """Seconds since the last beat of each process; infinite for a process that never beat or was buried."""
        key = processes_key(self.prefix)
        found: dict[str, float] = {}
        for start in range(0, len(processes), ASKED_AT_ONCE):
            some = processes[start : start + ASKED_AT_ONCE]
            silences = await self._ask(scripts.SILENCE(key, *some))
            found.update((one, float("inf") if ms < 0 else ms / 1000) for one, ms in zip(some, silences, strict=True))
        return found

    async def claim(self, dead: str, name: str, process: str, done: bool = False) -> Literal["sweep", "wait", "done"]:
        """Ask whether `process` has to give back the jobs of a name that `dead` holds. `done`: it has done so."""
        key = swept_key(self.prefix, dead)
        answer = await self._ask(scripts.CLAIM(key, name, process, SWEEPER_PATIENCE_MS, "1" if done else ""))
        return "sweep" if answer == 1 else "done" if answer == 2 else "wait"

    async def end_leases(self, process: str) -> None:
        """`process` is known to be gone, so its run of a task must not block the next ticks. A beat begins anew."""
        await self._ask(("ZADD", due_key(self.prefix), "XX", 0, process))

    async def bury(self, process: str, lease: float) -> bool:
        """Declare `process` dead, unless it has sent a beat within `lease` seconds."""
        keys = processes_key(self.prefix), due_key(self.prefix), leases_key(self.prefix)
        said = about_key(self.prefix), draining_key(self.prefix)
        return bool(await self._ask(scripts.BURY(*keys, *said, process, int(lease * 1000))))

    async def trim(self, keys: Keys, retention: Bounds) -> None:
        """Apply retention to a queue that may be idle."""
        while await self._ask(scripts.TRIM(keys.completed, keys.failed, keys.cancelled, keys.jobs, *retention)):
            pass

    async def overflow(self, name: str, retention: Bounds) -> Overflow:
        """The finished jobs of groups of `name` that are beyond the retention."""
        keys = index_keys(self.prefix, name)
        reply = await self._ask(scripts.INDEX(groups_key(self.prefix, name), *keys, *retention))
        completed, failed, cancelled = ([text_of(one) for one in reply[i]] for i in (0, 1, 3))
        return Overflow(name, reply[2], completed, failed, cancelled)

    async def forget(self, overflow: Overflow) -> int:
        """Delete the records, and only then their listings, so that a crash in between leaves no record unlisted.

        If a listing's group has no such record, the listing may be the id of a job without a group.

        Returns:
            How many jobs have left the listing. A job that is about to finish stays listed. A job that has finished
            otherwise than its listing says loses only the listing.
        """
        keys = index_keys(self.prefix, overflow.name)
        listings = (overflow.completed, overflow.failed, overflow.cancelled)
        gone = [
            await self._forget_listed(overflow, op, key, listing)
            for op, key, listing in zip("cfk", keys, listings, strict=True)
            if listing
        ]
        return sum(gone)

    async def _forget_listed(self, overflow: Overflow, op: str, index: str, listing: list[str | bytes]) -> int:
        """`forget` for one of the listings."""
        by_group: dict[str | None, list[Listed]] = {}
        for member in listing:
            group_id, job_id = split_member(member)
            by_group.setdefault(group_id, []).append((job_id, member))
        found = await self._forget(overflow, op, by_group)
        missing = [member for members in by_group.values() for _, member in members if found[member] == NO_RECORD]
        found |= await self._forget(overflow, op, {None: [(member, member) for member in missing]})
        gone = [member for member in listing if found[member] != STAYS]
        if gone:
            await self._ask(("ZREM", index, *gone))
        return len(gone)

    async def _forget(
        self, overflow: Overflow, op: str, by_group: dict[str | None, list[Listed]]
    ) -> dict[str | bytes, int]:
        """The answer of ``lua/forget.lua`` for each listing."""
        calls: list[tuple[list[str | bytes | int], list[str | bytes]]] = []
        for group_id, listed in by_group.items():
            if not listed:
                continue
            keys = self.queue_keys(overflow.name, group_id)
            if not calls or self._scattered or len(calls[-1][1]) >= FORGOTTEN_AT_ONCE:
                calls.append(([keys.completed, overflow.before_ms, op], []))
            args, members = calls[-1]
            args += (
                keys.jobs,
                keys.completed,
                keys.failed,
                keys.cancelled,
                len(listed),
                *(job_id for job_id, _ in listed),
            )
            members += (member for _, member in listed)
        answers = await self.loop.gather(self._ask(scripts.FORGET(*args)) for args, _ in calls)
        return {
            member: flag
            for (_, members), flags in zip(calls, answers, strict=True)
            for member, flag in zip(members, flags, strict=True)
        }

    async def idle(self, name: str, group_id: str) -> tuple[bytes, float]:
        """A group's registration, and the seconds since its last sign of life; ``b""``: it is not registered."""
        score, age = await self._ask(scripts.IDLE(groups_key(self.prefix, name), group_id))
        return score, age / 1000

    async def reap(self, name: str, keys: Keys, score: bytes) -> tuple[bool, float]:
        """Drop the keys of an idle group, if it holds no work.

        Returns:
            Whether the group is gone, and if not, the seconds until its next job is due; 0 if it has a job now.
        """
        reaped, wait = await self._ask(scripts.REAP(keys.stream, keys.delayed, keys.bucket, keys.settings))
        if not reaped:
            return False, wait / 1000
        groups = groups_key(self.prefix, name)
        return not score or bool(await self._ask(scripts.UNREGISTER(groups, keys.group, score))), 0.0


def _leases(text: bytes) -> dict[str, float]:
    """The leases that a process tells; empty if they cannot be read."""
    try:
        return {name: ms / 1000 for name, ms in msgspec.json.decode(text, type=dict[str, float]).items() if ms > 0}
    except msgspec.MsgspecError:
        return {}
