"""Which scores tell the tokens that depend on the image, for people: tables, Markdown and a plot."""

from __future__ import annotations

from typing import Any

from dapo_stages.reporting.page.charts import Chart, Series, drawn_as_svg
from dapo_stages.terminal.printed_table import Table
from dapo_stages.terminal.safe_text import NOTHING, markdown_inline, markdown_table, number, one_line, percent

PLOT = "dependence.svg"
# Curves that can still be told apart in one plot.
_PLOTTED = (
    "1/VGR, all layers",
    "vision mass, all layers",
    "attention rollout",
    "cosine to the image",
    "gradient at the image",
    "entropy",
    "entropy × 1/VGR",
    "KL, gray image",
)
_HEADS = 5  # shown of the best and of the worst
_FEW = 10  # tokens of a kind, below which its figures are noise


def facts(found: dict[str, Any]) -> list[str]:
    """What was measured, and how many tokens depend on the image; numbered if there are two measurements."""
    both = _both(found)
    return [
        (f"{place}. " if len(both) > 1 else "")
        + f"{one['policy']} on {one['rollouts']}: {one['dependent']} of {one['tokens']} tokens "
        f"({percent(one['dependent'] / one['tokens'])}) depend on the image, with a KL above {one['threshold']:g} "
        f"nats, in {one['completions']} completions of {one['groups']} groups."
        for place, one in enumerate(both, start=1)
    ]


def scores_table(found: dict[str, Any]) -> Table:
    """Of each score its correlation, AUC and what its highest values capture; of two measurements side by side."""
    both = _both(found)
    shown = {
        "spearman": "Spearman",
        "spearman_change": "of change",
        "auc": "AUC",
        "captured": f"top {found['top']:.0%}",
    }
    places = [f" ({place})" for place in range(1, len(both) + 1)] if len(both) > 1 else [""]
    columns = [{score["name"]: score for score in one["scores"]} for one in both]
    rows = []
    for score in found["scores"]:
        row = [score["name"]]
        for name in shown:
            values = [column.get(score["name"], {}).get(name) for column in columns]
            row += [percent(value) if name == "captured" else _two(value) for value in values]
        rows.append(row)
    return Table(["score", *(f"{header}{place}" for header in shown.values() for place in places)], rows)


def kinds_table(found: dict[str, Any]) -> Table:
    """AUC of each score among the tokens of one kind; the first rows count them."""
    headers = ["AUC among", *(kind["name"] for kind in found["kinds"])]
    counts = [
        ["tokens", *(str(kind["tokens"]) for kind in found["kinds"])],
        ["that depend on the image", *(str(kind["dependent"]) for kind in found["kinds"])],
        ["mean KL in nats", *(number(kind["mean_kl"]) for kind in found["kinds"])],
    ]
    return Table(headers, [*counts, *_by_kind(found, "auc")])


def dependence_document(found: dict[str, Any]) -> str:
    """dependence.md."""
    parts = ["# Does attention tell?\n"]
    parts += [f"{markdown_inline(line)}\n" for line in facts(found)]
    parts += [
        f"The truth of a token is KL(π(·|image) ‖ π(·|another prompt's image)) in nats, a mean over {found['draws']} "
        "images of others. Spearman is the rank correlation of a score with it, over all tokens; the next column is "
        "the one with the mean absolute change of the token's logprob. AUC is the chance that a token that depends on "
        "the image has a higher score than one that does not; 0.5 is luck. The last column is the part of all "
        f"dependence that lies on the {found['top']:.0%} of tokens with the highest scores.\n",
        _table(scores_table(found)),
        f"![Dependence on the tokens with the highest scores]({PLOT})\n",
        "## By kind of token\n",
        f"Not shown (–) for kinds of which fewer than {_FEW} tokens depend on the image, or fewer do not; "
        "dependence.json has all.\n",
        _table(kinds_table(found)),
        _table(Table(["Spearman among", *(kind["name"] for kind in found["kinds"])], _by_kind(found, "spearman"))),
        "## Heads\n",
        "AUC of the vision mass of single heads, each as layer.head counted from 0. The best ones of many are partly "
        "luck.\n",
        _table(_heads(found)),
        "## Tokens that most of the dependence is on\n",
        "Means over all tokens of a text; 1/VGR relative to its mean over all tokens.\n",
        _table(_texts(found)),
    ]
    return "\n".join(parts)


def dependence_plot(found: dict[str, Any]) -> str:
    """dependence.svg: the part of all dependence that the tokens with the highest scores have, by their share."""
    by_name = {score["name"]: score for score in found["scores"]}
    series = []
    for name in _PLOTTED:
        if name in by_name:
            curve = by_name[name]["curve"]
            last = len(curve) - 1
            points = [(100 * step / last, value or 0.0) for step, value in enumerate(curve)]
            series.append(Series(name, points))
    chart = Chart(
        "Dependence on the image", "of all dependence", series, "percent", "% of tokens, highest scores first"
    )
    return drawn_as_svg(chart)


def _both(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [found["beside"], found] if found.get("beside") else [found]


def _by_kind(found: dict[str, Any], what: str) -> list[list[str]]:
    enough = [_FEW <= kind["dependent"] <= kind["tokens"] - _FEW for kind in found["kinds"]]
    names = [kind["name"] for kind in found["kinds"]]
    return [
        [
            score["name"],
            *(_two(score["kinds"][name][what] if shown else None) for name, shown in zip(names, enough, strict=True)),
        ]
        for score in found["scores"]
    ]


def _heads(found: dict[str, Any]) -> Table:
    heads = [(auc, f"{layer}.{head}") for layer, row in enumerate(found["heads"]) for head, auc in enumerate(row)]
    known = sorted((pair for pair in heads if pair[0] is not None), reverse=True)
    best, worst = known[:_HEADS], known[-_HEADS:] if len(known) > _HEADS else []
    rows = [
        [name, ", ".join(f"{place} {_two(auc)}" for auc, place in some) or NOTHING]
        for name, some in (("best", best), ("worst", worst))
    ]
    return Table(["heads", "AUC"], rows)


def _texts(found: dict[str, Any]) -> Table:
    headers = ["token", "times", "KL", "KL, gray image", "1/VGR", "entropy"]
    rows = [
        [
            one_line(text["text"]).strip() or "␣",
            str(text["times"]),
            *(number(text[name], 2) for name in ("kl", "gray_kl", "vgr", "entropy")),
        ]
        for text in found["texts"]
    ]
    return Table(headers, rows)


def _table(table: Table) -> str:
    return markdown_table(table.headers, table.rows)


def _two(value: float | None) -> str:
    """A correlation or an AUC, in which what is below .01 is 0."""
    return NOTHING if value is None else f"{round(value, 2) + 0.0:.2f}"
