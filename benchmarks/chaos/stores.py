"""The stores that a chaos run breaks: what each can suffer, under one name whatever it consists of."""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Protocol

from benchmarks.proxy import Proxy
from benchmarks.servers import Cluster, Sentinels, Server


class Store(Protocol):
    """A store that can be hurt; every fault returns when it is over."""

    url: str

    async def restart(self) -> None: ...
    async def freeze(self, seconds: float) -> None: ...
    async def drop(self) -> None: ...
    async def cut(self) -> None: ...
    async def flush_scripts(self) -> None: ...
    def clients(self) -> list[Any]: ...


class Alone:
    """One server behind a proxy, its append-only file written at every command."""

    def __init__(self, server: Server, proxy: Proxy, rng: random.Random) -> None:
        self._server, self._proxy, self._rng = server, proxy, rng
        self._client = server.client()
        self.url = proxy.url

    async def restart(self) -> None:
        self._server.kill()
        await asyncio.sleep(self._rng.uniform(0, 1))
        await asyncio.to_thread(self._server.again)

    async def freeze(self, seconds: float) -> None:
        self._server.freeze(True)
        await asyncio.sleep(seconds)
        self._server.freeze(False)

    async def drop(self) -> None:
        """The next reply is lost, wherever it goes to."""
        before = self._proxy.happened
        self._proxy.drop("drop-reply")
        while self._proxy.happened == before:  # noqa: ASYNC110 - the proxy counts, it does not tell
            await asyncio.sleep(0.005)

    async def cut(self) -> None:
        self._proxy.cut_all()

    async def flush_scripts(self) -> None:
        await self._client.script_flush()

    def clients(self) -> list[Any]:
        return [self._client]

    async def close(self) -> None:
        await self._client.aclose()


class Fleet:
    """Several servers behind Sentinels or in a Cluster; links are cut from inside the servers."""

    def __init__(self, fleet: Sentinels | Cluster, rng: random.Random) -> None:
        self._fleet, self._rng = fleet, rng
        self.url = fleet.url

    async def _primary(self) -> Server:
        if isinstance(self._fleet, Sentinels):
            return await self._fleet.primary()
        return self._rng.choice(await self._fleet.primaries())

    async def restart(self) -> None:
        """kill -9 a primary; it comes back once another has taken over."""
        victim = await self._primary()
        victim.kill()
        while True:
            await asyncio.sleep(0.1)
            fleet = self._fleet
            now = [await fleet.primary()] if isinstance(fleet, Sentinels) else await fleet.primaries()
            if victim not in now:
                break
        await asyncio.to_thread(victim.again)
        await asyncio.sleep(3)  # until it is in step again

    async def freeze(self, seconds: float) -> None:
        victim = await self._primary()
        victim.freeze(True)
        await asyncio.sleep(seconds)
        victim.freeze(False)

    async def drop(self) -> None:
        await self.cut()

    async def cut(self) -> None:
        for server in self._fleet.data:
            if server.alive:
                await self._fleet.clients[server.port].execute_command("CLIENT", "KILL", "TYPE", "normal")

    async def flush_scripts(self) -> None:
        for server in self._fleet.data:
            if server.alive:
                await self._fleet.clients[server.port].script_flush()

    def clients(self) -> list[Any]:
        return [self._fleet.clients[server.port] for server in self._fleet.data if server.alive]


async def make(kind: str, rng: random.Random, stack: AsyncExitStack) -> Store:
    """`kind`: embedded, redis, sentinel or cluster; all of it goes with `stack`."""
    if kind in ("sentinel", "cluster"):
        fleet = Sentinels(appendonly=True, careful=True) if kind == "sentinel" else Cluster(appendonly=True)
        stack.push_async_callback(fleet.stop)
        return Fleet(await fleet.start(), rng)
    binary = None
    if kind == "redis":
        binary = shutil.which("redis-server")
        if binary is None:
            raise SystemExit("--server redis: there is no redis-server on the PATH")
    server = new_server(stack, appendonly=True, binary=binary)
    proxy = await stack.enter_async_context(Proxy(server.port))
    alone = Alone(server, proxy, rng)
    stack.push_async_callback(alone.close)
    return alone


def new_server(stack: AsyncExitStack, **options: Any) -> Server:
    """A server on a free port, in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="aj-"))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    server = Server(folder, tcp=True, **options).start()
    stack.callback(server.stop)
    return server
