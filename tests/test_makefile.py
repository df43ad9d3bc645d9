"""The Makefile's logic, with a stand-in for Python that writes manifests and notes what it was asked to do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support.commands import ROOT
from support.make import STAND_IN, attempt, dry, make, project_with

from dapo_stages.runs.pipeline import ITERATION

pytestmark = pytest.mark.long


@pytest.fixture()
def project(tmp_path: Path) -> Path:
    """A folder with our Makefile and a virtual environment whose Python is the stand-in."""
    return project_with(tmp_path, 2)


def test_help_lists_every_target_and_variable_once_with_what_it_is() -> None:
    text = "\n\n".join((ROOT / name).read_text(encoding="utf-8") for name in ("Makefile", "pipelines/run.mk"))
    phony = " ".join(re.findall(r"^\.PHONY: ([^/\n]*)$", text.replace("\\\n", " "), re.M))
    targets = {*phony.replace("$(ABOUT_A_RUN)", "iterate").split()} - {"FORCE"}
    targets |= {stage.command for stage in ITERATION}
    variables = set(re.findall(r"^([A-Z_]+) *\?=", text, re.M)) | {"ITER"}
    command = ["make", "--no-print-directory", "help"]
    shown = subprocess.run(command, cwd=ROOT, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True).stdout
    assert sorted(re.findall(r"^  make ([a-z-]+) +\S", shown, re.M)) == sorted(targets)
    listed = re.findall(r"^  ([A-Z_]+(?: [A-Z_]+)*)(?:: |  +)\S", shown, re.M)
    assert sorted(name for names in listed for name in names.split()) == sorted(variables)


def test_a_goal_that_there_is_not_installs_nothing_and_asks_nothing(project: Path) -> None:
    shutil.rmtree(project / ".venv")
    done = attempt(project, "itrate")
    assert done.returncode == 2 and "No rule to make target 'itrate'" in done.stderr and done.stdout == ""
    assert not (project / ".venv").exists() and not (project / "build").exists()


def test_the_report_is_told_how_long_the_run_is_to_be(project: Path) -> None:
    lines = dry(project, "iterate", "status", "ITERS=3")
    told = [line for line in lines if " report --config" in line and " --iteration 0" not in line]
    assert len(told) == 4 and all(" --of 3" in line for line in told)
    assert any(" status --run training_logs/t --of 3" in line for line in lines)


ONE_ITERATION = ["rollout", "score-attention", "weight-tokens", "train-step", "evaluate", "report"]


def test_iterate_runs_every_stage_once_in_order(project: Path) -> None:
    calls = [call.split()[0] for call in make(project, "iterate")]
    assert calls == ["init-policy", "prepare-data", "evaluate", "report", *ONE_ITERATION, *ONE_ITERATION]


def test_without_held_out_rows_nothing_is_evaluated(project: Path) -> None:
    arguments = ("SET=--set data.source=a.jsonl --set data.held_out_fraction=0",)
    (project / "a.jsonl").touch()
    calls = [call.split()[0] for call in make(project, "iterate", *arguments)]
    stages = [stage for stage in ONE_ITERATION if stage != "evaluate"]
    assert calls == ["init-policy", "prepare-data", *stages, *stages]
    assert make(project, "iterate", *arguments) == []


def test_iterate_again_does_nothing(project: Path) -> None:
    make(project, "iterate")
    assert make(project, "iterate") == []


def test_a_make_that_was_killed_before_it_pruned_prunes_the_next_time(tmp_path: Path) -> None:
    """The last report is there, so its rule does not run again."""
    prunes = "prune) echo prune >> calls; [ ! -e kill ] || kill -9 $PPID; exit 0 ;;"
    project = project_with(
        tmp_path, 1, STAND_IN.replace("status|prune|check) exit 0 ;;", f"status|check) exit 0 ;;\n  {prunes}")
    )
    (project / "kill").touch()
    assert attempt(project, "iterate", "ITERS=1").returncode == -9
    assert (project / "training_logs/t/iter-0001/report/manifest.json").exists()
    (project / "kill").unlink()
    assert make(project, "iterate", "ITERS=1") == ["prune"]


def test_raising_iters_continues(project: Path) -> None:
    make(project, "iterate", "ITERS=1")
    calls = make(project, "iterate", "ITERS=2")
    assert [call.split()[0] for call in calls] == ONE_ITERATION
    assert all("iter-0002" in call for call in calls)


def test_a_deleted_stage_is_redone_with_only_what_depends_on_it(project: Path) -> None:
    make(project, "iterate")
    shutil.rmtree(project / "training_logs/t/iter-0002/weights")
    assert make(project, "iterate") == [
        "weight-tokens iter-0002/weights",
        "train-step iter-0002/train again",
        "evaluate iter-0002/eval again",
        "report iter-0002/report again",
    ]


def test_a_deleted_evaluation_redoes_no_training(project: Path) -> None:
    make(project, "iterate")
    shutil.rmtree(project / "training_logs/t/iter-0001/eval")
    assert make(project, "iterate") == ["evaluate iter-0001/eval", "report iter-0001/report again"]


def test_an_unfinished_output_is_not_taken_for_a_finished_one(project: Path) -> None:
    make(project, "iterate", "ITERS=1")
    (project / "training_logs/t/iter-0001/train/manifest.json").unlink()
    assert "train-step iter-0001/train" in make(project, "iterate", "ITERS=1")


def test_a_lost_state_is_made_again_and_nothing_else(project: Path) -> None:
    state = project / "training_logs/t/iter-0002/train/state/manifest.json"
    for goal in ("iterate", "train-step"):
        make(project, "iterate")
        state.unlink()
        assert make(project, goal) == ["train-step iter-0002/train"]


def test_eval_every_leaves_iterations_out_but_not_the_last(project: Path) -> None:
    calls = make(project, "iterate", "ITERS=3", "EVAL_EVERY=2")
    assert [call for call in calls if call.startswith("evaluate")] == [
        "evaluate iter-0000/eval",
        "evaluate iter-0002/eval",
        "evaluate iter-0003/eval",
    ]


UNSAFE = ["", "a b", "..", ".", "../docs", "a/../..", "a/./b", "/tmp/x", "a//b", "a/", "-rf", "a;b", "a'b", "$$X", "*"]


@pytest.mark.parametrize("name", UNSAFE)
@pytest.mark.parametrize("target", ["iterate", "clean-run", "status", "help"])
def test_a_run_is_named_by_a_folder_below_training_logs(project: Path, target: str, name: str) -> None:
    before = sorted(project.rglob("*"))
    for options in ((), ("-n",)):
        done = attempt(project, *options, target, f"RUN={name}")
        problem = f"RUN: '{name.replace('$$', '$')}' is not a name of a run"
        assert done.returncode == 2 and problem in done.stderr and done.stdout == ""
    assert sorted(project.rglob("*")) == before


@pytest.mark.parametrize("name", ["study/small/start-1", "实验-1", "v1.2_b"])
def test_a_run_may_lie_in_folders_and_have_any_letters(project: Path, name: str) -> None:
    make(project, "iterate", f"RUN={name}", "ITERS=1")
    assert (project / "training_logs" / name / "iter-0001/report/manifest.json").exists()
    make(project, "clean-run", f"RUN={name}")
    assert not (project / "training_logs" / name).exists()


@pytest.mark.parametrize("name", ["", "one two"])
def test_clean_run_removes_one_run_or_nothing(project: Path, name: str) -> None:
    make(project, "iterate", "ITERS=1")
    for goal in ("clean-run", "iterate"):
        done = attempt(project, goal, f"RUN={name}")
        assert done.returncode != 0 and f"RUN: '{name}' is not a name of a run" in done.stderr
    assert (project / "training_logs/t/policy/manifest.json").exists()
    make(project, "clean-run")
    assert not (project / "training_logs/t").exists()


def test_one_stage_of_one_iteration(project: Path) -> None:
    make(project, "iterate", "ITERS=1")
    assert make(project, "rollout", "ITER=2") == ["rollout iter-0002/rollout"]


def test_rollouts_sample_with_a_policy_as_old_as_lag_says(project: Path) -> None:
    def policies(stage: str, *arguments: str) -> list[str]:
        lines = [line.split() for line in dry(project, "iterate", "ITERS=4", *arguments) if f" {stage} " in line]
        found = [words[words.index("--policy") + 1] for words in lines]
        return [policy.removeprefix("training_logs/t/").removesuffix("/train/policy") for policy in found]

    newest = ["policy", "iter-0001", "iter-0002", "iter-0003"]
    behind = ["policy", "policy", "iter-0001", "iter-0002"]
    for arguments, want in (((), newest), (("LAG=1",), behind), (("SET=--set lag=1",), behind)):
        assert policies("rollout", *arguments) == want
        assert policies("score-attention", *arguments) == want
        assert policies("train-step", *arguments) == newest


def test_under_a_curriculum_a_rollout_made_again_makes_the_next_one_stale(project: Path) -> None:
    arguments = ("LAG=1", "SET=--set rollout.curriculum={}")
    make(project, "iterate", *arguments)
    (project / "training_logs/t/iter-0001/rollout/manifest.json").unlink()
    assert "rollout iter-0002/rollout again" in make(project, "rollout", "ITER=2", *arguments)


def test_with_a_lag_the_next_rollouts_do_not_wait_for_training(project: Path) -> None:
    ahead = [f"{stage} iter-000{n}" for n in (1, 2) for stage in ("rollout", "score-attention", "weight-tokens")]
    calls = make(project, "weight-tokens", "ITER=2", "LAG=1")
    assert sorted(call.rsplit("/", 1)[0] for call in calls if "iter-" in call) == sorted(ahead)
    assert "train-step iter-0001/train" in make(project, "rollout", "ITER=3", "LAG=1")


def test_parallel_make_gives_the_same_stages(project: Path) -> None:
    assert sorted(make(project, "-j2", "iterate")) == sorted(
        [
            "init-policy policy",
            "prepare-data data",
            *(
                f"{stage} iter-{n:04d}/{folder}"
                for n in (0, 1, 2)
                for stage, folder in (("evaluate", "eval"), ("report", "report"))
            ),
            *(
                f"{stage} iter-{n:04d}/{folder}"
                for n in (1, 2)
                for stage, folder in (
                    ("rollout", "rollout"),
                    ("score-attention", "attention"),
                    ("weight-tokens", "weights"),
                    ("train-step", "train"),
                )
            ),
        ]
    )


def test_stages_with_a_model_are_launched_in_as_many_processes_as_training(project: Path) -> None:
    shutil.copytree(ROOT / "pipelines/accelerate", project / "pipelines/accelerate")
    (project / "pipelines/accelerate/four.yaml").write_text("distributed_type: DEEPSPEED\nnum_processes: 4 # GPUs\n")
    plain = "pipelines/accelerate/processes.yaml"
    calls = make(project, "iterate", "ITERS=1", "LAUNCH=four", "SCORE_LAUNCH=2", "EVALUATE_LAUNCH=1")
    assert calls[2:] == [
        "evaluate iter-0000/eval",
        "report iter-0000/report",
        f"rollout iter-0001/rollout {plain} 4",
        f"score-attention iter-0001/attention {plain} 2",
        "weight-tokens iter-0001/weights",
        "train-step iter-0001/train pipelines/accelerate/four.yaml",
        "evaluate iter-0001/eval",
        "report iter-0001/report",
    ]
    calls = make(project, "train-step", "ITER=2", "LAUNCH=3", "LAUNCH_ARGS=--machine_rank 1")
    assert calls[-1] == f"train-step iter-0002/train {plain} 3 1"


@pytest.mark.parametrize("engine", ["vllm", "server"])
def test_vllm_and_servers_are_asked_by_one_process_unless_told_otherwise(project: Path, engine: str) -> None:
    shutil.copytree(ROOT / "pipelines/accelerate", project / "pipelines/accelerate")
    plain = "pipelines/accelerate/processes.yaml 4"
    arguments = ["score-attention", "LAUNCH=4", f"SET=--set rollout.engine={engine}"]
    assert make(project, *arguments, "ITER=1")[-2:] == [
        "rollout iter-0001/rollout",
        f"score-attention iter-0001/attention {plain}",
    ]
    copies = [line for line in dry(project, *arguments, "ITER=2", "ROLLOUT_LAUNCH=4") if "data_parallel_size=4" in line]
    assert [" rollout " in line for line in copies] == ([True] if engine == "vllm" else [])
    again = "rollout iter-0002/rollout" if engine == "vllm" else f"rollout iter-0002/rollout {plain}"
    assert again in make(project, *arguments, "ITER=2", "ROLLOUT_LAUNCH=4")
    arguments = ["evaluate", "ITER=1", "LAUNCH=4", f"SET=--set evaluate.engine={engine}"]
    assert make(project, *arguments)[-1] == "evaluate iter-0001/eval"


def handed_over(project: Path, *arguments: str) -> set[str]:
    """Stages that a process that stays would run in the first iteration."""
    done = attempt(project, "-n", "iterate", "ITERS=1", *arguments)
    assert done.returncode == 0, done.stderr
    return {line.split()[3] for line in done.stdout.splitlines() if "-m dapo_stages.entrypoints.resident " in line}


def launched_and_stays(project: Path, *arguments: str) -> set[str]:
    """Stages that the ranks of a launch that stays would run in the first iteration."""
    done = attempt(project, "-n", "iterate", "ITERS=1", *arguments)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if "-m dapo_stages.entrypoints.resident_launch " in line]
    return {word for line in lines for word in line if word in {"rollout", "score-attention", "train-step", "evaluate"}}


def test_the_process_that_stays_runs_what_needs_the_policy_and_without_gpus_the_rest(project: Path) -> None:
    stages = {"rollout", "score-attention", "train-step", "evaluate"}
    assert handed_over(project, "RESIDENT=1") >= stages | {"weight-tokens", "report", "prune"}
    assert handed_over(project, "RESIDENT=1", "PRELOAD=0") == stages  # as on GPUs, where rollout and report run at once
    assert handed_over(project, "RESIDENT=0") == set()
    shutil.copytree(ROOT / "pipelines/accelerate", project / "pipelines/accelerate")
    assert handed_over(project, "RESIDENT=1", "PRELOAD=0", "TRAIN_LAUNCH=2") == stages - {"train-step"}
    vllm = "SET=--set rollout.engine=vllm"
    assert handed_over(project, "RESIDENT=1", "PRELOAD=0", vllm) == stages
    assert launched_and_stays(project, "RESIDENT=1", "TRAIN_LAUNCH=2") == {"train-step"}
    assert launched_and_stays(project, "RESIDENT=1", "LAUNCH=2") == stages
    for elsewhere in ("RESIDENT=0", "LAUNCH_ARGS=--machine_rank=1"):
        assert launched_and_stays(project, "LAUNCH=2", "RESIDENT=1", elsewhere) == set()
    assert launched_and_stays(project, "RESIDENT=1", "TRAIN_LAUNCH=multi-node") == set()


def test_stages_with_a_model_reserve_their_gpus(project: Path) -> None:
    arguments = ("iterate", "ITERS=1", "LAG=1")
    calls = make(project, *arguments, "GPUS=0,1", "ROLLOUT_GPUS=2")
    assert calls[2:] == [
        "evaluate iter-0000/eval on 0,1",
        "report iter-0000/report",
        "rollout iter-0001/rollout on 2",
        "score-attention iter-0001/attention on 0,1",
        "weight-tokens iter-0001/weights",
        "train-step iter-0001/train on 0,1",
        "evaluate iter-0001/eval on 0,1",
        "report iter-0001/report",
    ]
    shared = [line for line in dry(project, "train-step", "ITER=2", "GPUS=0", "SHARE_GPUS=1") if "on_gpus" in line]
    assert len(shared) == 3 and all("on_gpus --share '0' " in line for line in shared)
    server = "SET=--set evaluate.engine=server"
    assert make(project, "evaluate", "ITER=1", "GPUS=0", server) == []
    shutil.rmtree(project / "training_logs/t/iter-0001/eval")
    assert make(project, "evaluate", "ITER=1", "GPUS=0", server) == ["evaluate iter-0001/eval"]
    shutil.rmtree(project / "training_logs/t/iter-0001/eval")
    assert make(project, "evaluate", "ITER=1", "GPUS=0", "SET=--set model.device=cpu") == ["evaluate iter-0001/eval"]


def test_an_unknown_launch_names_those_that_there_are(project: Path) -> None:
    shutil.copytree(ROOT / "pipelines/accelerate", project / "pipelines/accelerate")
    done = attempt(project, "iterate", "LAUNCH=zero9")
    assert done.returncode == 2
    assert "LAUNCH: expected a number of processes or a file of accelerate/, got zero9. Name one of: " in done.stderr
    assert "processes" in done.stderr.rpartition("one of: ")[2]


# What `python -m pipelines.study` would do: wanted are two schemes of two seeds, and a result file is empty.
STUDY = """
if [ "$2" = pipelines.study ]; then
  case $3 in
    wanted) for seed in 1 2; do for scheme in uniform vgr; do
      [ -e results/places/$scheme-$seed.json ] || echo results/places/$scheme-$seed.json; done; done ;;
    settings) file=${4##*-}; echo "--set seed=${file%.json}" ;;
    record) mkdir -p "$(dirname "$4")"; touch "$4"; echo "record $4" >> calls ;;
    page) echo page >> calls ;;
  esac
  exit
fi
"""


@pytest.fixture()
def study(tmp_path: Path) -> Path:
    """A project with a study of two iterations."""
    made = project_with(tmp_path, 2, STUDY + STAND_IN)
    (made / "pipelines/study").mkdir()
    (made / "pipelines/study/places.yaml").write_text("planned_iterations: 2\n")
    return made


def study_calls(project: Path, *arguments: str) -> list[str]:
    """Run it; stage and folder of each call."""
    calls = make(project, "-j2", "study", "RESULTS=results", *arguments)
    return [call.replace("training_logs/study/places/", "") for call in calls]


def test_runs_of_a_seed_share_policy_and_questions(study: Path) -> None:
    calls = study_calls(study)
    assert sorted(call for call in calls if call.startswith(("init-policy", "prepare-data"))) == [
        f"{stage} start-{seed}/{folder}"
        for stage, folder in (("init-policy", "policy"), ("prepare-data", "data"))
        for seed in (1, 2)
    ]
    runs = [f"{scheme}-{seed}" for scheme in ("uniform", "vgr") for seed in (1, 2)]
    trained = sorted(call for call in calls if call.startswith("train-step"))
    assert trained == [f"train-step {run}/iter-000{n}/train" for run in runs for n in (1, 2)]
    evaluated = {call.split()[1] for call in calls if call.startswith("evaluate")}
    assert evaluated == {f"start-{s}/iter-0000/eval" for s in (1, 2)} | {f"{run}/iter-0002/eval" for run in runs}
    shared = study / "training_logs/study/places/vgr-1/policy/manifest.json"
    assert shared.resolve() == study / "training_logs/study/places/start-1/policy/manifest.json"
    assert {call for call in calls if call.startswith("record")} == {
        f"record results/places/{run}.json" for run in runs
    }
    assert calls[-1] == "page"


def test_a_run_with_a_result_file_is_not_run_again_and_others_resume(study: Path) -> None:
    study_calls(study)
    shutil.rmtree(study / "training_logs/study")
    assert study_calls(study) == ["page"]
    (study / "results/places/vgr-2.json").unlink()
    again = study_calls(study)
    assert "evaluate start-2/iter-0000/eval" in again and "train-step vgr-2/iter-0002/train" in again
    assert not any(name in call for call in again for name in ("start-1/", "vgr-1/", "uniform-"))
    (study / "results/places/vgr-2.json").unlink()
    assert study_calls(study) == ["record results/places/vgr-2.json", "page"]  # its folder has everything


def test_a_run_that_fails_is_still_given_to_record(study: Path) -> None:
    """Training that breaks down is a result; record refuses what is merely not finished."""
    (study / ".venv/bin/python").write_text(
        (study / ".venv/bin/python").read_text().replace("stage=$1;", '[ "$1" != train-step ] || exit 5; stage=$1;')
    )
    calls = study_calls(study)
    assert "record results/places/vgr-1.json" in calls and "page" in calls


def test_a_study_that_cannot_be_made_says_so_and_makes_nothing(study: Path) -> None:
    python = study / ".venv/bin/python"
    python.write_text(python.read_text().replace("wanted) for", "wanted) echo 'why: not' >&2; exit 3; for"))
    done = attempt(study, "study", "RESULTS=results")
    assert done.returncode == 2 and "why: not" in done.stderr
    assert "the study cannot be made for the reason above" in done.stderr and not (study / "calls").exists()
