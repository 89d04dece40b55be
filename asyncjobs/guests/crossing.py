"""Crossing: code in a thread calls objects of the event loop, and waits there for the results."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Final, Protocol

from asyncjobs.errors import AsyncjobsError, NotRunningError

LOOK_EVERY: Final = 1.0  # seconds between two looks of a waiting thread whether the loop still runs
GONE: Final = "the runtime's event loop has ended, so a thread can do nothing with its queue, jobs or io any more"
CANCELLED: Final = "what a thread has been waiting for was cancelled: the runtime stops, or its event loop ends"
STOPPED: Final = "the runtime has been stopped, so a thread can do nothing with its queue, jobs or io any more"
CONTAINERS: Final = (list, tuple, dict, set)
BRIDGED: Final = frozenset(("asyncjobs", "socketio", "contextlib", "builtins"))  # a user's own objects are left alone
_running_loop = asyncio._get_running_loop  # returns None if no loop runs

within: ContextVar[tuple[Crossing, Caller]] = ContextVar("asyncjobs_within_thread")


class Caller(Protocol):
    """The try of a job, or the run of a task, that a thread works for."""

    def refusal(self) -> AsyncjobsError | None:
        """Why the thread may not work for it any more; None: it may."""


# From a thread to the loop ----------------------------------------------------------------------------------------
class Across:
    """One call from a thread, on its way to the loop and back. `answer` holds its result and its error."""

    __slots__ = ("aio_task", "answer", "args", "function", "kwargs", "owner")

    def __init__(self, owner: Caller | None, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self.owner, self.function, self.args, self.kwargs = owner, function, args, kwargs
        self.answer: Future[tuple[Any, BaseException | None]] = Future()
        self.aio_task: asyncio.Task[None] | None = None

    def end(self, value: Any, error: BaseException | None) -> None:
        """The first answer counts."""
        with suppress(InvalidStateError):
            self.answer.set_result((value, error))


class Crossing:
    """The way from threads to the loop in which it was made.

    State: `_open`, the calls that the loop works on; `_closed`, the reason why no call is taken any more.
    """

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._open: set[Across] = set()
        self._closed: NotRunningError | None = None

    def call(self, owner: Caller | None, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call `function` on the loop. In another thread, wait for the result, and for an awaitable result as well.

        Raises:
            NotRunningError: the runtime was stopped, or its loop has ended.
        """
        here = _running_loop()
        if here is self.loop:
            return function(*args, **kwargs)
        across = Across(owner, function, args, kwargs)
        refusal = self._refusal(owner)
        if refusal is not None:
            raise refusal
        try:
            self.loop.call_soon_threadsafe(self._begin, across)
        except RuntimeError:
            raise NotRunningError(GONE) from None
        if here is not None and inspect.iscoroutinefunction(function):
            return self._awaited(across, owner)  # the thread has a loop of its own, which must not stand still
        return self._came_to(self._answer(across), owner)

    async def _awaited(self, across: Across, owner: Caller | None) -> Any:
        return self._came_to(await asyncio.wrap_future(across.answer), owner)

    def _came_to(self, answer: tuple[Any, BaseException | None], owner: Caller | None) -> Any:
        value, error = answer
        if error is not None:
            try:
                raise error
            finally:
                del answer, error
        return self.seen(value, owner)

    def _answer(self, across: Across) -> tuple[Any, BaseException | None]:
        while True:
            try:
                return across.answer.result(LOOK_EVERY)
            except TimeoutError:
                if not self.loop.is_running():
                    across.end(None, NotRunningError(GONE))

    def _refusal(self, owner: Caller | None) -> AsyncjobsError | None:
        if self._closed is not None:
            return NotRunningError(str(self._closed))
        return None if owner is None else owner.refusal()

    def _begin(self, across: Across) -> None:
        refusal = self._refusal(across.owner)
        if refusal is not None or across.answer.done():
            across.end(None, refusal)
            return
        across.aio_task = asyncio.Task(self._carry(across), loop=self.loop)
        self._open.add(across)

    async def _carry(self, across: Across) -> None:
        try:
            value = across.function(*across.args, **across.kwargs)
            across.end(await value if _only_awaitable(value) else value, None)
        except asyncio.CancelledError:
            across.end(None, NotRunningError(CANCELLED))
        except BaseException as error:  # the error goes to the thread, and must not end the loop
            across.end(None, error)
        finally:
            self._open.discard(across)
            across.end(None, NotRunningError(GONE))

    def interrupt(self, owner: Caller | None) -> None:
        """Cancel the calls of `owner`; None: all calls."""
        for across in tuple(self._open):
            if owner is None or across.owner is owner:
                across.end(None, self._refusal(across.owner) or NotRunningError(STOPPED))
                if across.aio_task is not None:
                    across.aio_task.cancel()

    def close(self) -> None:
        """The runtime has stopped. Waiting threads, and later calls, get an error that says so."""
        self._closed = NotRunningError(STOPPED)
        self.interrupt(None)

    def seen(self, value: Any, owner: Caller | None) -> Any:
        """`value` as a thread sees it: at any depth, objects with coroutine methods become objects that block."""
        return _replaced(value, _is_of_the_loop, lambda one: FromThread(one, self, owner))


def _only_awaitable(value: Any) -> bool:
    """True if `value` is good for nothing else than to be awaited."""
    return inspect.isawaitable(value) and not hasattr(value, "__aenter__") and not hasattr(value, "__aiter__")


@functools.cache
def _is_of_the_loop(kind: type) -> bool:
    if kind.__module__.partition(".")[0] not in BRIDGED or issubclass(kind, type):
        return False
    if any(hasattr(kind, name) for name in ("__aenter__", "__aiter__", "__anext__", "__await__", "emit")):
        return True
    found = (inspect.getattr_static(kind, name, None) for name in dir(kind) if not name.startswith("_"))
    return any(inspect.iscoroutinefunction(one) or inspect.isasyncgenfunction(one) for one in found)


class FromThread:
    """An object of the loop as a thread sees it: its coroutine methods block, and so do those of objects it returns.

    On the loop it behaves like the object itself. In the thread ``with`` and ``for`` stand for ``async with`` and
    ``async for``.
    """

    __slots__ = ("_owner", "_target", "_way")

    def __init__(self, target: Any, way: Crossing, owner: Caller | None = None) -> None:
        for name, value in (("_target", target), ("_way", way), ("_owner", owner)):
            object.__setattr__(self, name, value)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self._target)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if not inspect.isroutine(value):
            return value if _running_loop() is self._way.loop else self._way.seen(value, self._mine())

        @functools.wraps(value)
        def call(*args: Any, **kwargs: Any) -> Any:
            return self._way.call(self._mine(), value, bare(args), bare(kwargs))

        return call

    def _mine(self) -> Caller | None:
        """The try, or the run, that this thread works for."""
        own: Caller | None = self._owner
        if own is not None:
            return own
        found = within.get(None)
        return None if found is None or found[0] is not self._way else found[1]

    def _across(self, function: Callable[..., Any], *args: Any) -> Any:
        return self._way.call(self._mine(), function, bare(args), {})

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._target, name, value)

    def __repr__(self) -> str:
        return repr(self._target)

    def __str__(self) -> str:
        return str(self._target)

    def __dir__(self) -> list[str]:
        return dir(self._target)

    def __eq__(self, other: object) -> bool:
        return bool(self._target == bare(other))

    def __hash__(self) -> int:
        return hash(self._target)

    def __bool__(self) -> bool:
        return bool(self._target)

    def __len__(self) -> int:
        return len(self._target)

    def __contains__(self, value: Any) -> bool:
        return bare(value) in self._target

    def __getitem__(self, key: Any) -> Any:
        return self._way.seen(self._target[key], self._mine())

    def __enter__(self) -> Any:
        target = self._target
        return self._across(target.__aenter__ if hasattr(target, "__aenter__") else target.__enter__)

    def __exit__(self, *error: Any) -> Any:
        target = self._target
        return self._across(target.__aexit__ if hasattr(target, "__aexit__") else target.__exit__, *error)

    def __iter__(self) -> Iterator[Any]:
        target = self._target
        if hasattr(target, "__aiter__"):
            iterator = self._across(target.__aiter__)
            return iterator if isinstance(iterator, FromThread) else FromThread(iterator, self._way, self._owner)
        return (self._way.seen(one, self._mine()) for one in target)

    def __next__(self) -> Any:
        target = self._target
        if not hasattr(target, "__anext__"):
            return self._way.seen(next(target), self._mine())
        try:
            return self._across(target.__anext__)
        except StopAsyncIteration:
            raise StopIteration from None

    def __aenter__(self) -> Any:
        return self._across(self._target.__aenter__)

    def __aexit__(self, *error: Any) -> Any:
        return self._across(self._target.__aexit__, *error)

    def __aiter__(self) -> Any:
        return self._across(self._target.__aiter__)

    def __anext__(self) -> Any:
        return self._across(self._target.__anext__)


def here(target: Any) -> Any:
    """`target` as the caller can use it: in a thread of a handler or a task, its form for threads."""
    found = within.get(None)
    return target if found is None or _running_loop() is not None else FromThread(target, *found)


def bare(value: Any) -> Any:
    """`value` with the objects themselves in place of their forms for threads."""
    return _replaced(value, _is_from_thread, _target)


def _is_from_thread(kind: type) -> bool:
    return kind is FromThread


def target(value: Any) -> Any:
    """`value`, or the object itself if `value` is an object's form for threads."""
    return _target(value) if type(value) is FromThread else value


def _target(seen: Any) -> Any:
    return object.__getattribute__(seen, "_target")


def _replaced(value: Any, wanted: Callable[[type], bool], change: Callable[[Any], Any]) -> Any:
    """`value` with all parts of a `wanted` type changed, at any depth; `value` itself if it has no such part."""
    kind = type(value)
    if wanted(kind):
        return change(value)
    if not issubclass(kind, CONTAINERS) or not _holds(value, wanted):
        return value
    made: dict[int, Any] = {}

    def replace(one: Any) -> Any:
        kind = type(one)
        if wanted(kind):
            return change(one)
        if id(one) in made or not issubclass(kind, CONTAINERS):
            return made.get(id(one), one)
        made[id(one)] = one  # within a container that holds itself, the inner reference stays as it is
        if kind is dict:
            made[id(one)] = {key: replace(held) for key, held in one.items()}
        elif kind in CONTAINERS:
            made[id(one)] = kind(map(replace, one))
        elif hasattr(one, "_make"):
            made[id(one)] = one._make(map(replace, one))
        return made[id(one)]

    return replace(value)


def _holds(value: Any, wanted: Callable[[type], bool]) -> bool:
    """True if `value` has a part of a wanted type. `value` may hold itself, and be deeper than Python's call stack."""
    left, known = [value], set()
    while left:
        one = left.pop()
        if id(one) in known:
            continue
        known.add(id(one))
        for held in one.values() if isinstance(one, dict) else one:
            kind = type(held)
            if wanted(kind):
                return True
            if issubclass(kind, CONTAINERS):
                left.append(held)
    return False
