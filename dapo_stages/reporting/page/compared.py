"""The page of several runs: the curves of all, what differs in their configurations, the same questions in pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dapo_stages.config import Config
from dapo_stages.reporting.iteration.figures import Figures, interval_method
from dapo_stages.reporting.page.charts import OVER, Chart, Series, aligned, draw
from dapo_stages.reporting.page.curves import Cost, curves
from dapo_stages.reporting.page.html import filled, with_curves
from dapo_stages.reporting.page.settings_shown import in_words
from dapo_stages.runs.changed_settings import leaves
from dapo_stages.runs.run_summaries import NOWHERE
from dapo_stages.terminal.printed_table import Table
from dapo_stages.terminal.safe_text import NOTHING

_SCRIPTS = ("cursor.js", "smooth.js", "theme.js")


def render(
    names: Sequence[str],
    table: Table,
    measured: Sequence[tuple[Sequence[Figures], Mapping[str, Cost]]],
    marks: Mapping[int, str],
    differ: Mapping[str, Sequence[Any]],
    troubles: Sequence[tuple[str, str]],
    pairs: Sequence[Any],
    headers: Sequence[str],
) -> str:
    """The whole page. `measured`: figures and cost of each run; `pairs` of runs_compared.py, with its `headers`."""
    charts = aligned(over_runs(names, [curves(figures, cost) for figures, cost in measured]), marks)
    methods = [interval_method(one.get("eval", {})) for figures, _ in measured for one in figures]
    return filled(
        "compare.html.j2",
        _SCRIPTS,
        title=" and ".join(names) if len(names) == 2 else f"{len(names)} runs",
        names=names,
        table=table,
        settings=settings(differ),
        troubles=troubles,
        pairs=pairs,
        headers=headers,
        **with_curves(charts, [draw(chart) for chart in charts], methods),
    )


def over_runs(names: Sequence[str], charts: Sequence[Sequence[Chart]]) -> list[Chart]:
    """For each curve over iterations that any run has, a chart with that curve of every run.

    `charts`: those of each run. A run without it keeps its place, so that it has the same color in all charts.
    """
    found: dict[tuple[str, str], list[Series]] = {}
    kinds: dict[str, Chart] = {}
    for place, of_run in enumerate(charts):
        for chart in of_run:
            if chart.x_label != OVER or chart.bin:
                continue
            kinds.setdefault(chart.title, chart)
            for series in chart.series:
                curve = found.setdefault((chart.title, series.name), [Series(name, []) for name in names])
                curve[place] = Series(names[place], series.points, series.band)
    several = {title for title in kinds if sum(one == title for one, _ in found) > 1}
    order = {title: index for index, title in enumerate(kinds)}
    return [
        Chart(f"{title}: {name}" if title in several else title, kinds[title].y_label, series, kinds[title].unit)
        for (title, name), series in sorted(found.items(), key=lambda item: order[item[0][0]])
    ]


def settings(differ: Mapping[str, Sequence[Any]]) -> list[list[str]]:
    """Key, value in each run, and default, for settings that are not the same in all."""
    defaults = dict(leaves(Config().model_dump(mode="json")))

    def said(value: Any) -> str:
        return NOTHING if value is NOWHERE else in_words(value)

    return [[key, *map(said, values), said(defaults.get(key, NOWHERE))] for key, values in differ.items()]
