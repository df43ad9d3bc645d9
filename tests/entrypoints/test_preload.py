"""Commands forked from a parent with torch behave like commands in their own processes, whatever is killed."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from selectors import EVENT_READ

import pytest
from support import proc
from support.commands import ROOT, Result
from support.served import Place, place_of, wait, weigh

from dapo_stages.entrypoints import preload
from dapo_stages.entrypoints.preloaded import IDLE, _Child, _Parent
from dapo_stages.handoff.manifests import read_manifest

pytestmark = [pytest.mark.long, pytest.mark.skipif(sys.platform != "linux", reason="parents are for Linux")]


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with place_of("dapo_stages.entrypoints.preload") as found:
        yield found


@pytest.fixture()
def parent(place: Place) -> int:
    """A parent that has imported everything."""
    return place.ready()


def test_commands_are_children_of_the_parent_in_their_own_folder_and_environment(place: Place, parent: int) -> None:
    assert place.run("config", "--config", "pipelines/smoke.yaml", MAKELEVEL="7").code == 0
    assert place.last()[1:] == [str(parent), str(ROOT), "7"]
    assert place.run("config", "--config", "pipelines/smoke.yaml", MAKELEVEL="8").code == 0
    assert place.last()[1:] == [str(parent), str(ROOT), "8"]


def test_another_environment_is_not_served(place: Place, parent: int) -> None:
    assert place.run("config", "--config", "pipelines/smoke.yaml", OMP_NUM_THREADS="1").code == 0
    assert place.last()[1] != str(parent)


UNTOLD = "import os, sys; os.nice(1); os.execv(sys.argv[1], sys.argv[1:])"


@pytest.mark.parametrize(
    "within",
    [["unshare", "--net"], ["setpriv", "--no-new-privs"], [sys.executable, "-c", UNTOLD]],
    ids=lambda it: it[0],
)
def test_a_command_in_a_sandbox_is_not_served_by_a_parent_outside(within: list[str], place: Place, parent: int) -> None:
    with suppress(OSError):  # where the first ones are not there, or not allowed, the last one is
        if subprocess.run([*within, "true"], stderr=subprocess.DEVNULL).returncode:
            within = [sys.executable, "-c", UNTOLD]
    result = replace(place, within=within).run("config", "--config", "pipelines/smoke.yaml")
    assert result.code == 0
    assert place.last()[1] != str(parent)


def test_output_and_exit_code_are_those_of_a_command_of_its_own(place: Place, parent: int, tiny: Path) -> None:
    calls = (
        ["config", "--config", "pipelines/smoke.yaml"],
        ["status", "--run", tiny, "--json"],
        ["nonsense"],
        ["rollout", "--iteration", "one"],
        ["config", "--config", place.folder / "none.yaml"],
    )
    codes = []
    for call in calls:
        found = place.run(*call)
        assert place.last()[1] == str(parent), call
        assert found == place.run(*call, program="dapo_stages")
        codes.append(found.code)
    assert codes == [0, 0, 2, 2, 3]


def test_a_child_trains_with_every_thread(place: Place, parent: int, tmp_path: Path) -> None:
    """OpenMP hangs in a child whose parent used it."""
    small = [flag for setting in ("warm_up.steps=2", "warm_up.batch_size=64") for flag in ("--set", setting)]
    arguments = ["init-policy", "--config", "pipelines/smoke.yaml", *small, "--out", tmp_path / "policy"]
    assert place.run(*arguments).code == 0
    assert place.last()[1] == str(parent)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_reaches_the_command_and_nothing_is_lost(
    name: str, place: Place, parent: int, tiny: Path, tmp_path: Path
) -> None:
    (place.folder / "wait").touch()
    process = place.start(*weigh(tiny, tmp_path / "out"))
    wait((place.folder / "waiting-out").exists)
    process.send_signal(getattr(signal, name))
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr.splitlines()[-1]) == (
        130,
        f"stopped by {name}; finished work is kept. Run the same command again to resume.",
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".lock", ".partial.json", "weights-00000.parquet"}
    (place.folder / "wait").unlink()
    assert place.run(*weigh(tiny, tmp_path / "out")).code == 0
    assert place.last()[1] == str(parent)


def test_a_killed_command_takes_its_child_with_it(place: Place, parent: int, tiny: Path, tmp_path: Path) -> None:
    (place.folder / "wait").touch()
    process = place.start(*weigh(tiny, tmp_path / "out"))
    wait((place.folder / "waiting-out").exists)
    child = int(place.last()[0])
    assert proc.parent_of(child) == parent
    process.kill()
    process.communicate()
    wait(lambda: proc.parent_of(child) is None)
    (place.folder / "wait").unlink()
    assert place.run(*weigh(tiny, tmp_path / "out")).code == 0


def test_a_killed_child_ends_its_command_by_the_same_signal(
    place: Place, parent: int, tiny: Path, tmp_path: Path
) -> None:
    (place.folder / "wait").touch()
    process = place.start(*weigh(tiny, tmp_path / "out"))
    wait((place.folder / "waiting-out").exists)
    os.kill(int(place.last()[0]), signal.SIGKILL)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL


def test_two_commands_at_once(place: Place, parent: int, tiny: Path, tmp_path: Path) -> None:
    (place.folder / "wait").touch()
    both = [place.start(*weigh(tiny, tmp_path / name)) for name in ("one", "two")]
    for name in ("one", "two"):
        wait((place.folder / f"waiting-{name}").exists)
    (place.folder / "wait").unlink()
    for process in both:
        process.communicate(timeout=30)
        assert process.returncode == 0
    hashes = {read_manifest(tmp_path / name).content_hash for name in ("one", "two")}
    assert len(hashes) == 1


def test_a_command_whose_parent_is_killed_starts_over_by_itself(
    place: Place, parent: int, tiny: Path, tmp_path: Path
) -> None:
    (place.folder / "wait").touch()
    process = place.start(*weigh(tiny, tmp_path / "out"))
    wait((place.folder / "waiting-out").exists)
    child = int(place.last()[0])
    (place.folder / "wait").unlink()
    os.kill(child, signal.SIGSTOP)  # so that it cannot finish first
    os.kill(parent, signal.SIGKILL)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr.splitlines()[-1].split(":")[0]) == (0, "weight-tokens")
    assert place.last()[0] == str(process.pid)
    assert proc.parent_of(child) is None
    assert read_manifest(tmp_path / "out", "weight-tokens").shards
    # Its socket is left, without a listener.
    assert place.run("config", "--config", "pipelines/smoke.yaml").code == 0


def test_a_parent_ends_when_nobody_asks_any_more(place: Place) -> None:
    before = set(place.servers())
    place.try_out(**{IDLE: "0.1"})
    wait(lambda: set(place.servers()) == before)


# Whose parent


def test_the_key_changes_with_files_packages_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ours").mkdir()
    (tmp_path / "site-packages").mkdir()
    module = tmp_path / "ours/module.py"
    module.touch()
    monkeypatch.setattr(preload, "__file__", str(tmp_path / "ours/preload.py"))
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "site-packages")])
    keys = [preload.key()]
    os.utime(module, ns=(1, 1))
    keys.append(preload.key())
    os.utime(tmp_path / "site-packages", ns=(1, 1))
    keys.append(preload.key())
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    keys.append(preload.key())
    monkeypatch.setattr(sys, "executable", "/elsewhere/python")
    keys.append(preload.key())
    assert len(set(keys)) == 5
    monkeypatch.setenv("MAKELEVEL", "12")
    assert preload.key() == keys[-1]


def test_a_command_and_its_child_may_end_in_the_same_moment() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        parent = _Parent(listener)
        here, there = socket.socketpair()
        process = get_context("fork").Process(target=int)
        process.start()
        child = _Child(process, here)
        parent.children.append(child)
        for ended in (process.sentinel, here):
            parent._selector.register(ended, EVENT_READ, child)
        there.close()
        select.select([process.sentinel], [], [], 30)
        parent.turn()
        assert parent.children == [] and here.fileno() == -1


def test_sockets_are_only_in_a_folder_of_this_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    name = f"dapo-stages-{os.getuid()}"
    assert preload._folder().stat().st_mode & 0o777 == 0o700
    (tmp_path / name).chmod(0o755)
    with pytest.raises(PermissionError):
        preload._folder()
    (tmp_path / name).rename(tmp_path / "other")
    (tmp_path / "other").chmod(0o700)
    (tmp_path / name).symlink_to("other")
    with pytest.raises(PermissionError):
        preload._folder()


def test_without_a_usable_folder_a_command_runs_by_itself(place: Place, tmp_path: Path) -> None:
    for folder in (tmp_path / "missing", tmp_path / ("long" * 30)):
        if folder.name != "missing":
            folder.mkdir()
        arguments = ["init-policy", "--config", "pipelines/smoke.yaml", "--out", tmp_path / "none", "--dry-run"]
        result = place.run(*arguments, XDG_RUNTIME_DIR=str(folder))
        assert result == Result(0, "", f"init-policy would write {tmp_path}/none\n")
