"""The launcher: what it cannot start is said in one line."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from dapo_stages import launch


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
    assert said.startswith("accelerate launch: found that it cannot start (") and reason in said
    assert said.endswith(
        "; needed accelerate, and a configuration that it takes. Install it, or name a file of pipelines/accelerate.\n"
    )
