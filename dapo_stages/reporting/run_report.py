"""What each iteration contributes to a report, and the run's documents assembled from it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dapo_stages.errors import DataError
from dapo_stages.handoff.manifests import MANIFEST, Manifest, Source, manifest_of
from dapo_stages.handoff.shards import Shard, write_text
from dapo_stages.reporting.documents import markdown, rollout_pages
from dapo_stages.reporting.documents.overview import fallen, overview, without_images
from dapo_stages.reporting.iteration import histograms, samples
from dapo_stages.reporting.iteration.asked import ASKED, asked
from dapo_stages.reporting.iteration.browse import Browsed, browsed
from dapo_stages.reporting.iteration.figures import Figures, attention_is_off, collect
from dapo_stages.reporting.iteration.origin import origin
from dapo_stages.reporting.page import html
from dapo_stages.reporting.page.curves import Cost
from dapo_stages.reporting.page.held_out import over_iterations, spread
from dapo_stages.runs import changed_settings
from dapo_stages.runs.best import Best, write_best
from dapo_stages.runs.pace import summed
from dapo_stages.runs.pipeline import iteration_name
from dapo_stages.runs.run_folder import Run
from dapo_stages.terminal.printed_table import Table
from dapo_stages.terminal.safe_text import markdown_inline

LAYOUT = 6  # raised when the fragments change, so that reports of older versions are made again
FIGURES, BROWSED = "figures.json", "completions.json"
SOME = 4  # groups that stand for all
IN_FULL = 100  # newest iterations, which the run's Markdown includes; it points to the files of older ones
ROLLOUT, WEIGHTS, EVAL, PAGE = "rollout_results.md", "token_weights.md", "eval_results.md", "report.html"


def fragments(
    iteration: int, sources: Mapping[str, Source], groups: int | str, completions: int
) -> tuple[Figures, dict[str, str]]:
    """The figures of an iteration, and its files by name: `groups` in Markdown, `completions` in the page.

    With `all` groups the pages that hold them (rollout_pages.py) are apart, and everything else has SOME.
    """
    figures = collect(iteration, sources)
    count = groups if isinstance(groups, int) else SOME
    shown = samples.collect_samples(sources, count)
    return figures, {
        FIGURES: _json(figures),
        samples.FILE: _json(shown),
        BROWSED: _json(browsed(iteration, sources, completions)),
        ASKED: _json(asked(sources.get("eval") if completions else None)),
        histograms.FILE: _json(histograms.histograms(sources)),
        ROLLOUT: markdown.rollout_fragment(figures, shown),
        WEIGHTS: markdown.weights_fragment(figures, shown),
        EVAL: markdown.eval_fragment(figures, sources.get("eval"), count),
    }


class Reported:
    """The finished reports of a run's iterations."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._sources = {
            iteration: Source(folder, "report")
            for iteration in run.iterations()
            if ((folder := run.folder(iteration) / "report") / MANIFEST).exists()
        }
        self.figures: list[Figures] = [self._load(iteration, FIGURES) for iteration in self._sources]
        costs = {iteration: _cost(run, iteration, source.manifest) for iteration, source in self._sources.items()}
        self.seconds = {iteration: one["seconds"] for iteration, one in costs.items()}
        self.memory = {iteration: one["memory"] for iteration, one in costs.items()}
        self.spent = {iteration: one["spent"] for iteration, one in costs.items()}
        self.best: Best | None = None

    def table(self, most: int) -> Table:
        """One row per iteration; if there are more than `most`, only the first and the newest."""
        left = len(self.figures) > most
        shown = [*self.figures[:1], *self.figures[-(most - 2) :]] if left else self.figures
        table = overview(shown, self.seconds, stages=False)
        between = ["…", *[""] * (len(table.headers) - 1)]
        return Table(table.headers, [table.rows[0], between, *table.rows[1:]]) if left else table

    def write(self) -> Path:
        """Rebuild the run's documents; returns the path of the page."""
        folder = self.run.path
        name = folder.resolve().name
        self.best = write_best(self.run)
        table = overview(self.figures, self.seconds, stages=True)
        blind = self._without_images()
        above = "\n\n".join(line for line in (blind, markdown_inline(self.fallen or "")) if line)
        write_text(folder / ROLLOUT, markdown.rollout_document(name, table, self._texts(ROLLOUT), blind))
        write_text(folder / WEIGHTS, markdown.weights_document(name, self._texts(WEIGHTS)))
        write_text(folder / EVAL, markdown.eval_document(name, table, self._texts(EVAL), above))
        page = html.render(name, table, self.figures, self.cost, self._browsed(), self._facts(), self._about())
        write_text(folder / PAGE, page)
        return folder / PAGE

    @property
    def fallen(self) -> str | None:
        """The slices whose accuracy has fallen by half or more, in a sentence."""
        return fallen(self.figures)

    def _without_images(self) -> str | None:
        """What the latest evaluated policy and the starting one answer with the image blanked."""
        evaluated = [(figures["iteration"], figures["eval"]) for figures in self.figures if figures.get("eval")]
        if not evaluated:
            return None
        (first, start), (last, now) = evaluated[0], evaluated[-1]
        return without_images(now, start if first == 0 < last else None)

    def _browsed(self) -> Iterator[Browsed]:
        """Completions of each iteration, newest first, read when the page asks for them.

        Reports made with report.completions=0 have none, nor have those of older versions whose rollouts were pruned.
        """
        for iteration, source in reversed(self._sources.items()):
            wanted = source.manifest.config.get("report.completions") != 0
            if wanted and any(shard.name == BROWSED for shard in source.manifest.shards):
                yield self._load(iteration, BROWSED)

    @property
    def cost(self) -> dict[str, Cost]:
        """What curves of time and memory are drawn from."""
        return {"seconds": self.seconds, "memory": self.memory, "spent": self.spent}

    @property
    def steps(self) -> list[changed_settings.Step]:
        """What was changed on the way."""
        recorded = {n: source.manifest.counts.get("settings") or {} for n, source in self._sources.items()}
        return changed_settings.steps(recorded)

    def _about(self) -> html.About:
        """What the page says besides figures and completions."""
        origins = [source.manifest.counts.get("origin") for source in self._sources.values()]
        made: dict[str, str] = next((one for one in reversed(origins) if one), {})
        return html.About(made, self.run.config, self.steps, self._questions())

    def _questions(self) -> list[dict[str, Any]]:
        """The same held-out questions over the iterations. Those of older versions' reports are not kept."""
        kept = {
            iteration
            for iteration, source in self._sources.items()
            if source.manifest.config.get("report.completions") != 0
            and "eval" in source.manifest.inputs
            and any(shard.name == ASKED for shard in source.manifest.shards)
        }
        found = {iteration: self._load(iteration, ASKED) for iteration in spread(sorted(kept))}
        data = manifest_of(self.run.path / "data", "prepare-data") if found else None
        if data is None or data.pruned:
            return over_iterations(found, lambda name: None)
        columns = ["prompt_id", "problem", "solution", "images"]
        with Source(self.run.path / "data", "prepare-data").lookup("held_out", "prompt_id", columns) as rows:
            return over_iterations(found, lambda name: rows.one(name) if name in rows else None)

    def _facts(self) -> dict[str, str]:
        """What a reader wants to know about the run as a whole."""
        rollouts = [figures["rollout"] for figures in self.figures if figures.get("rollout")]
        updates = sum(len((figures.get("train") or {}).get("updates") or []) for figures in self.figures)
        ended = max((source.manifest.ended for source in self._sources.values()), default="")
        version = next((source.manifest.package_version for source in reversed(self._sources.values())), "")
        minutes = sum(second for took in self.seconds.values() for second in took.values()) / 60
        facts = {
            "policy": _model(self.run),
            "iterations": str(len(rollouts)),
            "prompts": f"{sum(rollout['groups'] for rollout in rollouts):,}",
            "completions": f"{sum(rollout['completions'] for rollout in rollouts):,}",
            "attention": _span([f["iteration"] for f in self.figures if attention_is_off(f)], "not measured in"),
            "best": str(self.best or ""),
            "optimizer steps": f"{updates:,}",
            "time in stages": f"{minutes:.1f} min",
            "up to": ended.replace("T", " ").replace("+00:00", " UTC"),
            "dapo-stages": version,
        }
        return {name: value for name, value in facts.items() if value}

    def hashes(self) -> tuple[dict[int, str], dict[int, str]]:
        """By iteration, the hash of its report and that of its figures."""
        reports = {iteration: source.manifest.content_hash for iteration, source in self._sources.items()}
        return reports, {iteration: _file(source, FIGURES).sha256 for iteration, source in self._sources.items()}

    def _texts(self, name: str) -> list[str]:
        """The parts of a document: only the newest iterations in full, so that it does not grow without bound."""
        left, whole = list(self._sources)[:-IN_FULL], list(self._sources.values())[-IN_FULL:]
        said = [markdown.left_out(left, f"{iteration_name(left[-1])}/report/{name}")] if left else []
        parts = [source.text(_file(source, name)) for source in whole]
        if name == ROLLOUT:
            parts = [self._with_pages(*pair) for pair in zip(list(self._sources)[-IN_FULL:], parts, strict=True)]
        return said + parts

    def _with_pages(self, iteration: int, part: str) -> str:
        """Below the heading of an iteration, links to the pages with all of its groups, if its report has any."""
        names = [shard.name for shard in self._sources[iteration].manifest.shards]
        heading, rest = part.split("\n", 1)
        found = rollout_pages.links(f"{iteration_name(iteration)}/report", names)
        return f"{heading}\n\n{found}{rest}" if found else part

    def _load(self, iteration: int, name: str) -> Any:
        source = self._sources[iteration]
        return source.json(_file(source, name))


def circumstances(run: Run, iteration: int) -> dict[str, Any]:
    """What the report of an iteration records besides: its `cost`, its settings, and by what it was made."""
    return {**cost(run, iteration), "settings": changed_settings.recorded(run, iteration), "origin": origin()}


def cost(run: Run, iteration: int) -> dict[str, dict[str, float]]:
    """Seconds and peak memory (GiB) of each stage of an iteration, and its seconds by phase; older manifests lack some.

    The iteration's report records it, so that their manifests need not be read again.
    """
    made = run.manifests(iteration)
    memory = {name: manifest.memory / 2**30 for name, manifest in made.items() if manifest.memory is not None}
    seconds = {name: manifest.seconds for name, manifest in made.items()}
    return {"seconds": seconds, "memory": memory, "spent": summed(made.values())}


def _cost(run: Run, iteration: int, report: Manifest) -> dict[str, dict[str, float]]:
    """The same, from a report if it has recorded it."""
    noted = {name: report.counts.get(name) for name in ("seconds", "memory")}
    noted["spent"] = report.counts.get("spent", {})  # newer
    values = [value for one in noted.values() for value in (one.values() if isinstance(one, dict) else [None])]
    whole = all(isinstance(value, int | float) for value in values)
    return noted if whole else cost(run, iteration)  # type: ignore[return-value]


def _file(source: Source, name: str) -> Shard:
    for shard in source.manifest.shards:
        if shard.name == name:
            return shard
    raise DataError(source.folder, f"{name} is missing", "Run report --overwrite for this iteration.")


def _span(iterations: list[int], what: str) -> str:
    """`not measured in 6 iterations, 1 to 6`; empty if there are none."""
    if not iterations:
        return ""
    first, last = iterations[0], iterations[-1]
    return f"{what} iteration {first}" if first == last else f"{what} {len(iterations)} iterations, {first} to {last}"


def _model(run: Run) -> str:
    """The model that the run started from, as init-policy recorded it."""
    manifest = manifest_of(run.path / "policy")
    config = manifest.config if manifest is not None else {}
    section = config.get("model")
    name = config.get("model.name") or (section.get("name") if isinstance(section, dict) else None)
    return name if isinstance(name, str) else ""


def _json(value: object) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":")) + "\n"
