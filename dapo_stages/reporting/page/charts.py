"""Curves and histograms as inline SVG: no script, no font, no network; colors come from classes of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import Literal, TypeVar

from dapo_stages.terminal.safe_text import number, one_line, percent

Points = list[tuple[float, float]]
Unit = Literal["number", "percent"]
_T = TypeVar("_T")

COLORS = 8  # classes s0 … s7 in the page
_WIDTH, _HEIGHT = 460, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 14, 14, 44
_ROW = 18  # of the legend
_DOTS = 240  # per curve: more cannot be told apart
# As in the page's light theme.
_INKS = ("#0072b2", "#d55e00", "#009e73", "#b6589a", "#8a6d00", "#3a9bd6", "#444b57", "#e69f00")
_STYLE = (
    "svg{background:#fff;font:12px system-ui,sans-serif}text{fill:#5b6675;text-anchor:middle}.end{text-anchor:end}"
    ".name{fill:#1c2430;text-anchor:start}.grid{stroke:#e9edf1}.base{stroke:#9aa6b4}.dot{fill:var(--c)}"
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
    """Curves over iterations, or something else, that share an axis; with `bin`, bars of that width around each x."""

    title: str
    y_label: str
    series: list[Series]
    unit: Unit = "number"
    x_label: str = "iteration"
    bin: float | None = None


@dataclass(frozen=True)
class _Frame:
    """Maps values to positions in the drawing."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        return _LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - self.y_low) / (self.y_high - self.y_low) * (_HEIGHT - _TOP - _BOTTOM)


def draw(chart: Chart) -> str:
    """The chart as an SVG element; every foreign string in it is escaped."""
    points = [point for series in chart.series for point in series.points]
    bands = [end for series in chart.series for _, low, high in series.band for end in (low, high)]
    xs, ys = [x for x, _ in points], [y for _, y in points] + bands
    room = (chart.bin or 0.0) / 2 or (0.5 if min(xs) == max(xs) else 0.0)
    ticks = nice_ticks(0.0 if chart.unit == "percent" else min(ys), max(ys))
    frame = _Frame(min(xs) - room, max(xs) + room, ticks[0], ticks[-1])
    marks = _bars if chart.bin else _curve
    label = escape(f"{chart.title}: {', '.join(series.name for series in chart.series)}")
    return "".join(
        [
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">',
            *_y_axis(frame, ticks, chart),
            *_x_axis(frame, chart),
            *(marks(frame, series, index, chart) for index, series in enumerate(chart.series)),
            "</svg>",
        ]
    )


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


def nice_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers that enclose low … high, about `wanted` of them: steps of 1, 2, 2.5 or 5 times a power of ten."""
    if high - low < 1e-12 * max(abs(low), abs(high), 1e-12):
        room = abs(high) * 0.1 or 1.0
        low, high = low - room, high + room
    rough = (high - low) / (wanted - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def _y_axis(frame: _Frame, ticks: list[float], chart: Chart) -> list[str]:
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts = [f'<text class="axis" transform="translate(13 {middle:.0f}) rotate(-90)">{escape(chart.y_label)}</text>']
    for tick in ticks:
        y = frame.y(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        text = _tick(tick, ticks[1] - ticks[0], chart.unit)
        parts.append(f'<text class="tick end" x="{_LEFT - 6}" y="{y + 4:.1f}">{text}</text>')
    return parts


def _x_axis(frame: _Frame, chart: Chart) -> list[str]:
    bottom = _HEIGHT - _BOTTOM
    ticks = nice_ticks(frame.x_low, frame.x_high, 8)
    step = ticks[1] - ticks[0] if chart.bin else max(1, math.ceil(ticks[1] - ticks[0]))  # no half iterations
    parts = [f'<line class="base" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>']
    value = math.ceil(frame.x_low / step) * step
    while value <= frame.x_high + 1e-9:
        parts.append(f'<text class="tick" x="{frame.x(value):.1f}" y="{bottom + 17}">{round(value, 9) + 0.0:g}</text>')
        value += step
    place = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text class="axis" x="{place:.0f}" y="{_HEIGHT - 6}">{escape(chart.x_label)}</text>')
    return parts


def _curve(frame: _Frame, series: Series, index: int, chart: Chart) -> str:
    """A line with a dot per point. Every second line is dashed, so that color is not the only difference."""
    points, band = _thinned(series.points), _thinned_band(series.band)
    places = [(frame.x(x), frame.y(y)) for x, y in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dash = ' stroke-dasharray="5 3"' if index % 2 else ""
    shown = {x for x, _ in points}
    ends = {x: f" ({_said(low, chart)} to {_said(high, chart)})" for x, low, high in series.band if x in shown}
    parts = [f'<g class="s{index % COLORS}">']
    if len(band) > 1:
        edge = [(x, low) for x, low, _ in band] + [(x, high) for x, _, high in reversed(band)]
        outline = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in edge)
        parts.append(f'<polygon class="band" points="{outline}"/>')
    parts.append(f'<polyline class="line" points="{line}"{dash}/>')
    radius = 2.8 if len(places) <= 40 else 1.6
    for (x, y), (place, value) in zip(places, points, strict=True):
        title = escape(f"{chart.x_label} {place:g}: {series.name} {_said(value, chart)}{ends.get(place, '')}")
        parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"><title>{title}</title></circle>')
    return "".join([*parts, "</g>"])


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
    parts = [f'<g class="s{index % COLORS}"><polygon class="bars" points="{outline}"{dash}/>']
    for x, y in series.points:
        title = escape(f"{chart.x_label} {x - half:.3g} to {x + half:.3g}: {series.name} {_said(y, chart)}")
        left, width, top = frame.x(x - half), frame.x(x + half) - frame.x(x - half), frame.y(y)
        place = f'x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{max(bottom - top, 0):.1f}"'
        parts.append(f'<rect class="bin" {place}><title>{title}</title></rect>')
    return "".join([*parts, "</g>"])


def _said(value: float, chart: Chart) -> str:
    return percent(value) if chart.unit == "percent" else number(value)


def _tick(value: float, step: float, unit: Unit) -> str:
    if unit == "percent":
        return f"{100 * value:.{0 if step >= 0.01 else 1}f}%"
    if value and not 1e-4 <= max(abs(value), step) < 1e6:
        return f"{value:.1e}"
    decimals = max(0, math.ceil(-math.log10(step) - 1e-9)) + (f"{step:.1e}"[:3] == "2.5")
    return f"{value:.{decimals}f}"


def has_points(chart: Chart) -> bool:
    """Whether there is anything to draw."""
    return any(series.points for series in chart.series)


def drop_empty(charts: Sequence[Chart]) -> list[Chart]:
    """Charts with something to draw, without the curves that have no point."""
    return [replace(c, series=[series for series in c.series if series.points]) for c in charts if has_points(c)]
