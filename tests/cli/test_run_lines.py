"""What `run` prints while it works: a line for each finished try and tick, as text and as JSON, bounded."""

from __future__ import annotations

import io
import json
import logging
import re
import signal
import subprocess
import sys

import pytest

from asyncjobs import words
from asyncjobs.cli import COMMANDS, log_output
from tests.helpers import Process, command_line, eventually, write

PROJECT = {
    "jobs/charge.py": """
        import logging
        from asyncjobs import RetryLater, WorkerOptions
        attempts, backoff, limiter = 2, 0.05, None
        async def handle(data, job):
            if data == "log":
                more = {"order": 7, "odd": {1: set()}}
                logging.getLogger("shop").warning("paid \\x1b[2J by\\nERROR forged", extra=more)
            if data == "later":
                raise RetryLater(3600)
            if data == "fail":
                raise ValueError("no \\x1b[31m such\\nERROR user")
    """,
    "jobs/sync.py": "group = True\nlimiter = None\nasync def handle(data): pass",
    "tasks/tick.py": "cron_time = '* * * * * *'\nis_active = True\nasync def task(): pass",
}


@pytest.fixture
def project(tmp_path):
    return write(tmp_path, PROJECT)


async def run_some(project, *options: str) -> tuple[str, dict[str, str]]:
    """The output of a run that has done a job of each kind; and their ids."""
    process = Process(project, "run", *options)
    try:
        quiet = "-q" in options
        await process.says("charge" if quiet else "ready") if not quiet else None
        ids = {}
        for kind in ("log", "later", "fail"):
            ids[kind] = command_line(project, "add", "charge", json.dumps(kind)).stdout.strip()
        ids["sync"] = command_line(project, "add", "sync", "1", "--group", "a\nb").stdout.strip()
        await process.says(f"{ids['fail']} failed for good")
        if not quiet:
            await process.says(ids["sync"])
            await process.says("tick completed")
        process.signal(signal.SIGTERM)
        assert await process.ended() == 0
        return process.output, ids
    finally:
        process.kill()


@pytest.mark.slow
async def test_a_line_for_each_finished_try_and_tick_and_no_text_forges_one(project):
    output, ids = await run_some(project)
    lines = output.splitlines()

    def the(*parts: str) -> str:
        (line,) = [one for one in lines if all(part in one for part in parts)]
        return line

    assert " INFO asyncjobs.work: charge " in the(ids["log"], "completed at try 1")
    assert the(ids["log"], "completed").endswith("ms")
    assert "ended at try 1, again in 1 h as it asked" in the(ids["later"])
    assert "failed at try 1 of 2, again in 0.05 s: ValueError: no" in the(ids["fail"], "try 1")
    assert r"such\nERROR user" in the(ids["fail"], "for good")
    assert rf"sync {ids['sync']} of 'a\nb' completed" in the(ids["sync"])
    assert any(" INFO asyncjobs.cron: task tick completed" in line for line in lines)
    assert "\x1b" not in output
    at = lines.index(the("paid"))
    assert lines[at].endswith(r"paid \x1b[2J by")
    assert lines[at + 1] == f"    ERROR forged  [charge {ids['log']} try 1]"
    assert output.count("Traceback") == 2


@pytest.mark.slow
async def test_quiet_prints_warnings_and_errors_alone(project):
    output, ids = await run_some(project, "-q")
    assert "completed" not in output
    assert "ready" not in output
    assert "stopped" not in output
    assert f"{ids['fail']} failed for good" in output


@pytest.mark.slow
async def test_json_is_one_object_a_line_with_the_same_keys(project):
    output, ids = await run_some(project, "--log-format", "json")
    lines = [json.loads(line) for line in output.splitlines()]
    assert len({tuple(line) for line in lines}) == 1, "the same keys in the same order"
    assert list(lines[0]) == [
        "at", "level", "logger", "message", "job", "group", "id", "attempt", "task", "outcome", "duration", "delay",
        "error", "stack", "extra",
    ]  # fmt: skip
    outcomes = {(one["id"], one["attempt"]): one for one in lines if one["outcome"] and one["id"]}
    assert {key: one["outcome"] for key, one in outcomes.items()} == {
        (ids["log"], 1): "completed",
        (ids["later"], 1): "later",
        (ids["fail"], 1): "retrying",
        (ids["fail"], 2): "failed",
        (ids["sync"], 1): "completed",
    }
    failed = outcomes[ids["fail"], 2]
    assert (failed["job"], failed["level"], failed["logger"]) == ("charge", "error", "asyncjobs.work")
    assert failed["error"] == "ValueError: no ?[31m such\nERROR user"
    assert "in handle" in failed["stack"]
    assert outcomes[ids["sync"], 1]["group"] == "a\nb"
    assert outcomes[ids["later"], 1]["delay"] == 3600
    assert all(one["duration"] >= 0 for one in outcomes.values())
    (mine,) = [one for one in lines if one["logger"] == "shop"]
    assert (mine["job"], mine["id"], mine["attempt"]) == ("charge", ids["log"], 1)
    assert mine["extra"]["order"] == 7
    assert any(one["task"] == "tick" and one["outcome"] == "completed" for one in lines)
    assert any("ready" in one["message"] for one in lines)


async def test_an_app_that_has_set_logging_up_keeps_it_unless_json_is_asked_for(project):
    (project / "shop.py").write_text(
        "import logging\n"
        "logging.basicConfig(level=logging.INFO, format='MINE %(message)s')\n"
        "from asyncjobs import Runtime\n"
        "runtime = Runtime(jobs='jobs')\n"
    )
    assert command_line(project, "add", "charge", "1", "--app", "shop:runtime").returncode == 0
    done = command_line(project, "run", "--burst", "--app", "shop:runtime")
    assert any(line.startswith("MINE charge ") for line in done.stderr.splitlines())
    done = command_line(project, "run", "--burst", "--app", "shop:runtime", "--log-format", "json")
    assert "MINE" not in done.stderr
    assert all(json.loads(line) for line in done.stderr.splitlines())


@pytest.fixture
def console():
    """A logger's output as `run` sets it up, without its root."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(log_output.TextLines(False, False))
    logger = logging.getLogger("asyncjobs")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


async def test_thousands_a_second_are_told_of_by_number(runtime, console):
    @runtime.job("many", limiter=None, concurrency=100)
    async def many(data): ...

    @runtime.job("bad", limiter=None, concurrency=100, attempts=1)
    async def bad(data):
        raise ValueError

    async with runtime:
        lines = log_output.Lines(runtime, well=True)
        await runtime.queue.add_bulk([("many", n) for n in range(3000)] + [("bad", n) for n in range(500)])
        await eventually(lambda: runtime.health()["counters"]["failed"] == 500)
        await eventually(lambda: runtime.health()["counters"]["completed"] == 3000)
        lines.close()
    assert not runtime._bus.wants("job.completed"), "nobody listens any more"
    text = console.getvalue()
    told = {"completed": text.count("completed at try 1"), "failed": text.count("failed for good at try 1")}
    left = {
        kind: sum(int(one.replace(",", "")) for one in re.findall(rf"([\d,]+) {kind}\b(?! )", text)) for kind in told
    }
    assert {kind: told[kind] + left[kind] for kind in told} == {"completed": 3000, "failed": 500}
    seconds = text.count("of which no line is printed") + 1
    assert log_output.MOST_LINES <= told["completed"] <= log_output.MOST_LINES * seconds
    assert log_output.MOST_LINES <= told["failed"] <= log_output.MOST_LINES * seconds


def line(**parts) -> logging.LogRecord:
    record = logging.makeLogRecord({"name": "asyncjobs.work", "levelno": 20, "levelname": "INFO", "msg": "x", **parts})
    return record


def test_a_terminal_gets_a_mark_and_colours_unless_it_does_not_want_them(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert log_output.colours(Terminal())
    assert not log_output.colours(io.StringIO())
    shown = log_output.TextLines(True, True).format(line(outcome="completed", duration=0.0123))
    assert "\x1b[32m✓\x1b[0m x" in shown
    assert "12 ms" in shown
    plain = log_output.TextLines(True, False).format(line(outcome="failed", levelno=40, levelname="ERROR"))
    assert plain[8:] == " ✕ x"
    monkeypatch.setenv("NO_COLOR", "1")
    assert not log_output.colours(Terminal())


@pytest.mark.parametrize(
    "extra",
    [
        {"loop": None},
        {"nan": float("nan")},
        {(1, 2): 3},
        {"bytes": b"\xff"},
        {"bad": type("B", (), {"__str__": None})()},
    ],
)
def test_json_lines_are_json_whatever_the_app_puts_on_a_record(extra):
    if "loop" in extra:
        extra["loop"] = extra
    found = json.loads(log_output.JsonLines().format(line(order=extra)))
    assert found["message"] == "x"
    assert "order" in (found["extra"] if isinstance(found["extra"], dict) else str(found["extra"]))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 ms"), (0.00042, "0.4 ms"), (0.0123, "12 ms"), (0.9999, "1 s"), (1.25, "1.25 s"), (9.999, "10 s"),
        (48.2, "48 s"), (59.7, "1 min"), (200, "3 min 20 s"), (3600, "1 h"), (7500, "2 h 5 min"), (356400, "4 d 3 h"),
        (float("inf"), "for ever"), (-5, "-5 s"),
    ],
)  # fmt: skip
def test_durations_in_words(seconds, text):
    assert words.duration(seconds) == text


def test_what_is_not_printable_is_an_escape():
    hostile = "a\x1b[2J\r\u202eb\x9b\ud800\u2028c\té"
    assert words.one_line(hostile) == r"a\x1b[2J\r\u202eb\x9b\ud800\u2028c\té"
    assert words.lines("a\tb\n\x1b") == "a\tb\n\\x1b"
    assert words.one_line(hostile).isprintable()


@pytest.mark.parametrize("command", ["", *COMMANDS, "jobs retry", "queues set", "tasks next"])
def test_help_imports_next_to_nothing(tmp_path, command):
    """So that it shows at once: neither the runtime nor the store's client nor tables."""
    code = (
        "import sys\n"
        "from asyncjobs.cli import main\n"
        f"try:\n    main([*{command.split()!r}, '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = ('redis', 'rich', 'sentry_sdk', 'socketio', 'asyncjobs.runtime')\n"
        "print(len(sys.modules), [one for one in heavy if one in sys.modules])"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    last = process.stdout.splitlines()[-1]
    assert last.endswith("[]"), last
    assert int(last.split()[0]) < (200 if not command else 400)
