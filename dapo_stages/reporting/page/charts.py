"""Curves and histograms as inline SVG: no script, no font, no network; colors come from classes of the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from itertools import pairwise
from typing import TypeVar

from dapo_stages.reporting.page.ticks import Unit, in_words, nice_ticks
from dapo_stages.terminal.safe_text import NOTHING, number, one_line, percent

Points = list[tuple[float, float]]
_T = TypeVar("_T")
_At = TypeVar("_At", bound=tuple[float, ...])  # x, and what is there

OVER = "iteration"  # what most charts have on their axis of x
COLORS = 8  # classes s0 … s7 in the page
_WIDTH, _HEIGHT = 460, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 14, 14, 44
_BESIDE, _LETTER = 28, 7.2  # room for the label beside the ticks, and for each letter of these
_ROW = 18  # of the legend
_DOTS = 240  # per curve: more cannot be told apart
# As in the page's light theme.
_INKS = ("#0072b2", "#d55e00", "#009e73", "#b6589a", "#8a6d00", "#3a9bd6", "#444b57", "#e69f00")
_STYLE = (
    "svg{background:#fff;font:12px system-ui,sans-serif}text{fill:#5b6675;text-anchor:middle}.end{text-anchor:end}"
    ".name{fill:#1c2430;text-anchor:start}.grid{stroke:#e9edf1}.base{stroke:#9aa6b4}circle{fill:var(--c)}"
    ".line{fill:none;stroke:var(--c);stroke-width:1.9;stroke-linejoin:round}"
    + "".join(f".s{index}{{--c:{ink}}}" for index, ink in enumerate(_INKS))
)


@dataclass(frozen=True)
class Series:
    """A named curve; iterations without a value have no point. `band`: x, and the ends of an interval there."""

    name: str
    points: Points
    band: list[tuple[float, float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", one_line(self.name))  # foreign text, for legends and titles


@dataclass(frozen=True)
class Chart:
    """Curves over iterations, or something else, that share an axis; with `bin`, bars of that width around each x.

    `span`: the least range of x, so that charts can be compared. `marks`: x -> what happened there.
    """

    title: str
    y_label: str
    series: list[Series]
    unit: Unit = "number"
    x_label: str = OVER
    bin: float | None = None
    span: tuple[float, float] | None = None
    marks: Mapping[float, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Frame:
    """Maps values to positions in the drawing."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    left: float = _LEFT

    def x(self, value: float) -> float:
        return self.left + (value - self.x_low) / (self.x_high - self.x_low) * (_WIDTH - self.left - _RIGHT)

    def y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - self.y_low) / (self.y_high - self.y_low) * (_HEIGHT - _TOP - _BOTTOM)


def draw(chart: Chart) -> str:
    """The chart as an SVG element; every foreign string in it is escaped."""
    frame, ticks = _frame(chart)
    draws = _bars if chart.bin else _curve
    label = escape(f"{chart.title}: {', '.join(series.name for series in chart.series)}")
    inside = f'data-left="{frame.left:.1f}" data-right="{_WIDTH - _RIGHT}" data-top="{_TOP}"'
    inside += f' data-bottom="{_HEIGHT - _BOTTOM}" data-low="{frame.x_low:.6g}" data-high="{frame.x_high:.6g}"'
    return "".join(
        [
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}" '
            f'data-over="{escape(chart.x_label)}" {inside}>',
            *_y_axis(frame, ticks, chart),
            *_x_axis(frame, chart),
            *(_mark(frame, x, f"{chart.x_label} {x:g}: {what}") for x, what in chart.marks.items()),
            *(draws(frame, series, index, chart) for index, series in enumerate(chart.series)),
            "</svg>",
        ]
    )


def _frame(chart: Chart) -> tuple[_Frame, list[float]]:
    """Where everything goes, and the ticks of the axis of y; shares begin at 0, as do values that are all 0."""
    points = [point for series in chart.series for point in series.points]
    bands = [end for series in chart.series for _, low, high in series.band for end in (low, high)]
    xs, ys = [*(x for x, _ in points), *(chart.span or ())], [y for _, y in points] + bands
    room = (chart.bin or 0.0) / 2 or (0.5 if min(xs) == max(xs) else 0.0)
    low, high = 0.0 if chart.unit == "percent" else min(ys), max(ys)
    ticks = nice_ticks(low, high if low or high else 1.0)
    widest = max(len(in_words(tick, ticks[1] - ticks[0], chart.unit)) for tick in ticks)
    return _Frame(min(xs) - room, max(xs) + room, ticks[0], ticks[-1], max(_LEFT, _BESIDE + _LETTER * widest)), ticks


def drawn_as_svg(chart: Chart) -> str:
    """The chart as a standalone SVG file, with its own colors and a legend below."""
    height = _HEIGHT + _ROW * len(chart.series) + 6
    drawn = draw(chart).replace("<svg ", f'<svg width="{_WIDTH}" height="{_HEIGHT}" ', 1)
    legend = []
    for index, series in enumerate(chart.series):
        y = _HEIGHT + _ROW * index + 8
        dash = ' stroke-dasharray="5 3"' if index % 2 else ""
        line = f'<line class="line" x1="{_LEFT}" x2="{_LEFT + 30}" y1="{y}" y2="{y}"{dash}/>'
        name = f'<text class="name" x="{_LEFT + 38}" y="{y + 4}">{escape(series.name)}</text>'
        legend.append(f'<g class="s{index % COLORS}">{line}{name}</g>')
    size = f'viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
    style = f"<style>{_STYLE}</style>"
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{style}{drawn}{"".join(legend)}</svg>\n'


def _y_axis(frame: _Frame, ticks: list[float], chart: Chart) -> list[str]:
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts = [f'<text class="axis" transform="translate(13 {middle:.0f}) rotate(-90)">{escape(chart.y_label)}</text>']
    for tick in ticks:
        y = frame.y(tick)
        parts.append(f'<line class="grid" x1="{frame.left:.0f}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        text = in_words(tick, ticks[1] - ticks[0], chart.unit)
        parts.append(f'<text class="tick end" x="{frame.left - 6:.0f}" y="{y + 4:.1f}">{text}</text>')
    return parts


def _x_axis(frame: _Frame, chart: Chart) -> list[str]:
    bottom = _HEIGHT - _BOTTOM
    ticks = nice_ticks(frame.x_low, frame.x_high, 8)
    step = ticks[1] - ticks[0] if chart.bin else max(1, math.ceil(ticks[1] - ticks[0]))  # no half iterations
    parts = [f'<line class="base" x1="{frame.left:.0f}" x2="{_WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>']
    value = math.ceil(frame.x_low / step) * step
    while value <= frame.x_high + 1e-9:
        text = f"{round(value, 9) + 0.0:g}"
        place = min(frame.x(value), _WIDTH - 1 - _LETTER * len(text) / 2)
        parts.append(f'<text class="tick" x="{place:.1f}" y="{bottom + 17}">{text}</text>')
        value += step
    place = (frame.left + _WIDTH - _RIGHT) / 2
    parts.append(f'<text class="axis" x="{place:.0f}" y="{_HEIGHT - 6}">{escape(chart.x_label)}</text>')
    return parts


def _curve(frame: _Frame, series: Series, index: int, chart: Chart) -> str:
    """A line with a dot per point, broken where nothing was measured. Every second line is dashed, so that color is
    not the only difference."""
    points = _thinned(series.points)
    dash = ' stroke-dasharray="5 3"' if index % 2 else ""
    shown = {x for x, _ in points}
    ends = _ends(series, chart.unit)
    parts = [_group(series, index, thinned=len(points) < len(series.points))]
    over = chart.x_label == OVER
    for part in _unbroken(series.band) if over else [series.band]:
        band = _thinned_band(part)
        edge = [(x, low) for x, low, _ in band] + [(x, high) for x, _, high in reversed(band)]
        outline = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in edge)
        parts += [f'<polygon class="band" points="{outline}"/>'] if len(band) > 1 else []
    for few in _unbroken(series.points) if over else [series.points]:
        line = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in few if x in shown)
        parts.append(f'<polyline class="line" points="{line}"{dash}/>')
    radius = 2.8 if len(points) <= 40 else 1.6
    for x, y in points:
        title = escape(f"{chart.x_label} {x:g}: {series.name} {said(y, chart.unit)}{ends.get(x, '')}")
        place = f'cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="{radius}" data-x="{x:g}"'
        parts.append(f"<circle {place}><title>{title}</title></circle>")
    return "".join([*parts, "</g>"])


def _ends(series: Series, unit: Unit) -> dict[float, str]:
    """` (50.0% to 75.0%)`: the interval at each x that has one."""
    return {x: f" ({said(low, unit)} to {said(high, unit)})" for x, low, high in series.band}


def _group(series: Series, index: int, *, thinned: bool = False) -> str:
    return f'<g class="s{index % COLORS}" data-name="{escape(series.name)}"{" data-thinned" * thinned}>'


def _mark(frame: _Frame, x: float, what: str) -> str:
    """A line from top to bottom, with what happened there."""
    place = f"{frame.x(x):.1f}"
    ends = f'x1="{place}" x2="{place}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"'
    return f'<g class="mark" data-x="{x:g}"><line {ends}/><title>{escape(one_line(what))}</title></g>'


def _unbroken(values: Sequence[_At]) -> list[list[_At]]:
    """Parts of a curve without a gap: a step wider than what is usual for it, 1.5 times the lower median of its steps.

    A curve that is measured every five iterations is a line, too.
    """
    steps = sorted(after[0] - before[0] for before, after in pairwise(values))
    usual = steps[(len(steps) - 1) // 2] if steps else 0.0
    parts: list[list[_At]] = []
    for value in values:
        if parts and value[0] - parts[-1][-1][0] <= 1.5 * usual:
            parts[-1].append(value)
        else:
            parts.append([value])
    return parts


def _thinned(points: Points) -> Points:
    """Of a long curve the first and the last point, and of each run of neighbors the lowest and the highest."""
    if len(points) <= _DOTS:
        return points
    kept = {points[0], points[-1]}
    for few in _neighbors(points):
        kept |= {min(few, key=lambda point: point[1]), max(few, key=lambda point: point[1])}
    return sorted(kept)


def _thinned_band(band: list[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
    """The same of a band: of each run of neighbors the lowest and the highest end."""
    if len(band) <= _DOTS:
        return band
    parts = _neighbors(band)
    inside = [(few[0][0], min(low for _, low, _ in few), max(high for _, _, high in few)) for few in parts]
    return [*inside, (band[-1][0], *inside[-1][1:])]


def _neighbors(values: Sequence[_T]) -> list[Sequence[_T]]:
    size = math.ceil(2 * len(values) / _DOTS)
    return [values[start : start + size] for start in range(0, len(values), size)]


def _bars(frame: _Frame, series: Series, index: int, chart: Chart) -> str:
    """Steps filled lightly, so that those behind show through; every second outline is dashed."""
    half, bottom = (chart.bin or 0.0) / 2, frame.y(frame.y_low)
    corners = [f"{frame.x(x + side * half):.1f},{frame.y(y):.1f}" for x, y in series.points for side in (-1, 1)]
    if not corners:
        return ""
    first, last = (corner.split(",")[0] for corner in (corners[0], corners[-1]))
    dash = ' stroke-dasharray="5 3"' if index % 2 else ""
    outline = " ".join([f"{first},{bottom:.1f}", *corners, f"{last},{bottom:.1f}"])
    parts = [_group(series, index), f'<polygon class="bars" points="{outline}"{dash}/>']
    for x, y in series.points:
        title = escape(f"{chart.x_label} {x - half:.3g} to {x + half:.3g}: {series.name} {said(y, chart.unit)}")
        left, width, top = frame.x(x - half), frame.x(x + half) - frame.x(x - half), frame.y(y)
        place = f'x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{max(bottom - top, 0):.1f}"'
        parts.append(f'<rect class="bin" {place} data-x="{x:.6g}"><title>{title}</title></rect>')
    return "".join([*parts, "</g>"])


def said(value: float, unit: Unit) -> str:
    """A value in words: 63.2%, or 0.123."""
    return percent(value) if unit == "percent" else number(value)


def latest(chart: Chart) -> list[str]:
    """The last value of each curve and its interval, in words; – for a curve without points."""
    return [_latest(series, chart.unit) for series in chart.series]


def _latest(series: Series, unit: Unit) -> str:
    if not series.points:
        return NOTHING
    x, y = series.points[-1]
    return said(y, unit) + _ends(series, unit).get(x, "")


def aligned(charts: Sequence[Chart], marks: Mapping[int, str]) -> list[Chart]:
    """Charts over iterations with the same range of x and the same marks, as far as these are inside; others as they
    are."""
    over = [chart for chart in charts if chart.x_label == OVER and not chart.bin]
    xs = [x for chart in over for series in chart.series for x, _ in series.points]
    if not xs:
        return list(charts)
    span = min(xs), max(xs)
    inside = {float(x): what for x, what in marks.items() if span[0] <= x <= span[1]}
    return [replace(c, span=span, marks=inside) if c in over else c for c in charts]


def has_points(chart: Chart) -> bool:
    """Whether there is anything to draw."""
    return any(series.points for series in chart.series)


def drop_empty(charts: Sequence[Chart]) -> list[Chart]:
    """Charts with something to draw, without the curves that have no point."""
    return [replace(c, series=[series for series in c.series if series.points]) for c in charts if has_points(c)]
