"""compare-weights: several weightings of the same rollouts in, how they differ out; or which scores tell dependence."""

from __future__ import annotations

import json as json_module
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import typer

from dapo_stages.errors import DataError
from dapo_stages.handoff import carry_out
from dapo_stages.handoff.manifests import MANIFEST, Source
from dapo_stages.handoff.outputs import Output
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.policy_folders import PolicyFolder
from dapo_stages.handoff.shards import Row, write_text
from dapo_stages.terminal.console import answer, tell
from dapo_stages.terminal.options import DryRun, Json, Out, Overwrite
from dapo_stages.training.token_dependence import DEPENDENCE, TOKENS, dependence_plan, token_dependence
from dapo_stages.training.weight_gradients import Weighted, gradient_cosines

RESULT, TEXT = "comparison.json", "comparison.md"
DEPENDENCE_TEXT = "dependence.md"
_GROUPS = 8
_TOKENS = 8  # shown per pair: those that it weighs most differently
_CONTEXT = 5  # tokens shown before and after each of them
_QUANTILES = 101  # of each scheme's weights, for the plot


def main(
    out: Out,
    folders: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders written by weight-tokens for the same rollouts.", metavar="DIR DIR..."),
    ] = None,
    rollouts: Annotated[
        Path | None,
        typer.Option(
            "--rollouts", help="Their rollout folder, if it has moved; with --dependence, any.", metavar="DIR"
        ),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(
            "--policy", help="Policy to compute gradients or dependence of; else no model is loaded.", metavar="DIR"
        ),
    ] = None,
    groups: Annotated[
        int | None, typer.Option("--groups", min=1, help="Groups of completions for the gradients (default: 8).")
    ] = None,
    dependence: Annotated[
        bool,
        typer.Option(
            "--dependence",
            help="Instead of weights, compare scores of attention with how much tokens depend on the image.",
        ),
    ] = False,
    tokens: Annotated[
        int | None,
        typer.Option("--tokens", min=1, help="Tokens to measure dependence on, about (default: 5000).", metavar="N"),
    ] = None,
    beside: Annotated[
        Path | None,
        typer.Option("--beside", help="An earlier output of --dependence, shown side by side.", metavar="DIR"),
    ] = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Compare token weights of the same rollouts: correlations, spread, and the tokens they differ on most.

    With --policy also the cosine between their policy gradients, in float32, with one gradient in memory for each.
    With --dependence instead of folders: which scores of attention tell the tokens that depend on the image.

    Example: dapo-stages compare-weights weights-vgr weights-entropy --policy policy --out comparison
    """
    if dependence:
        if folders or groups is not None:
            raise typer.BadParameter("--dependence takes neither folders of weights nor --groups.")
        if rollouts is None or policy is None:
            raise typer.BadParameter("--dependence needs --rollouts and --policy.")
        plan = dependence_plan(out, rollouts, policy, tokens or TOKENS, beside)
        work, result, page, show = _write_dependence, DEPENDENCE, DEPENDENCE_TEXT, _show_dependence
    else:
        if tokens is not None or beside is not None:
            raise typer.BadParameter("--tokens and --beside belong to --dependence.")
        if len(folders or ()) < 2:
            raise typer.BadParameter("name at least two folders of weights, or pass --dependence.")
        plan = _comparison_plan(out, folders or [], rollouts, policy, groups or _GROUPS)
        work, result, page, show = _write_comparison, RESULT, TEXT, _show_comparison
    carry_out.run(plan, work, overwrite=overwrite, dry_run=dry_run, as_json=json and dry_run, alone=True)
    if dry_run:
        return
    found = json_module.loads((out / result).read_text(encoding="utf-8"))
    if json:
        answer({"stage": "compare-weights", "out": str(out), **found})
        return
    show(found)
    tell(str(out / page))


def _write_dependence(output: Output) -> None:
    """Measure dependence, then write the result as JSON, Markdown and a plot."""
    from dapo_stages.reporting.documents.dependence_shown import PLOT, dependence_document, dependence_plot

    found = token_dependence(output.plan)
    _write(output, found, (DEPENDENCE, DEPENDENCE_TEXT, PLOT), dependence_document, dependence_plot)


def _show_dependence(found: dict[str, Any]) -> None:
    from dapo_stages.reporting.documents.dependence_shown import facts, kinds_table, scores_table
    from dapo_stages.terminal.printed_table import print_table

    tell(facts(found))
    print()
    print_table(scores_table(found))
    print()
    print_table(kinds_table(found))


def _comparison_plan(out: Path, folders: list[Path], rollouts: Path | None, policy: Path | None, groups: int) -> Plan:
    sources = [Source(folder, "weight-tokens") for folder in folders]
    inputs = {f"weights-{number}": source for number, source in enumerate(sources, start=1)}
    inputs["rollouts"] = _rollouts(sources, rollouts)
    if policy is not None:
        inputs["policy"] = PolicyFolder(policy)
    recorded = {"names": _names(sources), "groups": groups if policy else 0, "tokens": _TOKENS, "context": _CONTEXT}
    return Plan("compare-weights", out, recorded, 0, inputs)


def _write_comparison(output: Output) -> None:
    """Compare, then write the result as JSON, Markdown and a plot."""
    from dapo_stages.reporting.documents.weights_compared import PLOT, comparison_document, comparison_plot

    sources = [source for name, source in output.plan.inputs.items() if name.startswith("weights-")]
    found = Comparison(output, sources).compare()
    _write(output, found, (RESULT, TEXT, PLOT), comparison_document, comparison_plot)


def _show_comparison(found: dict[str, Any]) -> None:
    from dapo_stages.reporting.documents.weights_compared import pairs_table, schemes_table
    from dapo_stages.terminal.printed_table import print_table

    print_table(schemes_table(found))
    print()
    print_table(pairs_table(found))


def _write(
    output: Output,
    found: dict[str, Any],
    names: tuple[str, str, str],
    document: Callable[[dict[str, Any]], str],
    plot: Callable[[dict[str, Any]], str],
) -> None:
    with output.files() as folder:
        text = json_module.dumps(found, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
        for name, content in zip(names, (text, document(found), plot(found)), strict=True):
            write_text(folder / name, content)
    output.counts |= {"completions": found["completions"], "tokens": found["tokens"]}


def _rollouts(sources: list[Source], named: Path | None) -> Source:
    """The rollouts that all were made from; by default at the path in the first one's manifest."""
    if named is None:
        recorded = sources[0].manifest.inputs.get("rollouts")
        named = Path(recorded.path) if recorded else sources[0].folder / "rollout"
        if not (named / MANIFEST).exists():
            problem = f"no output of rollout, which {sources[0].folder} was made from"
            raise DataError(named, problem, "Pass its folder with --rollouts DIR.")
    rollouts = Source(named, "rollout")
    for source in sources:
        source.require_input("rollouts", rollouts)
    return rollouts


def _names(sources: list[Source]) -> list[str]:
    """The scheme of each folder; with the folder if several have the same."""
    schemes = [str(source.manifest.config.get("weights", {}).get("scheme", "")) for source in sources]
    names = [
        scheme if scheme and schemes.count(scheme) == 1 else f"{scheme} ({source.folder.name})".strip()
        for scheme, source in zip(schemes, sources, strict=True)
    ]
    counted = Counter(names)
    return [
        name if counted[name] == 1 else f"{scheme} ({source.folder}, {number})".strip()
        for number, (name, scheme, source) in enumerate(zip(names, schemes, sources, strict=True), start=1)
    ]


class Comparison:
    """Holds the weights of all tokens in memory; completions and images are read when needed."""

    def __init__(self, output: Output, sources: list[Source]) -> None:
        self._output, self._sources = output, sources
        self._inputs, self._names = output.plan.inputs, output.plan.config["names"]
        self._weighted = [dict(_weighted(source)) for source in sources]
        first, *others = self._weighted
        self._shared = [key for key in first if all(key in other for other in others)]
        if not self._shared:
            folders = ", ".join(str(source.folder) for source in sources)
            problem = "no completion sampled in this iteration is in the loss of all of them"
            raise DataError(folders, problem, "Compare other iterations.")
        self._lengths = [len(first[key].weights) for key in self._shared]
        for source, other in zip(sources, self._weighted, strict=True):
            if [len(other[key].weights) for key in self._shared] != self._lengths:
                problem = f"expected a weight per token, but their numbers differ from {sources[0].folder}"
                raise DataError(source.folder, problem, "Run weight-tokens again.")

    def compare(self) -> dict[str, Any]:
        """What comparison.json has."""
        import numpy as np

        from dapo_stages.maths.correlations import mean_difference, pearson, spearman

        tokens = [np.concatenate([one[key].weights for key in self._shared]) for one in self._weighted]
        cosines: dict[tuple[int, int], float | None] = {}
        gradients = None
        if "policy" in self._inputs:
            groups = self._output.plan.config["groups"]
            cosines, gradients = gradient_cosines(self._output.plan, self._weighted, self._shared, groups)
        kinds = self._kinds()
        pairs = [
            {
                "a": self._names[a],
                "b": self._names[b],
                "pearson": pearson(tokens[a], tokens[b]),
                "spearman": spearman(tokens[a], tokens[b]),
                "mean_difference": mean_difference(tokens[a], tokens[b]),
                "gradient_cosine": cosines.get((a, b)),
                "tokens": self._furthest(tokens[a], tokens[b], kinds),
            }
            for a, b in combinations(range(len(tokens)), 2)
        ]
        self._name_tokens([token for pair in pairs for token in pair["tokens"]])
        return {
            "completions": len(self._shared),
            "tokens": sum(self._lengths),
            "weights": [self._about(number, weights) for number, weights in enumerate(tokens)],
            "pairs": pairs,
            "gradients": gradients,
        }

    def _kinds(self) -> Any:
        """A number for each token that is the same for tokens of the same text."""
        import numpy as np

        numbers: dict[str, int] = {}
        found = {}
        for row in self._inputs["rollouts"].rows("completions", ["completion_id", "token_texts"]):
            if row["completion_id"] in self._weighted[0]:
                found[row["completion_id"]] = array(
                    "i", (numbers.setdefault(text, len(numbers)) for text in row["token_texts"])
                )
        kinds = np.concatenate([found[key] for key in self._shared])
        return np.unique(kinds, return_inverse=True)[1]

    def _furthest(self, a: Any, b: Any, kinds: Any) -> list[dict[str, Any]]:
        """The tokens that two weigh most differently, each text once, with its means over all its occurrences."""
        import numpy as np

        from dapo_stages.maths.correlations import furthest_apart, mean_by_kind

        places = furthest_apart(a, b, kinds, self._output.plan.config["tokens"])
        mean_a, mean_b, times = mean_by_kind(a, kinds), mean_by_kind(b, kinds), np.bincount(kinds)
        return [
            {
                "place": place,
                "a": float(a[place]),
                "b": float(b[place]),
                "times": int(times[kinds[place]]),
                "mean_a": float(mean_a[kinds[place]]),
                "mean_b": float(mean_b[kinds[place]]),
            }
            for place in places
        ]

    def _about(self, number: int, weights: Any) -> dict[str, Any]:
        import numpy as np

        from dapo_stages.maths.correlations import spread

        source = self._sources[number]
        settings = source.manifest.config.get("weights", {})
        low, high = settings.get("clip", (float(weights.min()), float(weights.max())))
        return {
            "name": self._names[number],
            "folder": str(source.folder),
            "scheme": settings.get("scheme"),
            **spread(weights, (low, high)),
            "clip": [low, high],
            "quantiles": np.quantile(weights, np.linspace(0, 1, _QUANTILES)).tolist(),
        }

    def _name_tokens(self, tokens: list[dict[str, Any]]) -> None:
        """Add each token's completion, text and neighbors; its `place` counts over all shared completions."""
        import numpy as np

        ends = np.cumsum(self._lengths)
        columns = ["completion_id", "token_texts"]
        with self._inputs["rollouts"].lookup("completions", "completion_id", columns) as completions:
            for token in sorted(tokens, key=lambda one: one["place"]):
                number = int(np.searchsorted(ends, token["place"], side="right"))
                index = token.pop("place") - int(ends[number]) + self._lengths[number]
                key = self._shared[number]
                texts = completions.one(key)["token_texts"]
                before, after = texts[max(0, index - _CONTEXT) : index], texts[index + 1 : index + 1 + _CONTEXT]
                token |= {"completion_id": key, "index": index, "text": texts[index]}
                token |= {"before": "".join(before), "after": "".join(after)}


def _weighted(source: Source) -> Iterator[tuple[str, Weighted]]:
    """Completions in the loss that this iteration sampled; replayed ones have the weights of an earlier one."""
    columns = ["completion_id", "group_id", "source", "in_loss", "advantage", "token_weights"]
    row: Row
    for row in source.rows("weights", columns):
        if row["in_loss"] and row["source"] == "fresh":
            weights = array("f", row["token_weights"])
            yield row["completion_id"], Weighted(row["group_id"], row["advantage"], weights)
