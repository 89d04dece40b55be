"""Real servers on free loopback ports: one alone, a primary with replicas under three Sentinels, a Cluster of six.

All of them from one binary, the embedded store's unless another is named, without persistence unless asked.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from asyncjobs.embedded.store import server_binary

BOUND = 30.0
_RANDOM = random.SystemRandom()  # several processes of a test run pick at the same time
_GIVEN: set[int] = set()
NODE_TIMEOUT_MS = 2000
# A replica is in step at once, and its first copy does not wait for others to join.
REPLICATION = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")


def free_port() -> int:
    """A port that nobody listens on and that nobody was given before; below those that outgoing connections take."""
    while True:
        port = _RANDOM.randrange(11_000, 32_000)
        if port in _GIVEN:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _GIVEN.add(port)
        return port


class Server:
    """One server on a Unix socket or a free loopback port."""

    def __init__(
        self, folder: Path, *, tcp: bool = False, appendonly: bool = False, binary: str | None = None, port: int = 0
    ) -> None:
        self.folder, self.tcp, self.appendonly = folder, tcp, appendonly
        self.binary = binary or os.environ.get("ASYNCJOBS_TEST_SERVER") or server_binary()
        self.port = port or (free_port() if tcp else 0)
        self.socket = folder / "test.sock"
        self.url = f"redis://127.0.0.1:{self.port}/0" if tcp else f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None
        self._command: list[str] = []

    def start(self, *more: str) -> Self:
        command = [self.binary, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), *more]
        command += ["--save", "", "--appendonly", "yes" if self.appendonly else "no", "--appendfsync", "always"]
        if not self.tcp:
            command += ["--unixsocket", str(self.socket)]
        return self._launch(command)

    def start_sentinel(self, config: Path) -> Self:
        return self._launch([self.binary, str(config), "--sentinel"])

    def again(self) -> Self:
        """Start once more as it was started, after a `kill`."""
        return self._launch(self._command)

    def _launch(self, command: list[str]) -> Self:
        self._command = command
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + BOUND
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not start: {(self.folder / 'server.log').read_text()[-2000:]}")
            time.sleep(0.005)
        return self

    def answers(self) -> bool:
        try:
            family = socket.AF_INET if self.tcp else socket.AF_UNIX
            with socket.socket(family) as probe:
                probe.settimeout(1)
                probe.connect(("127.0.0.1", self.port) if self.tcp else str(self.socket))
                probe.sendall(b"PING\r\n")
                return probe.recv(16).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    def client(self) -> Any:
        """For looking and for administration; it survives a restart of the server."""
        return Redis.from_url(self.url, retry=Retry(NoBackoff(), 2))

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def freeze(self, frozen: bool) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            self.process.wait()


async def _until(condition: Callable[[], Awaitable[Any]], what: str) -> None:
    deadline = time.monotonic() + BOUND
    while True:
        try:
            if await condition():
                return
        except (RedisError, OSError):
            pass
        if time.monotonic() > deadline:
            raise RuntimeError(f"never came true: {what}")
        await asyncio.sleep(0.02)


class _Fleet:
    """Several servers in one folder that goes with them."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="aj-"))
        self.servers: list[Server] = []
        self.clients: dict[int, Any] = {}

    def _server(self, name: str, **options: Any) -> Server:
        folder = self.folder / name
        folder.mkdir()
        server = Server(folder, tcp=True, **options)
        self.servers.append(server)
        self.clients[server.port] = server.client()
        return server

    async def stop(self) -> None:
        for client in self.clients.values():
            await client.aclose()
        for server in self.servers:
            server.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


class Sentinels(_Fleet):
    """A primary and its replicas, watched by three Sentinels; `data` are the servers that hold the data."""

    def __init__(
        self, *, replicas: int = 2, appendonly: bool = False, binary: str | None = None, careful: bool = False
    ) -> None:
        """`careful`: a primary that has lost its replicas, since they follow another by now, takes no writes."""
        super().__init__()
        self._more = ("--min-replicas-to-write", "1", "--min-replicas-max-lag", "1") if careful else ()
        options = {"appendonly": appendonly, "binary": binary}
        self.data = [self._server(f"data{n}", **options) for n in range(1 + replicas)]
        self.sentinels = [self._server(f"sentinel{n}", binary=binary) for n in range(3)]
        self.url = "redis+sentinel://" + ",".join(f"127.0.0.1:{one.port}" for one in self.sentinels) + "/mymaster/0"

    async def start(self) -> Self:
        primary, *replicas = self.data
        primary.start(*REPLICATION, *self._more)
        for replica in replicas:
            replica.start(*REPLICATION, *self._more, "--replicaof", "127.0.0.1", str(primary.port))
        for sentinel in self.sentinels:
            config = sentinel.folder / "sentinel.conf"
            config.write_text(
                f"port {sentinel.port}\nbind 127.0.0.1\ndir {sentinel.folder}\n"
                f"sentinel monitor mymaster 127.0.0.1 {primary.port} 2\n"
                "sentinel down-after-milliseconds mymaster 1500\nsentinel failover-timeout mymaster 6000\n"
            )
            sentinel.start_sentinel(config)

        async def in_step() -> bool:
            if (await self.clients[primary.port].info("replication"))["connected_slaves"] != len(replicas):
                return False
            for replica in replicas:
                if (await self.clients[replica.port].info("replication"))["master_link_status"] != "up":
                    return False
            for sentinel in self.sentinels:
                seen = await self.clients[sentinel.port].sentinel_master("mymaster")
                if seen["num-slaves"] != len(replicas) or seen["num-other-sentinels"] != 2:
                    return False
            return True

        await _until(in_step, "the Sentinels know each other and every replica")
        return self

    async def primary(self) -> Server:
        """Who the Sentinels say is the primary now."""
        client = self.clients[self.sentinels[0].port]
        _, port = await client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster")
        return next(server for server in self.data if server.port == int(port))

    async def failover(self) -> None:
        """Ask for a graceful one, until it is accepted."""

        async def accepted() -> bool:
            client = self.clients[self.sentinels[0].port]
            return bool(await client.execute_command("SENTINEL", "FAILOVER", "mymaster"))

        await _until(accepted, "the Sentinels fail over")


class Cluster(_Fleet):
    """Three primaries, and a replica each unless asked for none."""

    def __init__(self, *, replicas: bool = True, appendonly: bool = False, binary: str | None = None) -> None:
        super().__init__()
        self.data = [
            self._server(f"node{n}", appendonly=appendonly, binary=binary) for n in range(6 if replicas else 3)
        ]
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.data[:3])

    async def start(self) -> Self:
        buses = [free_port() for _ in self.data]
        for node, bus in zip(self.data, buses, strict=True):
            options = {
                "cluster-enabled": "yes",
                "cluster-port": bus,
                "cluster-node-timeout": NODE_TIMEOUT_MS,
                "cluster-replica-validity-factor": 0,
                "cluster-allow-replica-migration": "no",
            }
            node.start(*REPLICATION, *(str(word) for key, value in options.items() for word in (f"--{key}", value)))
        clients = [self.clients[node.port] for node in self.data]
        bounds = (0, 5461, 10923, 16384)
        for n, client in enumerate(clients[:3]):
            await client.execute_command("CLUSTER", "ADDSLOTSRANGE", bounds[n], bounds[n + 1] - 1)
        introduced = float("-inf")

        async def met() -> bool:
            nonlocal introduced
            if time.monotonic() - introduced > 2 * NODE_TIMEOUT_MS / 1000:  # an introduction may be lost
                introduced = time.monotonic()
                for node, bus in list(zip(self.data, buses, strict=True))[1:]:
                    await clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", node.port, bus)
            infos = [await client.execute_command("CLUSTER INFO") for client in clients]
            return all(one["cluster_known_nodes"] == str(len(clients)) for one in infos)

        await _until(met, "the nodes know each other")
        for n, client in enumerate(clients[3:]):
            name = await clients[n].execute_command("CLUSTER", "MYID")

            async def follows(client: Any = client, name: Any = name) -> bool:
                return bool(await client.execute_command("CLUSTER", "REPLICATE", name))

            await _until(follows, "a replica follows")

        async def ready() -> bool:
            for client in clients:
                if (await client.execute_command("CLUSTER INFO"))["cluster_state"] != "ok":
                    return False
            for client in clients[3:]:
                if (await client.info("replication")).get("master_link_status") != "up":
                    return False
            return True

        await _until(ready, "the Cluster is ready")
        return self

    async def slots(self) -> list[tuple[int, int, int]]:
        """(first slot, last slot, port of its primary), as the first node that answers sees it."""
        for node in self.data:
            if node.alive:
                try:
                    rows = await self.clients[node.port].execute_command("CLUSTER", "SLOTS")
                    return [(first, last, int(nodes[0][1])) for (first, last), nodes in _ranges(rows)]
                except (RedisError, OSError):
                    continue
        raise RuntimeError("no node answers")

    async def owner(self, key: str) -> tuple[int, Server]:
        """The slot of a key, and the primary that holds it."""
        for node in self.data:
            if node.alive:
                slot = int(await self.clients[node.port].execute_command("CLUSTER", "KEYSLOT", key))
                port = next(port for first, last, port in await self.slots() if first <= slot <= last)
                return slot, next(one for one in self.data if one.port == port)
        raise RuntimeError("no node answers")

    async def primaries(self) -> list[Server]:
        ports = {port for _, _, port in await self.slots()}
        return [node for node in self.data if node.port in ports]

    async def move_slot(self, slot: int, target: Server) -> None:
        """Move a slot and all its keys to another primary, as `redis-cli --cluster reshard` does."""
        port = next(port for first, last, port in await self.slots() if first <= slot <= last)
        source = self.clients[port]
        to = self.clients[target.port]
        source_name, target_name = [await one.execute_command("CLUSTER", "MYID") for one in (source, to)]
        await to.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", source_name)
        await source.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", target_name)
        while keys := await source.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 10):
            await source.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        for client in (to, source, *(self.clients[one.port] for one in await self.primaries())):
            await client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", target_name)


def _ranges(rows: Any) -> list[tuple[tuple[int, int], Any]]:
    """CLUSTER SLOTS as redis-py hands it out: parsed or not, by its version."""
    if isinstance(rows, dict):
        return [((first, last), [nodes["primary"]]) for (first, last), nodes in rows.items()]
    return [((row[0], row[1]), row[2:]) for row in rows]
