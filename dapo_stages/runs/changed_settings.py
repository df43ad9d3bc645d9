"""Which outputs of a run were made with other settings than its configuration has now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dapo_stages.config import Config, Section
from dapo_stages.errors import DataError
from dapo_stages.handoff.manifests import Manifest, manifest_of
from dapo_stages.runs.pipeline import FOLDERS, SETUP
from dapo_stages.runs.run_folder import Run
from dapo_stages.terminal.safe_text import one_line

_SHOWN = 3
_DRAWN = "rollout.sampler.temperature"
_NOWHERE = object()


@dataclass(frozen=True)
class Difference:
    """A key, its value when some outputs were made, the value now, and these outputs (`iteration 2, weights`)."""

    key: str
    was: Any
    now: Any
    outputs: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        more = f" and {len(self.outputs) - _SHOWN} more" if len(self.outputs) > _SHOWN else ""
        made = "; ".join(self.outputs[:_SHOWN])
        return f"{self.key} was {_short(self.was)}, now {_short(self.now)} ({made}{more})"


@dataclass(frozen=True)
class Step:
    """A setting that an iteration was made with, and another value that was used before."""

    iteration: int
    key: str
    was: Any
    now: Any


@dataclass(frozen=True)
class _Now:
    """The configuration of an iteration (0: of none), and the one without schedules, which evaluations use."""

    config: Config
    values: list[dict[str, Any]]
    recorded: list[dict[str, Any]]  # as recorded in manifests: most sections are simply equal

    @classmethod
    def of(cls, config: Config, number: int) -> _Now:
        configs = [config.at(number), config] if number and config.schedules else [config]
        return cls(config, [one.model_dump(mode="json") for one in configs], [one.recorded() for one in configs])


def differences(run: Run) -> list[Difference]:
    """Differences by key, as recorded in the manifests; empty if config.yaml cannot be read.

    For information only: make keeps finished outputs.
    """
    config = run.config
    if config is None:
        return []
    found: dict[tuple[str, str, str], Difference] = {}
    now, of = _Now.of(config, 0), 0
    for where, folder, stage, number in _outputs(run):
        if number != of and config.schedules:
            now, of = _Now.of(config, number), number
        try:
            manifest = manifest_of(folder, stage)
        except DataError:  # damaged; status reports it
            continue
        if manifest is None:
            continue
        for difference in _differing(manifest, now):
            name = (difference.key, str(difference.was), str(difference.now))
            found.setdefault(name, difference).outputs.append(f"{where}{folder.name}")
    return list(found.values())


def of_output(manifest: Manifest, number: int, config: Config) -> Iterator[Difference]:
    """The recorded settings of an output of an iteration (0: of none) that differ from this configuration."""
    return _differing(manifest, _Now.of(config, number))


def _differing(manifest: Manifest, now: _Now) -> Iterator[Difference]:
    sections = {
        name: values
        for name, values in manifest.config.items()
        if not any(_at(recorded, name) == values for recorded in now.recorded)
    }
    recorded = {"seed": manifest.seed, **dict(leaves(sections))}
    recorded |= dict(_unrecorded(sections, now.config))
    # Outputs made from rollouts use the temperature that these were sampled at, whatever the configuration says.
    if manifest.stage in {"score-attention", "train-step"}:
        recorded.pop(_DRAWN, None)
    for key, was in recorded.items():
        values = [_at(current, key) for current in now.values]
        if was not in values and _NOWHERE not in values:
            yield Difference(key, was, values[0])


def _outputs(run: Run) -> Iterator[tuple[str, Path, str, int]]:
    """(`iteration 2, `, folder, stage, 2) of every possible output, except reports, which keep their settings."""
    yield from (("", run.path / name, stage, 0) for name, stage in SETUP.items())
    for number in run.iterations():
        for name, stage in FOLDERS.items():
            if name != "report":
                yield f"iteration {number}, ", run.folder(number) / name, stage, number


def recorded(run: Run, number: int) -> dict[str, Any]:
    """The settings that the outputs of an iteration were made with, by dotted key, without those with a schedule.

    Settings that are newer than an output have the value that applied before there was any.
    """
    config = run.config
    found: dict[str, Any] = {}
    for manifest in run.manifests(number).values():
        found |= {"seed": manifest.seed, **dict(leaves(manifest.config))}
        found |= dict(_unrecorded(manifest.config, config)) if config is not None else {}
    scheduled = {"iteration", *(config.schedules if config is not None else ())}
    return {key: value for key, value in found.items() if key not in scheduled}


def steps(settings: Mapping[int, Mapping[str, Any]]) -> list[Step]:
    """What was changed from one iteration to a later one, by what is `recorded` of each; in order."""
    found: list[Step] = []
    known: dict[str, Any] = {}
    for iteration, now in sorted(settings.items()):
        changed = [key for key, value in now.items() if key in known and known[key] != value]
        found += [Step(iteration, key, known[key], now[key]) for key in changed]
        known |= now
    return found


def leaves(values: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values, of all sections; an empty mapping is a value."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{place}{name}.")
        else:
            yield f"{place}{name}", value


def _unrecorded(recorded: Mapping[str, Any], config: Config) -> Iterator[tuple[str, Any]]:
    """Keys that were added to recorded sections later and are not recorded, with the default that applies then."""
    for name in recorded:
        section: Any = config
        for key in name.split("."):
            section = getattr(section, key, None)
        yield from _later(section, recorded[name], name)


def _later(section: Any, recorded: Any, place: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(section, Section) or not isinstance(recorded, Mapping):
        return
    for key, mark in section.marks().items():
        if key not in recorded and (mark.only_with is None or recorded.get(mark.only_with)):
            yield f"{place}.{key}", mark.default
    for key, values in recorded.items():
        yield from _later(getattr(section, key, None), values, f"{place}.{key}")


def _at(values: Any, key: str) -> Any:
    """The value of a dotted key; None inside a section that is null, _NOWHERE if there is no such key."""
    for name in key.split("."):
        if values is None:
            return None
        if not isinstance(values, dict) or name not in values:
            return _NOWHERE
        values = values[name]
    return values


def _short(value: Any) -> str:
    text = one_line(str(value))
    return text if len(text) <= 60 else f"{text[:59]}…"
