"""A worker of the chaos run: ``python -m benchmarks.chaos.worker '<Plan as JSON>'``.

Every start, end and terminal transition goes to the ledger, a second server that nothing befalls.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec
from redis.asyncio import Redis

from asyncjobs import Backoff, Event, Runtime
from asyncjobs.cli.project import run_loop
from asyncjobs.events import EVENT_TYPES
from benchmarks.chaos.kinds import KINDS, LEASES, SLOTS, Kind

LOG: Final = "log"
ENDED: Final = "ended"  # how many ends the log has
ATTEMPTS: Final = 5
GRACE: Final = 0.2  # seconds; shorter than what some jobs take, so that a stop meets some that run


class Plan(msgspec.Struct):
    """What a worker is told: the store, the ledger, and which protection to leave out, to see that it is missed."""

    store: str
    ledger: str
    without: str = ""  # "fence", "adoption" or "act"
    number: int = 0  # of this worker, which decides its lease and its slots


class Note(msgspec.Struct, array_like=True):
    """One line of the ledger; `at` is this machine's monotonic clock, the same for all of its processes."""

    kind: str  # "start", "end", or an event type
    job: str
    pid: int
    at: float
    attempt: int = 0
    stalled: int = 0
    name: str = ""


class Ledger:
    """Notes on their way to the ledger, in order, many a round trip."""

    def __init__(self, url: str) -> None:
        self._redis: Any = Redis.from_url(url)
        self._waiting: list[tuple[Note, asyncio.Future[None]]] = []
        self._sending: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    async def write(self, note: Note) -> None:
        """Returns once it is written: what a handler has done is known before its job can complete."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.append((note, future))
        if self._sending is None:
            self._sending = loop.create_task(self._send())
        await future

    def write_from_thread(self, note: Note) -> None:
        """The same, for a handler in a thread."""
        asyncio.run_coroutine_threadsafe(self.write(note), self._loop).result()

    async def _send(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            async with self._redis.pipeline() as both:
                both.rpush(LOG, *(msgspec.json.encode(note) for note, _ in batch))
                both.incrby(ENDED, sum(note.kind == "end" for note, _ in batch))
                await both.execute()
            for _, future in batch:
                if not future.done():
                    future.set_result(None)
        self._sending = None

    async def close(self) -> None:
        if self._sending is not None:
            await self._sending
        await self._redis.aclose()


def make_runtime(store: str, ledger: Ledger | None, number: int = 0, consume: bool = True) -> Runtime:
    """A runtime with every kind of job; `number` decides its lease and its slots."""
    # Behind a failover stands a replica: what is acknowledged has to be there as well.
    durability: Any = "replicated" if "+" in store.partition("://")[0] else "local"
    runtime = Runtime(
        store,
        prefix="chaos",
        consume=consume,
        concurrency=SLOTS[number % len(SLOTS)],
        schedule=False,
        connect_timeout=5,
        sweep_interval=2,
        durability=durability,
    )
    lease = LEASES[number // len(SLOTS) % len(LEASES)]
    for name, kind in KINDS.items():
        runtime.job(
            name, lease=lease, attempts=ATTEMPTS, backoff=Backoff("fixed", 0.05), max_stalled_count=1000,
            remove_on_complete=False, remove_on_fail=False, **kind.options,
        )(_handler(name, kind, ledger))  # fmt: skip
    return runtime


def _handler(name: str, kind: Kind, ledger: Ledger | None) -> Callable[..., Any]:
    """What a job of `kind` does: note the start, take the time, fail as often as told, note the end."""
    pid = os.getpid()

    def note(what: str, job: Any) -> Note:
        return Note(what, job.id, pid, time.monotonic(), job.attempts_made, job.stalled_count, name)

    async def handle(data: Any, job: Any) -> str:
        assert ledger is not None, "a runtime without a ledger only adds"
        await ledger.write(note("start", job))
        if data["takes"]:
            await asyncio.sleep(data["takes"])
        if job.attempts_made < data["fails"]:
            raise ValueError("as planned")
        await ledger.write(note("end", job))
        return "done"

    def handle_in_thread(data: Any, job: Any) -> str:
        assert ledger is not None, "a runtime without a ledger only adds"
        ledger.write_from_thread(note("start", job))
        time.sleep(data["takes"])
        if job.attempts_made < data["fails"]:
            raise ValueError("as planned")
        ledger.write_from_thread(note("end", job))
        return "done"

    return handle_in_thread if kind.in_thread else handle


def leave_out(protection: str) -> None:
    """Take a protection away. What the run then finds shows that it would have found it missing."""
    if protection == "fence":
        _weaken(
            "work", {"if job[1] ~= ARGV[i + 3] then": "if false then", "elseif job[2] ~= 'a' then": "elseif false then"}
        )
    elif protection == "act":
        unlisted = "redis.call('ZREM', zsets[state], id)"
        _weaken("retry", {"elseif zsets[state] then": "elseif state ~= '-' then"})
        _weaken("retry", {unlisted: f"if zsets[state] then {unlisted} end"})
    elif protection == "adoption":
        from asyncjobs.work.pump import Pump
        from asyncjobs.work.turn import Turn

        async def nothing(self: Pump, turns: list[Turn[Any]]) -> list[Turn[Any]]:
            for turn in turns:
                turn.consumer.lost_reply = False
            return turns

        setattr(Pump, "_adopt", nothing)  # noqa: B010 - it is another's method
    elif protection:
        raise SystemExit(f"--without {protection}: expected 'fence', 'adoption' or 'act'")


def _weaken(name: str, changes: dict[str, str]) -> None:
    """Change the text of a script."""
    from asyncjobs.broker import scripts

    script = next(one for one in scripts.BY_SHA.values() if one.name == name)
    weak = script.text
    for before, after in changes.items():
        assert weak.count(before) == 1
        weak = weak.replace(before, after)
    scripts.BY_SHA.pop(script.sha)
    object.__setattr__(script, "text", weak)
    object.__setattr__(script, "sha", scripts.digest(weak))
    scripts.BY_SHA[script.sha] = script


def _broken(runtime: Runtime) -> list[str]:
    """What should hold of a runtime and does not; an earlier release cannot tell."""
    try:
        from asyncjobs.invariants import of_runtime
    except ImportError:
        return []
    return list(of_runtime(runtime))


async def main(plan: Plan) -> None:
    leave_out(plan.without)
    ledger = Ledger(plan.ledger)
    runtime = make_runtime(plan.store, ledger, plan.number)
    pid, numbers = os.getpid(), itertools.count()
    writing: set[asyncio.Task[None]] = set()

    def tell(event: Event) -> None:
        note = Note(event.type, event.job_id or "", pid, time.monotonic(), next(numbers), 0, event.name)
        aio_task = asyncio.get_running_loop().create_task(ledger.write(note))
        writing.add(aio_task)
        aio_task.add_done_callback(writing.discard)

    subscribe: Callable[..., Any] = runtime.on
    subscribe("job.completed", tell)
    subscribe("job.failed", tell)
    if "job.cancelled" in EVENT_TYPES:  # an earlier release has no such event
        subscribe("job.cancelled", tell)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    import signal

    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    while True:
        try:
            await runtime.start()
            break
        except Exception as error:
            print(f"starting: {error}", flush=True)
    print("ready", flush=True)
    await stopped.wait()
    for sentence in _broken(runtime):
        print(f"broken: {sentence}", flush=True)
    await runtime.stop(grace=GRACE)
    await asyncio.gather(*writing)
    await ledger.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    run_loop(main(msgspec.json.decode(sys.argv[1], type=Plan)))
