"""Services: what the app gives its handlers, entered at start and left at stop."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any


async def enter(services: Any, stack: AsyncExitStack) -> Any:
    """What handlers get as `services`.

    An object or a mapping is given as it is. A function or a class is called: an async (or sync) context
    manager that it returns is entered, and left with `stack`; an awaitable is awaited. A function that yields once is
    such a manager without its decorator.
    """
    if isinstance(services, Mapping) or not _is_factory(services):
        return services
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


def _is_factory(services: Any) -> bool:
    return inspect.isroutine(services) or isinstance(services, (type, functools.partial))
