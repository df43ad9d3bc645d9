"""Row 4: a full disk is said in one line that names the file; what was there stays, and a rerun finishes."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dapo_stages.handoff.manifests import Source
from faults.harness import Action, Ended, Fault
from faults.jobs import JOBS, Bench, Case
from faults.table import record

FULL = r"no space left on the disk\. Free some, then run the command again\."
LIMITED = r"the file exceeds the limit on file sizes \(ulimit -f\)\. Raise the limit, then run the command again\."


def failed(case: Case, ended: Ended, words: str) -> None:
    """The command said what is wrong and where; the old output, if there is one, is there or already replaced."""
    assert ended.code == 3, (case.job, ended.stderr)
    last = ended.stderr.splitlines()[-1]
    assert re.fullmatch(rf"({re.escape(str(case.folder))}|shown)/\S+: {words}", last), last
    assert "Traceback" not in ended.stderr
    if case.job.endswith("replaced") and not (case.folder / "out/.next/.swapping").exists():
        Source(case.folder / "out").verify_all()


def finished(case: Case) -> None:
    case.finish()
    case.is_as_undisturbed()


def full_from(bench: Bench, job: str, at: int) -> int:
    """The disk is full from an operation on; whether that was noticed."""
    with bench.case(job) as case:
        ended = case.strike(Fault(Action.FULL, at))
        if ended.code:
            failed(case, ended, FULL)
        finished(case)
    return int(ended.code != 0)


def limited_to(bench: Bench, job: str, most: int) -> None:
    """No file may have more bytes."""
    with bench.case(job) as case:
        failed(case, case.strike(Fault(most=most)), LIMITED)
        finished(case)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system in memory, of a size that can be set."""
    folder = tmp_path_factory.mktemp("disk")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "faults", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here ({done.stderr.strip()}); the write layer alone is full")
    yield folder
    subprocess.run(["umount", folder], check=True)


def resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)


def fits_only(bench: Bench, job: str, disk: Path, share: float) -> None:
    """The disk has room for a share of what is written beside what is there."""
    resize(disk, "64m")
    with bench.case(job, disk) as case:
        there = sum(path.lstat().st_blocks * 512 for path in disk.rglob("*"))
        written = sum(-(-size // 4096) * 4096 for size in bench.undisturbed(job).sizes)
        resize(disk, str(int(there + share * written) // 4096 * 4096 + 4096))
        failed(case, case.strike(Fault()), FULL)
        resize(disk, "64m")
        finished(case)


@pytest.mark.parametrize("job", ["weight-tokens", "weight-tokens, replaced", "train-step"])
def test_a_full_disk(bench: Bench, job: str) -> None:
    assert full_from(bench, job, len(bench.undisturbed(job).operations) // 2)


def test_a_disk_that_is_full_when_an_output_is_to_be_swapped_for_another(bench: Bench) -> None:
    job = "weight-tokens, replaced"
    operations = bench.undisturbed(job).operations
    published = operations.index("rename out/.next/manifest.json")
    for at in range(published + 1, operations.index("rename out/.next/.swapping")):
        full_from(bench, job, at)


def test_a_limit_on_the_size_of_files(bench: Bench) -> None:
    limited_to(bench, "weight-tokens", bench.undisturbed("weight-tokens").sizes[-1] - 1)


def test_a_small_disk(bench: Bench, disk: Path) -> None:
    fits_only(bench, "weight-tokens", disk, 0.5)


@pytest.mark.faults
@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("job", JOBS)
def test_a_disk_full_from_an_operation_on(bench: Bench, job: str, part: int) -> None:
    operations = bench.undisturbed(job).operations
    step = max(len(operations) // 20, 1)
    noticed = sum(full_from(bench, job, at) for at in range(len(operations))[part * step :: 4 * step])
    record(4, noticed, "with ENOSPC from an operation on")


@pytest.mark.faults
@pytest.mark.parametrize("job", [job for job in JOBS if job not in {"config", "prune"}])
def test_limits_on_the_size_of_files(bench: Bench, job: str) -> None:
    """Just too small for one of the files; those of a few bytes would not hold the message either."""
    sizes = [size for size in set(bench.undisturbed(job).sizes) if size > 1500]
    limits = sorted(sizes)[:: max(len(sizes) // 4, 1)]
    for size in limits:
        limited_to(bench, job, size - 1)
    record(4, len(limits), "with RLIMIT_FSIZE")


@pytest.mark.faults
@pytest.mark.parametrize("job", [job for job in JOBS if job not in {"config", "prune", "report"}])
def test_small_disks(bench: Bench, disk: Path, job: str) -> None:
    shares = (0.0, 0.2, 0.4, 0.6, 0.8, 0.95)
    for share in shares:
        fits_only(bench, job, disk, share)
    record(4, len(shares), "on a small tmpfs")
