"""A Redis Cluster: each command goes to the node that holds its slot, a pipeline a node."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from redis.crc import key_slot
from redis.exceptions import ResponseError

from asyncjobs.broker.address import Address
from asyncjobs.broker.link import Command, Lane
from asyncjobs.errors import BrokerError, BrokerUnavailableError

Node = tuple[str, int]
MOVED = ("MovedError", "AskError", "ClusterDownError", "TryAgainError", "ReadOnlyError")


class Topology:
    """Which node holds which slot, as the Cluster says; shared by all lanes of a process.

    State: `_nodes`, slot → primary, empty until asked for; `_known`, every primary ever heard of, beside the seeds.
    """

    def __init__(self, address: Address, connect_timeout: float) -> None:
        self._address = address
        self._connect_timeout = connect_timeout
        self._nodes: list[Node] = []
        self._known: list[Node] = list(address.seeds)
        self._asking = asyncio.Lock()

    def forget(self) -> None:
        """The slots have moved: ask again before the next command."""
        self._nodes = []

    async def node_of(self, key: bytes) -> Node:
        """The primary that holds `key`.

        Raises:
            BrokerUnavailableError: no node of the Cluster answers, or none knows who holds the slot.
        """
        if not self._nodes:
            async with self._asking:
                if not self._nodes:
                    self._nodes = await self._ask()
        return self._nodes[key_slot(key)]

    async def _ask(self) -> list[Node]:
        reason: object = "it names no nodes"
        for host, port in tuple(self._known):
            lane = Lane(self._address.at(host, port), self._connect_timeout)
            try:
                (ranges,) = await lane.run([("CLUSTER", "SLOTS")])
            except BrokerUnavailableError as error:
                reason = error
                continue
            finally:
                await lane.close()
            if isinstance(ranges, ResponseError):
                raise BrokerError(f"{self._address.text} is no Cluster: {ranges}; use redis:// for one server")
            nodes: list[Node | None] = [None] * 16384
            for first, last, primary, *_ in ranges:
                node = (primary[0].decode() or host, primary[1])
                nodes[first : last + 1] = [node] * (last + 1 - first)
                if node not in self._known:
                    self._known.append(node)
            if None not in nodes:
                return nodes  # type: ignore[return-value]
            reason = "not every slot has a node"
        raise BrokerUnavailableError(f"{self._address.text} is out of reach: {reason}")


class ClusterLane(Lane):
    """A `Lane` over all nodes: one connection each, made when first needed."""

    def __init__(self, address: Address, connect_timeout: float, topology: Topology) -> None:
        super().__init__(address, connect_timeout)
        self._topology = topology
        self._lanes: dict[Node, Lane] = {}

    async def run(self, commands: Sequence[Command], first: int = 0) -> list[Any]:
        """Send each command to its node; see `Lane.run`.

        A node that does not answer costs its own commands alone: their replies are the error. It is raised only
        if no node answered.
        """
        self._check_shut()
        replies: list[Any] = [None] * len(commands)
        for part in (range(first), range(first, len(commands))):
            by_node: dict[Node, list[int]] = {}
            for i in part:
                by_node.setdefault(await self._topology.node_of(_key(commands[i])), []).append(i)
            await asyncio.gather(*(self._run_on(node, mine, commands, replies) for node, mine in by_node.items()))
        lost = [reply for reply in replies if isinstance(reply, BrokerUnavailableError)]
        if lost or any(type(reply).__name__ in MOVED for reply in replies):
            self._topology.forget()
        if lost and len(lost) == len(replies):
            raise lost[0]
        return replies

    async def _run_on(self, node: Node, mine: list[int], commands: Sequence[Command], replies: list[Any]) -> None:
        lane = self._lanes.get(node)
        if lane is None:
            lane = self._lanes[node] = Lane(self._address.at(*node), self._connect_timeout)
        try:
            answers = await lane.run([commands[i] for i in mine])
        except BrokerUnavailableError as error:
            answers = [error] * len(mine)
        for i, answer in zip(mine, answers, strict=True):
            replies[i] = answer

    async def close(self) -> None:
        for lane in self._lanes.values():
            await lane.close()


def _key(command: Command) -> bytes:
    """The key that decides the slot of a command; what has none goes where the empty key lies."""
    place = 3 if command[0] == "EVALSHA" else 1
    key = command[place] if len(command) > place else ""
    return key if isinstance(key, bytes) else str(key).encode()
