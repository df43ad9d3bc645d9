"""report.html: one file that needs no network and no other file.

Text of models and datasets is data: the template escapes it, and what the script shows comes from a block of JSON and
is only ever set as text. The page's policy allows its one script and its one style sheet, by hash, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from dapo_stages.config import Config
from dapo_stages.reporting.iteration.browse import Browsed
from dapo_stages.reporting.iteration.figures import Figures, figure, interval, interval_method
from dapo_stages.reporting.iteration.samples import READ_FROM
from dapo_stages.reporting.page.charts import COLORS, Chart, aligned, draw, latest
from dapo_stages.reporting.page.curves import Cost, curves, histograms, schedules
from dapo_stages.reporting.page.held_out import COURSES
from dapo_stages.reporting.page.settings_shown import in_words, learning_rate, marks, settings
from dapo_stages.runs.changed_settings import Step
from dapo_stages.terminal.printed_table import Table
from dapo_stages.terminal.safe_text import number, one_line, percent

MOST_COMPLETIONS = 2000  # in a page, and
MOST_BYTES = 19_400_000  # of data and curves, so that it opens in under two seconds
_SCRIPTS = (
    "common.js",
    "cursor.js",
    "smooth.js",
    "choose.js",
    "address.js",
    "csv.js",
    "look.js",
    "zoom.js",
    "cards.js",
    "asked.js",
    "start.js",
    "theme.js",
)
_IN_SCRIPT = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


@dataclass(frozen=True)
class About:
    """Of a run: what it was made by (iteration/origin.py), its configuration, what was changed on the way, and the
    held-out questions over the iterations (held_out.py)."""

    origin: Mapping[str, str] = field(default_factory=dict)
    config: Config | None = None
    steps: Sequence[Step] = ()
    questions: Sequence[Mapping[str, Any]] = ()


def render(
    run: str,
    table: Table,
    all_figures: Sequence[Figures],
    cost: Mapping[str, Cost],
    browsed: Iterable[Browsed],
    facts: Mapping[str, str],
    about: About | None = None,
) -> str:
    """The whole page; `browsed` newest first."""
    from markupsafe import Markup

    about = about or About()
    planned = schedules(about.config, [figures["iteration"] for figures in all_figures]) if about.config else []
    charts = aligned([*curves(all_figures, cost), *planned, *histograms(all_figures)], marks(about.steps))
    drawn = [draw(chart) for chart in charts]
    methods = [interval_method(figures.get("eval", {})) for figures in all_figures]
    asked = _in_script(about.questions)
    room = MOST_BYTES - sum(len(text.encode("utf-8", "replace")) for text in (asked, *drawn))
    data, shown = page_data(browsed, size=room)
    return filled(
        "report.html.j2",
        _SCRIPTS,
        title=run,
        run=run,
        table=table,
        facts=facts,
        setup=setup(about),
        headlines=headlines(all_figures),
        **with_curves(charts, drawn, methods),
        data=Markup(data),
        questions=about.questions,
        asked=Markup(asked),
        courses=COURSES,
        shown=shown,
        places=READ_FROM,
    )


def with_curves(charts: Sequence[Chart], drawn: Sequence[str], methods: Iterable[str | None]) -> dict[str, Any]:
    """What curves.html.j2 needs: charts, the SVG of each, and how the intervals in them were computed."""
    from markupsafe import Markup

    return {
        "charts": [
            {"chart": chart, "svg": Markup(svg), "colors": COLORS, "latest": latest(chart)}
            for chart, svg in zip(charts, drawn, strict=True)
        ],
        "marked": any(chart.marks for chart in charts),
        "methods": "; ".join(dict.fromkeys(method for method in methods if method)),
    }


def filled(name: str, scripts: Sequence[str], **values: Any) -> str:
    """A page from its template; its policy allows its style and its scripts, and nothing else."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FunctionLoader(_part),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    style, script = _part("report.css"), "\n".join(map(_part, scripts))
    hashes = {"style": _hash(style), "script": _hash(script)}
    return environment.get_template(name).render(style=Markup(style), script=Markup(script), hashes=hashes, **values)


def setup(about: About) -> dict[str, Any]:
    """The configuration's part of the page; without a configuration, what is known."""
    differ, others = settings(about.config) if about.config is not None else ([], [])
    facts = dict(about.origin)
    if about.config is not None:
        facts = {"learning rate": learning_rate(about.config), **facts}
    steps = [(str(step.iteration), step.key, in_words(step.was), in_words(step.now)) for step in about.steps]
    return {"facts": facts, "differ": differ, "others": others, "steps": steps}


def page_data(
    browsed: Iterable[Browsed], completions: int = MOST_COMPLETIONS, size: int = MOST_BYTES
) -> tuple[str, int]:
    """JSON of the first groups that fit into a page, and their number of completions."""
    found: list[str] = []
    shown = large = 0
    for one in browsed:
        for group in one["groups"]:
            text = _in_script({"iteration": one["iteration"], **group})
            shown, large = shown + len(group["completions"]), large + len(text.encode("utf-8", "replace"))
            if found and (shown > completions or large > size):
                return f"[{','.join(found)}]", shown - len(group["completions"])
            found.append(text)
    return f"[{','.join(found)}]", shown


def headlines(all_figures: Sequence[Figures]) -> list[dict[str, str]]:
    """The numbers a reader looks for first, each with where it started."""
    wanted = [
        ("held-out, greedy", ("eval", "greedy_accuracy"), percent),
        ("held-out, sampled", ("eval", "sampled_accuracy"), percent),
        ("held-out, image blanked", ("eval", "blank_accuracy"), percent),
        ("rollout accuracy", ("rollout", "accuracy"), percent),
        ("well-formed in rollout", ("rollout", "format"), percent),
        ("reward", ("weights", "reward"), number),
        ("VGR", ("attention", "vgr_all"), number),
    ]
    found = []
    for name, path, shown in wanted:
        values = [(f["iteration"], value) for f in all_figures if (value := figure(f, *path)) is not None]
        if values:
            (first, before), (last, now) = values[0], values[-1]
            ends = next(interval(f, path) for f in all_figures if f["iteration"] == last)
            since = f"{shown(before)} in iteration {first}" if first != last else f"iteration {last}"
            within = f"{shown(ends[0])} to {shown(ends[1])}; " if ends else ""
            found.append({"name": name, "value": shown(now), "since": within + since})
    return found


def _shown(value: Any) -> Any:
    """Applied to every value in the template: foreign text becomes one line. Markup is from this package."""
    return one_line(value) if type(value) is str else value


def _part(name: str) -> str:
    return files(__package__).joinpath("assets", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """The hash of an inline style or script, as a content security policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _in_script(value: Any) -> str:
    """As JSON in which nothing can end a script."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":")).translate(_IN_SCRIPT)
