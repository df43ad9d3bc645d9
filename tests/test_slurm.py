"""pipelines/slurm: the jobs of a run, what each waits for and starts, without Slurm and with stand-ins for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import ROOT
from support.make import ANSWERS, with_makefile

pytestmark = pytest.mark.long

SCRIPTS = ROOT / "pipelines/slurm"

# Answers like sbatch, and keeps what it was asked.
SBATCH = """#!/bin/bash
echo "$*" >> "$JOBS"
echo "$(($(wc -l < "$JOBS") + 100));cluster"
"""
# Runs the command once per node, as srun does with a task on each.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do case $1 in --nodes=*) nodes=${1#*=} ;; esac; shift; done
for ((n = 0; n < nodes; n++)); do SLURM_NODEID=$n "$@"; done
"""
SCONTROL = """#!/bin/bash
[ "$*" = "show hostnames node[07-08]" ] && printf 'node07\\nnode08\\n'
"""
# Python that writes the manifest it was asked for, and notes how it was called.
PYTHON = """
[ "$1" = -m ] || exit 0
echo "${SLURM_NODEID:--} $*" >> "$JOBS"
while [ $# -gt 0 ]; do case $1 in --out) out=$2 ;; config) exit 0 ;; esac; shift; done
[ -z "$out" ] || { mkdir -p "$out/state"; echo {} > "$out/manifest.json"; echo {} > "$out/state/manifest.json"; }
"""


def call(script: Path, *arguments: str, **environment: str) -> list[str]:
    project = script.parents[2]
    done = subprocess.run(
        [str(script.relative_to(project)), *arguments],
        env={"PATH": os.environ["PATH"], **environment},
        cwd=project,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture()
def programs(tmp_path: Path) -> str:
    """A PATH that begins with the stand-ins."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_the_scripts_pass_shellcheck() -> None:
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert shellcheck, "make test installs it"
    done = subprocess.run([shellcheck, "-x", *SCRIPTS.glob("*.sh")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_dry_run_prints_every_command_of_a_two_node_iteration() -> None:
    lines = call(SCRIPTS / "submit.sh", "RUN=ddm", "CONFIG=pipelines/reference-7b.yaml", "ITERS=1", DRY_RUN="1")
    srun = "srun --nodes={} --ntasks-per-node=1 --kill-on-bad-exit=1 pipelines/slurm/node.sh .venv/bin/python"
    meet = "--machine_rank MACHINE_RANK --main_process_ip HEAD_NODE --main_process_port 29500'"
    one = f"'LAUNCH_ARGS=--num_machines 1 --num_processes 8 {meet}"
    two = f"'LAUNCH_ARGS=--num_machines 2 --num_processes 16 {meet}"
    assert [line.strip() for line in lines[1::2]] == [
        "make 'training_logs/ddm/iter-0000/report/manifest.json' 'RUN=ddm' 'LAG=0' "
        f"'CONFIG=pipelines/reference-7b.yaml' 'EVALUATE_PYTHON={srun.format(1)}' 'EVALUATE_LAUNCH=processes' {one}",
        f"make 'rollout' 'RUN=ddm' 'ITER=1' 'ROLLOUT_PYTHON={srun.format(1)}' 'ROLLOUT_LAUNCH=processes' {one}",
        "make 'score-attention' 'weight-tokens' 'RUN=ddm' 'ITER=1' "
        f"'SCORE_PYTHON={srun.format(1)}' 'SCORE_LAUNCH=processes' {one}",
        f"make 'train-step' 'RUN=ddm' 'ITER=1' 'TRAIN_PYTHON={srun.format(2)}' 'TRAIN_LAUNCH=multi-node' {two}",
        f"make 'iterate' 'RUN=ddm' 'ITERS=1' 'EVAL_EVERY=1' 'EVALUATE_PYTHON={srun.format(1)}' "
        f"'EVALUATE_LAUNCH=processes' {one}",
    ]
    jobs = [line.split(" --output=")[0] for line in lines[::2]]
    stages = ("setup-0", "rollout-1", "score-1", "train-1", "finish-1")
    assert jobs == [f"{n}: sbatch --parsable --job-name=ddm-{stage}" for n, stage in enumerate(stages, 1)]
    assert "--nodes=2" in lines[6] and all("--nodes=1" in lines[n] for n in (0, 2, 4, 8))
    assert not (ROOT / "training_logs/ddm").exists()
    command = ["make", "slurm", "RUN=ddm", "CONFIG=pipelines/reference-7b.yaml", "ITERS=1", "DRY_RUN=1"]
    by_make = subprocess.run(command, env={"PATH": os.environ["PATH"]}, cwd=ROOT, capture_output=True, text=True)
    assert by_make.stdout.splitlines() == lines, by_make.stderr


# Jobs that make the policies by which the rollouts of three iterations are sampled and scored.
@pytest.mark.parametrize(("lag", "samplers"), [("0", ["101", "104", "108"]), ("1", ["101", "101", "104"])])
def test_jobs_wait_for_what_they_read(tmp_path: Path, programs: str, lag: str, samplers: list[str]) -> None:
    project = tmp_path / "project"
    shutil.copytree(SCRIPTS, project / "pipelines/slurm")
    shutil.copy(ROOT / "pipelines/embedded.yaml", project / "pipelines")
    with_makefile(project)
    cluster = project / "mine.env"
    cluster.write_text((SCRIPTS / "cluster.env").read_text() + "ACCOUNT=vision\nSBATCH_OPTIONS='--qos=high'\n")
    jobs = tmp_path / "jobs"
    arguments = ("RUN=t", "ITERS=3", f"LAG={lag}", "CLUSTER=./mine.env")
    call(project / "pipelines/slurm/submit.sh", *arguments, PATH=programs, JOBS=str(jobs))
    waits: dict[str, list[str]] = {}
    for number, line in enumerate(jobs.read_text().splitlines(), 101):
        assert "--account=vision" in line and "--qos=high" in line and "--partition" not in line
        words = line.split()
        after = [word for word in words if word.startswith("--dependency=afterok:")]
        waits[f"{number} {' '.join(words[-3:-1])}"] = sorted(set(":".join(after).split(":")[1:]) - {""})
    assert waits == {
        "101 setup 0": [],
        "102 rollout 1": ["101"],
        "103 score 1": ["102"],
        "104 train 1": ["102", "103"],
        "105 finish 1": ["104"],
        "106 rollout 2": [samplers[1]],
        "107 score 2": sorted({"103", "106", samplers[1]} - {"101"}),  # the first job comes before them all
        "108 train 2": ["104", "106", "107"],
        "109 finish 2": ["105", "108"],
        "110 rollout 3": [samplers[2]],
        "111 score 3": sorted({"107", "110", samplers[2]}),
        "112 train 3": ["108", "110", "111"],
        "113 finish 3": ["109", "112"],
    }


def test_a_job_starts_its_stage_on_every_node_with_the_nodes_number(tmp_path: Path, programs: str) -> None:
    project = tmp_path / "project"
    shutil.copytree(ROOT / "pipelines", project / "pipelines")
    with_makefile(project, ANSWERS + PYTHON)
    (project / ".venv/ready-deepspeed").touch()
    run = project / "training_logs/t"
    for part in ("policy", "data", "iter-0001/rollout", "iter-0001/attention", "iter-0001/weights"):
        (run / part).mkdir(parents=True)
        (run / part / "manifest.json").write_text("{}")
    (run / "config.yaml").write_text("planned_iterations: 1\n")
    jobs = tmp_path / "jobs"
    slurm = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[07-08]", "SLURM_SUBMIT_DIR": str(project)}
    ours = {
        "CLUSTER": "pipelines/slurm/cluster.env",
        "SCRIPTS": "pipelines/slurm",
        "PY": ".venv/bin/python",
        "RUN": "t",
        "DRY_RUN": "",
        "JOBS": str(jobs),
        "PATH": programs,
    }
    call(project / "pipelines/slurm/stage.sh", "train", "1", "train-step", **slurm, **ours)
    started = [line.split() for line in jobs.read_text().splitlines() if "train-step" in line]
    assert [words[0] for words in started] == ["0", "1"]
    for node, words in enumerate(started):
        launch = " ".join(words[1 : words.index("train-step")])
        assert launch == (
            "-m dapo_stages.entrypoints.launch --config_file pipelines/accelerate/multi-node.yaml --num_machines 2 "
            f"--num_processes 16 --machine_rank {node} --main_process_ip node07 --main_process_port 29500"
        )
    assert (run / "iter-0001/train/manifest.json").exists()


def test_iterations_and_lag_are_those_of_the_run(tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(ROOT / "pipelines", project / "pipelines")
    with_makefile(project)
    (project / "training_logs/t").mkdir(parents=True)
    (project / "training_logs/t/config.yaml").write_text("extends: long.yaml\nlag: 1\n")
    (project / "training_logs/t/long.yaml").write_text("{planned_iterations: 2}\n")
    environment = {"DRY_RUN": "1", "CONFIG": "not-this-one.yaml", "ITERS": "9", "LAG": "9", "SET": "--set lag=9"}
    lines = call(project / "pipelines/slurm/submit.sh", "RUN=t", **environment)
    assert sum(" 'rollout' " in line for line in lines) == 2
    assert "'LAG=1'" in lines[1] and "CONFIG" not in lines[1]


@pytest.mark.parametrize("configured", ["", "extends: base.yaml\n", None])
def test_lagging_rollouts_wait_for_those_before_under_a_curriculum(tmp_path: Path, configured: str | None) -> None:
    """Job 2 is the first rollout; rollout 2 samples with the starting policy, as it does."""
    project = tmp_path / "project"
    shutil.copytree(ROOT / "pipelines", project / "pipelines")
    with_makefile(project)
    (project / "base.yaml").write_text("rollout: {curriculum: {}}\n")
    (project / "run.yaml").write_text(configured or "")
    more = ["SET=--set rollout.curriculum={}"] if configured is None else []
    script = project / "pipelines/slurm/submit.sh"
    lines = call(script, "RUN=t", "CONFIG=run.yaml", "ITERS=3", "LAG=1", *more, DRY_RUN="1")
    waits = [line.split("--dependency=afterok:")[1].split()[0] for line in lines if "--job-name=t-rollout" in line]
    assert waits == (["1", "1", "4"] if configured == "" else ["1", "2", "6:4"])


def test_vllm_is_asked_by_one_process_of_one_node(tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(ROOT / "pipelines", project / "pipelines")
    with_makefile(project)
    cluster = project / "mine.env"
    cluster.write_text((SCRIPTS / "cluster.env").read_text() + "ROLLOUT_NODES=2\n")
    arguments = ("RUN=t", "ITERS=1", "CLUSTER=./mine.env", "SET=--set rollout.engine=vllm")
    lines = call(project / "pipelines/slurm/submit.sh", *arguments, DRY_RUN="1")
    rollout = next(n for n, line in enumerate(lines) if "--job-name=t-rollout" in line)
    assert "--nodes=1 " in lines[rollout] and "--nodes=2 " in lines[rollout + 2]
    assert "'ROLLOUT_PYTHON=srun --nodes=1 " in lines[rollout + 1] and "'ROLLOUT_LAUNCH=1'" in lines[rollout + 1]


def test_a_wrong_configuration_submits_nothing(tmp_path: Path, programs: str) -> None:
    project = tmp_path / "project"
    shutil.copytree(ROOT / "pipelines", project / "pipelines")
    with_makefile(project)
    (project / "wrong.yaml").write_text("sede: 7\n")
    environment = {"PATH": programs, "JOBS": str(tmp_path / "jobs")}
    command: list[str | Path] = [project / "pipelines/slurm/submit.sh", "RUN=t", "CONFIG=wrong.yaml"]
    done = subprocess.run(command, env=environment, cwd=project, capture_output=True, text=True)
    assert done.returncode == 2 and "wrong.yaml: sede is not a setting" in done.stderr
    assert not (tmp_path / "jobs").exists()


def test_what_is_no_number_of_iterations_submits_nothing(tmp_path: Path, programs: str) -> None:
    project = tmp_path / "project"
    shutil.copytree(ROOT / "pipelines", project / "pipelines")
    with_makefile(project)
    environment = {"PATH": programs, "JOBS": str(tmp_path / "jobs")}
    command: list[str | Path] = [project / "pipelines/slurm/submit.sh", "RUN=t", "ITERS=3", "EVAL_EVERY=0"]
    done = subprocess.run(command, env=environment, cwd=project, capture_output=True, text=True)
    assert done.returncode == 3 and "EVAL_EVERY: expected a whole number of at least 1, got 0." in done.stderr
    assert not (tmp_path / "jobs").exists()


def test_the_node_number_replaces_its_placeholder() -> None:
    words = ["printf", "%s\n", "--machine_rank", "MACHINE_RANK"]
    assert call(SCRIPTS / "node.sh", *words, SLURM_NODEID="3") == ["--machine_rank", "3"]


def test_an_unknown_setting_is_refused() -> None:
    done = subprocess.run([SCRIPTS / "submit.sh", "ITER=3"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "ITER=3 is not a setting. Use RUN" in done.stderr


def test_it_is_called_beside_a_makefile(tmp_path: Path) -> None:
    done = subprocess.run([SCRIPTS / "submit.sh", "RUN=t"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and f"no Makefile in {tmp_path}. Run it in the folder of the project's" in done.stderr
