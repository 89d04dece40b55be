"""The shape of the package, held by reading its imports."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import asyncjobs
from asyncjobs.broker import scripts

ROOT = Path(asyncjobs.__file__).parent
LUA = ROOT / "broker" / "lua"

# A room is a folder of the package, or a file beside them. It may import its siblings and what stands on lower floors.
FLOORS = [
    {"__main__"},
    {"cli"},
    {"demo"},
    {"runtime", "terminal"},
    {"health", "following"},
    {"invariants", "registrations", "idle"},
    {"assembly"},
    {"upkeep", "cron"},
    {"work"},
    {"queue"},
    {"operate"},
    {"limits", "integrations"},
    {"history"},
    {"job", "live_updates"},
    {"operator"},
    {"job_record", "log_context"},
    {"active_job", "events", "embedded"},
    {"declare", "broker"},
    {"supervisor"},
    {"guests", "home"},
    {"logs", "loop_budget"},
    {"errors", "clock", "record", "counters", "words", "redaction"},
]
# Limits wake the queues that they keep waiting, and know of them what is written there alone.
TYPES_ONLY = {("limits", "work")}
# A handle passes what is asked of it on to those who look and act; they do not know the handle that was asked.
HANDLES = {("job", "operate")}


def modules() -> list[tuple[str, Path]]:
    """(room, file) for every module; the example's own jobs and tasks are an app's, not ours."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).parts
        if parts[0] == "demo" and len(parts) > 2:
            continue
        if parts != ("__init__.py",):
            found.append((parts[0].removesuffix(".py"), path))
    return found


def imports(path: Path) -> set[str]:
    """The dotted names that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            if node.module == "asyncjobs":
                names.update(f"asyncjobs.{alias.name}" for alias in node.names)
            elif node.module.startswith("asyncjobs."):
                names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def floor(room: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


def test_every_module_has_a_floor():
    rooms = {room for room, _ in modules()}
    assert rooms == set().union(*FLOORS)


def test_imports_only_go_down():
    wrong = []
    for room, path in modules():
        for name in imports(path):
            other = name.removeprefix("asyncjobs.").split(".")[0]
            known = name.startswith("asyncjobs.") and other != room and any(other in rooms for rooms in FLOORS)
            if known and floor(other) <= floor(room) and (room, other) not in TYPES_ONLY | HANDLES:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_no_module_imports_itself_by_others():
    """Siblings too: whoever reads one of them need not have read all."""
    files = {
        ".".join(("asyncjobs", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
        for _, path in modules()
    }
    arrows = {}
    for name, path in files.items():
        found = imports(path) & files.keys()
        # A folder that a file of it is imported from is no arrow to all that the folder exports.
        arrows[name] = {one for one in found if not any(other.startswith(f"{one}.") for other in found)} - {name}
    left = dict(arrows)
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    assert sorted(left) == []


def test_only_the_broker_imports_redis():
    outside = [
        str(path)
        for room, path in modules()
        if room != "broker" and any(name.split(".")[0] in ("redis", "hiredis") for name in imports(path))
    ]
    assert outside == []


def test_only_the_clock_reads_time():
    # The keeper is a script of its own that imports nothing of ours; the example is an app.
    outside = [
        str(path)
        for room, path in modules()
        if room not in ("clock", "demo") and path.name != "keeper.py" and "time" in imports(path)
    ]
    assert outside == []


def test_the_spine_imports_no_edge():
    edges = {"sentry_sdk", "socketio", "fastapi", "starlette", "aiohttp", "click", "rich", "uvicorn"}
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for room, path in modules()
        if room not in ("cli", "demo", "integrations", "terminal")
        for name in imports(path)
        if name.split(".")[0] in edges
    ]
    assert wrong == []


def test_nothing_that_runs_code_from_data_is_imported():
    wrong = [str(path) for _, path in modules() if {"pickle", "marshal", "shelve", "yaml"} & imports(path)]
    assert wrong == []


def test_importing_loads_no_heavy_edge(tmp_path):
    import subprocess
    import sys

    code = "import sys, asyncjobs; print([m for m in ('sentry_sdk', 'socketio', 'click', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.strip() == "[]"


def test_no_module_has_outgrown_its_noun():
    long = {path.name: n for _, path in modules() if (n := path.read_text().count("\n")) > 400}
    assert long == {}


def test_no_class_has_outgrown_its_noun():
    large = {}
    for _, path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                methods = sum(isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef) for one in node.body)
                if methods > 26:
                    large[node.name] = methods
    assert large == {}


def test_every_script_is_declared_and_called():
    files = {path.stem for path in LUA.glob("*.lua")}
    assert files == {script.name for script in scripts.BY_SHA.values()}
    users = "".join(path.read_text() for path in (ROOT / "broker").glob("*.py") if path.name != "scripts.py")
    for script in scripts.BY_SHA.values():
        assert re.search(rf"\b(scripts\.)?{script.name.upper()}\(", users), f"{script.name} is called by nobody"


def test_script_headers_say_what_the_code_uses():
    for script in scripts.BY_SHA.values():
        head = "\n".join(line for line in script.source.splitlines() if line.startswith("--"))
        code = "\n".join(line for line in script.source.splitlines() if not line.strip().startswith("--"))
        assert script.source.startswith("#!lua"), script.name
        assert re.match(rf"#!lua[^\n]*\n-- {script.name}: ", script.source), (
            f"{script.name} does not begin with its name"
        )
        assert "Returns" in head, f"{script.name} does not say what it returns"
        for kind in ("KEYS", "ARGV"):
            declared = {int(one) for one in re.findall(rf"{kind}\[(\d+)", head)}
            used = {int(one) for one in re.findall(rf"{kind}\[(\d+)\]", code)}
            assert used <= declared, f"{script.name} uses {kind}{sorted(used - declared)} without a word"
        declared_keys = {int(one) for one in re.findall(r"KEYS\[(\d+)", head)}
        assert declared_keys == set(range(1, script.keys + 1)), script.name


def test_every_include_is_shared_or_a_step_of_work():
    """What stands in a file of its own is used by several scripts, or is one of the transitions that `work` makes."""
    users = {path.stem: 0 for path in (LUA / "include").glob("*.lua")}
    for path in LUA.rglob("*.lua"):
        for name in scripts.INCLUDE.findall(path.read_text()):
            users[name] += 1
    steps = {"settle", "retention", "acknowledge", "promote", "take", "own_limit"}
    assert {name for name, times in users.items() if times < 2} == steps
    assert not any("@include" in script.source for script in scripts.BY_SHA.values())


def test_no_user_text_is_ever_formatted_into_a_script():
    text = (ROOT / "broker" / "scripts.py").read_text()
    assert "format(" not in text
    assert not re.search(r"text\s*%|\.replace\(", text)


def test_every_command_in_use_is_asked_for_before_anything_relies_on_it():
    """`permit.lua` names what an ACL user must be allowed; a command that it forgets would be denied half way."""
    call = re.compile(r"\b(?:redis\.)?p?call\('([A-Z]+)'(?:, '(CREATE|DELCONSUMER)')?")
    used = {match.groups() for path in LUA.rglob("*.lua") for match in call.finditer(path.read_text())}
    sent = re.compile(r"""\(\s*"([A-Z]{3,})",""")
    for path in (ROOT / "broker").glob("*.py"):
        used |= {(name, None) for name in sent.findall(path.read_text())}
    used -= {
        ("SCRIPT", None),
        ("EVALSHA", None),
        ("CLUSTER", None),
        ("INFO", None),
        ("CONFIG", None),
        ("READONLY", None),
    }
    asked = {
        (name, more if more in ("CREATE", "DELCONSUMER") else None)
        for name, more in re.findall(r"\{'([A-Z]+)'(?:, '?(\w+)'?)?", (LUA / "permit.lua").read_text())
    }
    assert used - asked == set()
    assert asked - used <= {("SUBSCRIBE", None), ("PING", None)}


# Where an id is data: a key, a member, a tag, the name of a queue.
RAW_IDS = {
    ("broker/keys.py", "job_id"), ("broker/keys.py", "group_id"), ("job.py", "self.group_id"),
    ("integrations/sentry.py", "event.group_id"), ("invariants.py", "job_id"),
}  # fmt: skip


def test_no_text_shows_an_id_as_it_is():
    """An id may hold a newline: in log lines and errors it stands as `visible`, `named` or ``!r`` show it."""
    raw = set()
    for room, path in modules():
        if room == "demo":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FormattedValue) and node.conversion == -1:
                text = ast.unparse(node.value)
                if re.fullmatch(r"(\w+\.)*(id|job_id|group_id|queue_name)", text):
                    raw.add((str(path.relative_to(ROOT)), text))
    assert raw <= RAW_IDS
