"""Row 4: a whole iteration as separate processes, against TRL doing as much in one that is already running."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import models
from benchmarks.measure import Figure
from benchmarks.stages import ROOT, STAGES, Ran, Way, Workspace, workspace

OURS = (
    "rollout, score-attention, weight-tokens, train-step one after the other, each a process of its own: imports, "
    "reading and writing files, rewards, logprobs, attention masses, token weights, updates, checkpoint and state"
)
THEIRS = (
    "one process, timed from its first batch: image processing, generation, rewards, old logprobs, updates; "
    "not timed: imports, loading; not done: attention masses, token weights, files, checkpoint"
)
SHARED: dict[str, Any] = {
    "seed": 42,
    "planned_iterations": 100,
    "weights": {
        "mask_truncated_completions": False,
        "vgr_mapping": "mad",
        "early_fraction": 0.0,
        "replay": {"size": 0},
        "reward_weights": {"accuracy": 0.0, "vgr": 0.0, "format": 0.0, "overlong": 0.0},
    },
    "rewards": {"symbolic": False, "overlong_cache": 8, "plugins": {"spread": "reward.py:spread"}},
}


@dataclass(frozen=True)
class Size:
    """An iteration of `prompts` × 8 completions in `updates` mini-batches, `batch` completions at a time."""

    name: str
    work: str
    target: float
    prompts: int
    longest: int
    updates: int
    batch: int
    learning_rate: float
    make: Callable[[Path, Size], Workspace]
    repetitions: int = 2
    way: Way = "plain"


def measure(size: Size, repetitions: int | None, call: Callable[..., Any]) -> Figure:
    """Ours and theirs by turns; `call` runs the other side's process (worker.call)."""
    with tempfile.TemporaryDirectory(prefix="bench-iteration-") as place:
        work = size.make(Path(place) / size.name, size)
        work.way = size.way
        work.prepare()
        load = call("load", size.name, str(work.folder)) if size.way == "plain" else None
        ours: list[dict[str, Ran]] = []
        theirs: list[dict[str, float]] = []
        for turn in range(repetitions or size.repetitions):
            ours.append(work.iterate(f"iter-{turn}"))
            theirs.append(call("trl-iteration", size.name, str(work.folder)))
        ours_seconds = [sum(ran.seconds for ran in stages.values()) for stages in ours]
        theirs_seconds = [one["seconds"] for one in theirs]
        last = f"iter-{len(ours) - 1}"
        counts = {stage: work.manifest(last, stage)["counts"] for stage in STAGES}
        _check(size, counts)
        details = {
            "stages": {stage: _parts(work, last, stage, ours[-1][stage], load) for stage in STAGES},
            "mean completion, ours": counts["rollout"]["mean_tokens"],
            "mean completion, theirs": theirs[-1]["mean length"],
            "peak resident MiB, ours": max((ran.mib or 0.0) for ran in ours[-1].values()) or None,
            "peak resident MiB, theirs": theirs[-1]["mib"],
        }
    return Figure(
        size.name,
        size.work,
        "TRL: as many completions and updates, start-up excluded",
        statistics.median(theirs_seconds) / statistics.median(ours_seconds),
        size.target,
        ours_seconds=ours_seconds,
        theirs_seconds=theirs_seconds,
        ours_computes=OURS,
        theirs_computes=THEIRS,
        details=details,
    )


def _check(size: Size, counts: dict[str, dict[str, Any]]) -> None:
    """Every completion was sampled, scored and trained on."""
    completions = size.prompts * 8
    found = {
        "sampled": counts["rollout"]["completions"],
        "scored": counts["score-attention"]["ok"],
        "trained on": counts["train-step"]["completions"],
        "updates": counts["train-step"]["updates"],
    }
    assert found == dict.fromkeys(found, completions) | {"updates": size.updates}, found


def _parts(work: Workspace, name: str, stage: str, ran: Ran, load: float | None) -> dict[str, float | None]:
    """Where a stage's seconds go. Start-up and exit: what its own clock does not see; loading: measured by itself."""
    inside = float(work.manifest(name, stage)["seconds"])
    loading = 0.0 if stage == "weight-tokens" or load is None else load
    saving = work.saving(name) if stage == "train-step" else 0.0
    return {
        "total": ran.seconds,
        "start-up and exit": ran.seconds - inside,
        "loading": None if load is None else loading,
        "work": max(0.0, inside - loading - saving),
        "saving": saving,
        "peak resident MiB": ran.mib,
    }


# ---- The other process -----------------------------------------------------------------------------------------------


def trl_iteration(size: Size, folder: Path) -> dict[str, float]:
    """Seconds of one generation and its updates by GRPOTrainer's own loop, from its first batch to its last step."""
    import resource
    import time

    from transformers import TrainerCallback

    from benchmarks import trl_side
    from dapo_stages.config import ModelConfig
    from dapo_stages.handoff.policy_folders import PolicyFolder
    from dapo_stages.models.policy_loading import open_policy

    policy = open_policy(PolicyFolder(folder / "policy"), ModelConfig(dtype="float32", device="cpu"))
    lengths: list[int] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        started = ended = 0.0

        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            Clock.started = Clock.started or time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            Clock.ended = time.perf_counter()

    def spread(completions: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float]:
        lengths.extend(map(len, completion_ids))
        return [float(index % 2) for index, _ in enumerate(completions)]

    completions = size.prompts * 8
    accumulation = completions // size.updates // size.batch
    made = trl_side.trainer(
        policy,
        batch=size.batch,
        accumulation=accumulation,
        max_length=size.longest,
        rows=trl_rows(folder, size.prompts),
        reward=spread,
        callbacks=[Clock()],
        steps_per_generation=completions // size.batch,
        max_steps=size.updates,
        learning_rate=size.learning_rate,
        generation_kwargs={"suppress_tokens": sorted(policy.special_ids - set(policy.end_ids))},
    )
    made.train()
    assert made.state.global_step == size.updates
    assert len(lengths) == completions, f"{len(lengths)} completions"
    mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": Clock.ended - Clock.started, "mean length": sum(lengths) / len(lengths), "mib": mib}


def trl_rows(folder: Path, count: int | None = None) -> list[dict[str, Any]]:
    """The (first `count`) prompts of our data folder as TRL takes them: a conversation, an image, a solution."""
    import io

    from PIL import Image

    from dapo_stages.engines.server_engine import messages_of
    from dapo_stages.handoff.manifests import Source
    from dapo_stages.models.families import FAMILIES

    family = FAMILIES["qwen2_5_vl"]
    rows = []
    for row in Source(folder / "data").rows("train"):
        image = Image.open(io.BytesIO(row["images"][0]["bytes"])).convert("RGB")
        system = [one["content"][0]["text"] for one in messages_of(row, family) if one["role"] == "system"]
        head = [{"role": "system", "content": text} for text in system]
        prompt = [*head, {"role": "user", "content": row["problem"]}]
        rows.append({"prompt": prompt, "image": image, "solution": row["solution"]})
        if len(rows) == count:
            return rows
    if count is not None:
        raise RuntimeError(f"{len(rows)} prompts, needed {count}")
    return rows


# ---- The two sizes ---------------------------------------------------------------------------------------------------


def _medium(folder: Path, size: Size) -> Workspace:
    """Images of 448 × 448 pixels (256 vision tokens) and questions that make prompts of 303 tokens."""
    policy = models.medium()
    folder.mkdir(parents=True)
    models.save(policy, folder / "model")
    questions(folder, policy, size.prompts * 5 // 4, 303)
    config = SHARED | {
        "model": {"name": str(folder / "model"), "dtype": "float32", "device": "cpu"},
        "data": data_of(folder, held_out=0.1),
        "rollout": {
            "prompts_per_iteration": size.prompts,
            "num_generations": 8,
            "max_completion_length": size.longest,
            "dynamic_sampling": False,
        },
        "train": {
            "updates_per_iteration": size.updates,
            "batch_completions": size.batch,
            "learning_rate": size.learning_rate,
            "gradient_checkpointing": False,
        },
    }
    return workspace(folder, config)


def data_of(folder: Path, held_out: float) -> dict[str, Any]:
    """The section `data` for `questions`, which have no options: what they are rewarded for is not in their answers."""
    return {
        "source": str(folder / "questions.jsonl"),
        "held_out_fraction": held_out,
        "max_prompt_length": 512,
        "allow_unwinnable": True,
        "system_prompt": "",
    }


def questions(folder: Path, policy: Any, count: int, length: int, side: int = 448) -> None:
    """A JSONL file with images beside it; every digit is a token, so that any length can be made exactly."""
    import numpy as np
    from PIL import Image

    from dapo_stages.data.chat import messages

    processor = policy.processor
    lines = []
    for index in range(count):
        coarse = np.random.default_rng(index).integers(0, 255, (14, 14, 3), dtype=np.uint8)
        image = Image.fromarray(coarse, "RGB").resize((side, side), Image.Resampling.BICUBIC)
        image.save(folder / f"{index}.png")
        question = f"What is it? {index:04d}"
        text = processor.apply_chat_template(messages(question, 1, ""), add_generation_prompt=True)
        tokens = len(processor(text=[text], images=[image])["input_ids"][0])
        line = {"image": f"{index}.png", "problem": question + "7" * (length - tokens), "solution": "A"}
        lines.append(json.dumps(line))
    (folder / "questions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _small(folder: Path, size: Size) -> Workspace:
    """The embedded default, warm-up included; without dynamic sampling, so that both sides sample as much."""
    config = SHARED | {
        "extends": str(ROOT / "pipelines/embedded.yaml"),
        "data": {"synthetic": {"train": size.prompts, "held_out": 8}},
        "rollout": {"prompts_per_iteration": size.prompts, "dynamic_sampling": False},
    }
    return workspace(folder, config)


_MEDIUM = Size(
    "iteration-medium",
    "a whole iteration, medium, 32 prompts × 8, prompt 303, completion 64",
    2.5,
    prompts=32,
    longest=64,
    updates=4,
    batch=8,
    learning_rate=1e-5,
    make=_medium,
)
_SMALL = Size(
    "iteration-small",
    "a whole iteration, small, 128 prompts × 8",
    1.0,
    prompts=128,
    longest=32,
    updates=8,
    batch=128,
    learning_rate=3e-4,
    make=_small,
    repetitions=3,
)
_FORKED = replace(
    _SMALL, name="iteration-small-forked", work=f"{_SMALL.work}, stages forked from a parent", way="forked"
)
_RESIDENT = tuple(
    replace(
        size,
        name=f"{size.name}-resident",
        work=f"{size.work}, in a process that stays",
        way="resident",
        target=target,
        repetitions=3,
    )
    for size, target in ((_MEDIUM, 4.5), (_SMALL, 2.0))
)
SIZES = {size.name: size for size in (_MEDIUM, _SMALL, _FORKED, *_RESIDENT)}
