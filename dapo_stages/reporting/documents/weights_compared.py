"""A comparison of token weights for people: tables, Markdown and a plot. Text of tokens is data."""

from __future__ import annotations

from typing import Any

from dapo_stages.reporting.page.charts import Chart, Series, drawn_as_svg
from dapo_stages.terminal.printed_table import Table
from dapo_stages.terminal.safe_text import markdown_inline, markdown_table, number, one_line, percent

PLOT = "comparison.svg"


def schemes_table(found: dict[str, Any]) -> Table:
    """How the weights of each scheme are spread."""
    headers = ["weights", "mean", "std", "min", "max", "at lower bound", "at upper bound"]
    return Table(
        headers,
        [
            [
                one["name"],
                *(number(one[name]) for name in ("mean", "std", "min", "max")),
                *(percent(one[name]) for name in ("at_low", "at_high")),
            ]
            for one in found["weights"]
        ],
    )


def pairs_table(found: dict[str, Any]) -> Table:
    """How alike the schemes are, two by two."""
    headers = ["pair", "Pearson", "Spearman", "mean abs. difference"]
    headers += ["gradient cosine"] if found["gradients"] else []
    rows = []
    for pair in found["pairs"]:
        row = [_name(pair), *(number(pair[name]) for name in ("pearson", "spearman", "mean_difference"))]
        row += [number(pair["gradient_cosine"], 4)] if found["gradients"] else []
        rows.append([*row, _furthest(pair)])
    return Table([*headers, "furthest apart"], rows)


def comparison_document(found: dict[str, Any]) -> str:
    """comparison.md."""
    schemes, pairs = schemes_table(found), pairs_table(found)
    facts = f"{found['tokens']} tokens of {found['completions']} completions that are in the loss under all of them."
    gradients = found["gradients"]
    if gradients:
        facts += (
            f" Gradients at the policy, before any update, on {gradients['groups']} groups of "
            f"{gradients['completions']} completions."
        )
    parts = [
        "# Token weights compared\n",
        f"{facts}\n",
        markdown_table(schemes.headers, schemes.rows),
        f"![Share of tokens with at most this weight]({PLOT})\n",
        markdown_table(pairs.headers, pairs.rows),
        "Correlations of a constant are not defined (–). Below, the tokens that each pair weighs most differently, "
        "each text once, ⟦marked⟧ in its context; times and means are of all its occurrences.\n",
    ]
    for pair in found["pairs"]:
        rows = [
            [
                _in_context(token),
                *(number(token[name], 2) for name in ("a", "b")),
                token["completion_id"],
                str(token["times"]),
                *(number(token[name], 2) for name in ("mean_a", "mean_b")),
            ]
            for token in pair["tokens"]
        ]
        parts.append(f"## {markdown_inline(_name(pair))}\n")
        headers = ["token", pair["a"], pair["b"], "completion", "times", f"mean {pair['a']}", f"mean {pair['b']}"]
        parts.append(markdown_table(headers, rows) if rows else "No difference.\n")
    return "\n".join(parts)


def comparison_plot(found: dict[str, Any]) -> str:
    """comparison.svg: the cumulative distribution of the weights of each scheme, with a legend."""
    series = []
    for one in found["weights"]:
        last = len(one["quantiles"]) - 1
        series.append(Series(one["name"], [(weight, index / last) for index, weight in enumerate(one["quantiles"])]))
    chart = Chart("Token weights", "tokens with at most this weight", series, "percent", "token weight")
    return drawn_as_svg(chart)


def _name(pair: dict[str, Any]) -> str:
    return f"{pair['a']}, {pair['b']}"


def _furthest(pair: dict[str, Any]) -> str:
    if not pair["tokens"]:
        return "–"
    first = pair["tokens"][0]
    return f"{_shown(first['text'])} {number(first['a'], 2)}, {number(first['b'], 2)}"


def _in_context(token: dict[str, Any]) -> str:
    return f"{token['before']}⟦{token['text']}⟧{token['after']}"


def _shown(text: str) -> str:
    return one_line(text).strip() or "␣"
