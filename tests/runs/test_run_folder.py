"""A run's folder: what is read of it, and when."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest

from dapo_stages.config import load_config
from dapo_stages.runs.run_folder import Run


def test_the_configuration_is_read_once_and_not_before_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = Mock(wraps=load_config)
    monkeypatch.setattr("dapo_stages.runs.run_folder.load_config", reading)
    (tmp_path / "config.yaml").write_text("{planned_iterations: 7, lag: 1}")
    run = Run(tmp_path)
    assert run.iterations() == [] and not reading.called
    assert run.config is not None and (run.config.lag, run.planned_iterations, run.trouble) == (1, 7, None)
    reading.assert_called_once_with(tmp_path / "config.yaml")


def test_a_run_that_does_not_exist_has_no_configuration_and_nothing_is_wrong_with_it(tmp_path: Path) -> None:
    run = Run(tmp_path / "nowhere")
    assert (run.config, run.planned_iterations, run.trouble, run.iterations()) == (None, None, None, [])


def test_what_is_wrong_with_a_configuration_is_said(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("planned_iterations: many")
    run = Run(tmp_path)
    assert run.config is None and run.planned_iterations is None
    assert run.trouble is not None and run.trouble.startswith(
        f"{tmp_path}/config.yaml: planned_iterations must be a valid integer"
    )


def test_iterations_are_folders_by_number_and_other_names_are_none(tmp_path: Path) -> None:
    for name in ("iter-10000", "iter-0002", "iter-0000", "iter-3", "iter-0004.old", "policy"):
        (tmp_path / name).mkdir()
    (tmp_path / "iter-0005").touch()
    run = Run(tmp_path)
    assert run.iterations() == [0, 2, 10000]
    assert run.folder(2) == tmp_path / "iter-0002"


def test_a_recorded_input_is_looked_for_where_the_run_is_now(tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    run = Run(tmp_path)
    assert run.place("old/iter-0001/train/policy") == tmp_path / "iter-0001/train/policy"
    assert run.place("iter-0003/old/iter-0001/rollout") == tmp_path / "iter-0001/rollout"
    assert run.place("old/policy") == tmp_path / "policy"
    assert run.place("old/data") == Path("old/data")  # this run has none of its own
    assert run.place("elsewhere/merged") == Path("elsewhere/merged")
