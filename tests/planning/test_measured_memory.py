"""plan against reality: predicted peaks of stages within 15 % of measured ones, of the embedded and a 14 M model."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from benchmarks.iteration import SIZES
from support.commands import fresh, run
from support.memory import peaks

from dapo_stages.planning.run_plan import PROGRAM, torch_build

pytestmark = pytest.mark.long

FOLDERS = {"rollout": "rollout", "score-attention": "attention", "train-step": "train"}
# The sizes of the benchmarks, with fewer prompts; `--prompt` and the others are the lengths that result.
MODELS = {
    "small": (
        replace(SIZES["iteration-small"], prompts=64, updates=4),
        ["--prompt=65", "--vision=4", "--completion=32"],
    ),
    "medium": (
        replace(SIZES["iteration-medium"], prompts=4, updates=2, longest=32),
        ["--prompt=303", "--vision=256", "--completion=32"],
    ),
}
# What else the medium model's train-step is measured with, by the folder that it makes.
OTHERS = {
    "checkpointing": ["--set=train.gradient_checkpointing=true"],
    "perception": ["--set=train.perception={recompute: true}"],
}


@dataclass(frozen=True)
class Measured:
    """A model, the folder of its configuration, and MiB of each command by the folder that it made."""

    model: str
    folder: Path
    mib: dict[str, float]


@pytest.fixture(scope="module")
def measured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """Run the commands of an iteration."""
    model = request.param
    size, _ = MODELS[model]
    folder = tmp_path_factory.mktemp("memory") / model
    size.make(folder, size)
    commands = iteration(model)
    found = peaks([(folder, words) for words in commands], folder.with_suffix(".json"))
    return Measured(model, folder, {words[-1]: mib for words, mib in zip(commands, found, strict=True)})


def iteration(model: str) -> list[list[str]]:
    """The commands of an iteration; the last word of each is the folder that it makes."""
    config = ["--config", "run.yaml"]
    policy, rollouts = ["--policy", "policy"], ["--rollouts", "rollout"]
    train = ["train-step", *config, *policy, *rollouts, "--weights", "weights"]
    again = [[*train, *settings, "--out", made] for made, settings in OTHERS.items() if model == "medium"]
    return [
        ["init-policy", *config, "--set", "warm_up.steps=1", "--out", "policy"],
        ["prepare-data", *config, *policy, "--out", "data"],
        ["rollout", *config, *policy, "--data", "data", "--iteration", "1", "--out", "rollout"],
        ["score-attention", *config, *policy, *rollouts, "--out", "attention"],
        ["weight-tokens", *config, *rollouts, "--attention", "attention", "--iteration", "1", "--out", "weights"],
        [*train, "--out", "train"],
        *again,
    ]


def predicted(folder: Path, *arguments: str) -> dict[str, float]:
    """MiB of each stage in addition to the imported program, by `dapo-stages plan`."""
    result = run("plan", "--config", folder / "run.yaml", "--device", "cpu", "--json", *arguments)
    assert result.code == 0, result.stderr
    found = json.loads(result.stdout)["memory"]
    return {stage: (memory["total"] - memory["device"]["program"]) / 2**20 for stage, memory in found.items()}


@pytest.mark.parametrize("measured", ["small", pytest.param("medium", marks=pytest.mark.slow)], indirect=True)
def test_predicted_peaks_are_within_15_percent_of_measured_ones(measured: Measured) -> None:
    folder, found = measured.folder, measured.mib
    lengths = MODELS[measured.model][1]
    want = predicted(folder, *lengths)
    errors = {stage: want[stage] / found[made] - 1 for stage, made in FOLDERS.items()}
    for made in OTHERS.keys() & found.keys():
        want = predicted(folder, *lengths, *OTHERS[made])
        errors[made] = want["train-step"] / found[made] - 1
    assert all(abs(error) <= 0.15 for error in errors.values()), (found, errors)
    print(measured.model, {name: f"{mib:.0f} MiB" for name, mib in found.items()}, errors)


def test_the_imported_program_is_as_large_as_plan_says() -> None:
    """Resident memory once everything that a stage with a model needs is imported."""
    code = """
from pathlib import Path
from dapo_stages.entrypoints.preloaded import import_everything
import_everything()
print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")))
"""
    done = fresh(code=code)
    assert done.code == 0, done.stderr
    assert int(done.stdout) * 1024 == pytest.approx(PROGRAM[torch_build()], rel=0.25)
