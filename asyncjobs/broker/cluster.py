"""A Redis Cluster: each command goes to the node that holds its slot, in one pipeline for each node."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from redis.crc import key_slot
from redis.exceptions import ResponseError

from asyncjobs import clock
from asyncjobs.broker.address import Address
from asyncjobs.broker.connection import Connection, key_of
from asyncjobs.broker.reach import Reach
from asyncjobs.broker.wire import Command
from asyncjobs.errors import BrokerError, BrokerUnavailableError

Node = tuple[str, int]
_Send: TypeAlias = Callable[[Connection, Sequence[Command]], Awaitable[tuple[list[Any], list[bool]]]]

LAG: Final = 1.0  # seconds that a node may take, or may take longer than another node in the same trip
SHORTEST_REST: Final = 0.05
LONGEST_REST: Final = 5.0
LONGEST_REFUSED_REST: Final = 0.5  # seconds for a node that refuses at once, because asking it costs nothing
MOST_KEYS_TRIED: Final = 10_000  # until one is found for each primary, which may hold a single slot
STAGGER: Final = 0.1  # seconds after which the next node is asked for the slots
MOVED = ("MovedError", "AskError", "ClusterDownError", "TryAgainError", "ReadOnlyError")


class Topology:
    """Which node holds which slot, as the Cluster says. All connections of a process share it.

    State: `_nodes`, slot → primary, empty until a node was asked, and `_before`, the nodes before that; `_known`, all
    primaries ever heard of, beside the seeds; `reach`, whether any node tells the slots; `_reaches`, whether each node
    answers.
    """

    def __init__(self, address: Address, connect_timeout: float) -> None:
        self._address = address
        self._connect_timeout = connect_timeout
        self._nodes: list[Node] = []
        self._before: list[Node] = []
        self._known: list[Node] = list(address.seeds)
        self._asking = asyncio.Lock()
        self.reach = Reach(connect_timeout)
        self._reaches: dict[Node, Reach] = {}

    def forget(self) -> None:
        """The slots have moved, so ask for them before the next command."""
        self._before, self._nodes = self._nodes or self._before, []

    def reach_of(self, node: Node) -> Reach:
        """The Reach of a node, which all connections to the node share."""
        if node not in self._reaches:
            self._reaches[node] = Reach(self._connect_timeout)
        return self._reaches[node]

    @property
    def failing(self) -> bool:
        """True if any node is known to have failed."""
        return self.reach.failing or any(one.failing for one in self._reaches.values())

    def node_known(self, key: str) -> Node | None:
        """The primary that held `key` when the slots were last asked for."""
        nodes = self._nodes or self._before
        return nodes[key_slot(key.encode())] if nodes else None

    async def node_of(self, key: bytes) -> Node:
        """The primary that holds `key`.

        Raises:
            BrokerUnavailableError: no node of the Cluster answers, or no node knows the holder of the slot.
        """
        if not self._nodes:
            async with self._asking:
                if not self._nodes:
                    try:
                        self._nodes = await self._ask()
                    except BrokerUnavailableError:
                        self.reach.failed()
                        raise
                    self.reach.answered()
        return self._nodes[key_slot(key)]

    async def primaries(self) -> list[Node]:
        """All primaries that hold a slot."""
        await self.node_of(b"")
        return sorted(set(self._nodes))

    async def _ask(self) -> list[Node]:
        """Ask one node for the slots, and one more each time there is no answer in a moment."""
        asking: dict[asyncio.Task[list[Node]], Node] = {}
        left = list(self._known)
        reason: object = "it names no nodes"
        try:
            while left or asking:
                if left:
                    node = left.pop(0)
                    asking[asyncio.ensure_future(self._ask_one(node))] = node
                done, _ = await asyncio.wait(
                    asking, timeout=STAGGER if left else None, return_when=asyncio.FIRST_COMPLETED
                )
                for one in done:
                    node = asking.pop(one)
                    error = one.exception()
                    if error is None:
                        return one.result()
                    if not isinstance(error, BrokerUnavailableError):
                        raise error
                    reason = error
                    self._known.remove(node)
                    self._known.append(node)  # from now on this node is asked last
            raise BrokerUnavailableError(f"{self._address.text} is out of reach: {reason}")
        finally:
            for one in asking:
                one.cancel()
            if asking:
                await asyncio.wait(asking)

    async def _ask_one(self, node: Node) -> list[Node]:
        connection = Connection(self._address.at(*node), self._connect_timeout, self.reach_of(node))
        try:
            (ranges,) = await connection.run([("CLUSTER", "SLOTS")])
        finally:
            await connection.close()
        if isinstance(ranges, ResponseError):
            raise BrokerError(f"{self._address.text} is no Cluster: {ranges}; use redis:// for one server")
        nodes: list[Node | None] = [None] * 16384
        for first, last, primary, *_ in ranges:
            one = (primary[0].decode() or node[0], primary[1])
            nodes[first : last + 1] = [one] * (last + 1 - first)
            if one not in self._known:
                self._known.append(one)
        if None in nodes:
            raise BrokerUnavailableError("not every slot has a node")
        return nodes  # type: ignore[return-value]


class _Breaker:
    """Leaves a node alone for a moment if it did not answer when the others did."""

    __slots__ = ("pause", "until")

    def __init__(self) -> None:
        self.pause = 0.0
        self.until = 0.0

    def failed(self, rest: float, longest: float) -> None:
        self.pause = min(max(2 * self.pause, rest), longest)
        self.until = clock.monotonic() + self.pause

    def answered(self) -> None:
        self.pause = self.until = 0.0


class ClusterConnection(Connection):
    """A `Connection` over all nodes. Each node's own connection is made when it is first needed."""

    def __init__(self, address: Address, connect_timeout: float, topology: Topology) -> None:
        super().__init__(address, connect_timeout, topology.reach)
        self._topology = topology
        self._connections: dict[Node, Connection] = {}
        self._breakers: dict[Node, _Breaker] = {}

    def abandon(self) -> None:
        super().abandon()
        for connection in self._connections.values():
            connection.abandon()

    async def run(self, commands: Sequence[Command], needs: Sequence[int] = ()) -> list[Any]:
        """Send each command to its node; see `Connection.run`.

        If a node does not answer, the error is the reply to its commands, and other nodes' commands go on. The error is
        raised only if no node knows the holders of the slots.
        """
        replies, _ = await self._run(commands, needs, _run_alone, LAG)
        return replies

    async def run_and_wait(
        self, commands: Sequence[Command], needs: Sequence[int], replicas: int, wait_ms: int
    ) -> tuple[list[Any], list[bool]]:
        """`Connection.run_and_wait`: each primary waits for its own replicas."""
        lag = LAG + wait_ms / 1000
        return await self._run(
            commands, needs, lambda connection, mine: connection.run_and_wait(mine, (), replicas, wait_ms), lag
        )

    async def everywhere(self, commands: Sequence[Command]) -> list[list[Any]]:
        nodes = await self._topology.primaries()
        answers = await asyncio.gather(
            *(self._connection_to(node).run(commands) for node in nodes), return_exceptions=True
        )  # waits for all nodes, else a node that is still connecting would connect twice in the next call
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return answers  # type: ignore[return-value]

    async def key_of_each(self, pattern: str) -> list[str]:
        found: dict[Node, str] = {}
        every = len(await self._topology.primaries())
        for number in range(MOST_KEYS_TRIED):
            if len(found) >= every:
                break
            key = pattern % number
            found.setdefault(await self._topology.node_of(key.encode()), key)
        return list(found.values())

    async def _run(
        self, commands: Sequence[Command], needs: Sequence[int], send: _Send, lag: float
    ) -> tuple[list[Any], list[bool]]:
        self._check_shut()
        replies: list[Any] = [None] * len(commands)
        reached = [False] * len(commands)
        needed = {i for i in needs if i >= 0}
        for part in (sorted(needed), [i for i in range(len(commands)) if i not in needed]):
            by_node: dict[Node, list[int]] = {}
            for i in part:
                need = needs[i] if needs else -1
                if need >= 0 and isinstance(replies[need], (BrokerError, ResponseError)):
                    replies[i] = replies[need]
                else:
                    by_node.setdefault(await self._topology.node_of(key_of(commands[i]).encode()), []).append(i)
            by_command = {node: [commands[i] for i in mine] for node, mine in by_node.items()}
            answers = await self._all_nodes(by_command, send, lag)
            for mine, (theirs, there) in zip(by_node.values(), answers, strict=True):
                for i, reply, one in zip(mine, theirs, there, strict=True):
                    replies[i], reached[i] = reply, one
        lost = [reply for reply in replies if isinstance(reply, BrokerUnavailableError)]
        if lost or any(type(reply).__name__ in MOVED for reply in replies):
            self._topology.forget()
        return replies, reached

    async def _all_nodes(
        self, by_node: Mapping[Node, Sequence[Command]], send: _Send, lag: float
    ) -> list[tuple[list[Any], list[bool]]]:
        """The answers of all nodes. A node that lags is given up for now, because other nodes have work to do."""
        sending = [asyncio.ensure_future(self._one_node(node, mine, send)) for node, mine in by_node.items()]
        late: set[asyncio.Future[tuple[list[Any], list[bool]]]] = set()
        try:
            if len(sending) > 1:
                await asyncio.wait(sending, timeout=lag, return_when=asyncio.FIRST_COMPLETED)
            late = set(sending)
            while late:
                _, late = await asyncio.wait(late, timeout=lag)
                if all(
                    self._connection_to(node).still() >= lag
                    for node, one in zip(by_node, sending, strict=True)
                    if one in late
                ):
                    break  # a node whose bytes still move has as long as they take
        finally:
            left = [one for one in sending if not one.done()]
            for one in left:
                one.cancel()
            if left:
                await asyncio.wait(left)
        answers = []
        for (node, mine), one in zip(by_node.items(), sending, strict=True):
            if one in late and one.cancelled():
                self._breakers[node].failed(LAG, LONGEST_REST)
                self._topology.reach_of(node).failed()
                answers.append(_no_answer(f"{node[0]}:{node[1]} does not answer in time", len(mine)))
            else:
                answers.append(one.result())
        return answers

    async def _one_node(self, node: Node, mine: Sequence[Command], send: _Send) -> tuple[list[Any], list[bool]]:
        breaker = self._breakers.setdefault(node, _Breaker())
        if breaker.until > clock.monotonic():
            return _no_answer(f"{node[0]}:{node[1]} did not answer a moment ago", len(mine))
        try:
            answered = await send(self._connection_to(node), mine)
        except BrokerUnavailableError as error:
            breaker.failed(SHORTEST_REST, LONGEST_REFUSED_REST)
            return _no_answer(str(error), len(mine))
        breaker.answered()
        return answered

    def _connection_to(self, node: Node) -> Connection:
        if node not in self._connections:
            self._connections[node] = Connection(
                self._address.at(*node), self._connect_timeout, self._topology.reach_of(node)
            )
        return self._connections[node]

    def known_down(self, *keys: str) -> bool:
        if self._topology.reach.known_down:
            return True
        if not self._topology.failing and not any(connection.known_down() for connection in self._connections.values()):
            return False
        nodes = {self._topology.node_known(key) for key in keys}
        return any(node is not None and self._connection_to(node).known_down() for node in nodes)

    def still(self) -> float:
        return min((connection.still() for connection in self._connections.values()), default=float("inf"))

    async def close(self) -> None:
        """Drop all connections, and the slots."""
        self._topology.forget()
        for connection in self._connections.values():
            await (connection.shut() if self._shut else connection.close())


def _no_answer(text: str, commands: int) -> tuple[list[Any], list[bool]]:
    return [BrokerUnavailableError(text)] * commands, [False] * commands


async def _run_alone(connection: Connection, commands: Sequence[Command]) -> tuple[list[Any], list[bool]]:
    found = await connection.run(commands)
    return found, [False] * len(found)
