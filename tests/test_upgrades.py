"""A run made by an older version goes on: tests/upgrades/recorded is one of commit 653f56b, with iteration 1 done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from pydantic import BaseModel
from support.commands import Result, run

from dapo_stages.config import Config, Section
from dapo_stages.handoff.manifests import Source, read_manifest

pytestmark = pytest.mark.long

UPGRADES = Path(__file__).parent / "upgrades"
CONFIG = ("--config", "run/config.yaml")
# What no manifest records may come without a mark: where and how engines run, and what stays on disk.
UNRECORDED = ("engines.", "keep.")


@pytest.fixture()
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, in the working folder as it was when it was recorded."""
    shutil.copytree(UPGRADES / "recorded", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path("run")


def stages(number: int) -> Iterator[tuple[str, list[str], str]]:
    """(stage, arguments, output) of an iteration, as the Makefile calls them."""
    here, before = f"run/iter-{number:04d}", f"run/iter-{number - 1:04d}"
    policy = ["--policy", f"{before}/train/policy" if number > 1 else "run/policy"]
    rollouts, nth = ["--rollouts", f"{here}/rollout"], ["--iteration", str(number)]
    replay = ["--replay", f"{before}/weights"] if number > 1 else []
    state = ["--state", f"{before}/train/state"] if number > 1 else []
    yield "rollout", [*policy, "--data", "run/data", *nth], f"{here}/rollout"
    yield "score-attention", [*policy, *rollouts], f"{here}/attention"
    yield "weight-tokens", [*rollouts, "--attention", f"{here}/attention", *nth, *replay], f"{here}/weights"
    yield "train-step", [*policy, *rollouts, "--weights", f"{here}/weights", *state], f"{here}/train"
    yield "evaluate", ["--policy", f"{here}/train/policy", "--data", "run/data"], f"{here}/eval"


def command(stage: str, arguments: list[str], out: str) -> Result:
    done = run(stage, *CONFIG, *arguments, "--out", out, "--json")
    assert done.code == 0, done.stderr
    return done


def test_finished_outputs_are_taken_for_what_they_are(recorded: Path) -> None:
    """No stage finds anything to do: what decides a result is still written down in the same way.

    The configuration is brought up to date first, as make does.
    """
    done = run("config", *CONFIG, "--out", "run/config.yaml")
    assert done.code == 0, done.stderr
    setup = [
        ("init-policy", [], "run/policy"),
        ("prepare-data", ["--policy", "run/policy"], "run/data"),
        ("evaluate", ["--policy", "run/policy", "--data", "run/data"], "run/iter-0000/eval"),
    ]
    for stage, arguments, out in [*setup, *stages(1)]:
        assert json.loads(command(stage, arguments, out).stdout)["status"] == "unchanged", stage


def test_it_goes_on(recorded: Path) -> None:
    """Iteration 2, from the policy, the optimizer's state and the replay buffer that the older version left."""
    before = read_manifest(recorded / "iter-0001/train/state").content_hash
    for stage, arguments, out in stages(2):
        assert json.loads(command(stage, arguments, out).stdout)["status"] == "done", stage
    trained = Source(recorded / "iter-0002/train", "train-step")
    assert trained.manifest.inputs["state"].content_hash == before
    assert Source(recorded / "iter-0002/train/policy").manifest.policy["version"] == 2
    assert len(pd.read_parquet(recorded / "iter-0002/weights/buffer-00000.parquet")) == 4  # as many as have room
    for arguments in (["report", *CONFIG], ["status"], ["inspect", "--find", "worst"]):
        done = run(*arguments, "--run", "run")
        assert done.code == 0, done.stderr


def keys(section: type[BaseModel] = Config, place: str = "") -> Iterator[tuple[str, bool]]:
    """Every key, and whether it is marked as one that came later, by itself or with its section."""
    assert issubclass(section, Section)
    for name, field in section.model_fields.items():
        later = name in section.later()
        yield f"{place}{name}", later
        annotations = [field.annotation, *getattr(field.annotation, "__args__", ())]
        for kind in annotations:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from ((key, later or inner) for key, inner in keys(kind, f"{place}{name}."))


def test_keys_that_came_since_are_marked_so_and_none_has_gone() -> None:
    """The mark keeps them out of manifests (config/base.py); a key that is gone would refuse older runs by name."""
    known = set((UPGRADES / "keys.txt").read_text(encoding="utf-8").split())
    found = dict(keys())
    assert known <= found.keys()
    unmarked = {key for key, later in found.items() if key not in known and not later}
    assert {key for key in unmarked if not key.startswith(UNRECORDED)} == set()
    assert not {key for key in known if found[key]}, "these were there before, and are recorded"
