"""`make bench`: measure the chosen lines and write docs/benchmarks.md and docs/benchmarks.json."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks import accuracy, iteration, long_run, machine, overhead, preparing, scaling, table, worker
from benchmarks.measure import Figure
from benchmarks.rows import duels

DOCS = Path(__file__).resolve().parents[2] / "docs"
Work = Callable[[int | None], list[Figure]]


def lines() -> dict[str, Work]:
    """Everything that can be asked for, in the order it is measured."""
    found: dict[str, Work] = {name: partial(worker.duel, name) for name in duels()}
    found |= {name: partial(_iteration, name) for name in iteration.SIZES}
    return found | {
        "preparing-many": preparing.measure,
        "overhead": overhead.measure,
        "accuracy": _accuracy,
        "scaling": scaling.measure,
        "long": long_run.measure,
    }


def main() -> None:
    """Measure, and write after every line, so that a run that is cut off leaves what it has."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", default="", help="measure the lines whose name contains this")
    parser.add_argument("--repetitions", type=int, help="instead of each line's own number")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of benchmarks.md and benchmarks.json")
    parser.add_argument("--list", action="store_true", help="name the lines and stop")
    asked = parser.parse_args()
    chosen = {name: work for name, work in lines().items() if asked.only in name}
    if asked.list:
        print("\n".join(chosen))
        return
    if not chosen:
        parser.error(f"no line's name contains {asked.only!r}; there are: {', '.join(lines())}")
    here, figures = machine.describe(), list[Figure]()
    for figure in _measured(chosen, asked.repetitions):
        figures.append(figure)
        table.write(asked.out, here, figures)
    print(f"written: {asked.out / 'benchmarks.md'} and {asked.out / 'benchmarks.json'}")


def _measured(chosen: dict[str, Work], repetitions: int | None) -> Iterator[Figure]:
    for name, work in chosen.items():
        before = machine.load()
        print(f"{name} …", flush=True)
        for figure in work(repetitions):
            figure.details["load before"] = before
            verdict = {True: " (met)", False: " (missed)", None: ""}[figure.met]
            print(f"  {figure.work}: {figure.value:.2f} {figure.unit}{verdict}", flush=True)
            yield figure


def _iteration(name: str, repetitions: int | None) -> list[Figure]:
    return [iteration.measure(iteration.SIZES[name], repetitions, worker.call)]


def _accuracy(repetitions: int | None) -> list[Figure]:
    return accuracy.measure(repetitions, worker.call)


if __name__ == "__main__":
    main()
