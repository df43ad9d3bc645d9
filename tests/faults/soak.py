"""Row 17: `make soak`. A long run of the smallest pipeline under kills at random ends where an undisturbed one ends.

SOAK_ITERATIONS (200) says how long, SOAK_SECONDS (60) how often it is killed on average. It may itself be interrupted:
started again, it goes on. Memory and open files are watched; what it found is noted for docs/reliability.md.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dapo_stages.handoff.manifests import read_manifest
from faults.harness import check_published
from faults.projects import WAYS, Project
from faults.table import record

ITERATIONS = int(os.environ.get("SOAK_ITERATIONS", "200"))
SECONDS = float(os.environ.get("SOAK_SECONDS", "60"))
GROWTH = 1.1  # of what stages use, last quarter of the run against the first


def main() -> None:
    """Run both, compare, say what was found; exit 1 if it is not as promised."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell is deaf to it
    folder = Path(os.environ.get("SOAK_FOLDER", f"build/soak-{ITERATIONS}")).resolve()
    plain = Project(folder / "undisturbed", ITERATIONS)
    killed = Project(folder / "killed", ITERATIONS)
    notes = folder / "notes.jsonl"
    try:
        plain.finish(seconds=24 * 3600)
        while not _run_under_kills(killed, notes):
            check_published(killed.run)
    finally:
        plain.close()
        killed.close()
    samples = [json.loads(line) for line in notes.read_text().splitlines()]
    kills = sum("way" in sample for sample in samples)
    same = killed.hashes() == plain.hashes()
    growth = _growth(samples) | _growth_of_stages(killed)
    said = ", ".join(f"{name} × {ratio:.2f}" for name, ratio in growth.items())
    print(f"{ITERATIONS} iterations, {kills} kills: the final policy is {'the same' if same else 'ANOTHER'}; {said}")
    if not same or any(ratio > GROWTH for ratio in growth.values()):
        sys.exit(1)
    os.environ["PYTEST_CURRENT_TEST"] = "make soak (call)"
    record(17, ITERATIONS, f"iterations, {kills} kills; last quarter against the first: {said}")
    shutil.rmtree(folder)


def _run_under_kills(project: Project, notes: Path) -> bool:
    """Start make, and strike whenever chance says so until it has ended; whether it came to its end.

    Not every kill ends it: without its pre-loaded parent it goes on, and is struck again.
    """
    generator = random.Random()
    make = project.start()
    strike = time.monotonic() + generator.expovariate(1 / SECONDS)
    while True:
        try:
            make.wait(timeout=1)
            break
        except subprocess.TimeoutExpired:
            _note(notes, {"iteration": _reached(project)} | project.used())
        if time.monotonic() > strike:
            way = generator.choice(WAYS)
            project.kill(make, way)
            _note(notes, {"way": way})
            strike = time.monotonic() + generator.expovariate(1 / SECONDS)
    project.settle(make)
    return make.returncode == 0


def _reached(project: Project) -> int:
    return len(list(project.run.glob("iter-*/train/manifest.json")))


def _note(notes: Path, values: dict[str, Any]) -> None:
    with notes.open("a") as file:
        file.write(json.dumps(values) + "\n")


def _growth(samples: list[dict[str, Any]]) -> dict[str, float]:
    """What was in use at most in the last quarter of the iterations, against the first."""
    found = {}
    for name in ("parent MiB", "parent files", "stage files"):
        seen = [(sample["iteration"] / ITERATIONS, sample[name]) for sample in samples if name in sample]
        first = max((value for place, value in seen if place <= 0.25), default=0)
        last = max((value for place, value in seen if place >= 0.75), default=0)
        if first and last:
            found[name] = last / first
    return found


def _growth_of_stages(project: Project) -> dict[str, float]:
    """Peak memory of stages as their manifests tell it: the mean over the last quarter, against the first."""
    found = {}
    for stage in ("rollout", "train"):
        peaks = [read_manifest(project.run / f"iter-{n:04d}" / stage).memory or 0 for n in range(1, ITERATIONS + 1)]
        quarter = max(ITERATIONS // 4, 1)
        found[f"memory of {stage}"] = statistics.mean(peaks[-quarter:]) / statistics.mean(peaks[:quarter])
    return found


if __name__ == "__main__":
    main()
