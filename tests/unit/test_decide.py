"""decide(): outcome × attempt × options → what is written and told."""

from __future__ import annotations

import logging

import pytest

from asyncjobs import Backoff, Discard, JobDefinition, JobOptions
from asyncjobs.active_job import ActiveJob
from asyncjobs.broker import Keys, TakenJob
from asyncjobs.declare.definition import JobSpec
from asyncjobs.declare.overrides import Overrides
from asyncjobs.logs import told
from asyncjobs.work.decide import decide, store
from asyncjobs.work.executor import Completed, Failed, Later, Lost, Released


def job(attempts_made: int = 0, overrides: bytes = b"", **options) -> ActiveJob:
    definition = JobDefinition(handle=lambda data: None, job_options=JobOptions(**options))
    taken = TakenJob("id", b"1-0", b"{}", attempts_made, 0, 0, overrides, b"token")
    return ActiveJob(None, None, JobSpec("a", definition), Keys("p", "a"), taken)


@pytest.mark.parametrize(
    ("given", "outcome", "op", "event", "number", "keep"),
    [
        (job(), Completed(b"1"), "c", "job.completed", 0, ""),
        (job(remove_on_complete=True), Completed(b""), "c", "job.completed", 0, "0"),
        (job(overrides=b'{"c":[7,-1]}'), Completed(b""), "c", "job.completed", 0, "7:-1"),
        (job(), Released(), "b", "", 0, ""),
        (job(), Later(1.5), "r", "job.retrying", 1500, "0"),
        (job(), Failed(ValueError("x")), "r", "job.retrying", 60_000, "1"),
        (job(backoff=None), Failed(ValueError("x")), "r", "job.retrying", 0, "1"),
        (job(3, backoff=Backoff("exponential", 1)), Failed(ValueError("x")), "r", "job.retrying", 8000, "1"),
        (job(backoff=lambda made, error: made * 2.5), Failed(ValueError("x")), "r", "job.retrying", 2500, "1"),
        (job(1, attempts=2), Failed(ValueError("x")), "f", "job.failed", 0, ""),
        (job(0, attempts=2, overrides=b'{"a":1}'), Failed(ValueError("x")), "f", "job.failed", 0, ""),
        (job(9, attempts=2, overrides=b'{"a":null}'), Failed(ValueError("x")), "r", "job.retrying", 60_000, "1"),
        (job(), Failed(Discard("no"), final=True), "f", "job.failed", 0, ""),
        (job(remove_on_fail=0, attempts=1), Failed(ValueError("x")), "f", "job.failed", 0, "0"),
    ],
)
def test_every_outcome_has_one_consequence(given, outcome, op, event, number, keep):
    decision = decide(given, outcome)
    assert decision is not None
    written = decision.settlement
    assert (written.op, decision.event, written.number, written.keep) == (op, event, number, keep)
    assert (written.job_id, written.entry, written.token) == ("id", b"1-0", b"token")


def test_a_lost_try_writes_nothing():
    assert decide(job(), Lost()) is None


@pytest.mark.parametrize("rule", [lambda made, error: "soon", lambda made, error: float("nan"), lambda: 1])
def test_a_backoff_function_that_fails_waits_a_minute(rule, caplog):
    with caplog.at_level(logging.ERROR):
        decision = decide(job(backoff=rule), Failed(ValueError("x")))
    assert decision is not None
    assert decision.settlement.number == 60_000
    assert "backoff function of a failed" in caplog.text


def test_overrides_travel_small_and_come_back():
    assert Overrides.of({}, JobOptions()).encode() == b""
    given = {"attempts": 3, "backoff": Backoff("exponential", 2, jitter=0.1), "timeout": None}
    read = Overrides.decode(Overrides.of(given, JobOptions(**given)).encode())
    options = JobOptions(timeout=5)
    assert read.attempts(options) == 3
    assert read.backoff(options) == Backoff("exponential", 2, jitter=0.1)
    assert read.timeout(options) is None
    assert Overrides().timeout(options) == 5


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_any_error_can_be_kept():
    assert b"Unspeakable" in store(told(Unspeakable()))
    assert len(store(told(ValueError("x" * 100_000)))) < 8400
    assert store(told(ValueError("\ud800")))


@pytest.mark.parametrize("text", ["x" * 100_000, "é" * 100_000, "line\n" * 100_000, "\0" * 100_000, "\ud800" * 9000])
def test_an_error_is_kept_within_bounds_and_its_frames_are_there(text):
    try:
        raise ValueError(text)
    except ValueError as error:
        kept = told(error)
    assert kept.text.startswith("ValueError: ")
    assert len(kept.text.encode()) + len(kept.stack.encode()) <= 8192
    assert "raise ValueError(text)" in kept.stack
    assert not kept.whole


def test_a_long_text_in_the_chain_of_an_error_hides_no_frame():
    try:
        try:
            raise ValueError("line\n" * 100_000)
        except ValueError as cause:
            raise KeyError("short") from cause
    except KeyError as error:
        kept = told(error)
    assert 'raise KeyError("short") from cause' in kept.stack
    assert "raise ValueError(" in kept.stack
    assert not kept.whole, "nobody formats the long text anew"
