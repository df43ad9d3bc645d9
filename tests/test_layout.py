"""The layout of the package: few folders, and a name that says where a thing is."""

from __future__ import annotations

from collections import Counter

from support.commands import ROOT

PACKAGE = ROOT / "dapo_stages"
LOOSE = {"__init__.py", "__main__.py", "errors.py", "py.typed", "ranks.py", "small_files.py"}


def test_the_package_is_a_screenful_of_folders() -> None:
    shown = {path for path in PACKAGE.iterdir() if path.name not in ("__pycache__", "pipelines")}
    assert len(shown) <= 23
    assert {path.name for path in shown if path.is_file()} == LOOSE


def test_no_file_name_occurs_twice() -> None:
    modules = [path for path in PACKAGE.rglob("*.py") if path.parent.name != "config" and path.name != "__init__.py"]
    assert {name: count for name, count in Counter(path.name for path in modules).items() if count > 1} == {}
