"""A finished run in, its result file out."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dapo_stages.errors import DataError
from dapo_stages.handoff.manifests import MANIFEST, Source, manifest_of
from dapo_stages.handoff.unfinished import halted
from dapo_stages.runs.pipeline import FOLDERS
from dapo_stages.runs.run_folder import Run
from pipelines.study.design import Name
from pipelines.study.result_files import STAGES, Machine, Result
from pipelines.study.token_weights_seen import weights_seen

PACKAGES = ("dapo-stages", "torch", "transformers", "numpy")


def result_of(run: Run, name: Name, every: int) -> Result:
    """The result of a run that was to be evaluated at the start, after every `every` iterations, and at the end.

    Raises DataError if it is not finished, unless its training broke down: then it counts with what there is.
    """
    config = run.config
    if config is None:
        raise DataError(run.path, run.trouble or "there is no such run", "Run make study again.")
    planned = config.planned_iterations
    due = sorted({*range(0, planned + 1, every), planned})
    evaluated = [n for n in due if (run.folder(n) / "eval" / MANIFEST).exists()]
    broke_down = next((why for n in range(1, planned + 1) if (why := halted(run.folder(n) / "train"))), None)
    if evaluated != due and (broke_down is None or evaluated != due[: len(evaluated)] or not evaluated):
        problem = f"evaluated after iterations {', '.join(map(str, evaluated)) or 'none'}, expected {due}"
        raise DataError(run.path, problem, "Run make study again: it resumes the run.")
    train, rollout = (Source(run.folder(1) / place, FOLDERS[place]).manifest for place in ("train", "rollout"))
    seconds, memory = _costs(run, planned)
    return Result(
        task=name.task,
        scheme=name.scheme,
        seed=name.seed,
        pilot=name.rate is not None,
        learning_rate=config.train.learning_rate,
        iterations=planned,
        evaluated=due,
        curves=_curves(run, evaluated),
        seconds=seconds,
        memory=memory,
        weights=weights_seen(run, planned),
        start=train.inputs["policy"].content_hash,
        data=rollout.inputs["data"].content_hash,
        machine=machine_here(),
        versions=versions_here(),
        commit=_commit(),
        ended=Source(run.folder(evaluated[-1]) / "eval").manifest.ended,
        broke_down=broke_down,
        settings=config.model_dump(mode="json"),
    )


def _curves(run: Run, evaluated: list[int]) -> dict[str, dict[int, float]]:
    """Greedy accuracy on all held-out questions and on parts of them, with the image blanked, and tokens."""
    curves: dict[str, dict[int, float]] = {}
    for number in evaluated:
        source = Source(run.folder(number) / "eval", "evaluate")
        metrics = source.json(next(shard for shard in source.manifest.shards if shard.name == "metrics.json"))
        values = {
            "all": metrics["greedy_accuracy"],
            "blank": metrics["blank_accuracy"],
            "length": metrics["mean_tokens"],
        }
        for measure, part in (("violating", "prior-violating"), ("consistent", "prior-consistent")):
            values |= _slices(metrics, part, measure)
        for measure, value in values.items():
            if value is not None:
                curves.setdefault(measure, {})[number] = value
    return curves


def _slices(metrics: dict[str, Any], part: str, measure: str) -> dict[str, float]:
    """Accuracy over all slices of a part, and by the kind of question that the slices' names say."""
    right = total = 0.0
    found: dict[str, float] = {}
    for name, number in metrics["slices"].items():
        whose, _, kind = name.partition(", ")
        accuracy = metrics["by_slice"][name]["greedy_accuracy"]
        if whose == part and accuracy is not None:
            right, total = right + accuracy * number, total + number
            found |= {f"{measure}, {kind}": accuracy} if kind else {}
    return found | {measure: right / total} if total else {}


def _costs(run: Run, planned: int) -> tuple[dict[str, dict[int, float]], dict[str, int]]:
    """Seconds of each stage by iteration, and its peak memory in bytes.

    On processors alone these are seconds of processor time: what else the machine does meanwhile doesn't count.
    """
    on_gpus = bool(machine_here().gpus)
    seconds: dict[str, dict[int, float]] = {}
    memory: dict[str, int] = {}
    for number in range(planned + 1):
        for folder, stage in FOLDERS.items():
            if stage not in (*STAGES, "evaluate") or (manifest := manifest_of(run.folder(number) / folder)) is None:
                continue
            worked = None if on_gpus else manifest.processor_seconds
            seconds.setdefault(stage, {})[number] = round(manifest.seconds if worked is None else worked, 3)
            memory[stage] = max(memory.get(stage, 0), manifest.memory or 0)
    return seconds, memory


def machine_here() -> Machine:
    """This machine."""
    processor = _values("/proc/cpuinfo", "model name")[:1] or [platform.processor()]
    gpus = [
        model for path in Path("/proc/driver/nvidia/gpus").glob("*/information") for model in _values(path, "Model")
    ]
    cores = os.cpu_count() or 1
    threads = int(os.environ.get("OMP_NUM_THREADS", cores))
    return Machine(processor=processor[0], cores=cores, threads=threads, gpus=tuple(sorted(gpus)))


def _values(path: str | Path, key: str) -> list[str]:
    """Values of the lines `key: value` of a file; none without the file."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    pairs = (line.partition(":") for line in lines)
    return [value.strip() for name, _, value in pairs if name.strip() == key]


def versions_here() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    """The commit of the code, with a `+` if files of it have been changed; empty outside a checkout."""

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
        except OSError:
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "HEAD")
    return commit + ("+" if git("status", "--porcelain", "--", "dapo_stages", "pipelines") else "")
