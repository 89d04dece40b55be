"""Imports the files of a folder. Each file is one module, under its real name if it has one, and never twice."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import os
import re
import sys
import sysconfig
import traceback
import types
from collections.abc import Iterator
from contextlib import suppress
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from typing import Any, Final

from asyncjobs.declare.annotations import innermost

PRIVATE: Final = "_asyncjobs_"
OWN_FOLDER: Final = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
LIBRARIES: Final = tuple(
    os.path.join(os.path.realpath(path), "")
    for name, path in sysconfig.get_paths().items()
    if name in ("stdlib", "platstdlib", "purelib", "platlib")
)


class Importer:
    """Imports the files of one folder.

    In an importable package the modules get their real dotted names. Elsewhere the folder, and the packages around it,
    get private names. So relative imports work, and a job called ``json`` shadows no other module. A file or a folder
    whose name is no identifier, or whose dotted name another module has, gets a private name within its package.
    """

    def __init__(self, folder: Path) -> None:
        importlib.invalidate_caches()
        self._root = folder.resolve()
        self._package = self._importable() or self._private()

    def _importable(self) -> str | None:
        """The dotted name of the folder, below the nearest loaded package, else the nearest entry of sys.path."""
        bases = sorted({Path(entry or ".").resolve() for entry in sys.path}, key=_depth, reverse=True)
        candidates = [(base, "") for base in bases if base != self._root and self._root.is_relative_to(base)]
        nearest = _depth(candidates[0][0]) if candidates else 0
        # An entry of sys.path looks like a namespace package from a folder above. Such a match does not count.
        loaded = [one for one in self._loaded_packages() if _depth(one[0]) + _is_regular(one[1]) > nearest]
        loaded.sort(key=lambda one: (-_depth(one[0]), one[1].count("."), one[1]))
        return next((found for base, name in (*loaded, *candidates) if (found := self._below(base, name))), None)

    def _below(self, base: Path, name: str) -> str | None:
        """The dotted name of the folder below `base`. Only the packages around the folder are imported."""
        parts = self._root.relative_to(base).parts
        if not all(part.isidentifier() for part in parts):
            return None
        for part in parts:
            base /= part
            name = f"{name}.{part}" if name else part
            if base not in _places(name):
                return None
        return name

    def _loaded_packages(self) -> Iterator[tuple[Path, str]]:
        """The loaded packages that are the folder or contain it."""
        for name, module in list(sys.modules.items()):
            if name.startswith(PRIVATE) or not hasattr(module, "__path__"):
                continue
            for path in _paths(module):
                if self._root == path or self._root.is_relative_to(path):
                    yield path, name

    def _private(self) -> str:
        """The private package of the folder, below a private package for the topmost package around the folder."""
        top = home_of(self._root)
        digest = hashlib.sha1(str(top).encode(), usedforsecurity=False).hexdigest()[:12]
        name = _folder_module(PRIVATE + digest, top)
        path = top
        for part in self._root.relative_to(top).parts:
            path /= part
            name = self._package_at(name, part, path)
        return name

    def load(self, path: Path) -> types.ModuleType:
        """The module of one file.

        Raises:
            Exception: whatever the file raises.
        """
        if (loaded := _loaded_from(path)) is not None:
            return loaded
        package, folder = self._package, self._root
        *folders, stem = path.relative_to(self._root).with_suffix("").parts
        for part in folders:
            folder /= part
            package = self._package_at(package, part, folder)
        name = f"{package}.{stem}"
        if stem.isidentifier() and _origin(name) == path.resolve():
            return importlib.import_module(name)
        return _file_module(f"{package}.{_private_part(stem)}", path)

    @staticmethod
    def _package_at(parent: str, part: str, folder: Path) -> str:
        """The package name of a folder within its parent."""
        name = f"{parent}.{part}"
        if part.isidentifier() and folder.resolve() in _places(name):
            importlib.import_module(name)
            return name
        return _folder_module(f"{parent}.{_private_part(part)}", folder)


def _is_regular(name: str) -> bool:
    return getattr(sys.modules.get(name), "__file__", None) is not None


def home_of(folder: Path) -> Path:
    """The topmost package around a folder, or the folder itself if no package contains it."""
    top = folder.resolve()
    while (top.parent / "__init__.py").is_file():
        top = top.parent
    return top


def _depth(path: Path) -> int:
    return len(path.parts)


def _private_part(part: str) -> str:
    """A private module name for a file without a usable one. Two files never share it."""
    digest = hashlib.sha1(part.encode(), usedforsecurity=False).hexdigest()[:8]
    return f"_{digest}_{re.sub(chr(92) + 'W', '_', part)}"


def _paths(module: types.ModuleType) -> list[Path]:
    try:
        return [Path(one).resolve() for one in module.__path__]
    except Exception:
        return []


def _spec(name: str) -> ModuleSpec | None:
    """The spec of a module, or None if there is no such module. Errors of its packages pass through."""
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            return None
        raise  # the package exists, and an import within it failed
    except (ValueError, AttributeError):  # a module without a spec, or without a path
        return None


def _places(dotted: str) -> list[Path]:
    """The folders of a package. Empty if another package has the name of its topmost package."""
    module = sys.modules.get(dotted)
    if module is not None and hasattr(module, "__path__"):
        return _paths(module)
    spec = _spec(dotted)
    try:
        return [] if spec is None else [Path(one).resolve() for one in spec.submodule_search_locations or ()]
    except Exception:
        return []


def _origin(name: str) -> Path | None:
    """The file of a module name."""
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None) if module is not None else getattr(_spec(name), "origin", None)
    return Path(file).resolve() if isinstance(file, str) else None


def _loaded_from(path: Path) -> types.ModuleType | None:
    """The module that was loaded from a file, under any name. A public name is preferred."""
    real, base = os.path.realpath(path), path.name
    found = [
        module
        for name, module in list(sys.modules.items())
        if name != "__main__"
        and isinstance(file := getattr(module, "__file__", None), str)
        and file.endswith(base)
        and os.path.realpath(file) == real
        and not getattr(getattr(module, "__spec__", None), "_initializing", False)
    ]
    found.sort(key=lambda module: module.__name__.startswith(PRIVATE))
    return found[0] if found else None


def _file_module(name: str, path: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
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


def _folder_module(name: str, folder: Path) -> str:
    """Make a package called `name` for a folder. Its ``__init__.py`` runs at the first access to an attribute."""
    if name in sys.modules:
        return name
    package = types.ModuleType(name)
    package.__path__ = [str(folder)]
    package.__spec__ = ModuleSpec(name, None, is_package=True)
    package.__spec__.submodule_search_locations = package.__path__
    package.__package__ = name
    pending = [folder / "__init__.py"]

    def missing(attribute: str) -> Any:
        if pending and not attribute.startswith("__") and pending[0].is_file():
            SourceFileLoader(name, str(pending.pop())).exec_module(package)
            if attribute in vars(package):
                return vars(package)[attribute]
        raise AttributeError(f"module {name!r} has no attribute {attribute!r}")

    package.__getattr__ = missing  # type: ignore[method-assign]
    sys.modules[name] = package
    return name


# Reading a file -------------------------------------------------------------------------------------------------
class Names:
    """How a module got its names: assigned, defined, or imported, with the lines."""

    def __init__(self) -> None:
        self._assigned: dict[str, int] = {}
        self._defined: dict[str, int] = {}
        self._imported: set[str] = set()
        self._star = False

    @classmethod
    def of(cls, path: Path) -> Names:
        names = cls()
        with suppress(OSError, SyntaxError, ValueError):  # the import has reported the error, or the file is no source
            names._read(ast.parse(path.read_bytes()).body)
        return names

    def _read(self, statements: list[Any]) -> None:
        for one in statements:
            if isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                self._defined[one.name] = one.lineno
            elif isinstance(one, (ast.Import, ast.ImportFrom)):
                for alias in one.names:
                    self._star |= alias.name == "*"
                    self._imported.add(alias.asname or alias.name.partition(".")[0])
            else:
                self._assignments(one)
            for block in ("body", "orelse", "finalbody", "handlers", "cases"):
                if not isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                    self._read(getattr(one, block, []))

    def _assignments(self, statement: Any) -> None:
        """The names that a statement assigns, without the names of its blocks."""
        todo: list[Any] = [statement]
        while todo:
            node = todo.pop()
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                self._assigned[node.id] = node.lineno
            if not isinstance(node, (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
                inner = (one for one in ast.iter_child_nodes(node) if one is not node)
                todo.extend(one for one in inner if not isinstance(one, (ast.stmt, ast.excepthandler, ast.match_case)))

    def only_imports(self, name: str) -> bool:
        """True if the file has the name only by importing it."""
        if name in self._assigned or name in self._defined:
            return False
        return name in self._imported or self._star

    def defines(self, name: str) -> bool:
        """True if the name is a function or a class of the file, and not a value."""
        return name in self._defined and name not in self._assigned

    def line(self, name: str) -> int:
        return self._assigned.get(name) or self._defined.get(name) or 1


def _is_of_user(file: str, home: Path) -> bool:
    """True if a file belongs to the app. Each file in the package of the jobs does, wherever that is installed."""
    real = os.path.realpath(file)
    if file.startswith("<"):
        return False
    if real.startswith(os.path.join(home, "")):
        return True
    return not real.startswith((*LIBRARIES, OWN_FOLDER + os.sep))


def user_line(error: BaseException, home: Path) -> tuple[str, int] | None:
    """The innermost line of the app in the error's traceback, or the line that Python could not parse."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno and _is_of_user(error.filename, home):
        return error.filename, error.lineno
    lines = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if _is_of_user(frame.f_code.co_filename, home)
    ]
    if not lines and error.__cause__ is not None:
        return user_line(error.__cause__, home)
    return lines[-1] if lines else None


def is_of_user(value: Any, home: Path) -> bool:
    """True if a function, or the class of an object, belongs to the app and not to a library."""
    module = sys.modules.get(getattr(innermost(value), "__module__", None) or "")
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and _is_of_user(file, home)
