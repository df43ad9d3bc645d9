"""The path by which vLLM loads a checkpoint; tests/with_vllm shows that it compiles once."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dapo_stages.engines.vllm_model import linked, load
from dapo_stages.errors import EngineError


def test_every_policy_is_read_by_the_same_path(tmp_path: Path) -> None:
    paths = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(name)
        with linked(tmp_path / name, tmp_path / "links") as path:
            assert (path / "config.json").read_text() == name
            paths.append(path)
        assert not path.is_symlink()  # nothing is read by it any more
    assert paths[0] == paths[1]


def test_processes_that_load_at_the_same_time_have_paths_of_their_own(tmp_path: Path) -> None:
    with linked(tmp_path / "one", tmp_path / "links") as one:
        with linked(tmp_path / "two", tmp_path / "links") as two:
            assert {path.readlink() for path in (one, two)} == {tmp_path / "one", tmp_path / "two"}
        with linked(tmp_path / "three", tmp_path / "links") as three:
            assert three == two  # free again


def test_a_link_that_a_killed_process_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links/policy-0").symlink_to(tmp_path / "gone")
    with linked(tmp_path / "one", tmp_path / "links") as path:
        assert path == tmp_path / "links/policy-0" and path.readlink() == tmp_path / "one"


def test_a_link_that_another_process_took_is_refused_and_left_to_it(tmp_path: Path) -> None:
    with pytest.raises(EngineError) as refused, linked(tmp_path / "one", tmp_path / "links") as path:
        path.unlink()
        path.symlink_to(tmp_path / "two")
    assert str(refused.value) == (
        f"{path}: another process replaced this link while {tmp_path / 'one'} was being loaded (locks in this folder "
        "do not hold on all machines that write there). Set VLLM_CACHE_ROOT to a folder on this machine, and run the "
        "same command again."
    )
    assert path.readlink() == tmp_path / "two"


@pytest.mark.parametrize(
    ("folder", "eager", "is_link"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_a_folder_is_linked_where_vllm_compiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: bool, eager: bool, is_link: bool
) -> None:
    given: list[Any] = []
    stand_in = SimpleNamespace(LLM=lambda path, **_: given.append(path), envs=SimpleNamespace(VLLM_CACHE_ROOT=tmp_path))
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    checkpoint = str(tmp_path) if folder else "Qwen/Qwen2.5-VL-7B-Instruct"
    load(checkpoint, {"enforce_eager": eager})
    assert given == [str(tmp_path / "dapo-stages/policy-0") if is_link else checkpoint]
