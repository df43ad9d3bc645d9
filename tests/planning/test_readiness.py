"""check: what would end a run is said at once, before anything starts, by the checks that the stages make."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from support.commands import ROOT, fresh, run
from support.pipeline import Run
from support.taught import write_rows

from dapo_stages.data.survey import survey
from dapo_stages.handoff import hashes
from dapo_stages.planning import launched, readiness

SMOKE = ROOT / "pipelines/smoke.yaml"
ZERO2, ZERO3 = (ROOT / f"pipelines/accelerate/{name}.yaml" for name in ("zero2", "zero3"))


@pytest.fixture(autouse=True)
def nothing_was_checked_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "place", lambda: tmp_path / "hashes.json")


def troubles(tmp_path: Path, *settings: str, stages: tuple[str, ...] = (), config: Path = SMOKE) -> list[str]:
    """What check finds, and its exit code."""
    options = [*(f"--set={one}" for one in settings), *(f"--stage={one}" for one in stages)]
    done = run("check", "--config", config, "--run", tmp_path / "run", "--json", *options)
    found: list[str] = json.loads(done.stdout)["troubles"]
    assert done.code == (3 if found else 0), done.stderr
    return found


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    closed = socket.socket()
    closed.bind(("127.0.0.1", 0))  # nobody listens
    url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    found = troubles(
        tmp_path,
        "data.source=nowhere.parquet",
        "weights.scheme=nowhere.py:look",
        "rollout.engine=server",
        "engines.server.reload=vllm",
        f"engines.server.url={url}",
        "train.optimizer=muon",
        stages=(f"TRAIN={ZERO2},no-such-python",),
    )
    closed.close()
    assert found[0] == "nowhere.parquet: no such file or folder. Correct the path, or name another dataset."
    assert found[1].startswith("weights.scheme: ") and "nowhere.py: the file does not exist." in found[1]
    assert found[2].startswith(f"{url}: no server answers there (") and "set engines.server.url" in found[2]
    assert found[3].startswith("TRAIN_PYTHON: no-such-python: no such program. ")
    assert found[4].startswith("train.optimizer: muon does not work in a launch that flattens weights")
    assert len(found) == 5


def test_nothing_is_wrong_with_the_smoke_run_and_torch_is_not_needed(tmp_path: Path) -> None:
    code = (
        "import sys; from dapo_stages.entrypoints import cli; sys.argv[:] = ['dapo-stages', *sys.argv[1:]]\n"
        "try: cli.main()\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    done = fresh("check", "--config", SMOKE, "--run", tmp_path / "run", code=code)
    assert done.stdout.splitlines() == ["nothing found that would end the run", "[]"], done.stderr
    assert run("check", "--config", SMOKE, "--run", tmp_path / "run", "--quiet").stdout == ""


def test_what_a_family_cannot_have_shows_before_a_rollout_is_paid_for(tmp_path: Path) -> None:
    (tmp_path / "qwen3_5_moe").mkdir()
    (tmp_path / "qwen3_5_moe/config.json").write_text('{"model_type": "qwen3_5_moe"}')
    name = f"model.name={tmp_path / 'qwen3_5_moe'}"
    found = troubles(tmp_path, name, "attention.vision_gradient=true", stages=(f"TRAIN={ZERO3},",))
    assert len(found) == 2
    assert "qwen3_5_moe: this model computes each completion in a row of its own" in found[0]
    assert "qwen3_5_moe: this model needs a row per completion, which a launch that splits its weights" in found[1]
    assert troubles(tmp_path, name, stages=(f"TRAIN={ZERO2},",)) == []
    served = troubles(tmp_path, name, "rollout.engine=server")
    assert served == [
        "rollout.engine: server does not support policies of architecture qwen3_5_moe (only qwen2_5_vl, qwen2_vl, "
        "qwen3_vl, qwen3_5). Set rollout.engine to transformers or vllm."
    ]
    (missing,) = troubles(tmp_path, f"model.name={tmp_path / 'nothing'}")
    assert "no config.json of a checkpoint in this folder. Set model.name" in missing


def test_columns_and_images_of_a_dataset_are_looked_for(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.parquet", [1, 2, 3])
    assert troubles(tmp_path, f"data.source={rows}") == []
    (column,) = troubles(tmp_path, f"data.source={rows}", "data.columns.solution=answer")
    assert "answer" in column and "data.columns.solution" in column
    paths = tmp_path / "paths.jsonl"
    paths.write_text("".join(f'{{"image": "{n}.png", "problem": "n?", "solution": "{n}"}}\n' for n in range(4)))
    (image,) = troubles(tmp_path, f"data.source={paths}")
    assert "0.png: the image file does not exist" in image
    (template,) = troubles(tmp_path, f"data.source={rows}", "sft.completion='{{ solution'")
    assert template.startswith("sft.completion: line 1: ")
    (sft,) = troubles(tmp_path, "sft.source=nowhere.parquet")
    assert sft.startswith("nowhere.parquet: no such file or folder.")


def test_what_passed_is_checked_again_only_if_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def asking(source: Any, data: Any) -> None:
        asked.append(data)
        survey(source, data)

    monkeypatch.setattr(readiness, "survey", asking)
    rows = write_rows(tmp_path / "rows.parquet", [1, 2, 3])
    for _ in range(2):
        troubles(tmp_path, f"data.source={rows}")
    assert len(asked) == 1
    write_rows(rows, [1, 2, 3, 4])
    troubles(tmp_path, f"data.source={rows}")
    troubles(tmp_path, f"data.source={rows}", "data.max_rows=2")
    assert len(asked) == 3


def test_a_launch_needs_its_gpus_and_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (none,) = troubles(tmp_path, "model.device=cuda")
    assert none.startswith("model.device: it is cuda, but there is no CUDA device.")
    monkeypatch.setattr(launched, "gpus", lambda: ["0", "1"])
    (few,) = troubles(tmp_path, stages=("ROLLOUT=2,", f"TRAIN={ZERO2},"))
    assert few.startswith("TRAIN_LAUNCH: 4 processes on this machine need a GPU each, but there are 2. ")
    assert troubles(tmp_path, "model.device=cpu", stages=("ROLLOUT=4,",)) == []
    assert troubles(tmp_path, stages=("ROLLOUT=1,,0", "TRAIN=1,,1")) == []
    (vllm,) = (
        one
        for one in troubles(
            tmp_path, "rollout.engine=vllm", "engines.vllm.tensor_parallel_size=2", stages=("ROLLOUT=2,,0,1",)
        )
        if "GPUs" in one
    )
    assert vllm.startswith(
        "engines.vllm: data_parallel_size=2 and tensor_parallel_size=2 need 4 GPUs, but ROLLOUT_GPUS"
    )
    fewer, elsewhere = troubles(tmp_path, stages=("ROLLOUT=2,,1", "TRAIN=1,,4"))
    assert fewer.startswith("ROLLOUT_LAUNCH: 2 processes on this machine need a GPU each, but ROLLOUT_GPUS names 1. ")
    assert elsewhere.startswith("TRAIN_GPUS: there is no GPU 4 that can be used, only 0, 1. ")
    (unknown,) = troubles(tmp_path, stages=("TRAIN=zero9,",))
    assert unknown.startswith("TRAIN_LAUNCH: zero9: cannot read the settings of this launch")


def test_a_run_that_does_not_fit_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six iterations keep all: weights (1,041,856 of 4 bytes) and two moments, 12.5 MB, and 5.2 MB of shards."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=95_000_000))
    (full,) = troubles(tmp_path, config=ROOT / "pipelines/embedded.yaml")
    assert "the run needs at least 0.106 GB on disk, but 0.095 GB are free. Free space, or lower keep" in full
    assert troubles(tmp_path, "keep.states=1", "keep.policies=1", config=ROOT / "pipelines/embedded.yaml") == []


def test_a_damaged_output_of_a_finished_run_shows(small_run: Run, tmp_path: Path) -> None:
    shutil.copytree(small_run.folder, tmp_path / "run")
    config = tmp_path / "run/config.yaml"
    assert troubles(tmp_path, config=config) == []
    with open(tmp_path / "run/iter-0001/weights/weights-00000.parquet", "ab") as file:
        file.write(b"more")
    (damaged,) = troubles(tmp_path, config=config)
    assert damaged.startswith(f"{tmp_path}/run/iter-0001/weights: damaged: ")
    assert f"Run dapo-stages weight-tokens --config {config}" in damaged and "--overwrite" in damaged
