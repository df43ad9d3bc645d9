"""The answer as a chart: differences from the baseline with their intervals, a row for each scheme and task."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from dapo_stages.reporting.page.ticks import in_words, nice_ticks
from pipelines.study.contrasts import Contrast

_WIDTH, _LEFT, _RIGHT, _TOP, _ROW, _BOTTOM = 760, 130, 270, 8, 22, 44  # pixels
_STYLE = (
    "svg{background:#fff;font:12px system-ui,sans-serif}text{fill:#1c2430}.soft{fill:#5b6675;text-anchor:middle}"
    ".name{text-anchor:end}.task{font-weight:600}.grid{stroke:#e9edf1}.zero{stroke:#9aa6b4;stroke-width:1.5}"
    ".no{stroke:#5b6675;fill:#5b6675}.higher{stroke:#0072b2;fill:#0072b2}.lower{stroke:#d55e00;fill:#d55e00}"
    "path{stroke-width:2;fill:none}text{stroke:none}"
)


def drawn(contrasts: Sequence[Contrast], baseline: str, primary: tuple[str, str]) -> str:
    """A standalone SVG file: a dot per mean, a line per 95% interval, and a color, a filled dot, for what is shown.

    Rows are those of `contrasts`, with a heading for each task. Contrasts without an interval have a dot only.
    """
    ends = [end for one in contrasts for end in one.difference.interval or (one.difference.mean,)]
    ticks = nice_ticks(min(0.0, *ends), max(0.0, *ends), 7)
    span = _WIDTH - _LEFT - _RIGHT

    def x(value: float) -> float:
        return _LEFT + span * (value - ticks[0]) / (ticks[-1] - ticks[0])

    rows, y, task = [], _TOP, ""
    for one in contrasts:
        if one.task != task:
            task, y = one.task, y + _ROW
            rows.append(f'<text class="name task" x="{_LEFT - 12}" y="{y}">{escape(task)}</text>')
        y += _ROW
        rows.append(_row(one, y, x(one.difference.mean), [x(end) for end in one.difference.interval or ()], primary))
    bottom = y + _ROW / 2
    grid = []
    for tick in ticks:
        kind = "zero" if abs(tick) < 1e-12 else "grid"
        grid.append(f'<line class="{kind}" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{_TOP}" y2="{bottom}"/>')
        words = in_words(tick, ticks[1] - ticks[0], "number")
        grid.append(f'<text class="soft" x="{x(tick):.1f}" y="{bottom + 16}">{words}</text>')
    label = f"prior-violating accuracy over the run, minus that of {baseline}, with 95% intervals"
    axis = f'<text class="soft" x="{_LEFT + span / 2}" y="{bottom + 34}">{escape(label)}</text>'
    size = f'viewBox="0 0 {_WIDTH} {bottom + _BOTTOM}" width="{_WIDTH}" height="{bottom + _BOTTOM}"'
    said = f'role="img" aria-label="{escape(label)}"'
    style = f"<style>{_STYLE}</style>"
    inside = "\n".join([style, *grid, *rows, axis])
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {said}>{inside}</svg>\n'


def _row(one: Contrast, y: float, middle: float, ends: list[float], primary: tuple[str, str]) -> str:
    shows = one.verdict in ("higher", "lower")
    fill = "" if shows else ' style="fill:#fff"'  # the color is not the only difference
    line = f'<path d="M{ends[0]:.1f} {y - 4}H{ends[1]:.1f}"/>' if ends else ""
    note = " (primary)" * ((one.task, one.scheme) == primary)
    return (
        f'<g class="{one.verdict.split()[0]}">{line}<circle cx="{middle:.1f}" cy="{y - 4}" r="4"{fill}/>'
        f'<text class="name" x="{_LEFT - 12}" y="{y}">{escape(one.scheme)}</text>'
        f'<text x="{_WIDTH - _RIGHT + 14}" y="{y}">{one.difference.mean:+.3f}, {escape(one.verdict + note)}</text></g>'
    )
