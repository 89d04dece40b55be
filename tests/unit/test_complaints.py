"""What may happen a thousand times a second is said once every ten, with how often it happened."""

from __future__ import annotations

import logging

from asyncjobs import complaints
from asyncjobs.complaints import Complaints


def test_each_kind_is_said_once_an_interval_and_the_rest_is_counted(monkeypatch, caplog):
    now = 0.0
    monkeypatch.setattr("asyncjobs.clock.monotonic", lambda: now)
    said = Complaints(logging.getLogger("asyncjobs"))
    for n in range(100):
        said.error("queue", "trouble %d", n)
        said.warning("other", "other trouble %d", n)
    assert [record.message for record in caplog.records] == ["trouble 0", "other trouble 0"]
    now = complaints.INTERVAL
    said.error("queue", "trouble %d", 100)
    assert caplog.records[-1].message == "trouble 100 (and 99 more like it)"
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING", "ERROR"]


def test_endless_kinds_fill_no_memory(caplog):
    said = Complaints(logging.getLogger("asyncjobs"))
    for n in range(3 * complaints.MOST_KINDS):
        said.warning(f"kind {n}", "trouble")
    assert len(said._said) <= complaints.MOST_KINDS
