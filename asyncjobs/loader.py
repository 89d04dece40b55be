"""jobs/ and tasks/ → definitions. Every complaint names its file, and all of them come in one LoadError."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import logging
import os
import re
import sys
import types
import warnings
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, NamedTuple

from asyncjobs.config import JobOptions, WorkerOptions, build, keywords, shown
from asyncjobs.definition import (
    DEFINE_ARGUMENTS,
    Call,
    JobDefinition,
    JobSpec,
    TaskDefinition,
    TaskSpec,
)
from asyncjobs.errors import AsyncjobsError, AsyncjobsWarning, Complaint, ConfigError, LoadError

logger = logging.getLogger("asyncjobs")

IGNORED: Final = re.compile(r"^(_.*|\..*|index|conftest|test_.*|.*_test|.*_spec|.*\.spec)$")
JOB_PLAIN: Final = ("handle", "job_options", "worker_options", "group")
TASK_PLAIN: Final = tuple(one.name for one in fields(TaskDefinition))
# A misspelt option of the plain form would silently mean its default, so names that resemble one are refused.
CAMEL: Final = {
    "jobOptions": "job_options",
    "workerOptions": "worker_options",
    "cronTime": "cron_time",
    "isActive": "is_active",
}


class Source(NamedTuple):
    """A file that declares something, and the name it declares it under."""

    name: str
    path: Path
    shown: str


class Loaded(NamedTuple):
    jobs: list[JobSpec]
    tasks: list[TaskSpec]


def sources(folder: Path, complaints: list[Complaint]) -> list[Source]:
    """The files of `folder` in path order; two of one name are complained of, both."""
    root = folder.resolve()
    found: list[Source] = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if any(IGNORED.fullmatch(part) for part in parts) or "__pycache__" in parts:
            continue
        text = os.path.relpath(path)
        text = str(path) if text.startswith("..") else text
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


async def load(
    jobs: Path | None,
    tasks: Path | None,
    *,
    given: Mapping[str, Any],
    timezone: str,
    known: tuple[JobSpec, ...] = (),
    known_tasks: tuple[TaskSpec, ...] = (),
    strict: bool = True,
) -> Loaded:
    """Import every file and make its definition.

    Args:
        given: what `define` may ask for: services, queue, io.
        known: what was registered in code, whose names are taken.
        strict: False logs every bad file as an error and goes on with the others.
    Raises:
        LoadError: with every bad file and its reason.
    """
    complaints: list[Complaint] = []
    job_specs: list[JobSpec] = []
    task_specs: list[TaskSpec] = []
    for kind, folder in (("jobs", jobs), ("tasks", tasks)):
        if folder is None:
            continue
        if not folder.is_dir():
            complaints.append(Complaint(str(folder), f"there is no such folder; name it with {kind}=… or make it"))
            continue
        importer = Importer(folder)
        for source in sources(folder, complaints):
            try:
                module = importer.load(source)
                if kind == "jobs":
                    job_specs.append(_job(source, await _declared(module, "handle", given), known))
                else:
                    task_specs.append(_task(source, await _declared(module, "task", given), timezone, known_tasks))
            except AsyncjobsError as error:
                complaints.append(Complaint(source.shown, str(error), error.__cause__ or error))
            except (Exception, SystemExit) as error:
                reason = f"{type(error).__name__}: {error}"
                complaints.append(Complaint(source.shown, reason, error))
    if complaints:
        complaints.sort(key=lambda one: one.path)
        if not strict:
            for one in complaints:
                logger.error("left out, its jobs wait until it loads: %s: %s", one.path, one.reason, exc_info=one.cause)
            return Loaded(job_specs, task_specs)
        raise LoadError(complaints) from next((one.cause for one in complaints if one.cause is not None), None)
    return Loaded(job_specs, task_specs)


def _job(source: Source, declared: Any, known: tuple[JobSpec, ...]) -> JobSpec:
    definition = build(JobDefinition, declared, "the job")
    if any(spec.name == source.name for spec in known):
        raise ConfigError(f"a job called {source.name!r} is registered in code as well; rename one")
    return JobSpec(source.name, definition, source.shown)


def _task(source: Source, declared: Any, timezone: str, known: tuple[TaskSpec, ...]) -> TaskSpec:
    definition = build(TaskDefinition, declared, "the task")
    if any(spec.name == source.name for spec in known):
        raise ConfigError(f"a task called {source.name!r} is registered in code as well; rename one")
    if not isinstance(definition.is_active, bool):
        warnings.warn(
            f"{source.shown}: the task does not say is_active, so it is never run; set is_active = True or False",
            AsyncjobsWarning,
            stacklevel=2,
        )
    return TaskSpec(source.name, definition, timezone, source.shown)


async def _declared(module: types.ModuleType, plain: str, given: Mapping[str, Any]) -> Any:
    """What a module declares: the record or dict that its `define` makes, or its plain names as a dict."""
    names = vars(module)
    if callable(define := names.get("define")):
        if callable(names.get(plain)):
            raise ConfigError(f"it has both define() and {plain}(); keep one form")
        made = Call(define, DEFINE_ARGUMENTS, "define")(given)
        made = await made if inspect.isawaitable(made) else made
        if made is None:
            raise ConfigError("define() returned nothing; it returns the definition")
        return made
    if not callable(names.get(plain)):
        raise ConfigError(f"no definition: expected define() or {plain}()")
    allowed = JOB_PLAIN if plain == "handle" else TASK_PLAIN
    return _plain(names, allowed)


def _plain(names: Mapping[str, Any], allowed: tuple[str, ...]) -> dict[str, Any]:
    """The options among a module's names; one that looks like an option and is none is refused."""
    import difflib

    chosen = {key: value for key, value in names.items() if key in allowed or CAMEL.get(key) in allowed}
    options = [one for one in allowed if one not in ("handle", "task")]
    for key, value in names.items():
        if key in chosen or key.startswith("_") or inspect.ismodule(value) or inspect.isclass(value) or callable(value):
            continue
        near = difflib.get_close_matches(key, options, n=1, cutoff=0.85)
        if near or isinstance(value, (JobOptions, WorkerOptions)):
            raise ConfigError(f"{key} = {shown(value)} is no option; did you mean {(near or options)[0]!r}?")
    return keywords(chosen, allowed, "the file")


class Importer:
    """Imports the files of one folder.

    Where the folder is part of an importable package the modules get their real dotted names. Elsewhere it
    becomes a package of its own under a private name, so that relative imports work and a job called ``json``
    shadows nothing.
    """

    def __init__(self, folder: Path) -> None:
        self._root = folder.resolve()
        self._package = self._importable() or self._private()

    def _importable(self) -> str | None:
        for entry in sys.path:
            base = Path(entry or ".").resolve()
            if self._root == base or not self._root.is_relative_to(base):
                continue
            parts = self._root.relative_to(base).parts
            if not all(part.isidentifier() for part in parts):
                continue
            dotted = ".".join(parts)
            try:
                spec = importlib.util.find_spec(dotted)
            except (ImportError, ValueError, AttributeError):
                continue
            places = [] if spec is None else [Path(one).resolve() for one in spec.submodule_search_locations or ()]
            if self._root in places:
                return dotted
        return None

    def _private(self) -> str:
        name = "_asyncjobs_" + hashlib.sha1(str(self._root).encode(), usedforsecurity=False).hexdigest()[:12]
        if name not in sys.modules:
            package = types.ModuleType(name)
            package.__path__ = [str(self._root)]
            sys.modules[name] = package
        return name

    def load(self, source: Source) -> types.ModuleType:
        parts = source.path.relative_to(self._root).with_suffix("").parts
        if all(part.isidentifier() for part in parts):
            return importlib.import_module(".".join((self._package, *parts)))
        name = ".".join((self._package, *(re.sub(r"\W", "_", part) for part in parts)))
        if name in sys.modules:
            return sys.modules[name]
        spec = importlib.util.spec_from_file_location(name, source.path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module
