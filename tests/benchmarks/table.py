"""The figures as Markdown and JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import Figure

_HEAD = ("work", "against", "ratio", "wanted", "", "ours s", "theirs s", "ours MiB", "theirs MiB", "machine")


def write(folder: Path, machine: dict[str, str], figures: Sequence[Figure]) -> None:
    """benchmarks.md and benchmarks.json; lines that were not measured now stay, with the machine that they are from."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "benchmarks.json"
    lines = {line["name"]: line for line in _earlier(path)}
    here = {key: value for key, value in machine.items() if key != "date"}
    lines |= {f.name: f.as_dict() | {"date": machine["date"], "machine": here} for f in figures}
    content = {"figures": list(lines.values())}
    path.write_text(json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "benchmarks.md").write_text(markdown(list(lines.values())), encoding="utf-8")


def _earlier(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["figures"] if path.exists() else []
    return found


def markdown(lines: Sequence[dict[str, Any]]) -> str:
    """The whole document."""
    machines: list[dict[str, str]] = []
    for line in lines:
        if line["machine"] not in machines:
            machines.append(line["machine"])
    numbers = [str(number) for number, _ in enumerate(machines, start=1)]
    parts = [
        "# Benchmarks",
        "Made by `make bench`; `make bench ONLY=update` repeats the lines whose name contains `update`. Each "
        "ratio comes from one run: both sides alternate (at least a second each) "
        "in one process, median over median; whole iterations and stages (memory, growth) run in "
        "separate processes. 8 completions per prompt, "
        "float32. *Small* is the embedded model, *medium* a Qwen2.5-VL of about 14 M parameters. MiB is the peak above "
        "the loaded model, with each side in its own process. Each line names the machine that it was measured on.",
        _table(("machine", *numbers), ((key, *(one.get(key, "") for one in machines)) for key in machines[0])),
        "## Figures",
        _table(_HEAD, ((*_line(line), numbers[machines.index(line["machine"])]) for line in lines)),
        "## What each side computes",
        _table(("line", "ours", "theirs", "checked on the same inputs"), map(_sides, lines)),
        "## Details",
        *(f"**{line['name']}** ({line['date']})\n\n{_details(line['details'])}" for line in lines if line["details"]),
        "## On a GPU",
        "`make gpu-check` ([gpu-check.md](gpu-check.md)) measures update, scoring and generation of a "
        "Qwen2.5-VL-3B-sized model with random weights in bfloat16, with shared and with separate prompts. **It has "
        "not been run on a GPU**: none was available. On a CPU it was only tried at toy size (`DEVICE=cpu TINY=1`).",
    ]
    return "\n\n".join(parts) + "\n"


def _line(line: dict[str, Any]) -> tuple[str, ...]:
    wanted = "" if line["target"] is None else f"{line['bound']} {line['target']:g} {line['unit']}"
    met = {True: "✓", False: "✗", None: ""}[line["met"]]
    return (
        line["work"],
        line["against"],
        f"{line['value']:.2f} {line['unit']}",
        wanted,
        met,
        _seconds(line["ours_seconds"]),
        _seconds(line["theirs_seconds"]),
        *("" if line[key] is None else f"{line[key]:.0f}" for key in ("ours_mib", "theirs_mib")),
    )


def _sides(line: dict[str, Any]) -> tuple[str, ...]:
    checks = ", ".join(f"{name} {_short(value)}" for name, value in line["checks"].items())
    return line["name"], line["ours_computes"], line["theirs_computes"], checks


def _seconds(values: list[float]) -> str:
    if not values:
        return ""
    return f"{statistics.median(values):.2f} ({min(values):.2f} – {max(values):.2f}, n {len(values)})"


def _details(values: dict[str, Any]) -> str:
    """Nested figures as a table, plain ones as a list."""
    plain = [f"- {name}: {_short(value)}" for name, value in values.items() if not isinstance(value, dict)]
    parts = ["\n".join(plain)] if plain else []
    for name, rows in values.items():
        if isinstance(rows, dict) and all(isinstance(row, dict) for row in rows.values()):
            columns = list(next(iter(rows.values())))
            parts.append(
                _table((name, *columns), ((key, *(_short(row[c]) for c in columns)) for key, row in rows.items()))
            )
        elif isinstance(rows, dict):
            parts.append(_table((name, *rows), [("", *map(_short, rows.values()))]))
    return "\n\n".join(parts)


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_short, value))
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
