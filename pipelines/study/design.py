"""The design of the study, from study.yaml: its tasks, schemes, seeds and learning rates, and the names of its runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from dapo_stages.errors import DataError
from dapo_stages.small_files import read_text

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Design:
    """What study.yaml says."""

    tasks: tuple[str, ...]
    pilot_seeds: tuple[int, ...]
    first_test_seed: int
    rates: tuple[float, ...]
    baseline: str
    primary: tuple[str, str]  # task and scheme
    schemes: dict[str, dict[str, Any]]  # dotted settings by scheme
    own_schemes: tuple[str, ...]
    own_seeds: tuple[int, ...]

    @classmethod
    def read(cls, path: Path = HERE / "study.yaml") -> Self:
        """The design of a file."""
        values = yaml.safe_load(read_text(path))
        return cls(
            tuple(values["tasks"]),
            tuple(values["pilot_seeds"]),
            values["first_test_seed"],
            tuple(values["rates"]),
            values["baseline"],
            (values["primary"]["task"], values["primary"]["scheme"]),
            values["schemes"],
            tuple(values["own"]["schemes"]),
            tuple(values["own"]["seeds"]),
        )

    def test_seeds(self, number: int) -> tuple[int, ...]:
        """The first so many of them."""
        return tuple(range(self.first_test_seed, self.first_test_seed + number))

    def others(self) -> tuple[str, ...]:
        """The schemes that are compared with the baseline."""
        return tuple(name for name in self.schemes if name != self.baseline)


@dataclass(frozen=True, order=True)
class Name:
    """Which run it is. The pilot tries several learning rates, so there the rate is part of the name."""

    task: str
    seed: int
    scheme: str
    rate: float | None = None

    @property
    def file(self) -> str:
        """Its result file, in the folder of results: places/vgr-101.json, pilot/places/vgr-0.0003-1.json."""
        if self.rate is None:
            return f"{self.task}/{self.scheme}-{self.seed}.json"
        return f"pilot/{self.task}/{self.scheme}-{shown(self.rate)}-{self.seed}.json"

    @classmethod
    def of(cls, file: str) -> Self:
        """The name that a result file's path in the folder of results stands for."""
        try:
            folder, _, stem = file.removesuffix(".json").rpartition("/")
            scheme, *rate, seed = stem.split("-")
            pilot, task = folder.startswith("pilot/"), folder.removeprefix("pilot/")
            if pilot != bool(rate) or len(rate) > 1:
                raise ValueError
            return cls(task, int(seed), scheme, float(rate[0]) if rate else None)
        except ValueError:
            problem = "expected TASK/SCHEME-SEED.json or pilot/TASK/SCHEME-RATE-SEED.json"
            raise DataError(file, problem, "Rename the file.") from None


def shown(rate: float) -> str:
    """A learning rate without an exponent, which has a hyphen: 0.0003."""
    return f"{rate:.10f}".rstrip("0")


def next_rate(rates: list[float], best: float) -> float | None:
    """The rate to try next if the best one is the lowest or the highest of those tried, else None.

    On the grid of 1 and 3 in each decade: 1e-3 is followed by 3e-3, 1e-4 preceded by 3e-5.
    """
    if best not in (min(rates), max(rates)):
        return None
    step = round(2 * math.log10(best)) + (1 if best == max(rates) else -1)
    return float(f"{(3 if step % 2 else 1) * 10.0 ** (step // 2):.0e}")


def overrides(settings: Mapping[str, Any]) -> list[str]:
    """Dotted settings as values of --set, without spaces: `weights.clip=[0,1000]`."""
    return [
        f"{key}={value if isinstance(value, str) else json.dumps(value, separators=(',', ':'))}"
        for key, value in settings.items()
    ]
