"""Where the store is, and with which options it is reached.

redis-py re-sends by default after a lost reply, which duplicates writes. Here every option is explicit and its
retries are off; what is safe to send again is decided above, call by call.
"""

from __future__ import annotations

import copy
from typing import Any, Final
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit, urlunsplit

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.connection import AbstractConnection, Connection, ConnectionPool, SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from asyncjobs.errors import ConfigError

REPLY_TIMEOUT: Final = 5.0  # a healthy server answers our scripts in milliseconds; a half-open link never does
_DERIVED: Final = ("maint", "event_", "orig_", "oss_")  # what redis-py adds to a client's options for itself
SCHEMES: Final = (
    "redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster",
)  # fmt: skip


class Address:
    """Where the store is: a URL, or what a client of the app is connected to.

    Raises:
        ConfigError: a URL that cannot be one, or an object that is no `redis.asyncio` client.
    """

    def __init__(self, target: Any, connect_timeout: float) -> None:
        self._options: dict[str, Any] = {
            "retry": Retry(NoBackoff(), 0),
            "retry_on_error": [],
            "socket_timeout": None,  # one bound around a whole pipeline instead of one a reply
            "socket_connect_timeout": min(connect_timeout, REPLY_TIMEOUT),
            "socket_keepalive": True,
            "decode_responses": False,
            "health_check_interval": 0,
            # RESP2: scripts answer in arrays and strings alone, and no push message can come between them.
            "protocol": 2,
        }
        self._sentinel: Sentinel | None = None
        self.seeds: list[tuple[str, int]] = []  # nodes of a Cluster to ask for its slots; empty for no Cluster
        if isinstance(target, str):
            self._pool, self.text = self._from_url(target)
        elif isinstance(target, Redis):
            self._pool, self.text = self._from_client(target)
        elif isinstance(target, RedisCluster):
            self._pool, self.text = self._from_cluster_client(target)
        else:
            raise ConfigError(
                f"redis={target!r}: expected a URL ({', '.join(one + '://' for one in SCHEMES)}), "
                "a redis.asyncio client, or None for the embedded store"
            )

    def _from_url(self, url: str) -> tuple[ConnectionPool, str]:
        shown = without_password(url)
        scheme = url.partition("://")[0]
        if scheme not in SCHEMES:
            raise ConfigError(f"redis={shown!r}: unknown scheme, expected {', '.join(one + '://' for one in SCHEMES)}")
        try:
            if scheme.endswith("+sentinel"):
                return self._sentinel_pool(url), shown
            if scheme.endswith("+cluster"):
                return self._cluster_pool(url), shown
            options = dict(self._options)
            if scheme == "unix":
                options.pop("socket_keepalive")
            elif (path := urlsplit(url).path.strip("/")) and not path.isdigit():
                raise ValueError(f"the database is a number, not {path!r}")  # redis-py would take database 0
            return ConnectionPool.from_url(url, **options), shown
        except (ValueError, TypeError, RedisError) as error:
            raise ConfigError(f"redis={shown!r}: {error}") from error

    def _sentinel_pool(self, url: str) -> ConnectionPool:
        """``redis+sentinel://user:password@host:port,host:port/service/db``"""
        parts = urlsplit(url)
        path = parts.path.strip("/").split("/")
        if not path[0]:
            raise ValueError("a Sentinel URL names the service: redis+sentinel://host:port,host:port/mymaster/0")
        secure = parts.scheme.startswith("rediss")
        options = {**self._options, **_credentials(parts), "db": int(path[1]) if len(path) > 1 and path[1] else 0}
        query = parse_qs(parts.query)
        guard = {key.removeprefix("sentinel_"): value[0] for key, value in query.items() if key.startswith("sentinel_")}
        self._sentinel = sentinel = Sentinel(  # type: ignore[no-untyped-call]
            _hosts(parts, 26379), sentinel_kwargs={**self._options, "socket_timeout": 2.0, **guard}, **options
        )
        return SentinelConnectionPool(path[0], sentinel, ssl=secure, **options)  # type: ignore[no-untyped-call]

    def _cluster_pool(self, url: str) -> ConnectionPool:
        """``redis+cluster://user:password@host:port,host:port``: some nodes of it; they know the others."""
        parts = urlsplit(url)
        if parts.path.strip("/"):
            raise ValueError("a Cluster has no numbered databases")
        self.seeds = _hosts(parts, 6379)
        options = {**self._options, **_credentials(parts)}
        kind = SSLConnection if parts.scheme.startswith("rediss") else Connection
        (host, port) = self.seeds[0]
        return ConnectionPool(connection_class=kind, host=host, port=port, **options)

    def _from_client(self, client: Redis) -> tuple[ConnectionPool, str]:
        """Our own connections to the same server: the client's options may retry, decode or time out."""
        theirs = client.connection_pool
        if isinstance(theirs, SentinelConnectionPool):
            pool: ConnectionPool = SentinelConnectionPool(
                theirs.service_name,
                theirs.sentinel_manager,
                **{**theirs.connection_kwargs, **self._options, "retry_on_timeout": False},
            )  # type: ignore[no-untyped-call]
            return pool, f"redis+sentinel://{theirs.service_name}"
        kwargs = {key: value for key, value in theirs.connection_kwargs.items() if not key.startswith(_DERIVED)}
        options = {**self._options, "retry_on_timeout": False}
        if "path" in kwargs:
            options.pop("socket_keepalive")
        pool = ConnectionPool(connection_class=theirs.connection_class, **{**kwargs, **options})
        where = kwargs.get("path") or f"{kwargs.get('host', 'localhost')}:{kwargs.get('port', 6379)}"
        return pool, f"{'unix' if 'path' in kwargs else 'redis'}://{where}/{kwargs.get('db', 0)}"

    def _from_cluster_client(self, client: RedisCluster) -> tuple[ConnectionPool, str]:
        nodes = [*client.nodes_manager.startup_nodes.values(), *client.nodes_manager.nodes_cache.values()]
        self.seeds = list(dict.fromkeys((node.host, int(node.port)) for node in nodes))
        theirs = {key: value for key, value in client.connection_kwargs.items() if _identifies(key)}
        kwargs = {**theirs, **self._options}
        host, port = self.seeds[0]
        kind = client.connection_kwargs.get("connection_class", Connection)
        where = ",".join(f"{host}:{port}" for host, port in self.seeds)
        return ConnectionPool(connection_class=kind, host=host, port=port, **kwargs), f"redis+cluster://{where}"

    @property
    def database(self) -> int:
        """The number of the database; a Cluster has one alone."""
        return 0 if self.seeds else int(self._pool.connection_kwargs.get("db") or 0)

    async def close(self) -> None:
        """Leave the Sentinels that were asked."""
        if self._sentinel is not None:
            for client in self._sentinel.sentinels:
                await client.aclose()

    def at(self, host: str, port: int) -> Address:
        """The same store, reached at this one node of its Cluster."""
        node = copy.copy(self)
        kwargs = {**self._pool.connection_kwargs, "host": host, "port": port}
        node._pool = ConnectionPool(connection_class=self._pool.connection_class, **kwargs)
        node.seeds, node.text = [], f"redis://{host}:{port}"
        return node

    def new_connection(self) -> AbstractConnection:
        """A connection that is not connected yet; of a Cluster to one seed after the other."""
        if self.seeds:
            self.seeds.append(self.seeds.pop(0))
            return self.at(*self.seeds[0]).new_connection()
        connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        return connection


def _identifies(option: str) -> bool:
    """Whether an option says who we are and how we are to know the server; the rest is the client's own business."""
    return option in ("username", "password", "credential_provider", "client_name") or option.startswith("ssl_")


def without_password(url: str) -> str:
    """`url` as it may be printed and logged."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url.partition("://")[0] + "://…"
    userinfo, at, hosts = parts.netloc.rpartition("@")
    user = userinfo.partition(":")[0] + (":***" if ":" in userinfo else "")
    query = "" if "password" in parts.query else parts.query
    return urlunsplit((parts.scheme, user + at + hosts, parts.path, query, ""))


def _hosts(parts: SplitResult, default_port: int) -> list[tuple[str, int]]:
    """``host:port,host`` behind the credentials of a URL."""
    hosts = []
    for one in parts.netloc.rpartition("@")[2].split(","):
        host, colon, port = one.rpartition(":")
        hosts.append((host, int(port)) if colon else (one, default_port))
    return hosts


def _credentials(parts: SplitResult) -> dict[str, str]:
    userinfo = parts.netloc.rpartition("@")[0]
    user, _, password = userinfo.partition(":")
    given = {"username": unquote(user), "password": unquote(password)}
    return {key: value for key, value in given.items() if value}
