"""What may happen a thousand times a second is said once every ten, with how often it happened."""

from __future__ import annotations

import logging

import pytest

from asyncjobs import logs
from asyncjobs.logs import ThrottledLog


def test_each_kind_is_said_once_an_interval_and_the_rest_is_counted(monkeypatch, caplog):
    now = 0.0
    monkeypatch.setattr("asyncjobs.clock.monotonic", lambda: now)
    said = ThrottledLog(logging.getLogger("asyncjobs"))
    for n in range(100):
        said.error("queue", "trouble %d", n)
        said.warning("other", "other trouble %d", n)
    assert [record.message for record in caplog.records] == ["trouble 0", "other trouble 0"]
    now = logs.SAID_EVERY
    said.error("queue", "trouble %d", 100)
    assert caplog.records[-1].message == "trouble 100 (and 99 more like it)"
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING", "ERROR"]


def test_endless_kinds_fill_neither_memory_nor_the_log(monkeypatch, caplog):
    now = 0.0
    monkeypatch.setattr("asyncjobs.clock.monotonic", lambda: now)
    said = ThrottledLog(logging.getLogger("asyncjobs"))
    for _ in range(3):
        caplog.clear()
        for n in range(5 * logs.MOST_KINDS):
            said.warning(f"kind {n} at {now}", "trouble")
        assert len(caplog.records) <= logs.MOST_KINDS + 1
        assert len(said._said) <= logs.MOST_KINDS + 1
        now += logs.SAID_EVERY
    said.warning("later", "there is room for a new kind")
    assert "room for a new kind" in caplog.text


class Rude:
    """Text that cannot be had."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __str__(self) -> str:
        raise self.error

    __repr__ = __str__


@pytest.mark.parametrize("error", [ValueError(), SystemExit(), KeyboardInterrupt(), GeneratorExit()])
def test_what_cannot_be_put_into_words_harms_nobody(error):
    said = ThrottledLog(logging.getLogger("asyncjobs"))
    said.warning("rude", "there is %s", Rude(error))
    said.error("ruder", "there is %r", Rude(error))
