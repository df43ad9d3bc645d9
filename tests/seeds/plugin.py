"""A pytest plugin (`-p seeds.plugin`): takes the tests that use a sampled run, and notes how each ended.

SEEDS_NOTES names the file of notes, a line of JSON for each test. Those that have passed are left out of the next run,
so that one that was interrupted goes on.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.selection import has_policy, select


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The newest note of each test."""
    notes = map(json.loads, path.read_text(encoding="utf-8").splitlines()) if path.exists() else ()
    return {note["test"]: note for note in notes}


def pytest_configure(config: pytest.Config) -> None:
    """The first process reads what is done; the workers of pytest-xdist are told, so that all collect the same."""
    path = Path(os.environ["SEEDS_NOTES"])
    first = not hasattr(config, "workerinput")
    if first:
        done = [test for test, note in read(path).items() if note["outcome"] != "failed"]
        os.environ["SEEDS_DONE"] = "\n".join(done)
    config.pluginmanager.register(Sampled(path, set(os.environ["SEEDS_DONE"].splitlines()), notes=first))


class Sampled:
    """Leaves out what samples nothing, and what is done; notes the rest."""

    def __init__(self, path: Path, done: set[str], *, notes: bool) -> None:
        self._path, self._done, self._notes = path, done, notes

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        select(config, items, [item for item in items if has_policy(item) and item.nodeid not in self._done])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        if "torch" in sys.modules:
            item.user_properties.append(("threads", sys.modules["torch"].get_num_threads()))
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if self._notes and (report.when == "call" or not report.passed):
            threads = dict(report.user_properties).get("threads")
            note = {"test": report.nodeid, "outcome": report.outcome, "threads": threads, "seconds": report.duration}
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(note) + "\n")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._done and session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
            session.exitstatus = pytest.ExitCode.OK
