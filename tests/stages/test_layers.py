"""weights.layers and weights.vgr_layers: measured by score-attention, taken by weight-tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.pipeline import Run, table

from dapo_stages.handoff.manifests import Source

OWN = {"weights__layers": "{last: 2}", "weights__vgr_layers": "[0]"}  # of four: the last third, and the first


@pytest.fixture(scope="module")
def scored(small_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("layers") / "attention"
    inputs = "--policy", small_run.policy(0), "--rollouts", small_run.at(1) / "rollout"
    small_run.command("score-attention", *inputs, "--out", out, **OWN)
    return out


def weigh(run: Run, attention: Path, out: Path, **settings: object) -> tuple[int, str]:
    inputs = "--rollouts", run.at(1) / "rollout", "--attention", attention, "--iteration", 1, "--out", out
    result = run.attempt("weight-tokens", *inputs, **settings)
    return result.code, result.stderr


def test_own_layers_are_measured_beside_the_thirds(small_run: Run, scored: Path) -> None:
    ours, before = table(scored, "attention"), table(small_run.at(1) / "attention", "attention")
    assert not {"token_vgr_layers", "vgr_layers"} & set(before)
    kept = ours[ours.status == "ok"]
    assert len(kept) and ours[ours.status != "ok"].token_vgr_layers.isna().all()
    for row in kept.itertuples():
        assert np.array_equal(row.token_vgr_layers, row.token_vgr_late)
        assert row.vgr_layers == row.vgr_early
        assert not np.allclose(row.token_vgr_early, row.token_vgr_late, rtol=1e-2)
    made = Source(scored).manifest.config
    assert (made["weights.layers"], made["weights.vgr_layers"]) == ({"last": 2}, [0])
    assert not any(name.startswith("weights") for name in Source(small_run.at(1) / "attention").manifest.config)


def test_token_weights_are_those_of_the_layers(small_run: Run, scored: Path, tmp_path: Path) -> None:
    attention = table(scored, "attention").set_index("completion_id")
    for name, layers, column in (("late", "late", "token_vgr_late"), ("own", "{last: 2}", "token_vgr_layers")):
        weigh(small_run, scored, tmp_path / name, weights__layers=layers, weights__smooth_sigma=0)
        for row in table(tmp_path / name, "weights").itertuples():
            order = np.argsort(attention[column][row.completion_id])
            assert (np.diff(row.token_weights[order]) <= 1e-6).all()


def test_the_reward_is_that_of_the_layers(small_run: Run, scored: Path, tmp_path: Path) -> None:
    """mad: 1 for the lowest VGR of a group; the ranks of a group are those of the column."""
    attention = table(scored, "attention").set_index("completion_id")
    mad = {"weights__vgr_mapping": "mad", "weights__vgr_min_range": 0}
    for name, layers, column in (("late", "late", "vgr_late"), ("own", "[0]", "vgr_layers")):
        weigh(small_run, scored, tmp_path / name, weights__vgr_layers=layers, **mad)
        for _, group in table(tmp_path / name, "weights").groupby("group_id"):
            order = np.argsort(attention[column][group.completion_id].to_numpy())
            assert (np.diff(group.reward_vgr.to_numpy()[order]) <= 1e-6).all()


def test_layers_that_were_not_measured_need_scoring_again(small_run: Run, scored: Path, tmp_path: Path) -> None:
    code, said = weigh(small_run, scored, tmp_path / "w", weights__layers="{last: 1}")
    assert code == 3
    assert 'the VGR was not measured over weights.layers={"last": 1}. Run dapo-stages score-attention --set ' in said
    assert """'weights.layers={"last": 1}' --config FILE --policy """ in said
    plain = small_run.at(1) / "attention"
    code, said = weigh(small_run, plain, tmp_path / "w", weights__vgr_layers="[1, 2]")
    assert code == 3 and "the VGR was not measured over weights.vgr_layers=[1, 2]. Run" in said


@pytest.mark.parametrize(
    ("layers", "problem"),
    [
        ("[2, 4]", "weights.layers names layer 4, but the policy has 4 layers, counted from 0. Change weights.layers"),
        ("{last: 5}", "weights.layers names the last 5 layers, but the policy has 4. Change weights.layers"),
    ],
)
def test_a_layer_that_the_policy_lacks_is_named(small_run: Run, tmp_path: Path, layers: str, problem: str) -> None:
    inputs = "--policy", small_run.policy(0), "--rollouts", small_run.at(1) / "rollout", "--out", tmp_path / "a"
    result = small_run.attempt("score-attention", *inputs, weights__layers=layers)
    assert result.code == 3 and problem in result.stderr
