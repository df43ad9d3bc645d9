"""A run goes on where it was in a copy of any kind, and after a clock was set back: contents say what is done."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults.projects import Project, hashes
from faults.table import record

from dapo_stages.handoff.manifests import MANIFEST, read_manifest

pytestmark = pytest.mark.long

PRUNED = ("rollout", "attention", "weights", "train/policy", "train/state")
ITERATION = ["rollout", "score-attention", "weight-tokens", "train-step", "evaluate", "report"]


def project(folder: Path, keep: int | None = None) -> Project:
    """A run of three iterations. What `keep` says is kept of the earlier ones; else everything."""
    made = Project(folder, iterations=3)
    newest = "null" if keep is None else str(keep)
    settings = made.folder / "tiny.yaml"
    kept = f"keep: {{rollouts: {newest}, states: {newest}, policies: {newest}}}"
    settings.write_text(re.sub(r"keep: .*", kept, settings.read_text()))
    return made


@dataclass
class Original:
    """A run to be copied, what make has to ask for in the copy, and what has come of it where nothing was copied."""

    folder: Path
    iterations: int  # to go on to
    left: list[str]
    hashes: dict[str, str]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Two of three iterations; of the first there are manifests, evaluations and reports. A copy lies in `two`."""
    made = project(tmp_path_factory.mktemp("two"), keep=1)
    try:
        made.iterations = 2
        made.finish()
        assert all(read_manifest(made.run / "iter-0001" / part).pruned for part in PRUNED)
        shutil.copytree(made.run, made.folder / "two")
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def unreported(two: Project, tmp_path_factory: pytest.TempPathFactory) -> Original:
    """The same before its second report, and no more is wanted."""
    folder = tmp_path_factory.mktemp("unreported") / "t"
    shutil.copytree(two.folder / "two", folder)
    shutil.rmtree(folder / "iter-0002/report")
    return Original(folder, 2, ["report"], hashes(folder))


@pytest.fixture(scope="module")
def pruned(two: Project) -> Original:
    """The same, to go on with the third iteration."""
    two.iterations = 3
    two.finish()
    return Original(two.folder / "two", 3, ITERATION, two.hashes())


@pytest.fixture(scope="module")
def half_way(pruned: Original, tmp_path_factory: pytest.TempPathFactory) -> Original:
    """Before the second report, and with a rollout of the third iteration that was interrupted."""
    folder = tmp_path_factory.mktemp("half way") / "t"
    shutil.copytree(pruned.folder, folder)
    shutil.rmtree(folder / "iter-0002/report")
    (folder / "iter-0003/rollout").mkdir(parents=True)
    (folder / "iter-0003/rollout/.partial.json").write_text('{"fingerprint": "", "shards": []}')
    return Original(folder, 3, ["report", *ITERATION], pruned.hashes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Original:
    """All iterations, whole."""
    made = project(tmp_path_factory.mktemp("finished"))
    try:
        made.finish()
        return Original(made.run, 3, [], made.hashes())
    finally:
        made.close()


def by_cp(run: Path, copy: Path) -> None:
    """As cp -r, an upload or a container image: times in any order."""
    shutil.copytree(run, copy, copy_function=shutil.copyfile)
    for path in copy.rglob(MANIFEST):
        when = random.Random(path.relative_to(copy).as_posix()).randrange(10**9)
        os.utime(path, (when, when))


def by_clock(run: Path, copy: Path) -> None:
    """The clock was set back by an hour after the first iteration."""
    shutil.copytree(run, copy)
    for path in (*copy.glob(f"iter-000[23]/*/{MANIFEST}"), *copy.glob(f"iter-000[23]/*/*/{MANIFEST}")):
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


# Those of `make test`; the others are for `make test-faults`.
FEW = {("unreported", by_cp)}
CASES = [
    pytest.param(state, way, id=f"{state}-{way.__name__}", marks=() if (state, way) in FEW else pytest.mark.faults)
    for state in ("unreported", "pruned", "half_way", "finished")
    for way in (by_cp, by_clock, by_tar, by_git)
]


@pytest.mark.parametrize(("state", "way"), CASES)
def test_a_copy_goes_on_where_it_was(
    state: str, way: Callable[[Path, Path], None], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    original: Original = request.getfixturevalue(state)
    copy = project(tmp_path, keep=None if state == "finished" else 1)
    copy.iterations = original.iterations
    copy.run.parent.mkdir()
    way(original.folder, copy.run)
    try:
        copy.finish()
        assert asked(copy) == original.left
        # The last iteration is evaluated, whichever it is, so two of three have an evaluation that three have not.
        found = copy.hashes()
        assert {name: found[name] for name in original.hashes} == original.hashes
        times = copy.times()
        copy.finish()
        assert copy.times() == times and asked(copy) == []
    finally:
        copy.close()
    record(19, 1, state.replace("_", "-"))


def asked(project: Project) -> list[str]:
    """The stages that make ran the last time, in order."""
    lines = (project.folder / "said").read_text().splitlines()
    return [line.split()[3] for line in lines if " -m dapo_stages" in line]
