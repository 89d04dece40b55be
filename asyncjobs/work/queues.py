"""The Queues: all queues that this process consumes, with and without groups, and the limits that they share."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Final

from asyncjobs.broker import Place, read_mark
from asyncjobs.declare.definition import JobSpec
from asyncjobs.declare.options import Limiter
from asyncjobs.errors import BrokerError, BrokerUnavailableError, visible
from asyncjobs.limits.shared_limit import SharedLimit
from asyncjobs.supervisor import Supervisor
from asyncjobs.work.consumer import Consumer
from asyncjobs.work.groups import GroupRegistry
from asyncjobs.work.shared import Shared

logger = logging.getLogger("asyncjobs.work")

SHOWN_GROUPS: Final = 5
DEFAULT_LEASE: Final = 30.0


class Queues:
    """State: `consumers` and `registries` by job name; `shared_limits` by key; `quiet`, no job may begin any more;
    `draining`, no job may begin until further notice; `expected`, the jobs that will be consumed, whose leases the
    first beat tells.
    """

    def __init__(self, shared: Shared, supervisor: Supervisor) -> None:
        self._shared, self._supervisor = shared, supervisor
        self.consumers: dict[str, Consumer] = {}
        self.registries: dict[str, GroupRegistry] = {}
        self.shared_limits: dict[str, SharedLimit] = {}
        self.expected: list[JobSpec] = []
        self.quiet = self.draining = False

    async def consume(self, spec: JobSpec) -> None:
        """Open the queue of one job, or the registry of its groups. The first look comes with the news link.

        The call may be repeated after an error. A job name may have gained or lost groups since an earlier release: its
        jobs from then run as well.
        """
        shared_limits = self._shared.shared_limits[spec.name] = self._gates_of(spec)
        if spec.grouped:
            await self.registry(spec).reload()
        else:
            self.queue(spec)
        await self._look_elsewhere(spec)

        def room() -> None:
            for shared_limit in shared_limits:
                shared_limit.open()

        def news(group_id: str, delay: float) -> None:
            if group_id:
                self.registry(spec).wake(group_id, delay)
            else:
                self.queue(spec).wake(group_id, delay)

        def look() -> None:
            if spec.name in self.consumers:
                self.consumers[spec.name].look_again()
            if spec.name in self.registries:
                self._supervisor.once(f"looking at the groups of {spec.name}", self.registries[spec.name].look)

        def reload() -> None:
            self._supervisor.once(f"looking at the groups of {spec.name}", self.registry(spec).reload)

        await self._shared.broker.listen_for_news(spec.name, news, look, reload, room)

    def queue(self, spec: JobSpec) -> Consumer:
        """The consumer of the jobs without a group."""
        consumer = self.consumers.get(spec.name)
        if consumer is None:
            consumer = Consumer(self._shared, spec, self._shared.broker.queue_keys(spec.name, None))
            consumer.quiet = self.quiet or self.draining
            self.consumers[spec.name] = consumer
            self._mind_shapes(spec)
        return consumer

    def registry(self, spec: JobSpec) -> GroupRegistry:
        """The groups of a job."""
        registry = self.registries.get(spec.name)
        if registry is None:
            registry = self.registries[spec.name] = GroupRegistry(self._shared, spec)
            registry.quiet, registry.draining = self.quiet, self.draining
            self._supervisor.start(f"reaper of {spec.name}", registry.run)
            self._mind_shapes(spec)
        return registry

    def _mind_shapes(self, spec: JobSpec) -> None:
        """Mark the queue of a name with and without groups, because both kinds share one list of finished jobs."""
        if spec.name in self.consumers and spec.name in self.registries:
            self.consumers[spec.name].indexed = True

    async def _look_elsewhere(self, spec: JobSpec) -> None:
        """Find jobs with groups of a name that has none in this release, or the other way round."""
        try:
            found = await self._shared.broker.other_shape(spec.name, spec.grouped)
        except BrokerUnavailableError:
            raise
        except BrokerError as error:  # a key of a foreign type; the queue's turns report it
            logger.debug("looking at %s: %s", spec.name, error)
            return
        if found is None:
            return
        if spec.grouped:
            text = (
                "%s has groups, and %d of its jobs were added when it had none; they run one after the other, with no "
            )
            logger.warning(text + "group_id", spec.name, found.jobs)
            self.queue(spec)
            return
        if found.jobs:
            some = ", ".join(visible(one) for one in found.groups[:SHOWN_GROUPS])
            more = ", …" if len(found.groups) > SHOWN_GROUPS else ""
            text = "%s has no groups, and %d of its jobs were added when it had some (%s%s); each group's run in order"
            logger.warning(text, spec.name, found.jobs, some, more)
        registry = self.registry(spec)
        for group_id in found.groups:
            registry.wake(group_id)

    def _gates_of(self, spec: JobSpec) -> tuple[SharedLimit, ...]:
        """The shared limits over the queues of a job. A process has one object for each."""
        total, named = self._shared.broker.shared_limit_keys(spec.name, [one.name or "" for one in spec.named_limiters])
        wanted: list[tuple[str, tuple[Limiter, ...], int | None]] = []
        if spec.total_limiters or spec.total_concurrency:
            wanted.append((total, spec.total_limiters, spec.total_concurrency))
        wanted += [(key, (limiter,), None) for key, limiter in zip(named, spec.named_limiters, strict=True)]
        for key, limiters, slots in wanted:
            if key not in self.shared_limits:
                self.shared_limits[key] = SharedLimit(self._shared.broker, key, spec.name, limiters, slots, spec.lease)
        return tuple(self.shared_limits[key] for key, _, _ in wanted)

    def leases(self) -> dict[str, float]:
        """The leases by which other processes judge this one: job name → seconds; '': the lease of all other names."""
        found = {spec.name: spec.lease for spec in (*self.expected, *self.specs())}
        usual = Counter(found.values()).most_common(1)
        rest = usual[0][0] if usual else DEFAULT_LEASE
        return {"": rest, **{name: lease for name, lease in found.items() if lease != rest}}

    def specs(self) -> list[JobSpec]:
        """The spec of each job once, though the job may have had groups in another release."""
        specs = {name: consumer.spec for name, consumer in self.consumers.items()}
        specs |= {name: registry.spec for name, registry in self.registries.items()}
        return list(specs.values())

    def consumer_at(self, place: Place) -> Consumer | None:
        """The consumer of this process for jobs that are added at `place`, or None."""
        if not place.registry:
            return self.consumers.get(place.name)
        registry = self.registries.get(place.name)
        return None if registry is None else registry.open.get(place.keys.group)

    def cancel(self, message: bytes) -> None:
        """The cancel of a job was asked for that runs somewhere: if it runs here, it ends."""
        asked = read_mark(message)
        if asked.group:
            registry = self.registries.get(asked.name)
            consumer = None if registry is None else registry.open.get(asked.group)
        else:
            consumer = self.consumers.get(asked.name)
        if consumer is not None:
            consumer.cancel(asked.job_id, asked.token, asked.mark)

    def all(self) -> list[Consumer]:
        grouped = [consumer for registry in self.registries.values() for consumer in registry.open.values()]
        return [*self.consumers.values(), *grouped]

    def in_threads(self) -> int:
        """The number of jobs that cannot be cancelled, because threads run them."""
        return sum(one.attempts.in_threads() for one in self.all())

    def hush(self) -> None:
        """Start no job from now on."""
        self.quiet = True
        for registry in self.registries.values():
            registry.quiet = True
        for consumer in self.all():
            consumer.hush()

    async def relearn(self, name: str, group_id: str) -> None:
        """Something was set of one queue. One whose slots are all in use has no turn that would tell, so it asks."""
        registry = self.registries.get(name)
        queue = (None if registry is None else registry.open.get(group_id)) if group_id else self.consumers.get(name)
        if queue is None or queue.limits.concurrency is None or queue.attempts.slots_used < queue.limits.concurrency:
            return
        found = await self._shared.broker.settings(queue.keys)
        queue.learn((found.get("w", ""), found.get("c", ""), found.get("g", "")))

    def drain(self, on: bool) -> None:
        """Let nothing begin until further notice, or let it begin again; what runs goes on."""
        self.draining = on
        for registry in self.registries.values():
            registry.draining = on
        for consumer in self.all():
            if on:
                consumer.hush()
            else:
                consumer.quiet = False
                consumer.look_again()

    def cancel_all(self) -> None:
        """Cancel all tries, because the process stops."""
        for consumer in self.all():
            consumer.cancel_all()

    def close(self) -> None:
        for shared_limit in self.shared_limits.values():
            shared_limit.close()

    def running(self) -> int:
        """Jobs that run here, of all queues: the slots of the process that are taken for no other reason."""
        return self._shared.pump.running - self._shared.zombies

    def unsettled(self) -> int:
        """Decisions that the store has not acknowledged yet, of all queues."""
        return self._shared.unsettled

    def at_rest(self) -> bool:
        """True if no job runs, none waits to be settled, and no job can be pending that this process does not know."""
        return self.running() == 0 and not self.unsettled() and not any(one.unsure for one in self.all())

    def at_rest_but_for_threads(self) -> bool:
        """True if the queues are at rest, apart from jobs that threads run."""
        return (
            self.running() == self.in_threads() and not self.unsettled() and not any(one.unsure for one in self.all())
        )

    async def keep_owned(self, process: str) -> None:
        """Cancel the tries that another process took over while this process was silent."""
        await asyncio.gather(*(one.keep_owned(process) for one in self.all() if one.attempts.running))
