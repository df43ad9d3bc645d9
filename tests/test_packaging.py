"""The wheel has what a run needs without a clone: make's rules, configurations, accelerate's and Slurm's files."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.commands import ROOT

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", str(ROOT)]
    done = subprocess.run([*command, "--wheel-dir", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [path] = out.glob("*.whl")
    return path


def test_the_wheel_has_the_package_and_what_runs_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        modes = {info.filename: info.external_attr >> 16 for info in file.infolist()}
    names = {name for name in modes if ".dist-info/" not in name}
    code = {path.relative_to(ROOT).as_posix() for path in (ROOT / "dapo_stages").rglob("*.py")}
    assets = {path.relative_to(ROOT).as_posix() for path in (ROOT / "dapo_stages/reporting/page/assets").iterdir()}
    assets |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "dapo_stages/groups/stop_words").iterdir()}
    needed = [ROOT / "pipelines/run.mk", *(ROOT / "pipelines").glob("*.yaml")]
    needed += [path for part in ("accelerate", "slurm") for path in (ROOT / "pipelines" / part).iterdir()]
    packaged = {f"dapo_stages/{path.relative_to(ROOT).as_posix()}" for path in needed}
    assert names == code | assets | packaged | {"dapo_stages/py.typed"}
    assert all(modes[name] & 0o111 for name in names if name.endswith(".sh"))


def test_a_folder_made_by_the_wheel_plans_the_pipeline_of_the_wheel(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as file:
        file.extractall(site)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(site)}
    new = [sys.executable, "-m", "dapo_stages", "new", str(tmp_path / "x")]
    assert subprocess.run(new, env=environment, cwd=tmp_path, capture_output=True).returncode == 0
    command = ["make", "-n", "iterate", "CONFIG=dapo:smoke", "LAUNCH=2"]
    done = subprocess.run(command, env=environment, cwd=tmp_path / "x", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f" {site}/dapo_stages/pipelines/accelerate/processes.yaml --num_processes 2" in done.stdout
