"""Where the time of a drained job goes: CPU of the client by step, CPU of the server by command.

The client is sampled by a timer of its own CPU time, and each sample is counted for the innermost step that it is in;
so a step's figure is its share of the process's CPU a job. The server counts its commands itself; what a script spends
outside of them is Lua.

    python -m benchmarks.profile [--concurrency N] [--sleep SECONDS] [--server …] [--jobs N] [--quick] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import signal
import time
from types import FrameType
from typing import Any

from benchmarks import machine
from benchmarks.load import Load
from benchmarks.report import Report, script

EVERY = 0.004  # seconds of CPU between two samples

# (file, function or '' for all) → step; the innermost frame that is listed counts.
STEPS = {
    ("load.py", ""): "the handler",
    ("executor.py", ""): "run the handler: payload, call, outcome",
    ("payload.py", ""): "run the handler: payload, call, outcome",
    ("retry.py", ""): "decide",
    ("job.py", "keep"): "decide",
    ("job.py", ""): "make the job's objects",
    ("taken.py", ""): "parse what was taken",
    ("wire.py", "data_received"): "read: replies from the socket, parsed by hiredis",
    ("wire.py", "send"): "write: pack commands, hand them to the socket",
    ("wire.py", ""): "pump: turns, lanes, wake-ups",
    ("broker.py", "_work_command"): "build the command",
    ("scripts.py", ""): "build the command",
    ("broker.py", ""): "pump: turns, lanes, wake-ups",
    ("link.py", ""): "pump: turns, lanes, wake-ups",
    ("pump.py", ""): "pump: turns, lanes, wake-ups",
    ("turn.py", ""): "build the command",
    ("attempts.py", "start"): "start: an aio_task, or the next job in it",
    ("consumer.py", "_start_all"): "start: an aio_task, or the next job in it",
    ("attempts.py", "_enter"): "start: an aio_task, or the next job in it",
    ("slot.py", ""): "start: an aio_task, or the next job in it",
    ("attempts.py", "active"): "make the job's objects",
    ("attempts.py", ""): "the try around the handler",
    ("reports.py", ""): "told what was settled",
    ("consumer.py", "absorb"): "told what was settled",
    ("consumer.py", ""): "record the outcome, next job",
    ("sentry.py", ""): "the try around the handler",
}


def step_of(frame: FrameType | None) -> str:
    """The innermost step that a stack is in."""
    while frame is not None:
        file, function = frame.f_code.co_filename.rsplit("/", 1)[-1], frame.f_code.co_name
        step = STEPS.get((file, function)) or STEPS.get((file, ""))
        if step is not None:
            return step
        frame = frame.f_back
    return "the event loop and its system calls"


async def measure(options: argparse.Namespace) -> Report:
    samples: collections.Counter[str] = collections.Counter()

    def sample(number: int, frame: FrameType | None) -> None:
        samples[step_of(frame)] += 1

    async with machine.server(options.server) as url:
        load = Load(url)
        jobs, cpu = 0, 0.0
        signal.signal(signal.SIGPROF, sample)
        server: collections.Counter[str] = collections.Counter()
        for _ in range(options.rounds):
            load.next()
            await load.fill(options.jobs)
            await load.redis.config_resetstat()
            samples_before = samples.copy()
            signal.setitimer(signal.ITIMER_PROF, EVERY, EVERY)
            drained = await _drain(load, options)
            signal.setitimer(signal.ITIMER_PROF, 0)
            jobs, cpu = jobs + options.jobs, cpu + drained * options.jobs
            for name, row in (await load.redis.info("commandstats")).items():
                server[name.removeprefix("cmdstat_")] += row["usec"]
            assert samples != samples_before, "the timer does not tick here"
        await load.close()
    report = Report(f"CPU a job, no-op drain at concurrency {options.concurrency}, server: {options.server}")
    report.add("client in all", "µs", [1e6 * cpu / jobs])
    total = sum(samples.values())
    for step, count in samples.most_common():
        report.add(f"  {step}", "µs", [1e6 * cpu / jobs * count / total], f"{count / total:.0%}")
    scripts = server.pop("evalsha")
    outside = {"info", "config|resetstat", "script|load", "hello", "client|setinfo", "select", "ping", "subscribe"}
    inside = {name: usec for name, usec in server.items() if name not in outside}
    report.add("server in scripts", "µs", [scripts / jobs])
    report.add("  Lua itself", "µs", [(scripts - sum(inside.values())) / jobs])
    for name, usec in sorted(inside.items(), key=lambda one: -one[1]):
        if usec / jobs >= 0.01:
            report.add(f"  {name}", "µs", [usec / jobs])
    return report


async def _drain(load: Load, options: argparse.Namespace) -> float:
    """Seconds of CPU a job."""
    left, done = options.jobs, asyncio.Event()

    async def handle(data: Any) -> None:
        nonlocal left
        if options.sleep:
            await asyncio.sleep(options.sleep)
        left -= 1
        if not left:
            done.set()

    jobs: int = options.jobs
    cpu = time.process_time()
    async with load.runtime(handle, concurrency=options.concurrency):
        await done.wait()
        return (time.process_time() - cpu) / jobs


def more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--concurrency", type=int, default=100)
    parser.add_argument("--sleep", type=float, default=0.0, help="seconds that each job waits")


if __name__ == "__main__":
    script(__doc__, measure, more=more, jobs=50_000, quick={"jobs": 3000, "rounds": 1})
