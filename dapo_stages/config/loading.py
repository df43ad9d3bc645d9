"""From YAML to a Config, with errors that say which key, what was found and what is needed."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from reprlib import Repr
from typing import Any

from pydantic import BaseModel, ValidationError

from dapo_stages.config.run import Config
from dapo_stages.config.strict_yaml import parse
from dapo_stages.errors import ConfigError
from dapo_stages.small_files import read_text

# Ends of the first and the last line of a configuration that says every key: one that was cut off is no shorter one.
_FIRST, _LAST = "  # every key follows, down to the line that says so", "# That was every key."
_MOST = 1 << 20  # bytes of a configuration


class _Quote(Repr):
    """Values that are wrong, in so many words: aliases of YAML make a value of any size from a few lines."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 200
        self.maxlevel, self.maxdict, self.maxlist = 3, 20, 20

    def repr_dict(self, values: dict[Any, Any], level: int) -> str:
        """In the order of the file."""
        if level <= 0:
            return "{...}"
        pieces = [
            f"{self.repr1(key, level - 1)}: {self.repr1(value, level - 1)}"
            for key, value in islice(values.items(), self.maxdict)
        ]
        return f"{{{', '.join([*pieces, *(['...'] if len(values) > self.maxdict else [])])}}}"


def load_config(path: Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML file and apply `section.key=value` overrides (values are YAML too).

    A file may begin with `extends: other.yaml`, relative to itself, and then names only what differs.

    Raises ConfigError naming the file, the key, what was found and what is allowed.
    """
    values = _read(path)
    for override in overrides or []:
        _apply(values, override)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(path, error)) from None


def dump_config(config: Config, *, unicode: bool = True) -> str:
    """The resolved configuration as YAML, every key spelled out; without `unicode` in the characters of ASCII."""
    import yaml

    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=unicode)
    first, _, others = text.partition("\n")
    return f"{first}{_FIRST}\n{others}{_LAST}\n"


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    import yaml

    try:
        if seen and path.exists() and not path.is_file():  # the first may be a pipe of the shell
            raise OSError("no regular file")
        text = read_text(path, _MOST)
        values = parse(text) or {}
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: found invalid YAML ({reason}); needed valid YAML. Mend the file.") from None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: found no file that can be read ({error}); needed a YAML file. Name one, such as "
            "pipelines/embedded.yaml."
        ) from None
    if not isinstance(values, dict):
        found = type(values).__name__
        raise ConfigError(f"{path}: found a {found}; needed keys and values, such as `seed: 42`. Mend the file.")
    _check_whole(path, text, values)
    base = values.pop("extends", None)
    if base is None:
        return values
    if path.resolve() in seen:
        raise ConfigError(
            f"{path}: found that it extends itself, by way of {base}; needed a base that does not. Mend the files."
        )
    return _merged(_read(path.parent / str(base), (*seen, path.resolve())), values)


def _check_whole(path: Path, text: str, values: dict[str, Any]) -> None:
    """Refuse a configuration with every key that was cut off: what is missing would be the defaults of today.

    Older versions wrote neither the first line nor the last; their last key was always the same.
    """
    order = list(Config.model_fields)
    value, mark, begun = text.partition("\n")[0].partition(_FIRST[:4])
    if value.startswith(f"{order[0]}:") and mark and _FIRST.startswith(mark + begun):
        whole, needed = _LAST in text, _LAST
    else:
        whole, needed = list(values)[:4] != order[:4] or order[-1] in values, f"{order[-1]}: {{}}"
    if not whole:
        raise ConfigError(
            f"{path}: found that it breaks off after `{list(values)[-1]}`; needed every key of the run, down to the "
            f"line `{needed}`. Fetch a whole copy, or move it away and write it anew from what the run began with "
            "(make iterate RUN=… CONFIG=…). If nothing is missing, add that line."
        )


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
        raise ConfigError(
            f"--set {override}: found no `=`; needed section.key=value, such as train.learning_rate=1e-5. "
            "Correct the option."
        )
    *parents, last = key.strip().split(".")
    for parent in parents:
        if values.get(parent) is None:
            values[parent] = {}
        values = values[parent]
        if not isinstance(values, dict):
            raise ConfigError(
                f"--set {override}: found a single value at `{parent}`; needed keys below it. Correct the option."
            )
    try:
        values[last] = parse(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"--set {override:.200}: found a value that is no valid YAML ({reason}); needed one. Quote it."
        ) from None


def _explain(path: Path, error: ValidationError) -> str:
    import difflib

    lines = []
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = _keys_beside(problem["loc"])
            close = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
            hint = f"another: did you mean `{close[0]}`?" if close else f"one of {', '.join(known)}."
            lines.append(f"{path}: found unknown key `{key}`; needed {hint}")
        elif not key:  # sections that do not agree; the message says what was found
            lines.append(f"{path}: {problem['msg'].removeprefix('Value error, ')}.")
        else:
            lines.append(f"{path}: `{key}`: found {_Quote().repr(problem['input'])}; needed: {problem['msg']}.")
    return "\n".join([*lines, "Mend the file, or the --set option, and run the command again."])


def _keys_beside(location: tuple[int | str, ...]) -> list[str]:
    section: type[BaseModel] = Config
    for part in location[:-1]:
        if str(part) not in section.model_fields:  # a name in a mapping, whose values have led to the section already
            continue
        annotation = section.model_fields[str(part)].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        section = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(section.model_fields)
