"""The keeper of an embedded store: it runs the server, and ends it when no process uses the folder any more.

The store starts the keeper as a script, ``python -I -S keeper.py BINARY FOLDER SOCKET``, so the keeper imports nothing
of asyncjobs. It daemonises, starts the server, restarts it if it dies, and waits for the exclusive lock on
``users.lock``. The kernel grants the lock when the last process has closed the file, even by being killed.
"""

import contextlib
import ctypes
import fcntl
import mmap
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

PR_SET_PDEATHSIG = 1
SHORT_LIFE = 1.0  # seconds; a server that ends sooner is started again after a pause
TRIES = 3  # short lives in a row after which the waiting processes learn why no server runs
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
LOOK_AT_SOCKET = 2.0  # seconds
LONGEST_LOG = 1 << 22  # bytes; the log before it is kept, and none before that
MOST_LOG = 1 << 16  # bytes of the log that are read


def quoted(path: str) -> str:
    """A path in the syntax of the server's configuration."""
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'


def configuration(folder: str, sock: str) -> bytes:
    text = "\n".join(
        (
            "port 0",
            f"unixsocket {quoted(sock)}",
            "unixsocketperm 700",
            f"dir {quoted(folder)}",
            f"logfile {quoted(os.path.join(folder, 'valkey.log'))}",
            "daemonize no",
            # Acknowledged writes survive even a kill -9 of the server or a power cut.
            "appendonly yes",
            "appendfsync always",
            'save ""',
            "maxmemory-policy noeviction",
            "",
        )
    )
    return os.fsencode(text)


def with_parent() -> None:
    """On Linux, let the server end if its keeper is killed. SIGTERM makes it close its append-only file."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Keeper:
    """Runs the server as long as the folder has users, however often it ends.

    State:
        process: the server, or None before the first.
        leaving: set when the last user has left: from then on no server is started.
        short_lives: how many servers in a row have ended within `SHORT_LIFE`.
    """

    def __init__(self, binary: str, folder: str, sock: str) -> None:
        self.binary, self.folder, self.sock = binary, folder, sock
        self.log = os.path.join(folder, "valkey.log")
        self.failed = os.path.join(folder, "keeper.failed")
        self.process: subprocess.Popen[bytes] | None = None
        self.leaving = threading.Event()
        self.starting = threading.Lock()
        self.short_lives = 0

    def run(self) -> None:
        alone = os.open(os.path.join(self.folder, "keeper.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held for as long as this process lives
        except BlockingIOError:
            return
        with contextlib.suppress(OSError):
            os.unlink(self.failed)
        users = os.open(os.path.join(self.folder, "users.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        threading.Thread(target=self.keep_running, daemon=True).start()
        fcntl.flock(users, fcntl.LOCK_EX)
        self.leaving.set()
        self.end_server()

    def keep_running(self) -> None:
        """Start the server, and start it again each time it ends: at once, or after a pause if its life was short.

        A full disk, or another reason that keeps the server from running, may pass, and processes wait for the server.
        """
        pause = 0.0
        while not self.leaving.wait(pause):
            began, size = time.monotonic(), self.log_size()
            try:
                code: object = self.serve()
            except Exception as error:  # the system has no process, no memory or no binary any more
                code = error
            if time.monotonic() - began >= SHORT_LIFE:
                pause, self.short_lives = 0.0, 0
            else:
                pause, self.short_lives = min(2 * pause or FIRST_PAUSE, LONGEST_PAUSE), self.short_lives + 1
            if self.leaving.is_set():
                return
            try:
                done = repaired(self.binary, self.folder, self.written_since(size))
            except Exception as error:  # no error may end this thread
                done = f"the append-only file cannot be repaired: {error}"
            self.say(done or f"the server has ended ({code}); it is started again in {pause:g} s")
            if self.short_lives >= TRIES:
                self.tell(done or f"the server ended {self.short_lives} times in a row ({code})")

    def serve(self) -> int | None:
        """Run the server until it ends. Returns its exit code."""
        os.makedirs(os.path.dirname(self.sock), mode=0o700, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.sock)
        if self.log_size() > LONGEST_LOG:
            os.replace(self.log, self.log + ".1")
        with self.starting:
            if self.leaving.is_set():
                return None
            self.process = subprocess.Popen(
                [self.binary, "-"], stdin=subprocess.PIPE, preexec_fn=with_parent, cwd=self.folder
            )
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(configuration(self.folder, self.sock))
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        listens = False
        while True:
            try:
                return self.process.wait(LOOK_AT_SOCKET)
            except subprocess.TimeoutExpired:
                there = os.path.lexists(self.sock)
            if listens and not there:  # the socket was deleted, so no process can reach the server any more
                self.say(f"{self.sock} is gone; the server is started again")
                self.process.terminate()
            listens = there

    def end_server(self) -> None:
        with self.starting:
            process = self.process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def log_size(self) -> int:
        try:
            return os.path.getsize(self.log)
        except OSError:
            return 0

    def written_since(self, size: int) -> bytes:
        """The part of the server's log behind its first `size` bytes."""
        try:
            with open(self.log, "rb") as log:
                log.seek(max(size, self.log_size() - MOST_LOG))
                return log.read()
        except OSError:
            return b""

    def say(self, text: str) -> None:
        """Write a line into the server's log."""
        with contextlib.suppress(OSError), open(self.log, "a", errors="replace") as log:
            log.write(f"{os.getpid()}:K {time.strftime('%d %b %Y %H:%M:%S')} # {text}\n")

    def tell(self, text: str) -> None:
        """Tell the processes that wait for the server why it does not run."""
        with contextlib.suppress(OSError), open(self.failed, "w", errors="replace") as mark:
            mark.write(f"{os.getpid()} {self.short_lives} {text}\n")


# A damaged append-only file ----------------------------------------------------------------------------------
DAMAGED = re.compile(rb"(Bad file format|Unrecoverable error) reading the append only file")
RECORD = re.compile(rb"\*\d{1,7}\r\n\$\d{1,10}\r\n")
LENGTH = re.compile(rb"([*$])(\d{1,10})\r\n")


def repaired(binary: str, folder: str, log: bytes) -> str:
    """Repair the damage of a power cut: zeros, or garbage, behind the last record of the append-only file.

    The server's own repair cuts the damage off. All records before it are kept, and a copy of the damaged file as well.
    If records follow behind the damage, the file stays as it is, because the cut would lose acknowledged records.

    Returns:
        The repair in words, or why there was none and what to do; '' if the log does not speak of damage.
    """
    if not DAMAGED.search(log):
        return ""
    aof = os.path.join(folder, "appendonlydir")
    name = last_file(os.path.join(aof, "appendonly.aof.manifest"))
    path = os.path.join(aof, name)
    report = checked(binary, path) if name else ""
    found = re.search(r"size=(\d+), ok_up_to=(\d+)", report)
    if found is None or name.encode() not in log or "is valid" in report:
        return f"the append-only file is damaged: {advice(aof)}"
    size, sound = int(found[1]), int(found[2])
    if records_behind(path, sound):
        return f"{path} is damaged at byte {sound}, and records follow behind the damage: {advice(aof)}"
    copy = os.path.join(folder, f"{name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
    try:
        shutil.copyfile(path, copy)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(copy)
        return f"{path} is damaged at byte {sound}, and there is no room for a copy of it ({error}): {advice(aof)}"
    if "Successfully truncated" not in checked(binary, path, "--fix"):
        return f"{path} is damaged at byte {sound}, and its repair failed: {advice(aof)}"
    return f"{path} was damaged: {size - sound} bytes behind its last record were cut off; as it was it is {copy}"


def advice(aof: str) -> str:
    return f"copy {aof}, then repair it with valkey-check-aof --fix, or restore it from a backup"


def last_file(manifest: str) -> str:
    """The file that was written last according to the manifest; '' for none."""
    try:
        with open(manifest, encoding="utf-8", errors="replace") as file:
            names = re.findall(r"^file (\S+) seq \d+ type i", file.read(), re.MULTILINE)
    except OSError:
        return ""
    return names[-1] if names and os.sep not in names[-1] else ""


def checked(binary: str, path: str, *options: str) -> str:
    """The output of the check tool for the file. The tool is the server's binary, called by another name."""
    done = subprocess.run(
        ["redis-check-aof", *options, path], executable=binary, input=b"y\n", capture_output=True, check=False,
        preexec_fn=with_parent,
    )  # fmt: skip
    return done.stdout.decode(errors="replace")


def records_behind(path: str, sound: int) -> bool:
    """True if records follow behind the damage. A transaction that the damage tears begins before it, at `sound`."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at = sound
        while (end := record_end(content, at)) > 0:
            at = end
        return RECORD.search(content, at + 1) is not None


def record_end(content: mmap.mmap, at: int) -> int:
    """The end of the record at `at`; 0: no whole record begins there."""
    head = LENGTH.match(content, at)
    if head is None or head[1] != b"*":
        return 0
    at = head.end()
    for _ in range(int(head[2])):
        part = LENGTH.match(content, at)
        if part is None or part[1] != b"$":
            return 0
        at = part.end() + int(part[2]) + 2
        if content[at - 2 : at] != b"\r\n":
            return 0
    return at


def main() -> None:
    if os.fork():  # the starter waits for this first process only
        os._exit(0)
    os.umask(0o077)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which the server would inherit
    Keeper(*sys.argv[1:4]).run()


if __name__ == "__main__":
    main()
