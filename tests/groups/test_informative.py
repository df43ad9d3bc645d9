"""Which groups dynamic sampling keeps, by hand."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from dapo_stages.config import Config
from dapo_stages.groups.informative import Informative, Judged, advice

PLUGINS = {"plugins": {"brevity": "a.py:brevity"}}


def configured(**informative: Any) -> Config:
    return Config.model_validate(
        {
            "rollout": {"informative": informative or None, "num_generations": 4},
            "rewards": PLUGINS,
            "planned_iterations": 100,
            "weights": {
                "reward_weights": {"accuracy": 1.0, "format": 1.0, "overlong": 0.0, "plugins": {"brevity": 0.5}},
                "early_reward_weights": {"accuracy": 0.0, "format": 1.0, "plugins": {"brevity": 0.0}},
            },
        }
    )


def judged(config: Config, iteration: int = 50, **rewards: list[float | None]) -> Judged:
    """A group of four, whose rewards are 0 unless given."""
    names = ("accuracy", "format", "overlong", "brevity")
    columns = {f"reward_{name}": rewards.get(name, [0.0] * 4) for name in names}
    rows = [{"group_id": "g", **{name: values[at] for name, values in columns.items()}} for at in range(4)]
    (group,) = Informative(config, iteration, ("brevity",)).groups(rows)
    return group


ALL: list[float | None] = [1.0] * 4
NONE: list[float | None] = [0.0] * 4
SOME: list[float | None] = [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(("accuracy", "correct", "wanted"), [(ALL, 4, False), (NONE, 0, False), (SOME, 1, True)])
def test_without_a_setting_accuracy_decides(accuracy: list[float | None], correct: int, wanted: bool) -> None:
    group = judged(configured(), accuracy=accuracy, brevity=[0.1, 0.2, 0.3, 0.4])
    assert (group.correct, group.wanted) == (correct, wanted)


def test_graded_answers_differ_without_being_right() -> None:
    group = judged(configured(), accuracy=[0.5, 0.0, 0.0, 0.0])
    assert (group.correct, group.wanted) == (0, True)
    assert not judged(configured(), accuracy=[0.5] * 4).wanted


def test_a_plug_in_decides_where_it_is_named() -> None:
    config = configured(reward="brevity")
    assert judged(config, brevity=[0.1, 0.2, 0.3, 0.4]).wanted
    assert not judged(config, accuracy=SOME).wanted
    assert judged(config, brevity=[0.5, None, None, None]).wanted  # no opinion adds nothing: 0
    assert not judged(config, brevity=[None] * 4).wanted


def test_the_total_is_that_of_the_phase() -> None:
    config = configured(reward="total")
    assert judged(config, accuracy=SOME).wanted
    assert judged(config, brevity=[0.1, 0.2, 0.3, 0.4]).wanted
    assert not judged(config, overlong=[-1.0, 0.0, 0.0, 0.0]).wanted  # weighs 0
    # 1 of accuracy and 2 · 0.5 of brevity are equal.
    assert not judged(config, accuracy=SOME, brevity=[0.0, 2.0, 2.0, 2.0]).wanted
    assert not judged(config, iteration=1, accuracy=SOME).wanted
    assert judged(config, iteration=1, format=SOME).wanted


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (None, None, True),
        (0.2, None, True),
        (0.25, None, False),
        (None, 0.3, True),
        (None, 0.25, False),
        (0.2, 0.3, True),
    ],
)
def test_the_mean_may_be_bounded(low: float | None, high: float | None, wanted: bool) -> None:
    """EasyR1's filter_low and filter_high, which exclude their ends."""
    assert judged(configured(reward="accuracy", low=low, high=high), accuracy=SOME).wanted == wanted


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"rollout": {"informative": {"reward": "gone"}}}, "must be one of accuracy, format, overlong, brevity, total"),
        ({"rollout": {"informative": {"reward": "vgr"}}}, "must be one of"),
        ({"rollout": {"informative": {"low": 0.5, "high": 0.5}}}, "low must be below high"),
        (
            {"rollout": {"informative": {"reward": "total"}}, "weights": {"reward_weights": {"vgr": 0.5}}},
            r"total needs weights\.reward_weights\.vgr 0, because VGR is not known at rollout \(got 0\.5\)",
        ),
    ],
)
def test_what_cannot_decide_is_refused(changed: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        Config.model_validate({"rewards": PLUGINS, **changed})


def group(correct: int, *differs: str, wanted: bool = False) -> Judged:
    return Judged(correct, wanted, frozenset(differs))


@pytest.mark.parametrize(
    ("groups", "reward", "said"),
    [
        ([group(1, "accuracy", wanted=True), group(0)], "accuracy", "Raise rollout.max_resample_rounds"),
        ([group(0, "brevity"), group(0)], "accuracy", "of 1 of 2 groups differ in reward_brevity"),
        ([group(0, "brevity", "format"), group(0, "format")], "accuracy", "of 1 of 2 groups differ in reward_brevity"),
        ([group(0), group(0, "format")], "accuracy", "No completion is right"),
        ([group(4), group(4)], "accuracy", "Every completion is right"),
        ([group(4), group(0)], "accuracy", "Raise rollout.num_generations"),
        ([group(0), group(0)], "brevity", "Raise rollout.num_generations"),
    ],
)
def test_the_advice_fits_the_groups(groups: list[Judged], reward: str, said: str) -> None:
    assert said in advice(groups, reward, 4)
