"""What the Makefile includes: values of the configuration, which outputs are up to date by content, and rules.

make itself compares times, which mean nothing in a copy, in an unpacked archive, or after a clock was set back.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dapo_stages.config import Config
from dapo_stages.errors import DataError
from dapo_stages.handoff.manifests import MANIFEST, STATE, Manifest, manifest_of, remembered
from dapo_stages.runs import make_rules
from dapo_stages.runs.pipeline import FOLDERS, REPORTED, SETUP, iteration_name
from dapo_stages.runs.run_folder import Run

SOUND, STALE = "sound", "stale"


def for_make(config: Config, run: Run | None, *, strict: bool = False) -> str:
    """The text of that file: variables (empty if off; `state/OUTPUT` is `sound` or `stale`), then rules."""
    answers = {
        "planned_iterations": str(config.planned_iterations),
        "lag": str(config.lag),
        "engine": config.rollout.engine,
        "evaluate_engine": config.evaluate.engine,
        "device": config.model.device,
        "evaluations": "on" if config.data.holds_out else "",
        "curriculum": "on" if config.rollout.curriculum else "",
        "kl": "on" if config.train.beta > 0 or "train.beta" in config.schedules else "",
    }
    found = states(run, strict=strict) if run is not None else {}
    answers["again"] = " ".join(again(run, found)) if run is not None else ""
    answers |= {f"state/{name}": state for name, state in found.items()}
    return "".join(f"{name} := {value}".rstrip() + "\n" for name, value in answers.items()) + "\n" + make_rules.text()


def again(run: Run, states: Mapping[str, str]) -> list[str]:
    """The iterations whose train-step is made again, such as `iter-0006`, because the one after needs its state.

    That is the next one to be made, or one that is itself made again; none is if its state is written.
    """
    found: list[str] = []
    follows = True  # the train-step after this one is missing, stale or made again
    for number in reversed(run.iterations()):
        name = iteration_name(number)
        train = run.folder(number) / "train"
        if follows and (train / MANIFEST).exists() and not (train / STATE / MANIFEST).exists():
            found.append(name)
        follows = name in found or states.get(f"{name}/train") == STALE or not (train / MANIFEST).exists()
    return sorted(found)


def states(run: Run, *, strict: bool = False) -> dict[str, str]:
    """`sound` or `stale` by output, such as `iter-0001/rollout`; others are left out, and make compares their times.

    Sound: made from its inputs as they are now, which are all sound. Stale: made from something else. Left out: missing
    or damaged, or made from an output that is missing, damaged or stale. Only manifests are read.

    `strict`: what was made from a lost policy is stale, too, and so is all that follows a train-step that will be made
    again. Its stages are asked, and do nothing if that had the same result.
    """
    with remembered():
        return _Survey(run, strict).states


class _Survey:
    """Looks at every output once, after those that it may be made from."""

    def __init__(self, run: Run, strict: bool) -> None:
        self._run, self._strict = run, strict
        self.states: dict[str, str] = {}
        for name in SETUP:
            self._look(run.path / name)
        for number in run.iterations():
            for name in FOLDERS:
                self._look(run.folder(number) / name)

    def _look(self, folder: Path) -> None:
        manifest = _readable(folder)
        if manifest is None:
            return
        places = {name: self._run.place(source.path) for name, source in manifest.inputs.items()}
        again = self._strict and manifest.stage == "train-step" and self._run.lacks_state(folder)
        state = STALE if again else self._compared(manifest, places)
        if manifest.stage == "report" and state != "":
            state = self._of_report(folder, manifest, state)
        if state:
            self.states[folder.relative_to(self._run.path).as_posix()] = state

    def _compared(self, manifest: Manifest, places: dict[str, Path]) -> str:
        state = SOUND
        for name, place in places.items():
            if name == STATE:  # told by its policy: it may never have been written
                continue
            now = _readable(place)
            if now is None:
                return ""
            if not self._has(manifest, name, now):
                return STALE
            before = self.states.get(self._output_of(place)) if self._is_of_run(place) else SOUND
            if before == STALE and self._strict:
                return STALE
            if before != SOUND:
                state = ""
        return state

    def _has(self, manifest: Manifest, name: str, now: Manifest) -> bool:
        return now.content_hash == manifest.inputs[name].content_hash if self._strict else manifest.still_has(name, now)

    def _of_report(self, folder: Path, report: Manifest, state: str) -> str:
        """A report covers all outputs of its iteration; once one of them is pruned, the report stays as it is."""
        there = {name: _readable(folder.parent / name) for name in REPORTED}
        if any(manifest is not None and manifest.pruned for manifest in there.values()):
            return SOUND
        return state if report.inputs.keys() >= {name for name, found in there.items() if found is not None} else STALE

    def _is_of_run(self, place: Path) -> bool:
        return place.is_relative_to(self._run.path)

    def _output_of(self, place: Path) -> str:
        """`RUN/iter-0001/train/policy` -> `iter-0001/train`."""
        return "/".join(place.relative_to(self._run.path).parts[:2])


def _readable(folder: Path) -> Manifest | None:
    """The manifest of an output; None if it is missing or damaged, which its readers report."""
    try:
        return manifest_of(folder)
    except DataError:
        return None
