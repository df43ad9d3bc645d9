"""weight-tokens with what depends on more than a completion: quantiles, selection, factors, schemes from files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support import groups
from support.commands import run
from support.pipeline import table

from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.shards import Row, sha256_of

OPEN = {"weights__clip": "[0, 1000]", "weights__replay__size": 0}
REWARDS = [[1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]]  # the second group has no signal and is left out
SCORES = ("entropy", "logprobs", "blank_logprobs", "k3")


def scores(completion_id: str, tokens: int) -> Row:
    """Different numbers for each token of each completion, the highest ones in the group that is left out."""
    group, sample = int(completion_id[5]), int(completion_id[8])
    rng = np.random.default_rng([group, sample])
    found = {name: (rng.random(tokens) + (5 if group == 1 else 0)).astype(np.float32).tolist() for name in SCORES}
    return found | {"num_text_tokens": 4, "num_vision_tokens": 4}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    return groups.sampled(tmp_path_factory.mktemp("rollouts"), 1, REWARDS, vgr=(1, 2, 4), columns=scores)


def weighed(out: Path, inputs: list[object], **settings: object) -> pd.DataFrame:
    """Weights of the completions, with their attention and `in_loss`, by id."""
    rows = table(groups.weigh(out, inputs, **OPEN, **settings), "weights")
    return rows.merge(table(Path(str(inputs[3])), "attention"), on="completion_id").set_index("completion_id")


def all_of(rows: pd.DataFrame, column: str) -> Any:
    return np.concatenate(rows[column].tolist())


def test_tor_compares_with_all_tokens_in_the_loss(tmp_path: Path, inputs: list[object]) -> None:
    rows = weighed(tmp_path / "w", inputs, weights__scheme="tor")
    trained = rows[rows.in_loss]
    assert len(trained) == 8
    entropy = all_of(trained, "entropy")
    change = np.abs(all_of(trained, "logprobs") - all_of(trained, "blank_logprobs"))
    count = math.ceil(0.3 * len(entropy))  # 22 of 72
    cuts = np.sort(entropy)[-count], np.sort(change)[-count]
    raw = np.where(entropy >= cuts[0], 1.0, np.where(change >= cuts[1], 0.5, 0.0))
    assert (raw == 1).sum() == count and (raw == 0.5).any()
    lengths = trained.token_weights.map(len)
    starts = np.cumsum(lengths) - lengths
    for row, start in zip(trained.itertuples(), starts, strict=True):
        own = raw[start : start + len(row.token_weights)]
        np.testing.assert_allclose(row.token_weights, own / own.mean(), rtol=1e-5)


def test_selection_among_all_tokens_keeps_their_mean(tmp_path: Path, inputs: list[object]) -> None:
    select = "{top: 0.25, by: batch, equal: true}"
    trained = weighed(tmp_path / "w", inputs, weights__scheme="vppo", weights__select=select).query("in_loss")
    k3, weights = all_of(trained, "k3"), all_of(trained, "token_weights")
    np.testing.assert_array_equal(weights > 0, k3 >= np.sort(k3)[-18])  # a quarter of 72
    np.testing.assert_allclose(weights[weights > 0], 4.0)
    assert weights.mean() == pytest.approx(1)
    assert (trained.token_weights.map(lambda own: (own > 0).mean()) != 0.25).any()


def test_selection_in_each_completion_is_vppos(tmp_path: Path, inputs: list[object]) -> None:
    """The 40% with the most k3, all alike: 5 of 11, 3 of 6 and 4 of 8; unscaled as published, or with mean 1."""
    settings = {"weights__scheme": "vppo", "weights__select": "{top: 0.4, equal: true}"}
    published = weighed(tmp_path / "p", inputs, **settings, weights__mean_preserving="false")
    kept = weighed(tmp_path / "k", inputs, **settings)
    for key, row in published.iterrows():
        count = {11: 5, 6: 3, 8: 4}[len(row.k3)]
        np.testing.assert_array_equal(row.token_weights, row.k3 >= np.sort(row.k3)[-count])
        np.testing.assert_allclose(kept.token_weights[key], row.token_weights * len(row.k3) / count, rtol=1e-6)


def test_selected_tokens_may_weigh_by_their_scores(tmp_path: Path, inputs: list[object]) -> None:
    """Bounds hold for weights among the selected tokens, whose mean is 1 before it becomes that of the completion."""
    settings = {"weights__scheme": "vppo", "weights__select": "{top: 0.5}"}
    rows = weighed(tmp_path / "w", inputs, **settings)
    bounded = table(groups.weigh(tmp_path / "b", inputs, **settings, weights__clip="[0.9, 1.1]"), "weights")
    for row in rows.itertuples():
        chosen = row.k3 >= np.sort(row.k3)[-math.ceil(len(row.k3) / 2)]
        among = np.where(chosen, row.k3, 0)
        np.testing.assert_allclose(row.token_weights, among / among.mean(), rtol=1e-5)
    assert sum((np.isclose(weights * (weights > 0).mean(), 1.1)).any() for weights in bounded.token_weights) > 4
    for weights in bounded.token_weights:
        share = (weights > 0).mean()
        assert weights.mean() == pytest.approx(1)
        assert (weights[weights > 0] * share >= 0.9 - 1e-6).all() and (weights * share <= 1.1 + 1e-6).all()


def test_a_factor_of_completions_is_that_of_the_formula(tmp_path: Path, inputs: list[object]) -> None:
    rows = weighed(tmp_path / "w", inputs, weights__scheme="uniform", weights__completion_factor="vppo")
    for _, group in rows.groupby("group_id"):
        score = group.k3.map(np.mean)
        scaled = (score - score.min()) / (score.max() - score.min())
        want = 0.9 + scaled * 0.1 / scaled.mean()
        assert group.token_weights.map(np.min).to_numpy() == pytest.approx(want.to_numpy(), rel=1e-5)
        assert group.token_weights.map(np.max).to_numpy() == pytest.approx(want.to_numpy(), rel=1e-5)


def test_completions_with_a_negative_advantage_are_scaled(tmp_path: Path, inputs: list[object]) -> None:
    plain = weighed(tmp_path / "p", inputs)
    rows = weighed(tmp_path / "w", inputs, weights__negative_scale=0.25)
    assert (rows.advantage < 0).sum() == 5 and (rows.advantage > 0).sum() == 3
    for key, row in rows.iterrows():
        scale = 0.25 if row.advantage < 0 else 1.0
        np.testing.assert_allclose(row.token_weights, scale * plain.token_weights[key], rtol=1e-6)


def test_weights_are_mixed_in_over_the_iterations(tmp_path: Path, inputs: list[object]) -> None:
    """λ from 0.2 in iteration 1 to 1 in the last of 5."""
    schedule = {"schedules__weights__mixing": "{start: 0.2, end: 1.0}", "planned_iterations": 5}
    plain = weighed(tmp_path / "p", inputs)
    rows = weighed(tmp_path / "w", inputs, **schedule)
    for key, row in rows.iterrows():
        np.testing.assert_allclose(row.token_weights, 0.8 + 0.2 * plain.token_weights[key], rtol=1e-5)


@pytest.mark.parametrize(
    ("setting", "column", "advice"),
    [
        ("scheme=vgpo", "vision_cosine", "--set attention.vision_cosine=true"),
        ("scheme=vepo", "blank_entropy, jsd", "--blank-image"),
        ("completion_factor=vgpo", "vision_cosine", "--set attention.vision_cosine=true"),
    ],
)
def test_what_was_not_measured_is_named(
    setting: str, column: str, advice: str, tmp_path: Path, inputs: list[object]
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("seed: 1\n")
    out = tmp_path / "w"
    result = run("weight-tokens", "--config", config, *inputs, "--set", f"weights.{setting}", "--out", out)
    assert result.code == 3 and not out.exists()
    assert f"no {column} per token, which weights.{setting} needs. Run dapo-stages score-attention {advice}" in (
        result.stderr
    )


# A scheme from a file


def test_a_scheme_of_ones_own(tmp_path: Path, inputs: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets arrays, texts and ids, and its file is part of what the weights were made from."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "import numpy as np\n"
        "def early(vgr, token_texts, completion_ids, num_text_tokens):\n"
        "    place = completion_ids.astype(float)\n"
        "    tags = np.array(['<' in text for text in token_texts])\n"
        "    return np.where(tags, 0.0, 1 / vgr + place * num_text_tokens)\n"
    )
    rows = weighed(tmp_path / "w", inputs, weights__scheme="mine.py:early")
    completions = table(Path(str(inputs[1])), "completions").set_index("completion_id")
    for key, row in rows.iterrows():
        tags = np.array(["<" in text for text in completions.token_texts[key]])
        raw = np.where(tags, 0.0, 1 / row.vgr + 4 * completions.completion_ids[key])
        np.testing.assert_allclose(row.token_weights, raw / raw.mean(), rtol=1e-5)
    assert Source(tmp_path / "w").manifest.config["files"] == {"weights.scheme": sha256_of(tmp_path / "mine.py")}
    assert (tmp_path / "w/weights.scheme.py").read_bytes() == (tmp_path / "mine.py").read_bytes()
