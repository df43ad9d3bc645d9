"""A run goes on where it was in a copy of any kind, and after a clock was set back: contents say what is done."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults.projects import Project

from dapo_stages.manifests import MANIFEST, read_manifest

KEEP = "keep: {rollouts: 1, states: 1, policies: 1}"
ONE_MORE = ["rollout", "score-attention", "weight-tokens", "train-step", "evaluate", "report"]


def project(folder: Path, iterations: int) -> Project:
    """A run that is planned for three iterations, and is to come so far; of the earlier ones little is kept."""
    made = Project(folder, 3)
    settings = made.folder / "tiny.yaml"
    settings.write_text(re.sub(r"keep: .*", KEEP, settings.read_text()))
    made.iterations = iterations
    return made


@dataclass
class Runs:
    """A run of two of its three iterations, of the first of which there are manifests, evaluations and reports."""

    folder: Path
    hashes: dict[str, str]  # of all three, where nothing was copied


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    made = project(tmp_path_factory.mktemp("original"), 2)
    try:
        made.finish()
        pruned = ("rollout", "attention", "weights", "train/policy", "train/state")
        assert all(read_manifest(made.run / "iter-0001" / part).pruned for part in pruned)
        two = made.folder / "two"
        shutil.copytree(made.run, two)
        made.iterations = 3
        made.finish()
        return Runs(two, made.hashes())
    finally:
        made.close()


def by_cp(run: Path, copy: Path) -> None:
    """As cp -r, an upload or a container image: times in any order."""
    shutil.copytree(run, copy, copy_function=shutil.copyfile)
    for path in copy.rglob(MANIFEST):
        when = random.Random(path.parent.name).randrange(10**9)
        os.utime(path, (when, when))


def by_cp_half_way(run: Path, copy: Path) -> None:
    """Before its last report, with a rollout that was interrupted."""
    by_cp(run, copy)
    shutil.rmtree(copy / "iter-0002/report")
    (copy / "iter-0003/rollout").mkdir(parents=True)
    (copy / "iter-0003/rollout/.partial.json").write_text('{"fingerprint": "", "shards": []}')


def by_clock(run: Path, copy: Path) -> None:
    """The clock was set back by an hour after the first iteration."""
    shutil.copytree(run, copy)
    for path in copy.glob(f"iter-0002/*/{MANIFEST}"):
        when = path.stat().st_mtime - 3600
        os.utime(path, (when, when))


def by_tar(run: Path, copy: Path) -> None:
    """An archive without times."""
    archive = copy.parent / "run.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(run, copy.name, filter=lambda entry: entry.replace(mtime=0, deep=False))
    with tarfile.open(archive) as tar:
        tar.extractall(copy.parent, filter="data")


def by_git(run: Path, copy: Path) -> None:
    """A clone of a repository of the run."""
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    store = copy.parent / "store"
    shutil.copytree(run, store)
    for words in (["init", "--quiet"], ["add", "--all", "--force"], ["commit", "--quiet", "--message", "run"]):
        subprocess.run([*git, *words], cwd=store, check=True)
    subprocess.run([*git, "clone", "--quiet", store, copy], check=True)
    shutil.rmtree(copy / ".git")


@pytest.mark.parametrize(
    ("way", "more"),
    [
        pytest.param(by_cp, ONE_MORE, marks=pytest.mark.faults),
        (by_cp_half_way, ["report", *ONE_MORE]),
        (by_clock, ONE_MORE),
        pytest.param(by_tar, ONE_MORE, marks=pytest.mark.faults),
        pytest.param(by_git, ONE_MORE, marks=pytest.mark.faults),
    ],
)
def test_a_copy_goes_on_where_it_was(
    way: Callable[[Path, Path], None], more: list[str], runs: Runs, tmp_path: Path
) -> None:
    copy = project(tmp_path, 3)
    copy.run.parent.mkdir()
    way(runs.folder, copy.run)
    try:
        copy.finish()
        assert asked(copy) == more
        assert copy.hashes() == runs.hashes
        times = copy.times()
        copy.finish()
        assert copy.times() == times and asked(copy) == []
    finally:
        copy.close()


def asked(project: Project) -> list[str]:
    """The stages that make ran the last time, in order."""
    lines = (project.folder / "said").read_text().splitlines()
    return [line.split()[3] for line in lines if " -m dapo_stages" in line]
