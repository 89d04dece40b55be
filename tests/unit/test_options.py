"""Options: defaults as documented, checked when they are made, explicit None surviving."""

from __future__ import annotations

import warnings
from datetime import timedelta

import pytest

from asyncjobs import (
    AsyncjobsWarning,
    Backoff,
    ConfigError,
    JobDefinition,
    JobOptions,
    Limiter,
    Retention,
    Runtime,
    WorkerOptions,
)
from asyncjobs.declare.definition import JobSpec
from asyncjobs.declare.values import UNSET, build

DAY = 86_400


async def handler(data):
    return data


def spec(**definition) -> JobSpec:
    return JobSpec("a-job", JobDefinition(handle=handler, **definition))


def test_job_options_default_to_the_table():
    options = JobOptions()
    assert options.attempts == 100
    assert options.backoff == Backoff("fixed", 60)
    assert options.remove_on_complete == Retention(age=30 * DAY, count=1000)
    assert options.remove_on_fail == Retention(age=90 * DAY, count=5000)
    assert options.timeout is None


def test_worker_options_default_to_the_table():
    options = WorkerOptions()
    assert options.limiter == Limiter(max=2, duration=1)
    assert options.concurrency is UNSET
    assert (options.max_stalled_count, options.autorun, options.lease, options.group_idle) == (5, False, 30, 600)
    assert spec().concurrency == 10
    assert spec(group=True).concurrency == 1


def test_an_explicit_none_means_none():
    made = spec(
        job_options=JobOptions(attempts=1, backoff=None), worker_options=WorkerOptions(limiter=None, concurrency=None)
    )
    assert made.job_options.backoff is None
    assert made.job_options.remove_on_complete == Retention(age=30 * DAY, count=1000)
    assert made.limiters == ()
    assert made.concurrency is None


def test_dicts_are_read_like_records_in_both_spellings():
    given = {
        "handle": handler,
        "jobOptions": {"attempts": 3, "backoff": {"type": "exponential", "delay": 2}, "removeOnComplete": True},
        "worker_options": {"limiter": {"max": 5, "duration": 1}, "maxStalledCount": 1},
    }
    made = JobSpec("x", build(JobDefinition, given, "the job"))
    assert made.job_options.attempts == 3
    assert made.job_options.backoff == Backoff("exponential", 2)
    assert made.job_options.remove_on_complete == Retention(count=0)
    assert made.job_options.remove_on_fail == Retention(age=90 * DAY, count=5000)
    assert made.limiters == (Limiter(5, 1),)
    assert made.worker_options.max_stalled_count == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: JobOptions(attempts=0), "attempts=0: expected a whole number, at least 1"),
        (lambda: JobOptions(attempts=True), "attempts=True"),
        (lambda: JobOptions(timeout=0), "timeout=0: expected more than 0"),
        (lambda: JobOptions(timeout=float("nan")), "timeout=nan"),
        (lambda: JobOptions(backoff="soon"), "backoff='soon': expected Backoff"),
        (lambda: JobOptions(remove_on_fail="all"), "remove_on_fail='all': expected True, False, a count"),
        (lambda: Backoff("linear", 1), "backoff.type='linear': expected one of 'fixed', 'exponential'"),
        (lambda: Backoff("fixed", -1), "backoff.delay=-1: expected at least 0"),
        (lambda: Backoff("fixed", 1, jitter=2), "backoff.jitter=2: expected a number from 0 to 1"),
        (lambda: Limiter(0, 1), "limiter.max=0"),
        (lambda: Limiter(1, 0), "limiter.duration=0: expected more than 0"),
        (lambda: Retention(count=-1), "retention.count=-1"),
        (lambda: Retention(age="1d"), "retention.age='1d': expected seconds"),
        (lambda: WorkerOptions(concurrency=0), "concurrency=0"),
        (lambda: WorkerOptions(limiter=5), "limiter=5: expected Limiter"),
        (lambda: WorkerOptions(lease=None), "lease=None: expected seconds"),
        (lambda: WorkerOptions(autorun="yes"), "autorun='yes': expected True or False"),
        (lambda: JobDefinition(handle="x"), "handle='x': expected a function"),
        (lambda: build(JobOptions, {"atempts": 1}, "job_options"), "no option 'atempts'; did you mean 'attempts'"),
        (lambda: build(JobOptions, {"removeOnFail": 1, "remove_on_fail": 2}, "job_options"), "twice"),
        (lambda: build(Limiter, {"duration": 1}, "limiter"), "limiter lacks max"),
        (lambda: JobSpec("a:b", JobDefinition(handle=handler)), "job name 'a:b'"),
        (lambda: Runtime(prefix="{x}"), "prefix='{x}'"),
        (lambda: Runtime(timezone="Mars/Base"), "timezone='Mars/Base': expected an IANA name"),
        (lambda: Runtime(durability="strong"), "durability='strong': expected one of 'local', 'replicated'"),
        (lambda: Runtime(consume=1), "consume=1: expected True or False"),
        (lambda: Runtime(connect_timeout=0), "connect_timeout=0: expected more than 0"),
        (lambda: Runtime(io=object()), "expected a socketio.AsyncServer"),
        (lambda: Runtime().on("job.done", print), "no event is called 'job.done'"),
        (lambda: Runtime().on("job.failed", 5), "expected a function of one event"),
    ],
)
def test_a_bad_value_names_the_option_the_value_and_what_is_allowed(make, message):
    with pytest.raises(ConfigError) as caught:
        make()
    assert message in str(caught.value)


def test_what_looks_like_milliseconds_is_asked_about():
    with pytest.warns(AsyncjobsWarning, match=r"16\.7 hours; did you mean 60 seconds\?"):
        Backoff("fixed", 60_000)
    with pytest.warns(AsyncjobsWarning, match="did you mean 90 seconds"):
        JobOptions(timeout=90_000)
    with pytest.warns(AsyncjobsWarning, match=r"2\.9 days|69\.4 hours"):
        Limiter(1, 250_000)


def test_what_is_plainly_meant_is_not_asked_about():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Backoff("fixed", 3600 * 12)
        Backoff("fixed", timedelta(days=3))
        assert Retention(age=30 * DAY).age == 30 * DAY
        assert JobOptions(timeout=600).timeout == 600


def test_backoff_waits():
    assert [Backoff("fixed", 7).wait(n) for n in (1, 2, 9)] == [7, 7, 7]
    assert [Backoff("exponential", 1).wait(n) for n in (1, 2, 3, 4)] == [1, 2, 4, 8]
    assert [Backoff("exponential", 1, max_delay=5).wait(n) for n in (3, 4, 500, 100_000)] == [4, 5, 5, 5]
    assert Backoff("fixed", 10, jitter=0.5).wait(1, rng=lambda: 1.0) == 5
    assert Backoff("fixed", 10, jitter=0.5).wait(1, rng=lambda: 0.0) == 10
    assert Backoff("exponential", 0).wait(50) == 0


def test_timedeltas_are_durations():
    assert Limiter(1, timedelta(minutes=1)).duration == 60.0
    assert JobOptions(timeout=timedelta(milliseconds=1500)).timeout == 1.5
