"""Services: objects that the app gives to its handlers. The runtime enters them at start and leaves them at stop."""

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
    """The `services` argument of handlers, for one life of a runtime.

    Handlers get an object or a mapping as it is. A function or a class is called: a context manager that it returns,
    async or sync, is entered at start and left at stop; an awaitable is awaited. A function that yields once counts as
    a context manager without its decorator.

    One aio_task enters and leaves the services, because libraries with scopes of their own demand that. Leaving is
    bounded in time.

    State: `_aio_task`, which enters and leaves the services; `_leave`, set when the runtime stops; `_tokens`, of the
    context variables that the services have set for the handlers.
    """

    def __init__(self, given: Any) -> None:
        self._given = given
        self.value: Any = None
        self._aio_task: asyncio.Task[None] | None = None
        self._leave = asyncio.Event()
        self._tokens: list[contextvars.Token[Any]] = []

    async def enter(self) -> Any:
        """Enter the services. Returns the object that handlers get.

        Raises:
            ConfigError: the services raised an error that would end the app.
            Exception: any other error that the services raised.
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
        for variable, value in context.items():  # the services have set these variables for the handlers
            if variable.get(self) is not value:
                self._tokens.append(variable.set(value))
        return self.value

    async def _live(self, entered: asyncio.Future[BaseException | None]) -> None:
        """Enter the services, wait, and leave them. Never raises."""
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
        """Leave the services within `timeout` seconds."""
        self._leave.set()
        if self._aio_task is not None and await ended([self._aio_task], timeout):
            logger.error("the services were not left within %.1f s; going on without that", timeout)
        self._aio_task, self.value = None, None
        for token in self._tokens:
            with suppress(ValueError):  # the runtime is stopped in another context than it was started in
                token.var.reset(token)
        self._tokens.clear()


async def enter(services: Any, stack: AsyncExitStack) -> Any:
    """Call a factory of services, and enter the context manager that it returns."""
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
    """True if `services` is a factory, and not the services themselves."""
    return not isinstance(services, Mapping) and (
        inspect.isroutine(services) or isinstance(services, (type, functools.partial))
    )


class Unmade:
    """A stand-in for `services` in commands that run no job. Each attribute, item or call of it is a stand-in too."""

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
