"""The embedded store in trouble: it comes back, it keeps what was acknowledged, and what it cannot do it says."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from asyncjobs import BrokerError, BrokerUnavailableError, ConfigError, Runtime
from asyncjobs.embedded.store import LONGEST_SOCKET_PATH, EmbeddedStore, server_binary
from tests.helpers import Process, eventually, write
from tests.runtime.test_embedded import keepers_of, new_runtime, processes_in

ADD_ONE = """
import asyncio, sys
from asyncjobs import Runtime
async def main():
    runtime = Runtime(data_dir=sys.argv[1], consume=False)
    runtime.job("echo", limiter=None)(lambda data: data)
    async with runtime:
        print("added", (await runtime.queue.add("echo", sys.argv[2], delay=600)).added)
asyncio.run(main())
"""


async def gone(folder: Path) -> None:
    await eventually(lambda: not processes_in(folder) and not keepers_of(folder), what="the store has ended")


async def filled(folder: Path, jobs: int = 20) -> list[str]:
    """Jobs that were acknowledged, in a store that has ended."""
    async with new_runtime(folder) as runtime:
        ids = [(await runtime.queue.add("echo", {"n": n}, delay=600)).id for n in range(jobs)]
    await gone(folder)
    return ids


async def kept(folder: Path, ids: list[str]) -> list[str]:
    """Which of them are there, in a store that works."""
    async with new_runtime(folder) as runtime:
        found = [one for one in ids if await runtime.queue.get_job("echo", one) is not None]
        assert await (await runtime.queue.add("echo", "works")).wait(10) == "works"
    await gone(folder)
    return found


def last_file(folder: Path) -> Path:
    return sorted((folder / "appendonlydir").glob("*.incr.aof"))[-1]


# It comes back -------------------------------------------------------------------------------------------
@pytest.fixture
def fickle(tmp_path, monkeypatch):
    """A server that ends at once while a file called `broken` is there."""
    binary, broken = tmp_path / "server", tmp_path / "broken"
    binary.write_text(f'#!/bin/sh\n[ -e "{broken}" ] && exit 7\nexec "{server_binary()}" "$@"\n')
    binary.chmod(0o755)
    monkeypatch.setenv("ASYNCJOBS_SERVER_BIN", str(binary))
    return broken


async def works(runtime: Runtime) -> bool:
    try:
        return await (await runtime.queue.add("echo", "again")).wait(2) == "again"
    except (BrokerError, TimeoutError):
        return False


@pytest.mark.parametrize("who", ["server", "keeper", "both"])
async def test_a_server_that_could_not_start_for_a_while_comes_back(tmp_path, fickle, who):
    """Longer than it takes to give up after a few tries, whoever was killed."""
    folder = tmp_path / "store"
    async with new_runtime(folder) as runtime:
        jobs = [await runtime.queue.add("echo", n, delay=600) for n in range(5)]
        fickle.touch()
        victims = list(processes_in(folder)) if who != "keeper" else []
        victims += keepers_of(folder) if who != "server" else []
        for pid in victims:
            os.kill(pid, signal.SIGKILL)

        def tried_often() -> bool:
            log = (folder / "valkey.log").read_text()
            return log.count("the server has ended (7); it is started again") > 4

        await eventually(tried_often)
        fickle.unlink()
        await eventually(lambda: works(runtime), 30)
        assert [(await runtime.queue.get_job("echo", job.id)).state for job in jobs] == ["delayed"] * 5
        assert runtime.health()["status"] == "ok"
    await gone(folder)


async def test_who_joins_while_it_cannot_start_is_told_why_and_later_can(tmp_path, fickle):
    folder = tmp_path / "store"
    async with new_runtime(folder) as runtime:
        fickle.touch()
        os.kill(next(iter(processes_in(folder))), signal.SIGKILL)
        await eventually(lambda: (folder / "keeper.failed").exists())
        with pytest.raises(BrokerUnavailableError, match=r"did not start: the server ended \d+ times in a row \(7\)"):
            await new_runtime(folder).start()
        fickle.unlink()
        async with new_runtime(folder) as second:
            assert await (await second.queue.add("echo", 1)).wait(10) == 1
        await eventually(lambda: works(runtime), 30)
    await gone(folder)


async def test_a_last_user_that_leaves_a_store_that_cannot_start_leaves_no_orphan(tmp_path, fickle):
    folder = tmp_path / "store"
    runtime = new_runtime(folder)
    async with runtime:
        fickle.touch()
        os.kill(next(iter(processes_in(folder))), signal.SIGKILL)
        await eventually(lambda: (folder / "keeper.failed").exists())
    await gone(folder)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB, where one may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], check=False,
                             capture_output=True)  # fmt: skip
    if mounted.returncode:
        pytest.skip("no file system may be mounted here")
    yield folder
    for _ in range(100):
        if subprocess.run(["umount", str(folder)], check=False, capture_output=True).returncode == 0:
            return
        time.sleep(0.05)


async def test_a_disk_that_was_full_and_is_free_again(small_disk, tmp_path):
    folder = small_disk / "store"
    async with new_runtime(folder) as runtime:
        ids = [(await runtime.queue.add("echo", n, delay=600)).id for n in range(20)]
        ballast = small_disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb") as file:
            while file.write(b"x" * 65536):
                file.flush()

        async def refuses() -> bool:
            """It goes on until an append fails; what it refuses or does not answer was not acknowledged."""
            try:
                for _ in range(20):
                    ids.append((await asyncio.wait_for(runtime.queue.add("echo", "y" * 4096, delay=600), 1)).id)
            except (BrokerError, TimeoutError):
                return True
            return False

        await eventually(refuses)
        began = time.monotonic()
        while time.monotonic() - began < 4:  # a pause, and twice that, from 0.1 s on: at least four lives
            await refuses()
        ballast.unlink()
        await eventually(lambda: works(runtime), 30)
        left = [one for one in ids if await runtime.queue.get_job("echo", one) is None]
        assert left == [], "what was acknowledged is there"
    await gone(folder)
    assert await kept(folder, ids) == ids


# A damaged append-only file ------------------------------------------------------------------------------
GARBAGE = {
    "zeros": b"\0" * 4096,
    "one zero": b"\0",
    "text": b"garbage that is no record\r\n" * 50,
    "random": bytes(range(256)) * 16,
    "half a record": b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$9\r\nab",
    "a record with a wrong length": b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\nabcdef\r\n",
    "a torn transaction": b"*1\r\n$5\r\nMULTI\r\n*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\n1\r\n*3\r\n$3\r\nSE",
    "a torn transaction before zeros": b"*1\r\n$5\r\nMULTI\r\n*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\n1\r\n" + b"\0" * 512,
    "a huge count": b"*99999999\r\n$3\r\nSET\r\n",
    "a dollar": b"$3\r\nSET\r\n",
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
async def test_whatever_stands_behind_the_last_record_costs_no_acknowledged_job(tmp_path, garbage):
    folder = tmp_path / "store"
    ids = await filled(folder)
    sound = last_file(folder).read_bytes()
    last_file(folder).write_bytes(sound + garbage)
    assert await kept(folder, ids) == ids
    copies = list(folder.glob("*.damaged-*"))
    log = (folder / "valkey.log").read_text()
    assert [one.read_bytes() for one in copies] == [sound + garbage] * len(copies)
    assert all(stat.S_IMODE(one.stat().st_mode) == 0o600 for one in copies)
    if copies:
        assert f"was damaged: {len(garbage)} bytes behind its last record were cut off" in log
    else:
        assert "Truncating the AOF" in log or "will be truncated" in log or "truncated" in log.lower(), "by itself"


@pytest.mark.parametrize("cut", [1, 2, 10, 60])
async def test_a_torn_tail_costs_its_last_transaction_alone(tmp_path, cut):
    folder = tmp_path / "store"
    ids = await filled(folder)
    torn = last_file(folder)
    torn.write_bytes(torn.read_bytes()[:-cut])
    assert await kept(folder, ids) == ids, "what came last was the leaving of the process"


@pytest.mark.parametrize("copies", ["fit", "do not fit"])
async def test_damage_in_the_middle_is_left_to_its_owner(tmp_path, copies):
    """Cutting there would lose acknowledged jobs; the error names the file and what to do."""
    folder = tmp_path / "store"
    ids = await filled(folder)
    path = last_file(folder)
    sound = path.read_bytes()
    middle = len(sound) // 2
    damaged = sound[:middle] + b"\0" * 64 + sound[middle + 64 :]
    path.write_bytes(damaged)
    with pytest.raises(BrokerUnavailableError, match=r"is damaged at byte .*repair it with valkey-check-aof") as caught:
        await new_runtime(folder).start()
    assert path.name in str(caught.value)
    await gone(folder)
    assert path.read_bytes() == damaged, "nothing was touched"
    path.write_bytes(sound)
    assert await kept(folder, ids) == ids


async def test_a_damaged_base_is_left_to_its_owner(tmp_path):
    folder = tmp_path / "store"
    await filled(folder)
    base = next((folder / "appendonlydir").glob("*.base.*"))
    base.write_bytes(b"nonsense" + base.read_bytes()[8:])
    before = last_file(folder).read_bytes()
    with pytest.raises(BrokerUnavailableError, match="did not start"):
        await new_runtime(folder).start()
    await gone(folder)
    assert last_file(folder).read_bytes() == before


# Where it is ---------------------------------------------------------------------------------------------
def deep(tmp_path: Path) -> Path:
    """A folder whose path is too long for a socket in it."""
    folder = tmp_path / ("x" * LONGEST_SOCKET_PATH)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def spellings(tmp_path: Path, long: bool) -> tuple[Path, list[str]]:
    base = deep(tmp_path) if long else tmp_path
    link = tmp_path / "link"
    link.symlink_to(base, target_is_directory=True)
    return base / "store", [str(base / "store"), str(link / "store"), f"{base}/./a/../store", f"{base}//store/"]


@pytest.mark.parametrize("long", [False, True], ids=["short", "long"])
@pytest.mark.parametrize("runtime_dir", ["same", "another", "none", "too long"])
async def test_every_process_of_a_folder_finds_its_server(tmp_path, monkeypatch, long, runtime_dir):
    """However it spells the path, and whatever its environment says."""
    folder, ways = spellings(tmp_path, long)
    (folder.parent / "a").mkdir()
    environment = {
        "same": {},
        "another": {"XDG_RUNTIME_DIR": str(tmp_path / "run"), "TMPDIR": str(tmp_path)},
        "none": {"XDG_RUNTIME_DIR": ""},
        "too long": {"XDG_RUNTIME_DIR": str(deep(tmp_path / "run"))},
    }
    (tmp_path / "run").mkdir(exist_ok=True)
    async with new_runtime(folder) as first:
        for n, way in enumerate(ways):
            other = Process(tmp_path, "-c", ADD_ONE, way, str(n), module=False, env=environment[runtime_dir])
            assert await other.ended() == 0, other.output
        assert (await first.queue.counts("echo"))["delayed"] == len(ways)
        assert len(processes_in(folder)) == len(keepers_of(folder)) == 1
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    await gone(folder)


@pytest.mark.parametrize("long", [False, True], ids=["short", "long"])
async def test_a_socket_that_was_cleared_away_comes_back(tmp_path, long):
    folder = (deep(tmp_path) if long else tmp_path) / "store"
    async with new_runtime(folder) as runtime:
        assert await works(runtime)
        path = Path((folder / "socket").read_text()) / "valkey.sock" if long else folder / "valkey.sock"
        await asyncio.sleep(2.5)  # it has been seen
        if long:
            shutil.rmtree(path.parent)
        else:
            path.unlink()
        async with new_runtime(folder) as second:
            assert await (await second.queue.add("echo", 1)).wait(10) == 1
        await eventually(lambda: works(runtime), 30)
    await gone(folder)


# What cannot be used -------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", [0o777, 0o755, 0o770, 0o2775])
async def test_an_open_folder_of_ours_becomes_private(tmp_path, mode):
    folder = tmp_path / "store"
    ids = await filled(folder, 3)
    folder.chmod(mode)
    for path in (folder / "users.lock", last_file(folder), folder / "valkey.log"):
        path.chmod(0o666)
    (folder / "appendonlydir").chmod(0o777)
    assert await kept(folder, ids) == ids
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    left = [path for path in folder.rglob("*") if path.name != ".gitignore" and path.stat().st_mode & 0o077]
    assert left == []


async def test_an_open_folder_of_somebody_else_is_refused(tmp_path):
    folder = tmp_path / "store"
    folder.mkdir(mode=0o755)
    folder.chmod(0o777)
    (folder / "theirs.txt").write_text("")
    with pytest.raises(ConfigError, match=r"open to other users \(mode 777\) and holds other files \('theirs.txt'\)"):
        await new_runtime(folder).start()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o777
    assert os.listdir(folder) == ["theirs.txt"]
    folder.chmod(0o700)
    async with new_runtime(folder) as runtime:
        assert await works(runtime)
    await gone(folder)


def unusable(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    (tmp_path / "file").write_text("")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "dangling").symlink_to(tmp_path / "file" / "x")
    lock = tmp_path / "locked" / "users.lock"
    lock.mkdir(parents=True)
    lock.parent.chmod(0o700)
    return {
        "a file": (tmp_path / "file", "name a folder"),
        "below a file": (tmp_path / "file" / "store", "name a folder"),
        "a name too long": (tmp_path / ("x" * 300), "shorter path"),
        "a path too long": (Path(str(tmp_path) + "/x" * 3000), "shorter path"),
        "a circle": (tmp_path / "circle" / "store", "links lead in a circle|name a folder"),
        "a link to nothing": (tmp_path / "dangling", "name"),
        "a folder for a lock": (tmp_path / "locked", "name another folder"),
        "proc": (Path("/proc/nothing"), "name another folder"),
    }  # fmt: skip


@pytest.mark.parametrize("what", ["a file", "below a file", "a name too long", "a path too long", "a circle",
                                  "a link to nothing", "a folder for a lock", "proc"])  # fmt: skip
async def test_a_folder_that_cannot_be_used_is_named_with_what_to_do(tmp_path, what):
    folder, advice = unusable(tmp_path)[what]
    with pytest.raises(ConfigError, match=f"(?s)data_dir=.*cannot be used: .*; .*({advice})") as caught:
        await new_runtime(folder).start()
    assert str(folder)[:60] in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="another user is played by a process without rights")
async def test_a_folder_without_rights_or_space_is_named_with_what_to_do(tmp_path):
    """As a user who owns nothing of it."""
    if os.getuid():
        pytest.skip("only root can become somebody else")
    code = """
import asyncio, os, sys
os.setgid(65534); os.setuid(65534)
from asyncjobs import Runtime, ConfigError
try:
    asyncio.run(Runtime(data_dir=sys.argv[1]).start())
except ConfigError as error:
    print("ConfigError", error)
"""
    base = Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    try:
        base.chmod(0o755)
        for mode, text in ((0o755, "belongs to another user"), (0o777, "belongs to another user"), (0o700, "right")):
            folder = base / f"{mode:o}"
            folder.mkdir()
            folder.chmod(mode)
            for path in (folder, folder / "below"):
                if mode == 0o777 and path.name == "below":
                    continue
                done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, cwd="/",
                                      env={**os.environ, "ASYNCJOBS_SERVER_BIN": "/bin/true",
                                           "PYTHONPATH": str(Path(__file__).parents[2])})  # fmt: skip
                if "ModuleNotFound" in done.stderr or "Permission denied" in done.stderr:
                    pytest.skip("another user cannot read this Python")
                assert done.stdout.startswith("ConfigError data_dir="), done
                assert text in done.stdout or "right" in done.stdout, done
    finally:
        shutil.rmtree(base)


@pytest.mark.parametrize("name", ["a\nb", "a\0b", "a\x7f\x01"])
def test_a_path_that_cannot_be_configured_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="control characters"):
        EmbeddedStore(str(tmp_path / "x") + name)
    with pytest.raises(ConfigError, match="no UTF-8"):
        EmbeddedStore(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))


@pytest.mark.parametrize("name", ["with space", 'quo"te', "back\\slash", "ünïcode", "per%20cent", "a#b?c", "tab"])
async def test_any_other_path_works(tmp_path, name):
    folder = tmp_path / name
    async with new_runtime(folder) as runtime:
        assert await works(runtime)
        assert len(processes_in(folder)) == 1
    await gone(folder)


# Without it ----------------------------------------------------------------------------------------------
def test_only_the_embedded_store_needs_a_unix(tmp_path):
    """As on Windows: neither these modules nor what is particular to a Unix in `os` and `signal`."""
    code = """
import sys, os
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
import asyncio  # its own Unix half needs fcntl for subprocesses alone
for name in ("register_at_fork", "getuid", "fork"):
    delattr(os, name)
import asyncjobs, asyncjobs.cli.run, asyncjobs.embedded.store
runtime = asyncjobs.Runtime(data_dir="store")
try:
    asyncio.run(runtime.start())
except asyncjobs.ConfigError as error:
    print(error)
"""
    code = code.replace("import asyncio  #", "\nimport asyncio  #")
    lines = code.splitlines()
    lines.insert(1, "import asyncio")
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, cwd=tmp_path)
    assert "needs Linux, macOS or another Unix; here set ASYNCJOBS_REDIS_URL" in done.stdout, done
    assert not (tmp_path / "store").exists()


async def test_a_relative_folder_is_that_of_the_project(tmp_path, monkeypatch):
    job = "async def handle(data): return data"
    files = {"project/src/app/jobs/echo.py": job, "bare/jobs/echo.py": job, "project/pyproject.toml": ""}
    write(tmp_path, {**files, "elsewhere/x": ""})
    for cwd in ("elsewhere", "project", "project/src"):
        monkeypatch.chdir(tmp_path / cwd)
        for data_dir in (".asyncjobs", "data/store"):
            async with Runtime(jobs=tmp_path / "project/src/app/jobs", data_dir=data_dir):
                assert (tmp_path / "project" / data_dir / "users.lock").exists()
            await gone(tmp_path / "project" / data_dir)
    monkeypatch.chdir(tmp_path / "elsewhere")
    async with Runtime(jobs=tmp_path / "bare/jobs", data_dir="store"):
        assert (tmp_path / "elsewhere/store/users.lock").exists()
    await gone(tmp_path / "elsewhere/store")
