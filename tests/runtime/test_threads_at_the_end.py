"""No thread keeps the process from its end."""

from __future__ import annotations

import os
import signal
import textwrap
import time

import aiohttp
import pytest

from asyncjobs import (
    Runtime,
)
from tests.helpers import LOOPS, Process, eventually, free_port, ledger, write

on_both_loops = pytest.mark.parametrize("loop", LOOPS)


# The end of the process -------------------------------------------------------------------------------------------
SLEEPS = {
    "jobs/sleeps.py": """
        import asyncio, threading, time
        from concurrent.futures import ThreadPoolExecutor
        from asyncjobs import WorkerOptions
        worker_options = WorkerOptions(limiter=None, lease=1)
        def note(text):
            with open("ledger", "a") as file:
                print(text, file=file)
        {handle}
    """,
    "main.py": """
        import asyncio, sys
        from asyncjobs import Runtime
        from tests.helpers import eventually, ledger
        from pathlib import Path
        async def main():
            async with Runtime(jobs="jobs", grace=0.2) as runtime:
                await runtime.queue.add("sleeps", 1)
                await eventually(lambda: ledger(Path("ledger")))
            print("stopped")
        asyncio.run(main())
    """,
    "asgi.py": """
        from asyncjobs import Runtime
        from fastapi import FastAPI
        runtime = Runtime(jobs="jobs", grace=0.2)
        app = FastAPI(lifespan=runtime.lifespan)
        @app.get("/")
        async def add():
            await runtime.queue.add("sleeps", 1)
    """,
}
HANDLES = {
    "a sync handler": """
        def handle(data):
            note("began")
            time.sleep(60)
    """,
    "to_thread": """
        async def handle(data):
            note("began")
            await asyncio.to_thread(time.sleep, 60)
    """,
    "an executor of its own": """
        threads = ThreadPoolExecutor(1)
        def handle(data):
            threads.submit(time.sleep, 60)
            note("began")
            time.sleep(60)
    """,
    "a thread of its own": """
        def handle(data):
            threading.Thread(target=time.sleep, args=(60,)).start()
            note("began")
    """,
}


@pytest.fixture
def process(tmp_path):
    made = []

    def start(*args, module=True, handle="a sync handler"):
        indented = textwrap.indent(textwrap.dedent(HANDLES[handle]), " " * 8).strip()
        write(tmp_path, {name: text.replace("{handle}", indented) for name, text in SLEEPS.items()})
        env = {"PYTHONPATH": os.pathsep.join([os.getcwd(), str(tmp_path)])}
        made.append(Process(tmp_path, *args, module=module, env=env))
        return made[-1]

    yield start
    for one in made:
        one.kill()


@pytest.mark.parametrize("handle", HANDLES)
async def test_run_ends_whatever_runs_in_threads(process, tmp_path, handle):
    running = process("run", "--grace", "0.2", handle=handle)
    await running.says("ready")
    async with Runtime(jobs=tmp_path / "jobs", data_dir=tmp_path / ".asyncjobs", consume=False) as adder:
        await adder.queue.add("sleeps", 1)
        await eventually(lambda: ledger(tmp_path / "ledger"))
        running.signal(signal.SIGTERM)
        began = time.monotonic()
        assert await running.ended(15) == 0
    assert time.monotonic() - began < 9  # grace and five seconds, and three for the interpreter
    assert "stopped" in running.output


async def test_a_program_ends_although_a_sync_handler_does_not(process):
    program = process("main.py", module=False)
    assert await program.ended(15) == 0, program.output
    assert "stopped" in program.output


async def test_uvicorn_ends_although_a_sync_handler_does_not(process, tmp_path):
    port = free_port()
    serving = process("-m", "uvicorn", "asgi:app", "--port", str(port), module=False)
    await serving.says("Uvicorn running")
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/") as answer:
        assert answer.status == 200
    await eventually(lambda: ledger(tmp_path / "ledger"))
    serving.signal(signal.SIGTERM)
    await serving.ended(15)
    assert "Application shutdown complete" in serving.output


async def test_what_a_thread_ran_comes_back_when_its_process_has_ended(process, tmp_path):
    program = process("main.py", module=False)
    assert await program.ended(15) == 0, program.output
    running = process("run")
    await eventually(lambda: len(ledger(tmp_path / "ledger")) == 2, 10)
    assert running.popen.poll() is None
