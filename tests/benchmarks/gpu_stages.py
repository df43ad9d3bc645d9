"""gpu-check, last: one iteration of the embedded task, each stage a process of its own, and a large policy on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.gpu_record import Line
from benchmarks.stages import ROOT, Workspace, workspace
from dapo_stages.processes.phases import PHASES

GIB = 2**30
TINY = {
    "extends": str(ROOT / "pipelines/smoke.yaml"),
    "warm_up": {"steps": 2},
    "rollout": {"prompts_per_iteration": 4, "dynamic_sampling": False},
    "weights": {"mask_truncated_completions": False},
}


def iteration(device: torch.device, *, tiny: bool) -> Iterator[Line]:
    """Seconds by phase, and bytes, of init-policy, prepare-data and the stages of one iteration.

    Every second completion is rewarded, so that there is something to train on whatever the policy says.
    """
    config: dict[str, Any] = dict(TINY) if tiny else {"extends": str(ROOT / "pipelines/embedded.yaml")}
    config |= {
        "model": {"name": "embedded", "dtype": "float32", "device": device.type},
        "rewards": {"overlong_cache": 8, "symbolic": False, "plugins": {"spread": "reward.py:spread"}},
        "report": {"trackers": []},
    }
    with TemporaryDirectory(prefix="gpu-check-") as place:
        work = workspace(Path(place) / "run", config)
        calls: dict[str, tuple[object, ...]] = {
            "init-policy": ("--out", "policy"),
            "prepare-data": ("--policy", "policy", "--out", "data"),
            **work.calls("iter-0001"),
        }
        for stage, words in calls.items():
            seconds = _run(work, stage, words)
            out = work.folder / str(words[words.index("--out") + 1])
            manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
            values: dict[str, Any] = {"seconds": seconds}
            values |= {phase: manifest["spent"].get(phase, 0.0) for phase in PHASES}
            values["exit and unknown"] = seconds - sum(manifest["spent"].values())
            if manifest["memory"] is not None:
                values["GiB"] = manifest["memory"] / GIB
            yield Line("stages", stage, values, ok=True)
        counts = work.manifest("iter-0001", "train-step")["counts"]
        learned = {"updates": counts["updates"], "engine_diff, nats": counts["engine_diff"]}
        yield Line("stages", "what was trained", learned, ok=counts["engine_diff"] < 1e-3)


def _run(work: Workspace, stage: str, words: tuple[object, ...]) -> float:
    """A stage as a direct child, so that it ends with this process; -> seconds. Raises RuntimeError if it fails."""
    command = [sys.executable, "-m", "dapo_stages", stage, "--config", "run.yaml", *map(str, words)]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    started = time.perf_counter()
    with (work.folder / "log.txt").open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, cwd=work.folder, env={**os.environ, "PYTHONPATH": path}, stdout=log, stderr=log
        )
        try:
            code = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(10)
    if code:
        text = (work.folder / "log.txt").read_text(encoding="utf-8")
        raise RuntimeError(f"{stage}: exit {code}: {text[-2000:]}")
    return time.perf_counter() - started


def on_disk(device: torch.device, *, tiny: bool) -> Iterator[Line]:
    """Save and load a policy shaped like Qwen2.5-VL-3B, as train-step and the stages after it do."""
    from transformers.utils.logging import disable_progress_bar

    from benchmarks import models
    from benchmarks.gpu_work import three_billion
    from dapo_stages.config import ModelConfig
    from dapo_stages.models.policy_loading import load_policy, save_policy

    disable_progress_bar()
    policy = models.small() if tiny else three_billion(device)
    with TemporaryDirectory(prefix="gpu-check-") as place:
        folder = Path(place) / "policy"
        seconds = _clocked(partial(save_policy, policy, folder))
        size = sum(path.stat().st_size for path in folder.iterdir())
        yield Line("on disk", "save", {"seconds": seconds, "GB": size / 1e9})
        settings = ModelConfig(dtype="float32" if tiny else "bfloat16", device=device.type)
        del policy
        seconds = _clocked(partial(load_policy, folder, settings))
        yield Line("on disk", "load, just written", {"seconds": seconds, "GB": size / 1e9})


def _clocked(run: Any) -> float:
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started
