"""train-step's reference: it moves toward the policy when that is due, and the next step reads it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from reporting import tiny_run
from safetensors.torch import load_file
from support.commands import run as command
from support.make import dry, with_makefile
from support.pipeline import Run, metrics, table

from dapo_stages.handoff.manifests import read_manifest
from dapo_stages.handoff.outputs import Output
from dapo_stages.handoff.plans import Plan
from dapo_stages.runs import run_folder
from dapo_stages.runs.commands import command as next_command

EVERY_STEP = {"train__beta": 0.1, "train__reference_update_every": 1, "train__reference_mixup_alpha": 0.25}
LORA = {"train__lora": "{rank: 4, alpha: 8, target_modules: [q_proj, v_proj]}"}


def train(run: Run, out: Path, number: int, *more: object, **settings: object) -> Path:
    run.command("train-step", *run.train_inputs(number), *more, "--out", out, **settings)
    return out


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def moved(small_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A train-step whose reference, at first the starting policy, moves by a quarter."""
    out = tmp_path_factory.mktemp("moved") / "train"
    return train(small_run, out, 1, "--reference", small_run.policy(0), **EVERY_STEP)


def test_the_reference_is_the_mixture_of_the_policy_and_the_old_one(small_run: Run, moved: Path) -> None:
    before, policy, found = (
        weights_of(small_run.policy(0)),
        weights_of(moved / "policy"),
        weights_of(moved / "reference"),
    )
    assert found.keys() == before.keys() == policy.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, 0.25 * policy[name] + 0.75 * before[name], atol=1e-7, rtol=1e-6)
    assert any(not torch.equal(found[name], before[name]) for name in found)


def test_a_bfloat16_policy_moves_a_reference_of_float32(small_run: Run, tmp_path: Path) -> None:
    """The policy has no tied head of its own, which the starting policy would lack."""
    start = small_run.policy(0)
    out = train(small_run, tmp_path / "train", 1, "--reference", start, **EVERY_STEP, model__dtype="bfloat16")
    before, policy, found = weights_of(start), weights_of(out / "policy"), weights_of(out / "reference")
    assert found.keys() == policy.keys() == before.keys()
    for name, value in found.items():
        wanted = 0.25 * policy[name].float() + 0.75 * before[name]
        torch.testing.assert_close(value.float(), wanted, atol=0, rtol=2**-8)


def test_the_reference_is_a_policy_of_its_own(small_run: Run, moved: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    assert AutoModelForImageTextToText.from_pretrained(moved / "reference").num_parameters() > 1e5
    manifest = read_manifest(moved / "reference", "reference")
    assert manifest.policy["version"] == 1 and "content_hash" not in manifest.policy
    whole = read_manifest(moved)
    assert {f"reference/{shard.name}" for shard in manifest.shards} < {shard.name for shard in whole.shards}
    data = ["--policy", moved / "reference", "--data", small_run.folder / "data"]
    small_run.command("evaluate", *data, "--out", tmp_path / "eval")


def test_the_next_step_stays_near_the_new_reference(small_run: Run, moved: Path, tmp_path: Path) -> None:
    """A policy that is its own reference has no KL; the further it moved away, the more it has."""
    first = {}
    for name, reference in (("itself", small_run.policy(1)), ("old", small_run.policy(0))):
        out = train(small_run, tmp_path / name, 2, "--reference", reference, train__beta=0.1)
        first[name] = metrics(out).kl[0]
        assert not (out / "reference").exists()
    settings = EVERY_STEP | {"train__reference_mixup_alpha": 1}
    replaced = train(small_run, tmp_path / "replaced", 1, "--reference", small_run.policy(0), **settings)
    assert weights_of(replaced / "reference").keys() == weights_of(replaced / "policy").keys()
    assert all(
        torch.equal(value, weights_of(replaced / "policy")[name])
        for name, value in weights_of(replaced / "reference").items()
    )
    new = train(small_run, tmp_path / "new", 2, "--reference", moved / "reference", train__beta=0.1)
    assert first["itself"] == pytest.approx(0, abs=1e-9)
    assert 0 < metrics(new).kl[0] < first["old"]


def test_it_moves_only_where_it_falls_due_and_there_is_a_kl_term(small_run: Run, tmp_path: Path) -> None:
    reference = ["--reference", small_run.policy(0)]
    second = EVERY_STEP | {"train__reference_update_every": 2}
    assert not (train(small_run, tmp_path / "one", 1, *reference, **second) / "reference").exists()
    assert (train(small_run, tmp_path / "two", 2, *reference, **second) / "reference/manifest.json").exists()
    none = EVERY_STEP | {"train__beta": 0}
    assert not (train(small_run, tmp_path / "three", 1, **none) / "reference").exists()


def test_the_same_step_leaves_the_same_reference_and_an_interrupted_one_is_completed(
    small_run: Run, moved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dapo_stages.models import merging

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    inputs = [*small_run.train_inputs(1), "--reference", small_run.policy(0), "--out", tmp_path / "train"]
    with monkeypatch.context() as patched:
        patched.setattr(merging, "copy_beside", full)
        with pytest.raises(OSError, match="no space"):
            small_run.attempt("train-step", *inputs, **EVERY_STEP)
    assert not (tmp_path / "train/manifest.json").exists()
    small_run.command("train-step", *inputs, **EVERY_STEP)
    assert read_manifest(tmp_path / "train").content_hash == read_manifest(moved).content_hash


def test_an_adapter_moves_the_reference_by_what_it_makes_of_the_weights(small_run: Run, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    start = small_run.policy(0)
    one = train(small_run, tmp_path / "one", 1, "--reference", start, **LORA, **EVERY_STEP)
    inputs = ["--policy", one / "policy", *small_run.train_inputs(2)[2:], "--reference", one / "reference"]
    small_run.command("train-step", *inputs, "--out", tmp_path / "two", **LORA, **EVERY_STEP)
    base = AutoModelForImageTextToText.from_pretrained(start)
    wanted = {name: value.clone() for name, value in base.state_dict().items()}
    for folder in ("one", "two"):
        base = AutoModelForImageTextToText.from_pretrained(start)
        policy = PeftModel.from_pretrained(base, tmp_path / folder / "policy").merge_and_unload().state_dict()
        wanted = {name: 0.25 * policy[name] + 0.75 * value for name, value in wanted.items()}
        found = AutoModelForImageTextToText.from_pretrained(tmp_path / folder / "reference").state_dict()
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5)


def test_what_cannot_be_mixed_is_refused_before_training(
    small_run: Run, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    fill_with(other, checkpoints("qwen2_vl"))
    inputs = [*small_run.train_inputs(1), "--out", tmp_path / "train"]
    result = small_run.attempt("train-step", *inputs, "--reference", other, **EVERY_STEP)
    assert result.code == 3 and "Merge policies of one run" in result.stderr and "updates" not in result.stderr
    low = EVERY_STEP | LORA | {"model__quantization": "nf4"}
    result = small_run.attempt("train-step", *inputs, "--reference", small_run.policy(0), **low)
    assert (
        result.code == 3 and "train.reference_update_every: does not work with model.quantization nf4" in result.stderr
    )


def fill_with(folder: Path, checkpoint: Path) -> None:
    """A policy folder of another shape."""

    def fill(output: Output) -> None:
        for path in checkpoint.iterdir():
            shutil.copy(path, output.folder)
        output.add_files(*(path.name for path in checkpoint.iterdir()))

    tiny_run.publish(Plan("init-policy", folder, {}, 0), fill)


# The chain


def left_references(run: Path, *numbers: int) -> None:
    for number in numbers:
        folder = run / f"iter-{number:04d}/train/reference"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")


def test_make_and_status_give_each_step_the_newest_reference_before_it(tmp_path: Path) -> None:
    with_makefile(tmp_path)
    (tmp_path / "run.yaml").write_text("train: {beta: 0.1}\n")
    run = tmp_path / "training_logs/t"
    left_references(run, 2, 4)
    words = [line.split() for line in dry(tmp_path, "iterate", "ITERS=5", "CONFIG=run.yaml") if "--reference" in line]
    found = [line[line.index("--reference") + 1].removeprefix("training_logs/t/") for line in words]
    wanted = ["policy", "policy", *["iter-0002/train/reference"] * 2, "iter-0004/train/reference"]
    assert found == wanted
    (run / "config.yaml").write_text("train: {beta: 0.1}\n")
    for number, reference in enumerate(wanted, start=1):
        assert f"--reference {run}/{reference} " in next_command(run_folder.Run(run), number, "train") + " "
    (run / "config.yaml").write_text("train: {beta: 0}\n")
    assert "--reference" not in next_command(run_folder.Run(run), 3, "train")
    assert not any("--reference" in line for line in dry(tmp_path, "iterate", "ITERS=5"))


def test_the_reference_that_is_still_needed_is_not_pruned(tmp_path: Path) -> None:
    run = tiny_run.build(tmp_path / "run")
    for number in range(1, 6):
        folder = run / f"iter-{number:04d}"
        tiny_run.publish(Plan("train-step", folder / "train", {}, number), lambda output: None)
        tiny_run.publish(Plan("report", folder / "report", {}, 1), lambda output: None)
        if number < 4:
            tiny_run.publish(Plan("reference", folder / "train/reference", {}, number), write_something)
    keep = ("--set", "keep.policies=1", "--set", "keep.best=false")
    assert command("prune", "--config", run / "config.yaml", "--run", run, *keep).code == 0
    assert [path.parts[-4] for path in sorted(run.glob("iter-*/train/reference/weights.bin"))] == ["iter-0003"]
    assert read_manifest(run / "iter-0002/train/reference").pruned


def write_something(output: Output) -> None:
    (output.folder / "weights.bin").write_bytes(b"weights")
    output.add_files("weights.bin")


# What an iteration's metrics say of the data


def test_metrics_say_where_an_updates_groups_come_from(small_run: Run) -> None:
    found = metrics(small_run.at(2) / "train")
    rollouts, weights = table(small_run.at(2) / "rollout", "completions"), table(small_run.at(2) / "weights", "weights")
    assert np.allclose(found.truncated_share, (rollouts.finish_reason == "length").mean())
    used = weights[weights.in_loss]
    assert found.groups.sum() == used.group_id.nunique()
    assert found.replayed_groups.sum() == used[used.source == "replay"].group_id.nunique()
    rewards = weights[weights.source == "fresh"].groupby("group_id").reward
    assert np.allclose(found.informative_share, (rewards.std() > 1e-6).mean())
    assert {"clip_dual", "ratio_min", "weight_mean", "is_weight_max", "is_capped", "update_kl"} <= set(found)
    assert found.kl.isna().all()  # no reference
