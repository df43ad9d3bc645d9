"""A weighting scheme from the user's own file, `weights.scheme: path/to/file.py:function`, in a process of its own.

    def beyond_own_words(mass_vision, mass_generated):
        return mass_vision / (mass_vision + mass_generated)

Its parameters are named like columns of the attention file, or `token_texts` and `completion_ids`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from math import isfinite, isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dapo_stages.config import RewardsConfig
from dapo_stages.errors import ConfigError, DataError
from dapo_stages.handoff.shards import sha256_of
from dapo_stages.processes.child import LONGEST_TIMEOUT, Child, Lost
from dapo_stages.rewards.isolated.plugins import START_LIMIT, locate
from dapo_stages.rewards.secrecy import without_secrets

if TYPE_CHECKING:
    import numpy as np

KEY = "weights.scheme"
OF_COMPLETION = ("token_texts", "completion_ids")  # columns of the rollouts that a scheme may ask for
_FIX = "Fix the function and run the command again, with --overwrite if the file was edited."


class SchemeFile:
    """The configured function, in a process that keeps running; time limit and environment are those of plug-ins."""

    def __init__(self, where: str, settings: RewardsConfig, root: Path, known: Collection[str]) -> None:
        """Find the file and run it, so that mistakes show before anything is weighed; `known` are the columns.

        Raises ConfigError if the path leaves `root`, file or function is missing, or a parameter is no column.
        """
        self._where, self._timeout = where, settings.plugin_timeout
        path, function = locate(KEY, where, root)
        self.hash = sha256_of(path)
        environment = without_secrets(os.environ, settings.plugin_environment)
        self._child = Child("schemes", json.dumps({KEY: (str(path), function)}), environment=environment, speaks=True)
        try:
            reply = self._child.start(max(START_LIMIT, self._timeout))
            ready = reply.get("ready") is True
            self.columns = tuple(self._ask({"columns": None})["parameters"]) if ready else ()
        except Lost as lost:
            advice = "Raise rewards.plugin_timeout" if lost.late else "Fix the file"
            raise ConfigError(
                f"{KEY}: {path}: importing the file {lost}. {advice} and run the command again."
            ) from None
        if not ready:
            self._child.close()
            if reply.get("missing"):
                raise ConfigError(
                    f"{KEY}: {path}: no function {function} in this file. Write `def {function}(vgr)`, with the "
                    "columns it needs, or correct the name in the configuration."
                )
            raise ConfigError(
                f"{KEY}: {path}: cannot import the file ({reply.get('error')}). Fix the file and run the command again."
            )
        for name in self.columns:
            if name not in known and name not in OF_COMPLETION:
                self._child.close()
                raise ConfigError(
                    f"{KEY}: {where}: the parameter {name} must be a column of the attention files ("
                    f"{', '.join(sorted(known))}), token_texts or completion_ids. Correct its name."
                )

    def raw_weights(self, row: Mapping[str, Any], tokens: int) -> np.ndarray:
        """Raw weights of the completion's tokens, [tokens], from its columns; NaN for no opinion.

        Raises ValueError if a column has another length than the completion, and DataError naming function and
        completion if the function raises, takes too long, ends the process, or returns anything but one finite number,
        not negative, or None for each token. NaN counts as None where a column of the token is not finite.
        """
        import numpy as np

        columns = {name: row[name] for name in self.columns}
        for name, values in columns.items():
            if isinstance(values, list) and len(values) != tokens:
                raise ValueError(f"{len(values)} values of {name} for {tokens} tokens")
        among = f"the {tokens} tokens of completion {row['completion_id']}"
        try:
            reply = self._ask({"columns": columns, "tokens": tokens})
        except Lost as lost:
            if not lost.late:
                raise DataError(self._where, f"the scheme {lost} while weighing {among}", _FIX) from None
            raise DataError(
                self._where,
                f"the scheme did not weigh {among} within rewards.plugin_timeout={self._timeout:g} s and was killed",
                "Raise rewards.plugin_timeout and run the command again, or fix the function.",
            ) from None
        values, index = reply.get("values"), reply.get("index")
        if values is not None:
            index = next((i for i, v in enumerate(values) if v is not None and isnan(v) and _known(columns, i)), None)
            if index is None:
                return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
            reply = {"found": "NaN where every column is finite"}
        place = f"token {index} of completion {row['completion_id']}" if isinstance(index, int) else among
        raise DataError(
            self._where,
            f"the scheme must give a finite number, not negative, or None for each of {tokens} tokens, got "
            f"{reply.get('found', 'no values')} for {place}",
            _FIX,
        )

    def close(self) -> None:
        """End the process."""
        self._child.close()

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return self._child.ask({**request, "limit": min(self._timeout, LONGEST_TIMEOUT)}, self._timeout)


def _known(columns: Mapping[str, Any], index: int) -> bool:
    """Whether every column of a token is finite."""
    values = [value[index] if isinstance(value, list) else value for value in columns.values()]
    return all(isinstance(value, str) or (value is not None and isfinite(value)) for value in values)
