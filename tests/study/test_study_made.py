"""`make` of two runs of the pilot for real, as small as they can be: interrupted, resumed, and shown."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.commands import ROOT
from support.make import with_makefile

from pipelines.study.result_files import read_results

SMALL = (
    "planned_iterations=2 warm_up.steps=24 warm_up.batch_size=16 data.synthetic.train=64 data.synthetic.held_out=32 "
    "rollout.prompts_per_iteration=8 rollout.num_generations=4 rollout.sampler.temperature=1.2 weights.filter=none "
    "train.updates_per_iteration=2"
)
FILES = [f"results/pilot/places/{scheme}-0.0003-1.json" for scheme in ("uniform", "vgr_entropy")]


@pytest.mark.slow
def test_runs_of_the_pilot_are_made_interrupted_and_resumed(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "pipelines", with_makefile(tmp_path) / "pipelines", dirs_exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    settings = " ".join(f"--set {setting}" for setting in SMALL.split())
    command = ["make", *FILES, "RESULTS=results", "STUDY_EVALS=1", f"SET={settings}"]

    def run() -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stderr

    begun = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not list(tmp_path.glob("training_logs/study/places/*/iter-0001/rollout/manifest.json")):
        assert begun.poll() is None
        time.sleep(0.1)
    begun.send_signal(signal.SIGTERM)
    begun.wait()
    assert not list(tmp_path.glob("results/**/*.json"))

    said = run()
    assert "train-step: done" in said and "init-policy: done" not in said  # the start was complete
    uniform, weighted = sorted(read_results(tmp_path / "results"), key=lambda result: result.scheme)
    assert uniform.evaluated == [0, 1, 2] and uniform.start == weighted.start and uniform.machine.threads == 1
    assert uniform.weights["deviation"] == 0 and weighted.weights["deviation"] > 0.01
    assert list(uniform.curves["blank"]) == [0, 1, 2] and set(uniform.seconds["rollout"]) == {1, 2}
    assert "done in" not in run()
