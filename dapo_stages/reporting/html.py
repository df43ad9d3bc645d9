"""report.html: one file that needs no network, no script and no other file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from dapo_stages.reporting.charts import COLOURS, draw
from dapo_stages.reporting.curves import curves
from dapo_stages.reporting.figures import Figures, figure
from dapo_stages.reporting.samples import Sample
from dapo_stages.reporting.tables import Table
from dapo_stages.reporting.text import number, one_line, percent, signed, visible

SHOWN = 3  # iterations whose samples are in the page, the latest ones: it has to open quickly


def render(
    run: str,
    table: Table,
    all_figures: Sequence[Figures],
    seconds: Mapping[int, Mapping[str, float]],
    samples: Mapping[int, Sequence[Sample]],
    facts: Mapping[str, str],
) -> str:
    """The whole page. Autoescape is on: text of models and data sets is never markup."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "percent": percent, "signed": signed, "visible": visible}
    template = environment.from_string(files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8"))
    shown = [iteration for iteration in sorted(samples) if samples[iteration]][-SHOWN:]
    return template.render(
        run=run,
        table=table,
        facts=facts,
        headlines=headlines(all_figures),
        charts=[
            {"chart": chart, "svg": Markup(draw(chart)), "colours": COLOURS} for chart in curves(all_figures, seconds)
        ],
        samples=[{"iteration": i, "groups": [_group(group) for group in samples[i]]} for i in reversed(shown)],
    )


def headlines(all_figures: Sequence[Figures]) -> list[dict[str, str]]:
    """The numbers a reader looks for first, each with where it started."""
    wanted = [
        ("held-out, greedy", ("eval", "greedy_accuracy"), percent),
        ("held-out, sampled", ("eval", "sampled_accuracy"), percent),
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
            since = f"{shown(before)} in iteration {first}" if first != last else f"iteration {last}"
            found.append({"name": name, "value": shown(now), "since": since})
    return found


def _group(sample: Sample) -> Sample:
    """A sample with what the template needs to colour its tokens."""
    weights = [weight for one in sample["completions"] for weight in one["token_weights"]]
    low, high = _range(weights)
    completions = [{**one, "spans": _spans(one, low, high)} for one in sample["completions"]]
    return {**sample, "completions": completions, "lightest": low, "heaviest": high, "weighted": high > low}


def _spans(one: Sample, low: float, high: float) -> list[dict[str, Any]]:
    """Tokens with a shade from 0 (lightest of the group) to 1 (heaviest)."""
    weights, vgr = one["token_weights"], one["token_vgr"]
    spans = []
    for index, token in enumerate(one["tokens"]):
        weight = weights[index] if index < len(weights) else None
        looked = vgr[index] if index < len(vgr) else None
        shade = min(max((weight - low) / (high - low), 0.0), 1.0) if weight is not None and high > low else 0.0
        title = f"{one_line(token)}\nweight {number(weight, 2)}, VGR {number(looked, 2)}"
        spans.append({"text": visible(token), "shade": round(shade, 2), "title": title})
    return spans


def _range(weights: Sequence[float]) -> tuple[float, float]:
    """The 2nd and 98th percentile, so that one extreme token does not pale all others."""
    if not weights:
        return 1.0, 1.0
    ordered = sorted(weights)
    edge = len(ordered) * 2 // 100
    return ordered[edge], ordered[-1 - edge]
