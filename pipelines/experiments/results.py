"""Writes docs/results.md from the runs of `make experiments`: tables, differences paired by seed, curves, conclusions.

Every number is read from the files of the runs; missing runs are named and left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from dapo_stages.handoff.shards import write_text
from dapo_stages.maths.seed_statistics import Estimate, estimate, paired
from dapo_stages.reporting.page.charts import Chart, Series, drawn_as_svg
from dapo_stages.runs.study import StudyRun, of_seeds, read_study, stage_seconds
from dapo_stages.terminal.safe_text import NOTHING, markdown_table

HERE = Path(__file__).parent
BASELINE, TWIN, WEIGHTED = "baseline", "experiment1", "experiment5"
CEILING = 0.98

TITLES = {
    "small": "Colors: one object, its color",
    "scenes": "Scenes: positions, relations and numbers of several objects",
}
MEASURES = {
    "violating": "greedy, prior-violating",
    "greedy": "greedy, all",
    "blank": "greedy, image blanked",
    "vgr": "VGR",
    "length": "tokens",
}
SETTINGS = {
    "reward_vgr": "deviation of reward_vgr within a group",
    "token_weights": "deviation of token weights within a completion",
    "replayed": "replayed groups per fresh one",
    "early": "early iterations",
}


WHEN: dict[str, tuple[str, Callable[[StudyRun, str], float | None]]] = {
    "end": ("At the end", StudyRun.at_end),
    "run": ("Over the run", StudyRun.over_run),
}


class Study(NamedTuple):
    """The runs of one folder of configurations."""

    name: str
    experiments: list[str]
    runs: list[StudyRun]
    missing: dict[str, str]
    seconds: float


def main(
    runs: Annotated[Path, typer.Option(help="Folder with one folder of runs per study.")],
    studies: Annotated[str, typer.Option(help="Names of studies: folders of configurations next to this file.")],
    seeds: Annotated[str, typer.Option(help="Seeds, separated by spaces.")],
    out: Annotated[Path, typer.Option(help="Markdown file to write; the curves are written next to it.")],
) -> None:
    """Write the results of the runs."""
    numbers = [int(seed) for seed in seeds.split()]
    found = []
    for name in studies.split():
        experiments = experiments_of(name)
        found.append(
            Study(name, experiments, *read_study(runs / name, experiments, numbers), stage_seconds(runs / name))
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    for study in found:
        for chart, path in charts(study):
            write_text(out.parent / path, drawn_as_svg(chart))
    write_text(out, page(found))
    print(out)


def experiments_of(study: str) -> list[str]:
    """The experiments of a study: its configurations, except the one that they share."""
    return sorted(path.stem for path in (HERE / study).glob("*.yaml") if path.stem != "base")


def page(studies: Sequence[Study]) -> str:
    """The whole document."""
    return "\n".join([_HEAD, *(section for study in studies for section in _sections(study)), _FOOT])


def _sections(study: Study) -> list[str]:
    parts = [f"## {TITLES.get(study.name, study.name)}\n"]
    if study.missing:
        lines = [f"- {name}: {why}" for name, why in study.missing.items()]
        parts += ["These runs are missing and not included in the figures:\n", *lines, ""]
    if not study.runs:
        return parts
    return [
        *parts,
        f"{len(study.runs)} runs; all stages together took {study.seconds / 3600:.2f} hours, with one thread each.\n",
        "### Token weights\n",
        *(headline(study, other, measure) for other in (BASELINE, TWIN) for measure in ("end", "run")),
        f"\n### Start and end\n\nMean ± standard deviation over seeds. {_VGR_NOTE}\n",
        outcomes(study),
        "### Differences, paired by seed\n\nMean difference and its 95% interval (Student's t over seeds); `*` if it "
        "excludes 0. *Over the run*: mean over the evaluations after the start.\n",
        differences(study),
        "### How the experiments differ\n\nMeasured in the runs, mean ± standard deviation over seeds.\n",
        apart(study),
        "### Curves\n\nMeans over seeds.\n",
        *(f"![{chart.title}]({path})" for chart, path in charts(study)),
        "",
        "### What this shows\n",
        *(f"- {line}" for line in conclusions(study)),
        "",
    ]


def headline(study: Study, other: str, when: str) -> str:
    """Experiment 5 against another one on prior-violating questions, whatever the outcome."""
    found = difference(study, WEIGHTED, other, when, "violating")
    what = f"- {WHEN[when][0]}, {WEIGHTED} - {other}, greedy accuracy on prior-violating questions: "
    return what + ("no pair of finished runs." if found is None else f"**{_with_interval(found)}**. {verdict(found)}")


def verdict(found: Estimate) -> str:
    """The conclusion that an interval allows."""
    if found.interval is None:
        return "One seed: no interval, nothing shown."
    if found.decides:
        direction = "higher" if found.mean > 0 else "lower"
        return f"The interval excludes 0: {direction} with token weights, n = {found.number}."
    return f"The interval includes 0: no difference shown, n = {found.number}."


def difference(study: Study, first: str, second: str, when: str, measure: str) -> Estimate | None:
    """first - second, over the seeds that both have."""
    value = WHEN[when][1]
    one, other = (of_seeds(study.runs, name, lambda run: value(run, measure)) for name in (first, second))
    return paired(one, other)


def outcomes(study: Study) -> str:
    """A row for the start, which all experiments share, and one per experiment."""
    headers = ["", "seeds", *MEASURES.values(), "prior-violating, over the run"]
    starts = {run.seed: run for run in study.runs}.values()
    first = [_spread([run.at_start(measure) for run in starts]) for measure in MEASURES]
    rows = [["start", str(len(starts)), *first, NOTHING]]
    for experiment in study.experiments:
        runs = [run for run in study.runs if run.experiment == experiment]
        ends = [_spread([run.at_end(measure) for run in runs]) for measure in MEASURES]
        rows.append([experiment, str(len(runs)), *ends, _spread([run.over_run("violating") for run in runs])])
    return markdown_table(headers, rows)


def differences(study: Study) -> str:
    """Every experiment against the baseline, and token weights against the otherwise identical experiment."""
    pairs = [(name, BASELINE) for name in study.experiments if name != BASELINE] + [(WEIGHTED, TWIN)]
    columns = [("violating", "run"), *((measure, "end") for measure in MEASURES)]
    headers = ["", *(MEASURES[measure] + (", over the run" if when == "run" else "") for measure, when in columns)]
    rows = []
    for first, second in pairs:
        found = [difference(study, first, second, when, measure) for measure, when in columns]
        rows.append(
            [f"{first} - {second}", *(_with_interval(one) + ("*" if one and one.decides else "") for one in found)]
        )
    return markdown_table(headers, rows)


def apart(study: Study) -> str:
    """The differences between the experiments, as measured in the runs."""
    rows = []
    for experiment in study.experiments:
        runs = [run for run in study.runs if run.experiment == experiment]
        rows.append([experiment, *(_spread([run.settings[name] for run in runs]) for name in SETTINGS)])
    return markdown_table(["", *SETTINGS.values()], rows)


def conclusions(study: Study) -> list[str]:
    """What the figures show."""
    lines = []
    for experiment in study.experiments:
        if experiment == BASELINE:
            continue
        for when, (words, _) in WHEN.items():
            found = difference(study, experiment, BASELINE, when, "violating")
            if found is not None and found.interval is not None:
                said = (
                    f"{'above' if found.mean > 0 else 'below'} the baseline" if found.decides else "no difference shown"
                )
                lines.append(f"{experiment}, {words[0].lower() + words[1:]}: {said} ({_with_interval(found)}).")
    ends = [run.at_end("violating") for run in study.runs if run.experiment in (BASELINE, TWIN, WEIGHTED)]
    high_ends = sum(end is not None and end >= CEILING for end in ends)
    if high_ends:
        lines.append(
            f"{high_ends} of {len(ends)} runs of {BASELINE}, {TWIN} and {WEIGHTED} end at {CEILING} or above on "
            "prior-violating questions: their ends do not distinguish them, only how fast they get there."
        )
    return lines


def charts(study: Study) -> list[tuple[Chart, str]]:
    """A chart per measure with the path of its image; none without runs."""
    found = []
    for measure, title in MEASURES.items():
        series = []
        for experiment in study.experiments:
            curves = [run.curves[measure] for run in study.runs if run.experiment == experiment]
            shared = sorted(set.intersection(*map(set, curves))) if curves else []
            points = [(float(n), estimate([curve[n] for curve in curves]).mean) for n in shared]
            if points:
                series.append(Series(experiment, points))
        if series:
            percent = measure in ("violating", "greedy", "blank")
            chart = Chart(title, title, series, "percent" if percent else "number")
            found.append((chart, f"results-{study.name}-{measure}.svg"))
    return found


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return NOTHING
    found = estimate(known)
    return f"{found.mean:.3f}" + ("" if found.deviation is None else f" ± {found.deviation:.3f}")


def _with_interval(found: Estimate | None) -> str:
    if found is None:
        return NOTHING
    if found.interval is None:
        return f"{found.mean:+.3f}"
    return f"{found.mean:+.3f} [{found.interval[0]:+.3f}, {found.interval[1]:+.3f}]"


_VGR_NOTE = (
    "VGR is measured on completions of training questions, sampled by the starting policy and by the one before the "
    "last iteration; tokens are those of greedy completions of held-out questions."
)
_HEAD = """# Results of the debias study

Written by `make experiments` from the files of its runs; [experiments.md](experiments.md) describes their setup. All
experiments of a seed share the starting policy and the questions; they differ as the tables show. The question asked
before any run was made: does weighting tokens by how much they looked (experiment5) raise accuracy on questions whose
image contradicts the habit, compared with plain DAPO (baseline), and with the otherwise identical experiment1?
"""
_FOOT = """## What this does not show

- Anything about large models: the policy has about a million parameters, and its completions have some fifteen tokens,
  of which one or two depend on the image. The 7B form has not been run.
- The intervals are over a handful of seeds and assume that differences are approximately normal. They are not corrected
  for the number of comparisons: only experiment5 on prior-violating questions was asked in advance, all others are
  exploratory, and about one in twenty of such intervals excludes 0 by chance.
- "No difference shown" does not mean "no difference": the interval says how large one may still be.
- Hyperparameters were chosen once for all experiments, on the baseline with seed 1; an experiment might do better with
  others.
"""

if __name__ == "__main__":
    typer.run(main)
