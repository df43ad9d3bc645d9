"""A function from the user's own file, `path/to/file.py:function`, in a process of its own that keeps running.

It is asked with values by the names of its parameters. Time limit and environment are those of plug-ins.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dapo_stages.config import RewardsConfig
from dapo_stages.errors import ConfigError, DataError
from dapo_stages.processes.child import LONGEST_TIMEOUT, Child, Lost
from dapo_stages.rewards.isolated.plugins import START_LIMIT, locate
from dapo_stages.rewards.secrecy import without_secrets

_FIX = "Fix the function and run the command again, with --overwrite if the file was edited."


class Kind(NamedTuple):
    """What a function is for: the mode of child_program.py, the words of messages, and a parameter it may have."""

    mode: str
    name: str
    does: str
    doing: str
    example: str


class OwnFunction:
    """The configured function."""

    def __init__(self, key: str, kind: Kind, where: str, settings: RewardsConfig, root: Path) -> None:
        """Find the file and run it, so that mistakes show before anything is computed.

        Raises ConfigError naming `key` if the path leaves `root`, or file or function is missing.
        """
        self.where, self._key, self._kind, self._timeout = where, key, kind, settings.plugin_timeout
        path, function = locate(key, where, root)
        self.content = path.read_bytes()
        environment = without_secrets(os.environ, settings.plugin_environment)
        self._child = Child(kind.mode, json.dumps({key: (str(path), function)}), environment=environment, speaks=True)
        try:
            reply = self._child.start(max(START_LIMIT, self._timeout))
            ready = reply.get("ready") is True
            self.parameters: tuple[str, ...] = tuple(self._ask({"columns": None})["parameters"]) if ready else ()
        except Lost as lost:
            advice = "Raise rewards.plugin_timeout" if lost.late else "Fix the file"
            raise ConfigError(
                f"{key}: {path}: importing the file {lost}. {advice} and run the command again."
            ) from None
        if not ready:
            self.close()
            if reply.get("missing"):
                raise ConfigError(
                    f"{key}: {path}: no function {function} in this file. Write `def {function}({kind.example})`, with "
                    "the columns it needs, or correct the name in the configuration."
                )
            raise ConfigError(
                f"{key}: {path}: cannot import the file ({reply.get('error')}). Fix the file and run the command again."
            )

    def require(self, known: Collection[str], those: str) -> None:
        """Raise ConfigError if a parameter is not `known`, which a message lists as `those`."""
        for name in self.parameters:
            if name not in known:
                self.close()
                raise ConfigError(f"{self._key}: {self.where}: the parameter {name} must be {those}. Correct its name.")

    def ask(self, request: Mapping[str, Any], among: str) -> dict[str, Any]:
        """Its reply to a request about `among`, as in messages (`the 3 tokens of completion c`).

        Raises DataError if it takes too long or ends the process.
        """
        kind = self._kind
        try:
            return self._ask(request)
        except Lost as lost:
            if not lost.late:
                raise DataError(self.where, f"the {kind.name} {lost} while {kind.doing} {among}", _FIX) from None
            raise DataError(
                self.where,
                f"the {kind.name} did not {kind.does} {among} within rewards.plugin_timeout={self._timeout:g} s and "
                "was killed",
                "Raise rewards.plugin_timeout and run the command again, or fix the function.",
            ) from None

    def refused(self, problem: str) -> DataError:
        """The error for what it gave."""
        return DataError(self.where, problem, _FIX)

    def close(self) -> None:
        """End the process."""
        self._child.close()

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return self._child.ask({**request, "limit": min(self._timeout, LONGEST_TIMEOUT)}, self._timeout)
