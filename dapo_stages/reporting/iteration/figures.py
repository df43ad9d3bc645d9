"""The figures of one iteration: its folders in, a small dictionary for JSON out.

Shards are streamed, so memory does not grow with the iteration. For a missing folder the key is missing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from dapo_stages.data.columns import DATASET
from dapo_stages.errors import DataError
from dapo_stages.groups.informative import is_informative
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.policy_folders import PROMPTING
from dapo_stages.handoff.schemas import SEGMENTS, schema_of
from dapo_stages.small_files import read_json

Figures = dict[str, Any]

# How a metric is aggregated over the updates of an iteration; by default the mean.
_OVER_UPDATES: dict[str, Callable[[list[float]], float]] = {
    "ratio_min": min,
    "ratio_max": max,
    "is_weight_max": max,
    "engine_diff_max": max,
    "learning_rate": lambda values: values[-1],
    "tokens": sum,
    "completions": sum,
    "groups": sum,
    "replayed_groups": sum,
    "engine_tokens": sum,
    "seconds": sum,
}


class Tally:
    """Running means by name; a value that is missing or not finite is left out of its mean."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: Counter[str] = Counter()

    def add(self, name: str, value: float | None) -> None:
        self._sums.setdefault(name, 0.0)
        if value is not None and math.isfinite(value):
            self._sums[name] += value
            self._counts[name] += 1

    def means(self) -> dict[str, float | None]:
        return {name: total / self._counts[name] if self._counts[name] else None for name, total in self._sums.items()}


def collect(iteration: int, sources: Mapping[str, Source]) -> Figures:
    """All figures of an iteration from the outputs that exist."""
    parts = {"rollout": _rollout, "attention": _attention, "weights": _weights, "train": _train, "eval": _eval}
    found = {name: part(sources[name]) for name, part in parts.items() if name in sources}
    if "rollout" in sources and len(sources["rollout"].manifest.counts.get(PROMPTING, [])) > 1:
        found["datasets"] = _by_dataset(sources)
    return {"iteration": iteration, **found}


def _by_dataset(sources: Mapping[str, Source]) -> dict[str, Figures]:
    """Dataset -> share of groups that are kept, accuracy of the completions, and their VGR over all layers."""
    of_group: dict[str, Tally] = {}
    tallies: dict[str, Tally] = {}
    for row in sources["rollout"].rows("prompts", ["group_id", "source", "kept"]):
        of_group[row["group_id"]] = tally = tallies.setdefault(row["source"], Tally())
        tally.add("kept", row["kept"])
    for row in sources["rollout"].rows("completions", ["group_id", "reward_accuracy"]):
        if row["group_id"] in of_group:
            of_group[row["group_id"]].add("accuracy", row["reward_accuracy"])
    if "attention" in sources:
        for row in sources["attention"].rows("attention", ["completion_id", "status", "vgr_all"]):
            group = row["completion_id"].rpartition("-")[0]
            if row["status"] == "ok" and group in of_group:
                of_group[group].add("vgr", row["vgr_all"])
    return {name: dict(tallies[name].means()) for name in sorted(tallies)}


def interval_method(found: Figures) -> str | None:
    """How the intervals of an evaluation were computed; None if it has none. Older ones do not record it."""
    interval = found.get("interval")
    return interval.get("method", "percentile bootstrap") if isinstance(interval, dict) else None


def figure(figures: Figures, *path: str) -> float | None:
    """One number by its path; None where a part is missing: figure(f, "eval", "greedy_accuracy")."""
    value: Any = figures
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def interval(figures: Figures, path: tuple[str, ...]) -> tuple[float, float] | None:
    """Ends of a held-out figure's interval: under `intervals` of the part it belongs to, at the same place."""
    for cut in range(len(path) - 1, 0, -1):
        value: Any = figures
        for key in (*path[:cut], "intervals", *path[cut:]):
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, list):
            return value[0], value[1]
    return None


def attention_is_off(figures: Figures) -> bool:
    """Whether attention was not measured in this iteration."""
    return set((figures.get("attention") or {}).get("status") or {}) == {"off"}


def slices(all_figures: list[Figures]) -> list[str]:
    """Names of the slices that any evaluation reports, in the order they first appear."""
    names = (name for figures in all_figures for name in (figures.get("eval") or {}).get("by_slice") or {})
    return list(dict.fromkeys(names))


def rewards_of(names: list[str]) -> list[str]:
    """The reward columns among column names: reward_accuracy, … and the plug-ins, without the total and the phase."""
    return [name for name in names if name.startswith("reward_") and name != "reward_phase"]


def _rollout(source: Source) -> Figures:
    """Over every sampled group, kept or not, so that the filter does not bias the curves."""
    groups = {
        row["group_id"]: row
        for row in source.rows("prompts", ["group_id", "slice", "round", "num_correct", "kept", "informative"])
    }
    rewards = rewards_of(schema_of("completions", tuple(source.manifest.rewards)).names)
    tally, squares, by_slice, sizes, longest = Tally(), Tally(), Tally(), Counter[str](), 0
    for row in source.rows("completions", ["group_id", "completion_ids", "finish_reason", "read_from", *rewards]):
        length = len(row["completion_ids"])
        longest = max(longest, length)
        sizes[row["group_id"]] += 1
        for name in rewards:
            tally.add(name.removeprefix("reward_"), row[name])
            squares.add(name.removeprefix("reward_"), _squared(row[name]))
        tally.add("mean_tokens", length)
        tally.add("truncated", row["finish_reason"] == "length")
        tally.add("unclosed", None if row["read_from"] is None else row["read_from"] == "unclosed")
        if group := groups.get(row["group_id"]):
            by_slice.add(group["slice"], row["reward_accuracy"])
    informative = sum(is_informative(row, sizes[name]) for name, row in groups.items())
    means = tally.means()
    return {
        "groups": len(groups),
        "kept": sum(row["kept"] for row in groups.values()),
        "informative": informative / len(groups) if groups else None,
        "rounds": len({row["round"] for row in groups.values()}),
        "completions": sizes.total(),
        "max_tokens": longest,
        **means,
        "deviation": {name: _deviation(means[name], square) for name, square in squares.means().items()},
        "by_slice": {name: mean for name, mean in by_slice.means().items() if name},
    }


def _attention(source: Source) -> Figures:
    kinds = ("vgr", "aei_text", "aei_vision", "attn_text", "attn_vision")
    columns = [f"{kind}_{segment}" for kind in kinds for segment in SEGMENTS]
    columns += ["num_text_tokens", "num_vision_tokens"]
    tally, status = Tally(), Counter[str]()
    for row in source.rows("attention", ["status", *columns]):
        status[row["status"]] += 1
        for name in columns if row["status"] == "ok" else ():
            tally.add(name, row[name])
    return {"completions": status.total(), "status": dict(sorted(status.items())), **tally.means()}


def _weights(source: Source) -> Figures:
    """Rewards are of this iteration's own completions; replayed ones only enter counts, `in_loss` and token weights."""
    rewards = rewards_of(schema_of("weights", tuple(source.manifest.rewards)).names)
    tally, squares, tokens = Tally(), Tally(), Tally()
    origin, why, phase = Counter[str](), Counter[str](), Counter[str]()
    values = {"reward": Counter[float](), "advantage": Counter[float]()}
    lightest, heaviest = math.inf, -math.inf
    columns = ["source", "reward", "reward_phase", "advantage", "token_weights", "in_loss", "why", *rewards]
    for row in source.rows("weights", columns):
        origin[row["source"]] += 1
        phase[row["reward_phase"]] += 1
        why.update([row["why"]] if row["why"] else [])
        tally.add("in_loss", row["in_loss"])
        if row["source"] == "fresh":
            tally.add("reward", row["reward"])
            squares.add("reward", row["reward"] ** 2)
            tally.add("abs_advantage", abs(row["advantage"]))
            for name in rewards:
                tally.add(name, row[name])
                squares.add(name, _squared(row[name]))
            for name, seen in values.items():
                seen[round(row[name], 2) + 0.0] += 1
        for weight in row["token_weights"] or ():
            tokens.add("mean", weight)
            tokens.add("squared", weight * weight)
            lightest, heaviest = min(lightest, weight), max(heaviest, weight)
    found: Figures = {
        "completions": origin.total(),
        "fresh": origin["fresh"],
        "replayed": origin["replay"],
        **tally.means(),
        "phase": dict(sorted(phase.items())),
        "why": dict(sorted(why.items())),
        "distribution": {name: [list(pair) for pair in sorted(seen.items())] for name, seen in values.items()},
    }
    deviations = {name: _deviation(found.get(name), square) for name, square in squares.means().items()}
    found["reward_std"] = deviations.pop("reward", None)
    found["deviation"] = deviations
    means = tokens.means()
    if means:
        deviation = _deviation(means["mean"], means["squared"])
        found |= {"token_weight_min": lightest, "token_weight_max": heaviest, "token_weight_std": deviation}
    return found


def _train(source: Source) -> Figures:
    updates: dict[int, dict[str, float]] = {}
    for row in source.rows("metrics", ["update", "name", "value"]):
        if row["value"] is not None and math.isfinite(row["value"]):
            updates.setdefault(row["update"], {})[row["name"]] = row["value"]
    in_order = [updates[number] for number in sorted(updates)]
    names = list(dict.fromkeys(name for update in in_order for name in update))
    found: Figures = {}
    for name in names:
        values = [update[name] for update in in_order if name in update]
        found[name] = _OVER_UPDATES[name](values) if name in _OVER_UPDATES else sum(values) / len(values)
    return {**found, "updates": in_order}


def _eval(source: Source) -> Figures:
    shard = next((shard for shard in source.manifest.shards if shard.name == "metrics.json"), None)
    if shard is None:
        raise DataError(source.folder, "metrics.json is missing", "Run evaluate again.")
    path = source.verified(shard)
    try:
        metrics = read_json(path)
    except ValueError as error:
        raise DataError(path, f"the file is not valid JSON ({error})", "Run evaluate again.") from None
    if not isinstance(metrics, dict):
        raise DataError(path, f"expected a JSON object, got a {type(metrics).__name__}", "Run evaluate again.")
    # Slices by further columns stay in the file: they would flood the trackers. Those of several datasets do not.
    by = metrics.pop("by", None) or {}
    if isinstance(by, dict) and isinstance(by.get(DATASET), dict):
        metrics["by_dataset"] = by[DATASET]
    return metrics


def _squared(value: float | None) -> float | None:
    return None if value is None else value * value


def _deviation(mean: float | None, mean_of_squares: float | None) -> float | None:
    if mean is None or mean_of_squares is None:
        return None
    return math.sqrt(max(mean_of_squares - mean * mean, 0.0))
