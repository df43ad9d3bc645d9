"""What the token weights of a run were like: how they vary, and whether the word that decides got the most it could."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from itertools import accumulate

from dapo_stages.handoff.manifests import MANIFEST, Source
from dapo_stages.runs.run_folder import Run

EDGE = 1e-6  # a weight is stored in float32


def weights_seen(run: Run, iterations: int) -> dict[str, float]:
    """Over the completions in the loss: mean deviation of the weights within one, shares of tokens at the bounds, and
    share of the completions whose deciding word is at the upper bound. Empty if nothing was in the loss."""
    low, high = run.config.weights.clip if run.config else (0.0, 0.0)
    deviations: list[float] = []
    tokens = at_low = at_high = deciding = decided_high = 0
    for number in range(1, iterations + 1):
        folder = run.folder(number)
        if not (folder / "weights" / MANIFEST).exists():
            continue
        weights = {
            row["completion_id"]: row["token_weights"]
            for row in Source(folder / "weights").rows(
                "weights", ["completion_id", "source", "in_loss", "token_weights"]
            )
            if row["in_loss"] and row["token_weights"] and row["source"] == "fresh"
        }
        rollout = Source(folder / "rollout")
        problems = {row["group_id"]: row["problem"] for row in rollout.rows("prompts", ["group_id", "problem"])}
        for row in rollout.rows("completions", ["completion_id", "group_id", "token_texts", "answer"]):
            if (own := weights.get(row["completion_id"])) is None:
                continue
            deviations.append(statistics.pstdev(own))
            tokens += len(own)
            at_low += sum(weight < low + EDGE for weight in own)
            at_high += sum(weight > high - EDGE for weight in own)
            token = deciding_token(row["token_texts"], problems.get(row["group_id"], ""), row["answer"])
            if token is not None and token < len(own):
                deciding += 1
                decided_high += own[token] > high - EDGE
    if not deviations:
        return {}
    found = {
        "deviation": statistics.fmean(deviations),
        "at lower bound": at_low / tokens,
        "at upper bound": at_high / tokens,
    }
    return found | ({"deciding word at upper bound": decided_high / deciding} if deciding else {})


def deciding_token(token_texts: Sequence[str], problem: str, answer: str | None) -> int | None:
    """Index of the first token of the word that decides the answer; None if there is no such word.

    It is the text of the option that was answered, or of an answer without options, where the completion says it last
    before its conclusion repeats it: `blue` in `There is a blue circle. So the answer is blue B.`
    """
    if not answer:
        return None
    option = re.search(rf"^{re.escape(answer)}\W+(.+)$", problem, re.MULTILINE)
    word = option[1].strip() if option else answer
    text = "".join(token_texts)
    said = list(re.finditer(rf"\b{re.escape(word)}\b", text, re.IGNORECASE))
    if not said:
        return None
    place = said[-2 if len(said) > 1 else 0].start()
    ends = accumulate(len(token) for token in token_texts)
    return next(index for index, end in enumerate(ends) if end > place)
