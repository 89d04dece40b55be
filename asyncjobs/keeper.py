"""The keeper of an embedded store: runs the server, and ends it when nobody uses the folder any more.

Started as a script of its own, ``python -I -S keeper.py BINARY FOLDER SOCKET``, so it imports nothing of
asyncjobs. It daemonises, starts the server, restarts it if it dies, and waits for the exclusive lock on
``users.lock``: the kernel grants that when the last user has closed the file, however it ended.
"""

import contextlib
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time

PR_SET_PDEATHSIG = 1
SHORT_LIFE = 1.0  # seconds; a server that dies sooner, thrice, is not started again


def quoted(path: str) -> str:
    """A path as the server's configuration wants it."""
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'


def configuration(folder: str, sock: str) -> str:
    return "\n".join(
        (
            "port 0",
            f"unixsocket {quoted(sock)}",
            "unixsocketperm 700",
            f"dir {quoted(folder)}",
            f"logfile {quoted(os.path.join(folder, 'valkey.log'))}",
            "daemonize no",
            # What was acknowledged survives even a kill -9 of the server or a power cut.
            "appendonly yes",
            "appendfsync always",
            'save ""',
            "maxmemory-policy noeviction",
            "",
        )
    )


def with_parent() -> None:
    """On Linux the server ends with its keeper, should that be killed; it closes its append-only file on SIGTERM."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Keeper:
    def __init__(self, binary: str, folder: str, sock: str) -> None:
        self.binary, self.folder, self.sock = binary, folder, sock
        self.failed = os.path.join(folder, "keeper.failed")
        self.process: subprocess.Popen[bytes] | None = None
        self.leaving = False

    def run(self) -> None:
        alone = os.open(os.path.join(self.folder, "keeper.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held for as long as this process lives
        except BlockingIOError:
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.failed)
        users = os.open(os.path.join(self.folder, "users.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        threading.Thread(target=self.keep_running, daemon=True).start()
        fcntl.flock(users, fcntl.LOCK_EX)
        self.leaving = True
        self.end_server()

    def keep_running(self) -> None:
        short_lives = 0
        while not self.leaving and short_lives < 3:
            began = time.monotonic()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.sock)
            self.process = subprocess.Popen(
                [self.binary, "-"], stdin=subprocess.PIPE, preexec_fn=with_parent, cwd=self.folder
            )
            assert self.process.stdin is not None
            self.process.stdin.write(configuration(self.folder, self.sock).encode())
            self.process.stdin.close()
            self.process.wait()
            short_lives = short_lives + 1 if time.monotonic() - began < SHORT_LIFE else 0
        if not self.leaving:
            with open(self.failed, "w") as mark:
                mark.write("the server ended three times in a row; see valkey.log\n")
            os._exit(1)

    def end_server(self) -> None:
        process = self.process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main() -> None:
    if os.fork():  # the starter waits for this one only
        os._exit(0)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which the server would inherit
    Keeper(*sys.argv[1:4]).run()


if __name__ == "__main__":
    main()
