"""A model named by folder or hub id: what init-policy saw of it is what every later command uses, or refuses to."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.commands import Result
from support.commands import run as command
from support.pipeline import Run, table

from dapo_stages.handoff.manifests import read_manifest, write_manifest
from dapo_stages.handoff.policy_folders import PolicyFolder

WEIGHTS = "model.safetensors"
NORM = "model.layers.0.input_layernorm.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture()
def model(small_run: Run, tmp_path: Path) -> Path:
    """The starting policy's checkpoint, as somebody else's folder."""
    return shutil.copytree(
        small_run.policy(0), tmp_path / "model", ignore=shutil.ignore_patterns("manifest.json", ".*")
    )


@pytest.fixture()
def run(small_run: Run, model: Path, tmp_path: Path) -> Path:
    """A run that starts from it."""
    small_run.command("init-policy", "--out", tmp_path / "run/policy", model__name=model)
    (tmp_path / "run/config.yaml").write_text(f"model: {{name: {model}}}\n")
    return tmp_path / "run"


def score(small_run: Run, run: Path) -> Result:
    rollouts = small_run.at(1) / "rollout"
    return small_run.attempt(
        "score-attention", "--policy", run / "policy", "--rollouts", rollouts, "--out", run / "out"
    )


def flip(path: Path) -> None:
    """One bit, size and mtime staying."""
    about, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2 + 3] ^= 0x40
    path.write_bytes(content)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def rewrite(model: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(model / WEIGHTS)
    change(tensors)
    save_file(tensors, model / WEIGHTS, {"format": "pt"})


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def refused(result: Result, *words: str) -> None:
    assert (result.code, result.stdout) == (3, ""), result.stderr
    assert "Traceback" not in result.stderr
    assert all(word in result.stderr.splitlines()[-1] for word in words), result.stderr


def test_its_files_are_recorded_and_nothing_else(run: Path, model: Path) -> None:
    about = read_manifest(run / "policy").policy
    assert {one["name"]: (one["bytes"], one["sha256"]) for one in about["files"]} == {
        path.name: (path.stat().st_size, digest(path)) for path in model.iterdir()
    }
    assert about["reference"] == str(model) and "revision" not in about


def test_a_flipped_bit_is_refused_by_the_next_stage(small_run: Run, run: Path, model: Path) -> None:
    assert score(small_run, run).code == 0
    shutil.rmtree(run / "out")
    before = digest(model / WEIGHTS)
    flip(model / WEIGHTS)
    now = digest(model / WEIGHTS)
    refused(score(small_run, run), str(model / WEIGHTS), before[:12], now[:12], "init-policy", "--overwrite")
    assert not (run / "out/manifest.json").exists()


@pytest.mark.parametrize("stage", ["rollout", "train-step", "evaluate", "prepare-data", "merge", "init-policy"])
def test_every_stage_that_opens_it_looks(stage: str, small_run: Run, run: Path, model: Path) -> None:
    path = model / ("tokenizer_config.json" if stage == "prepare-data" else WEIGHTS)
    flip(path)
    policy, data = ["--policy", run / "policy"], ["--data", small_run.folder / "data"]
    out = ["--out", run / ("policy" if stage == "init-policy" else "out")]
    arguments: dict[str, list[object]] = {
        "rollout": [*policy, *data, "--iteration", 1],
        "evaluate": [*policy, *data],
        "prepare-data": policy,
        "init-policy": ["--set", f"model.name={model}"],
        "train-step": [*policy, *small_run.train_inputs(1)[2:]],
        "merge": [*policy, "--policy", small_run.policy(1)],
    }
    if stage == "merge":
        refused(command(stage, *arguments[stage], *out), str(path))
    else:
        refused(small_run.attempt(stage, *arguments[stage], *out), str(path))


def test_status_and_doctor_say_so(small_run: Run, run: Path, model: Path) -> None:
    assert json.loads(command("status", "--run", run, "--json").stdout)["setup"]["policy"]["state"] == "done"
    sound = command("doctor", "--run", run)
    assert (sound.code, sound.stdout) == (0, f"sound: {len(list(model.iterdir()))} files match their manifests\n")
    flip(model / WEIGHTS)
    told = command("status", "--run", run)
    assert told.code == 0 and f"policy is damaged: {model / WEIGHTS}: has changed: expected " in told.stdout
    assert "init-policy --config" in told.stdout and "--overwrite" in told.stdout
    found = command("doctor", "--run", run, "--json")
    assert found.code == 3
    assert [one["where"] for one in json.loads(found.stdout)["findings"]] == [str(model / WEIGHTS)]


def test_what_goes_and_what_comes_is_named(small_run: Run, run: Path, model: Path) -> None:
    (model / "notes.txt").write_text("nobody's business")
    assert score(small_run, run).code == 0
    shutil.rmtree(run / "out")
    (model / "chat_template.json").write_text("{}")
    refused(score(small_run, run), f"{model}/chat_template.json: was added later: the policy refers to only ")
    (model / "chat_template.json").unlink()
    (model / "tokenizer.json").rename(model / "elsewhere")
    refused(score(small_run, run), f"{model}/tokenizer.json: no such file, but the policy refers to it")
    shutil.rmtree(model)
    refused(score(small_run, run), f"{model}: no such folder, but the policy refers to ")


def test_a_copy_in_its_place_is_the_same_model(small_run: Run, run: Path, model: Path) -> None:
    """Other inodes, other times, even of the future: the content decides."""
    copy = shutil.copytree(model, model.parent / "copy", copy_function=shutil.copyfile)
    shutil.rmtree(model)
    model.symlink_to(copy)
    for path in copy.iterdir():
        os.utime(path, (4e9, 4e9))
    assert score(small_run, run).code == 0
    assert "policy: done" in command("status", "--run", run).stdout


def test_another_model_makes_another_policy(small_run: Run, run: Path, model: Path) -> None:
    before = read_manifest(run / "policy").content_hash
    again = ["init-policy", "--out", run / "policy"]
    assert "init-policy: unchanged" in small_run.command(*again, model__name=model).stderr
    rewrite(model, lambda tensors: tensors[NORM].add_(1))
    refused(score(small_run, run), str(model / WEIGHTS))
    refused(small_run.attempt(*again, model__name=model), str(model / WEIGHTS), "Pass --overwrite")
    small_run.command(*again, "--overwrite", model__name=model)
    assert read_manifest(run / "policy").content_hash != before
    assert score(small_run, run).code == 0


def test_a_policy_of_an_older_version_goes_on_unchecked(small_run: Run, run: Path, model: Path) -> None:
    """It has no hashes; its own is the one it always had."""
    made = read_manifest(run / "policy")
    result = {"stage": "init-policy", "version": 1, "config": made.config, "seed": made.seed, "shards": []}
    text = json.dumps(result, sort_keys=True, separators=(",", ":"))
    about = {key: made.policy[key] for key in ("version", "model", "reference")}
    old = made.model_copy(update={"policy": about, "content_hash": hashlib.sha256(text.encode()).hexdigest()})
    write_manifest(run / "policy", old)
    rewrite(model, lambda tensors: tensors[NORM].mul_(0.99))
    assert score(small_run, run).code == 0
    said = command("status", "--run", run)
    assert said.stdout.count("cannot be checked") == 1 and "policy: done" in said.stdout
    doctor = command("doctor", "--run", run)
    assert doctor.code == 0 and doctor.stdout.count("no hashes are recorded") == 1


@pytest.mark.parametrize("files", [[], {}, 7, "x", [{"name": "../config.json", "bytes": 1, "sha256": "0"}], [{}]])
def test_a_list_that_is_none_is_refused(files: object, small_run: Run, run: Path) -> None:
    from faults import forged

    forged.rewrite(run / "policy", lambda values: values["policy"].update(files=files))
    refused(score(small_run, run), "no valid list of its files")
    assert command("status", "--run", run).code == 0
    assert command("doctor", "--run", run).code == 3


# ---- the base of an adapter


def test_the_base_of_an_adapter_is_checked(small_run: Run, run: Path, model: Path) -> None:
    lora = {"train__lora": "{rank: 2, alpha: 4, target_modules: [q_proj]}"}
    inputs = ["--policy", run / "policy", *small_run.train_inputs(1)[2:]]
    small_run.command("train-step", *inputs, "--out", run / "train", model__name=model, **lora)
    flip(model / WEIGHTS)
    rollouts = ["--rollouts", small_run.at(1) / "rollout", "--out", run / "out"]
    refused(small_run.attempt("score-attention", "--policy", run / "train/policy", *rollouts), str(model / WEIGHTS))


# ---- models of the hub


@pytest.fixture()
def hub(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub that cannot be reached, with the model in its cache: blobs, and links to them by commit."""
    cache = tmp_path / "cache/models--someone--tiny"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs/main").write_text("a" * 40)
    (cache / "blobs").mkdir()
    (cache / f"snapshots/{'a' * 40}").mkdir(parents=True)
    for path in model.iterdir():
        shutil.copy(path, cache / "blobs" / digest(path))
        (cache / f"snapshots/{'a' * 40}" / path.name).symlink_to(f"../../blobs/{digest(path)}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return cache


def test_a_hub_model_is_pinned(small_run: Run, hub: Path, tmp_path: Path) -> None:
    """Offline, and though the name stands for another commit since."""
    out = tmp_path / "run/policy"
    small_run.command("init-policy", "--out", out, model__name="someone/tiny")
    about = read_manifest(out).policy
    assert (about["reference"], about["revision"]) == ("someone/tiny", "a" * 40)
    shutil.copytree(hub / f"snapshots/{'a' * 40}", hub / f"snapshots/{'b' * 40}", symlinks=True)
    (hub / f"snapshots/{'b' * 40}/config.json").unlink()
    (hub / "refs/main").write_text("b" * 40)
    assert PolicyFolder(out).checkpoint().name == "a" * 40
    assert score(small_run, tmp_path / "run").code == 0
    scored = table(tmp_path / "run/out", "attention")
    assert (scored.status == table(small_run.at(1) / "attention", "attention").status).all()


def test_a_damaged_file_of_the_cache_is_named(small_run: Run, hub: Path, tmp_path: Path) -> None:
    small_run.command("init-policy", "--out", tmp_path / "run/policy", model__name="someone/tiny")
    weights = hub / f"snapshots/{'a' * 40}" / WEIGHTS
    flip(weights.resolve())
    refused(score(small_run, tmp_path / "run"), str(weights))
    weights.unlink()
    refused(score(small_run, tmp_path / "run"), str(weights), "no such file, but the policy refers to it")


def test_one_that_is_not_in_the_cache_is_named(small_run: Run, hub: Path, tmp_path: Path) -> None:
    result = small_run.attempt("init-policy", "--out", tmp_path / "policy", model__name="someone/else")
    refused(result, "someone/else: not a checkpoint folder, and cannot be downloaded from the hub")


def test_an_adapter_over_an_adapter_is_refused(small_run: Run, tmp_path: Path) -> None:
    """Above all one over itself, whose base would be looked for without an end."""
    from faults import forged

    for name, base in (("run/policy", "."), ("one", "../two"), ("two", "../one")):
        (tmp_path / name).mkdir(parents=True)
        forged.publish(tmp_path / name, "policy", policy={"version": 1, "base": base})
    refused(score(small_run, tmp_path / "run"), "must be a checkpoint, but is an adapter")
    rollouts = ["--rollouts", small_run.at(1) / "rollout", "--out", tmp_path / "out"]
    refused(small_run.attempt("score-attention", "--policy", tmp_path / "one", *rollouts), "but is an adapter")
