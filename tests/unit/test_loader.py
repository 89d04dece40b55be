"""Both folders, both forms, every bad file in one LoadError."""

from __future__ import annotations

import sys

import pytest

from asyncjobs import AsyncjobsWarning, Limiter, LoadError, Runtime
from asyncjobs.declare.options import Retention
from tests.helpers import write

GOOD_JOBS = {
    "jobs/send_mail.py": """
        from asyncjobs import Backoff, JobOptions, Limiter, WorkerOptions
        job_options = JobOptions(attempts=10, backoff=Backoff("fixed", 30))
        worker_options = WorkerOptions(limiter=Limiter(max=5, duration=1))
        async def handle(data, services): return services
    """,
    "jobs/export-invoices.py": """
        from asyncjobs import JobDefinition, JobOptions, WorkerOptions
        async def define(services):
            async def handle(data, job, queue, io): return services
            return JobDefinition(handle=handle, job_options=JobOptions(attempts=1, backoff=None),
                                 worker_options=WorkerOptions(limiter=None), group=False)
    """,
    "jobs/product_invoice/process_response.py": """
        from .shared import ANSWER
        def handle(data): return ANSWER
    """,
    "jobs/product_invoice/_draft.py": "raise SystemExit",
    "jobs/product_invoice/shared.py": "ANSWER = 42\nasync def handle(data): pass",
    "jobs/deep/er/still_deeper.py": """
        def define(services): return {"handle": lambda data: 1, "jobOptions": {"attempts": 2}}
    """,
    "jobs/__init__.py": "",
    "jobs/index.py": "raise RuntimeError",
    "jobs/conftest.py": "raise RuntimeError",
    "jobs/test_send_mail.py": "raise RuntimeError",
    "jobs/send_mail_test.py": "raise RuntimeError",
    "jobs/send_mail_spec.py": "raise RuntimeError",
    "jobs/send-mail.spec.py": "raise RuntimeError",
    "jobs/.hidden.py": "raise RuntimeError",
    "jobs/json.py": "async def handle(data): return 'not the json of Python'",
}
GOOD_TASKS = {
    "tasks/poll_invoice_status.py": """
        cron_time = "*/5 * * * *"
        is_active = True
        environments = ["production"]
        async def task(services, queue): pass
    """,
    "tasks/update-exchange-rates.py": """
        from asyncjobs import TaskDefinition
        def define(services, queue):
            def task(): return services
            return TaskDefinition(task=task, cron_time="@daily", is_active=False, timezone="Europe/London")
    """,
}


def project(tmp_path, files, **options) -> Runtime:
    write(tmp_path, files)
    folders = {kind: tmp_path / kind for kind in ("jobs", "tasks") if (tmp_path / kind).exists()}
    return Runtime("redis://127.0.0.1:1", **folders, **options)


async def test_names_forms_and_options(tmp_path):
    loaded = await project(tmp_path, {**GOOD_JOBS, **GOOD_TASKS}, services={"pool": 1}).load()
    jobs = {spec.name: spec for spec in loaded.jobs}
    assert sorted(jobs) == [
        "deep-er-still-deeper", "export-invoices", "json", "product-invoice-process-response",
        "product-invoice-shared", "send-mail",
    ]  # fmt: skip
    assert jobs["send-mail"].limiters == (Limiter(5, 1),)
    assert jobs["send-mail"].job_options.remove_on_complete == Retention(age=30 * 86400, count=1000)
    assert jobs["export-invoices"].limiters == ()
    assert jobs["export-invoices"].job_options.backoff is None
    assert jobs["deep-er-still-deeper"].job_options.attempts == 2
    assert jobs["product-invoice-process-response"].definition.handle({}) == 42
    assert await jobs["export-invoices"].definition.handle(1, 2, 3, 4) == {"pool": 1}
    tasks = {spec.name: spec for spec in loaded.tasks}
    assert sorted(tasks) == ["poll-invoice-status", "update-exchange-rates"]
    assert tasks["poll-invoice-status"].zone.key == "America/Sao_Paulo"
    assert tasks["update-exchange-rates"].zone.key == "Europe/London"
    assert tasks["update-exchange-rates"].definition.cron_time == "0 0 * * *"


async def test_an_importable_folder_keeps_its_real_names(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    files = {
        "shopapp/__init__.py": "",
        "shopapp/money.py": "RATE = 3",
        "shopapp/jobs/charge.py": "from ..money import RATE\nasync def handle(data): return RATE",
    }
    write(tmp_path, files)
    runtime = Runtime("redis://127.0.0.1:1", jobs=tmp_path / "shopapp" / "jobs")
    (spec,) = (await runtime.load()).jobs
    assert spec.definition.handle.__module__ == "shopapp.jobs.charge"
    assert sys.modules["shopapp.jobs.charge"].handle is spec.definition.handle
    assert runtime.queue.spec(spec.definition.handle) is spec


async def test_loading_twice_is_the_same(tmp_path):
    runtime = project(tmp_path, GOOD_JOBS)
    first = await runtime.load()
    again = await runtime.load()
    assert [spec.name for spec in first.jobs] == [spec.name for spec in again.jobs]


BAD = {
    "jobs/a/b.py": ("async def handle(data): pass", "its name 'a-b' is also that of"),
    "jobs/a-b.py": ("async def handle(data): pass", "its name 'a-b' is also that of"),
    "jobs/broken.py": ("import no_such_module_at_all", "ModuleNotFoundError: No module named 'no_such_module_at_all'"),
    "jobs/syntax.py": ("def handle(:", "SyntaxError"),
    "jobs/exits.py": ("raise SystemExit(3)", "SystemExit: 3"),
    "jobs/empty.py": ("x = 1", "no definition: expected define() or handle()"),
    "jobs/both.py": ("def handle(data): pass\ndef define(services): pass", "both define() and handle()"),
    "jobs/nothing.py": ("def define(services): pass", "define() returned nothing"),
    "jobs/wants.py": ("def handle(payload): pass", "asks for 'payload'; it may name data, job, queue, io, services"),
    "jobs/define_wants.py": ("def define(db): return {}", "define asks for 'db'; it may name services, queue, io"),
    "jobs/option.py": ("def define(): return {'handle': print, 'atempts': 3}", "no option 'atempts'"),
    "jobs/value.py": ("job_options = {'attempts': -1}\ndef handle(data): pass", "attempts=-1: expected a whole number"),
    "jobs/misspelt.py": ("job_option = {'attempts': 1}\ndef handle(data): pass", "did you mean 'job_options'?"),
    "jobs/hint.py": ("def handle(data: 'NoSuchType'): pass", "the annotation data: NoSuchType cannot be resolved"),
    "tasks/when.py": ("cron_time = '61 * * * *'\nis_active = True\ndef task(): pass", "cron_time='61 * * * *'"),
    "tasks/never.py": ("is_active = True\ndef task(): pass", "the task lacks cron_time"),
    "tasks/zone.py": ("cron_time = '@daily'\nis_active = True\ntimezone = 'Moon'\ndef task(): pass", "timezone='Moon'"),
    "tasks/over.py": ("cron_time = '@daily'\nis_active = True\noverlap = 'maybe'\ndef task(): pass", "overlap='maybe'"),
    "tasks/where.py": (
        "cron_time = '@daily'\nis_active = True\nenvironments = 'live'\ndef task(): pass",
        "environments='live'",
    ),
}


async def test_every_bad_file_is_named_in_one_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runtime = project(
        tmp_path, {name: text for name, (text, _) in BAD.items()} | {"jobs/good.py": "def handle(): pass"}
    )
    with pytest.raises(LoadError) as caught:
        await runtime.start()
    reasons = {complaint.path: complaint.reason for complaint in caught.value.complaints}
    assert sorted(reasons) == sorted(BAD)
    for name, (_, reason) in BAD.items():
        assert reason in reasons[name], name
        assert f"{name}: " in str(caught.value)
    assert str(caught.value).startswith("19 files could not be loaded")
    assert caught.value.__cause__ is not None
    assert runtime.state == "stopped"
    assert runtime.queue.names == ()


async def test_bad_files_may_be_left_out_where_that_is_asked_for(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    files = {name: text for name, (text, _) in BAD.items()} | {"jobs/good.py": "def handle(): pass"}
    loaded = await project(tmp_path, files, strict_load=False).load()
    assert [spec.name for spec in loaded.jobs] == ["good"]
    assert loaded.tasks == []
    for name, (_, reason) in BAD.items():
        assert any(name in record.message and reason in record.message for record in caplog.records), name
    assert len(caplog.records) == len(BAD)


async def test_a_missing_folder_is_said(tmp_path):
    with pytest.raises(LoadError, match="there is no such folder"):
        await Runtime("redis://127.0.0.1:1", jobs=tmp_path / "nowhere").load()


async def test_a_link_out_of_the_folder_is_refused(tmp_path):
    write(tmp_path, {"outside.py": "def handle(): pass", "jobs/good.py": "def handle(): pass"})
    (tmp_path / "jobs" / "sly.py").symlink_to(tmp_path / "outside.py")
    with pytest.raises(LoadError, match="a link that leads out of"):
        await Runtime("redis://127.0.0.1:1", jobs=tmp_path / "jobs").load()


async def test_a_name_taken_in_code_is_complained_of(tmp_path):
    runtime = project(tmp_path, {"jobs/mail.py": "def handle(): pass"})
    runtime.job("mail")(lambda data: None)
    with pytest.raises(LoadError, match="'mail' is registered in code as well"):
        await runtime.load()


async def test_a_task_that_leaves_is_active_out_is_named(tmp_path):
    runtime = project(tmp_path, {"tasks/sleepy.py": "cron_time = '@daily'\ndef task(): pass"})
    with pytest.warns(AsyncjobsWarning, match=r"sleepy\.py: the task does not say is_active"):
        (spec,) = (await runtime.load()).tasks
    assert not spec.runs_in("production")


async def test_milliseconds_of_the_original_are_asked_about(tmp_path):
    runtime = project(
        tmp_path, {"jobs/mail.py": "jobOptions = {'backoff': {'type': 'fixed', 'delay': 60000}}\ndef handle(): pass"}
    )
    with pytest.warns(AsyncjobsWarning, match=r"60000 is 16\.7 hours; did you mean 60 seconds\?"):
        await runtime.load()


async def test_no_task_is_ever_imported_in_test(tmp_path):
    files = {"jobs/good.py": "def handle(): pass", "tasks/bad.py": "raise RuntimeError"}
    assert (await project(tmp_path, files, environment="test").load()).tasks == []
