"""Explaining: what holds a job back, as far as its queue, its name and the installation know; nothing is changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from asyncjobs.broker import scripts
from asyncjobs.broker.calling import RetryingCaller
from asyncjobs.broker.keys import (
    Keys,
    about_key,
    draining_key,
    due_key,
    named_gate,
    names_key,
    processes_key,
    total_gate,
)

MOST_COUNTED: Final = 1000  # jobs in front of one, or behind it; a thousand take 2 ms of the server
NO_JOB: Final = (b"", b"", b"", b"0", b"", -1, 1, b"", b"0")
ARRIVALS_MS: Final = 60_000  # span in which jobs that came are counted


class Tokens(NamedTuple):
    """Of one window of a limit: tokens that are out, and when the first of them is back, in ms."""

    out: int
    back_ms: float | None


class Gate(NamedTuple):
    """How full a shared limit is: jobs that run under it, and the tokens of its windows."""

    running: int
    tokens: list[Tokens]


class Explained(NamedTuple):
    """One job of a queue, or the next one, and what the queue knows of it.

    Attributes:
        job_id: '': there is none.
        state: as the record has it: 'a' active, 'c' 'f' 'k' finished, else '' or 'w'.
        due_ms: when it is due; None: it is not delayed.
        unbegun: it was taken, and its handler has not begun.
        in_front: jobs in front of it, None: its place is not known; `exact`: else there are more than these.
        head_id, head_tries: the first job that is back at the head of the queue, and its tries.
        settings: what was set at run time: windows, concurrency, paused; '' for what was not.
        held_ms: until when the queue is held.
        running: some of the jobs that run.
        tokens: of its own limiter's windows.
    """

    now_ms: float
    job_id: str
    state: str
    due_ms: float | None
    stalled: int
    unbegun: bool
    in_front: int | None
    exact: bool
    head_id: str
    head_tries: int
    settings: tuple[str, str, str]
    held_ms: float | None
    waiting: int
    active: int
    delayed: int
    running: list[str]
    tokens: list[Tokens]


class Service(NamedTuple):
    """Which processes run a job name.

    Attributes:
        told: what the store has of the name.
        consumers: how many take jobs of it; `unsure`: how many do not say what they run.
        draining: some that would, and were asked to take nothing.
        slots: used, all, and ms since the heartbeat that says so, of some of the consumers.
        gates: of the limiters that it shares, by their names.
    """

    now_ms: float
    told: bytes
    consumers: int
    unsure: int
    draining: list[str]
    slots: list[tuple[int, int, float]]
    gates: dict[str, Gate]


class Backlog(NamedTuple):
    """How fast jobs come and how long they run.

    Attributes:
        came, over: jobs that came, and the seconds in which they did.
        ran, took: of some completed jobs how many these are, and the seconds for which they ran together.
    """

    waiting: int
    active: int
    came: int
    over: float
    ran: int
    took: float


class Explaining(RetryingCaller):
    """The verbs of those who ask why a job waits."""

    async def explain(self, keys: Keys, job_id: str) -> Explained:
        """What a queue knows of a job; of the next one for ''."""
        args = (keys.stream, keys.delayed, keys.settings, keys.bucket, keys.jobs, job_id, MOST_COUNTED)
        now, job, settings, counts, running, tokens = await self._ask(scripts.EXPLAIN(*args))
        identity, state, due, stalled, unbegun, in_front, exact, head, tries = job or NO_JOB
        return Explained(
            now_ms=int(now) / 1000,
            job_id=identity.decode(errors="replace"),
            state=state.decode(errors="replace"),
            due_ms=float(due) if due else None,
            stalled=_number(stalled),
            unbegun=bool(unbegun),
            in_front=None if in_front < 0 else in_front,
            exact=bool(exact),
            head_id=head.decode(errors="replace"),
            head_tries=_number(tries),
            settings=_texts(settings[:3]),
            held_ms=float(settings[3]) if settings[3].isdigit() else None,
            waiting=counts[0],
            active=counts[1],
            delayed=counts[2],
            running=[one.decode(errors="replace") for one in running if one],
            tokens=_tokens(tokens),
        )

    async def explain_name(self, name: str, lease: float) -> tuple[tuple[str, str, str], Gate]:
        """What was set for each group of a name, and how full the limit over all of them is."""
        keys = self.queue_keys(name, None).settings, total_gate(self.prefix, name)
        settings, gate = await self._ask(scripts.EXPLAIN_NAME(*keys, round(lease * 1000)))
        return _texts(settings), _gate(gate)

    async def explain_service(self, name: str, lease: float, limiters: Sequence[str] | None) -> Service:
        """Which processes run a name, and how full the limits are that it shares by their names.

        `limiters`: their names; None: those that the store has of the name.
        """
        keys = (
            processes_key(self.prefix), due_key(self.prefix), about_key(self.prefix), draining_key(self.prefix),
            names_key(self.prefix),
        )  # fmt: skip
        known = [""] if limiters is None else ["1", *limiters]
        args: tuple[str | int, ...] = (name, round(lease * 1000), named_gate(self.prefix, ""), *known)
        now, told, consumers, unsure, draining, slots, gates = await self._ask(scripts.EXPLAIN_SERVICE(*keys, *args))
        return Service(
            int(now) / 1000,
            told,
            consumers,
            unsure,
            [one.decode(errors="replace") for one in draining],
            [(slots[i], slots[i + 1], slots[i + 2] / 1000) for i in range(0, len(slots), 3)],
            {gates[i].decode(errors="replace"): _gate(gates[i + 1]) for i in range(0, len(gates), 2)},
        )

    async def backlog(self, keys: Keys) -> Backlog:
        """How fast jobs of a queue come, and how long they run."""
        found = await self._ask(scripts.BACKLOG(keys.stream, keys.completed, keys.jobs, ARRIVALS_MS))
        waiting, active, came, over, ran, took = found
        return Backlog(waiting, active, came, over / 1000, ran, took / 1000)


def _gate(found: Sequence[Any]) -> Gate:
    return Gate(found[0], _tokens(found[1:]))


def _tokens(found: Sequence[Any]) -> list[Tokens]:
    pairs = [(found[i], found[i + 1]) for i in range(0, len(found), 2)]
    return [Tokens(out, float(back) / 1000 if back else None) for out, back in pairs]


def _texts(found: Sequence[bytes]) -> tuple[str, str, str]:
    windows, concurrency, paused = (one.decode(errors="replace") for one in found)
    return windows, concurrency, paused


def _number(text: bytes) -> int:
    return int(text) if text.isdigit() and len(text) < 16 else 0
