"""Losses from files of the user: they train like the package's own, and what they may return."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support.pipeline import Run, metrics

from dapo_stages.errors import ConfigError, DataError
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.shards import sha256_of
from dapo_stages.maths import loss_types
from dapo_stages.maths.loss_inputs import LossInputs
from dapo_stages.maths.loss_types import LossSettings
from dapo_stages.maths.objective import policy_loss
from dapo_stages.training.loss_file import LossFile

SETTINGS = LossSettings(epsilon_low=0.2, epsilon_high=0.28)
OF_DAPO = """
def f(ratio_T, advantages_T, settings):
    clipped_T = ratio_T.clamp(1 - settings.epsilon_low, 1 + settings.epsilon_high)
    return torch.maximum(-ratio_T * advantages_T, -clipped_T * advantages_T)
"""


@pytest.fixture(autouse=True)
def _no_loss_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_types, "LOSSES", dict(loss_types.LOSSES))


def opened(root: Path, code: str, where: str = "mine.py:f") -> LossFile:
    (root / "mine.py").write_text(f"import torch\n{code}\n")
    return LossFile(where, root)


def refused(root: Path, body: str) -> str:
    loss = opened(root, f"def f(ratio_T, new_T, advantages_T):\n    {body}")
    with pytest.raises(DataError) as raised:
        loss.register(SETTINGS)
    assert "mine.py:f" not in loss_types.LOSSES
    return str(raised.value)


def test_dapo_written_out_is_dapo(tmp_path: Path) -> None:
    """Value and gradient, with token weights, an engine's weight, a KL term and a masked token."""
    generator = torch.Generator().manual_seed(1)
    new, old, sampling, reference = (torch.randn(4, 12, generator=generator, dtype=torch.float64) / 2 - 2).unbind()
    given: dict[str, Any] = {
        "old_T": old,
        "sampling_T": sampling,
        "reference_T": reference,
        "advantages_T": torch.tensor([1.5] * 7 + [-0.7] * 5, dtype=torch.float64),
        "weights_T": torch.rand(12, generator=generator, dtype=torch.float64),
        "mask_T": torch.arange(12) != 3,
        "sequence_ids_T": torch.tensor([0] * 7 + [1] * 5),
    }
    opened(tmp_path, OF_DAPO).register(SETTINGS)
    found = []
    for loss_type in ("dapo", "mine.py:f"):
        leaf = new.clone().requires_grad_()
        settings = LossSettings(epsilon_low=0.2, epsilon_high=0.28, loss_type=loss_type, beta=0.1)
        loss, sums = policy_loss(LossInputs(new_T=leaf, **given), settings, normalizer=11.0)
        found.append((loss.item(), torch.autograd.grad(loss, leaf)[0], sums))
    (wanted, gradient, sums), (own, own_gradient, own_sums) = found
    assert sums["clipped_low"] > 0 and sums["clipped_high"] > 0  # and none of an own loss, which may have no clip
    assert own_sums["clipped_low"] == own_sums["clipped_high"] == 0
    assert own == pytest.approx(wanted, rel=1e-12)
    torch.testing.assert_close(own_gradient, gradient, rtol=1e-12, atol=0)


def test_a_train_step_with_it_is_that_of_dapo(small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(f"import torch\n{OF_DAPO}")
    monkeypatch.chdir(tmp_path)
    small_run.command("train-step", *small_run.train_inputs(1), "--out", tmp_path / "t", train__loss_type="mine.py:f")
    wanted, found = metrics(small_run.at(1) / "train"), metrics(tmp_path / "t")
    for name in ("loss", "grad_norm", "ratio_max"):
        assert found[name].tolist() == pytest.approx(wanted[name].tolist(), rel=1e-4)
    manifest = Source(tmp_path / "t").manifest
    assert manifest.config["files"] == {"train.loss_type": sha256_of(tmp_path / "mine.py")}
    assert (tmp_path / "t/train.loss_type.py").read_bytes() == (tmp_path / "mine.py").read_bytes()
    assert "train.loss_type.py" in {shard.name for shard in manifest.shards}
    assert "files" not in Source(small_run.at(1) / "train").manifest.config
    assert [path.name for path in tmp_path.iterdir() if path.name not in {"t"}] == ["mine.py"]  # no bytecode


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("return 1.0", "a float"),
        ("return (ratio_T * advantages_T).sum()", "a tensor [] of torch.float32"),
        ("return ratio_T[:2]", "a tensor [2] of torch.float32"),
        ("return ratio_T > 1", "a tensor [4] of torch.bool"),
        ("return -ratio_T.detach() * advantages_T", "a tensor without a gradient (detached, or not made of ratio_T or"),
        ("return ratio_T / (advantages_T - 1)", "inf for token 0"),
        ("return advantages_T.log() * ratio_T", "nan for token 3"),
        ("return ratio_T[9]", "IndexError: index 9 is out of bounds for dimension 0 with size 4 (line 3)"),
    ],
)
def test_what_it_may_not_return(body: str, found: str, tmp_path: Path) -> None:
    said = refused(tmp_path, body)
    assert said.startswith(
        "mine.py:f: the loss must give a tensor [4] with a finite number for each token and a gradient, got "
    )
    assert found in said and said.endswith("with --overwrite if the file was edited.")


def test_logprobs_that_are_not_finite_are_for_the_guard(tmp_path: Path) -> None:
    loss = opened(tmp_path, "def f(ratio_T, advantages_T):\n    return -ratio_T * advantages_T")
    nan = torch.tensor([float("nan"), 0.0], requires_grad=True)
    ones = torch.ones(2)
    inputs = LossInputs(nan, torch.zeros(2), ones, ones, ones.bool(), torch.zeros(2, dtype=torch.long))
    assert loss.gain(nan.exp(), inputs, SETTINGS, ones).isnan().tolist() == [True, False]


@pytest.mark.parametrize(
    ("code", "where", "said"),
    [
        (
            "def g(ratio_T): pass",
            "mine.py:f",
            "mine.py: no function f in this file. Write `def f(ratio_T, advantages_T",
        ),
        ("def f(ratio): pass", "mine.py:f", "mine.py:f: the parameter ratio must be one of ratio_T, new_T, old_T"),
        (
            "1 // 0",
            "mine.py:f",
            "mine.py: cannot import the file (ZeroDivisionError: integer division or modulo by zero",
        ),
        ("", "no.py:f", "no.py: the file does not exist."),
        ("", "../mine.py:f", "'../mine.py' is outside the working folder"),
    ],
)
def test_mistakes_show_before_anything_is_loaded(code: str, where: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        opened(tmp_path, code, where)
    assert re.sub(rf"{tmp_path}/", "", str(raised.value)).startswith(f"train.loss_type: {said}")
