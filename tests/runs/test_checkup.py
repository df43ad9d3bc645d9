"""doctor --run: findings written by hand for every kind of damage; --repair removes leftovers and nothing else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from reporting import tiny_run
from support.commands import fresh
from support.commands import run as command
from support.pipeline import Run

from dapo_stages.handoff.manifests import Source, mark_pruned, read_manifest, write_manifest
from dapo_stages.handoff.plans import Plan
from dapo_stages.runs import run_folder
from dapo_stages.runs.best import write_best

GONE = 2**22 + 7  # above the largest process number of Linux
ONE, TWO = "iter-0001", "iter-0002"
POINTER = "dapo-stages report --config {run}/config.yaml --run {run}."


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tiny_run.build(tmp_path_factory.mktemp("sound") / "run")
    write_best(run_folder.Run(run))
    return run


@pytest.fixture()
def run(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "run")


def findings(run: Path, *more: str) -> list[dict[str, str]]:
    listed: list[dict[str, str]] = json.loads(command("doctor", "--run", run, "--json", *more).stdout)["findings"]
    return listed


def found(run: Path) -> list[tuple[str, str, str]]:
    return [(one["state"], one["where"], one["problem"]) for one in findings(run)]


def everything(run: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file() and path.name != ".lock"}


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def republish(folder: Path, **changes: Any) -> None:
    """What is outside of the content hash."""
    write_manifest(folder, read_manifest(folder).model_copy(update=changes))


def test_a_sound_run_is_sound(run: Path) -> None:
    result = command("doctor", "--run", run)
    files = sum(len(read_manifest(path.parent).shards) for path in run.rglob("manifest.json"))
    assert (result.code, result.stdout) == (0, f"sound: {files} files match their manifests\n")
    assert found(run) == []


def test_a_run_of_the_real_stages_is_sound_and_stays_so_when_moved(small_run: Run, tmp_path: Path) -> None:
    moved = shutil.copytree(small_run.folder, tmp_path / "elsewhere")
    for folder in (small_run.folder, moved):
        result = command("doctor", "--run", folder, "--json")
        said = json.loads(result.stdout)
        assert (result.code, said["ok"], said["findings"]) == (0, True, []) and said["files"] > 40


# ---- Problems --------------------------------------------------------------------------------------------------------


def unreadable(run: Path) -> tuple[str, str]:
    (run / ONE / "rollout/manifest.json").write_text('{"stage": "rollout"')
    why = "not a valid manifest (Expecting ',' delimiter: line 1 column 20 (char 19))"
    return f"{ONE}/rollout/manifest.json", why


def other_version(run: Path) -> tuple[str, str]:
    edit(run / ONE / "attention/manifest.json", schema_version=99)
    return f"{ONE}/attention/manifest.json", "schema version 99 is not supported (expected 1)"


def edited(run: Path) -> tuple[str, str]:
    edit(run / ONE / "eval/manifest.json", seed=2)
    return f"{ONE}/eval/manifest.json", "the manifest was edited: its content does not match its hash"


def of_another_stage(run: Path) -> tuple[str, str]:
    shutil.copy(run / "data/manifest.json", run / "policy/manifest.json")
    return "policy/manifest.json", "expected the output of init-policy, got the output of prepare-data"


def gone(run: Path) -> tuple[str, str]:
    (run / TWO / "weights/weights-00000.parquet").unlink()
    return f"{TWO}/weights/weights-00000.parquet", "no such file, but the manifest lists it"


def cut(run: Path) -> tuple[str, str]:
    path = run / TWO / "attention/attention-00000.parquet"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:100])
    why = f"has 100 bytes, expected {size} (it was truncated or replaced)"
    return f"{TWO}/attention/attention-00000.parquet", why


def flipped(run: Path) -> tuple[str, str]:
    path = run / TWO / "train/metrics.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return f"{TWO}/train/metrics.parquet", "has changed: it does not match its checksum in the manifest"


def input_changed(run: Path) -> tuple[str, str]:
    before = read_manifest(run / TWO / "attention").content_hash[:12]
    tiny_run.publish(
        Plan("score-attention", run / TWO / "attention", {}, 9, {"rollouts": Source(run / TWO / "rollout")}),
        lambda output: output.write("attention", 0, Source(run / ONE / "attention").rows("attention")),
    )
    now = read_manifest(run / TWO / "attention").content_hash[:12]
    why = f"its input attention at {TWO}/attention has changed (expected {before}, got {now})"
    return f"{TWO}/weights", why


def input_gone(run: Path) -> tuple[str, str]:
    shutil.rmtree(run / "data")
    return f"{ONE}/rollout", "its input data no longer exists at data"


def input_of_another_iteration(run: Path) -> tuple[str, str]:
    """The policy that a train-step went on from is that of two iterations before."""
    inputs = read_manifest(run / TWO / "train").inputs
    start = Source(run / "policy")
    given = {"path": str(start.folder), "content_hash": start.manifest.content_hash}
    republish(run / TWO / "train", inputs={**inputs, "policy": type(inputs["rollouts"])(**given)})
    return f"{TWO}/train", f"its input policy is {start.folder}, expected {ONE}/train/policy"


def replay_of_another_iteration(run: Path) -> tuple[str, str]:
    inputs, own = read_manifest(run / TWO / "weights").inputs, Source(run / TWO / "weights")
    given = {"path": str(own.folder), "content_hash": own.manifest.content_hash}
    republish(run / TWO / "weights", inputs={**inputs, "replay": type(inputs["rollouts"])(**given)})
    return f"{TWO}/weights", f"its input replay is {own.folder}, expected {ONE}/weights"


def half_a_group(run: Path) -> tuple[str, str]:
    """Replayed completions whose prompt is not there; all checksums are right."""

    def fill(output: Any) -> None:
        source = Source(run.parent / "old")
        output.write("weights", 0, source.rows("weights"))
        output.write("replayed-prompts", 0, [tiny_run.prompt(7, 0, correct=2)])
        output.write("replayed-completions", 0, [tiny_run.completion(1, 0, 0)])

    folder = run / TWO / "weights"
    shutil.copytree(folder, run.parent / "old")
    inputs = {name: Source(run / TWO / part) for name, part in (("rollouts", "rollout"), ("attention", "attention"))}
    tiny_run.publish(Plan("weight-tokens", folder, {"other": 1}, 1, inputs), fill)
    now, old = (read_manifest(path) for path in (folder, run.parent / "old"))
    train_inputs = read_manifest(run / TWO / "train").inputs
    changed = train_inputs["weights"].model_copy(update={"content_hash": now.content_hash})
    republish(run / TWO / "train", inputs={**train_inputs, "weights": changed})
    assert now.content_hash != old.content_hash
    return f"{TWO}/weights", "group it1-p0 is in only one of replayed-prompts and replayed-completions"


def another_policy(run: Path) -> tuple[str, str]:
    own = read_manifest(run / TWO / "train/policy").content_hash[:12]
    republish(run / TWO / "train", policy={"content_hash": "f" * 64})
    return f"{TWO}/train/policy", f"not the policy that this step published (expected ffffffffffff, got {own})"


def state_of_another_policy(run: Path) -> tuple[str, str]:
    own = read_manifest(run / TWO / "train/policy").content_hash[:12]
    tiny_run.publish(Plan("state", run / TWO / "train/state", {}, 1), lambda output: None)
    republish(run / TWO / "train/state", policy={"policy_hash": "a" * 64})
    (run / TWO / "train/state/.lock").unlink()
    return f"{TWO}/train/state", f"the state of another policy (expected {own}, got aaaaaaaaaaaa)"


def part_unreadable(run: Path) -> tuple[str, str]:
    (run / TWO / "train/policy/manifest.json").write_text("[]")
    reason = "'list' object has no attribute 'get'"
    return f"{TWO}/train/policy/manifest.json", f"not a valid manifest ({reason})"


def orphan(run: Path) -> tuple[str, str]:
    (run / ONE / "rollout/completions-00099.parquet").write_bytes(b"PAR1")
    return f"{ONE}/rollout/completions-00099.parquet", "no manifest lists this file"


def loose(run: Path) -> tuple[str, str]:
    (run / ONE / "notes.txt").write_text("mine")
    return f"{ONE}/notes.txt", "no manifest lists this file"


def without_manifest(run: Path) -> tuple[str, str]:
    (run / TWO / "eval/manifest.json").unlink()
    return f"{TWO}/eval", "has files, but not the manifest of a finished stage"


def missing_iteration(run: Path) -> tuple[str, str]:
    (run / "iter-0004").mkdir()
    return "iter-0003", "no such folder, but iteration 4 exists"


def half_a_swap(run: Path) -> tuple[str, str]:
    folder = run / ONE / "eval"
    (folder / ".next").mkdir()
    shutil.copy(folder / "manifest.json", folder / ".next")
    return f"{ONE}/eval", "a finished replacement is not moved in yet"


def was_halted(run: Path) -> tuple[str, str]:
    folder = run / "iter-0003/train"
    folder.mkdir(parents=True)
    (folder / ".partial-halted.json").write_text(json.dumps({"why": "a reason."}))
    return "iter-0003/train", "the stage was halted"


def bad_configuration(run: Path) -> tuple[str, str]:
    (run / "config.yaml").write_text("sead: 1\n")
    return "config.yaml", "sead is not a setting (did you mean seed?)"


def worse_best(run: Path) -> tuple[str, str]:
    own = read_manifest(run / TWO / "train/policy").content_hash
    edit(run / "best.json", policy="policy", policy_hash="e" * 64)
    return "best.json", f"names policy (eeeeeeeeeeee), expected {TWO}/train/policy ({own[:12]})"


def unreadable_best(run: Path) -> tuple[str, str]:
    own = read_manifest(run / TWO / "train/policy").content_hash
    (run / "best.json").write_text("{}")
    return "best.json", f"names no policy, expected {TWO}/train/policy ({own[:12]})"


PROBLEMS: list[Callable[[Path], tuple[str, str]]] = [
    unreadable, other_version, edited, of_another_stage, gone, cut, flipped, input_changed, input_gone,
    input_of_another_iteration, replay_of_another_iteration, half_a_group, another_policy, state_of_another_policy,
    part_unreadable, orphan, loose, without_manifest, missing_iteration, half_a_swap, was_halted, bad_configuration,
    worse_best, unreadable_best,
]  # fmt: skip


@pytest.mark.parametrize("damage", PROBLEMS, ids=lambda damage: damage.__name__)
def test_a_damaged_run_is_described_and_repair_leaves_published_data_alone(
    run: Path, damage: Callable[[Path], tuple[str, str]]
) -> None:
    expected = ("problem", *damage(run))
    result = command("doctor", "--run", run)
    assert expected in found(run)
    assert result.code == 3 and "problem(s)" in result.stdout.splitlines()[-1]
    assert all(one["advice"].endswith(".") and one["advice"][0].isupper() for one in findings(run))
    before = everything(run)
    removed = json.loads(command("doctor", "--run", run, "--repair", "--json").stdout)["removed"]
    assert removed == (["iter-0003/train/.partial-halted.json"] if damage is was_halted else [])
    assert everything(run) == {path: content for path, content in before.items() if "halted" not in path}


def test_what_to_do_is_a_command(run: Path) -> None:
    gone(run)
    (one,) = findings(run)
    assert one["advice"] == (
        f"Run dapo-stages weight-tokens --config {run}/config.yaml --rollouts {run}/{TWO}/rollout "
        f"--attention {run}/{TWO}/attention --replay {run}/{ONE}/weights --iteration 2 --out {run}/{TWO}/weights "
        "--overwrite."
    )
    shutil.copytree(run / ONE / "weights", run / TWO / "weights", dirs_exist_ok=True)
    unreadable_best(run)
    assert findings(run)[-1]["advice"] == f"Run {POINTER.format(run=run)}"


def test_a_text_report_names_each_finding_in_two_lines(run: Path) -> None:
    loose(run)
    (run / ONE / "eval/.x.json.4194311.tmp").touch()
    lines = command("doctor", "--run", run).stdout.splitlines()
    assert lines == [
        f"✗ {ONE}/notes.txt: no manifest lists this file.",
        "    Move it elsewhere.",
        f"– {ONE}/eval/.x.json.4194311.tmp: temporary file of an ended process.",
        "    Remove it with --repair.",
        lines[-1],
    ]
    assert lines[-1].startswith("1 problem(s); ") and lines[-1].endswith(" files compared with their checksums")


def test_a_folder_that_is_no_run_is_said(tmp_path: Path) -> None:
    assert found(tmp_path) == [("problem", ".", "not a run: it has no output of any stage")]


def test_a_pruned_output_is_sound(run: Path) -> None:
    for part in ("rollout", "attention", "weights"):
        mark_pruned(run / ONE / part)
        for path in (run / ONE / part).glob("*.parquet"):
            path.unlink()
    assert found(run) == []


def test_outputs_shared_by_links_are_sound_and_never_repaired(run: Path, tmp_path: Path) -> None:
    shared = tmp_path / "start"
    shared.mkdir()
    for name in ("policy", "data"):
        (run / name).rename(shared / name)
        (run / name).symlink_to(shared / name)
    (shared / "data/.partial.json").write_text("{}")
    assert [one[:2] for one in found(run)] == [("leftover", "data/.partial.json")]
    assert json.loads(command("doctor", "--run", run, "--repair", "--json").stdout)["removed"] == []
    assert (shared / "data/.partial.json").exists()


# ---- Leftovers -------------------------------------------------------------------------------------------------------


def temporary(run: Path) -> list[str]:
    names = [f".best.json.{GONE}.tmp", f"{ONE}/.x.{GONE}.tmp", f"{ONE}/eval/.metrics.json.{GONE}.tmp"]
    for name in names:
        (run / name).write_text("half")
    return names


def unfinished(run: Path) -> list[str]:
    """An interrupted train-step: notes, a finished shard, a part of a policy; and a file that is not its own."""
    folder = run / "iter-0003/train"
    (folder / "policy").mkdir(parents=True)
    (folder / "policy/model.safetensors").write_bytes(b"half")
    shutil.copy(run / ONE / "train/metrics.parquet", folder)
    (folder / ".partial.json").write_text(json.dumps({"fingerprint": "f", "shards": []}))
    (folder / ".partial-00001.json").write_text("cut o")
    names = [".partial.json", ".partial-00001.json", "metrics.parquet", "policy/model.safetensors", "policy"]
    return [f"iter-0003/train/{name}" for name in names]


def replacement(run: Path) -> list[str]:
    folder = run / ONE / "weights/.next"
    folder.mkdir()
    (folder / ".partial.json").write_text(json.dumps({"fingerprint": "f", "shards": []}))
    (folder / "weights-00000.parquet").write_bytes(b"PAR1")
    return [f"{ONE}/weights/.next{name}" for name in ("", "/.partial.json", "/weights-00000.parquet")]


def writing(run: Path) -> list[str]:
    folder = run / TWO / "eval/.writing"
    folder.mkdir()
    (folder / "metrics.json").write_text("{")
    return [f"{TWO}/eval/.writing", f"{TWO}/eval/.writing/metrics.json"]


def notes(run: Path) -> list[str]:
    (run / TWO / "eval/.partial.json").write_text("{}")
    return [f"{TWO}/eval/.partial.json"]


def last_move(run: Path) -> list[str]:
    """A replacement that was moved in but for its folder."""
    folder = run / ONE / "train/.next"
    folder.mkdir()
    (folder / ".swapping").touch()
    (folder / ".old.json").write_text("{}")
    return [f"{ONE}/train/.next{name}" for name in ("", "/.swapping", "/.old.json")]


LEFT = [temporary, unfinished, replacement, writing, notes, last_move]


@pytest.mark.parametrize("leave", LEFT, ids=lambda leave: leave.__name__)
def test_leftovers_harm_nothing_and_repair_removes_exactly_them(run: Path, leave: Callable[[Path], list[str]]) -> None:
    before = everything(run)
    names = leave(run)
    result = command("doctor", "--run", run)
    assert result.code == 0 and result.stdout.splitlines()[-1].endswith(" harmless finding(s)"), result.stdout
    assert {one[0] for one in found(run)} == {"leftover"}
    repaired = command("doctor", "--run", run, "--repair", "--json")
    assert repaired.code == 0
    assert sorted(json.loads(repaired.stdout)["removed"]) == sorted(names)
    assert everything(run) == before and found(run) == []


def test_repair_leaves_files_that_no_stage_wrote(run: Path) -> None:
    unfinished(run)
    mine = run / "iter-0003/train/notes.txt"
    mine.write_text("mine")
    command("doctor", "--run", run, "--repair")
    assert mine.read_text() == "mine"


def test_temporary_files_of_a_living_process_stay(run: Path) -> None:
    name = run / ONE / f"eval/.metrics.json.{os.getpid()}.tmp"
    name.touch()
    command("doctor", "--run", run, "--repair")
    assert name.exists()


def test_repair_removes_nothing_while_a_process_writes_anywhere_in_the_run(run: Path) -> None:
    for leave in LEFT:
        leave(run)
    before = everything(run)
    with FileLock(run / TWO / "eval/.lock"):
        assert ("note", f"{TWO}/eval", "a process is writing here, so it was not checked") in found(run)
        result = command("doctor", "--run", run, "--repair")
        assert result.code == 4 and result.stderr == (
            f"{run}/{TWO}/eval: a process is writing here. Wait for it, or stop it, and run the same command again.\n"
        )
        assert everything(run) == before
    assert command("doctor", "--run", run, "--repair").code == 0


def test_repair_needs_a_run() -> None:
    result = command("doctor", "--repair")
    assert result.code == 2 and "needs --run" in result.stderr


def test_no_torch_is_imported(run: Path) -> None:
    code = "import sys; from dapo_stages.entrypoints import cli; sys.argv = sys.argv[1:]\ntry: cli.main()\n" + (
        "except SystemExit: pass\nprint(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert fresh("dapo-stages", "doctor", "--run", run, code=code).stdout.endswith("\n[]\n")
