"""The configurations of the study, and `make experiments` for real, as small as it can be."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.commands import ROOT
from support.make import with_makefile

from dapo_stages.config import Config, load_config

pytestmark = pytest.mark.long

EXPERIMENTS = ROOT / "pipelines/experiments"
# Weights of accuracy, vgr, format and overlong, regular and early; replay or not; weighting.
TABLE = {
    "baseline": ((2.5, 0, 0.5, 1), None, False, "uniform"),
    "experiment1": ((2.5, 0, 0.5, 1), (1, 0, 2, 1), True, "uniform"),
    "experiment2": ((0, 2.5, 0.5, 1), (0, 1, 2, 1), True, "uniform"),
    "experiment3": ((2.5, 1, 0.5, 1), (1, 1, 2, 1), True, "uniform"),
    "experiment4": ((2.5, 1, 0.5, 1), (1, 1, 2, 1), True, "uniform"),
    "experiment5": ((2.5, 0, 0.5, 1), (1, 0, 2, 1), True, "vgr"),
}
FORMS = [(folder, name) for folder in (".", "small") for name in TABLE]
FORMS += [("scenes", name) for name in ("baseline", "experiment1", "experiment5")]


@pytest.mark.parametrize(("folder", "name"), FORMS)
def test_every_form_of_an_experiment_is_that_of_the_table(folder: str, name: str) -> None:
    weights = load_config(EXPERIMENTS / folder / f"{name}.yaml").weights
    regular, early, replay, scheme = TABLE[name]
    order = ("accuracy", "vgr", "format", "overlong")
    assert tuple(getattr(weights.reward_weights, reward) for reward in order) == regular
    assert weights.early_fraction == (0.1 if early else 0.0)
    assert not early or tuple(getattr(weights.early_reward_weights, reward) for reward in order) == early
    assert (weights.replay.size > 0) == replay and weights.scheme == scheme
    assert not replay or (weights.replay.rule, weights.replay.max_replays) == ("replace_all", None)
    assert weights.hard_negative == (name == "experiment4")
    assert weights.vgr_mapping == ("quantile" if folder == "." else "mad")
    rewarded = folder == "." and weights.reward_weights.vgr > 0
    assert weights.vgr_layers == ("late" if rewarded else "all")  # those that the floor of 5.0 was made for


@pytest.mark.parametrize("name", TABLE)
def test_every_key_says_whose_it_is(name: str) -> None:
    for line in (EXPERIMENTS / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#") and not line.endswith(":"):
            assert re.search(r" # .*\b(ours?|published)\b", line), line


def flat(config: Config) -> dict[str, Any]:
    def walk(values: dict[str, Any], prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in values.items():
            found |= walk(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        return found

    return walk(config.model_dump(), "")


@pytest.mark.parametrize(
    ("folder", "name", "twin"),
    [
        ("small", "experiment5", "experiment1"),
        ("scenes", "experiment5", "experiment1"),
        ("small", "weighted-baseline", "baseline"),
    ],
)
def test_token_weights_are_all_that_sets_twins_apart(folder: str, name: str, twin: str) -> None:
    one, other = (flat(load_config(EXPERIMENTS / folder / f"{file}.yaml")) for file in (name, twin))
    assert {key for key in one if one[key] != other[key]} == {"weights.scheme", "weights.smooth_sigma"}


SMOKE = (
    "planned_iterations=1 warm_up.steps=24 warm_up.batch_size=16 data.synthetic.train=64 data.synthetic.held_out=32 "
    "rollout.prompts_per_iteration=8 rollout.num_generations=4 rollout.sampler.temperature=1.2"
)


@pytest.mark.slow
def test_a_study_of_two_seeds_is_run_and_told(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "pipelines", with_makefile(tmp_path) / "pipelines")
    settings = " ".join(f"--set {setting}" for setting in SMOKE.split())
    command = ["make", "-j2", "experiments", "STUDIES=small", "SEEDS=1 2", "EXPERIMENTS=baseline experiment5"]
    command.append(f"SET={settings}")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run() -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stderr

    assert "train-step: done" in run()
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    missing = re.findall(r"^- (\S+): not run$", text, re.M)
    others = [*(f"experiment{n}" for n in (1, 2, 3, 4)), "weighted-baseline"]
    assert missing == [f"{name}-{seed}" for seed in (1, 2) for name in others]
    assert re.search(
        r"At the end, experiment5 - baseline, .*: \*\*[+-]0\.\d{3} \[[+-]\d+\.\d{3}, [+-]\d+\.\d{3}\]\*\*", text
    )
    weighted = next(line for line in text.splitlines() if line.startswith("| experiment5 | 0."))
    assert float(weighted.split("|")[3].split("±")[0]) > 0.01  # token weights differ from 1
    assert (tmp_path / "results-small-violating.svg").exists()
    assert "done in" not in run()
