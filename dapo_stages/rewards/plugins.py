"""Rewards from the user's own files: `path/to/file.py:function`, called once per completion."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import ModuleType

from dapo_stages.errors import ConfigError, DataError
from dapo_stages.shards import sha256_of

RESERVED = frozenset({"accuracy", "format", "overlong", "vgr"})
LARGEST = 3.4028234e38  # of float32, the type of the column

RewardFunction = Callable[[str, dict[str, object]], float | None]


@dataclass(frozen=True)
class Plugin:
    """A user's reward function and where it came from."""

    name: str
    where: str  # path/to/file.py:function, as configured
    sha256: str  # of the file
    function: RewardFunction

    def score(self, completion: str, row: Mapping[str, object]) -> float:
        """The function's reward of a completion; None ("does not apply") counts as the neutral 0.0.

        The function gets a copy of the row. Raises DataError, naming the completion, where the function raises, or
        returns anything but a finite number that fits the column's float32.
        """
        try:
            value = self.function(completion, dict(row))
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        else:
            if value is None:
                return 0.0
            if isinstance(value, Real) and abs(value) <= LARGEST:  # neither NaN nor infinity is
                return float(value)
            found = _describe(value)
        raise DataError(
            self.where,
            f"{found} for completion {completion!r:.120}",
            f"a finite number, or None, from reward {self.name}",
            "Mend the function and run the command again.",
        )


def _describe(value: object) -> str:
    try:
        return f"the result {value!r:.60}"
    except Exception:  # the repr of a huge integer, or of a user's own class
        return f"a result of type {type(value).__name__}"


def load_plugins(plugins: Mapping[str, str], root: Path) -> tuple[Plugin, ...]:
    """The configured functions, sorted by name; each file is run once.

    Raises ConfigError where a name cannot be a column, a path leaves `root`, or a file or function is missing.
    """
    modules: dict[Path, ModuleType] = {}
    loaded = []
    for name, where in sorted(plugins.items()):
        key = f"rewards.plugins.{name}"
        if not name.isidentifier() or name in RESERVED:
            raise ConfigError(
                f"{key}: found the name {name!r}; needed letters, digits and _, and none of "
                f"{', '.join(sorted(RESERVED))}. Rename the plug-in in the configuration."
            )
        path, function_name = _locate(key, where, root)
        if path not in modules:
            modules[path] = _run_file(key, path)
        function = getattr(modules[path], function_name, None)
        if not callable(function):
            raise ConfigError(
                f"{key}: {path}: found no function {function_name}; needed `def {function_name}(completion, row)`. "
                "Write it, or correct the name in the configuration."
            )
        loaded.append(Plugin(name, where, sha256_of(path), function))
    return tuple(loaded)


def _locate(key: str, where: str, root: Path) -> tuple[Path, str]:
    """(existing file inside root, function name); symbolic links are followed before the check."""
    relative, separator, function_name = where.rpartition(":")
    if not separator or not relative or not function_name.isidentifier():
        raise ConfigError(f"{key}: found {where!r}; needed path/to/file.py:function. Correct it in the configuration.")
    absolute = PurePosixPath(relative).is_absolute() or PureWindowsPath(relative).anchor != ""
    folder = root.resolve()
    path = folder / relative
    if absolute or ".." in PureWindowsPath(relative).parts or not path.resolve().is_relative_to(folder):
        raise ConfigError(
            f"{key}: found {relative!r}, which leads out of {folder}; needed a path inside the working "
            "folder. Copy the file there and name it by a relative path without `..`."
        )
    if path.suffix != ".py" or not path.is_file():
        found = "no such file" if not path.exists() else "no Python file"
        raise ConfigError(
            f"{key}: {path}: found {found}; needed a Python file with the function {function_name}. "
            "Write it, or correct the path in the configuration (it is relative to the working folder)."
        )
    return path.resolve(), function_name


def _run_file(key: str, path: Path) -> ModuleType:
    name = f"dapo_stages_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{key}: {path}: found no Python source; needed a .py file. Correct the path.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ConfigError(
            f"{key}: {path}: found {type(error).__name__}: {error}; needed a file that Python can import. "
            "Mend the file and run the command again."
        ) from error
    return module
