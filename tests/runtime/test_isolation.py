"""Nothing of one job is left in the next, though they may run one after the other in the same aio_task."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import weakref
from contextvars import ContextVar

import pytest

from asyncjobs import Runtime
from asyncjobs.work.task_reuse import IN_A_ROW
from tests.helpers import LOOPS, eventually, run_on

JOBS = 300
tenant: ContextVar[str] = ContextVar("tenant", default="")

kinds = pytest.mark.parametrize(("concurrency", "waits"), [(1, False), (10, False), (10, True)])


async def add_and_run(runtime, jobs: int = JOBS) -> None:
    async with runtime:
        await runtime.queue.add_bulk([("job", n) for n in range(jobs)])
        await runtime.wait_idle(20)


@kinds
async def test_what_a_handler_sets_in_a_context_variable_is_not_there_for_the_next(make_runtime, concurrency, waits):
    runtime = make_runtime()
    seen: list[str] = []

    @runtime.job("job", limiter=None, concurrency=concurrency, attempts=1)
    async def handle(data):
        seen.append(tenant.get())
        if data % 3:
            tenant.set(f"of {data}")
        if waits:
            await asyncio.sleep(0.001)

    await add_and_run(runtime)
    assert seen == [""] * JOBS


async def test_what_the_adding_request_has_in_a_context_variable_is_not_there_for_the_job(make_runtime):
    """Else it would depend on which process takes a job, and on whose request came first."""
    runtime = make_runtime()
    seen: list[str] = []

    @runtime.job("job", limiter=None)
    async def handle(data):
        seen.append(tenant.get())

    async with runtime:
        for n in range(5):
            tenant.set(f"request {n}")
            await runtime.queue.add("job", n)
            await eventually(lambda n=n: len(seen) == n + 1)
    assert seen == [""] * 5


@kinds
async def test_an_aio_task_is_used_again(make_runtime, concurrency, waits):
    runtime = make_runtime()
    numbers: list[int] = []  # to keep the name itself would be to keep something of the aio_task

    @runtime.job("job", limiter=None, concurrency=concurrency, attempts=1)
    async def handle(data):
        numbers.append(int(asyncio.current_task().get_name().removeprefix("Task-")))
        if waits:
            await asyncio.sleep(0.001)

    await add_and_run(runtime, 5 * JOBS)  # how many are held beyond the slots has to be learned first
    assert len(numbers) == 5 * JOBS
    assert len(set(numbers)) < 2.5 * JOBS


@kinds
async def test_who_keeps_its_aio_task_has_it_alone(make_runtime, concurrency, waits):
    """Sessions are kept by aio_task, and one that is cancelled too late must not take another job with it."""
    runtime = make_runtime()
    kept: list[asyncio.Task] = []
    cancelled: list[int] = []

    @runtime.job("job", limiter=None, concurrency=concurrency, attempts=1)
    async def handle(data):
        assert asyncio.current_task() not in kept
        try:
            await asyncio.sleep(0.001 if waits else 0)
        except asyncio.CancelledError:
            cancelled.append(data)
            raise
        for aio_task in kept:
            aio_task.cancel()
        kept.clear()
        if data % 2:
            kept.append(asyncio.current_task())

    await add_and_run(runtime)
    assert cancelled == []


@kinds
async def test_a_cancellation_that_comes_with_the_last_step_is_not_the_next_ones(make_runtime, concurrency, waits):
    runtime = make_runtime()
    cancelled: list[int] = []
    ran: list[int] = []

    @runtime.job("job", limiter=None, concurrency=concurrency, attempts=1)
    async def handle(data):
        try:
            await asyncio.sleep(0.001 if waits else 0)
        except asyncio.CancelledError:
            cancelled.append(data)
            raise
        ran.append(data)
        if data % 3 == 0:
            asyncio.current_task().cancel()

    await add_and_run(runtime)
    assert cancelled == []
    assert sorted(ran) == list(range(JOBS))


async def test_the_loop_has_its_turn_after_a_few_jobs_that_do_not_wait(make_runtime):
    runtime = make_runtime(loop_budget=None)  # with one it is time that counts: see test_loop_budget
    since = most = 0

    @runtime.job("job", limiter=None, concurrency=1, attempts=1)
    async def handle(data):
        nonlocal since, most
        since += 1
        most = max(most, since)

    async def look():
        nonlocal since
        while True:
            since = 0
            await asyncio.sleep(0)

    looking = asyncio.create_task(look())
    await add_and_run(runtime)
    looking.cancel()
    assert 1 < most <= IN_A_ROW


# What a library can hang on an aio_task ---------------------------------------------------------------------------
class Shelf:
    """What libraries keep, for as long as a test takes."""

    def __init__(self) -> None:
        self.weak, self.weak_coroutines = weakref.WeakKeyDictionary(), weakref.WeakKeyDictionary()
        self.weak_set = weakref.WeakSet()
        self.strong, self.ended, self.kept = {}, [], []


def attribute(aio_task, data, shelf):
    aio_task.tenant = data


def attribute_taken_back(aio_task, data, shelf):
    aio_task.tenant = data
    del aio_task.tenant


def name(aio_task, data, shelf):
    aio_task.set_name(f"job {data}")


def weak_key(aio_task, data, shelf):
    shelf.weak[aio_task] = data


def weak_member(aio_task, data, shelf):
    shelf.weak_set.add(aio_task)


def weak_reference(aio_task, data, shelf):
    shelf.kept.append(weakref.ref(aio_task))


def weak_method(aio_task, data, shelf):
    shelf.kept.append(weakref.WeakMethod(aio_task.cancel))


def finalizer(aio_task, data, shelf):
    weakref.finalize(aio_task, shelf.ended.append, data).atexit = False


def key(aio_task, data, shelf):
    shelf.strong[aio_task] = data


def key_by_name(aio_task, data, shelf):
    shelf.strong[aio_task.get_name()] = data


def key_by_coroutine(aio_task, data, shelf):
    shelf.strong[aio_task.get_coro()] = data


def weak_key_by_coroutine(aio_task, data, shelf):
    shelf.weak_coroutines[aio_task.get_coro()] = data


def key_by_context(aio_task, data, shelf):
    if sys.version_info >= (3, 12):
        shelf.strong[aio_task.get_context()] = data
    else:
        shelf.strong[aio_task] = data


def callback(aio_task, data, shelf):
    aio_task.add_done_callback(shelf.ended.append)


def two_callbacks(aio_task, data, shelf):
    for _ in range(2):
        aio_task.add_done_callback(lambda ended: shelf.ended.append(data))


def callback_taken_back(aio_task, data, shelf):
    aio_task.add_done_callback(shelf.ended.append)
    aio_task.add_done_callback(print)
    aio_task.remove_done_callback(print)


def cancelled(aio_task, data, shelf):
    aio_task.cancel()


def cancelled_twice(aio_task, data, shelf):
    aio_task.cancel()
    aio_task.cancel()
    aio_task.uncancel()


def cancelled_and_taken_back(aio_task, data, shelf):
    aio_task.cancel("why")
    aio_task.uncancel()


def quiet_when_destroyed(aio_task, data, shelf):
    aio_task._log_destroy_pending = False


def cancelled_soon(aio_task, data, shelf):
    asyncio.get_running_loop().call_soon(aio_task.cancel)


def cancelled_by_a_weak_reference(aio_task, data, shelf):
    asyncio.get_running_loop().call_later(0.002, lambda ref: ref() and ref().cancel(), weakref.ref(aio_task))


def group_left_open(aio_task, data, shelf):
    group = asyncio.TaskGroup()
    entering = group.__aenter__()
    with pytest.raises(StopIteration):
        entering.send(None)
    shelf.kept.append(group)


def left_in_a_generator(aio_task, data, shelf):
    async def generator():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.002):
                yield

    made = generator()
    with pytest.raises(StopIteration):
        made.__anext__().send(None)
    shelf.kept.append(made)


def context_variable(aio_task, data, shelf):
    tenant.set(str(data))


HANGERS = (
    attribute, attribute_taken_back, name, weak_key, weak_member, weak_reference, weak_method, finalizer, key,
    key_by_name, key_by_coroutine, weak_key_by_coroutine, key_by_context, callback, two_callbacks, callback_taken_back,
    cancelled, cancelled_twice, cancelled_and_taken_back, quiet_when_destroyed, cancelled_soon,
    cancelled_by_a_weak_reference, group_left_open, left_in_a_generator, context_variable,
)  # fmt: skip


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("concurrency", [1, 100])
def test_what_is_hung_on_an_aio_task_goes_with_its_job(server, prefix, concurrency, loop):
    """Whatever it is: no job finds itself in an aio_task that another has left anything on, nor is it cancelled."""
    run_on(loop, _hang_everything(server, prefix, concurrency))


async def _hang_everything(server, prefix, concurrency):
    runtime, shelf = Runtime(server.url, prefix=prefix), Shelf()
    marked: dict[int, str] = {}  # the number of an aio_task → what was left there
    found: list[tuple[object, str]] = []
    ran: list[int] = []

    @runtime.job("job", limiter=None, concurrency=concurrency, attempts=1)
    async def handle(data):
        aio_task = asyncio.current_task()
        _, _, number = aio_task.get_name().partition("Task-")
        if not number or int(number) in marked:
            found.append((data, marked.get(int(number or 0), "name")))
        try:
            if data % 5 == 4:
                await asyncio.sleep(0.001)
        except asyncio.CancelledError:
            found.append((data, "cancellation"))
            raise
        ran.append(data)
        if data % 2:
            hang = HANGERS[data // 2 % len(HANGERS)]
            marked[int(number or 0)] = hang.__name__
            hang(aio_task, data, shelf)

    jobs = 12 * len(HANGERS)
    async with runtime:
        await runtime.queue.add_bulk([("job", n) for n in range(jobs)])
        await runtime.wait_idle(20)
    shelf.kept.clear()
    assert found == []
    assert sorted(ran) == list(range(jobs))
    assert len(marked) == jobs // 2


@pytest.mark.parametrize("loop", LOOPS)
def test_where_the_app_makes_the_aio_tasks_each_job_has_its_own(server, prefix, loop):
    """A factory may keep of each aio_task what it likes, from its first moment on."""
    run_on(loop, _with_a_factory(server, prefix))


async def _with_a_factory(server, prefix):
    runtime = Runtime(server.url, prefix=prefix)
    state: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
    found: list[list[int]] = []

    def factory(loop, coroutine, **options):
        aio_task = asyncio.Task(coroutine, loop=loop, **options)
        state[aio_task] = []
        return aio_task

    @runtime.job("job", limiter=None, concurrency=1, attempts=1)
    async def handle(data):
        mine = state[asyncio.current_task()]
        found.append(list(mine))
        mine.append(data)

    asyncio.get_running_loop().set_task_factory(factory)
    await add_and_run(runtime, 100)
    assert found == [[]] * 100
