"""Payloads, results and progress through a real store: equal, encoded, bounded, and never tried again in vain."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import logging
import os
import shutil
import tempfile
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal
from uuid import UUID

import msgspec
import pydantic
import pytest

from asyncjobs import JobFailedError, JobTimeoutError, PayloadError, Runtime
from tests.helpers import BOUND, eventually, write


class Colour(enum.Enum):
    RED = "red"


class Item(msgspec.Struct):
    sku: str
    price: Decimal


@dataclasses.dataclass
class Order:
    at: datetime
    lines: dict[int, Item]


class Model(pydantic.BaseModel):
    company_id: int = pydantic.Field(alias="companyId")
    when: date


VALUES = {
    "Struct or none": (Item | None, [None, Item("a", Decimal("1.50"))]),
    "list": (list[Item], [[], [Item("a", Decimal(1))]]),
    "dataclass": (Order, [Order(datetime(2026, 1, 1, tzinfo=UTC), {7: Item("a", Decimal(2))})]),
    "model": (Model, [Model(companyId=1, when=date(2026, 1, 1))]),
    "set": (set[UUID], [{UUID(int=1), UUID(int=2)}]),
    "bytes": (bytes, [b"\x00\xff"]),
    "Literal": (Literal["a", 2], ["a", 2]),
    "constraint": (Annotated[int, msgspec.Meta(ge=3)], [3]),
    "tuple": (tuple[Colour, timedelta], [(Colour.RED, timedelta(days=1, seconds=0.5))]),
}


@pytest.mark.parametrize("name", VALUES)
async def test_what_is_added_comes_back_equal(runtime, name):
    annotation, values = VALUES[name]
    seen = []

    async def handle(data):
        seen.append(data)

    handle.__annotations__["data"] = annotation
    runtime.job("a-job", limiter=None)(handle)
    async with runtime:
        for value in values:
            job = await runtime.queue.add("a-job", value)
            assert await job.wait(BOUND) is None
        assert seen == values
        with pytest.raises(PayloadError, match=r"data\.no is a type"):
            await runtime.queue.add("a-job", {"no": object})
        with pytest.raises(PayloadError, match="data does not fit"):
            await runtime.queue.add("a-job", 1.5)
        with pytest.raises(PayloadError, match=r"add_bulk\[1\]: data does not fit"):
            await runtime.queue.add_bulk([("a-job", values[0]), ("a-job", 1.5)])
        assert sum((await runtime.queue.counts("a-job")).values()) == len(values)


RESULTS = [
    (datetime(2026, 1, 1, tzinfo=UTC), "2026-01-01T00:00:00Z"),
    ({"d": Decimal("1.5"), "u": UUID(int=1)}, {"d": "1.5", "u": "00000000-0000-0000-0000-000000000001"}),
    ([Colour.RED, {1}, b"a", timedelta(seconds=1)], ["red", [1], "YQ==", "PT1S"]),
    ({1: date(2026, 1, 1)}, {"1": "2026-01-01"}),
    (Order(datetime(2026, 1, 1), {7: Item("a", Decimal(2))}),
     {"at": "2026-01-01T00:00:00", "lines": {"7": {"sku": "a", "price": "2"}}}),
    (Model(companyId=1, when=date(2026, 1, 1)), {"companyId": 1, "when": "2026-01-01"}),
    ((Item("a", Decimal(1)), None), [{"sku": "a", "price": "1"}, None]),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_what_json_lacks_may_be_a_result_and_a_progress(runtime, kind):
    runs = []

    async def handle(data, job):
        runs.append(data)
        await job.update_progress(RESULTS[data][0])
        return RESULTS[data][0]

    def in_thread(data, job):
        runs.append(data)
        job.update_progress(RESULTS[data][0])
        return RESULTS[data][0]

    runtime.job("a-job", limiter=None)(handle if kind == "async" else in_thread)
    async with runtime:
        for place, (_, read) in enumerate(RESULTS):
            job = await runtime.queue.add("a-job", place)
            assert await job.wait(BOUND) == read
            kept = await runtime.queue.get_job("a-job", job.id)
            assert (kept.result, kept.progress) == (read, read)
        assert runs == list(range(len(RESULTS)))


def endless():
    while True:
        yield 1


class Hostile:
    @property
    def dtype(self):
        raise KeyError("mine")


class Serialising(pydantic.BaseModel):
    a: int

    @pydantic.model_serializer
    def write(self):
        raise LookupError("mine")


BAD = {
    "object": object,
    "nan": lambda: {"a": [float("nan")]},
    "large": lambda: "x" * 2000,
    "generator": endless,
    "coroutine": lambda: endless,
    "digits": lambda: 10**5000,
    "surrogate": lambda: "\ud800",
    "secret": lambda: {"a": pydantic.SecretStr("s3cret")},
    "hostile": Hostile,
    "serialiser": lambda: [Serialising(a=1)],
    "deep": lambda: (lambda a: [a.append(a), a][1])([]),
}


@pytest.mark.parametrize("what", ["result", "progress", "result of a thread", "progress of a thread"])
async def test_what_cannot_be_kept_fails_the_job_at_the_first_try(make_runtime, what, caplog):
    runtime = make_runtime(max_result=1000)
    effects = []

    async def result(data, job):
        effects.append(data)
        return BAD[data]()

    async def progress(data, job):
        effects.append(data)
        await job.update_progress(BAD[data]())

    def thread_result(data, job):
        effects.append(data)
        return BAD[data]()

    def thread_progress(data, job):
        effects.append(data)
        job.update_progress(BAD[data]())

    handlers = [result, progress, thread_result, thread_progress]
    names = ["result", "progress", "result of a thread", "progress of a thread"]
    runtime.job("a-job", limiter=None, attempts=5, backoff=None)(handlers[names.index(what)])
    async with runtime:
        for name in BAD:
            job = await runtime.queue.add("a-job", name)
            with pytest.raises(JobFailedError, match=what.split()[0]):
                await job.wait(BOUND)
            kept = await runtime.queue.get_job("a-job", job.id)
            assert (kept.state, kept.attempts_made, len(kept.error)) == ("failed", 1, 1), name
            assert "PayloadError" in kept.error[0].text
            assert "s3cret" not in str(kept.error)
    assert effects == list(BAD)


async def test_a_payload_error_of_something_that_the_handler_adds_is_tried_again(runtime):
    runs = []

    async def handle(data, queue):
        runs.append(1)
        await queue.add("a-job", object())

    runtime.job("a-job", limiter=None, attempts=3, backoff=None)(handle)
    async with runtime:
        job = await runtime.queue.add("a-job", 1)
        with pytest.raises(JobFailedError):
            await job.wait(BOUND)
    assert len(runs) == 3


async def test_a_result_of_just_the_bound_is_kept(make_runtime):
    runtime = make_runtime(max_result=1000)

    @runtime.job("a-job", limiter=None)
    async def handle(data, job):
        await job.update_progress("x" * data)
        return "x" * data

    async with runtime:
        job = await runtime.queue.add("a-job", 998)
        assert await job.wait(BOUND) == "x" * 998


async def test_a_validator_that_raises_anything_is_a_payload_error(runtime, redis, prefix):
    @dataclasses.dataclass
    class Checked:
        a: int

        def __post_init__(self):
            if self.a < limit:
                raise KeyError("a")

    limit = 0

    async def handle(data: Checked):
        return data.a

    runtime.job("a-job", limiter=None)(handle)
    async with runtime:
        with pytest.raises(PayloadError, match="data does not fit: KeyError"):
            await runtime.queue.add("a-job", {"a": -1})
        await runtime.queue.job("a-job").pause()
        job = await runtime.queue.add("a-job", {"a": 1})
        limit = 5
        await runtime.queue.job("a-job").resume()
        with pytest.raises(JobFailedError, match="data does not fit: KeyError"):
            await job.wait(BOUND)


HOSTILE = ["a\nERROR forged", "b\r\n\x1b[31mred", "c\u2028d", "\x00", "e f", "😀"]


async def test_no_id_forges_a_line(runtime, caplog):
    caplog.set_level(logging.DEBUG, "asyncjobs")

    async def fail(data):
        raise ValueError("on purpose")

    runtime.job("plain", limiter=None, attempts=2, backoff=None)(fail)
    runtime.job("grouped", limiter=None, attempts=1, group=True)(fail)
    errors, shown = [], []
    async with runtime:
        for name in HOSTILE:
            for job in (
                await runtime.queue.add("plain", 1, job_id=name),
                await runtime.queue.add("grouped", 1, job_id=name, group_id=name),
            ):
                shown += [repr(job)]
                with pytest.raises(JobFailedError) as caught:
                    await job.wait(BOUND)
                errors.append(str(caught.value))
                kept = await runtime.queue.get_job(job.name, job.id, job.group_id)
                shown += [repr(kept)]
            later = await runtime.queue.add("plain", 1, job_id=f"{name}2", delay=1000)
            with pytest.raises(JobTimeoutError) as late:
                await later.wait(0.01)
            errors.append(str(late.value))
    said = [record.getMessage() for record in caplog.records if record.name.startswith("asyncjobs")]
    assert any("ERROR forged" in line for line in said)
    for line in (*said, *errors, *shown):
        assert line.isprintable(), line
        assert "data" not in line


async def test_the_repr_of_a_job_shows_no_payload(runtime):
    @runtime.job("a-job", limiter=None)
    async def handle(data, job):
        return {"secret": repr(job)}

    async with runtime:
        job = await runtime.queue.add("a-job", {"password": "hunter2"}, job_id="x")
        assert repr(job) == "<Job a-job x waiting>"
        result = await job.wait(BOUND)
        kept = await runtime.queue.get_job("a-job", "x")
        assert repr(kept) == "<Job a-job x completed>"
        assert "hunter2" not in str(result) + str(kept)


async def test_a_wait_that_took_too_long_is_a_timeout_error(runtime):
    @runtime.job("a-job")
    async def handle(data): ...

    async with runtime:
        job = await runtime.queue.add("a-job", 1, delay=1000)
        with pytest.raises(TimeoutError):
            await job.wait(0.01)


async def test_a_test_has_a_store_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = tempfile.mkdtemp(prefix="aj-")
    monkeypatch.setattr(tempfile, "tempdir", short)
    write(tmp_path, {"jobs/mail.py": "limiter = None\nasync def handle(data): return data"})
    folders = set()
    for _ in range(2):  # a stopped runtime may be started again
        runtime = Runtime(jobs=tmp_path / "jobs", environment="test")
        for _ in range(2):
            async with runtime, Runtime(jobs=tmp_path / "jobs", environment="test", consume=False) as other:
                for one in (runtime, other):
                    folders.add(one._assembly.embedded.folder)
                    assert Path(one._assembly.embedded.folder).stat().st_mode & 0o77 == 0
                assert await (await runtime.queue.add("mail", 1)).wait(BOUND) == 1
                job = await other.queue.add("mail", 1)
                assert (await other.queue.counts("mail"))["waiting"] == 1
                assert await runtime.queue.get_job("mail", job.id) is None
            await eventually(lambda: os.listdir(short) == [], what="the folders to be gone")
    assert len(folders) == 8
    Path(short).rmdir()
    assert not (tmp_path / ".asyncjobs").exists()


async def test_a_relative_folder_of_the_store_belongs_to_the_project(tmp_path, monkeypatch):
    folder = Path(tempfile.mkdtemp(prefix="aj-"))
    write(folder, {"pyproject.toml": "", "src/app/jobs/mail.py": "def handle(): pass", "other/x": ""})
    for data_dir, jobs, here, wanted in (
        (None, folder / "src" / "app" / "jobs", "other", folder / ".asyncjobs"),
        ("data", folder / "src" / "app" / "jobs", "other", folder / "data"),
        ("data", Path("../src/app/jobs"), "other", folder / "data"),
        (None, None, "other", folder / "other" / ".asyncjobs"),
        (folder / "mine", folder / "src" / "app" / "jobs", "other", folder / "mine"),
    ):
        monkeypatch.chdir(folder / here)
        async with Runtime(jobs=jobs, data_dir=data_dir) as runtime:
            assert runtime._assembly.embedded.folder == wanted
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(folder, ignore_errors=True)


async def test_a_store_that_is_named_is_used_in_a_test(tmp_path, monkeypatch, server):
    monkeypatch.chdir(tmp_path)
    async with Runtime(environment="test", data_dir="mine"):
        assert (tmp_path / "mine").is_dir()
    monkeypatch.setenv("ASYNCJOBS_REDIS_URL", getattr(server, "url", "") or "redis://127.0.0.1:1")
    if hasattr(server, "url"):
        async with Runtime(environment="test") as runtime:
            assert runtime._assembly.embedded is None
    await asyncio.sleep(0)
