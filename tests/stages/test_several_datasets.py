"""Two datasets in one run: their prompts, their shares, and the figures of each."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image
from support.pipeline import Run, table

from dapo_stages.data.chat import SYSTEM_PROMPTS
from dapo_stages.handoff.manifests import Source
from dapo_stages.reporting.iteration.figures import collect
from dapo_stages.reporting.page.curves import curves

SETTINGS = {
    "data__min_image_size": 28,
    "rollout__dynamic_sampling": "false",
    "rollout__prompts_per_iteration": 8,
    "rollout__source_shares": "{letters: 3, numbers: 1}",
    "rewards__plugins": "{turn: turn.py:turn}",
}


@pytest.fixture(scope="module")
def folder(small_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of two datasets, a rollout, its attention and an evaluation."""
    here = tmp_path_factory.mktemp("datasets")
    image = io.BytesIO()
    Image.new("RGB", (56, 56), "red").save(image, "PNG")
    shown = base64.b64encode(image.getvalue()).decode()
    letters = [{"image": shown, "problem": f"{at}: A or B?", "solution": "AB"[at % 2]} for at in range(40)]
    numbers = [{"image": None, "question": f"{at} and 1?", "solution": at + 1} for at in range(20)]
    for name, rows in (("letters", letters), ("numbers", numbers)):
        (here / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (here / "turn.py").write_text("def turn(completions, rows):\n    return [row['sample'] for row in rows]\n")
    sources = {
        "letters": {"source": str(here / "letters.jsonl"), "held_out_fraction": 0.2},
        "numbers": {
            "source": str(here / "numbers.jsonl"),
            "columns": {"problem": "question"},
            "template": "{{ problem }} Count.",
            "held_out_fraction": 0.2,
        },
    }
    settings = {"data__sources": json.dumps(sources), **SETTINGS}
    policy, data, rollout = small_run.policy(0), here / "data", here / "rollout"
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(here)
        small_run.command("prepare-data", "--policy", policy, "--out", data, **settings)
        inputs = ["--policy", policy, "--data", data, "--iteration", 1]
        small_run.command("rollout", *inputs, "--out", rollout, **settings)
        inputs = ["--policy", policy, "--rollouts", rollout]
        small_run.command("score-attention", *inputs, "--out", here / "attention", **settings)
        small_run.command("evaluate", "--policy", policy, "--data", data, "--out", here / "eval", **settings)
    return here


def test_each_dataset_has_its_own_prompts(folder: Path) -> None:
    train = table(folder / "data", "train")
    assert train.prompt_id.is_unique and set(train.source) == {"letters", "numbers"}
    by_dataset = train.groupby("source")
    assert train.prompt_id.map(lambda name: name.split("-")[1]).equals(train.source)
    assert set(by_dataset.get_group("letters").solution) == {"A", "B"}
    numbers = by_dataset.get_group("numbers")
    assert numbers.problem.str.fullmatch(r"\d+ and 1\? Count\.").all()
    assert numbers.prompt_text.str.contains("a number, an expression").all()
    held_out = table(folder / "data", "held_out")
    assert held_out.labels.map(json.loads).equals(held_out.source.map(lambda name: {"dataset": name}))
    counts = Source(folder / "data").manifest.counts
    assert counts["understood"]["letters"]["solutions"] == {"letters": 40}
    assert counts["understood"]["numbers"]["solutions"] == {"numbers": 20}
    assert counts["prompting"] == Source(folder / "rollout").manifest.counts["prompting"] == [
        {"dataset": "letters", "system_prompt": SYSTEM_PROMPTS["letters"], "template": None},
        {"dataset": "numbers", "system_prompt": SYSTEM_PROMPTS["free"], "template": "{{ problem }} Count."},
    ]  # fmt: skip


def test_a_rollout_samples_them_in_their_shares(folder: Path) -> None:
    prompts = table(folder / "rollout", "prompts")
    assert prompts.source.value_counts().to_dict() == {"letters": 6, "numbers": 2}


def test_a_benchmark_alone_is_evaluated_whole_and_not_trained_on(small_run: Run, folder: Path, tmp_path: Path) -> None:
    policy, data = small_run.policy(0), tmp_path / "data"
    benchmark = {"data__source": folder / "letters.jsonl", "data__held_out_fraction": 1}
    small_run.command("prepare-data", "--policy", policy, "--out", data, **benchmark)
    small_run.command("evaluate", "--policy", policy, "--data", data, "--out", tmp_path / "eval")
    assert json.loads((tmp_path / "eval/metrics.json").read_text())["questions"] == 40
    inputs = ["--policy", policy, "--data", data, "--iteration", 1]
    result = small_run.attempt("rollout", *inputs, "--out", tmp_path / "rollout")
    assert result.code == 3 and "no training prompts" in result.stderr


def test_figures_tell_them_apart(folder: Path) -> None:
    parts = {"rollout": "rollout", "attention": "attention", "eval": "eval"}
    found = collect(1, {part: Source(folder / name) for part, name in parts.items()})
    prompts = table(folder / "rollout", "prompts").set_index("group_id")
    completions = table(folder / "rollout", "completions")
    right = completions.groupby(completions.group_id.map(prompts.source)).reward_accuracy.mean()
    assert {name: part["accuracy"] for name, part in found["datasets"].items()} == pytest.approx(right.to_dict())
    attention = table(folder / "attention", "attention")
    attention = attention[attention.status == "ok"]
    dataset = attention.completion_id.str.rsplit("-", n=1).str[0].map(prompts.source)
    vgr = attention.vgr_all.groupby(dataset).mean().to_dict()
    assert vgr.keys() == {"letters"}  # the others have no image
    assert found["datasets"]["letters"]["vgr"] == pytest.approx(vgr["letters"])
    assert "vgr" not in found["datasets"]["numbers"]
    assert found["eval"]["by_dataset"].keys() == {"letters", "numbers"}
    titles = {chart.title for chart in curves([found], {})}
    assert {
        "Rollout accuracy by dataset", "Kept prompts by dataset", "VGR by dataset, all layers",
        "Held-out accuracy by dataset",
    } <= titles  # fmt: skip
