"""How several weightings of the same rollouts differ, token by token."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from itertools import combinations
from typing import Any

from dapo_stages.errors import DataError
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.shards import Row
from dapo_stages.training.weight_gradients import Weighted, gradient_cosines

SHOWN = 8  # tokens per pair: those that it weighs most differently
CONTEXT = 5  # tokens shown before and after each of them
_QUANTILES = 101  # of each scheme's weights, for the plot


class Comparison:
    """Holds the weights of all tokens in memory; completions and images are read when needed."""

    def __init__(self, plan: Plan) -> None:
        """Of a plan of compare-weights: inputs `weights-1`, … and `rollouts`, perhaps `policy`."""
        self._plan, self._inputs, self._names = plan, plan.inputs, plan.config["names"]
        sources = self._sources = [source for name, source in plan.inputs.items() if name.startswith("weights-")]
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
            groups = self._plan.config["groups"]
            cosines, gradients = gradient_cosines(self._plan, self._weighted, self._shared, groups)
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

        places = furthest_apart(a, b, kinds, self._plan.config["tokens"])
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
                before, after = texts[max(0, index - CONTEXT) : index], texts[index + 1 : index + 1 + CONTEXT]
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
