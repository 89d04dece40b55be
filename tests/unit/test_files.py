"""What a file declares: options at module level, handlers of every kind, and what is said of a bad one."""

from __future__ import annotations

import dataclasses
import sys
import warnings

import pytest

from asyncjobs import AsyncjobsWarning, Backoff, JobOptions, Limiter, LoadError, Retention, Runtime, WorkerOptions
from asyncjobs.declare.values import UNSET
from tests.helpers import write


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


async def job(tmp_path, text, **files):
    write(tmp_path, {"jobs/a_job.py": text, **{f"{name}.py": text for name, text in files.items()}})
    (spec,) = (await Runtime("redis://127.0.0.1:1", jobs=tmp_path / "jobs").load()).jobs
    return spec


async def task(tmp_path, text, **files):
    write(tmp_path, {"tasks/a_task.py": text, **{f"{name}.py": text for name, text in files.items()}})
    (spec,) = (await Runtime("redis://127.0.0.1:1", tasks=tmp_path / "tasks").load()).tasks
    return spec


HANDLE = "\nasync def handle(data): return data\n"
TASK = "\nis_active = True\ncron_time = '@daily'\nasync def task(): pass\n"
JOB_VALUES = {
    "attempts": ("3", 3),
    "backoff": ("{'type': 'exponential', 'delay': 2}", Backoff("exponential", 2)),
    "remove_on_complete": ("True", Retention(count=0)),
    "remove_on_fail": ("7", Retention(count=7)),
    "timeout": ("5", 5.0),
}
WORKER_VALUES = {
    "limiter": ("{'max': 5, 'duration': 2}", Limiter(5, 2)),
    "concurrency": ("None", None),
    "max_stalled_count": ("2", 2),
    "autorun": ("True", True),
    "lease": ("60", 60.0),
    "group_idle": ("5", 5.0),
    "total_limiter": ("{'max': 5}", Limiter(5, 1)),
    "total_concurrency": ("9", 9),
    "ordered": ("True", True),
}
VALUES = {**JOB_VALUES, **WORKER_VALUES}


def test_every_option_is_in_the_tables():
    for kind, values in ((JobOptions, JOB_VALUES), (WorkerOptions, WORKER_VALUES)):
        assert {one.name for one in dataclasses.fields(kind)} == set(values)


def camel(name):
    first, *rest = name.split("_")
    return first + "".join(part.title() for part in rest)


@pytest.mark.parametrize("spelt", [str, camel])
@pytest.mark.parametrize("name", VALUES)
async def test_a_flat_name_is_the_option(tmp_path, name, spelt):
    text, value = VALUES[name]
    spec = await job(tmp_path, f"group = True\n{spelt(name)} = {text}" + HANDLE)
    assert getattr(spec.job_options if name in JOB_VALUES else spec.worker_options, name) == value
    others = {**dict.fromkeys(VALUES)}
    del others[name]
    for other in others:
        record, plain = (
            (spec.job_options, JobOptions()) if other in JOB_VALUES else (spec.worker_options, WorkerOptions())
        )
        assert getattr(record, other) == getattr(plain, other)


@pytest.mark.parametrize("name", VALUES)
async def test_flat_options_join_those_of_the_record(tmp_path, name):
    text, value = VALUES[name]
    job_options, worker_options = ("{'timeout': 9}", "{'lease': 90}")
    if name in ("timeout", "lease"):
        job_options, worker_options = ("{'attempts': 9}", "{'max_stalled_count': 9}")
    for kind in ("dict", "record"):
        if kind == "record":
            job_options, worker_options = f"JobOptions(**{job_options})", f"WorkerOptions(**{worker_options})"
        lines = (
            "from asyncjobs import JobOptions, WorkerOptions", "group = True", f"job_options = {job_options}",
            f"worker_options = {worker_options}", f"{name} = {text}",
        )  # fmt: skip
        write(tmp_path, {f"{kind}/jobs/a.py": "\n".join(lines) + HANDLE})
        (spec,) = (await Runtime("redis://127.0.0.1:1", jobs=tmp_path / kind / "jobs").load()).jobs
        assert getattr(spec.job_options if name in JOB_VALUES else spec.worker_options, name) == value
        assert 9 in (spec.job_options.timeout, spec.job_options.attempts)
        assert {90, 9} & {spec.worker_options.lease, spec.worker_options.max_stalled_count}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("kind", ["dict", "camel", "record"])
async def test_an_option_in_both_places_is_refused(tmp_path, name, kind):
    text, _ = VALUES[name]
    place = "job_options" if name in JOB_VALUES else "worker_options"
    record = "JobOptions" if name in JOB_VALUES else "WorkerOptions"
    given = {
        "dict": f"{{'{name}': {text}}}",
        "camel": f"{{'{camel(name)}': {text}}}",
        "record": f"{record}({name}={text})",
    }
    with pytest.raises(LoadError, match=rf"a_job\.py: {name} stands in {place} as well; keep one of them"):
        await job(tmp_path, f"from asyncjobs import *\n{place} = {given[kind]}\n{name} = {text}" + HANDLE)


@pytest.mark.parametrize("name", VALUES)
async def test_a_value_that_does_not_fit_is_said_to_be_an_option(tmp_path, name):
    with pytest.raises(LoadError) as caught:
        await job(tmp_path, f"import os\n\n{name} = object()" + HANDLE)
    assert f"{name} in the file is an option, rename it if it means something else" in str(caught.value)
    assert "jobs/a_job.py:3" in str(caught.value)


NO_OPTION = [
    "from shared import {0}",
    "from shared import something as {0}",
    "from shared import *",
    "import shared as {0}",
    "try:\n    from shared import {0}\nexcept ImportError:\n    pass",
    "class {0}: pass",
    "def {0}(a, b): return 1",
    "async def {0}(): pass",
    "if True:\n    def {0}(a, b): return 1",
]


@pytest.mark.parametrize("text", NO_OPTION)
@pytest.mark.parametrize("name", [*VALUES, "group", "job_options", "worker_options"])
async def test_what_a_job_imports_or_defines_is_no_option(tmp_path, text, name):
    shared = f"{name} = 'from elsewhere'\nsomething = object()\n"
    spec = await job(tmp_path, text.format(name) + HANDLE, shared=shared)
    assert spec.job_options == JobOptions()
    assert spec.worker_options == WorkerOptions()
    assert spec.concurrency == 10
    assert not spec.grouped


@pytest.mark.parametrize("text", NO_OPTION)
@pytest.mark.parametrize("name", ["timezone", "environments", "every_instance", "overlap", "misfire", "misfire_grace"])
async def test_what_a_task_imports_or_defines_is_no_option(tmp_path, text, name):
    shared = f"{name} = 'from elsewhere'\nsomething = object()\n"
    spec = await task(tmp_path, text.format(name) + TASK, shared=shared)
    assert spec.zone.key == "America/Sao_Paulo"
    assert spec.definition.environments is None
    assert not spec.definition.every_instance
    assert (spec.definition.overlap, spec.definition.misfire) == ("skip", "skip")


IMPORTS = [
    "from attrs import define\n@define\nclass X:\n    a: int",
    "from datetime import timezone, datetime, timedelta",
    "from dataclasses import *",
    "from asyncjobs import *",
    "from shared import task, handle, define",
    "from asyncio import timeout",
]


@pytest.mark.parametrize("text", IMPORTS)
async def test_usual_imports_mean_nothing(tmp_path, text):
    shared = "def task(x): pass\ndef handle(x): pass\ndef define(x): pass"
    assert (await job(tmp_path, text + HANDLE, shared=shared)).job_options == JobOptions()
    assert (await task(tmp_path, text + TASK, shared=shared)).zone.key == "America/Sao_Paulo"


@pytest.mark.parametrize(
    "text", ["from attrs import define", "from shutil import copy as handle", "import os as define"]
)
async def test_a_definition_of_a_library_is_none(tmp_path, text):
    with pytest.raises(LoadError, match=r"no definition: expected define\(\) or handle\(\)"):
        await job(tmp_path, text)


async def test_what_is_assigned_from_an_import_is_an_option(tmp_path):
    text = "from shared import attempts as common, limiter\nattempts = common * 2\nlimiter = limiter\nTIMEOUT = 'x'\n"
    spec = await job(tmp_path, text + HANDLE, shared="attempts = 3\nlimiter = None")
    assert (spec.job_options.attempts, spec.limiters, spec.job_options.timeout) == (6, (), None)


async def test_a_backoff_may_be_a_function_that_is_assigned(tmp_path):
    spec = await job(tmp_path, "backoff = lambda failures, error: failures * 2" + HANDLE)
    assert spec.job_options.backoff(3, None) == 6


HANDLERS = {
    "imported": "from lib import handle",
    "bound": "from lib import Mailer\nhandle = Mailer().send",
    "classmethod": "from lib import Mailer\nhandle = Mailer.make",
    "staticmethod": "from lib import Mailer\nhandle = Mailer.free",
    "raw staticmethod": "from lib import Mailer\nhandle = Mailer.__dict__['free']",
    "callable": "from lib import Mailer\nhandle = Mailer()",
    "partial": "import functools\nfrom lib import three\nhandle = functools.partial(three, 5)",
    "partial by name": "import functools\nfrom lib import three\n"
    "h = functools.partial(three, first=5)\nhandle = functools.partial(h, services=5)",
    "partial of a callable": "import functools\nfrom lib import Mailer\nhandle = functools.partial(Mailer())",
    "partial of a method": "import functools\nfrom lib import Mailer\nhandle = functools.partial(Mailer().send)",
    "decorated": "from lib import deco\n@deco\nasync def handle(data: int): return data",
    "lambda": "from lib import handle as h\nhandle = lambda data: h(data)",
}
LIB = """
import dataclasses, functools
@dataclasses.dataclass
class Mailer:
    async def send(self, data: int): return data
    @classmethod
    async def make(cls, data: int): return data
    @staticmethod
    async def free(data: int): return data
    async def __call__(self, data: int): return data
async def handle(data: int): return data
async def three(first, data: int, services=None): return data
def deco(f):
    @functools.wraps(f)
    async def inner(*args, **kwargs): return await f(*args, **kwargs)
    return inner
"""


@pytest.mark.parametrize("name", HANDLERS)
async def test_everything_that_can_be_called_is_a_handler(tmp_path, name):
    spec = await job(tmp_path, HANDLERS[name], lib=LIB)
    assert await spec.call(dict.fromkeys(("data", "job", "queue", "io", "services"), 7)) == 7
    assert spec.call.wants[0] == "data"
    assert ("services" in spec.call.wants) == (name == "partial")
    if name != "lambda":
        assert spec.call.is_async
        with pytest.raises(Exception, match="data"):
            spec.codec.encode("no int", 100)


REFUSED = {
    "generator": ("def handle(data):\n    yield 1", "handle is a generator"),
    "async generator": ("async def handle(data):\n    yield 1", "handle is a generator"),
    "generator method": (
        "class A:\n    def __call__(self, data):\n        yield 1\nhandle = A()",
        "handle is a generator",
    ),
    "partial": (
        "import functools\ndef g(a, data):\n    yield\nhandle = functools.partial(g, 1)",
        "handle is a generator",
    ),
    "class": ("class handle:\n    def __init__(self, data): pass", "this is a class"),
    "kwargs": ("async def handle(**kwargs): pass", "names no argument"),
    "args": ("async def handle(*args, **kwargs): pass", "names no argument"),
    "without wraps": (
        "def deco(f):\n    async def inner(*a, **k): return await f(*a, **k)\n    return inner\n@deco\n"
        "async def handle(data): pass",
        "functools.wraps",
    ),
    "positional": ("async def handle(data, /): pass", "positional-only"),
    "positional default": ("async def handle(data=None, /): pass", "positional-only"),
    "unknown": ("async def handle(data, db): pass", "asks for 'db'"),
    "keyword": ("async def handle(data, *, db): pass", "asks for 'db'"),
    "self": ("class A:\n    async def send(self, data): pass\nhandle = A.send", "bound to its object"),
    "raw classmethod": (
        "class A:\n    @classmethod\n    def f(cls, data): pass\nhandle = A.__dict__['f']",
        "no definition",
    ),
    "define": ("def define():\n    yield {}", "define is a generator"),
    "unchecked": ("class A: pass\nasync def handle(data: A): pass", "A cannot be checked"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_would_never_run_is_refused(tmp_path, name):
    text, reason = REFUSED[name]
    with pytest.raises(LoadError) as caught:
        await job(tmp_path, text)
    assert reason in str(caught.value)


LINES = {
    "in the file": ("x = 1\n1 / 0", "ZeroDivisionError: division by zero (at jobs/a_job.py:2)"),
    "in a helper": ("import helper\nhelper.broken()" + HANDLE, "KeyError: 'x' (at helper.py:3)"),
    "in a helper that is imported": ("import bad", "ModuleNotFoundError: No module named 'nowhere' (at bad.py:2)"),
    "in a library": ("import json\n\njson.loads('x')", "(at jobs/a_job.py:3)"),
    "syntax": ("x = 1\n\ndef (", "(at jobs/a_job.py:3)"),
    "syntax in a helper": ("import unread", "(at unread.py:2)"),
    "record": ("from asyncjobs import *\n\njob_options = JobOptions(\n    attempts=0)", "(at jobs/a_job.py:3)"),
    "record in a helper": ("import helper\n\nx = helper.options()", "(at helper.py:5)"),
    "define": ("def define():\n    return {}['x']", "KeyError: 'x' (at jobs/a_job.py:2)"),
    "async define": ("async def define():\n    import helper\n    helper.broken()", "KeyError: 'x' (at helper.py:3)"),
    "flat": ("a = 1\nattempts = 0" + HANDLE, "attempts=0: expected a whole number, at least 1"),
    "flat line": ("a = 1\nattempts = 0" + HANDLE, "(at jobs/a_job.py:2)"),
    "dict": ("a = 1\n\njob_options = {'attempts': 0}" + HANDLE, "(at jobs/a_job.py:3)"),
    "misspelt": ("a = 1\natempts = 3" + HANDLE, "did you mean 'attempts'? (at jobs/a_job.py:2)"),
    "handle": ("a = 1\nasync def handle(db): pass", "services (at jobs/a_job.py:2)"),
    "annotation": ("a = 1\nasync def handle(data: complex): pass", "(at jobs/a_job.py:2)"),
    "exit": ("import sys\nsys.exit(3)", "SystemExit: 3 (at jobs/a_job.py:2)"),
}


@pytest.mark.parametrize("name", LINES)
async def test_a_load_error_names_the_innermost_line_of_the_app(tmp_path, name):
    text, reason = LINES[name]
    made = "def options():\n    return JobOptions(attempts=0)"
    helper = "from asyncjobs import JobOptions\ndef broken():\n    {}['x']\n" + made
    with pytest.raises(LoadError) as caught:
        await job(tmp_path, text, helper=helper, bad="import os\nimport nowhere", unread="x = 1\ndef (")
    assert reason in str(caught.value)
    assert str(caught.value).count(" (at ") == 1


async def test_an_app_that_is_installed_is_still_the_app(tmp_path, monkeypatch):
    monkeypatch.setattr("asyncjobs.declare.importer.LIBRARIES", (str(tmp_path / "site") + "/",))
    files = {
        "site/shop9/__init__.py": "",
        "site/shop9/mail.py": "def handle(data): pass\ndef broken(): 1 / 0",
        "site/shop9/jobs/mail.py": "from shop9.mail import handle",
        "site/shop9/jobs/other.py": "from other_library import handle",
        "site/shop9/jobs/third.py": "from shop9.mail import broken\nbroken()",
        "site/other_library.py": "def handle(data): pass",
    }
    write(tmp_path, files)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    with pytest.raises(LoadError) as caught:
        await Runtime("redis://127.0.0.1:1", jobs=tmp_path / "site" / "shop9" / "jobs").load()
    assert [one.path for one in caught.value.complaints] == ["site/shop9/jobs/other.py", "site/shop9/jobs/third.py"]
    assert "no definition" in caught.value.complaints[0].reason
    assert "(at site/shop9/mail.py:2)" in caught.value.complaints[1].reason


WARNINGS = {
    "record": "from asyncjobs import Backoff\nbackoff = Backoff('fixed', 60000)",
    "dict": "job_options = {'backoff': {'type': 'fixed', 'delay': 60000}}",
    "flat": "timeout = 90000",
    "nested": "limiter = [{'max': 1, 'duration': 60000}]",
    "define": "def define(): return {'handle': lambda data: 1, 'jobOptions': {'timeout': 90000}}",
}


@pytest.mark.parametrize("name", WARNINGS)
async def test_a_warning_names_its_file(tmp_path, name):
    with pytest.warns(AsyncjobsWarning, match=r"^jobs/a_job\.py: .*did you mean \d+ seconds\?") as caught:
        await job(tmp_path, WARNINGS[name] + ("" if name == "define" else HANDLE))
    assert len(caught) == 1


def test_a_warning_in_code_names_the_line_that_made_it():
    for make in (
        lambda: Backoff("fixed", 60_000),
        lambda: JobOptions(backoff={"type": "fixed", "delay": 60_000}),
        lambda: WorkerOptions(limiter=[{"max": 1, "duration": 60_000}]),
        lambda: Runtime().job("x", timeout=90_000)(lambda data: None),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            make()
        assert [one.filename for one in caught] == [__file__]


def test_the_default_concurrency_is_still_unset():
    assert WorkerOptions().concurrency is UNSET
