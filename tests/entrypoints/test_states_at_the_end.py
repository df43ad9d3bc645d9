"""A worker that ends writes the optimizer state that only it has."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.pipeline import Run
from support.served import Place, place_of, wait

from dapo_stages.entrypoints.worker import IDLE
from dapo_stages.handoff.manifests import MANIFEST, read_manifest

pytestmark = [pytest.mark.long, pytest.mark.skipif(sys.platform != "linux", reason="workers are for Linux")]


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with place_of("dapo_stages.entrypoints.resident") as found:
        yield found


@pytest.mark.parametrize("end", ["SIGTERM", "idle", "a command that fails", "SIGKILL"])
def test_the_state_is_written_unless_it_is_killed(place: Place, small_run: Run, tmp_path: Path, end: str) -> None:
    place.ready()
    idle = {IDLE: "5"} if end == "idle" else {}
    if idle:  # a worker that has this from the start
        for worker in place.servers():
            os.kill(worker, signal.SIGTERM)
        wait(lambda: not place.servers())
        place.try_out(**idle)
    (worker,) = place.servers()
    out = tmp_path / "iter-0001/train"
    options = small_run.options(keep__state_every=5)
    result = place.run("train-step", *options, *small_run.train_inputs(1), "--out", out, **idle)
    assert result.code == 0, result.stderr
    assert place.last()[0] == str(worker) and not (out / "state" / MANIFEST).exists()
    if end == "a command that fails":
        assert place.run("config", "--config", "none.yaml").code == 3
    elif end != "idle":
        os.kill(worker, signal.Signals[end])
    wait(lambda: worker not in place.servers(), 60)
    if end == "SIGKILL":
        assert not (out / "state" / MANIFEST).exists()
        return
    alone = tmp_path / "alone"
    place.run("train-step", *options, *small_run.train_inputs(1), "--out", alone, program="dapo_stages")
    hashes = [read_manifest(train / "state").content_hash for train in (out, alone)]
    assert hashes[0] == hashes[1]
