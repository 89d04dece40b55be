"""Loads jobs/ and tasks/ as definitions. Each complaint names its file, and one LoadError carries all complaints."""

from __future__ import annotations

import difflib
import inspect
import logging
import os
import re
import types
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from asyncjobs.declare.definition import (
    DEFINE_ARGUMENTS,
    Call,
    JobDefinition,
    JobSpec,
    TaskDefinition,
    TaskSpec,
    check_limiters,
)
from asyncjobs.declare.importer import Importer, Names, home_of, is_of_user, user_line
from asyncjobs.declare.options import JobOptions, WorkerOptions
from asyncjobs.declare.payload import MOST
from asyncjobs.declare.values import build, keywords, loading, shown, snake, warn
from asyncjobs.errors import AsyncjobsError, Complaint, ConfigError, LoadError

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger("asyncjobs")

IGNORED: Final = re.compile(r"^(_.*|\..*|index|conftest|test_.*|.*_test|.*_spec|.*\.spec)$")
RECORDS: Final = {"job_options": JobOptions, "worker_options": WorkerOptions}
FLAT: Final = {one.name: record for record, kind in RECORDS.items() for one in fields(kind)}  # option → its record
JOB_PLAIN: Final = ("handle", *RECORDS, "group", *FLAT)
TASK_PLAIN: Final = tuple(one.name for one in fields(TaskDefinition))


class Source(NamedTuple):
    """A file that declares a job or a task, and the name of that job or task."""

    name: str
    path: Path
    shown: str


class Loaded(NamedTuple):
    jobs: list[JobSpec]
    tasks: list[TaskSpec]


def sources(folder: Path, complaints: list[Complaint]) -> list[Source]:
    """The files of `folder` in path order. Where two files have one name, both get a complaint."""
    root = folder.resolve()
    found: list[Source] = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if any(IGNORED.fullmatch(part) for part in parts) or "__pycache__" in parts:
            continue
        text = _relative(path)
        if not path.resolve().is_relative_to(root):
            complaints.append(Complaint(text, f"it is a link that leads out of {folder}; put the file itself there"))
            continue
        found.append(Source("-".join(parts).replace("_", "-"), path, text))
    by_name: dict[str, list[Source]] = {}
    for source in found:
        by_name.setdefault(source.name, []).append(source)
    for name, same in by_name.items():
        if len(same) > 1:
            for one in same:
                others = ", ".join(other.shown for other in same if other is not one)
                complaints.append(Complaint(one.shown, f"its name {name!r} is also that of {others}; rename one"))
    return [same[0] for same in by_name.values() if len(same) == 1]


def _relative(path: Path) -> str:
    text = os.path.relpath(path)
    return str(path) if text.startswith("..") else text


async def load(
    jobs: Path | None,
    tasks: Path | None,
    *,
    given: Mapping[str, Any],
    timezone: str,
    known: tuple[JobSpec, ...] = (),
    known_tasks: tuple[TaskSpec, ...] = (),
    strict: bool = True,
    max_result: int = MOST,
) -> Loaded:
    """Import every file and make its definition.

    Args:
        given: the arguments that `define` may ask for: services, queue, io.
        known: the definitions that were registered in code; their names are taken.
        strict: False: each bad file is logged as an error, and the other files are loaded.
        max_result: see `Runtime`.
    Raises:
        LoadError: with every bad file and its reason.
    """
    complaints: list[Complaint] = []
    loaded = Loaded([], [])
    for kind, folder in (("jobs", jobs), ("tasks", tasks)):
        if folder is None:
            continue
        if not folder.is_dir():
            complaints.append(Complaint(str(folder), f"there is no such folder; name it with {kind}=… or make it"))
            continue
        home = home_of(folder)
        try:
            importer = Importer(folder)
        except (Exception, SystemExit) as error:  # raised by the package around the folder
            complaints.append(_complaint(_relative(folder), error, {}, home))
            continue
        for source in sources(folder, complaints):
            options: dict[str, int] = {}
            try:
                with _loading(source):
                    module = importer.load(source.path)
                    names = Names.of(source.path)
                    if kind == "jobs":
                        declared = await _declared(module, names, "handle", given, options, home)
                        spec = _job(source, declared, known, max_result)
                        check_limiters(spec, (*known, *loaded.jobs))
                        loaded.jobs.append(spec)
                    else:
                        declared = await _declared(module, names, "task", given, options, home)
                        loaded.tasks.append(_task(source, declared, timezone, known_tasks))
            except (Exception, SystemExit) as error:
                complaints.append(_complaint(source.shown, error, options, home))
    if complaints:
        complaints.sort(key=lambda one: one.path)
        if not strict:
            for one in complaints:
                logger.error("left out, its jobs wait until it loads: %s: %s", one.path, one.reason, exc_info=one.cause)
            return loaded
        raise LoadError(complaints) from next((one.cause for one in complaints if one.cause is not None), None)
    return loaded


@contextmanager
def _loading(source: Source) -> Iterator[None]:
    token = loading.set(source.shown)
    try:
        yield
    finally:
        loading.reset(token)


def _complaint(file: str, error: BaseException, options: Mapping[str, int], home: Path) -> Complaint:
    """The complaint about a file: the error, and the line of the app that raised it."""
    ours = isinstance(error, AsyncjobsError)
    reason = str(error) if ours else f"{type(error).__name__}: {error}"
    line = user_line(error, home)
    if ours:
        key = re.split(r"\W", reason, maxsplit=1)[0]
        record = FLAT.get(key, "")
        at = options.get(key) or options.get(record) or (options.get("handle") if key in ("data", "the") else None)
        line = line or (at and (file, at)) or None
        if key in options and key in (*FLAT, *TASK_PLAIN, "group") and key != "task":
            reason += f"; {key} in the file is an option, rename it if it means something else"
    if line is not None:
        reason += f" (at {_relative(Path(line[0]))}:{line[1]})"
    return Complaint(file, reason, error.__cause__ or error if ours else error)


def _job(source: Source, declared: Any, known: tuple[JobSpec, ...], max_result: int) -> JobSpec:
    definition = build(JobDefinition, declared, "the job")
    if any(spec.name == source.name for spec in known):
        raise ConfigError(f"a job called {source.name!r} is registered in code as well; rename one")
    return JobSpec(source.name, definition, source.shown, max_result)


def _task(source: Source, declared: Any, timezone: str, known: tuple[TaskSpec, ...]) -> TaskSpec:
    definition = build(TaskDefinition, declared, "the task")
    if any(spec.name == source.name for spec in known):
        raise ConfigError(f"a task called {source.name!r} is registered in code as well; rename one")
    spec = TaskSpec(source.name, definition, timezone, source.shown)
    if not isinstance(definition.is_active, bool):
        warn("the task does not say is_active, so it is never run; set is_active = True or False")
    return spec


async def _declared(
    module: types.ModuleType,
    names: Names,
    plain: str,
    given: Mapping[str, Any],
    options: dict[str, int],
    home: Path,
) -> Any:
    """Return the declaration of a module: the result of its `define`, or its plain names as a dict.

    Args:
        options: receives the names of the module that are read as options, and the line of each.
        home: the folder of the app's own code.
    """
    found = vars(module)
    here = [one for one in ("define", plain) if callable(found.get(one)) and not names.only_imports(one)]
    if not here:  # an imported function of the app counts too: `from shop.mail import handle`
        here = [one for one in ("define", plain) if callable(found.get(one)) and is_of_user(found[one], home)]
    if len(here) > 1:
        raise ConfigError(f"the file has both define() and {plain}(); keep one form")
    if not here:
        raise ConfigError(f"no definition: expected define() or {plain}()")
    if here == [plain]:
        return _plain(found, names, plain, options)
    made = Call(found["define"], DEFINE_ARGUMENTS, "define")(given)
    made = await made if inspect.isawaitable(made) else made
    if made is None:
        raise ConfigError("define() returned nothing; it returns the definition")
    return made


def _plain(found: Mapping[str, Any], names: Names, plain: str, options: dict[str, int]) -> dict[str, Any]:
    """The options among a module's names. A name that is close to an option, and is none, is refused."""
    allowed = JOB_PLAIN if plain == "handle" else TASK_PLAIN
    chosen = {plain: found[plain]}
    options[plain] = names.line(plain)
    for key, value in found.items():
        if key == plain or key.startswith("_") or names.only_imports(key) or not _is_value(key, value, names):
            continue
        if not key[:1].islower():
            continue  # ATTEMPTS is a constant of the file
        if snake(key) in allowed:
            chosen[key] = value
            options[snake(key)] = names.line(key)
            continue
        near = difflib.get_close_matches(key, [one for one in allowed if one != plain], n=1, cutoff=0.85)
        if near or isinstance(value, (JobOptions, WorkerOptions)):
            options[key] = names.line(key)
            raise ConfigError(f"{key} = {shown(value)} is no option; did you mean {(near or list(RECORDS))[0]!r}?")
    given = keywords(chosen, allowed, "the file")
    return _nested(given) if plain == "handle" else given


def _is_value(key: str, value: Any, names: Names) -> bool:
    """True if a name of a module holds a value. Modules, classes and functions are no options, except for a backoff."""
    if inspect.ismodule(value) or inspect.isclass(value):
        return False
    return not inspect.isroutine(value) or (key == "backoff" and not names.defines(key))


def _nested(given: dict[str, Any]) -> dict[str, Any]:
    """Move flat options into their records. An option that stands in both places is refused."""
    for name, kind in RECORDS.items():
        flat = {key: given.pop(key) for key in list(given) if FLAT.get(key) == name}
        if not flat:
            continue
        record = given.get(name, {})
        if isinstance(record, Mapping):
            record = keywords(record, tuple(one.name for one in fields(kind)), name)
            twice = [key for key in flat if key in record]
        else:
            record = build(kind, record, name)
            defaults = kind()
            twice = [key for key in flat if getattr(record, key) != getattr(defaults, key)]
        if twice:
            raise ConfigError(f"{twice[0]} stands in {name} as well; keep one of them")
        try:
            given[name] = kind(**record, **flat) if isinstance(record, Mapping) else replace(record, **flat)
        except ConfigError:
            _blame(kind, flat)
            raise
    return given


def _blame(kind: type, flat: Mapping[str, Any]) -> None:
    """Raise the error of the flat option that is to blame, under the option's name, if one option alone is."""
    for key, value in flat.items():
        try:
            kind(**{key: value})
        except ConfigError as error:
            said = str(error)
            raise ConfigError(said if said.startswith(key) else f"{key}={shown(value)}: {said}") from None
