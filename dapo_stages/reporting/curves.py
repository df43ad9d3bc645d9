"""Which curves a run has: a list to read and to extend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from dapo_stages.reporting.charts import Chart, Series, Unit, drop_empty
from dapo_stages.reporting.figures import Figures, figure, slices
from dapo_stages.reporting.runs import REPORTED
from dapo_stages.reporting.tables import slice_accuracy
from dapo_stages.schemas import SEGMENTS

# Names in a legend -> where the number is.
Paths = Mapping[str, tuple[str, ...]]


def curves(all_figures: Sequence[Figures], seconds: Mapping[int, Mapping[str, float]]) -> list[Chart]:
    """All charts that have something to show."""
    rewards = {name for f in all_figures for name in f.get("weights") or {} if name.startswith("reward_")}
    parts = sorted(rewards - {"reward_std"})
    named = slices(list(all_figures))
    rollout_slices = {name for f in all_figures for name in (f.get("rollout") or {}).get("by_slice") or {}}

    def chart(title: str, y_label: str, paths: Paths, unit: Unit = "number") -> Chart:
        return Chart(title, y_label, [_series(all_figures, name, path) for name, path in paths.items()], unit)

    accuracy: Paths = {
        "rollout": ("rollout", "accuracy"),
        "held-out greedy": ("eval", "greedy_accuracy"),
        "held-out sampled": ("eval", "sampled_accuracy"),
        "sampled, well-formed": ("eval", "sampled_accuracy_well_formed"),
        "picture blanked": ("eval", "blank_accuracy"),
    }
    return drop_empty(
        [
            chart("Accuracy", "correct answers", accuracy, "percent"),
            _by(all_figures, "Held-out accuracy by slice", "correct answers", named, slice_accuracy),
            chart(
                "Rollout accuracy by slice", "correct answers", _below("rollout", "by_slice", rollout_slices), "percent"
            ),
            chart("Reward", "mean total reward", {"total": ("weights", "reward")}),
            chart("Parts of the reward", "mean", {name.removeprefix("reward_"): ("weights", name) for name in parts}),
            chart(
                "Format",
                "well-formed",
                {
                    "rollout": ("rollout", "format"),
                    "held-out greedy": ("eval", "greedy_format"),
                    "held-out sampled": ("eval", "sampled_format"),
                },
                "percent",
            ),
            chart(
                "Completion length",
                "tokens",
                {"rollout mean": ("rollout", "mean_tokens"), "held-out mean": ("eval", "mean_tokens")},
            ),
            chart(
                "Shares of a rollout",
                "share",
                {"truncated completions": ("rollout", "truncated"), "informative prompts": ("rollout", "informative")},
                "percent",
            ),
            chart("VGR by layers (lower is more grounded)", "VGR", {s: ("attention", f"vgr_{s}") for s in SEGMENTS}),
            chart(
                "Attention efficiency, all layers",
                "AEI",
                {"vision": ("attention", "aei_vision_all"), "text": ("attention", "aei_text_all")},
            ),
            chart("Entropy", "nats per token", {"entropy": ("train", "entropy")}),
            chart("KL", "nats per token", {"KL to the reference": ("train", "kl")}),
            chart(
                "Engine against trainer",
                "nats per token",
                {"mean |Δ log-prob|": ("train", "engine_diff_mean"), "KL": ("train", "engine_kl")},
            ),
            chart("Engine against trainer, worst token", "|Δ log-prob|", {"largest": ("train", "engine_diff_max")}),
            chart(
                "Clipped ratios",
                "share of tokens",
                {"below 1 − ε_low": ("train", "clip_low"), "above 1 + ε_high": ("train", "clip_high")},
                "percent",
            ),
            chart("Policy lag", "train-steps since sampling", {"mean over completions": ("train", "policy_lag")}),
            chart("Gradient norm", "before clipping", {"gradient norm": ("train", "grad_norm")}),
            _seconds(seconds),
        ]
    )


def _series(all_figures: Sequence[Figures], name: str, path: tuple[str, ...]) -> Series:
    values = ((f["iteration"], figure(f, *path)) for f in all_figures)
    return Series(name, [(float(iteration), value) for iteration, value in values if value is not None])


def _below(part: str, key: str, names: set[str]) -> Paths:
    return {name: (part, key, name) for name in sorted(names)}


def _by(
    all_figures: Sequence[Figures], title: str, y_label: str, names: Sequence[str],
    value_of: Callable[[Figures, str], float | None],
) -> Chart:  # fmt: skip
    series = []
    for name in names:
        values = ((f["iteration"], value_of(f, name)) for f in all_figures)
        series.append(Series(name, [(float(iteration), value) for iteration, value in values if value is not None]))
    return Chart(title, y_label, series, "percent")


def _seconds(seconds: Mapping[int, Mapping[str, float]]) -> Chart:
    series = [
        Series(name, [(float(iteration), took[name]) for iteration, took in seconds.items() if name in took])
        for name in REPORTED
    ]
    return Chart("Time", "seconds per stage", series)
