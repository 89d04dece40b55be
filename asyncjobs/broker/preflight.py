"""The preflight: before work begins, ask the store for its version, its persistence and its permissions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from redis.exceptions import ResponseError

from asyncjobs.broker.connection import Connection, is_transient, refusal
from asyncjobs.broker.keys import Channels, ticks_key
from asyncjobs.broker.scripts import PERMIT
from asyncjobs.broker.wire import Command
from asyncjobs.errors import BrokerError, BrokerUnavailableError, ConfigError

OLDEST: Final = {"Redis": (7, 0), "Valkey": (7, 2)}


class Store(NamedTuple):
    """What a server says of itself; for a Cluster, its weakest node.

    Attributes:
        server: ``Valkey 9.1.2``.
        keeps: in words, which acknowledged writes outlive the server.
        durable: whether any write does.
        policy: the server's ``maxmemory-policy``.
        replicas: the number of connected replicas.
    """

    server: str
    keeps: str
    durable: bool
    policy: str
    replicas: int

    @property
    def evicts(self) -> bool:
        return self.policy not in ("noeviction", "")

    def __str__(self) -> str:
        replicas = "no replica" if not self.replicas else f"{self.replicas} replica{'s' * (self.replicas > 1)}"
        return f"{self.server}, {self.keeps}, {self.policy or 'eviction policy unknown'}, {replicas}"


async def examine(connection: Connection, prefix: str, channels: Channels) -> Store:
    """Ask each primary what it is, and which commands it permits.

    Raises:
        BrokerUnavailableError: a server does not answer, is not ready, or is no primary.
        ConfigError: a server is too old for the scripts.
        BrokerError: the user lacks a command. The message names it.
    """
    commands: list[Command] = [
        ("PING",),
        ("INFO", "server", "memory", "persistence", "replication"),
        ("CONFIG", "GET", "appendfsync", "save"),
    ]
    found: list[Store] = []
    for ping, info, config in await connection.everywhere(commands):
        if isinstance(ping, ResponseError):
            if is_transient(ping):
                raise BrokerUnavailableError(f"the store is not ready: {ping}")
            raise refusal(ping)
        if isinstance(info, ResponseError):
            raise BrokerError(f"the store does not let us ask what it is: {info}; grant +info")
        words = [] if isinstance(config, ResponseError) else [word.decode() for word in config]
        found.append(_store(_parsed(info), dict(zip(words[::2], words[1::2], strict=True))))
    for (denied,) in await connection.everywhere([PERMIT(ticks_key(prefix), channels.done)]):
        if isinstance(denied, ResponseError):
            raise BrokerUnavailableError(str(denied)) if is_transient(denied) else refusal(denied)
        if denied:
            names = ", ".join(name.decode() for name in denied)
            raise BrokerError(
                f"the store's user may not run {names} on our keys and channels, "
                f"which begin with '{{{prefix}' and '{prefix}:'; the README has the rule for it"
            )
    return min(found, key=lambda store: (not store.evicts, store.durable, store.replicas))


def _parsed(info: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in info.decode(errors="replace").splitlines())
    return {name: value for name, colon, value in lines if colon}


def _store(info: Mapping[str, str], config: Mapping[str, str]) -> Store:
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = info.get("valkey_version") or info.get("redis_version", "?")
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < OLDEST[name]:
        oldest = " or ".join(f"{one} {major}.{minor}" for one, (major, minor) in OLDEST.items())
        raise ConfigError(f"the store is {name} {version}; asyncjobs needs {oldest}, or newer")
    if info.get("role", "master") != "master":
        raise BrokerUnavailableError("the store is a replica and takes no writes; name its primary, or its Sentinels")
    keeps, durable = "nothing kept over a restart", False
    if info.get("aof_enabled") == "1":
        keeps, durable = f"append-only file (fsync {config.get('appendfsync', 'unknown')})", True
    elif config.get("save") or not config:
        keeps, durable = "snapshots at most, which lack what came after the last", True
    policy, replicas = info.get("maxmemory_policy", ""), int(info.get("connected_slaves", 0))
    return Store(f"{name} {version}", keeps, durable, policy, replicas)
