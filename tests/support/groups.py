"""Groups whose rewards are set by hand, as the stages before weight-tokens would have left them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pandas as pd
from reporting import tiny_run

from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.outputs import Output
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.schemas import READING, SCHEMAS
from dapo_stages.handoff.shards import Row
from support.commands import run
from support.pipeline import table

# The reward is reward_accuracy, and nothing else counts.
SETTINGS = {
    "weights.early_fraction": 0,
    "weights.reward_weights": "{accuracy: 1, vgr: 0, format: 0, overlong: 0}",
}


def sampled(
    folder: Path,
    number: int,
    groups: Sequence[Sequence[float]],
    vgr: Sequence[float] = (),
    columns: Callable[[str, int], Row] | None = None,
    masks: Callable[[str, int], list[bool] | None] | None = None,
    **rollout: Any,
) -> list[object]:
    """Rollouts of an iteration, the accuracy of each completion given by group, and their attention.

    Gives the inputs of weight-tokens. The tokens of a completion have `vgr` in turn; without it none was scored.
    `columns` gives more of its attention row, from its id and number of tokens, `masks` its loss_mask.
    `rollout` are keys of the configuration; it wanted as many groups as there are, if they do not say otherwise.
    """
    here = folder / f"iter-{number:04d}"
    prompts = [tiny_run.prompt(number, 0, 2) | {"group_id": f"it{number}-p{g}"} for g in range(len(groups))]
    if "informative" in rollout:
        prompts = [prompt | {"informative": True} for prompt in prompts]
    completions = [
        tiny_run.completion(number, 1, s % 4)
        | {"group_id": f"it{number}-p{g}", "completion_id": f"it{number}-p{g}-s{s}", "sample": s, "reward_accuracy": r}
        for g, group in enumerate(groups)
        for s, r in enumerate(group)
    ]
    if masks is not None:
        completions = [
            row | {"loss_mask": masks(row["completion_id"], len(row["completion_ids"]))} | dict.fromkeys(READING)
            for row in completions
        ]
    config = {"iteration": number, "rollout": {"prompts_per_iteration": len(groups), "surplus": "discard"} | rollout}
    plan = Plan("rollout", here / "rollout", config, 1)

    def fill(output: Output) -> None:
        output.write("prompts", 0, prompts)
        output.write("completions", 0, completions)

    tiny_run.publish(plan, fill)
    scores = [_scores(row["completion_id"], len(row["completion_ids"]), vgr) for row in completions]
    if columns is not None:
        scores = [row | columns(row["completion_id"], len(row["vgr"])) for row in scores]
    plan = Plan("score-attention", here / "attention", {}, 1, {"rollouts": Source(here / "rollout")})
    tiny_run.publish(plan, lambda out: out.write("attention", 0, scores))
    return ["--rollouts", here / "rollout", "--attention", here / "attention", "--iteration", number]


def _scores(completion_id: str, length: int, vgr: Sequence[float]) -> Row:
    nothing: Row = dict.fromkeys(SCHEMAS["attention"].names)
    nothing |= {"completion_id": completion_id, "num_text_tokens": 0, "num_vision_tokens": 0}
    if not vgr:
        return nothing | {"status": "off"}
    return nothing | {"status": "ok", "vgr": list(islice(cycle(vgr), length)), "vgr_all": sum(vgr) / len(vgr)}


def weigh(out: Path, inputs: Sequence[object], replay: Path | None = None, /, **settings: object) -> Path:
    """weight-tokens on such rollouts; keywords are --set overrides, `__` for the dot."""
    config = out.parent / "config.yaml"
    config.write_text("seed: 1\n", encoding="utf-8")
    changed = SETTINGS | {key.replace("__", "."): value for key, value in settings.items()}
    overrides = [word for key, value in changed.items() for word in ("--set", f"{key}={value}")]
    before = ["--replay", replay] if replay else []
    result = run("weight-tokens", "--config", config, *inputs, *before, *overrides, "--out", out)
    assert result.code == 0, result.stderr
    return out


def trained_on(weights: Path) -> list[str]:
    """Ids of the groups in the loss, the stored ones among them, in order."""
    rows = table(weights, "weights")
    return sorted(rows[rows.in_loss].group_id.unique())


def buffer(weights: Path) -> pd.DataFrame:
    """The groups that a weights folder stores, by id."""
    return table(weights, "buffer").set_index("group_id")
