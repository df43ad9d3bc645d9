"""The launches and Pythons that make gives stages, as far as files and folders tell what they need."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from dapo_stages.config import Config
from dapo_stages.errors import ConfigError, DapoStagesError
from dapo_stages.models.requirements import require_whole_rows
from dapo_stages.processes import gpu_locks
from dapo_stages.small_files import read_text
from dapo_stages.training.combinations import check_framework, check_split, require_adamw

_TRAIN = "TRAIN"


@dataclass(frozen=True)
class StageStart:
    """How make starts a stage: its name there (ROLLOUT, TRAIN), a number of processes or an accelerate file, its
    Python, and its GPUs; empty for one process of this Python, with all GPUs."""

    name: str
    launch: str = ""
    python: str = ""
    gpus: str = ""

    @classmethod
    def parse(cls, text: str) -> StageStart:
        """`TRAIN=pipelines/accelerate/zero2.yaml,.venv/bin/python,0,1`. Raises ConfigError for anything else."""
        name, separator, rest = text.partition("=")
        launch, _, rest = rest.partition(",")
        python, _, gpus = rest.partition(",")
        if not separator or not name:
            raise ConfigError(f"--stage {text}: expected NAME=LAUNCH,PYTHON,GPUS, such as TRAIN=2,,0,1. Correct it.")
        return cls(name, launch, python, gpus)

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """What the accelerate file says; empty for a number of processes. Raises ConfigError if there is none."""
        import yaml

        if not self.launch or self.launch.isdigit():
            return {}
        try:
            found = yaml.safe_load(read_text(Path(self.launch)))
        except (OSError, ValueError, yaml.YAMLError) as error:
            said = " ".join(str(error).split())[:120]
            raise ConfigError(
                f"{self.name}_LAUNCH: {self.launch}: cannot read the settings of this launch ({said}). Name a number "
                "of processes, or a file of pipelines/accelerate."
            ) from None
        return found if isinstance(found, dict) else {}

    @property
    def kind(self) -> str:
        """DEEPSPEED, FSDP, or another of accelerate's."""
        return str(self._settings.get("distributed_type", ""))

    @property
    def splits(self) -> bool:
        """Whether no rank has the whole model."""
        zero = self._settings.get("deepspeed_config") or {}
        return self.kind == "FSDP" or (self.kind == "DEEPSPEED" and zero.get("zero_stage") == 3)

    @property
    def here(self) -> int:
        """Processes on this machine."""
        if self.launch.isdigit():
            return int(self.launch)
        try:
            return int(self._settings.get("num_processes", 1)) // max(1, int(self._settings.get("num_machines", 1)))
        except (TypeError, ValueError):
            return 1

    @property
    def wants_cpu(self) -> bool:
        return bool(self._settings.get("use_cpu")) or os.environ.get("ACCELERATE_USE_CPU") == "true"


def troubles(start: StageStart, config: Config, family: str | None) -> Iterator[DapoStagesError]:
    """What would end a stage that is started like this. `family` of the model, if it is known."""
    if start.python and not _is_program(start.python):
        yield ConfigError(
            f"{start.name}_PYTHON: {start.python}: no such program. Make it (make venv-vllm), or correct the path."
        )
    try:
        _ = start.kind
    except ConfigError as error:  # what it needs cannot be known
        yield error
        return
    checks: list[Callable[[], None]] = [
        partial(check_framework, start.kind, config.model),
        partial(_enough_gpus, start, config),
    ]
    if start.name == _TRAIN:
        checks.append(partial(check_split, config.model, splits=start.splits))
        if start.kind in ("DEEPSPEED", "FSDP"):
            checks.append(partial(require_adamw, config.train.optimizer))
        if family is not None:
            checks.append(partial(require_whole_rows, family, splits=start.splits))
    for check in checks:
        try:
            check()
        except DapoStagesError as error:
            yield error


def require_vllm(stage: str, python: str) -> None:
    """Raise ConfigError if the Python that runs the stage has no vllm."""
    program = python or sys.executable
    code = "import sys, importlib.util as u; sys.exit(u.find_spec('vllm') is None)"
    with suppress(OSError, subprocess.TimeoutExpired):
        if subprocess.run([program, "-c", code], timeout=20, capture_output=True).returncode == 0:
            return
    raise ConfigError(
        f"{stage}.engine: vllm is not installed for {program}. Run make venv-vllm, and pass "
        f"{stage.upper()}_PYTHON=.venv-vllm/bin/python."
    )


def gpus() -> list[str]:
    """Names of the NVIDIA GPUs that processes of this machine see, without asking the driver."""
    there = gpu_locks.there()
    return gpu_locks.visible(os.environ.get("CUDA_VISIBLE_DEVICES"), there) if there else []


def _enough_gpus(start: StageStart, config: Config) -> None:
    """Raise ConfigError if a process would have no GPU of its own, or the stage a GPU that there is not."""
    there = gpus()
    if config.model.device == "cuda" and not there:
        raise ConfigError("model.device: it is cuda, but there is no CUDA device. Set it to auto or cpu.")
    if config.model.device == "cpu" or not there or start.wants_cpu:
        return
    given = start.gpus.split(",") if start.gpus else there
    unknown = [name for name in given if name.isdigit() and name not in there]
    if unknown and all(map(str.isdigit, there)):  # numbers and UUIDs may name the same ones
        raise ConfigError(
            f"{start.name}_GPUS: there is no GPU {unknown[0]} that can be used, only {', '.join(there)}. Name some of "
            "these."
        )
    which = f"{start.name}_GPUS names" if start.gpus else "there are"
    if start.here > len(given):
        raise ConfigError(
            f"{start.name}_LAUNCH: {start.here} processes on this machine need a GPU each, but {which} {len(given)}. "
            f"Start {len(given)} processes, or set model.device to cpu."
        )
    engine = {"ROLLOUT": config.rollout.engine, "EVALUATE": config.evaluate.engine}.get(start.name)
    each = config.engines.vllm.tensor_parallel_size
    copies = start.here if start.here > 1 else config.engines.vllm.data_parallel_size  # as make has it
    if engine == "vllm" and copies * each > len(given):
        raise ConfigError(
            f"engines.vllm: data_parallel_size={copies} and tensor_parallel_size={each} need {copies * each} GPUs, but "
            f"{which} {len(given)}. Reduce one of them."
        )


def _is_program(name: str) -> bool:
    from shutil import which

    return which(name) is not None
