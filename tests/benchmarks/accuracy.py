"""Seconds until the held-out questions of the embedded task are answered right, against TRL's GRPOTrainer.

Decided before it ran: both start from the same policy and train on the same questions, with the same rewards (accuracy,
half as much for the format), as many completions and updates per iteration, and the learning rates RATES. The clock
runs while an iteration does, not while a policy is loaded or evaluated. After each iteration all held-out questions
are answered greedily by the same code. A run ends once REACHED[-1] of them are right, or after MOST iterations, which
counts as never. Each side is judged by its best learning rate: that with the smallest median over the seeds.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.iteration import trl_rows
from benchmarks.measure import Figure
from benchmarks.stages import ROOT, Workspace, workspace

RATES = (3e-4, 6e-4, 1e-3)
REACHED = (0.9, 0.985)
SEEDS, MOST = 3, 10
PROMPTS, LONGEST, UPDATES, BATCH = 128, 32, 8, 128  # as in embedded.yaml, without dynamic sampling
OURS = (
    "rollout, score-attention, weight-tokens, train-step and report, the four that need the policy in a process that "
    "stays; the first iteration includes its start"
)
THEIRS = "one process that has loaded everything: image processing, generation, rewards, old logprobs, updates"
_AT_ONCE = 64  # questions answered at a time
Row = dict[str, Any]


def measure(repetitions: int | None, call: Callable[..., Any]) -> list[Figure]:
    """Both sides by turns, for `repetitions` seeds."""
    seeds = range(1, (repetitions or SEEDS) + 1)
    ours: dict[float, list[list[float]]] = {rate: [] for rate in RATES}
    theirs: dict[float, list[list[float]]] = {rate: [] for rate in RATES}
    for seed in seeds:
        for rate in RATES:
            # A worker serves the folder that it was started in, and ends with the one that has its socket.
            with tempfile.TemporaryDirectory(prefix="bench-accuracy-") as place:
                work = _workspace(Path(place) / "project", seed, rate)
                ours[rate].append(_train(work))
                theirs[rate].append([_seconds(one) for one in call("trl-accuracy", str(rate), str(work.folder))])
    return [_figure(index, ours, theirs) for index in range(len(REACHED))]


def _workspace(folder: Path, seed: int, rate: float) -> Workspace:
    config = {
        "extends": str(ROOT / "pipelines/embedded.yaml"),
        "seed": seed,
        "planned_iterations": MOST,
        "rollout": {"dynamic_sampling": False},
        "train": {"learning_rate": rate},
        "report": {"trackers": []},
    }
    work = workspace(folder, config)
    work.way = "resident"
    work.prepare()
    return work


def _train(work: Workspace) -> list[float]:
    """Seconds until each share of REACHED; infinite for those that are not."""
    questions = held_out(work.folder)
    clock = _Clock()
    before = "policy"
    for iteration in range(1, MOST + 1):
        here = f"iter-{iteration:04d}"
        calls = work.calls(here, before, iteration)
        calls["report"] = ("--run", ".", "--iteration", iteration)
        clock.seconds += sum(work.command(stage, *words).seconds for stage, words in calls.items())
        before = f"{here}/train/policy"
        if clock.note(share_right(_loaded(work.folder / before), questions)):
            break
    return clock.reached


class _Clock:
    """Seconds of training so far, and those until each share of REACHED."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.reached = [math.inf] * len(REACHED)

    def note(self, share: float) -> bool:
        """Take the share of right answers now; whether all are reached."""
        for index, wanted in enumerate(REACHED):
            if share >= wanted:
                self.reached[index] = min(self.reached[index], self.seconds)
        return math.isfinite(self.reached[-1])


def _seconds(found: float | None) -> float:
    return math.inf if found is None else found


def held_out(folder: Path) -> list[Row]:
    """The held-out questions of a data folder."""
    from dapo_stages.handoff.manifests import Source

    return list(Source(folder / "data").rows("held_out"))


def share_right(policy: Any, questions: Sequence[Row]) -> float:
    """Answered greedily, without a reward's knowledge of the format."""
    from dapo_stages.config import RolloutConfig
    from dapo_stages.engines.transformers_engine import TransformersEngine
    from dapo_stages.rewards.accuracy import accuracy

    engine = TransformersEngine(policy, RolloutConfig(max_completion_length=LONGEST))
    parts = [questions[start : start + _AT_ONCE] for start in range(0, len(questions), _AT_ONCE)]
    found = [one for part in parts for one in engine.generate(part, seed=0, samples=0, greedy=True)]
    texts = [policy.text(completion.ids) for [completion] in found]
    return statistics.fmean(accuracy(text, row["solution"]) for text, row in zip(texts, questions, strict=True))


def _loaded(folder: Path) -> Any:
    from dapo_stages.config import ModelConfig
    from dapo_stages.handoff.policy_folders import PolicyFolder
    from dapo_stages.models.policy_loading import open_policy

    return open_policy(PolicyFolder(folder), ModelConfig(dtype="float32", device="cpu"))


def trl_accuracy(rate: float, folder: Path) -> list[float | None]:
    """The same by GRPOTrainer, in this process; None for shares that are not reached."""
    import time

    from transformers import TrainerCallback

    from benchmarks import trl_side
    from dapo_stages.rewards.accuracy import accuracy
    from dapo_stages.rewards.format import format_reward

    policy, questions, clock = _loaded(folder / "policy"), held_out(folder), _Clock()

    class Pauses(TrainerCallback):  # type: ignore[misc]
        since = 0.0

        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            Pauses.since = Pauses.since or time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % UPDATES:
                return
            clock.seconds += time.perf_counter() - Pauses.since
            control.should_training_stop = clock.note(share_right(policy, questions))
            policy.attend("separate")
            policy.model.train()
            Pauses.since = time.perf_counter()

    def reward(completion_ids: list[list[int]], solution: list[str], **_: Any) -> list[float]:
        texts = [policy.text([token for token in ids if token not in policy.end_ids]) for ids in completion_ids]
        return [accuracy(text, right) + 0.5 * format_reward(text) for text, right in zip(texts, solution, strict=True)]

    completions = PROMPTS * 8
    made = trl_side.trainer(
        policy,
        batch=BATCH,
        accumulation=completions // UPDATES // BATCH,
        max_length=LONGEST,
        rows=trl_rows(folder),
        reward=reward,
        callbacks=[Pauses()],
        steps_per_generation=completions // BATCH,
        max_steps=UPDATES * MOST,
        learning_rate=rate,
        adam_beta1=0.9,
        adam_beta2=0.95,
        generation_kwargs={"suppress_tokens": sorted(policy.special_ids - set(policy.end_ids))},
    )
    made.train()
    return [seconds if math.isfinite(seconds) else None for seconds in clock.reached]


def _figure(index: int, ours: dict[float, list[list[float]]], theirs: dict[float, list[list[float]]]) -> Figure:
    best = [_best(side) for side in (ours, theirs)]
    seconds = [[run[index] for run in side[rate]] for side, rate in zip((ours, theirs), best, strict=True)]
    return Figure(
        f"accuracy-{1000 * REACHED[index]:.0f}",
        f"seconds of training until {REACHED[index]:.1%} of the held-out questions are answered right, embedded task",
        "TRL's GRPOTrainer, start-up excluded",
        _ratio(*(statistics.median(side) for side in seconds)),
        2.0 if index == len(REACHED) - 1 else None,
        ours_seconds=[one for one in seconds[0] if math.isfinite(one)],
        theirs_seconds=[one for one in seconds[1] if math.isfinite(one)],
        ours_computes=OURS,
        theirs_computes=THEIRS,
        details={
            "learning rates, ours and theirs": best,
            "ours, by learning rate": {f"{rate:g}": _finite(runs, index) for rate, runs in ours.items()},
            "theirs, by learning rate": {f"{rate:g}": _finite(runs, index) for rate, runs in theirs.items()},
        },
    )


def _ratio(ours: float, theirs: float) -> float:
    """How many times sooner we are; 0 if one side is never there."""
    return theirs / ours if math.isfinite(ours) and math.isfinite(theirs) else 0.0


def _best(side: dict[float, list[list[float]]]) -> float:
    """The learning rate that is first at the last share; among equals, at those before."""
    return min(side, key=lambda rate: [statistics.median(run[i] for run in side[rate]) for i in (1, 0)])


def _finite(runs: list[list[float]], index: int) -> list[float | str]:
    return [run[index] if math.isfinite(run[index]) else "never" for run in runs]
