"""Rewards from the user's own files: `path/to/file.py:function`, called once per group, in a process of their own.

    def brevity(completions: list[str], rows: list[dict]) -> list[float | None]:
        return [-float(row["num_tokens"]) for row in rows]

`rows[i]` is the prompt's row (`problem`, `solution`, `prompt_id`, `slice`, `images`, …) with `sample` and `num_tokens`
of `completions[i]`; `rows[i]["row"]` has all columns of the dataset but the images. None means no opinion: the column
is null, and adds nothing to the completion's total.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from dapo_stages.config import RewardsConfig
from dapo_stages.errors import ConfigError, DataError
from dapo_stages.handoff.shards import Row, sha256_of
from dapo_stages.processes.child import LONGEST_TIMEOUT, Child, Lost
from dapo_stages.rewards.secrecy import without_secrets

RESERVED = frozenset({"accuracy", "format", "judge", "overlong", "vgr"})
START_LIMIT = 60.0  # seconds to import a file, where rewards.plugin_timeout is not longer


class Plugins:
    """The configured functions, in one process that keeps running."""

    def __init__(self, settings: RewardsConfig, root: Path) -> None:
        """Find the files and run each once, so that mistakes show before anything is sampled.

        Raises ConfigError if a name cannot be a column, a path leaves `root`, or a file or function is missing.
        """
        self._where = dict(sorted(settings.plugins.items()))  # by name: path/to/file.py:function
        self._timeout = settings.plugin_timeout
        self.hashes: dict[str, str] = {}
        functions: dict[str, tuple[str, str]] = {}
        for name, where in self._where.items():
            if not name.isidentifier() or name in RESERVED:
                raise ConfigError(
                    f"rewards.plugins.{name}: {name!r} is not a valid name (letters, digits and _, but none of "
                    f"{', '.join(sorted(RESERVED))}). Rename the plug-in in the configuration."
                )
            path, function = locate(f"rewards.plugins.{name}", where, root)
            functions[name], self.hashes[name] = (str(path), function), sha256_of(path)
        environment = without_secrets(os.environ, settings.plugin_environment)
        self._child = Child("plugins", json.dumps(functions), environment=environment, speaks=True)
        if functions:
            self._start(functions)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the functions, sorted; each gives a column `reward_<name>`."""
        return tuple(self._where)

    def score(self, completions: Sequence[str], lengths: Sequence[int], row: Row) -> dict[str, list[float | None]]:
        """Rewards of a group by name, one per completion; `lengths` are in tokens, `row` is the prompt's.

        Raises DataError naming file, function and completion if the function raises, takes too long, ends the process,
        or returns anything but one finite number (of float32, the column's type) or None per completion.
        """
        return {name: self._ask(name, completions, lengths, row) for name in self._where}

    def close(self) -> None:
        """End the process."""
        self._child.close()

    def _ask(self, name: str, completions: Sequence[str], lengths: Sequence[int], row: Row) -> list[float | None]:
        count = len(completions)
        request = {
            "name": name,
            "completions": list(completions),
            "row": row | {"row": json.loads(row.get("row") or "{}")},
            "columns": [{"sample": sample, "num_tokens": length} for sample, length in enumerate(lengths)],
            "limit": min(self._timeout, LONGEST_TIMEOUT),
        }
        among = f"the {count} completions of prompt {row.get('prompt_id', '?')}"
        where = self._where[name]
        fix = "Fix the function and run the command again, with --overwrite if the file was edited."
        try:
            reply = self._child.ask(request, self._timeout)
        except Lost as lost:
            if not lost.late:
                raise DataError(where, f"reward {name} {lost} while scoring {among}", fix) from None
            raise DataError(
                where,
                f"reward {name} did not score {among} within rewards.plugin_timeout={self._timeout:g} s and was killed",
                "Raise rewards.plugin_timeout and run the command again (finished shards stay), or fix the function.",
            ) from None
        values = reply.get("values")
        if isinstance(values, list) and len(values) == count and all(map(_is_reward, values)):
            return values
        index, found = reply.get("index"), str(reply.get("found", "no values"))
        if isinstance(index, int) and 0 <= index < count:
            among = f"completion {index} of prompt {row.get('prompt_id', '?')}, {completions[index]!r:.120}"
        raise DataError(
            where,
            f"reward {name} must be a finite number or None for each of {count} completions, got {found} for {among}",
            fix,
        )

    def _start(self, functions: Mapping[str, tuple[str, str]]) -> None:
        timeout = max(START_LIMIT, self._timeout)
        try:
            reply = self._child.start(timeout)
        except Lost as lost:
            names = ", ".join(f"rewards.plugins.{name}" for name in functions)
            files = ", ".join(sorted({path for path, _ in functions.values()}))
            advice = "Raise rewards.plugin_timeout" if lost.late else "Fix the file"
            raise ConfigError(
                f"{names}: {files}: importing the file {lost}. {advice} and run the command again."
            ) from None
        if reply.get("ready") is True:
            return
        name = str(reply["name"])
        self._child.close()
        path, function = functions[name]
        if reply.get("missing"):
            raise ConfigError(
                f"rewards.plugins.{name}: {path}: no function {function} in this file. Write `def "
                f"{function}(completions, rows)`, or correct the name in the configuration."
            )
        raise ConfigError(
            f"rewards.plugins.{name}: {path}: cannot import the file ({reply.get('error')}). Fix the file and run the "
            "command again."
        )


def inside(key: str, relative: str, root: Path) -> Path:
    """`root / relative`; ConfigError naming `key` if that is outside `root`, with symbolic links followed."""
    absolute = PurePosixPath(relative).is_absolute() or PureWindowsPath(relative).anchor != ""
    folder = root.resolve()
    path = folder / relative
    if absolute or ".." in PureWindowsPath(relative).parts or not path.resolve().is_relative_to(folder):
        raise ConfigError(
            f"{key}: {relative!r} is outside the working folder {folder}. Copy the file there and give a relative path "
            "without `..`."
        )
    return path


def locate(key: str, where: str, root: Path) -> tuple[Path, str]:
    """(existing file inside root, function name). Raises ConfigError naming `key`."""
    relative, separator, function = where.rpartition(":")
    if not separator or not relative or not function.isidentifier():
        raise ConfigError(f"{key}: expected path/to/file.py:function, got {where!r}. Correct it in the configuration.")
    path = inside(key, relative, root)
    if path.suffix != ".py" or not path.is_file():
        problem = "the file does not exist" if not path.exists() else "not a Python file"
        raise ConfigError(
            f"{key}: {path}: {problem}. Write a Python file with the function {function}, or correct the path in the "
            "configuration (it is relative to the working folder)."
        )
    return path.resolve(), function


def _is_reward(value: Any) -> bool:
    return value is None or (isinstance(value, float) and isfinite(value))
