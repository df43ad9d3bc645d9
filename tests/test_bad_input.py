"""Bad input, through the command line: exit code 3, and a message with file, found, needed and next move."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faults import data_sets
from reporting import tiny_run
from support.commands import Result, run
from support.rows import image, rows
from support.words import WordProcessor

from dapo_stages.handoff.manifests import read_manifest
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.schemas import schema_of
from dapo_stages.models.families import FAMILIES


@pytest.fixture()
def tiny(tmp_path: Path) -> Path:
    """A run of one finished iteration and the rollouts, attention and weights of a second."""
    return tiny_run.build(tmp_path / "tiny", last="weights")


def weigh(tiny: Path, *args: object, **other: Path) -> Result:
    here = tiny / "iter-0001"
    rollouts, attention = other.get("rollouts", here / "rollout"), other.get("attention", here / "attention")
    folders = ["--rollouts", rollouts, "--attention", attention, "--out", tiny / "out"]
    return run("weight-tokens", "--config", tiny / "config.yaml", *folders, "--iteration", 1, *args)


def refused(result: Result, message: str, out: Path | None = None) -> None:
    """Exit code 3, nothing on stdout, the message as the last line of stderr, no output."""
    assert (result.code, result.stdout) == (3, ""), result.stderr
    assert result.stderr.splitlines()[-1] == message
    assert out is None or not (out / "manifest.json").exists()


# Folders


def test_a_missing_folder(tiny: Path) -> None:
    refused(
        weigh(tiny, rollouts=tiny / "nowhere"),
        f"{tiny}/nowhere/manifest.json: no such file: there is no output of rollout. Run rollout first.",
        tiny / "out",
    )


def test_an_unfinished_folder(tiny: Path) -> None:
    (tiny / "iter-0001/attention/manifest.json").unlink()
    refused(
        weigh(tiny),
        f"{tiny}/iter-0001/attention/manifest.json: no such file: the output of score-attention is unfinished. Run "
        "score-attention again to finish it.",
    )


def test_a_folder_of_another_kind(tiny: Path) -> None:
    refused(
        weigh(tiny, attention=tiny / "iter-0001/rollout"),
        f"{tiny}/iter-0001/rollout/manifest.json: expected the output of score-attention, got the output of rollout. "
        "Name the right folder.",
    )


@pytest.mark.parametrize("command", ["rollout", "evaluate"])
def test_a_folder_that_is_no_policy(command: str, tiny: Path) -> None:
    number = ["--iteration", 1] if command == "rollout" else []
    folders = ["--policy", tiny / "data", "--data", tiny / "data", "--out", tiny / "out"]
    refused(
        run(command, "--config", tiny / "config.yaml", *folders, *number),
        f"{tiny}/data: expected a policy, got the output of prepare-data. Name the folder written by init-policy, "
        "or the policy folder inside one written by train-step.",
    )


def test_attention_of_other_rollouts(tiny: Path) -> None:
    refused(
        weigh(tiny, attention=tiny / "iter-0002/attention"),
        f"{tiny}/iter-0002/attention/manifest.json: was made from other rollouts ({tiny}/iter-0002/rollout), not from "
        f"{tiny}/iter-0001/rollout as it is now. Run score-attention on "
        f"{tiny}/iter-0001/rollout, or name the folder that belongs to it.",
    )


def test_attention_of_rollouts_that_were_made_again(tiny: Path) -> None:
    tiny_run.rollout(tiny, 1, seed=7)
    result = weigh(tiny)
    assert result.code == 3
    assert "attention/manifest.json: was made from other rollouts (" in result.stderr


def test_weights_of_other_rollouts(tiny: Path) -> None:
    one, two = tiny / "iter-0001", tiny / "iter-0002"
    folders = ["--policy", tiny / "policy", "--rollouts", one / "rollout", "--weights", two / "weights"]
    refused(
        run("train-step", "--config", tiny / "config.yaml", *folders, "--out", tiny / "out"),
        f"{two}/weights/manifest.json: was made from other rollouts ({two}/rollout), not from {one}/rollout as it is "
        f"now. Run weight-tokens on {one}/rollout, or name the folder that belongs to it.",
    )


def test_a_pruned_folder(tiny: Path) -> None:
    (tiny / "keep.yaml").write_text("keep: {rollouts: 1}\n")
    for number in (1, 2):
        tiny_run.train(tiny, number)
    tiny_run.publish(Plan("report", tiny / "iter-0001/report", {}, 1), lambda output: None)
    before = read_manifest(tiny / "iter-0001/rollout"), (tiny / "iter-0001/rollout/manifest.json").stat().st_mtime_ns
    assert run("prune", "--config", tiny / "keep.yaml", "--run", tiny).code == 0
    after = read_manifest(tiny / "iter-0001/rollout"), (tiny / "iter-0001/rollout/manifest.json").stat().st_mtime_ns
    assert after == (before[0].model_copy(update={"pruned": True}), before[1])
    assert sorted(os.listdir(tiny / "iter-0001/rollout")) == [".lock", "manifest.json"]
    refused(
        weigh(tiny),
        f"{tiny}/iter-0001/rollout: the files of this output were pruned. Run rollout with another --out to make them "
        "again, and raise the keep settings.",
    )


def test_a_prune_that_was_cut_off_is_finished_by_the_next_one(tiny: Path) -> None:
    (tiny / "keep.yaml").write_text("keep: {rollouts: 1}\n")
    for number in (1, 2):
        tiny_run.train(tiny, number)
    tiny_run.publish(Plan("report", tiny / "iter-0001/report", {}, 1), lambda output: None)
    folder = tiny / "iter-0001/attention"
    left = (folder / "attention-00000.parquet").read_bytes()
    run("prune", "--config", tiny / "keep.yaml", "--run", tiny)
    (folder / "attention-00000.parquet").write_bytes(left)
    result = run("prune", "--config", tiny / "keep.yaml", "--run", tiny)
    assert result.stderr == f"prune: removing the files of {folder}\n"
    assert sorted(os.listdir(folder)) == [".lock", "manifest.json"]
    assert run("prune", "--config", tiny / "keep.yaml", "--run", tiny).stderr == ""


# Files


def test_a_truncated_file(tiny: Path) -> None:
    path = tiny / "iter-0001/rollout/completions-00000.parquet"
    whole = path.stat().st_size
    os.truncate(path, whole // 2)
    refused(
        weigh(tiny),
        f"{path}: has {whole // 2} bytes, expected {whole} (it was truncated or replaced). Run rollout again.",
        tiny / "out",
    )


def test_a_column_that_is_missing(tiny: Path) -> None:
    """Written by some other program that keeps manifests, but not the schema."""
    schema = schema_of("completions")
    short = schema.remove(schema.get_field_index("finish_reason"))

    def fill(output: Any) -> None:
        output.write("prompts", 0, rows(schema_of("prompts"), 1))
        path = output.folder / "completions-00000.parquet"
        pq.write_table(pa.Table.from_pylist(list(rows(short, 1)), schema=short), path)
        output.add_files(path.name)

    tiny_run.publish(
        Plan("rollout", tiny / "iter-0001/rollout", {"iteration": 1, "rollout": {"prompts_per_iteration": 2}}, 1), fill
    )
    tiny_run.scores(tiny, 1)
    refused(
        weigh(tiny),
        f"{tiny}/iter-0001/rollout/completions-00000.parquet: missing columns: finish_reason (found {len(short)} "
        "columns). Run rollout again.",
    )


def test_an_empty_training_table(tiny: Path) -> None:
    """tiny's data folder has no prompts at all."""
    folders = ["--policy", tiny / "policy", "--data", tiny / "data", "--iteration", 1, "--out", tiny / "out"]
    refused(
        run("rollout", "--config", tiny / "config.yaml", *folders),
        f"{tiny}/data: no training prompts. Run prepare-data with data.held_out_fraction below 1.",
        tiny / "out",
    )


# Configuration


def test_an_unknown_key(tiny: Path) -> None:
    result = weigh(tiny, "--set", "weights.smoth_sigma=1")
    assert (result.code, result.stdout) == (3, "")
    assert result.stderr == (
        f"{tiny}/config.yaml: weights.smoth_sigma is not a setting (did you mean weights.smooth_sigma?)\n"
        "Fix the file, or the --set option, and run the command again.\n"
    )
    assert not (tiny / "out").exists()


def test_a_value_out_of_range(tiny: Path) -> None:
    result = weigh(tiny, "--set", "weights.smooth_sigma=-1")
    assert (result.code, result.stdout) == (3, "")
    assert result.stderr == (
        f"{tiny}/config.yaml: weights.smooth_sigma must be greater than or equal to 0 (got -1)\n"
        "Fix the file, or the --set option, and run the command again.\n"
    )


# Datasets


@pytest.fixture()
def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """prepare-data of a Parquet file with the given images, one to a row."""
    monkeypatch.setattr("dapo_stages.stages.prepare_data._processor", lambda *_: WordProcessor())

    def command(images: list[bytes], *args: object) -> Result:
        return data_sets.prepare(data_sets.write_rows(tmp_path / "rows.parquet", images), tmp_path, *args)

    return command


def test_a_data_set_without_rows(prepare: Any, tmp_path: Path) -> None:
    refused(
        prepare([]),
        f"{tmp_path}/rows.parquet: the dataset has no rows. Set data.source to another one.",
        tmp_path / "data",
    )


def test_a_data_set_that_is_not_there(prepare: Any, tmp_path: Path) -> None:
    refused(
        prepare([image()], "--set", f"data.source={tmp_path}/nowhere.parquet"),
        f"{tmp_path}/nowhere.parquet: no such file or folder. Correct the path, or name another dataset.",
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["data.template=Q {{ problem"], "data.template: line 1: unexpected end of template"),
        (["data.template=Q {{ hint }}"], "data.template: 'hint' is undefined. Use only the columns that there are: "),
        (
            ["data.image_root=nowhere"],
            "nowhere: no such folder. Set data.image_root to the folder that contains the images.",
        ),
        (
            ["data.columns.options=choices"],
            "no column `choices` with the options (the columns are image, problem, solution). Set ",
        ),
        (
            ["data.columns.problem=solution"],
            "the solution is A, but the question shows no options). Set data.columns.options=",
        ),
        (["data.held_out_source=nowhere.jsonl"], "nowhere.jsonl: no such file or folder. Correct the path, "),
        (["data.sources={a b: {source: x}}"], "data.sources"),
        (
            ["rollout.source_shares={a: 1}"],
            "rollout.source_shares must name the datasets of data.sources (none), got a",
        ),
        (
            ["rollout.informative.reward=gone"],
            "rollout.informative.reward must be one of accuracy, format, overlong, total",
        ),
    ],
)
def test_settings_that_do_not_fit_the_data(settings: list[str], words: str, prepare: Any, tmp_path: Path) -> None:
    result = prepare([image(), image()], *(part for one in settings for part in ("--set", one)))
    assert (result.code, result.stdout) == (3, "") and words in result.stderr, result.stderr
    assert not list(tmp_path.glob("data/*.parquet"))


# Checkpoints


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("gpt2", {"architectures": ["GPT2LMHeadModel"], "n_embd": 8, "n_head": 2, "n_layer": 1}),
        ("bert", {"architectures": ["BertModel"], "hidden_size": 8, "num_attention_heads": 2}),
    ],
)
def test_a_checkpoint_that_reads_no_images(architecture: str, config: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / architecture
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": architecture, **config}))
    (tmp_path / "run.yaml").write_text(f"model: {{name: {folder}}}\n")
    refused(
        run("init-policy", "--config", tmp_path / "run.yaml", "--out", tmp_path / "policy"),
        f"{folder}: architecture `{architecture}` is not a decoder that reads images and writes text. Set model.name "
        f"to one, preferably one whose completions share their prompt ({', '.join(FAMILIES)}).",
        tmp_path / "policy",
    )


def test_a_checkpoint_folder_without_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "run.yaml").write_text(f"model: {{name: {tmp_path}/empty}}\n")
    result = run("init-policy", "--config", tmp_path / "run.yaml", "--out", tmp_path / "policy")
    assert (result.code, result.stdout) == (3, "")
    assert result.stderr.startswith(f"{tmp_path}/empty/config.json: cannot read it as a JSON object (No such file")
    assert not (tmp_path / "policy/manifest.json").exists()
