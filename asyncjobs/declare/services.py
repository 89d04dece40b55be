"""Services: what the app gives its handlers, entered at start and left at stop."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import logging
from collections.abc import Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from typing import Any, Final

from asyncjobs.errors import ConfigError
from asyncjobs.guests.calls import ended
from asyncjobs.logs import is_closing, said, say

logger = logging.getLogger("asyncjobs")

PATIENCE: Final = 10.0  # seconds after which a start that waits for its services says so


class Services:
    """What handlers get as `services`, for one life of a runtime.

    An object or a mapping is given as it is. A function or a class is called: an async (or sync) context manager that
    it returns is entered, and left at stop; an awaitable is awaited. A function that yields once is such a manager
    without its decorator.

    Entering and leaving happen in one aio_task, as libraries with scopes of their own demand, and leaving ends in time.

    State: `_aio_task`, in which they are entered and left; `_leave`, set when they are to be left; `_tokens`, of the
    context variables that they have set for the handlers.
    """

    def __init__(self, given: Any) -> None:
        self._given = given
        self.value: Any = None
        self._aio_task: asyncio.Task[None] | None = None
        self._leave = asyncio.Event()
        self._tokens: list[contextvars.Token[Any]] = []

    async def enter(self) -> Any:
        """Enter them. Returns what handlers get.

        Raises:
            ConfigError: they raised something that would end the app.
            Exception: whatever else they raised.
        """
        if isinstance(self._given, Mapping) or not is_factory(self._given):
            self.value = self._given
            return self.value
        loop, context = asyncio.get_running_loop(), contextvars.copy_context()
        entered: asyncio.Future[BaseException | None] = loop.create_future()
        self._aio_task = loop.create_task(self._live(entered), name="asyncjobs services", context=context)
        try:
            while not entered.done():
                await asyncio.wait([entered], timeout=PATIENCE)
                if not entered.done():
                    logger.warning(
                        "the start waits for its services to be entered, which takes more than %g s", PATIENCE
                    )
        except BaseException:
            self._aio_task.cancel()
            raise
        error = entered.result()
        if isinstance(error, Exception):
            raise error
        if error is not None:
            raise ConfigError(f"the services could not be entered, they raised {said(error)}") from error
        for variable, value in context.items():  # set while they were entered, for the handlers to find
            if variable.get(self) is not value:
                self._tokens.append(variable.set(value))
        return self.value

    async def _live(self, entered: asyncio.Future[BaseException | None]) -> None:
        """From entering to leaving; nothing comes out of it."""
        aio_task = asyncio.current_task()
        try:
            async with AsyncExitStack() as stack:
                self.value = await enter(self._given, stack)
                entered.set_result(None)
                await self._leave.wait()
        except BaseException as error:
            if not entered.done():
                entered.set_result(error)
            elif aio_task is not None and not aio_task.cancelling() and not is_closing(aio_task):
                say(logger, logging.ERROR, "the services raised while they were left: %s", said(error))

    async def leave(self, timeout: float) -> None:
        """Leave them, within `timeout` seconds."""
        self._leave.set()
        if self._aio_task is not None and await ended([self._aio_task], timeout):
            logger.error("the services were not left within %.1f s; going on without that", timeout)
        self._aio_task, self.value = None, None
        for token in self._tokens:
            with suppress(ValueError):  # another context than the one that started the runtime
                token.var.reset(token)
        self._tokens.clear()


async def enter(services: Any, stack: AsyncExitStack) -> Any:
    """Call a factory of services, and enter what it returns."""
    if inspect.isasyncgenfunction(services):
        services = asynccontextmanager(services)
    elif inspect.isgeneratorfunction(services):
        services = contextmanager(services)
    made = services()
    if inspect.isawaitable(made):
        made = await made
    if hasattr(made, "__aenter__"):
        return await stack.enter_async_context(made)
    if hasattr(made, "__enter__"):
        return stack.enter_context(made)
    return made


def is_factory(services: Any) -> bool:
    """Whether services have to be made, instead of being given."""
    return not isinstance(services, Mapping) and (
        inspect.isroutine(services) or isinstance(services, (type, functools.partial))
    )


class Unmade:
    """What definitions get as `services` where nothing will run: any attribute, item or call of it is another one."""

    def __getattr__(self, name: str) -> Unmade:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __getitem__(self, key: Any) -> Unmade:
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Unmade:
        return self

    def __repr__(self) -> str:
        return "<services that are not entered, since nothing runs here>"
