"""docs/results.md from the result files."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

from dapo_stages.handoff.shards import write_text
from dapo_stages.maths.seed_statistics import Estimate, estimate, paired
from dapo_stages.reporting.page.charts import Chart, Series, drawn_as_svg
from dapo_stages.terminal.safe_text import NOTHING, markdown_inline, markdown_table, number
from pipelines.study.contrasts import Contrast, cost_ratio, differences, equal_compute, equal_updates
from pipelines.study.design import Design, shown
from pipelines.study.differences_drawn import drawn
from pipelines.study.pilot import DETECTED, Pilot
from pipelines.study.result_files import MEASURE, Result, by_seed, measured

ENDS = {"violating": "prior-violating", "all": "all questions", "blank": "image blanked", "length": "tokens"}


def write(design: Design, results: Sequence[Result], out: Path) -> None:
    """Write the page, and a chart per task next to it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    tests = [result for result in results if not result.pilot]
    parts = [_HEAD]
    if complete := _is_complete(design, results):
        parts += _answer(design, tests, out)
    else:
        parts += ["## Answer\n", "The study is not complete. The analysis is made when all test seeds are.\n"]
    for task in design.tasks:
        parts += [f"## `{task}`\n", *_dependence(task, out)]
        parts += [*_pilot(design, task, results), *_progress(design, task, results)]
        if complete:
            parts += [*_compute(design, task, tests), *_kinds(design, task, tests), *_weights(design, task, tests)]
            of_task = [result for result in tests if result.task == task]
            parts += [*_chart(task, of_task, out), *_runs(of_task)]
    for name in sorted({result.task for result in tests} - set(design.tasks)):
        parts += _own(design, name, [result for result in tests if result.task == name], out)
    write_text(out, "\n".join([*parts, _FOOT]))


def _is_complete(design: Design, results: Sequence[Result]) -> bool:
    number = Pilot(design, design.primary[0], results).seeds
    if number is None:
        return False
    runs = {(result.task, result.seed, result.scheme) for result in results if not result.pilot}
    return all(
        (task, seed, scheme) in runs
        for task in design.tasks
        for seed in design.test_seeds(number)
        for scheme in design.schemes
    )


def _answer(design: Design, tests: Sequence[Result], out: Path) -> list[str]:
    found = equal_updates(design, design.tasks, tests)
    task, scheme = design.primary
    primary = next(one for one in found if (one.task, one.scheme) == design.primary)
    family = sum(one.corrected is not None for one in found)
    chart = f"{out.stem}-differences.svg"
    write_text(out.parent / chart, drawn(found, design.baseline, design.primary))
    return [
        "## Answer\n",
        f"Primary, {scheme} - {design.baseline} on `{task}`, prior-violating accuracy over the run: "
        f"**{_interval(primary.difference)}**, n = {primary.difference.number}: **{primary.verdict}**. With the image "
        f"blanked, {scheme} goes from {_blind(tests, task, scheme)}, {design.baseline} from "
        f"{_blind(tests, task, design.baseline)}.\n",
        f"![Differences from {design.baseline} by scheme and task]({chart})\n",
        f"All others, with Holm's correction over these {family} together. Intervals (95%, Student's t over seeds) are "
        f"not corrected. Image blanked: greedy accuracy at the start and at the end. Cost is the processor time of a "
        f"run, as a multiple of {design.baseline}'s.\n",
        markdown_table(
            [f"scheme - {design.baseline}", *_SHOWN],
            [_row(design, tests, one) for one in found],
        ),
    ]


_SHOWN = ("task", "difference", "95% interval", "p", "p, Holm", "image blanked", "cost", "shows")


def _row(design: Design, tests: Sequence[Result], one: Contrast) -> list[str]:
    found = one.difference
    interval = NOTHING if found.interval is None else f"[{found.interval[0]:+.3f}, {found.interval[1]:+.3f}]"
    corrected = "primary" if one.corrected is None else number(one.corrected)
    times = cost_ratio(tests, one.task, one.scheme, design.baseline)
    cost = NOTHING if times is None else f"{times:.2f} ×"
    shown = [f"{found.mean:+.3f}", interval, number(found.p), corrected, _blind(tests, one.task, one.scheme), cost]
    return [one.scheme, one.task, *shown, one.verdict]


def _blind(tests: Sequence[Result], task: str, scheme: str) -> str:
    """Accuracy with the image blanked, at the start and at the end: means over seeds."""
    runs = [run for run in tests if (run.task, run.scheme) == (task, scheme)]
    ends = [[value for run in runs if (value := run.at("blank", end=end)) is not None] for end in (False, True)]
    return " to ".join(number(statistics.fmean(values) if values else None) for values in ends)


def _pilot(design: Design, task: str, results: Sequence[Result]) -> list[str]:
    pilot = Pilot(design, task, results)
    if not any(tried.measures for tried in pilot.tried.values()):
        return ["### Pilot\n", "Not run yet.\n"]
    rates = sorted({rate for tried in pilot.tried.values() for rate in tried.measures})
    rows = []
    for scheme, tried in pilot.tried.items():
        cells = [
            number(tried.measures.get(rate)) + (" (broke down)" if rate in tried.broke_down else "") for rate in rates
        ]
        rows.append([scheme, *cells, NOTHING if tried.best is None else shown(tried.best)])
    lines = [
        "### Pilot\n",
        f"Prior-violating accuracy over the run, mean of seeds {', '.join(map(str, design.pilot_seeds))}, by learning "
        "rate.\n",
        markdown_table(["scheme", *map(shown, rates), "chosen"], rows),
    ]
    if pilot.missing:
        lines.append(f"{len(pilot.missing)} runs are missing, first `{pilot.missing[0].file}`.\n")
    if pilot.spread is not None and pilot.seeds is not None:
        deviation, freedom = pilot.spread
        effects = ", ".join(f"{factor * deviation:.3f} with {seeds} seeds" for seeds, factor in DETECTED.items())
        lines.append(
            f"Paired differences have a standard deviation of s = {deviation:.3f} ({freedom} degrees of freedom). "
            f"Smallest effect found with 80% probability: {effects}. So there are {pilot.seeds} test seeds.\n"
            if task == design.primary[0]
            else f"s = {deviation:.3f} ({freedom} degrees of freedom); smallest effect: {effects}.\n"
        )
    return lines


def _progress(design: Design, task: str, results: Sequence[Result]) -> list[str]:
    planned = Pilot(design, design.primary[0], results).seeds
    tests = [result for result in results if result.task == task and not result.pilot]
    schemes = set(design.schemes)
    whole = [seed for (_, seed, _), runs in by_seed(tests).items() if {run.scheme for run in runs} >= schemes]
    of = f"{len(whole)} of {planned} seeds" if planned else f"{len(whole)} seeds (how many, the pilot decides)"
    lines = ["### Runs\n", f"Complete: {of}. {len(tests)} runs." + (f" {_machines(tests)}" if tests else "")]
    broke = [markdown_inline(f"{one.scheme}-{one.seed} ({one.broke_down})") for one in tests if one.broke_down]
    if broke:
        lines.append(f"Training broke down, and the last evaluation counts for the rest: {'; '.join(broke)}.")
    return [*lines, ""]


def _compute(design: Design, task: str, tests: Sequence[Result]) -> list[str]:
    values = equal_compute(tests, task, design.baseline)
    rows = []
    for scheme in design.schemes:
        runs = [run for run in tests if (run.task, run.scheme) == (task, scheme)]
        difference = paired(values[scheme], values[design.baseline]) if scheme != design.baseline else None
        cost = estimate([run.cost(run.iterations) for run in runs])
        rows.append([scheme, f"{cost.mean:.0f}", _spread(values[scheme].values()), _interval(difference)])
    return [
        "### Equal compute\n",
        "Seconds of rollout, score-attention, weight-tokens and train-step (processor time; on GPUs, of the clock), "
        f"and the mean of the curve up to what {design.baseline} of the same seed needs. Exploratory.\n",
        markdown_table(["scheme", "seconds of a run", "up to that budget", f"difference from {design.baseline}"], rows),
    ]


def _kinds(design: Design, task: str, tests: Sequence[Result]) -> list[str]:
    runs = [run for run in tests if run.task == task]
    kinds = sorted({name for run in runs for name in run.curves if name.startswith(f"{MEASURE}, ")})
    if not kinds:
        return []
    rows = []
    for scheme in design.others():
        found = [differences(tests, task, scheme, design.baseline, kind) for kind in kinds]
        rows.append([scheme, *(_interval(one) for one in found)])
    return [
        "### By kind of question\n",
        f"Difference from {design.baseline} on prior-violating questions over the run. Exploratory.\n",
        markdown_table(["scheme", *(kind.partition(", ")[2] for kind in kinds)], rows),
    ]


def _weights(design: Design, task: str, tests: Sequence[Result]) -> list[str]:
    rows = []
    for scheme in design.schemes:
        seen = [run.weights for run in tests if (run.task, run.scheme) == (task, scheme)]
        names = ("deviation", "at upper bound", "deciding word at upper bound")
        rows.append([scheme, *(_spread(one[name] for one in seen if name in one) for name in names)])
    headers = ["scheme", "deviation within a completion", "tokens at the upper bound", "deciding words there"]
    return ["### Token weights\n", "Means over the run and seeds.\n", markdown_table(headers, rows)]


def _runs(runs: Sequence[Result]) -> list[str]:
    """Start and end of every run; that with the image blanked stands first."""
    if not runs:
        return []
    headers = ["run", "learning rate", "image blanked, start", "end"]
    headers += ["prior-violating, start", "end", "over the run", "all questions, start", "end", "tokens, end"]
    rows = []
    for run in runs:
        ends = [number(run.at(name, end=end)) for name in ("blank", "violating", "all") for end in (False, True)]
        cells = [*ends[:4], number(run.measure(measured(runs))), *ends[4:], number(run.at("length", end=True), 1)]
        rows.append([f"{run.scheme}-{run.seed}", shown(run.learning_rate), *cells])
    return [
        "<details><summary>Every run: what it keeps with the image blanked, and what it answers</summary>\n",
        markdown_table(headers, rows),
        "</details>\n",
    ]


def _own(design: Design, name: str, runs: Sequence[Result], out: Path) -> list[str]:
    """A model of somebody's own: means over seeds and paired differences, without p values."""
    measure = measured(runs)
    rows = []
    for scheme in dict.fromkeys(run.scheme for run in runs):
        ours = [run for run in runs if run.scheme == scheme]
        difference = differences(runs, name, scheme, design.baseline, measure) if scheme != design.baseline else None
        ends = [_spread(v for run in ours if (v := run.at("blank", end=end)) is not None) for end in (False, True)]
        rows.append(
            [scheme, str(len(ours)), *ends, _spread(run.measure(measure) for run in ours), _interval(difference)]
        )
    return [
        f"## {markdown_inline(name)}\n",
        *_dependence(name, out),
        f"Sent in, outside of the study; exploratory. {_machines(runs)}\n",
        markdown_table(
            ["scheme", "seeds", "image blanked, start", "end", f"{ENDS[measure]}, over the run", "difference"], rows
        ),
        *_runs(runs),
    ]


def _dependence(name: str, out: Path) -> list[str]:
    """A link to the table of dependence of a task or model, if there is one."""
    table = f"{out.stem}/{name}/dependence/dependence.md"
    there = (out.parent / table).is_file()
    return [f"[Does attention tell]({quote(table)}) which tokens depend on the image?\n"] if there else []


def _machines(runs: Sequence[Result]) -> str:
    return f"Machines: {markdown_inline('; '.join(sorted({str(run.machine) for run in runs})))}."


def _chart(task: str, runs: Sequence[Result], out: Path) -> list[str]:
    lines = []
    for measure in ("violating", "blank"):
        series = []
        for scheme in dict.fromkeys(run.scheme for run in runs):
            curves = [run.curve(measure) for run in runs if run.scheme == scheme]
            shared = sorted(set.intersection(*map(set, curves)))
            points = [(float(n), statistics.fmean(curve[n] for curve in curves)) for n in shared]
            series.append(Series(scheme, points))
        title = f"{task}: greedy accuracy, {ENDS[measure]}"
        path = f"{out.stem}-{task}-{measure}.svg"
        write_text(out.parent / path, drawn_as_svg(Chart(title, title, series, "percent")))
        lines.append(f"![{title}]({path})")
    return ["### Curves\n", "Means over seeds.\n", *lines, ""]


def _spread(values: Iterable[float]) -> str:
    known = list(values)
    if not known:
        return NOTHING
    found = estimate(known)
    return f"{found.mean:.3f}" + ("" if found.deviation is None else f" ± {found.deviation:.3f}")


def _interval(found: Estimate | None) -> str:
    if found is None:
        return NOTHING
    return f"{found.mean:+.3f}" + (
        f" [{found.interval[0]:+.3f}, {found.interval[1]:+.3f}]" if found.interval is not None else ""
    )


_HEAD = """# Results: what is looking worth?

Written by `make study` from the files in [results/](results), one per run. [study.md](study.md) is the design, made
before the first run; [results-before.md](results-before.md) has the study before this one.
"""
_FOOT = """## What this does not show

- Anything beyond these tasks and policies of about a million parameters, unless a section says so.
- That there is no difference, where it says *no difference shown*: the interval says how large one may still be.
"""
