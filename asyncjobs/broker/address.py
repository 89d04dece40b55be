"""The Address: where the store is, and the options of connections to it.

redis-py re-sends by default after a lost reply, which duplicates writes. Here each option is explicit and redis-py's
retries are off. The broker decides for each call whether it may be sent again.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    ConnectionPool,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff

from asyncjobs.broker.url import EXPECTED, SECRET, parsed, place
from asyncjobs.errors import ConfigError

logger = logging.getLogger("asyncjobs.store")

REPLY_TIMEOUT: Final = 5.0  # a healthy server answers our scripts in milliseconds; a half-open link never does
SHORTEST_SECRET: Final = 4  # characters; a shorter text would be hidden in many harmless places
_DERIVED: Final = ("maint", "event_", "orig_", "oss_")  # options that redis-py adds to a client's options for itself


class Address:
    """Where the store is, by a URL or by a client of the app.

    Raises:
        ConfigError: the URL is invalid, or the object is no `redis.asyncio` client.
    """

    def __init__(self, target: Any, connect_timeout: float) -> None:
        self._options: dict[str, Any] = {
            "retry": Retry(NoBackoff(), 0),
            "retry_on_error": [],
            "socket_timeout": None,  # one bound around a whole pipeline, instead of one for each reply
            "socket_connect_timeout": min(connect_timeout, REPLY_TIMEOUT),
            "socket_keepalive": True,
            "decode_responses": False,
            "health_check_interval": 0,
            # RESP2, because scripts answer in arrays and strings alone, and no push message can come between replies.
            "protocol": 2,
        }
        self._sentinel: Sentinel | None = None
        self._secrets: list[str] = []
        self.seeds: list[tuple[str, int]] = []  # nodes of a Cluster to ask for its slots; empty for no Cluster
        if isinstance(target, str):
            self._pool, self.text = self._from_url(target)
        elif isinstance(target, Redis):
            self._pool, self.text = self._from_client(target)
        elif isinstance(target, RedisCluster):
            self._pool, self.text = self._from_cluster_client(target)
        else:
            raise ConfigError(
                f"redis={type(target).__name__}(…): expected a URL ({EXPECTED}), "
                "a redis.asyncio client, or None for the embedded store"
            )

    def _from_url(self, url: str) -> tuple[ConnectionPool, str]:
        made = parsed(url)
        self._hide(made.options, made.guard)
        if made.ignored:
            logger.warning("redis=%r: %s is decided by asyncjobs itself", made.shown, ", ".join(made.ignored))
        options = {**self._options, **made.options}
        if made.kind == "sentinel":
            guard = {**self._options, "socket_timeout": 2.0, **made.guard}
            self._sentinel = sentinel = Sentinel(made.hosts, sentinel_kwargs=guard, **options)  # type: ignore[no-untyped-call]
            pool: ConnectionPool = SentinelConnectionPool(made.service, sentinel, ssl=made.secure, **options)  # type: ignore[no-untyped-call]
            return pool, made.shown
        if made.kind == "unix":
            options.pop("socket_keepalive")
            return ConnectionPool(connection_class=UnixDomainSocketConnection, path=made.path, **options), made.shown
        if made.kind == "cluster":
            self.seeds = list(made.hosts)
        kind = SSLConnection if made.secure else Connection
        (host, port) = made.hosts[0]
        return ConnectionPool(connection_class=kind, host=host, port=port, **options), made.shown

    def _from_client(self, client: Redis) -> tuple[ConnectionPool, str]:
        """Make connections of our own to the client's server, because the client's options may retry or decode."""
        theirs = client.connection_pool
        self._hide(theirs.connection_kwargs)
        if isinstance(theirs, SentinelConnectionPool):
            self._hide(theirs.sentinel_manager.sentinel_kwargs)
            pool: ConnectionPool = SentinelConnectionPool(
                theirs.service_name,
                theirs.sentinel_manager,
                ssl=issubclass(theirs.connection_class, SSLConnection),
                **{**theirs.connection_kwargs, **self._options, "retry_on_timeout": False},
            )  # type: ignore[no-untyped-call]
            return pool, f"redis+sentinel://{theirs.service_name}"
        kwargs = {key: value for key, value in theirs.connection_kwargs.items() if not key.startswith(_DERIVED)}
        options = {**self._options, "retry_on_timeout": False}
        if "path" in kwargs:
            options.pop("socket_keepalive")
        pool = ConnectionPool(connection_class=theirs.connection_class, **{**kwargs, **options})
        where = kwargs.get("path") or place(kwargs.get("host", "localhost"), kwargs.get("port", 6379))
        return pool, f"{'unix' if 'path' in kwargs else 'redis'}://{where}/{kwargs.get('db', 0)}"

    def _from_cluster_client(self, client: RedisCluster) -> tuple[ConnectionPool, str]:
        self._hide(client.connection_kwargs)
        nodes = [*client.nodes_manager.startup_nodes.values(), *client.nodes_manager.nodes_cache.values()]
        self.seeds = list(dict.fromkeys((node.host, int(node.port)) for node in nodes))
        theirs = {key: value for key, value in client.connection_kwargs.items() if _identifies(key)}
        kwargs = {**theirs, **self._options}
        host, port = self.seeds[0]
        kind = client.connection_kwargs.get("connection_class", Connection)
        where = ",".join(place(host, port) for host, port in self.seeds)
        return ConnectionPool(connection_class=kind, host=host, port=port, **kwargs), f"redis+cluster://{where}"

    def _hide(self, *options: Mapping[str, Any]) -> None:
        """Remember the secrets in `options`, so that no text shows them."""
        for given in options:
            for name in SECRET:
                secret = given.get(name)
                secret = secret.decode(errors="replace") if isinstance(secret, bytes) else secret
                if isinstance(secret, str) and len(secret) >= SHORTEST_SECRET:
                    self._secrets += {secret, quote(secret, safe=""), repr(secret)[1:-1], ascii(secret)[1:-1]}
        self._secrets.sort(key=len, reverse=True)

    def hidden(self, text: object) -> str:
        """A text of redis-py or of a server, without the secrets of this address."""
        said = str(text).partition(", with args beginning with")[0]  # a server without AUTH repeats its arguments
        for secret in self._secrets:
            said = said.replace(secret, "***")
        return said

    def chained(self, error: BaseException) -> BaseException | None:
        """`error` as the cause of our own error; None if `error`, or a cause of it, holds a secret."""
        chain: list[BaseException] = [error]
        for one in chain:
            if self.hidden(one) != str(one) or self.hidden(repr(one)) != repr(one):
                return None
            chain += [more for more in (one.__cause__, one.__context__) if more is not None and more not in chain]
        return error

    @property
    def database(self) -> int:
        """The number of the database. A Cluster has only one."""
        return 0 if self.seeds else int(self._pool.connection_kwargs.get("db") or 0)

    async def close(self) -> None:
        """Close the connections to the Sentinels."""
        if self._sentinel is not None:
            for client in self._sentinel.sentinels:
                await client.aclose()

    def at(self, host: str, port: int) -> Address:
        """The address of one node of this Cluster."""
        node = copy.copy(self)
        kwargs = {**self._pool.connection_kwargs, "host": host, "port": port}
        node._pool = ConnectionPool(connection_class=self._pool.connection_class, **kwargs)
        node.seeds, node.text = [], f"redis://{place(host, port)}"
        return node

    def new_connection(self) -> AbstractConnection:
        """A new connection, not connected yet. For a Cluster it goes to one seed after the other."""
        if self.seeds:
            self.seeds.append(self.seeds.pop(0))
            return self.at(*self.seeds[0]).new_connection()
        connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        return connection


def _identifies(option: str) -> bool:
    """True if an option says who the client is, or how it knows the server. Other options are not taken over."""
    return option in ("username", "password", "credential_provider", "client_name") or option.startswith("ssl_")
