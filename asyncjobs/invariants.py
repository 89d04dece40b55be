"""Invariants: conditions that hold for a started runtime between any two steps of its loop, and for the store always.

A job that stands still always breaks one of them: no wake-up leads to its queue, a slot is counted and not used, or an
entry is pending for a process that does not know it. Tests and the chaos run check the invariants after each story.
`Runtime.health` checks those that need no look at each queue.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from asyncjobs.assembly import Assembly
from asyncjobs.broker.keys import Keys, parted
from asyncjobs.broker.reading import INSPECTED, Inspection
from asyncjobs.declare.options import RuntimeConfig
from asyncjobs.errors import visible
from asyncjobs.queue import Queue
from asyncjobs.work.alarms import ENTRIES
from asyncjobs.work.consumer import Consumer


class Runtime(Protocol):
    """As much of a `Runtime` as is looked at here."""

    config: RuntimeConfig
    _assembly: Assembly | None

    @property
    def queue(self) -> Queue: ...


def of_runtime(runtime: Runtime) -> list[str]:
    """The broken invariants of `runtime`, a sentence each; empty for a stopped runtime."""
    return [] if runtime._assembly is None else of_parts(runtime._assembly)


def of_parts(parts: Assembly) -> list[str]:
    """The broken invariants of a started runtime's parts, a sentence each."""
    consumers = parts.queues.all()
    return [*_slots(parts, consumers), *_wakes(parts, consumers), *_gates(parts, consumers)]


def at_a_glance(parts: Assembly) -> list[str]:
    """The broken invariants that can be found without a look at each queue."""
    pump = parts.pump
    broken = []
    on_wire = sum(turn.reserved for turn in pump.held if turn in turn.consumer.turns)
    if pump.reserved != on_wire:
        broken.append(f"turns on the wire wait for {on_wire} slots, and {pump.reserved} are reserved")
    if pump.starved and pump.free_slots() > 0 and not pump.ring:
        broken.append(f"{len(pump.starved)} queues wait for a slot, and {pump.free_slots()} are free")
    for shared_limit in parts.queues.shared_limits.values():
        if shared_limit.parked and not shared_limit.will_open:
            broken.append(
                f"{len(shared_limit.parked)} queues wait at {shared_limit!r}, and nothing is going to open it"
            )
    return broken


def _slots(parts: Assembly, consumers: list[Consumer]) -> list[str]:
    """Slots are counted as often as they are used, in the process and at the shared limits."""
    broken = []
    running = sum(len(one.attempts.running) for one in consumers)
    on_wire = sum(turn.reserved for one in consumers for turn in one.turns)
    # A job with an outcome keeps its slot until its aio_task has ended, or has gone on to the next job.
    if not running <= parts.pump.running <= running + sum(one.attempts.zombies for one in consumers) + len(consumers):
        broken.append(f"{running} jobs run, and {parts.pump.running} slots are taken")
    if parts.pump.reserved != on_wire:
        broken.append(f"turns on the wire wait for {on_wire} slots, and {parts.pump.reserved} are reserved")
    zombies, unsettled = sum(one.attempts.zombies for one in consumers), sum(one.unsettled for one in consumers)
    if parts.pump.running - parts.queues.running() != zombies:
        broken.append(f"{zombies} handlers of settled jobs go on, and they are counted otherwise")
    if parts.queues.unsettled() != unsettled:
        broken.append(f"{unsettled} outcomes are not settled, and {parts.queues.unsettled()} are counted")
    if parts.pump.free_slots() < 0:
        broken.append(f"{-parts.pump.free_slots()} slots more are taken or reserved than there are")
    held = parts.pump.held
    for turn in (turn for one in consumers for turn in one.turns):
        if turn not in held:
            broken.append(f"nothing is going to answer a turn of {turn.consumer!r}")
    # If the ring holds a queue, the pump is about to serve it, and after that it feeds the waiting queues.
    if parts.pump.starved and parts.pump.free_slots() > 0 and not parts.pump.ring:
        broken.append(f"{len(parts.pump.starved)} queues wait for a slot, and {parts.pump.free_slots()} are free")
    return broken


def _wakes(parts: Assembly, consumers: list[Consumer]) -> list[str]:
    """Each queue that waits for something has a wake-up."""
    broken = []
    pump, ring, starved, fetched = parts.pump, set(parts.pump.ring), set(parts.pump.starved), set(parts.pump.fetched)
    if not starved <= set(consumers):
        broken.append(f"{len(starved - set(consumers))} queues that are gone wait for a slot")
    for one in consumers:
        if one.queued != (one in ring):
            broken.append(f"{one!r} has queued={one.queued}, and the ring disagrees")
        if one.starving != (one in starved):
            broken.append(f"{one!r} has starving={one.starving}, and the waiting queues disagree")
        resting = bool(one.resting_until or one.refusals) and one.alarm_at is not None
        # Jobs that end while the queue holds prefetched jobs are settled with the last of these, or after a while.
        soon = one in fetched and not (one.lost_reply or one.refusals or (one.hungry and one.free()))
        unheard = not one.calls  # the queue's news link is not up yet, and the first look comes with it
        if one.wants_a_turn and not (one.queued or one.starving or one.turns or resting or soon or unheard):
            broken.append(f"{one!r} wants a turn, and nothing leads to it")
        if one.ahead and one not in fetched:
            broken.append(f"{one!r} holds {len(one.ahead)} jobs beyond its slots, and no timer sends them back")
        if one.alarm_at is not None and not len(pump.alarms):
            broken.append(f"{one!r} waits for an alarm that is not set")
    if len(ring) != len(pump.ring):
        broken.append("a queue stands in the ring twice")
    if len(pump.alarms) > ENTRIES * sum(one.alarm_at is not None for one in consumers) + 1:
        broken.append(f"{len(pump.alarms)} alarms are kept for {len(consumers)} queues")
    return broken


def _gates(parts: Assembly, consumers: list[Consumer]) -> list[str]:
    """A shared limit counts the jobs that run under it, and each queue that it keeps waiting has a wake-up."""
    broken = []
    for shared_limit in parts.queues.shared_limits.values():
        under = [one for one in consumers if shared_limit in one.shared_limits]
        running = sum(len(one.attempts.running) for one in under)
        if shared_limit.running != running:
            broken.append(f"{running} jobs run under {shared_limit!r}")
        # Jobs that it let in while other shared limits are asked are on no turn yet.
        let_in = sum(turn.reserved for one in under for turn in one.turns if turn.grants)
        if shared_limit.pending < let_in or (shared_limit.pending > let_in and not parts.pump.asking):
            broken.append(
                f"{shared_limit!r} has let in {let_in} jobs that are on their way, and counts {shared_limit.pending}"
            )
        if shared_limit.parked and not shared_limit.will_open:
            broken.append(
                f"{len(shared_limit.parked)} queues wait at {shared_limit!r}, and nothing is going to open it"
            )
        parked = [one for one in under if one.parked is shared_limit]
        if set(parked) != set(shared_limit.parked):
            broken.append(f"{len(parked)} queues take themselves to wait at {shared_limit!r}")
    return broken


async def of_store(runtime: Runtime, settled: bool = False) -> list[str]:
    """The broken invariants of the store, for the queues of all names that `runtime` knows.

    Args:
        settled: all work is done, so no queue may hold a job.
    Raises:
        BrokerError: the store does not answer.
    """
    parts = runtime._assembly
    if parts is None:
        return []
    broken: list[str] = []
    for name in runtime.queue.names:
        for keys in await _registered(parts, name):
            found, living = await parts.broker.inspect(keys), await parts.broker.living()
            where = name if not keys.group else f"{name} of {visible(keys.group)!r}"
            broken += [f"{where}: {sentence}" for sentence in _of_queue(found, living, settled)]
    return broken


async def _registered(parts: Assembly, name: str) -> list[Keys]:
    """The queue of a job name, and those of its groups that are not reaped."""
    queues = [parts.broker.queue_keys(name, None)]
    async for groups in parts.broker.groups(name):
        queues += [parts.broker.queue_keys(name, group_id) for group_id in groups]
    return queues


def _of_queue(found: Inspection, living: set[str], settled: bool) -> list[str]:
    """Every job stands in one place, and its record agrees with that."""
    broken = []
    owned = {job_id for owner, job_id in found.pending if owner != "head"}
    every = [*found.waiting, *(job_id for _, job_id in found.pending), *found.delayed]
    for owner in {owner for owner, _ in found.pending} - living - {"head"}:
        broken.append(f"jobs are pending for {owner}, which does not live")
    for job_id, times in Counter([*every, *found.finished]).items():
        if times > 1:
            broken.append(f"{visible(job_id)} stands in {times} places")
    for job_id, (state, token) in found.records.items():
        if job_id in owned and not (state == "a" and token):
            broken.append(f"{visible(job_id)} is owned by a process, and its record does not say so")
        if state == "a" and job_id not in owned:
            broken.append(f"{visible(job_id)} is marked as running, and no process owns it")
        if state in ("c", "f", "k"):
            broken.append(f"{visible(job_id)} has finished, and is still to be run")
    if len(every) < INSPECTED:
        waiting = len(found.waiting) + sum(owner == "head" for owner, _ in found.pending)
        there = [waiting, len(owned), len(found.delayed)]
        if there != found.counts:
            broken.append(f"it holds {there} jobs that wait, run and are delayed, and counts {found.counts}")
    if settled and every:
        broken.append(f"{len(every)} jobs are left")
    return broken


async def of_keys(runtime: Runtime, keys: Iterable[str], expires: Callable[[str], Awaitable[bool]]) -> list[str]:
    """The broken invariants of all keys of an installation.

    Args:
        keys: all keys of the installation.
        expires: tells whether a key expires by itself.
    Raises:
        BrokerError: the store does not answer.
    """
    parts = runtime._assembly
    if parts is None:
        return []
    broken: list[str] = []
    queues: dict[str, tuple[str, set[str], set[str]]] = {}  # tag → name, kinds of keys, ids of records
    for key in keys:
        known = parted(runtime.config.prefix, key)
        if known is None:
            broken.append(f"nothing is known of the key {visible(key)}")
        elif known.name:
            _, kinds, records = queues.setdefault(known.tag, (known.name, set(), set()))
            kinds.add(known.kind)
            if known.kind == "j":
                records.add(known.rest)
    registered: set[str] = set()
    for name in {name for name, _, _ in queues.values()}:
        registered.update(keys.tag for keys in await _registered(parts, name))
    for tag, (_, kinds, records) in queues.items():
        if kinds & {"s", "d"} and tag not in registered:
            broken.append(f"{visible(tag)} holds work, and is registered nowhere")
        found = await parts.broker.inspect(Keys.tagged(tag))
        places = {*found.waiting, *found.delayed, *found.finished, *(job_id for _, job_id in found.pending)}
        if len(places) < INSPECTED:
            for job_id in records - places:
                if not await expires(f"{tag}:j:{job_id}"):
                    broken.append(f"{visible(job_id)} of {visible(tag)} is a record without a place")
    return broken
