"""The launcher: one line for what it cannot start, and the rank that failed first."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from dapo_stages.entrypoints import launch


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--config_file", "none.yaml"], "The passed configuration file `none.yaml` does not exist"),
        (["--config_file", "{folder}/bad.yaml"], "nonsense"),
    ],
)
def test_a_configuration_that_accelerate_does_not_take_is_bad_input(
    arguments: list[str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "bad.yaml").write_text("compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nnonsense: 1\n")
    given = [argument.format(folder=tmp_path) for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["launch", *given, "rollout"])
    monkeypatch.setattr(logging, "disable", lambda level: None)
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")
    with pytest.raises(SystemExit) as stopped:
        launch.main()
    said = capsys.readouterr().err
    assert stopped.value.code == 3 and said.count("\n") == 1
    assert said.startswith("accelerate launch: cannot start (") and reason in said
    assert said.endswith("). Install accelerate, or use a configuration from pipelines/accelerate.\n")


@pytest.mark.parametrize(
    ("ended", "first"),
    [
        ({0: (1, 100), 1: (-9, 100)}, (1, -9)),  # rank 0 lost its connection to the one that was killed
        ({0: (3, 100), 1: (-15, 100)}, (0, 3)),  # ended by the launcher, before it could hear signals
        ({0: (3, 100), 1: (-9, 130)}, (0, 3)),  # ended by the launcher, which had waited for it
        ({0: (1, 101), 1: (4, 100)}, (1, 4)),
        ({0: (3, 100), 1: (130, 100)}, (0, 3)),
    ],
)
def test_the_process_that_failed_first_is_named(ended: dict[int, tuple[int, int]], first: tuple[int, int]) -> None:
    failures = {rank: ProcessFailure(rank, 1000 + rank, code, "none") for rank, (code, _) in ended.items()}
    for rank, (_, second) in ended.items():
        failures[rank].timestamp = second
    assert launch._first_failure(ChildFailedError("dapo_stages", failures)) == first
