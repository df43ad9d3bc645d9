"""From YAML to a Config, with errors that name the setting, what was expected and what was found."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from reprlib import Repr
from typing import Any

from pydantic import BaseModel, ValidationError

from dapo_stages.config.base import Later, complaint
from dapo_stages.config.packaged import packaged_config
from dapo_stages.config.run import Config
from dapo_stages.config.strict_yaml import parse
from dapo_stages.errors import ConfigError
from dapo_stages.small_files import read_text

# Markers at the first and the last line of a file with every setting: without the last one, the file was cut off.
_FIRST, _LAST = "  # every key follows, down to the line that says so", "# That was every key."
_MOST = 1 << 20  # bytes of a file


class _Quote(Repr):
    """Quotes wrong values, truncated: with YAML aliases, a few lines can make a value of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 200
        self.maxlevel, self.maxdict, self.maxlist = 3, 20, 20

    def repr_dict(self, values: dict[Any, Any], level: int) -> str:
        """In the order of the file, unlike reprlib."""
        if level <= 0:
            return "{...}"
        pieces = [
            f"{self.repr1(key, level - 1)}: {self.repr1(value, level - 1)}"
            for key, value in islice(values.items(), self.maxdict)
        ]
        return f"{{{', '.join([*pieces, *(['...'] if len(values) > self.maxdict else [])])}}}"


def load_config(path: Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML file and apply `section.key=value` overrides (values are YAML too).

    A file may begin with `extends: other.yaml`, relative to itself, or `extends: dapo:reference-7b`, a file of the
    package, and then contains only what differs.

    Raises ConfigError naming the file, the setting, what was found and what is allowed.
    """
    values = _read(packaged_config(str(path)) or path)
    for override in overrides or []:
        _apply(values, override)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(path, error)) from None


def dump_config(config: Config, *, unicode: bool = True) -> str:
    """The resolved configuration as YAML, with every setting; in ASCII unless `unicode`."""
    import yaml

    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=unicode)
    first, _, others = text.partition("\n")
    return f"{first}{_FIRST}\n{others}{_LAST}\n"


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    import yaml

    try:
        if seen and path.exists() and not path.is_file():  # the first may be a pipe of the shell
            raise OSError("not a regular file")
        text = read_text(path, _MOST)
        values = parse(text) or {}
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: not valid YAML ({reason}). Fix the file.") from None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: cannot read the configuration ({error}). Pass a YAML file, such as pipelines/embedded.yaml."
        ) from None
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise ConfigError(f"{path}: expected keys and values, such as `seed: 42`, got a {kind}. Fix the file.")
    if _check_whole(path, text, values):
        _complete(Config, values)
    base = values.pop("extends", None)
    if base is None:
        return values
    if path.resolve() in seen:
        raise ConfigError(f"{path}: circular `extends` through {base}. Remove the cycle.")
    return _merged(_read(packaged_config(str(base)) or path.parent / str(base), (*seen, path.resolve())), values)


def _check_whole(path: Path, text: str, values: dict[str, Any]) -> bool:
    """Whether the file was written with every setting. Refuses such a file that was cut off: today's defaults would
    replace what is missing.

    Older versions wrote neither marker; their last section was always the same.
    """
    order = list(Config.model_fields)
    value, mark, begun = text.partition("\n")[0].partition(_FIRST[:4])
    if value.startswith(f"{order[0]}:") and mark and _FIRST.startswith(mark + begun):
        whole, last = _LAST in text, _LAST
    else:
        whole, last = list(values)[:4] != order[:4] or order[-1] in values, f"{order[-1]}: {{}}"
    if not whole:
        raise ConfigError(
            f"{path}: the file is cut off after `{list(values)[-1]}` (expected every setting of the run, down to the "
            f"line `{last}`). Restore a complete copy, or move the file away and write it again from the configuration "
            "that the run started with (make iterate RUN=… CONFIG=…). If nothing is missing, add that line."
        )
    return list(values)[:4] == order[:4]


def _complete(section: type[BaseModel], values: dict[str, Any]) -> None:
    """Give an older run's settings the values that it ran with, where they were added later."""
    for name, field in section.model_fields.items():
        inner = [one for one in (field.annotation, *getattr(field.annotation, "__args__", ())) if _is_section(one)]
        if inner and isinstance(values.get(name), dict):
            _complete(inner[0], values[name])
        elif name not in values:
            for mark in field.metadata:
                if isinstance(mark, Later):
                    values[name] = mark.default


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _merged(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in values.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _apply(values: dict[str, Any], override: str) -> None:
    import yaml

    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        problem = "no key before the `=`" if separator else "no `=` in the option"
        raise ConfigError(
            f"--set {override}: {problem} (expected section.key=value, such as train.learning_rate=1e-5). Correct it."
        )
    *parents, last = key.strip().split(".")
    for parent in parents:
        if values.get(parent) is None:
            values[parent] = {}
        values = values[parent]
        if not isinstance(values, dict):
            raise ConfigError(
                f"--set {override}: {parent} is a single value, not a section with settings. Correct the option."
            )
    try:
        values[last] = parse(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"--set {override:.200}: the value is not valid YAML ({reason}). Quote it.") from None


def _explain(path: Path, error: ValidationError) -> str:
    import difflib

    lines = []
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = _keys_beside(problem["loc"])
            close = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
            meant = ".".join([*map(str, problem["loc"][:-1]), *close])
            hint = f"did you mean {meant}?" if close else f"expected one of {', '.join(known)}"
            lines.append(f"{path}: {key} is not a setting ({hint})")
        elif problem["type"] == "value_error":  # settings that do not agree; the text quotes them
            lines.append(f"{path}{f': {key}' if key else ''}{complaint(problem)}")
        else:
            lines.append(f"{path}: {key}{complaint(problem)} (got {_Quote().repr(problem['input'])})")
    return "\n".join([*lines, "Fix the file, or the --set option, and run the command again."])


def _keys_beside(location: tuple[int | str, ...]) -> list[str]:
    section: type[BaseModel] = Config
    for part in location[:-1]:
        if str(part) not in section.model_fields:  # a name in a mapping; its values have already led to the section
            continue
        annotation = section.model_fields[str(part)].annotation
        section = next(one for one in (annotation, *getattr(annotation, "__args__", ())) if _is_section(one))
    return list(section.model_fields)
