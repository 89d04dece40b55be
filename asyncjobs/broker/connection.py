"""The Connection: commands reach a server by one pipelined connection, and errors are translated once."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Iterable, Sequence
from typing import Any, Final

from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    InvalidResponse,
    NoScriptError,
    RedisError,
    ResponseError,
)

from asyncjobs.broker.address import REPLY_TIMEOUT, Address
from asyncjobs.broker.reach import Reach
from asyncjobs.broker.scripts import BY_SHA, USUAL, Script
from asyncjobs.broker.wire import Command, Wire
from asyncjobs.errors import BrokerError, BrokerUnavailableError, NotRunningError

logger = logging.getLogger("asyncjobs.store")

TRANSIENT: Final = (
    "READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "MOVED", "ASK", "BUSY", "MISCONF",
    "NOREPLICAS", "UNBLOCKED",
)  # fmt: skip
# redis-py raises AttributeError if another task closed the socket under a write, uvloop raises RuntimeError, and an
# invalid host name raises UnicodeError.
LOST: Final = (RedisError, TimeoutError, OSError, AttributeError, RuntimeError, UnicodeError)
IMPATIENT_MS: Final = 100
CALLS_A_PIPELINE: Final = 500
BYTES_A_PIPELINE: Final = 2 * 1024 * 1024  # bytes that are sent, or asked for, together
ELSEWHERE: Final = (
    "the job, or the queue, belongs to a runtime in another event loop: call it there, with "
    "asyncio.run_coroutine_threadsafe, or read the job with a runtime of this loop"
)
_TRANSIENT_TYPES: Final = (
    "ReadOnlyError", "BusyLoadingError", "MasterDownError", "ClusterDownError", "TryAgainError", "MovedError",
    "AskError",
)  # fmt: skip


def is_transient(error: BaseException) -> bool:
    """True if the server said "not now". The same call may succeed in a moment."""
    if type(error).__name__ in _TRANSIENT_TYPES or str(error).split(" ", 1)[0] in TRANSIENT:
        return True
    return "non local key" in str(error)  # a script met a job of a slot that is on its way to another node


def refusal(error: BaseException) -> BrokerError:
    """Our own error for an error reply: the server answered, and wrote nothing."""
    if type(error).__name__ == "OutOfMemoryError" or str(error).startswith("OOM"):
        return BrokerError(f"the store is out of memory and took nothing: {error}; raise its maxmemory or drain")
    if type(error).__name__ == "NoPermissionError" or str(error).startswith("NOPERM"):
        return BrokerError(f"the store refused a command: {error}; the README has the rule for this user")
    return BrokerError(f"the store refused a command: {error}")


class Connection:
    """One connection with one pipeline in flight. It connects when it is first used, and again after each loss.

    State: `_wire`, the connection; `_waiting`, the calls that were not sent yet, which the drain of the loop's turn
    sends in one pipeline; `reach`, whether the server answers; `_balking`, whether the server does more than to answer
    "not now" to all commands.
    """

    def __init__(self, address: Address, connect_timeout: float, reach: Reach | None = None) -> None:
        self._address = address
        self._connect_timeout = connect_timeout
        self.reach = reach or Reach(connect_timeout)
        self._balking = Reach(connect_timeout)
        self._wire: Wire | None = None
        self._shut = False
        self._replicas_reached = True
        self._waiting: list[tuple[Command, asyncio.Future[Any]]] = []
        self._drain: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(self, commands: Sequence[Command], needs: Sequence[int] = ()) -> list[Any]:
        """Send `commands` in one pipeline and return their replies in order, an error reply as its exception.

        Args:
            needs: for each command the index of an earlier one that must be applied before it, or -1. One connection
                keeps the order, but sends both commands even if the first is refused. In that case the script of the
                second looks for itself.
        Raises:
            BrokerUnavailableError: no answer, so each command is wholly applied or not at all.
            BrokerError: the server wants other credentials.
            NotRunningError: the connection was shut.
        """
        self._check_shut()
        if not commands:
            return []
        wire = self._wire
        is_new = wire is None or wire.lost
        try:
            if wire is None or wire.lost:
                async with asyncio.timeout(REPLY_TIMEOUT + self._connect_timeout):
                    wire = await self._connect()
            replies = await wire.exchange(commands, REPLY_TIMEOUT)
            missing = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
            if missing:  # rare scripts, or the scripts were flushed; those commands did nothing
                await _load_scripts(wire, {BY_SHA[str(commands[i][1])] for i in missing})
                again = await wire.exchange([commands[i] for i in missing], REPLY_TIMEOUT)
                for i, reply in zip(missing, again, strict=True):
                    replies[i] = reply
        except asyncio.CancelledError:
            await self.close()
            raise
        except LOST as error:
            cause = error
        else:
            if any(type(reply).__name__ == "ReadOnlyError" for reply in replies):
                await self.close()  # the primary was demoted, and the next connect finds the new one
            self.reach.answered()
            if isinstance(replies[0], ResponseError) and all(_says_not_now(reply) for reply in replies):
                self._balking.failed()
            else:
                self._balking.answered()
            return replies
        await self.close()
        failure = self._failure(cause, is_new)
        if isinstance(failure, BrokerUnavailableError):
            self.reach.failed()
        else:
            self.reach.answered()
        try:  # out here, so that nothing is chained but what may be seen
            raise failure from self._address.chained(cause)
        finally:
            del cause, failure  # their tracebacks hold this frame

    def _failure(self, error: BaseException, is_new: bool) -> BrokerError:
        """The error for a missing answer. A failure of a new connection that would come again is a `BrokerError`."""
        text, reason = self._address.text, self._address.hidden(error) or "no answer in time"
        if isinstance(error, (AuthenticationError, AuthorizationError)):
            return BrokerError(f"{text} refused the credentials: {reason}")
        if is_new and _about_tls(error):
            return BrokerError(f"{text}: TLS failed, and will again: {reason}")
        if is_new and (isinstance(error, InvalidResponse) or "Protocol error" in reason):
            return BrokerError(f"{text}: what answers there is no Redis ({reason}); is it the port of another service?")
        if is_new and isinstance(error, UnicodeError):
            return BrokerError(f"{text}: its host cannot be looked up ({reason}); correct it")
        if isinstance(error, ResponseError) and not is_transient(error):
            return BrokerError(f"{text} refused the connection: {reason}; {_remedy(reason)}")
        return BrokerUnavailableError(f"{text} is out of reach: {reason}")

    def known_down(self, *keys: str) -> bool:
        """True if a call about `keys` would probably wait in vain. Then it is sent once, without a wait."""
        return self.reach.known_down or self._balking.known_down

    def still(self) -> float:
        """Seconds since a byte of the pipeline in flight arrived or left; infinite if none is in flight."""
        wire = self._wire
        return wire.still() if wire is not None and wire.busy else float("inf")

    async def run_and_wait(
        self, commands: Sequence[Command], needs: Sequence[int], replicas: int, wait_ms: int
    ) -> tuple[list[Any], list[bool]]:
        """`run`, then wait until `replicas` replicas have the writes. Also returns whether each write is confirmed."""
        if not commands:
            return [], []
        # If the last wait found no replica, the next one must not hold up all callers for the whole time again.
        patience = wait_ms if self._replicas_reached else min(wait_ms, IMPATIENT_MS)
        *replies, reached = await self.run([*commands, ("WAIT", replicas, patience)], needs)
        self._replicas_reached = isinstance(reached, int) and reached >= replicas
        return replies, [self._replicas_reached] * len(replies)

    async def everywhere(self, commands: Sequence[Command]) -> list[list[Any]]:
        """`run` commands without keys on each primary. Returns one list of replies for each."""
        return [await self.run(commands)]

    async def key_of_each(self, pattern: str) -> list[str]:
        """One key for each primary, that it holds: `pattern` with a number."""
        return [pattern % 0]

    def _check_shut(self) -> None:
        if self._shut:
            raise stopped()

    def check_loop(self) -> asyncio.AbstractEventLoop:
        """The running loop, which must be the loop of the first call.

        Raises:
            NotRunningError: another loop runs, in which no reply could be awaited; or the connection was shut.
        """
        self._check_shut()
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None:
                raise NotRunningError(ELSEWHERE)
            self._loop = loop
        return loop

    async def call(self, command: Command, patience: float | None = None) -> Any:
        """Send `command` together with all other calls of this turn of the loop.

        Args:
            patience: seconds after which the call is given up, unless bytes move on the connection.
        Raises:
            BrokerUnavailableError: no answer.
            ResponseError: the error reply.
        """
        loop = self.check_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._waiting.append((command, future))
        if self._drain is None:
            self._drain = loop.create_task(self._send_waiting())
        timers: list[asyncio.TimerHandle] = []
        if patience is not None:
            timers.append(loop.call_later(patience, self._lose_patience, future, patience, timers))
        try:
            reply = await future
        finally:
            for timer in timers:
                timer.cancel()
        if isinstance(reply, ResponseError):
            raise reply
        return reply

    def _lose_patience(self, future: asyncio.Future[Any], patience: float, timers: list[asyncio.TimerHandle]) -> None:
        if future.done():
            return
        left = patience - self.still()
        if left > 0:
            timers[:] = [future.get_loop().call_later(left, self._lose_patience, future, patience, timers)]
        else:
            future.set_exception(BrokerUnavailableError(f"{self._address.text} is out of reach: no answer in time"))

    async def _send_waiting(self) -> None:
        try:
            while self._waiting:
                batch = self._next_batch()
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
                    future.set_exception(stopped())
            self._waiting = []

    def _next_batch(self) -> list[tuple[Command, asyncio.Future[Any]]]:
        """The waiting calls that are sent together, without calls whose callers have stopped waiting."""
        batch: list[tuple[Command, asyncio.Future[Any]]] = []
        size = taken = 0
        for command, future in self._waiting:
            if size >= BYTES_A_PIPELINE or len(batch) >= CALLS_A_PIPELINE:
                break
            taken += 1
            if not future.done():
                batch.append((command, future))
                size += sum(len(word) for word in command if type(word) is bytes)
        self._waiting = self._waiting[taken:]
        return batch

    async def _connect(self) -> Wire:
        await self.close()
        wire = await Wire.open(self._address.new_connection())
        try:
            await _load_scripts(wire, USUAL)
        except BaseException:
            await wire.close()
            raise
        if self._shut:  # shut while the connection was made
            await wire.close()
            raise stopped()
        await self.close()  # another call may have connected meanwhile, and only one connection may stay open
        self._wire = wire
        return wire

    async def close(self) -> None:
        """Drop the connection. The next command makes a new one."""
        wire, self._wire = self._wire, None
        if wire is not None:
            await wire.close()

    async def shut(self) -> None:
        """Close for good. Waiting calls fail, and no call connects again."""
        self._shut = True
        if self._drain is not None:
            self._drain.cancel()
            await asyncio.wait([self._drain])
        await self.close()

    def abandon(self) -> None:
        """The loop of this connection was closed. Drop the connection, from another loop."""
        self._shut = True
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.abandon()


def key_of(command: Command) -> str:
    """The key that decides the slot of a command. A command without keys goes to the node of the empty key."""
    place = 3 if command[0] == "EVALSHA" else 1
    key = command[place] if len(command) > place else ""
    return key.decode() if isinstance(key, bytes) else str(key)


def _says_not_now(reply: Any) -> bool:
    return isinstance(reply, ResponseError) and is_transient(reply)


def stopped() -> NotRunningError:
    return NotRunningError("the runtime that this belongs to has been stopped")


def _remedy(reason: str) -> str:
    """The advice for a server that refuses the connection."""
    known = {
        "DB index": "it has no database of that number, name a lower one",
        "SELECT is not allowed": "it is a Cluster, use redis+cluster://",
        "SENTINEL": "name the ports of Sentinels, or use redis:// for a server",
        "no permissions": "the README has the rule for this user",
    }
    return next((remedy for word, remedy in known.items() if word in reason), "see the server's log")


def _about_tls(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error is not None


async def _load_scripts(wire: Wire, scripts: Iterable[Script]) -> None:
    await wire.exchange([("SCRIPT", "LOAD", script.text) for script in scripts], REPLY_TIMEOUT)
