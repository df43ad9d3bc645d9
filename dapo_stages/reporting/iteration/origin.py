"""By which command, with which versions and on which machine a report was made, as a rule the stages, too."""

from __future__ import annotations

import os
import platform
import re
import shlex
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dapo_stages.processes.machine_check import cores

_PACKAGES = ("dapo-stages", "torch", "transformers", "accelerate", "deepspeed", "peft", "vllm", "pyarrow")
# Variables of pipelines/run.mk that determine a run; others on make's command line are nobody's business.
_VARIABLES = re.compile(
    r"RUN|CONFIG|SET|ITERS|EVAL_EVERY|LAG|STRICT|RESIDENT|PRELOAD|LAUNCH|(TRAIN|ROLLOUT|SCORE|EVALUATE)_LAUNCH"
)


def origin() -> dict[str, str]:
    """What is known, by name, ready to be read."""
    found = {"command": command(os.environ), "versions": _versions(), "machine": _machine()}
    return {name: value for name, value in found.items() if value}


def command(environment: Mapping[str, str]) -> str:
    """The make command that this process belongs to, with the variables that were set; empty without make.

    make passes what was set on its command line as `MAKEFLAGS=… -- RUN=first SET=--set\\ seed=7`.
    """
    _, found, variables = f" {environment.get('MAKEFLAGS', '')}".partition(" -- ")
    if not found:
        return ""
    with suppress(ValueError):  # a quote that is not closed
        pairs = (word.partition("=") for word in shlex.split(variables))
        said = [f"{name}={shlex.quote(value)}" for name, _, value in pairs if _VARIABLES.fullmatch(name)]
        return " ".join(["make iterate", *sorted(said)])
    return ""


def _versions() -> str:
    found = [f"Python {platform.python_version()}"]
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return ", ".join(found)


def _machine() -> str:
    """System, processor, memory and GPUs, without the machine's name."""
    parts = [
        f"{platform.system()} {platform.machine()}",
        f"{cores()} cores",
        *_lines("/proc/cpuinfo", "model name")[:1],
    ]
    if memory := _lines("/proc/meminfo", "MemTotal"):
        parts.append(f"{int(memory[0].split()[0]) / 2**20:.0f} GiB")
    gpus = [
        name
        for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
        for name in _lines(path, "Model")
    ]
    parts += [f"{gpus.count(name)} × {name}" for name in dict.fromkeys(gpus)]
    return ", ".join(parts)


def _lines(path: str | Path, key: str) -> list[str]:
    """Values of the lines `key: value` of a file; none without the file."""
    with suppress(OSError):
        pairs = (line.partition(":") for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines())
        return [value.strip() for name, _, value in pairs if name.strip() == key]
    return []
