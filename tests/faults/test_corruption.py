"""Whatever happens to a file on its way is refused, and the file named: flipped bits, cuts, exchanges, edits.

Through the one way that stages read with; that each stage reads so is shown by a command for each of its inputs.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from reporting import tiny_run
from support.commands import run as command
from support.pipeline import Run

from dapo_stages.errors import DataError
from dapo_stages.handoff.manifests import Source, read_manifest
from faults.folders import EVERYTHING, KINDS, files_of, flips, name_of, publish, read, republish
from faults.table import record


def sizes(quick: int, full: int) -> pytest.MarkDecorator:
    """So many cases in `make test`, and in `make test-faults`."""
    return pytest.mark.parametrize("count", [quick, pytest.param(full, marks=pytest.mark.faults)])


def refused(folder: Path, kind: str, name: str) -> str:
    """Reading the folder is refused with a message that names the file."""
    with pytest.raises(DataError) as caught:
        read(folder, kind)
    assert str(caught.value).startswith(f"{folder / name}: "), str(caught.value)
    return str(caught.value)


@sizes(2, 14)
@pytest.mark.parametrize("kind", EVERYTHING)
def test_a_flipped_bit(kind: str, count: int, tmp_path: Path) -> None:
    names = files_of(publish(tmp_path, kind))
    for name in names:
        path = tmp_path / name
        whole = path.read_bytes()
        for place, damaged in flips(whole, count, f"{kind} {name}"):
            path.write_bytes(damaged)
            assert "has changed: it does not match its checksum" in refused(tmp_path, kind, name), place
        path.write_bytes(whole)
    read(tmp_path, kind)
    record(6, count * len(names), "bit flips in each kind of file")


@sizes(2, 8)
@pytest.mark.parametrize("kind", EVERYTHING)
def test_a_file_that_is_cut_or_longer(kind: str, count: int, tmp_path: Path) -> None:
    names = files_of(publish(tmp_path, kind))
    for name in names:
        path = tmp_path / name
        whole = path.read_bytes()
        for number in range(count):
            path.write_bytes(whole[: len(whole) * number // count] if number else whole + b"\0")
            assert "(it was truncated or replaced)" in refused(tmp_path, kind, name)
        path.unlink()
        assert "no such file, but the manifest lists it" in refused(tmp_path, kind, name)
        path.write_bytes(whole)
    read(tmp_path, kind)
    record(6, (count + 1) * len(names), "truncations")


@pytest.mark.parametrize("kind", EVERYTHING)
def test_files_that_changed_places(kind: str, tmp_path: Path) -> None:
    """The first two files of a folder exchanged; a file of another run; another run's manifest."""
    here, other = tmp_path / "here", tmp_path / "other"
    names = files_of(publish(here, kind))
    publish(other, kind, first=50)
    whole = {name: (here / name).read_bytes() for name in names}
    cases = 0
    if len(names) > 1:
        for name, instead in zip(names, (names[1], names[0]), strict=False):
            (here / name).write_bytes(whole[instead])
        refused(here, kind, names[0])
        cases += 1
    for name in names:
        for each, content in whole.items():
            (here / each).write_bytes(content)
        shutil.copy(other / name, here / name)
        refused(here, kind, name)
        cases += 1
    if len(names) > 1:
        shutil.copy(other / "manifest.json", here / "manifest.json")
        refused(here, kind, names[0])
        cases += 1
    record(6, cases, "exchanged files")


# The manifest


@sizes(2, 12)
@pytest.mark.parametrize("kind", EVERYTHING)
def test_a_flipped_bit_in_a_manifest(kind: str, count: int, tmp_path: Path) -> None:
    """It is refused, or it still says the same (an escape may be written in large or small letters)."""
    publish(tmp_path, kind)
    path = tmp_path / "manifest.json"
    whole, made = path.read_bytes(), read_manifest(tmp_path)
    for place, damaged in flips(whole, count, f"manifest {kind}"):
        path.write_bytes(damaged)
        try:
            assert read_manifest(tmp_path) == made, place
        except DataError as error:
            assert str(error).startswith(f"{path}: ") and ". Run " in str(error), place
    record(6, count, "bit flips in manifests")


OTHER_VALUES: dict[str, Any] = {
    "stage": "evaluate",
    "schema_version": 2,
    "package_version": "9.9",
    "config": {"a": 2},
    "seed": 2,
    "inputs": {"data": {"path": "elsewhere", "content_hash": "0" * 64}},
    "shards": [],
    "rewards": ["mine"],
    "counts": {"held_out": 1},
    "policy": {"version": 3},
    "started": "1970-01-01T00:00:00+00:00",
    "ended": "1970-01-01T00:00:00+00:00",
    "seconds": 1e9,
    "memory": 1,
    "processor_seconds": 1.5,
    "spent": {"work": 1.0},
    "content_hash": "0" * 64,
    "pruned": True,
    "checksum": "0" * 64,
}


@pytest.mark.parametrize("kind", ["completions", "policy"])
def test_an_edited_field_of_a_manifest(kind: str, tmp_path: Path) -> None:
    """Each field with another value, of another type, null, gone, renamed; a field more; each of a shard's."""
    made = publish(tmp_path, kind).manifest
    path = tmp_path / "manifest.json"
    whole = json.loads(path.read_text())
    assert whole.keys() == OTHER_VALUES.keys() == {*type(made).model_fields, "checksum"} - {"replaces"}
    edits = [{**whole, "replaces": ["0" * 64]}]
    edits += [{**whole, name: value} for name, value in OTHER_VALUES.items()]
    edits += [{**whole, name: [[]]} for name in whole]
    edits += [{**whole, name: None} for name in whole if name != "checksum"]
    edits += [{key: value for key, value in whole.items() if key != name} for name in whole if name != "checksum"]
    edits += [{f"{key}_" if key == name else key: value for key, value in whole.items()} for name in whole]
    edits += [{**whole, "note": ""}]
    for field, value in (("name", "a.parquet"), ("rows", 7), ("bytes", 7), ("sha256", "0" * 64)):
        first, *others = whole["shards"]
        instead: tuple[object, ...] = (value, None, [])
        edits += [{**whole, "shards": [{**first, field: changed}, *others]} for changed in instead]
        edits += [{**whole, "shards": [{key: one for key, one in first.items() if key != field}, *others]}]
    edits = [edited for edited in edits if edited != whole]
    for edited in edits:
        path.write_text(json.dumps(edited))
        with pytest.raises(DataError) as caught:
            read_manifest(tmp_path)
        assert str(caught.value).startswith(f"{path}: "), edited
    record(6, len(edits), "edited manifests")


@pytest.mark.parametrize("text", ['{"seconds": NaN}', "[" * 100_000, '{"seed": 1' + "0" * 5000 + "}", "\xff", '"a"'])
def test_a_manifest_that_no_reader_is_made_for(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=r"manifest\.json: not a valid manifest \("):
        read_manifest(tmp_path)
    record(6, 1, "edited manifests")


# A manifest that agrees with the damage: what the file itself still shows


@sizes(2, 16)
@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_that_the_manifest_knows_of(kind: str, count: int, tmp_path: Path) -> None:
    """In pages, which have checksums: the same rows or refused. In the footer: refused, or rows all the same."""
    publish(tmp_path, kind)
    wanted = read(tmp_path, kind)
    path = tmp_path / f"{name_of(kind)}-00000.parquet"
    whole = path.read_bytes()
    start, end = pages_of(path)
    for place, damaged in flips(whole, count, f"pages {kind}", start, end):
        path.write_bytes(damaged)
        assert _rows_or_refusal(tmp_path, kind, path) in (wanted, None), place
    for _, damaged in flips(whole, 4 * count, f"footer {kind}", end):
        path.write_bytes(damaged)
        _rows_or_refusal(tmp_path, kind, path)
    for number in range(count // 4):
        path.write_bytes(whole[: len(whole) * number // (count // 4)])
        assert _rows_or_refusal(tmp_path, kind, path) is None
    record(6, 5 * count + count // 4, "damage that the manifest agrees with")


def pages_of(path: Path) -> tuple[int, int]:
    """Where the pages of a file begin and end; its footer comes after."""
    with pq.ParquetFile(path) as file:
        groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
    chunks = [group.column(index) for group in groups for index in range(group.num_columns)]
    starts = [chunk.dictionary_page_offset or chunk.data_page_offset for chunk in chunks]
    return min(starts), max(start + chunk.total_compressed_size for start, chunk in zip(starts, chunks, strict=True))


def _rows_or_refusal(folder: Path, kind: str, path: Path) -> Any:
    republish(folder)
    try:
        return read(folder, kind)
    except DataError as error:
        assert str(error).startswith(f"{path}: "), str(error)
        return None


@pytest.mark.parametrize("kind", KINDS)
def test_exchanged_shards_that_the_manifest_knows_of(kind: str, tmp_path: Path) -> None:
    """20 rows where the manifest says 9: the numbers of rows are checked, whatever the checksums say."""
    publish(tmp_path, kind)
    one, two = (tmp_path / f"{name_of(kind)}-0000{number}.parquet" for number in (0, 1))
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    republish(tmp_path)
    assert "has 9 rows, but its manifest says 20" in refused(tmp_path, kind, one.name)
    record(6, 1, "exchanged files")


# Each stage, each of its inputs


def _flip(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()  # it may be a link to the original
    path.write_bytes(content[:-30] + bytes([content[-30] ^ 4]) + content[-29:])


def _copy(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to, copy_function=os.link)
    return to


# Consumer, its options of the second iteration as a function of the run, and the files it reads by part of a run.
READERS: dict[str, tuple[Callable[[Path, Path], list[object]], tuple[str, ...]]] = {
    "weight-tokens": (
        lambda run, out: [
            *("--rollouts", run / "iter-0002/rollout", "--attention", run / "iter-0002/attention", "--iteration", 2),
            *("--replay", run / "iter-0001/weights", "--out", out),
        ],
        (
            "iter-0002/rollout/prompts", "iter-0002/rollout/completions", "iter-0002/attention/attention",
            "iter-0001/weights/buffer", "iter-0001/weights/buffer-completions", "iter-0002/rollout/manifest.json",
            "iter-0002/attention/manifest.json", "iter-0001/weights/manifest.json",
        ),
    ),
    "report": (
        lambda run, out: ["--run", run, "--overwrite"],
        (
            "iter-0002/rollout/prompts", "iter-0002/rollout/completions", "iter-0002/attention/attention",
            "iter-0002/weights/weights", "iter-0002/train/metrics", "iter-0002/eval/completions",
            "iter-0002/eval/metrics.json", "iter-0002/rollout/manifest.json", "iter-0002/train/manifest.json",
            "iter-0002/eval/manifest.json",
        ),
    ),
    "inspect": (
        lambda run, out: ["--run", run, "--find", "disagree"],
        (
            "iter-0002/rollout/prompts", "iter-0002/rollout/completions", "iter-0002/attention/attention",
            "iter-0002/weights/weights",
        ),
    ),
    "compare-evals": (
        lambda run, out: [run / "iter-0001/eval", run / "iter-0002/eval"],
        ("iter-0001/eval/completions", "iter-0002/eval/completions", "iter-0002/eval/manifest.json"),
    ),
    "compare-weights": (
        lambda run, out: [
            *(run / "iter-0002/weights", run / "iter-0002/weights", "--rollouts", run / "iter-0002/rollout"),
            *("--out", out),
        ],
        ("iter-0002/weights/weights", "iter-0002/rollout/completions", "iter-0002/rollout/manifest.json"),
    ),
    "score-attention": (
        lambda run, out: [
            *("--policy", run / "iter-0001/train/policy", "--rollouts", run / "iter-0002/rollout", "--out", out)
        ],
        (
            "iter-0002/rollout/prompts", "iter-0002/rollout/completions", "iter-0001/train/policy/model.safetensors",
            "iter-0001/train/policy/manifest.json",
        ),
    ),
    "train-step": (
        lambda run, out: [
            *("--policy", run / "iter-0001/train/policy", "--rollouts", run / "iter-0002/rollout", "--out", out),
            *("--weights", run / "iter-0002/weights", "--state", run / "iter-0001/train/state"),
        ],
        (
            "iter-0002/rollout/prompts", "iter-0002/rollout/completions", "iter-0002/weights/weights",
            "iter-0001/train/policy/model.safetensors", "iter-0001/train/policy/tokenizer.json",
            "iter-0001/train/state/state.json", "iter-0001/train/state/optimizer",
            "iter-0001/train/state/manifest.json", "iter-0002/weights/manifest.json",
        ),
    ),
    "rollout": (
        lambda run, out: [
            *("--policy", run / "iter-0001/train/policy", "--data", run / "data", "--iteration", 2, "--out", out)
        ],
        ("data/train", "iter-0001/train/policy/model.safetensors", "data/manifest.json"),
    ),
    "evaluate": (
        lambda run, out: ["--policy", run / "iter-0002/train/policy", "--data", run / "data", "--out", out],
        ("data/held_out", "iter-0002/train/policy/model.safetensors", "iter-0002/train/policy/config.json"),
    ),
    "prepare-data": (
        lambda run, out: ["--policy", run / "iter-0001/train/policy", "--out", out],
        ("iter-0001/train/policy/tokenizer.json", "iter-0001/train/policy/manifest.json"),
    ),
    "merge": (
        lambda run, out: ["--policy", run / "policy", "--policy", run / "iter-0001/train/policy", "--out", out],
        ("iter-0001/train/policy/model.safetensors",),
    ),
}  # fmt: skip
_WITHOUT_CONFIG = {"inspect", "compare-evals", "compare-weights", "merge"}


@pytest.mark.faults
@pytest.mark.parametrize("stage", READERS)
def test_every_stage_refuses_every_damaged_input(stage: str, small_run: Run, tmp_path: Path) -> None:
    options, inputs = READERS[stage]
    config = [] if stage in _WITHOUT_CONFIG else small_run.options()
    for number, name in enumerate(inputs):
        run = _copy(small_run.folder, tmp_path / f"run{number}")
        if stage == "report":
            (run / "config.yaml").unlink()  # a link to the one of the shared run
            (run / "config.yaml").write_text("{}")
        path = _file(run, name)
        _flip(path)
        result = command(stage, *config, *options(run, tmp_path / f"out{number}"))
        assert result.code == 3, (name, result.stderr[-500:])
        said = result.stderr.splitlines()[-1]
        assert str(path) in said and ". Run " in said and said.endswith("."), result.stderr
        assert not (tmp_path / f"out{number}/manifest.json").exists()
    record(6, len(inputs), "commands on a damaged input")


def _file(run: Path, name: str) -> Path:
    """The file of that name, or the first of that kind: weights -> weights-00000.parquet."""
    path = run / name
    return path if path.suffix else min(path.parent.glob(f"{path.name}[-.]*"))


@pytest.mark.parametrize("name", READERS["report"][1])
def test_a_report_refuses_damage(name: str, tmp_path: Path) -> None:
    run = tiny_run.build(tmp_path / "run")
    path = _file(run, name)
    _flip(path)
    result = command("report", "--config", run / "config.yaml", "--run", run)
    assert result.code == 3 and str(path) in result.stderr.splitlines()[-1], result.stderr
    record(6, 1, "commands on a damaged input")


def test_status_says_which_manifest_is_damaged(tmp_path: Path) -> None:
    run = tiny_run.build(tmp_path / "run")
    _flip(run / "iter-0002/weights/manifest.json")
    result = command("status", "--run", run)
    assert result.code == 0 and "iteration 2, weights is damaged: " in result.stdout
    assert Source(run / "iter-0002/rollout").manifest.stage == "rollout"
    record(6, 1, "commands on a damaged input")
