"""Schedules: values computed by hand, and every mistake named with its schedule."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from test_config import FIX, load, refused

from dapo_stages.config import Config, Schedule, dump_config
from dapo_stages.config.schedules import SCHEDULED, SHARES

KL = "train.beta: {start: 0.0, end: 0.04, over: 0.5}"


def at(iteration: int, **settings: Any) -> float:
    return Schedule(**{"start": 1.0, "end": 3.0, "over": 0.5, **settings}).at(iteration, 100)


def number(config: Config, name: str) -> Any:
    """The value of a dotted key."""
    return reduce(getattr, name.split("."), config)


@pytest.mark.parametrize(
    ("shape", "iteration", "value"),
    [
        ("linear", 1, 1), ("linear", 26, 2), ("linear", 51, 3), ("linear", 1000, 3),
        ("cosine", 1, 1), ("cosine", 26, 2), ("cosine", 51, 3),
        ("cosine", 13, 1 + 2 * 0.5 * (1 - 0.7289686274214116)),  # cos(0.24 π)
        ("step", 1, 1), ("step", 50, 1), ("step", 51, 3),
    ],
)  # fmt: skip
def test_a_schedule_goes_from_start_to_end_over_its_share(shape: str, iteration: int, value: float) -> None:
    assert at(iteration, shape=shape) == pytest.approx(value, rel=1e-12)


def test_a_share_that_ends_with_an_iteration_is_over_in_the_next() -> None:
    assert at(8, over=0.07, shape="step") == 3 and at(7, over=0.07, shape="step") == 1


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_no_value_is_outside_its_ends(shape: str) -> None:
    found = [at(i, start=0.1, end=0.3, over=1.0, shape=shape) for i in range(1, 200)]
    assert min(found) == 0.1 and max(found) == 0.3 and found == sorted(found)


def test_the_configuration_of_an_iteration_has_numbers_in_place_of_schedules(tmp_path: Path) -> None:
    config = load(tmp_path, f"planned_iterations: 100\nschedules: {{{KL}}}\n")
    assert [config.at(i).train.beta for i in (1, 26, 51, 100)] == pytest.approx([0, 0.02, 0.04, 0.04])
    assert config.at(26).schedules == {} and config.train.beta == 0
    assert config.at(26).model_copy(update={"train": config.train, "schedules": config.schedules}) == config
    assert config.at(26).sections("train")["train"]["beta"] == pytest.approx(0.02)
    assert load(tmp_path, dump_config(config)) == config


def test_without_schedules_nothing_changes() -> None:
    config = Config()
    assert config.at(7) is config


@pytest.mark.parametrize(
    ("text", "override"),
    [
        ("", "schedules.train.beta={start: 0.0, end: 0.04, over: 0.5}"),
        ("schedules: {train: {beta: {start: 0.0, end: 0.04, over: 0.5}}}", "seed=42"),
        ("schedules: {train.beta: {start: 0.0, end: 9, over: 0.5}}", "schedules.train.beta.end=0.04"),
        (f"schedules: {{{KL}, train.epsilon_high: {{start: 0.2, end: 0.3}}}}", "schedules.train.epsilon_high=null"),
    ],
)
def test_a_schedule_is_named_by_its_dots_or_in_sections(text: str, override: str, tmp_path: Path) -> None:
    assert load(tmp_path, text, override).schedules == {"train.beta": Schedule(start=0, end=0.04, over=0.5)}


@pytest.mark.parametrize("name", SCHEDULED)
def test_what_can_have_a_schedule_is_a_number_of_the_configuration(name: str) -> None:
    values = {"rollout": {"curriculum": {}}, "train": {"perception": {}}, "planned_iterations": 2}
    assert isinstance(number(Config.model_validate(values), name), float)
    config = Config.model_validate(values | {"schedules": {name: {"start": 0.5, "end": 0.6}}})
    assert number(config.at(2), name) == pytest.approx(0.55)


@pytest.mark.parametrize(
    ("schedules", "message"),
    [
        ("{train.beta: {start: 0, end: -1}}",
         "schedules.train.beta.end must be greater than or equal to 0 (got -1)"),
        ("{train.top_entropy_quantile: {start: 0, end: 1}}",
         "schedules.train.top_entropy_quantile.start must be greater than 0 (got 0)"),
        ("{train.epsilon_high: {start: 0.2, end: 3}}",
         "schedules.train.epsilon_high.end is 3: delta must be greater than 1 + epsilon_high (4) or null, got 2"),
        ("{rollout.sampler.temperature: {start: 1, end: 2.5}}",
         "schedules.rollout.sampler.temperature.end is 2.5: rollout.sampler.temperature must be at most 2 with "
         "rollout.engine vllm, because it divides the bias that keeps special tokens from being sampled (got 2.5)"),
        ("{rollout.curriculum.target: {start: 0.8, end: 0.5}}",
         "schedules.rollout.curriculum.target needs the section rollout.curriculum, such as {}"),
        ("{train.beta: {start: 0, end: one}}", "schedules.train.beta.end must be a valid number, unable to "
         "parse string as a number (got 'one')"),
        ("{train.beta: {start: 0, end: 1, shap: step}}",
         "schedules.train.beta.shap is not a setting (did you mean schedules.train.beta.shape?)"),
        ("{train.beta: {start: 0, end: 1, over: 0}}",
         "schedules.train.beta.over must be greater than 0 (got 0)"),
        ("{train.beta: {start: 0}}",
         "schedules.train.beta.end is missing (got {'start': 0})"),
        ("{train.beta: 0.5}", "schedules.train.beta must be a valid dictionary or instance of Schedule (got 0.5)"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_schedule(schedules: str, message: str, tmp_path: Path) -> None:
    text = f"schedules: {schedules}\ntrain: {{delta: 2}}\nrollout: {{engine: vllm}}\n"
    assert refused(tmp_path, text) == f"run.yaml: {message}\n{FIX}"


@pytest.mark.parametrize("name", ["train.learning_rate", "train.loss_type", "train.bta", "seed", "weights.replay.size"])
def test_what_cannot_have_a_schedule_is_refused_with_what_can(name: str, tmp_path: Path) -> None:
    message = refused(tmp_path, f"schedules: {{{name}: {{start: 0, end: 1}}}}")
    known = ", ".join([*SCHEDULED, f"{SHARES}NAME"])
    assert message == f"run.yaml: schedules: '{name}' cannot have a schedule (expected one of {known})\n{FIX}"
