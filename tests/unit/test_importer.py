"""Each file is one module: under its real name where it has one, never twice, never another's."""

from __future__ import annotations

import importlib
import itertools
import sys

import pytest

from asyncjobs import LoadError, Runtime
from tests.helpers import write


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    """Modules and sys.path as they were."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


async def load(folder, **options):
    return {spec.name: spec for spec in (await Runtime("redis://127.0.0.1:1", jobs=folder, **options).load()).jobs}


SHOP = {
    "src/shop/__init__.py": "",
    "src/shop/money.py": "RATE = 3\nLOADED = []",
    "src/shop/jobs/__init__.py": "",
    "src/shop/jobs/charge.py": (
        "from shop.money import LOADED\nfrom ..money import RATE\nLOADED.append(__name__)\ndef handle(): return RATE"
    ),
    "src/shop/jobs/pay-out.py": "from ..money import LOADED\nLOADED.append(__name__)\nasync def handle(data): pass",
    "src/shop/jobs/deep-er/still.py": "from ...money import LOADED\nLOADED.append(__name__)\nasync def handle(): pass",
}


@pytest.mark.parametrize(
    ("paths", "loaded"),
    [
        *itertools.product([("src", "."), (".", "src")], ["", "shop", "shop.money", "shop.jobs.charge"]),
        *itertools.product([(".", "src", "src/shop")], ["shop", "shop.money", "shop.jobs.charge"]),
    ],
)
async def test_a_src_layout_is_imported_once_under_its_real_name(tmp_path, monkeypatch, paths, loaded):
    write(tmp_path, SHOP)
    monkeypatch.chdir(tmp_path)
    sys.path[:0] = ["" if path == "." else str(tmp_path / path) for path in paths]
    if loaded:
        importlib.import_module(loaded)
    jobs = await load("src/shop/jobs")
    again = await load(tmp_path / "src" / "shop" / "jobs")
    import shop.jobs.charge
    import shop.money

    assert jobs["charge"].definition.handle is shop.jobs.charge.handle is again["charge"].definition.handle
    assert jobs["pay-out"].definition.handle is again["pay-out"].definition.handle
    assert len(shop.money.LOADED) == 3
    assert all(name.startswith("shop.jobs.") for name in shop.money.LOADED)
    assert "src.shop" not in sys.modules


async def test_what_is_loaded_under_another_name_is_that_module(tmp_path, monkeypatch):
    write(tmp_path, SHOP)
    monkeypatch.chdir(tmp_path)
    sys.path[:0] = ["", str(tmp_path / "src")]
    whole = importlib.import_module("src.shop.jobs.charge")
    assert (await load("src/shop/jobs"))["charge"].definition.handle is whole.handle
    # A file that somebody imported from its own folder:
    write(tmp_path, {"alone/mail.py": "def handle(data): pass"})
    sys.path.insert(0, str(tmp_path / "alone"))
    mail = importlib.import_module("mail")
    assert (await load("alone"))["mail"].definition.handle is mail.handle


async def test_files_that_differ_by_little_are_modules_of_their_own(tmp_path):
    text = "def handle(data): return {0!r}"
    files = (
        "pay.out.py", "pay-out.py", "pay-out/x.py", "pay_out_/y.py", "pay.out/z.py", "pay out.py", "pay_out/w.py",
        "päy.py", "class.py", "class/x.py", "json.py", "x/json.py", "x-/json.py", "ab.py", "ab/c.py", "ab/d-.py",
    )  # fmt: skip
    # What follows has other names than letters, digits, dots and dashes, and is tested without the spec.
    from asyncjobs.declare.importer import Importer

    write(tmp_path, {f"jobs/{name}": text.format(name) for name in files})
    importer = Importer(tmp_path / "jobs")
    modules = {name: importer.load(tmp_path / "jobs" / name) for name in files}
    assert {name: module.handle(1) for name, module in modules.items()} == {name: name for name in files}
    assert len({module.__name__ for module in modules.values()}) == len(files)
    assert all(sys.modules[module.__name__] is module for module in modules.values())


@pytest.mark.parametrize("importable", [True, False])
async def test_a_file_beside_a_folder_of_its_name(tmp_path, importable):
    files = {
        "shop1/__init__.py": "",
        "shop1/jobs/pay-out.py": "def handle(data): return 'file'",
        "shop1/jobs/pay_out/x.py": "from .y import Y\ndef handle(data): return Y",
        "shop1/jobs/pay_out/y.py": "Y = 'folder'\ndef handle(data): pass",
        "shop1/jobs/mail.py": "def handle(data): return 'file'",
        "shop1/jobs/mail/x.py": "from .y import Y\ndef handle(data): return Y",
        "shop1/jobs/mail/y.py": "Y = 'folder'\ndef handle(data): pass",
        "shop1/jobs/post.py": "def handle(data): return 'file'",
        "shop1/jobs/post/__init__.py": "handle = None",
        "shop1/jobs/post/x.py": "def handle(data): return 'folder'",
    }
    write(tmp_path, files)
    if importable:
        sys.path.insert(0, str(tmp_path))
    jobs = await load(tmp_path / "shop1" / "jobs")
    for name in ("pay-out", "mail", "post"):
        assert jobs[name].definition.handle(1) == "file", name
        assert jobs[f"{name}-x"].definition.handle(1) == "folder", name


RELATIVE = {
    "my-shop/__init__.py": "NAME = 'shop'",
    "my-shop/money.py": "RATE = 3",
    "my-shop/the-jobs/__init__.py": "from .helpers import HELP\nWHOLE = HELP + 1",
    "my-shop/the-jobs/helpers.py": "HELP = 5\ndef handle(): pass",
    "my-shop/the-jobs/charge.py": "from ..money import RATE\nfrom .. import NAME\ndef handle(): return RATE, NAME",
    "my-shop/the-jobs/whole.py": "from . import WHOLE\nfrom . import helpers\ndef handle(): return WHOLE, helpers.HELP",
    "my-shop/the-jobs/send-out/one.py": "from .two import TWO\nfrom ..helpers import HELP\ndef handle(): return [TWO]",
    "my-shop/the-jobs/send-out/two.py": "TWO = []\ndef handle(): return TWO",
    "my-shop/the-jobs/send-out/thr-ee.py": "from .two import TWO\nfrom . import two\ndef handle(): return TWO, two.TWO",
    "my-shop/the-jobs/send-out/deep/four.py": "from ..two import TWO\nfrom ...helpers import *\nhandle = lambda: TWO",
}


@pytest.mark.parametrize("package", ["my-shop", "my_shop"])
@pytest.mark.parametrize("importable", [True, False])
@pytest.mark.parametrize("regular", [True, False])
async def test_relative_imports_work_in_every_folder(tmp_path, package, importable, regular):
    files = {name.replace("my-shop", package): text for name, text in RELATIVE.items()}
    if not regular:
        del files[f"{package}/the-jobs/__init__.py"], files[f"{package}/the-jobs/whole.py"]
    write(tmp_path, files)
    if importable:
        sys.path.insert(0, str(tmp_path))
    jobs = await load(tmp_path / package / "the-jobs")
    run = {name: spec.definition.handle() for name, spec in jobs.items()}
    assert run["charge"] == (3, "shop")
    assert run.get("whole", (6, 5)) == (6, 5)
    two = run["send-out-two"]
    assert run["send-out-one"][0] is two
    assert run["send-out-thr-ee"][0] is run["send-out-thr-ee"][1] is two
    assert run["send-out-deep-four"] is two


async def test_two_projects_with_the_same_names_never_meet(tmp_path):
    for project in ("one", "two"):
        write(tmp_path / project, {"jobs/mail.py": f"def handle(): return {project!r}", "jobs/__init__.py": ""})
        sys.path.insert(0, str(tmp_path / project))
    for project in ("one", "two", "one"):
        assert (await load(tmp_path / project / "jobs"))["mail"].definition.handle() == project


async def test_namespace_packages_over_two_folders_never_meet(tmp_path):
    for project in ("one", "two"):
        write(tmp_path / project, {"njobs/mail.py": f"def handle(): return {project!r}"})
        sys.path.insert(0, str(tmp_path / project))
    for project in ("one", "two", "one"):
        assert (await load(tmp_path / project / "njobs"))["mail"].definition.handle() == project


async def test_what_the_package_of_the_folder_raises_is_complained_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"broken1/__init__.py": "import os\n1 / 0", "broken1/jobs/mail.py": "def handle(): pass"})
    sys.path.insert(0, str(tmp_path))
    with pytest.raises(LoadError, match=r"broken1/jobs: ZeroDivisionError: .* \(at broken1/__init__.py:2\)"):
        await load(tmp_path / "broken1" / "jobs")
