"""gpu-check: the stages of one iteration, each a process of its own; a large policy on disk, and trained by the recipe
of docs/lora-3b.md."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.gpu_record import Line
from benchmarks.stages import ROOT, Workspace, workspace
from dapo_stages.processes.phases import PHASES

if TYPE_CHECKING:
    from dapo_stages.config import ModelConfig

GIB = 2**30
ADAPTER = "adapter_model.safetensors"
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
        yield from _each("stages", work, calls)
        yield _trained("stages", work, 1e-3)


def _each(part: str, work: Workspace, calls: Mapping[str, tuple[object, ...]]) -> Iterator[Line]:
    """Run stages one after the other; what their manifests say."""
    for stage, words in calls.items():
        seconds = _run(work, stage, "--config", "run.yaml", *words)
        out = work.folder / str(words[words.index("--out") + 1])
        manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
        values: dict[str, Any] = {"seconds": seconds}
        values |= {phase: manifest["spent"].get(phase, 0.0) for phase in PHASES}
        values["exit and unknown"] = seconds - sum(manifest["spent"].values())
        if manifest["memory"] is not None:
            values["GiB"] = manifest["memory"] / GIB
        yield Line(part, stage, values, ok=True)


def _trained(part: str, work: Workspace, most: float) -> Line:
    """What train-step noted; a mismatch of engine and trainer above `most` nats is wrong."""
    counts = work.manifest("iter-0001", "train-step")["counts"]
    learned = {"updates": counts["updates"], "engine_diff, nats": counts["engine_diff"]}
    return Line(part, "what was trained", learned, ok=counts["updates"] > 0 and counts["engine_diff"] < most)


def _run(work: Workspace, stage: str, *words: object) -> float:
    """A command as a direct child, so that it ends with this process; -> seconds. Raises RuntimeError if it fails."""
    command = [sys.executable, "-m", "dapo_stages", stage, *map(str, words)]
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
    """Save and load a policy shaped like Qwen2.5-VL-3B, as train-step and the stages after it do, and train it by the
    recipe for one GPU of 24 GB."""
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
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        yield from _recipe(Path(place) / "run", folder, settings)


def _recipe(folder: Path, checkpoint: Path, settings: ModelConfig) -> Iterator[Line]:
    """From a checkpoint to an adapter that is merged, and gives the same logits in plain transformers."""
    from safetensors.torch import load_file
    from transformers import AutoModelForImageTextToText

    from dapo_stages.handoff.policy_folders import PolicyFolder
    from dapo_stages.models.policy_loading import open_policy

    config: dict[str, Any] = {
        "extends": str(ROOT / "pipelines/lora-3b-24gb.yaml"),
        "planned_iterations": 1,
        "model": {"name": str(checkpoint), "dtype": settings.dtype, "device": settings.device},
        "data": {"source": "embedded", "synthetic": {"train": 8, "held_out": 2}},
        "rollout": {"prompts_per_iteration": 2, "max_completion_length": 32, "dynamic_sampling": False},
        "rewards": {"overlong_cache": 8, "plugins": {"spread": "reward.py:spread"}},
        "weights": {"mask_truncated_completions": False, "early_fraction": 0.0},
        "train": {"updates_per_iteration": 1, "warmup_fraction": 0.0},
        "report": {"trackers": []},
    }
    work = workspace(folder, config)
    evaluate = ("--policy", "iter-0001/train/policy", "--data", "data", "--out", "iter-0001/eval")
    calls: dict[str, tuple[object, ...]] = {
        "init-policy": ("--out", "policy"),
        "prepare-data": ("--policy", "policy", "--out", "data"),
        **work.calls("iter-0001"),
        "evaluate": evaluate,
    }
    yield from _each("recipe", work, calls)
    yield _trained("recipe", work, 1e-3 if settings.dtype == "float32" else 0.1)
    adapter, merged = work.folder / "iter-0001/train/policy", work.folder / "merged"
    yield Line("recipe", "merge", {"seconds": _run(work, "merge", "--policy", adapter, "--out", merged)}, ok=True)
    ids = torch.arange(1, 17)[None].to(settings.device)
    with torch.inference_mode():
        dtype = getattr(torch, settings.dtype)
        plain = AutoModelForImageTextToText.from_pretrained(merged, dtype=dtype).to(settings.device).eval()
        theirs = plain(input_ids=ids).logits.float().log_softmax(-1)
        del plain
        ours = open_policy(PolicyFolder(adapter), settings).model(input_ids=ids).logits.float().log_softmax(-1)
    apart = float((ours - theirs).abs().max())
    learned = max(
        float(tensor.abs().max()) for name, tensor in load_file(adapter / ADAPTER).items() if "lora_B" in name
    )
    values = {"logprobs apart, nats": apart, "largest weight of lora_B": learned}
    most = 1e-4 if settings.dtype == "float32" else 0.25
    yield Line("recipe", "merged, in plain transformers", values, ok=apart < most and learned > 0)


def _clocked(run: Any) -> float:
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started
