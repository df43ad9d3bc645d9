"""Row 3: make never takes what a killed recipe left for finished; started again, it ends where it would have."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import proc
from support.make import project_with
from support.served import wait

from dapo_stages.handoff.manifests import read_manifest
from faults.projects import LAUNCHED_WAYS, RESIDENT_WAYS, WAYS, Project, disturb
from faults.table import record

LAUNCH = "ddp-cpu"

# A stage that writes half of its output, waits while it is told to, writes the rest and publishes it.
STAND_IN = """
shift 2
stage=$1; run=; out=; iteration=; again=
while [ $# -gt 0 ]; do
  case $1 in --out) out=$2 ;; --run) run=$2 ;; --iteration) iteration=$2 ;; --overwrite) again=' again' ;; esac
  shift
done
case $stage in
  config) mkdir -p "$(dirname "$out")"; [ -e "$out" ] || echo "planned_iterations: 1" > "$out"; exit 0 ;;
  prune|check) exit 0 ;;
  report) [ -n "$iteration" ] || exit 0; out=$run/$(printf 'iter-%04d' "$iteration")/report ;;
esac
echo "$stage$again" >> calls
mkdir -p "$out"; echo half > "$out/shard"
if [ "$stage" = train-step ]; then touch waiting; while [ -e wait ]; do sleep 0.02; done; fi
echo {} > "$out/manifest.json"
if [ "$stage" = train-step ]; then mkdir -p "$out/state"; echo {} > "$out/state/manifest.json"; fi
"""


@pytest.fixture()
def stand_in(tmp_path: Path) -> Path:
    """A folder with our Makefile, and a Python that is the stand-in."""
    return project_with(tmp_path, 1, STAND_IN)


def start(folder: Path) -> subprocess.Popen[bytes]:
    (folder / "calls").unlink(missing_ok=True)
    environment = {"PATH": os.environ["PATH"]}
    command = ["make", "iterate", "RUN=t"]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("way", ["make", "recipe", "group", "terminate", "interrupt"])
def test_a_stage_that_was_half_done_is_asked_for_again(stand_in: Path, way: str) -> None:
    (stand_in / "wait").touch()
    make = start(stand_in)
    while not (stand_in / "waiting").exists():
        time.sleep(0.01)
    recipe = proc.children(make.pid)
    number = {"terminate": signal.SIGTERM, "interrupt": signal.SIGINT}.get(way, signal.SIGKILL)
    if way in {"make", "recipe"}:
        for process in [make.pid] if way == "make" else recipe:
            os.kill(process, number)
    else:
        os.killpg(make.pid, number)
    assert make.wait(timeout=30) != 0
    if way == "make":  # the recipe has lost its make and would go on
        os.killpg(make.pid, signal.SIGKILL)
    train = stand_in / "training_logs/t/iter-0001/train"
    assert (train / "shard").exists() and not (train / "manifest.json").exists()
    (stand_in / "wait").unlink()
    assert start(stand_in).wait(timeout=30) == 0
    assert (stand_in / "calls").read_text().split("\n")[:-1] == ["train-step", "evaluate", "report"]
    assert start(stand_in).wait(timeout=30) == 0
    assert not (stand_in / "calls").exists()
    record(3, 1, "with stages that stand in")


def _timed(folder: Path, launch: str = "1") -> tuple[dict[str, str], float]:
    """Content hashes of the smallest run, and its seconds."""
    project = Project(folder, 1, launch=launch)
    started = time.monotonic()
    try:
        project.finish()
        return project.hashes(), time.monotonic() - started
    finally:
        project.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], float]:
    return _timed(tmp_path_factory.mktemp("make"))


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], float]:
    """With two ranks, whose launches end with their stages."""
    return _timed(tmp_path_factory.mktemp("launched"), LAUNCH)


@contextmanager
def _killed(project: Project, wanted: tuple[dict[str, str], float], seed: int, *ways: str) -> Iterator[int]:
    """Kill make at random times, five times at most, and then let it end; the number of kills. Within, it is done."""
    hashes, seconds = wanted
    try:
        kills = disturb(project, 5, random.Random(seed), seconds / 5, ways)
        project.finish()
        assert project.hashes() == hashes
        yield kills
    finally:
        project.close()


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(25))
def test_make_is_killed_at_random_times(undisturbed: tuple[dict[str, str], float], seed: int, tmp_path: Path) -> None:
    project = Project(tmp_path, 1)
    with _killed(project, undisturbed, seed, *WAYS) as kills:
        times = project.times()
        project.finish()
        assert project.times() == times  # nothing was asked for again
    record(3, kills, "at random times of the smallest run")


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(12))
def test_a_process_that_stays_is_killed_at_random_times(
    undisturbed: tuple[dict[str, str], float], seed: int, tmp_path: Path
) -> None:
    """With make, without it, or only make: the outputs of stages that each load what they need, and nothing is left."""
    project = Project(tmp_path, 1, resident=True)
    with _killed(project, undisturbed, seed, *RESIDENT_WAYS) as kills:
        project.gone()
    record(3, kills, "of stages in a process that stays")


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(6))
def test_a_launch_that_stays_is_killed_at_random_times(
    launched: tuple[dict[str, str], float], seed: int, tmp_path: Path
) -> None:
    """Or one of its ranks is: the outputs of launches that end with their stages, and nothing is left."""
    project = Project(tmp_path, 1, resident=True, launch=LAUNCH)
    with _killed(project, launched, seed, *LAUNCHED_WAYS) as kills:
        project.gone()
    record(3, kills, "of launches that stay")


def _lose_states(project: Project) -> None:
    """One that nobody needs any more is not made again; those that are needed are, from what was sampled before."""
    hashes = project.hashes()
    for lost, again in (((1,), ()), ((2,), (1, 2)), ((2,), (2,))):
        times = project.times()
        for number in lost:
            shutil.rmtree(project.run / f"iter-000{number}/train/state")
        project.finish()
        made = {f"iter-000{number}/train/{part}/manifest.json" for number in again for part in ("policy", "state")}
        changed = {name for name, time in project.times().items() if time != times.get(name)}
        assert changed - {f"iter-000{number}/train/manifest.json" for number in again} == made
        there = {name: one for name, one in hashes.items() if again or name != "iter-0001/train/state"}
        assert project.hashes() == there


@pytest.mark.faults
def test_a_run_in_a_process_that_stays_leaves_nothing_behind(tmp_path: Path) -> None:
    """Two whole iterations in one worker, and what processes of their own write."""
    plain, resident = (Project(tmp_path / name, 2, resident=name == "resident") for name in ("plain", "resident"))
    try:
        plain.finish()
        resident.finish()
        assert resident.hashes() == plain.hashes()
        assert "dapo_stages.entrypoints.resident rollout" in (resident.folder / "said").read_text()
        resident.gone()
        _lose_states(resident)
    finally:
        plain.close()
        resident.close()


# The process that stays writes no optimizer state as long as a file says so.
SLOW = """
import sys, time
from pathlib import Path
if "dapo_stages.entrypoints.worker" in sys.orig_argv:
    write = Path.write_text
    def slowly(path, *args, **more):
        while path.name == "state.json" and (Path(__file__).parents[1] / "wait").exists():
            time.sleep(0.02)
        return write(path, *args, **more)
    Path.write_text = slowly
"""


@pytest.mark.faults
@pytest.mark.parametrize("way", ["worker", "worker and make"])
def test_a_crash_while_a_state_is_written_costs_one_train_step(
    undisturbed: tuple[dict[str, str], float], way: str, tmp_path: Path
) -> None:
    """Nothing is sampled again: what was sampled and weighted before the crash is trained on again."""
    project = Project(tmp_path, 1, resident=True)
    project.customize(SLOW)
    (project.folder / "wait").touch()
    step = project.run / "iter-0001/train"
    try:
        make = project.start()
        wait(lambda: (step / "manifest.json").exists(), 120)
        wait(lambda: (step / "state/.partial.json").exists())
        project.kill(make, way)
        (project.folder / "wait").unlink()
        project.settle(make)
        kept = {name: time for name, time in project.times().items() if "/train" not in name}
        project.finish()
        assert project.hashes() == undisturbed[0]
        assert {name: project.times()[name] for name in kept} == kept
        project.gone()
    finally:
        project.close()
    record(3, 1, "while a state is written")


@pytest.mark.faults
def test_with_a_state_every_5_iterations_a_crash_after_7_costs_two_train_steps(tmp_path: Path) -> None:
    """Nothing is sampled again, and every output that is there is the one of a run that writes all states."""
    plain = Project(tmp_path / "plain", 8)
    project = Project(tmp_path / "resident", 8, resident=True, state_every=5)
    try:
        plain.finish()
        make = project.start()
        wait(lambda: (project.run / "iter-0007/train/manifest.json").exists(), 300)
        project.kill(make, "worker and make")
        project.settle(make)
        before = project.times()
        assert _states(project) == ["iter-0005"]
        project.finish()
        project.gone()
        assert _states(project) == ["iter-0005", "iter-0008"]
        changed = {name for name, time in project.times().items() if name in before and time != before[name]}
        made = {name for name in changed if name.endswith("policy/manifest.json")}
        assert made == {f"iter-000{number}/train/policy/manifest.json" for number in (6, 7)}
        assert not [name for name in changed if "rollout" in name or "attention" in name or "weights" in name]
        found, expected = project.hashes(), plain.hashes()
        assert found == {name: expected[name] for name in found}
        assert expected.keys() - found.keys() == {f"iter-000{number}/train/state" for number in (1, 2, 3, 4, 6, 7)}
    finally:
        plain.close()
        project.close()
    record(3, 1, "with a state every five iterations")


def _states(project: Project) -> list[str]:
    """The iterations whose state was written, pruned since or not."""
    return sorted(path.parents[2].name for path in project.run.glob("iter-*/train/state/manifest.json"))


# Train-steps give another policy as long as a file says so, like a GPU whose backward pass is not deterministic.
FORGED = """
from pathlib import Path
from dapo_stages.maths import schedule
def forged(*args, own=schedule.learning_rate_factor):
    return own(*args) + (0.5 if (Path(__file__).parents[1] / "forged").exists() else 0.0)
schedule.learning_rate_factor = forged
"""


def _inputs(project: Project) -> dict[str, bool]:
    """Whether each output of the second iteration was made from the very policies that are there now."""
    found = {}
    for name in ("rollout", "attention", "train"):
        recorded = read_manifest(project.run / "iter-0002" / name).inputs["policy"].content_hash
        found[name] = recorded == read_manifest(project.run / "iter-0001/train/policy").content_hash
    return found


@pytest.mark.faults
def test_what_followed_a_policy_that_was_lost_is_kept_or_with_strict_made_again(tmp_path: Path) -> None:
    project = Project(tmp_path, 2)
    project.customize(FORGED)
    forged = project.folder / "forged"

    def lose_states() -> None:
        for number in (1, 2):
            shutil.rmtree(project.run / f"iter-000{number}/train/state")

    try:
        project.finish()
        hashes, times = project.hashes(), project.times()
        lose_states()
        forged.touch()
        project.finish()  # what was sampled stays; both train-steps are made again and differ
        others = {name for name, one in project.hashes().items() if one != hashes[name]}
        assert {"iter-0001/train/policy", "iter-0002/train/policy"} <= others
        assert all("/train" in name for name in others)
        sampled = [name for name in times if "rollout" in name]
        assert {name: project.times()[name] for name in sampled} == {name: times[name] for name in sampled}
        assert _inputs(project) == {"rollout": False, "attention": False, "train": True}
        project.finish("STRICT=1")  # what was made from a policy that was lost earlier
        assert _inputs(project) == {"rollout": True, "attention": True, "train": True}
        times = project.times()
        project.finish("STRICT=1")
        assert project.times() == times
        lose_states()
        forged.unlink()
        project.finish("STRICT=1")  # and what follows one that is lost now, in the same make
        assert project.hashes() == hashes
    finally:
        project.close()
    record(3, 1, "with train-steps that give another policy when they are made again")
