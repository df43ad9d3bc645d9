"""What trackers show of an iteration besides numbers: completions with images, histograms, the stages' hashes."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any

from dapo_stages.handoff.manifests import Source
from dapo_stages.reporting.iteration import histograms, samples
from dapo_stages.reporting.iteration.histograms import Histogram
from dapo_stages.reporting.iteration.samples import Sample
from dapo_stages.runs.run_folder import Run
from dapo_stages.terminal.safe_text import visible

_LONGEST = 10_000  # characters of a text that trackers get
_HASH = 12  # characters of a content hash, as stages print it

COLUMNS = (
    "iteration", "group", "completion", "image", "problem", "solution", "text", "tokens (weight)", "reward",
    "rewards", "advantage", "VGR", "in loss",
)  # fmt: skip
STAGES = ("stage", "content hash", "made from")


@dataclass(frozen=True)
class Media:
    """Media of an iteration, from its report. `report` is the content hash of the report."""

    iteration: int
    report: str = ""
    samples: list[Sample] = field(default_factory=list)
    histograms: dict[str, Histogram] = field(default_factory=dict)
    stages: list[tuple[str, str, str]] = field(default_factory=list)  # STAGES

    def rows(self) -> list[dict[str, Any]]:
        """A row of COLUMNS for each completion; `image` is an encoded image, or None."""
        return [self._row(sample, one) for sample in self.samples for one in sample["completions"]]

    def _row(self, sample: Sample, one: Sample) -> dict[str, Any]:
        pairs = zip(one["tokens"], one["token_weights"], strict=False)
        values = (
            self.iteration,
            sample["group_id"],
            one["completion_id"],
            image_of(sample),
            shown(sample["problem"]),
            shown(sample["solution"]),
            shown(one["text"]),
            shown("".join(f"{token}({weight:.2f})" for token, weight in pairs)),
            one["reward"],
            ", ".join(f"{name} {value:.2f}" for name, value in one["rewards"].items() if value is not None),
            one["advantage"],
            one["vgr"],
            one["in_loss"],
        )
        return dict(zip(COLUMNS, values, strict=True))


def load_media(run: Run, iteration: int) -> Media:
    """From the report of an iteration, and the manifests next to it; reports of older versions have no histograms."""
    report = Source(run.folder(iteration) / "report", "report")
    files = {shard.name: shard for shard in report.manifest.shards}
    found = {name: report.json(files[name]) for name in (samples.FILE, histograms.FILE) if name in files}
    return Media(
        iteration,
        report.manifest.content_hash,
        found.get(samples.FILE, []),
        found.get(histograms.FILE, {}),
        _stages(run, iteration),
    )


def image_of(sample: Sample) -> bytes | None:
    """The first image of a group as a small PNG or JPEG."""
    uri = next((image["uri"] for image in sample["images"] if image["uri"]), None)
    return base64.b64decode(uri.partition(",")[2]) if uri else None


def shown(text: str) -> str:
    """Text of the model or the data as trackers get it: truncated, with control characters made visible."""
    rest = f" … ({len(text):,} characters)" if len(text) > _LONGEST else ""
    return visible(text[:_LONGEST]) + rest


def _stages(run: Run, iteration: int) -> list[tuple[str, str, str]]:
    """Each output of an iteration by its hash, and the hashes of what it was made from."""
    rows = []
    for manifest in run.manifests(iteration).values():
        made_from = (f"{key} {source.content_hash[:_HASH]}" for key, source in manifest.inputs.items())
        rows.append((manifest.stage, manifest.content_hash[:_HASH], ", ".join(made_from)))
    return rows
