"""Writes docs/commands.md and docs/configuration.md from the commands and the configuration's models: `make docs`."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from typer.models import ArgumentInfo

from dapo_stages.config import Config
from dapo_stages.entrypoints.cli import COMMANDS, module_of

HERE = Path(__file__).parent
PIPELINE = 5  # the first commands of COMMANDS
NOTE = "<!-- Made by `make docs` from the code; edit that instead. -->\n"


def commands() -> str:
    """docs/commands.md."""
    names = list(COMMANDS)
    parts = [
        f"# Commands\n\n{NOTE}\n`dapo-stages COMMAND --help` says the same. Exit codes: README, "
        '["The code"](../README.md#the-code). Options that may be repeated end with "…".\n',
        "## The pipeline, in its order\n",
        *(_command(name) for name in names[:PIPELINE]),
        "## Around it\n",
        *(_command(name) for name in names[PIPELINE:]),
    ]
    return "\n".join(parts)


def configuration() -> str:
    """docs/configuration.md."""
    parts = [
        f"# Configuration\n\n{NOTE}\n"
        "One YAML file configures a run; what it does not name has the default below, and `extends: other.yaml` in its "
        "first line takes another file as the default. `--set section.key=value` overrides a key in any command, and "
        "`dapo-stages config --config FILE` prints every key resolved. Unknown keys and values out of range are "
        "refused by name. Secrets are no keys: they come from the environment.\n",
        "\n".join(["| section | about |", "|---|---|", *_contents()]) + "\n",
        *(_section(place, model) for place, model in sections()),
    ]
    return "\n".join(parts)


def sections(model: type[BaseModel] = Config, place: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Every section by its dotted key, each before those inside it."""
    yield place, model
    for name, field in model.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from sections(kind, f"{place}.{name}".lstrip("."))


def _command(name: str) -> str:
    module = import_module(module_of(name))
    summary, *rest = inspect.cleandoc(module.main.__doc__).split("\n\n")
    parts = [f"### {name}\n", f"{' '.join(summary.split())}\n"]
    for paragraph in rest:
        example, found = re.subn(r"^Example: ", "", paragraph)
        example = re.sub(r" *\\*\n *", " \\\\\n  ", example)
        parts.append(f"```bash\n{example}\n```\n" if found else f"{_escaped(' '.join(paragraph.split()))}\n")
    used = getattr(module, "SECTIONS", ())
    if used:
        parts.append(f"A change of {_listed(used)} makes its output another one.\n")
    lines = ["| option | value | default | meaning |", "|---|---|---|---|"]
    parameters = inspect.signature(module.main, eval_str=True).parameters.values()
    lines += [_option(one) for one in parameters if not getattr(get_args(one.annotation)[1], "hidden", False)]
    return "\n".join([*parts, "\n".join(lines) + "\n"])


def _option(parameter: inspect.Parameter) -> str:
    """A row for an option or argument, from the annotation that typer reads."""
    kind, info = parameter.annotation.__origin__, parameter.annotation.__metadata__[0]
    required = parameter.default is inspect.Parameter.empty
    if isinstance(info, ArgumentInfo):
        name = f"`{info.metavar or parameter.name.upper()}`"
    else:
        # In an Annotated, typer.Option takes its first flag for the default.
        name = _listed(flag for flag in (info.default, *(info.param_decls or ())) if isinstance(flag, str))
    nothing = required or parameter.default in (None, False)
    default = "required" if required else "" if nothing else f"`{parameter.default}`"
    return f"| {name} | {_value(kind, info)} | {default} | {_escaped(info.help or '')} |"


def _value(kind: Any, info: Any) -> str:
    """What an option takes; nothing for a switch."""
    (inner,) = (
        (part for part in get_args(kind) if part is not NoneType) if get_origin(kind) in {Union, UnionType} else (kind,)
    )
    several = get_origin(inner) is list
    inner = get_args(inner)[0] if several else inner
    names = {int: "integer", float: "number", str: "text", Path: "path"}
    if inner is bool:
        return ""
    if get_origin(inner) is Literal:
        shown = _listed(get_args(inner))
    else:
        shown = f"`{info.metavar}`" if info.metavar and not isinstance(info, ArgumentInfo) else names[inner]
    bounds = [f"{sign} {bound}" for sign, bound in (("≥", info.min), ("≤", info.max)) if bound is not None]
    return ", ".join([shown, *bounds]) + " …" * several


def _contents() -> Iterator[str]:
    for place, model in sections():
        if place and "." not in place:
            yield f"| [`{place}`](#{place.replace('.', '')}) | {_about(model)} |"


def _section(place: str, model: type[BaseModel]) -> str:
    schema = model.model_json_schema()
    shared = schema.get("$defs", {})
    lines = []
    for name, field in model.model_fields.items():
        found = schema["properties"][name]
        if isinstance(field.default, BaseModel):
            continue
        default = "required" if field.is_required() else f"`{_json(field.default)}`"
        lines.append(
            f"| `{_key(place, name)}` | {_kind(found, shared)} | {default} | {_escaped(field.description or '')} |"
        )
    title = f"`{place}`" if place else "At the top"
    table = ["| key | value | default | meaning |", "|---|---|---|---|", *lines] if lines else []
    return f"{'#' * (2 + place.count('.'))} {title}\n\n{_about(model)}\n\n" + "\n".join(table) + "\n" * bool(table)


def _key(place: str, name: str) -> str:
    """The dotted key, as `--set` takes it."""
    return f"{'schedules.KEY' if place == 'schedules' else place}.{name}".lstrip(".")


def _about(model: type[BaseModel]) -> str:
    return _escaped(" ".join(inspect.cleandoc(model.__doc__ or "").split()))


def _kind(found: dict[str, Any], shared: dict[str, Any]) -> str:
    """What a value may be, from its JSON schema: `number, > 0, < 1`."""
    if "anyOf" in found:
        return " or ".join(_kind(one, shared) for one in found["anyOf"])
    if "$ref" in found:
        return "keys as below"
    if "enum" in found or "const" in found:
        return _listed(found.get("enum", [found.get("const")]))
    kind = found.get("type")
    if kind == "array":
        inner = [_kind(one, shared) for one in found.get("prefixItems", [found["items"]] if "items" in found else [])]
        return f"[{'; '.join(inner)}]" if "prefixItems" in found else f"list of {inner[0]}"
    if kind == "object":
        return f"name: {_kind(found['additionalProperties'], shared)}"
    names = {"number": "number", "integer": "integer", "string": "text", "boolean": "true or false", "null": "null"}
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    bounds = [f"{sign} {found[key]:g}" for key, sign in signs.items() if key in found]
    bounds += [f"like `{found['pattern']}`".replace("|", "\\|")] if "pattern" in found else []
    bounds += ["not empty"] if found.get("minLength") else []
    return ", ".join([names[str(kind)], *bounds])


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False).replace("|", "\\|")


def _listed(values: Any) -> str:
    return ", ".join(f"`{value}`" for value in values)


def _escaped(text: str) -> str:
    """Plain text as Markdown: code stays code, the rest cannot become markup."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*_<>|\[\]])", r"\\\1", part) for part in parts)


PAGES = {"commands.md": commands, "configuration.md": configuration}

if __name__ == "__main__":
    for page, make in PAGES.items():
        (HERE / page).write_text(make(), encoding="utf-8")
        print(HERE / page, file=sys.stderr)
