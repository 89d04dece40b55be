"""What the tests share: servers, waiting on states and events with a bound, projects on disk, processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import uvloop

from asyncjobs import Event, Runtime
from asyncjobs.demo.show import most_in_window
from benchmarks.servers import Server, free_port

BOUND = 20.0
LOOPS = ("asyncio", "uvloop")
__all__ = [
    "BOUND", "LOOPS", "Process", "Server", "Watcher", "app", "command_line", "eventually", "free_port", "ledger",
    "most_in_window", "run_on", "write",
]  # fmt: skip


def run_on(loop: str, scenario: Coroutine[Any, Any, Any]) -> Any:
    """Run `scenario` on asyncio's own loop or on uvloop; whatever it has left running is cancelled."""
    factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(scenario)


async def eventually(condition: Callable[[], Any], timeout: float = BOUND, what: str = "") -> Any:
    """Wait until `condition()`, sync or async, is true; its value. Fails after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"never came true: {what or condition}"
        await asyncio.sleep(0.005)


class Watcher:
    """Every event of a runtime, in order; `await watcher("job.completed", job_id=…)` waits for one."""

    def __init__(self, runtime: Runtime) -> None:
        self.events: list[Event] = []
        runtime.on("*", self.events.append)

    def all(self, event_type: str, **fields: Any) -> list[Event]:
        return [
            event
            for event in self.events
            if event.type == event_type and all(getattr(event, key) == value for key, value in fields.items())
        ]

    async def __call__(self, event_type: str, *, count: int = 1, timeout: float = BOUND, **fields: Any) -> list[Event]:
        await eventually(
            lambda: len(self.all(event_type, **fields)) >= count, timeout, f"{count} × {event_type} {fields}"
        )
        return self.all(event_type, **fields)


def write(folder: Path, files: dict[str, str]) -> Path:
    """Files under `folder` from indented texts."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return folder


class Process:
    """``python -m asyncjobs …`` (or any python) in a folder, its output in a file; ended with the test."""

    def __init__(self, folder: Path, *args: str, module: bool = True, env: dict[str, str] | None = None) -> None:
        self.log = folder / f"process-{time.monotonic_ns()}.log"
        command = [sys.executable, *(("-m", "asyncjobs") if module else ()), *args]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}
        environment.pop("ASYNCJOBS_REDIS_URL", None)
        environment.update(env or {})
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(
                command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    async def says(self, text: str, timeout: float = BOUND) -> None:
        await eventually(
            lambda: text in self.output or self.popen.poll() is not None, timeout, f"{text!r} in {self.output}"
        )
        assert text in self.output, self.output

    async def ended(self, timeout: float = BOUND) -> int:
        await eventually(lambda: self.popen.poll() is not None, timeout, f"the end of {self.popen.args}: {self.output}")
        return int(self.popen.returncode)

    def signal(self, number: int) -> None:
        os.kill(self.popen.pid, number)

    def kill(self) -> None:
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGKILL)
        self.popen.wait()


def app(server: Any, prefix: str, **options: Any) -> tuple[Runtime, Any]:
    """A runtime with a few jobs that others use."""
    runtime = Runtime(server.url, prefix=prefix, **options)

    @runtime.job("echo", limiter=None)
    async def echo(data: Any) -> Any:
        return data

    runtime.job("held", limiter=None)(lambda data: data)
    runtime.job("grouped", group=True)(lambda data: data)
    return runtime, echo


def ledger(path: Path) -> list[str]:
    """The lines that handlers of other processes appended to `path`; one that is being written is none yet."""
    return path.read_text().split("\n")[:-1] if path.exists() else []


def command_line(folder: Path, *args: str, env: dict[str, str] | None = None, timeout: float = 60) -> Any:
    """Run ``python -m asyncjobs args`` to its end."""
    environment = {**os.environ, **(env or {})}
    if not env or "ASYNCJOBS_REDIS_URL" not in env:
        environment.pop("ASYNCJOBS_REDIS_URL", None)
    return subprocess.run(
        [sys.executable, "-m", "asyncjobs", *args],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
