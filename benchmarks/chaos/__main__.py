"""Break everything, and count what was lost.

Worker processes take jobs of every kind from a store behind a proxy, and are killed, frozen and replaced; the store is
killed, restarted and frozen, replies are dropped, links are cut, scripts are flushed. A ledger on a second server has
every start, every end and every terminal transition; nothing befalls it. Afterwards:

    every acknowledged job has run and is completed · no job has two terminal transitions
    a job that ran twice was on its way while its process died or froze, or the store did
    no process has run a job beside itself
    what operators cancel, remove and retry meanwhile has one end, and each act was done once
    no window has more starts than its limit · nothing is left in the store but finished jobs
    the workers' memory and descriptors are flat

One line of JSON; exit code 1 if anything of that is not so.

    python -m benchmarks.chaos --server embedded|redis|sentinel|cluster --jobs N --seed S --kills K --restarts R …
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from asyncjobs import BrokerError, Job, JobGoneError, Runtime, StateError
from asyncjobs.cli.project import run_loop
from benchmarks.chaos import stores, verdict
from benchmarks.chaos.kinds import KINDS, LONGEST_LEASE, kind_of
from benchmarks.chaos.worker import ATTEMPTS, ENDED, LOG, Note, Plan, leave_out, make_runtime

WORKERS: Final = 4
BACKLOG: Final = 3000
ADDERS: Final = 40
FREEZE: Final = 2 * LONGEST_LEASE
MOST_DESCRIPTORS: Final = 60
STOPPED_WITHIN: Final = 15.0  # seconds; its grace and what follows it take less than half of that
MOST_GROWTH: Final = 64  # MiB of a worker, between its first look and its last
Answer = TypeVar("Answer")
ROOT: Final = Path(__file__).parent.parent.parent


class Workers:
    """The worker processes; one that was killed is replaced at once."""

    def __init__(self, plan: Plan, folder: Path, rng: random.Random, other: Path | None) -> None:
        self._plan, self._folder, self._rng, self._other = plan, folder, rng, other
        self._numbers = itertools.count()
        self.running: list[subprocess.Popen[bytes]] = []
        self.first_seen: dict[int, int] = {}
        self.growth = self.descriptors = self.late = 0

    def start(self) -> None:
        number = next(self._numbers)
        plan = msgspec.structs.replace(self._plan, number=number)
        # `-m` looks in the folder that it is called in first: there lies the release that this worker runs.
        here = ROOT if self._other is None or number % 2 == 0 else self._other
        with (self._folder / "workers.log").open("ab") as log:
            command = [sys.executable, "-m", "benchmarks.chaos.worker", msgspec.json.encode(plan).decode()]
            env = {**os.environ, "PYTHONPATH": str(ROOT)}
            self.running.append(subprocess.Popen(command, cwd=here, env=env, stdout=log, stderr=log))

    def kill(self) -> int:
        victim = self._rng.choice(self.running)
        victim.kill()
        victim.wait()
        self.running.remove(victim)
        self.start()
        return victim.pid

    async def restart(self) -> int:
        """Stop one as a deployment does, in the middle of whatever it takes and runs, and start its successor."""
        victim = self._rng.choice(self.running)
        self.running.remove(victim)
        self.start()
        victim.terminate()
        try:
            await asyncio.to_thread(victim.wait, STOPPED_WITHIN)
        except subprocess.TimeoutExpired:
            self.late += 1
            victim.kill()
            victim.wait()
        return victim.pid

    async def freeze(self, seconds: float) -> int:
        victim = self._rng.choice(self.running)
        victim.send_signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        with suppress(ProcessLookupError):
            victim.send_signal(signal.SIGCONT)
        return victim.pid

    def look(self) -> None:
        """Note how large the workers are, and how many descriptors they hold."""
        for worker in self.running:
            with suppress(OSError, StopIteration):
                lines = Path(f"/proc/{worker.pid}/status").read_text().splitlines()
                size = int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) // 1024
                threads = Path(f"/proc/{worker.pid}/fd")
                self.descriptors = max(self.descriptors, len(os.listdir(threads)))
                self.growth = max(self.growth, size - self.first_seen.setdefault(worker.pid, size))

    async def stop(self) -> None:
        for worker in self.running:
            worker.send_signal(signal.SIGCONT)
            worker.terminate()
        for worker in self.running:
            with suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(worker.wait, 20)
            worker.kill()
            worker.wait()


class Chaos:
    """One run."""

    def __init__(self, args: argparse.Namespace, store: stores.Store, ledger: Any, workers: Workers) -> None:
        self.args, self.store, self.ledger, self.workers = args, store, ledger, workers
        self.rng = random.Random(args.seed)
        self.faults: list[verdict.Fault] = []
        self.acknowledged: dict[str, tuple[str, str | None]] = {}
        self.acts: dict[str, str] = {}
        self.acting: set[asyncio.Task[None]] = set()
        self._numbers = iter(range(args.jobs))

    async def progress(self) -> float:
        return int(await self.ledger.get(ENDED) or 0) / int(self.args.jobs)

    # Work -------------------------------------------------------------------------------------------------
    async def add_all(self, runtime: Runtime) -> None:
        """Every job once, under an id of our own, again and again until it is acknowledged."""
        behind = asyncio.Event()
        behind.set()

        async def pace() -> None:
            while len(self.acknowledged) < self.args.jobs:
                waiting = len(self.acknowledged) - await self.progress() * self.args.jobs
                behind.set() if waiting < BACKLOG else behind.clear()
                await asyncio.sleep(0.05)

        async def adder() -> None:
            for number in self._numbers:
                await behind.wait()
                await self._add(runtime, number)

        pacing = asyncio.create_task(pace())
        await asyncio.gather(*(adder() for _ in range(ADDERS)))
        pacing.cancel()

    async def _add(self, runtime: Runtime, number: int) -> None:
        rng = random.Random(self.args.seed * 1_000_003 + number)
        name = kind_of(rng.randrange(100))
        kind = KINDS[name]
        group = f"tenant {rng.randrange(kind.groups)}" if kind.groups else None
        data = {"takes": rng.uniform(0, kind.longest), "fails": rng.choice([0] * 19 + [1])}
        delay = rng.uniform(0, 1) if rng.random() < 0.1 else 0.0
        job_id = f"job-{number}"
        act = ("cancelled", "removed", "retried")[rng.randrange(3)] if rng.uniform(0, 100) < self.args.acts else ""
        if act == "removed" and kind.groups:
            act = "cancelled"  # a group stays registered until what it was last told to wait for is due
        if act == "removed":
            delay = 3600.0
        elif act == "retried":
            data["fails"] = ATTEMPTS
        if act:
            self.acts[job_id] = act
        job = await _until_answered(lambda: runtime.queue.add(name, data, group_id=group, job_id=job_id, delay=delay))
        self.acknowledged[job_id] = (name, group)
        if act in ("cancelled", "removed"):
            acting = asyncio.create_task(self._act(job, act, rng.uniform(0, 0.1)))
            self.acting.add(acting)

    # Operators --------------------------------------------------------------------------------------------
    async def _act(self, job: Job, act: str, after: float) -> None:
        await asyncio.sleep(after)
        await _until_answered(lambda: job.cancel("by chaos") if act == "cancelled" else job.remove())

    async def retry_failed(self, runtime: Runtime) -> None:
        """Retry all that has failed, as an operation of many steps; and jobs in whatever state, which is refused."""
        while True:
            with suppress(BrokerError):
                await runtime.queue.select(state="failed").retry(reason="by chaos")
            for job_id in self.rng.sample(sorted(self.acknowledged), min(20, len(self.acknowledged))):
                name, group = self.acknowledged[job_id]
                if self.acts.get(job_id) in ("", None):
                    with suppress(BrokerError, StateError, JobGoneError):
                        job = await runtime.queue.get_job(name, job_id, group)
                        if job is not None:
                            await job.retry()
            await asyncio.sleep(0.2)

    # Faults -----------------------------------------------------------------------------------------------
    async def misbehave(self) -> None:
        """All faults, spread at random over the run, as it proceeds."""
        args = self.args
        kinds = {
            "kill": args.kills, "stop": args.stops, "restart": args.restarts, "drop": args.drops, "cut": args.cuts,
            "freeze store": args.freezes, "freeze worker": args.freezes, "flush": args.flushes,
        }  # fmt: skip
        plan = sorted((self.rng.uniform(0.02, 0.9), kind) for kind, times in kinds.items() for _ in range(times))
        for at, kind in plan:
            while await self.progress() < at:  # noqa: ASYNC110 - it is another server's
                await asyncio.sleep(0.02)
            began, pid = time.monotonic(), 0
            if kind == "kill":
                pid = self.workers.kill()
            elif kind == "stop":
                pid = await self.workers.restart()
            elif kind == "restart":
                await self.store.restart()
            elif kind == "drop":
                await self.store.drop()
            elif kind == "cut":
                await self.store.cut()
            elif kind == "flush":
                await self.store.flush_scripts()
            elif kind == "freeze store":
                await self.store.freeze(FREEZE)
            else:
                pid = await self.workers.freeze(FREEZE)
            self.faults.append(verdict.Fault(kind, pid, began, time.monotonic()))
            self.workers.look()

    # The end ----------------------------------------------------------------------------------------------
    async def acted(self, runtime: Runtime) -> None:
        """Wait until every act is done, and nothing is failed any more."""
        await asyncio.gather(*self.acting)
        failed = runtime.queue.select(state="failed")

        async def left() -> int:
            counts = [await runtime.queue.counts(name) for name in runtime.queue.names]
            return sum(one["failed"] + one["active"] + one["waiting"] + one["delayed"] for one in counts)

        while await _until_answered(left):
            await _until_answered(failed.retry)
            await asyncio.sleep(0.1)

    async def drained(self, runtime: Runtime) -> str:
        """Wait until nothing is waiting, active or delayed; what is, in words, when the time is up."""
        deadline = time.monotonic() + self.args.patience
        while True:
            left = {}
            with suppress(BrokerError):
                for name in runtime.queue.names:
                    counts = await runtime.queue.counts(name)
                    left[name] = {state: counts[state] for state in ("waiting", "active", "delayed") if counts[state]}
                if not any(left.values()):
                    return ""
            if time.monotonic() > deadline:
                return f"not drained: {left}"
            await asyncio.sleep(0.1)

    async def finished(self, runtime: Runtime) -> dict[str, str]:
        """job → its state in the store."""
        states: dict[str, str] = {}

        async def look(job_id: str, name: str, group: str | None) -> None:
            job = await runtime.queue.get_job(name, job_id, group)
            states[job_id] = str(job.state) if job is not None else "gone"

        every = [(job_id, *where) for job_id, where in self.acknowledged.items()]
        for start in range(0, len(every), 1000):
            await asyncio.gather(*(look(*one) for one in every[start : start + 1000]))
        return states

    async def left_over(self) -> list[str]:
        """Keys that should be gone once nothing is waiting and every group has been reaped."""
        deadline = time.monotonic() + 15
        while True:
            left = []
            for client in self.store.clients():
                async for key in client.scan_iter(count=5000):
                    if key.endswith((b":s", b":d", b":groups")):
                        left.append(key.decode())
            if not left or time.monotonic() > deadline:
                return left
            await asyncio.sleep(0.25)


async def _until_answered(call: Callable[[], Awaitable[Answer]]) -> Answer:
    """What `call` returns, once the store has answered."""
    while True:
        try:
            return await call()
        except BrokerError:
            await asyncio.sleep(0.05)


async def run(args: argparse.Namespace) -> dict[str, Any]:
    """Set everything up, let it happen, and judge."""
    here = asyncio.current_task()
    assert here is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, here.cancel)  # leave no server behind
    rng = random.Random(args.seed)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aj-")))
        ledger_server = stores.new_server(stack)
        ledger = ledger_server.client()
        stack.push_async_callback(ledger.aclose)
        store = await stores.make(args.server, rng, stack)
        workers = Workers(Plan(store.url, ledger_server.url, args.without), folder, rng, args.other_release)
        for _ in range(WORKERS):
            workers.start()
        stack.push_async_callback(workers.stop)
        chaos = Chaos(args, store, ledger, workers)
        leave_out("act" if args.without == "act" else "")
        runtime = make_runtime(store.url, None, consume=False)
        began = time.monotonic()
        async with runtime:
            adding = asyncio.create_task(chaos.add_all(runtime))
            misbehaving = asyncio.create_task(chaos.misbehave())
            operating = asyncio.create_task(chaos.retry_failed(runtime)) if args.acts else None
            try:
                async with asyncio.timeout(args.patience + args.jobs / 100):
                    await asyncio.gather(adding, misbehaving)
                    if operating is not None:
                        operating.cancel()
                        await asyncio.wait([operating])
                        await chaos.acted(runtime)
                stuck = await chaos.drained(runtime)
            except TimeoutError:
                for each in (adding, misbehaving, *([operating] if operating is not None else []), *chaos.acting):
                    each.cancel()
                stuck = f"stuck at {await chaos.progress():.0%}"
            took = time.monotonic() - began
            workers.look()
            states = await chaos.finished(runtime)
            left = [] if stuck else await chaos.left_over()
        await workers.stop()
        notes = [msgspec.json.decode(line, type=Note) for line in await ledger.lrange(LOG, 0, -1)]
        said = (folder / "workers.log").read_text(errors="replace")
        if args.verbose:
            sys.stderr.write(said)
    found = verdict.judge(chaos.acknowledged, states, notes, chaos.faults, chaos.acts)
    for each in found.pop("unexplained_notes"):
        print("unexplained:", *each, sep="\n  ", file=sys.stderr)
    result = {
        "server": args.server, "jobs": args.jobs, "seed": args.seed, "without": args.without,
        "seconds": round(took, 1), "jobs_per_second": round(args.jobs / took),
        "faults": dict(Counter(fault.kind for fault in chaos.faults)), "acts": dict(Counter(chaos.acts.values())),
        "acknowledged": len(chaos.acknowledged),
        **found,
        "left_over": len(left), "stuck": stuck, "growth_mib": workers.growth, "descriptors": workers.descriptors,
        "tracebacks": said.count("Traceback"), "broken": said.count("broken: "), "late_stops": workers.late,
    }  # fmt: skip
    zero = (
        "lost", "never_ran", "double_terminal", "unexplained", "side_by_side", "over_limit", "left_over", "broken",
        "late_stops", "two_ends", "ran_removed",
    )  # fmt: skip
    result["ok"] = (
        not any(result[count] for count in zero)
        and not stuck
        and workers.descriptors <= MOST_DESCRIPTORS
        and workers.growth <= MOST_GROWTH
        and len(chaos.acknowledged) == args.jobs
    )
    return result


def main() -> int:
    head, _, _ = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=head)
    parser.add_argument("--server", choices=("embedded", "redis", "sentinel", "cluster"), default="embedded")
    for name, default, what in (
        ("jobs", 20_000, "how many jobs are added"),
        ("seed", 1, "decides which faults come when"),
        ("kills", 25, "kill -9 of a worker"),
        ("stops", 5, "SIGTERM of a worker, beside which its successor starts"),
        ("restarts", 5, "kill -9 of the store, and its restart"),
        ("drops", 30, "replies that never arrive"),
        ("cuts", 10, "all links cut at once"),
        ("freezes", 2, "SIGSTOP for two leases, of the store and of a worker each"),
        ("flushes", 3, "SCRIPT FLUSH"),
        ("acts", 3, "of a hundred jobs, how many an operator cancels, removes or retries"),
        ("patience", 60, "seconds in which the rest must be done when the last job is added"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what}; {default} unless set")
    parser.add_argument(
        "--without", choices=("", "fence", "adoption", "act"), default="", help="leave a protection out"
    )
    parser.add_argument(
        "--other-release", type=Path, help="a folder with another release of asyncjobs, which every second worker runs"
    )
    parser.add_argument("--verbose", action="store_true", help="what the workers said, on standard error")
    result = run_loop(run(parser.parse_args()))
    print(json.dumps(result))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
