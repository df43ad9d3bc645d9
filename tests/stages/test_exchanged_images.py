"""attention.blank: what is drawn does not depend on batches, an interruption or the number of processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import machine
from support.pipeline import Run, table
from support.processes import together

from dapo_stages.data.blanks import Blanks
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.shards import Row
from dapo_stages.stages.score_attention import Scoring

EXCHANGED = {"attention__blank_image": "true", "attention__blank": "exchanged", "attention__blank_draws": 2}
SCORES = ["blank_logprobs", "visual_kl", "blank_entropy", "jsd", "k3"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with machine.one_thread():
        yield


def inputs(run: Run, out: Path, **settings: Any) -> list[object]:
    folders = ["--policy", run.policy(0), "--rollouts", run.at(1) / "rollout", "--out", out]
    return ["score-attention", *run.options(**EXCHANGED | settings), *folders]


@pytest.fixture(scope="module")
def exchanged(small_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exchanged") / "a"
    with machine.one_thread():
        small_run.command(*inputs(small_run, out))
    return out


def scored(folder: Path) -> Any:
    found = table(folder, "attention").set_index("completion_id")
    return found[found.status == "ok"]


def test_batches_of_another_size_give_the_same(small_run: Run, exchanged: Path, tmp_path: Path) -> None:
    """Were images exchanged within a forward pass, batches of a single group would have none to take."""
    small_run.command(*inputs(small_run, tmp_path / "a", attention__batch_completions=1))
    together, alone = scored(exchanged), scored(tmp_path / "a")
    assert list(together.index) == list(alone.index) and len(alone)
    for name in SCORES:
        for key in alone.index:
            assert np.allclose(alone[name][key], together[name][key], rtol=1e-3, atol=1e-5), name
    assert (np.concatenate(list(alone.jsd)) <= np.log(2) + 1e-6).all()


def test_an_interrupted_stage_goes_on_with_the_same_images(
    small_run: Run, exchanged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score, calls = Scoring._score, []

    def interrupted(self: Scoring, batch: list[Row], *more: Any) -> dict[str, Row]:
        calls.append(len(batch))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score(self, batch, *more)

    with monkeypatch.context() as patched:
        patched.setattr(Scoring, "_score", interrupted)
        stopped = small_run.attempt(*inputs(small_run, tmp_path / "a"))
    assert stopped.code != 0 and len(list((tmp_path / "a").glob("attention-*.parquet"))) == 1
    small_run.command(*inputs(small_run, tmp_path / "a"))
    assert Source(tmp_path / "a").manifest.content_hash == Source(exchanged).manifest.content_hash


def test_two_processes_exchange_the_same_images(small_run: Run, exchanged: Path, tmp_path: Path) -> None:
    results = together(2, *inputs(small_run, tmp_path / "a"))
    assert [result.code for result in results] == [0, 0], results
    assert Source(tmp_path / "a").manifest.content_hash == Source(exchanged).manifest.content_hash


def test_the_mean_over_draws_is_that_of_single_draws(small_run: Run, exchanged: Path, tmp_path: Path) -> None:
    """A draw at a time, by shifting their numbers; blank_logprobs are of the mean probability."""
    draws, drawn = [], Blanks.__call__
    for number in range(2):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Blanks, "__call__", lambda self, row, draw, number=number: drawn(self, row, draw + number))
            small_run.command(*inputs(small_run, tmp_path / f"{number}", attention__blank_draws=1))
        draws.append(scored(tmp_path / f"{number}"))
    both = scored(exchanged)
    for key in both.index:
        for name in SCORES[1:]:
            mean = (draws[0][name][key] + draws[1][name][key]) / 2
            assert np.allclose(both[name][key], mean, rtol=1e-5, atol=1e-6), name
        mean = np.log((np.exp(draws[0].blank_logprobs[key]) + np.exp(draws[1].blank_logprobs[key])) / 2)
        assert np.allclose(both.blank_logprobs[key], mean, atol=1e-5)
    assert any(not np.allclose(draws[0].jsd[key], draws[1].jsd[key]) for key in both.index)


@pytest.mark.parametrize("blank", ["patches", "noise", "removed"])
def test_the_other_kinds_are_scored_too(small_run: Run, exchanged: Path, tmp_path: Path, blank: str) -> None:
    small_run.command(*inputs(small_run, tmp_path / "a", attention__blank=blank, attention__blank_draws=1))
    found = scored(tmp_path / "a")
    assert any(not np.allclose(found.jsd[key], scored(exchanged).jsd[key]) for key in found.index)
    assert Source(tmp_path / "a").manifest.config["attention"]["blank"] == blank
