"""Output folders: one writer, nothing lost by an interruption, nothing replaced or deleted unasked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.commands import start
from support.rows import rows

from dapo_stages.errors import DataError, LockedError
from dapo_stages.handoff import outputs
from dapo_stages.handoff.manifests import Manifest, Source, mark_pruned, read_manifest, write_manifest
from dapo_stages.handoff.outputs import Output
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.replacing import finish_replacement
from dapo_stages.handoff.resuming import open_output
from dapo_stages.handoff.schemas import schema_of

SHARDS = 4


class PowerCutError(BaseException):  # after which nothing tidies up
    """Raised where a test pulls the plug."""


def plan(out: Path, config: int = 1) -> Plan:
    return Plan("rollout", out, {"rollout": {"n": config}}, 7)


def fill(output: Output, config: int, stop_after: int = SHARDS) -> list[int]:
    """Write the shards that are missing, and a folder of other files; the numbers written. May be cut short."""
    written = []
    for number in range(SHARDS):
        if number == stop_after:
            raise PowerCutError
        if not output.has(f"metrics-{number:05d}.parquet"):
            output.write("metrics", number, rows(schema_of("metrics"), 10 * config + number))
            written.append(number)
    (output.folder / "policy").mkdir(exist_ok=True)
    (output.folder / "policy" / "weights.bin").write_bytes(bytes([config]) * 100)
    output.add_files("policy")
    output.publish_part("policy", {"version": config})
    output.counts = {"shards": SHARDS}
    return written


def make(out: Path, config: int = 1, *, overwrite: bool = False, stop_after: int = SHARDS) -> list[int] | None:
    """Fill and publish; None if there was nothing to do."""
    with open_output(plan(out, config), overwrite=overwrite) as output:
        if output is None:
            return None
        written = fill(output, config, stop_after)
        output.publish()
        return written


def content(out: Path) -> dict[str, bytes]:
    """Every file but lock and manifests, which hold times."""
    files = [path for path in out.rglob("*") if path.is_file() and path.name not in {".lock", "manifest.json"}]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


def readable(out: Path) -> Manifest:
    """A whole output, every file of it."""
    source = Source(out, "rollout")
    source.verify_all()
    assert len(list(source.rows("metrics"))) == sum(shard.rows or 0 for shard in source.manifest.shards)
    assert content(out).keys() == {shard.name for shard in source.manifest.shards}
    return source.manifest


@pytest.fixture()
def undisturbed(tmp_path: Path) -> Path:
    make(tmp_path / "undisturbed")
    return tmp_path / "undisturbed"


# Resuming


@pytest.mark.parametrize("done", range(SHARDS))
def test_an_interrupted_run_goes_on_with_the_shards_it_lacks(done: int, tmp_path: Path, undisturbed: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(PowerCutError):
        make(out, stop_after=done)
    with pytest.raises(DataError, match="no such file: the output is unfinished"):
        Source(out)
    assert plan(out).state() == "partial"
    assert make(out) == list(range(done, SHARDS))
    assert content(out) == content(undisturbed)
    assert readable(out).content_hash == readable(undisturbed).content_hash


def test_a_shard_that_was_damaged_since_is_written_again(tmp_path: Path, undisturbed: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(PowerCutError):
        make(out, stop_after=3)
    (out / "metrics-00001.parquet").write_bytes(b"PAR1")
    assert make(out) == [1, 3]
    assert content(out) == content(undisturbed)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"fingerprint": 1, "shards": [{}]}'])
def test_a_damaged_note_of_progress_means_starting_afresh(text: str, tmp_path: Path, undisturbed: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(PowerCutError):
        make(out, stop_after=2)
    (out / ".partial.json").write_text(text)
    assert make(out) == [0, 1, 2, 3]
    assert content(out) == content(undisturbed)


def test_notes_of_several_processes_are_put_together(tmp_path: Path, undisturbed: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(PowerCutError):
        make(out, stop_after=3)
    note = json.loads((out / ".partial.json").read_text())
    for name, shards in ((".partial.json", note["shards"][:1]), (".partial-00003.json", note["shards"][1:])):
        (out / name).write_text(json.dumps(note | {"shards": shards}))
    assert plan(out).state() == "partial"
    assert make(out) == [3]
    assert content(out) == content(undisturbed)


def test_what_an_interruption_left_behind_is_removed(tmp_path: Path, undisturbed: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(PowerCutError):
        make(out, stop_after=1)
    (out / ".metrics-00001.parquet.99.tmp").write_bytes(b"half")
    (out / "state").mkdir()
    (out / "state/optimizer.pt").write_bytes(b"half")
    make(out)
    assert content(out) == content(undisturbed) and not (out / "state").exists()


def test_a_strangers_file_in_an_interrupted_run_is_never_removed(tmp_path: Path, undisturbed: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(PowerCutError):
        make(out, stop_after=2)
    (out / "notes.ipynb").write_text("what I saw so far")
    before = content(out)
    with pytest.raises(DataError) as caught:
        make(out)
    assert str(caught.value) == (
        f"{out}: must have only files of the stage, but has others (notes.ipynb). Move them elsewhere, or name another "
        "--out."
    )
    assert content(out) == before
    (out / "notes.ipynb").unlink()
    assert make(out) == [2, 3]
    assert content(out) == content(undisturbed)


def test_other_files_are_known_before_they_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint or a report that is cut off while it is written stands in nobody's way."""

    def save(out: Path) -> None:
        with open_output(plan(out)) as output:
            assert output is not None
            with output.files() as folder:
                (folder / "config.json").write_text("{}")
                (folder / "model.safetensors").write_bytes(b"weights")
            output.publish()

    for step, name in enumerate(("config.json", "model.safetensors")):
        out = tmp_path / f"out-{step}"
        monkeypatch.setattr(os, "replace", cut_at(1, os.replace, of=name))
        with pytest.raises(PowerCutError):
            save(out)
        monkeypatch.undo()
        save(out)
        assert content(out).keys() == {"config.json", "model.safetensors"}


def test_a_part_of_an_unfinished_output_is_never_published_without_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Starting afresh is cut off at each file that it removes."""
    for step in range(3):
        out = tmp_path / f"out-{step}"
        monkeypatch.setattr(outputs, "write_manifest", cut_at(1, write_manifest, of=out.name))
        with pytest.raises(PowerCutError):
            make(out, config=1)
        Source(out / "policy", "policy").verify_all()
        monkeypatch.setattr(Path, "unlink", cut_at(step + 1, Path.unlink, of=""))
        with pytest.raises(PowerCutError):
            make(out, config=2, overwrite=True)
        monkeypatch.undo()
        if (out / "policy/manifest.json").exists():
            Source(out / "policy", "policy").verify_all()


def test_work_survives_a_cut_between_the_last_shard_and_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(outputs, "write_manifest", cut_at(1, write_manifest, of="out"))
    with pytest.raises(PowerCutError):
        make(out)
    monkeypatch.undo()
    assert make(out) == []
    readable(out)


def test_an_unfinished_output_of_other_configuration_is_kept_until_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(PowerCutError):
        make(out, config=1, stop_after=2)
    before = content(out)
    with pytest.raises(DataError) as caught:
        make(out, config=2)
    assert str(caught.value) == (
        f"{out}: the partial output here was made from other inputs or configuration. Run the interrupted command "
        "again, pass --overwrite to start over, or name another --out."
    )
    assert content(out) == before
    assert make(out, config=2, overwrite=True) == [0, 1, 2, 3]


def test_a_start_cut_off_at_its_first_file_stands_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/..partial.json.99.tmp").touch()
    (tmp_path / "out/.lock").touch()
    assert make(tmp_path / "out") == [0, 1, 2, 3]
    readable(tmp_path / "out")


def test_a_start_that_wrote_nothing_stands_in_nobodys_way(tmp_path: Path) -> None:
    with pytest.raises(PowerCutError):
        make(tmp_path / "out", config=1, stop_after=0)
    assert make(tmp_path / "out", config=2) == [0, 1, 2, 3]


# Finished outputs


def test_a_finished_output_is_only_touched(undisturbed: Path) -> None:
    manifest = undisturbed / "manifest.json"
    os.utime(manifest, (1, 1))
    before, text = content(undisturbed), manifest.read_text()
    assert make(undisturbed) is None
    assert content(undisturbed) == before and manifest.read_text() == text
    assert manifest.stat().st_mtime > 1


def test_a_finished_output_of_other_configuration_is_refused(undisturbed: Path) -> None:
    before = content(undisturbed)
    with pytest.raises(DataError) as caught:
        make(undisturbed, config=2)
    assert str(caught.value) == (
        f"{undisturbed}: the output of rollout here is stale (made from other inputs or configuration). Pass "
        "--overwrite to replace it, or name another --out."
    )
    assert content(undisturbed) == before


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda out: (out / "metrics-00001.parquet").unlink(), "metrics-00001.parquet: no such file, but"),
        (lambda out: (out / "manifest.json").write_text("{"), "manifest.json: not a valid manifest ("),
    ],
    ids=["file", "manifest"],
)
def test_a_damaged_output_is_made_again_only_when_asked(
    damage: Callable[[Path], Any], words: str, undisturbed: Path
) -> None:
    damage(undisturbed)
    with pytest.raises(DataError) as caught:
        make(undisturbed)
    assert words in str(caught.value) and " Pass --overwrite to " in str(caught.value)
    assert make(undisturbed, overwrite=True) == [0, 1, 2, 3]
    readable(undisturbed)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_pruned_output_is_finished(overwrite: bool, undisturbed: Path) -> None:
    mark_pruned(undisturbed)
    for path in undisturbed.glob("*.parquet"):
        path.unlink()
    assert make(undisturbed, overwrite=overwrite) is None
    with pytest.raises(DataError, match="made from other inputs or configuration"):
        make(undisturbed, config=2)
    assert make(undisturbed, config=2, overwrite=True) == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["thesis.tex", "photos"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_other_files_is_never_emptied(name: str, overwrite: bool, tmp_path: Path) -> None:
    out = tmp_path / "home"
    out.mkdir()
    (out / name).mkdir() if name == "photos" else (out / name).write_text("ten years of work")
    with pytest.raises(DataError) as caught:
        make(out, overwrite=overwrite)
    assert str(caught.value) == (
        f"{out}: must be empty, but has files of no stage ({name}). Name another --out, or empty this folder yourself."
    )
    assert (out / name).exists()


def test_a_file_where_the_folder_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    for out in (tmp_path / "out", tmp_path / "out" / "deeper"):
        with pytest.raises(DataError, match="cannot create the folder: a file is in the way"):
            make(out)


# Replacement


def test_the_old_output_is_whole_until_the_new_one_is(undisturbed: Path) -> None:
    old = readable(undisturbed).content_hash
    with open_output(plan(undisturbed, 2), overwrite=True) as output:
        assert output is not None
        fill(output, 2)
        Source(undisturbed).verify_all()
        assert read_manifest(undisturbed).content_hash == old
        output.publish()
    assert readable(undisturbed).config == {"rollout": {"n": 2}}
    assert not (undisturbed / ".next").exists()


def test_a_replacement_leaves_strangers_files_alone(undisturbed: Path) -> None:
    for name in ("notes.ipynb", "policy/notes.txt", "photos/one.png"):
        (undisturbed / name).parent.mkdir(exist_ok=True)
        (undisturbed / name).write_text("ten years of work")
    make(undisturbed, config=2, overwrite=True)
    files = content(undisturbed)
    kept = {"notes.ipynb", "policy/notes.txt", "photos/one.png"}
    assert files.keys() == kept | {shard.name for shard in read_manifest(undisturbed).shards}
    assert {files[name] for name in kept} == {b"ten years of work"}
    Source(undisturbed / "policy", "policy").verify_all()


def test_an_interrupted_replacement_goes_on_where_it_stopped(undisturbed: Path) -> None:
    old = readable(undisturbed).content_hash
    with pytest.raises(PowerCutError):
        make(undisturbed, config=2, overwrite=True, stop_after=3)
    Source(undisturbed).verify_all()
    assert read_manifest(undisturbed).content_hash == old
    assert make(undisturbed, config=2, overwrite=True) == [3]
    assert readable(undisturbed).config == {"rollout": {"n": 2}}


def test_a_replacement_given_up_leaves_the_old_output_in_use(undisturbed: Path) -> None:
    with pytest.raises(PowerCutError):
        make(undisturbed, config=2, overwrite=True, stop_after=3)
    assert make(undisturbed, config=1) is None
    assert make(undisturbed, config=3, overwrite=True) == [0, 1, 2, 3]
    assert readable(undisturbed).config == {"rollout": {"n": 3}}


def test_a_replacement_cut_off_at_any_step_is_finished_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plug is pulled at each change to the folder after the new manifest was written, one run per place."""
    make(tmp_path / "wanted", config=2)
    wanted, steps = content(tmp_path / "wanted"), 0
    while True:
        out = tmp_path / f"cut-{steps}"
        make(out, config=1)
        if not _cut_replacement(out, steps, monkeypatch):
            break
        found = read_manifest(out).config if (out / "manifest.json").exists() else None
        if found == {"rollout": {"n": 1}}:
            Source(out).verify_all()  # still the old one, whole
        elif found is not None:
            Source(out).verify_all()  # already the new one, whole
        assert make(out, config=2) is None, f"cut at step {steps}"
        assert content(out) == wanted
        assert readable(out).config == {"rollout": {"n": 2}}
        assert Source(out / "policy", "policy").manifest.policy == {"version": 2}
        assert not (out / ".next").exists()
        steps += 1
    # 4 shards and a folder deleted, as many moved, the old manifest, the new one, two marks, the folder they lay in
    assert steps >= 4 + 1 + 4 + 1 + 5


def test_a_folder_of_nothing_but_a_manifest_survives_a_cut_replacement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bare(out: Path, config: int) -> None:
        with open_output(plan(out, config), overwrite=True) as output:
            assert output is not None
            (output.folder / "policy").mkdir()
            output.publish_part("policy")
            output.write("metrics", 0, rows(schema_of("metrics"), config))
            output.publish()

    bare(tmp_path / "out", 1)
    monkeypatch.setattr(os, "replace", cut_at(1, os.replace, of=".next/manifest.json"))
    with pytest.raises(PowerCutError):
        bare(tmp_path / "out", 2)
    monkeypatch.undo()
    with open_output(plan(tmp_path / "out", 2)) as output:
        assert output is None
    read_manifest(tmp_path / "out/policy", "policy")


def _cut_replacement(out: Path, steps: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Replace an output, stopping at the given change after the swap began; False if it came to its end."""
    count = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            if count == steps:
                raise PowerCutError
            count += 1
            return function(*args, **kwargs)

        return call

    with open_output(plan(out, 2), overwrite=True) as output:
        assert output is not None
        fill(output, 2)

        def swap(folder: Path) -> None:
            with monkeypatch.context() as patched:
                patched.setattr(os, "replace", counted(os.replace))
                patched.setattr(os, "unlink", counted(os.unlink))
                patched.setattr(os, "rmdir", counted(os.rmdir))
                finish_replacement(folder)

        with monkeypatch.context() as patched:
            patched.setattr(outputs, "finish_replacement", swap)
            try:
                output.publish()
            except PowerCutError:
                return True
    return False


def cut_at(call: int, function: Callable[..., Any], of: str) -> Callable[..., Any]:
    """A function that fails at its n-th call whose first argument ends in `of`."""
    seen = 0

    def cut(*args: Any) -> Any:
        nonlocal seen
        seen += str(args[0]).endswith(of)
        if seen == call:
            raise PowerCutError
        return function(*args)

    return cut


# One writer


@pytest.fixture()
def writer(tmp_path: Path) -> Any:
    """Another process that holds tmp_path/out."""
    code = """
import sys, time
from pathlib import Path
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.resuming import open_output
with open_output(Plan("rollout", Path(sys.argv[1]), {"rollout": {"n": 1}}, 7)):
    print("writing", flush=True)
    time.sleep(60)
"""
    process: subprocess.Popen[str] = start(tmp_path / "out", code=code)
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_writer_is_told_to_wait(writer: Any, tmp_path: Path) -> None:
    with pytest.raises(LockedError) as caught:
        make(tmp_path / "out")
    assert caught.value.exit_code == 4
    assert str(caught.value) == (
        f"{tmp_path}/out: another run is writing here. Wait for it, stop it, or name another --out."
    )


def test_a_killed_writer_leaves_no_lock(writer: Any, tmp_path: Path) -> None:
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert make(tmp_path / "out") == [0, 1, 2, 3]


# ---- Who may read it


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_have_the_mode_that_the_umask_asks_for(mask: int, mode: int, tmp_path: Path) -> None:
    """Also what safetensors writes, closed to all others, and copies of files that were read-only."""
    before = os.umask(mask)
    try:
        with open_output(plan(tmp_path / "out")) as output:
            assert output is not None
            output.write("metrics", 0, rows(schema_of("metrics"), 3))
            with output.files() as folder:
                (folder / "model.safetensors").write_bytes(b"closed")
                (folder / "model.safetensors").chmod(0o600)
                (folder / "config.json").write_text("{}")
                (folder / "config.json").chmod(0o444)
            (output.folder / "policy").mkdir()
            (output.folder / "policy/model.safetensors").write_bytes(b"closed")
            (output.folder / "policy/model.safetensors").chmod(0o600)
            output.add_files("policy")
            output.publish_part("policy")
            output.publish()
        assert os.umask(mask) == mask  # asking for it does not change it
    finally:
        os.umask(before)
    made = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert made.pop(".lock", mode) is not None
    assert made == dict.fromkeys(["metrics-00000.parquet", "model.safetensors", "config.json", "manifest.json"], mode)
