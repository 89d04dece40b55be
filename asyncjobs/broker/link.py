"""How commands reach the server: where it is, one pipelined connection at a time, errors translated once.

redis-py re-sends by default after a lost reply, which duplicates writes. Here every option is explicit and
its retries are off; what is safe to send again is decided above, call by call.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit, urlunsplit

import hiredis
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    NoScriptError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from asyncjobs.broker.scripts import BY_SHA
from asyncjobs.errors import BrokerError, BrokerUnavailableError, ConfigError, NotRunningError

logger = logging.getLogger("asyncjobs")

Command: TypeAlias = tuple[str | bytes | int, ...]

REPLY_TIMEOUT: Final = 5.0  # a healthy server answers our scripts in milliseconds; a half-open link never does
SCHEMES: Final = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel")
TRANSIENT: Final = (
    "READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "MOVED", "ASK", "BUSY", "MISCONF",
    "NOREPLICAS", "UNBLOCKED",
)  # fmt: skip
_TRANSIENT_TYPES: Final = (
    "ReadOnlyError", "BusyLoadingError", "MasterDownError", "ClusterDownError", "TryAgainError", "MovedError",
    "AskError",
)  # fmt: skip


def is_transient(error: BaseException) -> bool:
    """Whether the server said "not now": nothing was applied, and the same call may succeed in a moment."""
    return type(error).__name__ in _TRANSIENT_TYPES or str(error).split(" ", 1)[0] in TRANSIENT


def refusal(error: BaseException) -> BrokerError:
    """An error reply as ours: the server answered, and nothing was written."""
    if type(error).__name__ == "OutOfMemoryError" or str(error).startswith("OOM"):
        return BrokerError(f"the store is out of memory and took nothing: {error}; raise its maxmemory or drain")
    return BrokerError(f"the store refused a command: {error}")


class Address:
    """Where the store is: a URL, or what a client of the app is connected to.

    Raises:
        ConfigError: a URL that cannot be one, or an object that is no `redis.asyncio` client.
    """

    def __init__(self, target: Any, connect_timeout: float) -> None:
        self._options: dict[str, Any] = {
            "retry": Retry(NoBackoff(), 0),
            "retry_on_timeout": False,
            "retry_on_error": [],
            "socket_timeout": None,  # one bound around a whole pipeline instead of one a reply
            "socket_connect_timeout": min(connect_timeout, REPLY_TIMEOUT),
            "socket_keepalive": True,
            "decode_responses": False,
            "health_check_interval": 0,
            # RESP2: scripts answer in arrays and strings alone, and no push message can come between them.
            "protocol": 2,
        }
        if isinstance(target, str):
            self._pool, self.text = self._from_url(target)
        elif isinstance(target, Redis):
            self._pool, self.text = self._from_client(target)
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
        hosts, path = parts.netloc.rpartition("@")[2], parts.path.strip("/").split("/")
        if not path[0]:
            raise ValueError("a Sentinel URL names the service: redis+sentinel://host:port,host:port/mymaster/0")
        nodes = []
        for host in hosts.split(","):
            name, _, port = host.rpartition(":") if ":" in host else (host, "", "26379")
            nodes.append((name or host, int(port)))
        options = dict(self._options, db=int(path[1]) if len(path) > 1 and path[1] else 0)
        options["ssl"] = parts.scheme.startswith("rediss")
        if parts.username:
            options["username"] = unquote(parts.username)
        if parts.password:
            options["password"] = unquote(parts.password)
        query = parse_qs(parts.query)
        guard = {key.removeprefix("sentinel_"): value[0] for key, value in query.items() if key.startswith("sentinel_")}
        sentinel = Sentinel(nodes, sentinel_kwargs={**self._options, "socket_timeout": 2.0, **guard}, **options)  # type: ignore[no-untyped-call]
        options.pop("ssl")
        secure = parts.scheme.startswith("rediss")
        return SentinelConnectionPool(path[0], sentinel, ssl=secure, **options)  # type: ignore[no-untyped-call]

    def _from_client(self, client: Redis) -> tuple[ConnectionPool, str]:
        """Our own connections to the same server: the client's options may retry, decode or time out."""
        theirs = client.connection_pool
        if isinstance(theirs, SentinelConnectionPool):
            pool: ConnectionPool = SentinelConnectionPool(
                theirs.service_name,
                theirs.sentinel_manager,
                **{**theirs.connection_kwargs, **self._options},
            )  # type: ignore[no-untyped-call]
            return pool, f"redis+sentinel://{theirs.service_name}"
        kwargs = {
            key: value
            for key, value in theirs.connection_kwargs.items()
            if not key.startswith(("maint", "event_", "orig_", "oss_"))
        }
        options = dict(self._options)
        if "path" in kwargs:
            options.pop("socket_keepalive")
        pool = ConnectionPool(connection_class=theirs.connection_class, **{**kwargs, **options})
        where = kwargs.get("path") or f"{kwargs.get('host', 'localhost')}:{kwargs.get('port', 6379)}"
        return pool, f"{'unix' if 'path' in kwargs else 'redis'}://{where}/{kwargs.get('db', 0)}"

    def new_connection(self) -> AbstractConnection:
        """A connection that is not connected yet."""
        connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        return connection

    def client(self) -> Redis:
        """A client for publish and subscribe."""
        return Redis(connection_pool=self._pool)


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


class Lane:
    """One connection with one pipeline in flight; it connects when first used and again after every loss.

    State: `_connection`, and what was submitted but not sent yet (`_waiting`), which the drain of the loop
    turn sends in one pipeline.
    """

    def __init__(self, address: Address, connect_timeout: float) -> None:
        self._address = address
        self._connect_timeout = connect_timeout
        self._connection: AbstractConnection | None = None
        self._shut = False
        self._waiting: list[tuple[Command, asyncio.Future[Any]]] = []
        self._drain: asyncio.Task[None] | None = None

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """Send `commands` in one pipeline and return their replies in order, an error reply as its exception.

        Raises:
            BrokerUnavailableError: no answer, so each command is wholly applied or not at all.
            BrokerError: the server wants other credentials.
            NotRunningError: shut.
        """
        if self._shut:
            raise _stopped()
        try:
            async with asyncio.timeout(REPLY_TIMEOUT + (0 if self._connection else self._connect_timeout)):
                connection = self._connection or await self._connect()
                replies = await _exchange(connection, commands)
                missing = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
                if missing:  # somebody flushed the scripts; those commands did nothing
                    await _load_scripts(connection)
                    again = await _exchange(connection, [commands[i] for i in missing])
                    for i, reply in zip(missing, again, strict=True):
                        replies[i] = reply
        except asyncio.CancelledError:
            await self.close()
            raise
        except (AuthenticationError, AuthorizationError) as error:
            await self.close()
            raise BrokerError(f"{self._address.text} refused the credentials: {error}") from error
        except (RedisConnectionError, RedisTimeoutError, TimeoutError, OSError, AttributeError) as error:
            # AttributeError: redis-py's, when another task closed the socket under a write.
            await self.close()
            if isinstance(error.__cause__, ssl.SSLCertVerificationError):
                raise BrokerError(f"{self._address.text}: {error}") from error
            reason = str(error) or "no answer in time"
            raise BrokerUnavailableError(f"{self._address.text} is out of reach: {reason}") from error
        if any(type(reply).__name__ == "ReadOnlyError" for reply in replies):
            await self.close()  # a demoted primary: the next connect finds the new one
        return replies

    async def call(self, command: Command) -> Any:
        """Send `command` together with whatever else is called in this turn of the loop.

        Raises:
            BrokerUnavailableError: no answer.
            ResponseError: the error reply.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._waiting.append((command, future))
        if self._drain is None:
            self._drain = loop.create_task(self._send_waiting())
        reply = await future
        if isinstance(reply, ResponseError):
            raise reply
        return reply

    async def _send_waiting(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:500], self._waiting[500:]
                batch = [(command, future) for command, future in batch if not future.done()]
                try:
                    replies = await self.run([command for command, _ in batch])
                except (BrokerError, NotRunningError) as error:
                    replies = [error] * len(batch)
                except asyncio.CancelledError:
                    self._waiting = batch + self._waiting
                    raise
                for (_, future), reply in zip(batch, replies, strict=True):
                    if future.done():
                        continue
                    if isinstance(reply, (BrokerError, NotRunningError)):
                        future.set_exception(reply)
                    else:
                        future.set_result(reply)
        finally:
            self._drain = None
            for _, future in self._waiting:
                if not future.done():
                    future.set_exception(_stopped())

    async def _connect(self) -> AbstractConnection:
        connection = self._address.new_connection()
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            await _load_scripts(connection)
        except BaseException:
            await _disconnect(connection)
            raise
        self._connection = connection
        return connection

    async def close(self) -> None:
        """Drop the connection; the next command makes a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await _disconnect(connection)

    async def shut(self) -> None:
        """Close for good: whoever still waits is told, and nothing connects again."""
        self._shut = True
        if self._drain is not None:
            self._drain.cancel()
            await asyncio.wait([self._drain])
        await self.close()


def _stopped() -> NotRunningError:
    return NotRunningError("the runtime that this belongs to has been stopped")


async def _load_scripts(connection: AbstractConnection) -> None:
    await _exchange(connection, [("SCRIPT", "LOAD", script.text) for script in BY_SHA.values()])


async def _exchange(connection: AbstractConnection, commands: Iterable[Command]) -> list[Any]:
    packed = [hiredis.pack_command(command) for command in commands]  # type: ignore[arg-type]
    await connection.send_packed_command(b"".join(packed), check_health=False)
    replies: list[Any] = []
    for _ in packed:
        try:
            replies.append(await connection.read_response(disable_decoding=True))
        except ResponseError as error:
            replies.append(error)
    return replies


async def _disconnect(connection: AbstractConnection) -> None:
    try:
        await connection.disconnect(nowait=True)
    except (RedisError, OSError, AttributeError) as error:
        logger.debug("closing a connection: %s", error)
