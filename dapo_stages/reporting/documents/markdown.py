"""The Markdown that each iteration contributes, and the run's documents assembled from it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.schemas import SEGMENTS
from dapo_stages.reporting.iteration.figures import Figures, attention_is_off, figure, interval_method
from dapo_stages.reporting.iteration.samples import READ_FROM, Sample
from dapo_stages.terminal.printed_table import Table
from dapo_stages.terminal.safe_text import (
    markdown_block,
    markdown_inline,
    markdown_table,
    number,
    one_line,
    percent,
    signed,
)
from dapo_stages.training.blow_ups import skipped

UNMEASURED = "Attention was not measured (attention.enabled: false): every token weighs 1, the VGR reward is neutral."
_WIDTH = 110  # columns of a block of weighted tokens

_EVAL_COLUMNS = (
    ("greedy", "greedy_accuracy"),
    ("greedy format", "greedy_format"),
    ("sampled", "sampled_accuracy"),
    ("sampled format", "sampled_format"),
    ("sampled, well-formed", "sampled_accuracy_well_formed"),
    ("image blanked", "blank_accuracy"),
)


def rollout_fragment(figures: Figures, samples: Sequence[Sample]) -> str:
    """One iteration of rollout_results.md: its figures in a line, then the sampled groups in full."""
    rollout = figures.get("rollout") or {}
    parts = [_heading(figures)]
    if rollout:
        truncated, informative = (percent(figure(rollout, name)) for name in ("truncated", "informative"))
        parts.append(
            f"{rollout['completions']} completions of {rollout['groups']} prompts, {rollout['kept']} kept after "
            f"{rollout['rounds']} round(s), {informative} informative; mean length "
            f"{number(figure(rollout, 'mean_tokens'), 1)} tokens, {truncated} truncated.\n"
        )
    else:
        parts.append("No rollout.\n")
    if (difference := figure(figures, "train", "engine_diff_mean")) is not None:
        most = number(figure(figures, "train", "engine_diff_max"))
        parts.append(f"Logprobs of engine and trainer differ by {number(difference)} on average, by {most} at most.\n")
    if lost := skipped(figures):
        parts.append(f"{lost}\n")
    parts += _looked(figures)
    parts += _rewards(figures)
    parts += [sampled_group(sample) for sample in samples]
    return "\n".join(parts)


def _looked(figures: Figures) -> list[str]:
    """Where the completions looked, by layers; empty if that was not measured."""
    vgr = {segment: figure(figures, "attention", f"vgr_{segment}") for segment in SEGMENTS}
    if all(value is None for value in vgr.values()):
        return []
    text, vision = (number(figure(figures, "attention", f"num_{kind}_tokens"), 1) for kind in ("text", "vision"))
    by_layers = ", ".join(f"{segment} {number(value)}" for segment, value in vgr.items())
    return [f"VGR by layers: {by_layers}; {text} text tokens and {vision} vision tokens per group on average.\n"]


def _rewards(figures: Figures) -> list[str]:
    """A table of every reward: over this iteration's completions with weights, or, before there are any, over all."""
    weights, rollout = figures.get("weights") or {}, figures.get("rollout") or {}
    if weights:
        found = {
            name.removeprefix("reward_"): (weights.get(name), std)
            for name, std in (weights.get("deviation") or {}).items()
        }
        found["total"] = weights.get("reward"), weights.get("reward_std")
    else:
        found = {name: (rollout.get(name), std) for name, std in (rollout.get("deviation") or {}).items()}
    rows = [[name, number(mean), number(std)] for name, (mean, std) in found.items()]
    return [markdown_table(["reward", "mean", "standard deviation"], rows)] if rows else []


def weights_fragment(figures: Figures, samples: Sequence[Sample]) -> str:
    """One iteration of token_weights.md: every token of the sampled completions as word(weight)."""
    parts = [_heading(figures)]
    if attention_is_off(figures):
        parts.append(f"{UNMEASURED}\n")
    for sample in samples:
        for one in sample["completions"]:
            if not one["token_weights"]:
                continue
            facts = f"VGR {number(one['vgr'])}, advantage {signed(one['advantage'])}"
            parts.append(f"### {markdown_inline(one['completion_id'])}\n\n{facts}\n")
            parts.append(markdown_block(weighted_tokens(one["tokens"], one["token_weights"])))
    if len(parts) == 1:
        parts.append("No token weights.\n")
    return "\n".join(parts)


def weighted_tokens(tokens: Sequence[str], weights: Sequence[float]) -> str:
    """`The(0.91) red(1.32)`: each token with its weight, wrapped between tokens."""
    words = (f"{one_line(token).strip() or '␣'}({weight:.2f})" for token, weight in zip(tokens, weights, strict=False))
    return "\n".join(_wrapped(words))


def eval_fragment(figures: Figures, source: Source | None, count: int) -> str:
    """One iteration of eval_results.md: accuracy by slice, then some wrong and some right answers."""
    found = figures.get("eval")
    if source is None or not found:
        return f"{_heading(figures)}\nNot evaluated.\n"
    rows = [["all", _count(found.get("questions")), *_eval_cells(found)]]
    sizes = found.get("slices") or {}
    for name, part in (found.get("by_slice") or {}).items():
        rows.append([name, _count(sizes.get(name)), *_eval_cells(part)])
    table = markdown_table(["slice", "questions", *(title for title, _ in _EVAL_COLUMNS)], rows)
    return "\n".join([_heading(figures), table, *_of_samples(found), *_eval_samples(source, count)])


def rollout_document(run: str, table: Table, fragments: Iterable[str], headline: str | None = None) -> str:
    """rollout_results.md: a headline, the table over all iterations, then each iteration."""
    intro = "Accuracy and format are means over every sampled completion, kept for training or not.\n"
    return _document(
        f"Rollout results of {run}", [*_line(headline), markdown_table(table.headers, table.rows), intro], fragments
    )


def weights_document(run: str, fragments: Iterable[str]) -> str:
    """token_weights.md."""
    legend = (
        "Each token is followed by its weight in the loss. Weights of a completion have mean 1: above 1 the token "
        "counts more than the completion's average under weights.scheme (vgr: it looked at the image more), below 1 "
        "less.\n\n"
        "`⏎` is a line break, `␣` a space.\n"
    )
    return _document(f"Token weights of {run}", [legend], fragments)


def left_out(iterations: Sequence[int], last: str) -> str:
    """The line that replaces the oldest iterations of a document; `last`: where the last of them is."""
    which = f"{len(iterations)} earlier iteration(s), {iterations[0]} to {iterations[-1]}"
    return f"{which}, are in their own folders only, the last of them in `{last}`.\n"


def eval_document(run: str, table: Table, fragments: Iterable[str], headline: str | None = None) -> str:
    """eval_results.md."""
    intro = [*_line(headline), markdown_table(table.headers, table.rows)]
    return _document(f"Held-out results of {run}", intro, fragments)


def _line(headline: str | None) -> list[str]:
    return [f"{headline}\n"] if headline else []


def _document(title: str, intro: list[str], fragments: Iterable[str]) -> str:
    return "\n".join([f"# {markdown_inline(title)}\n", *intro, *fragments])


def _heading(figures: Figures) -> str:
    return f"## Iteration {figures['iteration']}\n"


def sampled_group(sample: Sample) -> str:
    """A group: facts, question, and its completions with their rewards."""
    sizes = ", ".join(f"{image['width']}×{image['height']}" for image in sample["images"] if image["width"])
    facts = [f"answer {markdown_inline(sample['solution'])}", f"{sample['num_correct']} of "
             f"{sample['num_completions']} correct", "kept" if sample["kept"] else "not kept"]  # fmt: skip
    facts += [f"image {sizes}"] if sizes else ["no image"]
    if sample.get("num_text_tokens") is not None:
        facts.append(f"{sample['num_text_tokens']} text and {sample['num_vision_tokens']} vision tokens")
    facts += [markdown_inline(sample["slice"])] if sample["slice"] else []
    parts = [f"### Prompt {markdown_inline(sample['group_id'])}\n", ", ".join(facts) + "\n"]
    parts.append(markdown_block(sample["problem"]))
    if len(sample["completions"]) < sample["num_completions"]:
        parts.append(f"{len(sample['completions'])} shown: the highest and the lowest rewards.\n")
    parts += [_completion(one) for one in sample["completions"]]
    return "\n".join(parts)


def _completion(one: Sample) -> str:
    rewards = ", ".join(f"{markdown_inline(name)} {number(value, 2)}" for name, value in one["rewards"].items())
    facts = [f"reward {number(one['reward'])} ({rewards})", f"advantage {signed(one['advantage'])}"]
    facts += [f"VGR {number(one['vgr'])}"] if one["vgr"] is not None else []
    facts += ["truncated"] if one["finish_reason"] == "length" else []
    why = f" ({markdown_inline(one['why'])})" if one["why"] else ""
    facts += [f"not in the loss{why}"] if one["in_loss"] is False else []
    title = f"#### {markdown_inline(one['completion_id'])}\n"
    return "\n".join([title, "; ".join(facts) + "\n", markdown_block(one["text"])])


def _eval_cells(found: dict[str, Any]) -> list[str]:
    return [_with_interval(found, key) for _, key in _EVAL_COLUMNS]


def _with_interval(found: dict[str, Any], *path: str) -> str:
    """`63.2% (59.1–67.0)`, or the figure alone where it has no interval."""
    ends: Any = found.get("intervals") or {}
    for key in path:
        ends = ends.get(key) if isinstance(ends, dict) else None
    said = percent(figure(found, *path))
    return f"{said} ({100 * ends[0]:.1f}–{100 * ends[1]:.1f})" if isinstance(ends, list) else said


def _of_samples(found: dict[str, Any]) -> list[str]:
    """Figures over several samples, the language prior, how answers were read; intervals in brackets."""
    said = [
        f"- {title}: " + ", ".join(f"k = {k} {_with_interval(found, key, k)}" for k in found[key])
        for title, key in (("pass@k", "pass_at_k"), ("majority@k", "majority_at_k"))
        if found.get(key)
    ]
    if figure(found, "prior_share") is not None:
        said.append(
            f"- share of the greedy accuracy left with the image blanked: {_with_interval(found, 'prior_share')}"
        )
    for mode, places in (found.get("read_from") or {}).items():
        if any(places.values()):
            shares = ", ".join(f"{READ_FROM.get(place, place)} {percent(share)}" for place, share in places.items())
            strict = _with_interval(found, f"{mode}_strict_accuracy")
            said.append(f"- {mode} answers read: {shares}; right and well-formed: {strict}")
    if said and (interval := found.get("interval")):
        said.append(
            f"\nIn brackets: {100 * interval['confidence']:g}% intervals over questions ({interval_method(found)})."
        )
    return ["\n".join(said) + "\n"] if said else []


def _eval_samples(source: Source, count: int) -> list[str]:
    """The first wrong and the first right answers, greedy ones where there are any."""
    columns = ["completion_id", "slice", "mode", "solution", "text", "reward_accuracy"]
    modes = {row["mode"] for row in source.rows("completions", ["mode"])}
    mode = "greedy" if "greedy" in modes else min(modes, default="")
    wrong: list[str] = []
    right: list[str] = []
    for row in source.rows("completions", columns) if count else ():
        if row["mode"] != mode:
            continue
        shelf, verdict = (right, "right") if row["reward_accuracy"] == 1 else (wrong, "wrong")
        if len(shelf) < count:
            facts = [verdict, f"answer {markdown_inline(row['solution'])}", markdown_inline(row["mode"])]
            facts += [markdown_inline(row["slice"])] if row["slice"] else []
            title = f"### {markdown_inline(row['completion_id'])}\n"
            shelf.append("\n".join([title, ", ".join(facts) + "\n", markdown_block(row["text"])]))
        if len(wrong) == len(right) == count:
            break
    return [*wrong, *right]


def _count(value: object) -> str:
    return str(value) if isinstance(value, int) else "–"


def _wrapped(words: Iterable[str]) -> list[str]:
    return textwrap.wrap(" ".join(words), _WIDTH, break_long_words=False, break_on_hyphens=False) or [""]
