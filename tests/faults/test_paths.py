"""Paths that somebody else wrote stay inside the folder they are relative to."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image
from reporting import tiny_run
from support.commands import Result, run
from support.words import WordProcessor

from dapo_stages.config import Config, JudgeConfig
from dapo_stages.data.images import BadImage
from dapo_stages.data.sources import open_source
from dapo_stages.errors import ConfigError, DataError
from dapo_stages.handoff.manifests import read_manifest
from dapo_stages.handoff.plans import Plan
from dapo_stages.rewards.judging.judge import Judge
from faults import data_sets, forged
from faults.images import noise, saved
from faults.table import record

ROW = 13
IMAGE = saved(Image.fromarray(noise()))


def refused(result: Result, words: str) -> None:
    assert (result.code, result.stdout) == (3, ""), result.stderr
    assert words in result.stderr and "Traceback" not in result.stderr
    record(ROW, 1)


# ---- images of datasets

LEAVES, LINK = "the path is outside the dataset's folder", "the symbolic link leads outside the dataset's folder"
URL, MISSING = "the image is a URL, and single images are not downloaded", "the image file does not exist"
PATHS = {
    "../secret.png": LEAVES,
    "pics/../../secret.png": LEAVES,
    "pics/../pics/red.png": LEAVES,
    "{outside}/secret.png": LEAVES,
    "/dev/zero": LEAVES,
    "/proc/self/environ": LEAVES,
    "pics/red.png\0.txt": LEAVES,
    "link.png": LINK,
    "linked/secret.png": LINK,
    "zero.png": LINK,
    "environ.png": LINK,
    "https://example.com/a.png": URL,
    "file:///etc/passwd": LEAVES,
    "hf://datasets/a/b/c.png": URL,
    "s3://bucket/key.png": URL,
    "zip://red.png::pics.zip": URL,
    "data:image/png,AAAA": "expected a data URI in base64",
    "pics/gone.png": MISSING,
    "pics": MISSING,
    "pipe.png": MISSING,
    "~/secret.png": MISSING,
    "circle.png": "not a usable file name|the image file does not exist",
    "a" * 5000: "not a usable file name",
}


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset's folder with links out of it, a pipe, and a secret beside it."""
    outside = tmp_path_factory.mktemp("strange")
    folder = outside / "set"
    (folder / "pics").mkdir(parents=True)
    (folder / "pics/red.png").write_bytes(IMAGE)
    (outside / "secret.png").write_bytes(IMAGE)
    links = {"link.png": outside / "secret.png", "linked": outside, "circle.png": folder / "circle.png"}
    for name, target in (links | {"zero.png": Path("/dev/zero"), "environ.png": Path("/proc/self/environ")}).items():
        os.symlink(target, folder / name)
    os.mkfifo(folder / "pipe.png")
    return folder


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("kind", ["a.jsonl", "a.parquet"])
def test_an_image_outside_the_folder_is_not_read(kind: str, name: str, strange: Path) -> None:
    path = name.format(outside=strange.parent)
    if kind == "a.jsonl":
        (strange / kind).write_text(json.dumps({"image": path, "problem": "A or B?", "solution": "A"}))
    else:
        data_sets.write_rows(strange / kind, [path])
    source = open_source(Config.model_validate({"data": {"source": str(strange / kind)}}))
    row = next(source.rows("train"))
    with pytest.raises(BadImage, match=PATHS[name]) as caught:
        source.image(row, row.values["image"])
    assert str(caught.value).startswith(f"{strange / kind} row 0: ")
    record(ROW, 1)


def test_such_rows_are_dropped_and_counted(strange: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dapo_stages.stages.prepare_data._processor", lambda *_: WordProcessor())
    paths = [name.format(outside=strange.parent) for name in PATHS]
    table = data_sets.write_rows(strange / "all.parquet", ["pics/red.png", "pics/red.png", *paths])
    assert data_sets.prepare(table, tmp_path).code == 0
    counts = read_manifest(tmp_path / "data").counts
    assert (counts["train"] + counts["held_out"], counts["dropped_images"]) == (2, len(PATHS))


@pytest.mark.parametrize(
    "path",
    [
        "{secret}",
        "{secret}::hf://datasets/cats/colours@main/a",
        "file://{secret}::hf://datasets/cats/colours@main/a",
        "zip://a.png::file://{secret}::hf://datasets/cats/colours@main/a",
        "hf://datasets/other/private@main/a.png",
        "hf://datasets/cats/colours-private@main/a.png",
        "https://example.com/a.png",
        "../../secret.png",
    ],
)
def test_a_row_of_the_hub_cannot_name_files_of_this_machine(
    path: str, strange: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = {"image": datasets.Image(), "problem": datasets.Value("string"), "solution": datasets.Value("string")}
    cell = {"bytes": None, "path": path.format(secret=strange.parent / "secret.png")}
    stolen = datasets.Dataset.from_dict(
        {"image": [cell], "problem": ["A or B?"], "solution": ["A"]}, features=datasets.Features(features)
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: stolen)
    source = open_source(Config.model_validate({"data": {"source": "cats/colours"}}))
    row = next(source.rows("train"))
    with pytest.raises(BadImage, match="the path is outside the dataset"):
        source.image(row, row.values["image"])
    record(ROW, 1)


# ---- datasets themselves


@pytest.mark.parametrize("name", ["../elsewhere.arrow", "{outside}/elsewhere.arrow", "a/../../elsewhere.arrow"])
def test_a_saved_data_set_cannot_name_tables_elsewhere(name: str, tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"image": ["x"], "problem": ["A or B?"], "solution": ["A"]})
    rows.save_to_disk(tmp_path / "set")
    shutil.copy(next((tmp_path / "set").glob("*.arrow")), tmp_path / "elsewhere.arrow")
    state = json.loads((tmp_path / "set/state.json").read_text())
    state["_data_files"] = [{"filename": name.format(outside=tmp_path)}]
    (tmp_path / "set/state.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match=r"the file .*elsewhere.arrow' is outside this folder"):
        open_source(Config.model_validate({"data": {"source": str(tmp_path / "set")}}))
    record(ROW, 1)


def test_a_saved_data_set_cannot_have_its_splits_elsewhere(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"image": ["x"], "problem": ["A or B?"], "solution": ["A"]})
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "set")
    rows.save_to_disk(tmp_path / "elsewhere")
    (tmp_path / "set/dataset_dict.json").write_text('{"splits": ["../elsewhere"]}')
    config = {"data": {"source": str(tmp_path / "set"), "split": "../elsewhere"}}
    with pytest.raises(DataError, match=r"the file '../elsewhere' is outside this folder"):
        open_source(Config.model_validate(config))
    record(ROW, 1)


@pytest.mark.parametrize("source", ["/dev/zero", "file:///etc/passwd", "hf://datasets/a/b", "{folder}/pipe.png"])
def test_a_source_is_a_file_a_folder_or_a_name_on_the_hub(source: str, strange: Path, tmp_path: Path) -> None:
    result = data_sets.prepare(source.format(folder=strange), tmp_path)
    refused(result, ": no such file or folder. Correct the path, ")


# ---- files of a run

OUTSIDE = ["../victim.parquet", "{outside}/victim.parquet", "a/../../victim.parquet", "a\0b", ""]


def weigh(tiny: Path) -> Result:
    here = tiny / "iter-0001"
    folders = ["--rollouts", here / "rollout", "--attention", here / "attention", "--out", tiny / "out"]
    return run("weight-tokens", "--config", tiny / "config.yaml", *folders, "--iteration", 1)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_manifest_names_files_of_its_folder(name: str, tiny: Path) -> None:
    folder = tiny / "iter-0001/rollout"
    shutil.copy(folder / "completions-00000.parquet", folder.parent / "victim.parquet")
    named = name.format(outside=folder.parent)
    forged.rewrite(folder, lambda values: values["shards"][0].update(name=named))
    refused(weigh(tiny), f"{folder}/manifest.json: lists the file {named!r}, which is not inside {folder}.")


@pytest.mark.parametrize("name", OUTSIDE[:3])
def test_a_note_of_progress_removes_nothing_elsewhere(name: str, tiny: Path) -> None:
    """The same command carries on from the note of another run, whose list names a file outside."""
    victim = tiny / "victim.parquet"
    shutil.copy(tiny / "iter-0001/rollout/completions-00000.parquet", victim)
    plan = read_manifest(tiny / "iter-0001/weights")
    shard = {"name": name.format(outside=tiny), "rows": 8, "bytes": victim.stat().st_size, "sha256": "0" * 64}
    (tiny / "out").mkdir()
    note = {"fingerprint": plan.fingerprint, "shards": [shard]}
    (tiny / "out/.partial.json").write_text(json.dumps(note))
    result = weigh(tiny)
    assert result.code in {0, 3} and victim.exists()
    assert "victim" not in (tiny / "out/manifest.json").read_text() if result.code == 0 else True
    record(ROW, 1)


def test_a_part_made_by_a_link_is_not_followed_when_a_run_is_pruned(tiny: Path, tmp_path: Path) -> None:
    """A link inside an old output is removed, what it leads to stays."""
    (tiny / "keep.yaml").write_text("keep: {rollouts: 1}\n")
    for number in (1, 2):
        tiny_run.train(tiny, number)
    tiny_run.publish(Plan("report", tiny / "iter-0001/report", {}, 1), lambda output: None)
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.txt").write_text("years")
    os.symlink(tmp_path / "home/thesis.txt", tiny / "iter-0001/rollout/link.txt")
    assert run("prune", "--config", tiny / "keep.yaml", "--run", tiny).code == 0
    assert sorted(os.listdir(tiny / "iter-0001/rollout")) == [".lock", "manifest.json"]
    assert (tmp_path / "home/thesis.txt").read_text() == "years"
    record(ROW, 1)


# ---- checkpoints


@pytest.mark.parametrize("file", ["../weights.safetensors", "{outside}/weights.safetensors", "a/b.safetensors", 7])
@pytest.mark.parametrize("how", ["load", "merge"])
def test_an_index_names_files_beside_it(how: str, file: Any, checkpoint: Path, tmp_path: Path) -> None:
    from dapo_stages.config import ModelConfig
    from dapo_stages.models.checkpoints import Checkpoint
    from dapo_stages.models.policy_loading import load_policy

    folder = tmp_path / "policy"
    shutil.copytree(checkpoint, folder)
    shutil.move(folder / "model.safetensors", tmp_path / "weights.safetensors")
    file = file.format(outside=tmp_path) if isinstance(file, str) else file
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": file}}))
    with pytest.raises(DataError, match=r"weight_map names .*, which is not a safetensors file in this folder\."):
        if how == "load":
            load_policy(folder, ModelConfig(name="embedded", dtype="float32", device="cpu"))
        else:
            Checkpoint(folder).shapes  # noqa: B018
    record(ROW, 1)


@pytest.mark.parametrize("file", ["../optimizer.safetensors", "{outside}/optimizer.safetensors", ""])
def test_an_optimizer_state_is_read_from_its_own_folder(file: str, tmp_path: Path) -> None:
    from unittest.mock import Mock

    from dapo_stages.training.state import load_state

    (tmp_path / "state").mkdir()
    about = {"optimizer": "adamw", "weights": [], "files": {file.format(outside=tmp_path): []}}
    (tmp_path / "state/state.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"state\.json names .*, which is outside this folder"):
        load_state(Mock(optimizer="adamw", trained=[]), tmp_path / "state")
    record(ROW, 1)


# ---- configuration


@pytest.mark.parametrize(
    "path", ["../mine.py", "a/../../mine.py", "a/../mine.py", "{outside}/mine.py", "C:/mine.py", "..\\mine.py",
             "link.py", "linked/mine.py"]
)  # fmt: skip
def test_a_reward_comes_from_the_working_folder(
    path: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    for folder in (root, tmp_path):
        (folder / "mine.py").write_text("raise RuntimeError('was run')\n")
    os.symlink(tmp_path / "mine.py", root / "link.py")
    os.symlink(tmp_path, root / "linked")
    monkeypatch.chdir(root)
    named = path.format(outside=tmp_path)
    options = ["--policy", tiny / "policy", "--data", tiny / "data", "--iteration", 1, "--out", tiny / "out"]
    setting = f"rewards.plugins={json.dumps({'mine': f'{named}:f'})}"
    refused(
        run("rollout", "--config", tiny / "config.yaml", *options, "--set", setting),
        f"rewards.plugins.mine: {named!r} is outside the working folder {root}. Copy the file there and give a "
        "relative path without `..`.",
    )


@pytest.mark.parametrize("cache", ["../c.sqlite", "/tmp/c.sqlite", "linked/c.sqlite"])
def test_a_judges_cache_lies_in_the_working_folder(tmp_path: Path, cache: str) -> None:
    (tmp_path / "root").mkdir()
    os.symlink(tmp_path, tmp_path / "root/linked")
    with pytest.raises(ConfigError, match=r"rewards\.judge\.cache: .* is outside the working folder"):
        Judge(JudgeConfig(model="m", cache=cache), tmp_path / "root")
    record(ROW, 1)


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("file:///etc/passwd", "cannot read the configuration ("),
        ("https://example.com/run.yaml", "cannot read the configuration ("),
        ("hf://models/a/b.yaml", "cannot read the configuration ("),
        ("/dev/zero", "cannot read the configuration (not a regular file)"),
        ("/dev/stdin", "cannot read the configuration (not a regular file)"),
        ("pipe.yaml", "cannot read the configuration (not a regular file)"),
        (".", "cannot read the configuration (not a regular file)"),
        ("link.yaml", "cannot read the configuration (not a regular file)"),
    ],
)
def test_a_configuration_extends_files(base: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    stdin = os.dup(0)
    os.dup2(read, 0)  # /dev/stdin is then a pipe that nobody writes to
    os.mkfifo(tmp_path / "pipe.yaml")
    os.symlink("/dev/zero", tmp_path / "link.yaml")
    (tmp_path / "run.yaml").write_text(f"extends: {base}\n")
    try:
        refused(run("config", "--config", tmp_path / "run.yaml"), words)
    finally:
        os.dup2(stdin, 0)
        for descriptor in (read, write, stdin):
            os.close(descriptor)


def test_what_push_sends_lies_in_the_policy(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy's manifest that lists ~/.config/app.json, with its true checksum."""
    secret = tiny.parent / "app.json"
    secret.write_text('{"key": "hunter2"}')
    folder = tiny.parent / "policy"
    folder.mkdir()
    forged.publish(folder, "init-policy", names=("../app.json",))
    result = run("push", "--policy", folder, "--repo", "user/name", "--dry-run")
    refused(result, "lists the file '../app.json', which is not inside ")
