"""Registering in code: names, handlers of every kind, dicts as strict as records, unknown options by name."""

from __future__ import annotations

import dataclasses
import functools
import inspect

import pytest

import asyncjobs
from asyncjobs import (
    AsyncjobsError,
    Backoff,
    BrokerError,
    ConfigError,
    JobDefinition,
    JobOptions,
    JobTimeoutError,
    Limiter,
    PayloadError,
    Retention,
    Runtime,
    TaskDefinition,
    UnknownJobError,
    WorkerOptions,
)

RECORDS = [Backoff, Retention, Limiter, JobOptions, WorkerOptions, JobDefinition, TaskDefinition, Runtime]


async def handler(data):
    return data


@pytest.mark.parametrize("kind", RECORDS)
def test_an_unknown_option_is_answered_with_the_nearest(kind):
    required = {"handle": handler, "task": handler, "max": 1, "cron_time": "@daily"}
    names = list(inspect.signature(kind).parameters)
    given = {name: value for name, value in required.items() if name in names}
    for name in names:
        for misspelt in (name[:-1] + "q" if len(name) > 3 else name + "q", name + "_", name.upper() + "S"):
            with pytest.raises(ConfigError) as caught:
                kind(**given, **{misspelt: 1})
            assert f"{kind.__name__} has no option {misspelt!r}" in str(caught.value)
            assert "did you mean" in str(caught.value)
            assert all(one in str(caught.value) for one in names)
    with pytest.raises(ConfigError, match=f"{kind.__name__} has no option 'completely_else'; allowed: "):
        kind(**given, completely_else=1)
    assert kind(**given)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: JobOptions(attempt=3), "did you mean 'attempts'"),
        (lambda: JobOptions(removeOnComplete=True), "did you mean 'remove_on_complete'"),
        (lambda: Limiter(), "missing a required argument: 'max'"),
        (lambda: Limiter(1, 2, "n", 4), "too many positional arguments"),
        (lambda: Limiter(1, max=2), "multiple values for argument 'max'"),
        (lambda: Runtime("redis://x", "jobs"), "too many positional arguments"),
        (lambda: Runtime(max_payloads=1), "did you mean 'max_payload'"),
        (lambda: Runtime(max_result=0), "max_result=0: expected a whole number, at least 1"),
        (lambda: Runtime().job("x", attempt=3), "did you mean 'attempts'"),
        (lambda: Runtime().task("@daily", activ=True), "no option 'activ'"),
        (lambda: TaskDefinition(handler, "@daily", environments=5), "environments=5: expected a list of names"),
        (lambda: TaskDefinition(handler, 5), "cron_time=5: expected a text"),
        (lambda: Runtime().task(handler), "expected a text such as"),
        (lambda: Runtime(jobs=5), "jobs=5: expected the path of a folder"),
        (lambda: Runtime(tasks=5), "tasks=5: expected the path of a folder"),
        (lambda: Runtime(data_dir=5), "data_dir=5: expected the path of a folder"),
        (lambda: JobOptions(timeout=10**5000), "timeout=.*at most 100 years"),
        (lambda: JobOptions(backoff=10**400), "backoff.delay=.*at most 100 years"),
        (lambda: JobOptions(timeout=1e300), "timeout=1e.300: expected more than 0 and at most 100 years"),
        (lambda: Retention(age=10**400), "retention.age=.*at most 100 years"),
        (lambda: Retention(age=True), "retention.age=True: expected seconds"),
        (lambda: Backoff(jitter=True), "backoff.jitter=True: expected a number"),
        (lambda: TaskDefinition(handler, "@daily", environments=[1]), r"environments=\[1\]"),
    ],
)
def test_an_error_in_a_record_is_a_config_error(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_what_a_record_raises_itself_is_not_hidden():
    class Hostile(dict):
        def items(self):
            raise TypeError("mine")

    with pytest.raises(TypeError, match="mine"):
        JobOptions(backoff=Hostile())


NAMES = ["send mail", "a:b", "a\nb", "", "-a", ".a", "ä", "{a}", "a" * 129, 5, None, ["a"], b"a", "a/b", " a"]


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_names_in_code_are_checked(name):
    runtime = Runtime()
    with pytest.raises(ConfigError, match="job name"):
        runtime.add_job(name, {"handle": handler})
    if name is not None:
        with pytest.raises(ConfigError, match="job name"):
            runtime.job(name)(handler)
        with pytest.raises(ConfigError, match="task name"):
            runtime.task("@daily", name=name)(handler)
    assert runtime.queue.names == ()
    assert not hasattr(handler, "add")


DICTS = [
    ({"handle": handler, "attempts": 3}, "the job has no option 'attempts'"),
    ({"handle": handler, "jobOption": {}}, "did you mean 'job_options'"),
    ({}, "the job lacks handle"),
    ({"handle": 5}, "handle=5: expected a function"),
    ({"handle": handler, "jobOptions": {"attempt": 3}}, "job_options has no option 'attempt'"),
    ({"handle": handler, "jobOptions": {"backoff": {"typ": "fixed"}}}, "backoff has no option 'typ'"),
    ({"handle": handler, "jobOptions": {"removeOnComplete": {"ages": 1}}}, "remove_on_complete has no option 'ages'"),
    ({"handle": handler, "workerOptions": {"limiter": {"maximum": 1}}}, "limiter has no option 'maximum'"),
    ({"handle": handler, "workerOptions": {"limiter": [{"max": 1}, {"max": 0}]}}, "limiter.max=0"),
    ({"handle": handler, "workerOptions": {"totalLimiter": {}}}, "total_limiter lacks max"),
    ({"handle": handler, "group": "yes"}, "group='yes': expected True or False"),
    ({"handle": handler, "jobOptions": 5}, "job_options=5: expected JobOptions"),
    ({"handle": handler, 5: 1}, "the job has no option 5"),
    (5, "the job=5: expected JobDefinition"),
    (handler, "expected JobDefinition"),
    ({"handle": handler, "job_options": {}, "jobOptions": {}}, "twice"),
]


@pytest.mark.parametrize(("given", "message"), DICTS, ids=lambda one: one if isinstance(one, str) else "")
def test_a_dict_is_checked_like_the_record(given, message):
    with pytest.raises(ConfigError) as caught:
        Runtime().add_job("a-job", given)
    assert message in str(caught.value)


def test_a_dict_may_use_the_spellings_of_the_original():
    runtime = Runtime()
    given = {
        "handle": handler, "group": True,
        "jobOptions": {"attempts": 2, "removeOnComplete": {"count": 5}, "removeOnFail": True,
                       "backoff": {"type": "exponential", "delay": 1, "maxDelay": 5}},
        "workerOptions": {"limiter": {"max": 1}, "maxStalledCount": 1, "totalLimiter": [{"max": 3}], "groupIdle": 5},
    }  # fmt: skip
    runtime.add_job("a-job", given)
    spec = runtime.queue.spec("a-job")
    assert spec.job_options == JobOptions(2, Backoff("exponential", 1, 5), Retention(count=5), True)
    assert spec.worker_options == WorkerOptions(
        limiter=Limiter(1), max_stalled_count=1, total_limiter=(Limiter(3),), group_idle=5
    )


@dataclasses.dataclass
class Mailer:
    """Not hashable, since it has an ``==``, and with an `add` of its own."""

    host: str = "h"

    async def send(self, data: int):
        return data

    @classmethod
    async def make(cls, data: int):
        return data

    @staticmethod
    async def free(data: int):
        return data

    async def __call__(self, data: int):
        return data


class WithAdd(Mailer):
    def add(self):
        return "mine"


class Slots:
    __slots__ = ()

    async def __call__(self, data: int):
        return data


HANDLERS = {
    "function": lambda: handler,
    "bound": lambda: Mailer().send,
    "classmethod": lambda: Mailer.make,
    "staticmethod": lambda: Mailer.free,
    "raw staticmethod": lambda: Mailer.__dict__["free"],
    "callable": Mailer,
    "callable with add": WithAdd,
    "callable with slots": Slots,
    "partial": lambda: functools.partial(handler),
    "partial of a method": lambda: functools.partial(Mailer().send),
}


@pytest.mark.parametrize("name", HANDLERS)
async def test_what_a_decorator_returns_is_still_the_function(name):
    runtime, made = Runtime(), HANDLERS[name]()
    kept = runtime.job("a-job")(made)
    assert await kept(7) == 7
    assert isinstance(kept.add, functools.partial)
    spec = runtime.queue.spec("a-job")
    assert spec.call.wants == ("data",)
    assert spec.call.is_async
    for reference in (kept, made, spec.definition.handle, *([made.send] if isinstance(made, WithAdd) else [])):
        if reference == getattr(made, "send", None):
            with pytest.raises(UnknownJobError):
                runtime.queue.spec(reference)
        else:
            assert runtime.queue.spec(reference) is spec
    if isinstance(made, WithAdd):
        assert made.add() == "mine"
    with pytest.raises(UnknownJobError):
        runtime.queue.spec(HANDLERS["callable"]())
    handler.__dict__.pop("add", None)
    Mailer.free.__dict__.pop("add", None)


def test_equal_objects_are_two_handlers():
    runtime, one, other = Runtime(), Mailer(), Mailer()
    assert one == other
    runtime.add_job("one", {"handle": one})
    runtime.add_job("other", {"handle": other})
    assert runtime.queue.spec(one).name == "one"
    assert runtime.queue.spec(other).name == "other"


def test_methods_are_found_again_by_their_object():
    runtime, one, other = Runtime(), Mailer(), Mailer()
    runtime.add_job("one", {"handle": one.send})
    runtime.add_job("other", {"handle": other.send})
    assert (runtime.queue.spec(one.send).name, runtime.queue.spec(other.send).name) == ("one", "other")


def test_a_method_in_a_class_is_told_to_be_bound():
    runtime = Runtime()
    with pytest.raises(ConfigError, match="a method is given bound to its object"):

        class Jobs:
            @runtime.job("a-job")
            async def send(self, data): ...

    with pytest.raises(ConfigError, match="a classmethod is bound when its class is made"):

        class Others:
            @runtime.job("a-job")
            @classmethod
            async def send(cls, data): ...

    class Free:
        @runtime.job("a-job")
        @staticmethod
        async def send(data): ...

    assert runtime.queue.spec(Free.send).name == "a-job"
    assert Free.send.add


SPEC_ERRORS = [
    "StateError", "UpstreamError", "JobCancelledError", "JobGoneError", "ConfigError", "LoadError", "PayloadError",
    "UnknownJobError", "NotRunningError", "JobFailedError", "JobTimeoutError", "BrokerError", "BrokerUnavailableError",
]  # fmt: skip


def test_the_errors_that_a_caller_sees():
    for name in SPEC_ERRORS:
        assert issubclass(getattr(asyncjobs, name), AsyncjobsError), name
        assert name in asyncjobs.__all__
    assert issubclass(JobTimeoutError, TimeoutError)
    assert issubclass(asyncjobs.BrokerUnavailableError, BrokerError)
    assert str(JobTimeoutError("it took too long")) == "it took too long"
    for steering in (asyncjobs.Discard, asyncjobs.RetryLater, asyncjobs.RateLimited):
        assert not issubclass(steering, AsyncjobsError)
    assert not PayloadError("x").final
