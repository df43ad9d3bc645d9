"""Manifests: what a folder's identity depends on, and what is refused on reading."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.rows import rows

from dapo_stages.errors import DataError
from dapo_stages.handoff.manifests import Manifest, Source, mark_pruned, read_manifest, remembered, write_manifest
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.resuming import open_output
from dapo_stages.handoff.schemas import schema_of


def make(out: Path, stage: str = "rollout", count: int = 3, seed: int = 1, **more: Any) -> Manifest:
    """A finished output with one metrics file of `count` rows."""
    with open_output(Plan(stage, out, more.pop("config", {"rollout": {"n": 8}}), seed, **more)) as output:
        assert output is not None
        output.write("metrics", None, rows(schema_of("metrics"), count))
        output.counts = {"rows": count}
        return output.publish()


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads((folder / "manifest.json").read_text())
    change(values)
    (folder / "manifest.json").write_text(json.dumps(values))


# The content hash


def test_the_same_work_has_the_same_hash_whenever_and_wherever_it_is_done(tmp_path: Path) -> None:
    source = make(tmp_path / "data", "prepare-data") and Source(tmp_path / "data")
    one = make(tmp_path / "a", inputs={"data": source})
    os.rename(tmp_path / "data", tmp_path / "moved")
    other = make(tmp_path / "deep" / "b", inputs={"data": Source(tmp_path / "moved")})
    assert one.content_hash == other.content_hash
    assert one.inputs["data"].path != other.inputs["data"].path
    write_manifest(
        tmp_path / "a", one.model_copy(update={"started": "1970-01-01T00:00:00", "ended": "", "seconds": 9e9})
    )
    assert read_manifest(tmp_path / "a").content_hash == other.content_hash


@pytest.mark.parametrize(
    "difference",
    [{"count": 4}, {"seed": 2}, {"config": {"rollout": {"n": 9}}}, {"stage": "evaluate"}],
    ids=lambda difference: next(iter(difference)),
)
def test_rows_seed_configuration_and_stage_change_the_hash(difference: dict[str, Any], tmp_path: Path) -> None:
    assert make(tmp_path / "a").content_hash != make(tmp_path / "b", **difference).content_hash


def test_an_output_names_what_it_was_made_from(tmp_path: Path) -> None:
    made = make(tmp_path / "data", "prepare-data")
    manifest = make(tmp_path / "a", inputs={"data": Source(tmp_path / "data")})
    assert manifest.inputs["data"].path == str(tmp_path / "data")
    assert manifest.inputs["data"].content_hash == made.content_hash
    (shard,) = manifest.shards
    assert (shard.name, shard.rows, shard.bytes) == (
        "metrics.parquet",
        3,
        (tmp_path / "a/metrics.parquet").stat().st_size,
    )


# What is refused


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values["config"]["rollout"].update(n=16),
        lambda values: values.update(seed=9),
        lambda values: values["shards"][0].update(sha256="0" * 64),
        lambda values: values["shards"].clear(),
        lambda values: values.update(content_hash="0" * 64),
    ],
    ids=["config", "seed", "checksum", "shards", "hash"],
)
def test_an_edited_manifest_is_refused(change: Callable[[dict[str, Any]], Any], tmp_path: Path) -> None:
    make(tmp_path / "a")
    edit(tmp_path / "a", change)
    with pytest.raises(DataError) as caught:
        Source(tmp_path / "a", "rollout")
    assert str(caught.value) == (
        f"{tmp_path}/a/manifest.json: the manifest was edited: its content does not match its hash. Run rollout again."
    )


def test_another_schema_version_is_refused_whatever_else_it_holds(tmp_path: Path) -> None:
    make(tmp_path / "a")
    edit(tmp_path / "a", lambda values: values.update(schema_version=2, a_field_of_the_future={}))
    with pytest.raises(DataError) as caught:
        Source(tmp_path / "a", "rollout")
    assert str(caught.value) == (
        f"{tmp_path}/a/manifest.json: schema version 2 is not supported (expected 1). "
        "Run rollout again, or use the version of dapo-stages that wrote it."
    )


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"stage": "rollout"}', "\x00", "null"])
def test_a_manifest_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=r"manifest\.json: not a valid manifest \(.*\)\. Run rollout again\."):
        read_manifest(tmp_path, "rollout")


def test_a_folder_without_a_manifest_is_no_output(tmp_path: Path) -> None:
    words = "manifest.json: no such file: there is no output of rollout. Run rollout first."
    with pytest.raises(DataError, match=re.escape(words)):
        read_manifest(tmp_path / "nowhere", "rollout")
    (tmp_path / "completions-00000.parquet").touch()
    words = "manifest.json: no such file: the output of rollout is unfinished. Run rollout again to finish it."
    with pytest.raises(DataError, match=re.escape(words)):
        read_manifest(tmp_path, "rollout")


def test_the_output_of_another_stage_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "a", "prepare-data")
    with pytest.raises(DataError) as caught:
        Source(tmp_path / "a", "rollout")
    assert str(caught.value) == (
        f"{tmp_path}/a/manifest.json: expected the output of rollout, got the output of prepare-data. "
        "Name the right folder."
    )


def test_an_output_made_from_another_version_of_its_input_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "old", count=3)
    make(tmp_path / "new", count=4)
    make(tmp_path / "attention", "score-attention", inputs={"rollouts": Source(tmp_path / "old")})
    scored = Source(tmp_path / "attention")
    scored.require_input("rollouts", Source(tmp_path / "old"))
    with pytest.raises(DataError) as caught:
        scored.require_input("rollouts", Source(tmp_path / "new"))
    assert str(caught.value) == (
        f"{tmp_path}/attention/manifest.json: was made from other rollouts ({tmp_path}/old), not from {tmp_path}/new "
        "as it is now. "
        f"Run score-attention on {tmp_path}/new, or name the folder that belongs to it."
    )
    with pytest.raises(DataError, match=f"manifest.json: was made without policy, expected {tmp_path}/new"):
        scored.require_input("policy", Source(tmp_path / "new"))


# Files


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "no such file, but the manifest lists it"),
        (lambda path: os.truncate(path, 100), "has 100 bytes, expected 1... (it was truncated or replaced)"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"!"),
         "has changed: it does not match its checksum in the manifest"),
    ],
    ids=["missing", "cut", "changed"],
)  # fmt: skip
def test_a_file_that_is_not_the_published_one_is_refused(
    damage: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    make(tmp_path / "a")
    path = tmp_path / "a/metrics.parquet"
    damage(path)
    pattern = re.escape(f"{path}: {words}. Run rollout again.").replace(r"1\.\.\.", r"\d+")
    with pytest.raises(DataError, match=f"^{pattern}$"):
        list(Source(tmp_path / "a").rows("metrics"))
    with pytest.raises(DataError, match=f"^{pattern}$"):
        Source(tmp_path / "a").verify_all()


def test_every_single_flipped_bit_is_noticed(tmp_path: Path) -> None:
    make(tmp_path / "a", count=30)
    path = tmp_path / "a/metrics.parquet"
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        with pytest.raises(DataError, match="has changed: it does not match its checksum"):
            Source(tmp_path / "a").verified(Source(tmp_path / "a").shards("metrics")[0])


def test_shards_of_a_kind_are_read_in_their_order(tmp_path: Path) -> None:
    with open_output(Plan("rollout", tmp_path / "a", {}, 1)) as output:
        assert output is not None
        for number in (2, 0, 1):
            row = next(rows(schema_of("completions"), 1)) | {"completion_id": f"c{number}"}
            output.write("completions", number, [row])
            output.write("replayed-completions", number, [])
        output.publish()
    source = Source(tmp_path / "a")
    assert [shard.name for shard in source.shards("completions")] == [f"completions-0000{n}.parquet" for n in range(3)]
    assert [row["completion_id"] for row in source.rows("completions", ["completion_id"])] == ["c0", "c1", "c2"]
    with source.lookup("completions", "completion_id") as table:
        assert table.one("c2")["completion_id"] == "c2"


# Pruning


def test_pruning_keeps_time_stamp_and_hash(tmp_path: Path) -> None:
    made = make(tmp_path / "a")
    os.utime(tmp_path / "a/manifest.json", ns=(10**18, 10**18))
    mark_pruned(tmp_path / "a")
    after = read_manifest(tmp_path / "a", "rollout")
    assert after.pruned and after == made.model_copy(update={"pruned": True})
    assert (tmp_path / "a/manifest.json").stat().st_mtime_ns == 10**18


def test_what_is_remembered_of_a_manifest_ends_with_its_file(tmp_path: Path) -> None:
    """Also where the new one has the time of the old."""
    made = make(tmp_path / "a")
    with remembered():
        one = read_manifest(tmp_path / "a")
        assert read_manifest(tmp_path / "a", "rollout") is one
        with pytest.raises(DataError, match="expected the output of evaluate, got the output of rollout"):
            read_manifest(tmp_path / "a", "evaluate")
        mark_pruned(tmp_path / "a")
        assert read_manifest(tmp_path / "a") == made.model_copy(update={"pruned": True})
        (tmp_path / "a/manifest.json").unlink()
        with pytest.raises(DataError, match="no such file: the output is unfinished"):
            read_manifest(tmp_path / "a")
    make(tmp_path / "b")
    assert read_manifest(tmp_path / "b") is not read_manifest(tmp_path / "b")


def test_a_pruned_output_is_still_known_but_cannot_be_read(tmp_path: Path) -> None:
    make(tmp_path / "a")
    mark_pruned(tmp_path / "a")
    pruned = Source(tmp_path / "a")
    assert pruned.manifest.content_hash == read_manifest(tmp_path / "a").content_hash
    with pytest.raises(DataError) as caught:
        pruned.verified(pruned.manifest.shards[0])
    assert str(caught.value) == (
        f"{tmp_path}/a: the files of this output were pruned. "
        "Run rollout with another --out to make them again, and raise the keep settings."
    )


@pytest.mark.parametrize("stage", ["policy", "state", "reference"])
def test_a_part_of_a_train_step_is_made_again_by_train_step(stage: str, tmp_path: Path) -> None:
    make(tmp_path, stage)
    (tmp_path / "metrics.parquet").write_bytes(b"longer")
    with pytest.raises(DataError, match=r"metrics\.parquet: has 6 bytes, .*\. Run train-step again\.$"):
        Source(tmp_path).verify_all()
