"""All groups of an iteration in full, in pages of a fixed size: rollout_results-0001.md, and so on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from dapo_stages.handoff.manifests import Source
from dapo_stages.reporting.documents.markdown import sampled_group
from dapo_stages.reporting.iteration.samples import groups_in_full

GROUPS = 50  # per page
_NAME = "rollout_results"


def pages(iteration: int, sources: Mapping[str, Source]) -> Iterator[tuple[str, str]]:
    """Name and text of each page of an iteration's rollout, in the order of its groups."""
    if "rollout" not in sources:
        return
    names = [row["group_id"] for row in sources["rollout"].rows("prompts", ["group_id"])]
    for number, start in enumerate(range(0, len(names), GROUPS), 1):
        chosen = names[start : start + GROUPS]
        title = f"# Iteration {iteration}, groups {start + 1} to {start + len(chosen)} of {len(names)}\n"
        around = [f"[Back to the run](../../{_NAME}.md)"]
        around += [f"[before]({_file(number - 1)})"] if start else []
        around += [f"[after]({_file(number + 1)})"] if start + GROUPS < len(names) else []
        groups = [sampled_group(sample) for sample in groups_in_full(sources, chosen)]
        yield _file(number), "\n".join([title, ", ".join(around) + "\n", *groups])


def links(folder: str, names: Sequence[str]) -> str:
    """Where the pages of a report are, for the run's document; empty if it has none. `names`: of its files."""
    numbers = [number for number in range(1, len(names) + 1) if _file(number) in names]
    found = [f"[{(n - 1) * GROUPS + 1} to {n * GROUPS}]({folder}/{_file(n)})" for n in numbers[:-1]]
    found += [f"[from {(n - 1) * GROUPS + 1} on]({folder}/{_file(n)})" for n in numbers[-1:]]
    return f"All groups: {', '.join(found)}\n" if found else ""


def _file(number: int) -> str:
    return f"{_NAME}-{number:04d}.md"
