"""Lets a long sweep be interrupted: tests that have passed are noted, and left out of the next run of the same code.

A pytest plugin for `make test-faults` (`-p faults.resume`). Taken are the tests marked `faults` and those that note
what they have shown (faults/table.py). FAULTS_DONE names the file of notes; its first line is a hash of the code. What
other code has shown (FAULTS_TABLE) and run (FAULTS_RUN, conftest.py) is removed. What fails is written at once, beside
the notes (failed.txt): pytest itself says why only at the end, and a sweep of hours may not get there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def code() -> str:
    """Hash of what the results depend on."""
    files = sorted(path for folder in ("dapo_stages", "tests", "pipelines") for path in (ROOT / folder).rglob("*"))
    files += [ROOT / "Makefile", ROOT / "constraints.txt"]
    known = (path for path in files if path.is_file() and "__pycache__" not in path.parts)
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in known]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


class Resume:
    """Leaves out what is done; notes what passes."""

    def __init__(self, path: Path, done: set[str], *, notes: bool) -> None:
        self._path, self._done, self._notes = path, done, notes

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        ours = [item for item in items if item.get_closest_marker("faults") or _records(item)]
        config.hook.pytest_deselected(items=[item for item in items if item not in ours])
        left = [item for item in ours if item.nodeid not in self._done]
        config.hook.pytest_deselected(items=[item for item in ours if item not in left])
        items[:] = left

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._done and session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
            session.exitstatus = pytest.ExitCode.OK

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if self._notes and report.when == "call" and report.passed:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(report.nodeid + "\n")
        if self._notes and report.failed:
            with self._path.with_name("failed.txt").open("a", encoding="utf-8") as file:
                file.write(f"{report.nodeid} ({report.when})\n{report.longreprtext}\n\n")


def _records(item: pytest.Item) -> bool:
    return hasattr(getattr(item, "module", None), "record")


def pytest_configure(config: pytest.Config) -> None:
    """The first process reads what is done; the workers of pytest-xdist are told, so that all collect the same."""
    path = Path(os.environ["FAULTS_DONE"])
    if not hasattr(config, "workerinput"):
        lines, now = path.read_text(encoding="utf-8").splitlines() if path.exists() else [], code()
        if lines[:1] != [now]:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{now}\n", encoding="utf-8")
            lines = []
            path.with_name("failed.txt").unlink(missing_ok=True)
            Path(os.environ["FAULTS_TABLE"]).unlink(missing_ok=True)
            shutil.rmtree(os.environ["FAULTS_RUN"], ignore_errors=True)
        os.environ["FAULTS_BEFORE"] = "\n".join(lines[1:])
    done = set(os.environ["FAULTS_BEFORE"].splitlines())
    config.pluginmanager.register(Resume(path, done, notes=not hasattr(config, "workerinput")))
