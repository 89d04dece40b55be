"""What a process costs that has nothing to do: commands a second, CPU, connections, with a hundred job names.

python -m benchmarks.idle [--names N] [--seconds N] [--server …] [--quick] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import time

from benchmarks import machine
from benchmarks.load import Load
from benchmarks.report import Report, script

SETTLE = 9.0  # seconds: the first beat has made its connection, and has sent the scripts along it


async def measure(options: argparse.Namespace) -> Report:
    async with machine.server(options.server) as url:
        load = Load(url)
        load.next()
        names = [f"job-{i}" for i in range(options.names)]
        before = len(await load.redis.client_list())
        async with load.runtime(names=names) as runtime:
            await runtime.wait_idle(60)
            await asyncio.sleep(SETTLE)
            connections = len(await load.redis.client_list()) - before
            commands, cpu, began = await _commands(load), time.process_time(), time.perf_counter()
            await asyncio.sleep(options.seconds)
            took = time.perf_counter() - began
            used = (time.process_time() - cpu) / took
            rate = (await _commands(load) - commands - 1) / took
        await load.close()
    report = Report(f"idle, {options.names} job names, {options.seconds} s, server: {options.server}")
    report.add("commands, those within scripts counted", "1/s", [rate])
    report.add("CPU", "% of a core", [100 * used])
    report.add("connections", "", [connections])
    # Three beats of fourteen commands may fall into sixteen seconds, and what is looked for in each sweep interval.
    report.claim("commands a second while idle", rate, 4, at_least=False)
    report.claim("% of a core while idle", 100 * used, 0.5, at_least=False)
    report.claim("connections", connections, 8, at_least=False)
    return report


async def _commands(load: Load) -> int:
    return int((await load.redis.info("stats"))["total_commands_processed"])


def more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--names", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60.0)


if __name__ == "__main__":
    script(__doc__, measure, more=more, quick={"seconds": 5.0})
