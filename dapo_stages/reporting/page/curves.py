"""The curves of a run's report; extend the list in `curves`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from dapo_stages.config import Config
from dapo_stages.handoff.schemas import SEGMENTS
from dapo_stages.processes.phases import PHASES
from dapo_stages.reporting.iteration.figures import Figures, figure, interval, slices
from dapo_stages.reporting.page.charts import Chart, Series, drop_empty
from dapo_stages.reporting.page.ticks import Unit
from dapo_stages.runs.pipeline import REPORTED
from dapo_stages.terminal.safe_text import one_line

# Names in a legend -> where the number is.
Paths = Mapping[str, tuple[str, ...]]
Cost = Mapping[int, Mapping[str, float]]  # iteration -> stage or phase -> seconds, or GiB

_BINS = 24
_MODES = ("greedy", "sampled")
_AT_K = ("pass_at_k", "majority_at_k")  # where evaluate puts them, by k as text


def curves(all_figures: Sequence[Figures], cost: Mapping[str, Cost]) -> list[Chart]:
    """All charts that have something to show; `cost` has the `seconds` and the `memory` (GiB) of stages, and
    the seconds `spent` by phase, if known."""
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
        "image blanked": ("eval", "blank_accuracy"),
    }
    return drop_empty(
        [
            chart("Accuracy", "correct answers", accuracy, "percent"),
            _by_slice(all_figures, named),
            Chart(
                "Held-out accuracy by slice, image blanked",
                "correct answers",
                [_series(all_figures, name, ("eval", "by_slice", name, "blank_accuracy")) for name in named],
                "percent",
            ),
            chart(
                "Rollout accuracy by slice", "correct answers", _below("rollout", "by_slice", rollout_slices), "percent"
            ),
            *_by_dataset(all_figures),
            chart("Several samples of a held-out question", "right answers", _samples(all_figures), "percent"),
            _over_k(all_figures),
            chart("Reward", "mean total reward", {"total": ("weights", "reward")}),
            chart("Reward components", "mean", {name.removeprefix("reward_"): ("weights", name) for name in parts}),
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
                {
                    "truncated completions": ("rollout", "truncated"),
                    "answers in thoughts never closed": ("rollout", "unclosed"),
                    "informative prompts": ("rollout", "informative"),
                },
                "percent",
            ),
            chart("VGR by layers (lower is more grounded)", "VGR", {s: ("attention", f"vgr_{s}") for s in SEGMENTS}),
            chart(
                "Attention efficiency, all layers",
                "AEI",
                {"vision": ("attention", "aei_vision_all"), "text": ("attention", "aei_text_all")},
            ),
            chart(
                "Entropy",
                "nats per token",
                {"entropy": ("train", "entropy"), "with images blanked": ("train", "perception_entropy")},
            ),
            chart("KL", "nats per token", {"KL to the reference": ("train", "kl")}),
            chart(
                "KL to changed images",
                "nats per token",
                {"blanked": ("train", "perception_kl"), "noised": ("train", "robustness_kl")},
            ),
            chart(
                "Engine against trainer",
                "nats per token",
                {"mean |Δ logprob|": ("train", "engine_diff_mean"), "KL": ("train", "engine_kl")},
            ),
            chart("Engine against trainer, worst token", "|Δ logprob|", {"largest": ("train", "engine_diff_max")}),
            chart(
                "Clipped ratios",
                "share of tokens",
                {"below 1 − ε_low": ("train", "clip_low"), "above 1 + ε_high": ("train", "clip_high")},
                "percent",
            ),
            chart("Policy lag", "train-steps since sampling", {"mean over completions": ("train", "policy_lag")}),
            chart("Gradient norm", "before clipping", {"gradient norm": ("train", "grad_norm")}),
            chart("Learning rate", "of the last update", {"learning rate": ("train", "learning_rate")}),
            *_skipped(all_figures),
            _costs("Time", "seconds per stage", cost.get("seconds", {}), REPORTED),
            _costs("Time by phase", "seconds of all stages", cost.get("spent", {}), PHASES),
            _costs("Memory", "GiB at the peak of a stage", cost.get("memory", {}), REPORTED),
        ]
    )


def _by_dataset(all_figures: Sequence[Figures]) -> list[Chart]:
    """Empty for a run with a single dataset."""
    names = sorted({name for figures in all_figures for name in figures.get("datasets") or {}})
    held_out = sorted({name for f in all_figures for name in (f.get("eval") or {}).get("by_dataset") or {}})

    def by_name(title: str, y_label: str, key: str, unit: Unit) -> Chart:
        return Chart(title, y_label, [_series(all_figures, name, ("datasets", name, key)) for name in names], unit)

    return [
        by_name("Rollout accuracy by dataset", "correct answers", "accuracy", "percent"),
        by_name("Kept prompts by dataset", "share", "kept", "percent"),
        by_name("VGR by dataset, all layers", "VGR", "vgr", "number"),
        Chart(
            "Held-out accuracy by dataset",
            "correct answers",
            [_series(all_figures, name, ("eval", "by_dataset", name, "greedy_accuracy")) for name in held_out],
            "percent",
        ),
    ]


def _skipped(all_figures: Sequence[Figures]) -> list[Chart]:
    """Empty if the run has skipped no update."""
    shares = _series(all_figures, "skipped", ("train", "skipped"))
    lost = any(share for _, share in shares.points)
    return [Chart("Skipped updates", "share of the updates", [shares], "percent")] if lost else []


def schedules(config: Config, iterations: Sequence[int]) -> list[Chart]:
    """The values that settings with a schedule have in these iterations (from 1)."""
    numbers = [number for number in iterations if number > 0]
    return drop_empty(
        [
            Chart(
                f"Schedule of {one_line(name)}",
                "value",
                [Series(name, [(float(number), schedule.at(number, config.planned_iterations)) for number in numbers])],
            )
            for name, schedule in config.schedules.items()
        ]
    )


def histograms(all_figures: Sequence[Figures]) -> list[Chart]:
    """How rewards and advantages are distributed in the first and in the latest iteration that has any."""
    charts = []
    for name, title in (("reward", "Distribution of rewards"), ("advantage", "Distribution of advantages")):
        found = {f["iteration"]: pairs for f in all_figures if (pairs := _distribution(f).get(name))}
        shown = {iteration: found[iteration] for iteration in dict.fromkeys((min(found), max(found)))} if found else {}
        values = [value for pairs in shown.values() for value, _ in pairs]
        low, high = min(values, default=0.0), max(values, default=0.0)
        width = (high - low) / _BINS or 0.1
        bins = round((high - low) / width) or 1
        series = []
        for iteration, pairs in shown.items():
            counts = [0.0] * bins
            for value, count in pairs:
                counts[min(int((value - low) / width), bins - 1)] += count
            shares = [count / sum(counts) for count in counts]
            points = [(low + (index + 0.5) * width, share) for index, share in enumerate(shares)]
            series.append(Series(f"iteration {iteration}", points))
        charts.append(Chart(title, "completions", series, "percent", name, width))
    return drop_empty(charts)


def _distribution(figures: Figures) -> dict[str, list[list[float]]]:
    """Values with their counts, by name."""
    return (figures.get("weights") or {}).get("distribution") or {}


def _series(all_figures: Sequence[Figures], name: str, path: tuple[str, ...]) -> Series:
    """A figure over iterations; those of an evaluation with their intervals."""
    series = Series(name, [])
    for figures in all_figures:
        if (value := figure(figures, *path)) is not None:
            iteration = float(figures["iteration"])
            series.points.append((iteration, value))
            if path[0] == "eval" and (ends := interval(figures, path)) is not None:
                series.band.append((iteration, *ends))
    return series


def _ks(figures: Figures) -> list[int]:
    """The k of an iteration's pass@k, the largest being the number of samples; none without an evaluation."""
    return sorted(int(k) for k in (figures.get("eval") or {}).get("pass_at_k") or {})


def _samples(all_figures: Sequence[Figures]) -> Paths:
    """Greedy, and mean, majority and pass over all samples per question; empty if there is at most one sample."""
    found: dict[str, tuple[str, ...]] = {}
    for n in sorted({max(ks) for f in all_figures if (ks := _ks(f))} - {1}):
        found[f"majority@{n}"] = ("eval", "majority_at_k", str(n))
        found[f"pass@{n}"] = ("eval", "pass_at_k", str(n))
    # The mean does not depend on the number of samples, only its precision does.
    return {"greedy": ("eval", "greedy_accuracy"), "mean": ("eval", "sampled_accuracy"), **found} if found else {}


def _over_k(all_figures: Sequence[Figures]) -> Chart:
    """pass@k and majority@k over k, in the first and the latest evaluation with several samples."""
    several = {f["iteration"]: f for f in all_figures if len(_ks(f)) > 1}
    series = []
    for iteration in dict.fromkeys((min(several), max(several))) if several else ():
        here = several[iteration]
        for name in _AT_K:
            paths = {k: ("eval", name, str(k)) for k in _ks(here)}
            points = [(float(k), value) for k, path in paths.items() if (value := figure(here, *path)) is not None]
            band = [(float(k), *ends) for k, path in paths.items() if (ends := interval(here, path)) is not None]
            series.append(Series(f"{name.partition('_')[0]}@k, iteration {iteration}", points, band))
    return Chart("pass@k and majority@k", "right answers", series, "percent", "k")


def _below(part: str, key: str, names: set[str]) -> Paths:
    return {name: (part, key, name) for name in sorted(names)}


def _by_slice(all_figures: Sequence[Figures], names: Sequence[str]) -> Chart:
    """Greedy accuracy, or that of samples if there was no greedy evaluation."""
    series = []
    for name in names:
        greedy, sampled = (
            _series(all_figures, name, ("eval", "by_slice", name, f"{mode}_accuracy")) for mode in _MODES
        )
        series.append(greedy if greedy.points else sampled)
    return Chart("Held-out accuracy by slice", "correct answers", series, "percent")


def _costs(title: str, y_label: str, cost: Cost, names: Iterable[str]) -> Chart:
    series = [
        Series(name, [(float(iteration), took[name]) for iteration, took in cost.items() if name in took])
        for name in names
    ]
    return Chart(title, y_label, series)
