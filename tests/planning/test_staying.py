"""Which stages still read a policy if their processes stay."""

from __future__ import annotations

from typing import Any

import pytest

from dapo_stages.config import Config
from dapo_stages.planning.dimensions import dimensions_of
from dapo_stages.planning.published_models import EMBEDDED
from dapo_stages.planning.run_plan import Plan
from dapo_stages.planning.stage_costs import Rates
from dapo_stages.planning.stage_memory import Parallel
from dapo_stages.planning.staying import readers

ALL = ["rollout", "score-attention", "train-step", "evaluate"]
LORA = {"lora": {"rank": 4}}


def planned(parallel: Parallel = "single", *, resident: bool = True, questions: int = 8, **settings: Any) -> Plan:
    ranks = 1 if parallel == "single" else 2
    config, rates = Config.model_validate(settings), Rates(1, 1, 1, 1)
    return Plan(dimensions_of(EMBEDDED), config, ranks, parallel, "cuda", rates, questions=questions, resident=resident)


@pytest.mark.parametrize(
    ("plan", "found"),
    [
        (planned(resident=False), ALL),
        (planned(resident=False, questions=0), ALL[:3]),
        (planned(), []),  # train-step takes the policy that was sampled from, and keeps the new one
        # An adapter is read for training, and its merged form by the first who samples with it.
        (planned(train=LORA), ["train-step", "evaluate"]),
        (planned(questions=0, train=LORA), ["rollout", "train-step"]),
        (planned(model={"compile": True}), ["evaluate"]),
        # Of the newest policy and the one before it, one is kept; evaluate finds the one that was trained.
        (planned(lag=1), ["rollout", "train-step"]),
        (planned("zero2"), ["train-step", "evaluate"]),
        (planned("zero2", questions=0), ["rollout", "train-step"]),
        (planned(rollout={"engine": "vllm"}), ["rollout"]),
        (planned(rollout={"engine": "server"}), []),
    ],
)
def test_a_policy_is_read_by_those_who_do_not_find_it_in_memory(plan: Plan, found: list[str]) -> None:
    assert readers(plan) == found
