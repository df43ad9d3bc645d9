"""What has been tested, and by how many cases: each test notes its own, and this writes them to docs/reliability.md.

`python tests/faults/table.py` reads the notes of the file that FAULTS_TABLE names (`make test-faults` sets it).
"""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

PAGE = Path(__file__).resolve().parents[2] / "docs/reliability.md"


class Row(NamedTuple):
    """A guarantee, what shows it, and how many cases it takes at least."""

    guarantee: str
    shown: str
    asked: str


ROWS = {
    1: Row(
        "What is published is complete.",
        "SIGKILL before every operation on files of each stage, halfway through every write, and at random times",
        "60 + 300",
    ),
    2: Row(
        "A killed and rerun command gives what an undisturbed one gives.",
        "every file compared by its bytes, policy and optimizer among them; torch's generator at the end of train-step",
        "60 + 20",
    ),
    3: Row(
        "make never trusts partial output.",
        "make, the recipe's process and the whole process group killed during `make iterate`, then make again",
        "50",
    ),
    4: Row(
        "On a full disk there is a clear error, the old output stays intact, and a rerun finishes.",
        "a small tmpfs, RLIMIT_FSIZE, and ENOSPC from an operation on",
        "100",
    ),
    5: Row(
        "Of two runs that write one output, one commits; the other exits with 4, or finds the work done.",
        "pauses at fixed operations, and races",
        "8 + 100",
    ),
    6: Row(
        "Corrupt files are refused and named.",
        "bit flips, truncations, swapped files, edited manifests, of each kind of shard",
        "1,200",
    ),
    7: Row("Schema drift is reported by column.", "missing, extra, retyped, reordered, nullability, version", "30"),
    8: Row(
        "NaN, infinities and unequal lengths never reach the optimizer.", "hypothesis on each numeric column", "2,000"
    ),
    9: Row("Empty inputs do not crash anything.", "empty shard, completion, group, dataset", "20"),
    10: Row(
        "A bad image costs a row, not the run.",
        "missing, truncated, bomb, CMYK, palette, 16 bit, animated, rotated by EXIF, 1 × 1, 10,000 × 1",
        "40",
    ),
    11: Row("Any text is preserved, or reported.", "invalid UTF-8, lone surrogates, NUL, bidi, 10 MB", "300"),
    12: Row(
        "No stage runs foreign code.",
        "pickles in every loader, YAML tags, trust_remote_code, auto_map, reward paths outside the root",
        "20",
    ),
    13: Row("Paths stay inside their root.", "`..`, absolute, symbolic links, `file://`, `hf://`, device files", "25"),
    14: Row(
        "Secrets are never written.",
        "canaries in the environment; outputs, tracebacks and tracker files searched",
        "15",
    ),
    15: Row(
        "Memory is bounded by configuration.",
        "decompression bombs in Parquet and PNG, huge rows, under RLIMIT_AS",
        "15",
    ),
    16: Row("`--dry-run` and failing commands leave the tree as it was.", "the tree before and after", "30"),
    17: Row(
        "A long run with kills ends where an undisturbed one ends.",
        "`make soak`: a kill at random every 60 s on average; the final policy by its bytes; memory, open files",
        "200 iterations",
    ),
    18: Row(
        "A numerical blow-up is stopped.",
        "loss or gradient not a number, exploding ratio, equal rewards, collapse of the format",
        "12",
    ),
    19: Row(
        "A run can be resumed from a copy, and after a clock was set back.",
        "cp -r, git, tar and a clock set back; of a finished, a partial and a pruned run; content hashes compared",
        "12",
    ),
}


def record(row: int, cases: int, note: str = "") -> None:
    """Note that a test has seen so many cases of a row, and all as promised.

    A test that runs again replaces what it noted before for the same row and note. Without FAULTS_TABLE nothing is
    kept.
    """
    path = os.environ.get("FAULTS_TABLE")
    if not path:
        return
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
    when = datetime.now(UTC).isoformat(timespec="seconds")
    line = json.dumps({"row": row, "cases": cases, "note": note, "test": test, "when": when})
    with open(path, "a", encoding="utf-8") as file:  # one write of a short line: processes may append at once
        file.write(line + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """The newest note of each test."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    notes = map(json.loads, lines)
    return list({(note["test"], note["row"], note["note"]): note for note in notes}.values())


def table(notes: list[dict[str, Any]]) -> str:
    """Markdown: a line for each guarantee."""
    lines = ["| # | guarantee | shown by | asked for | cases run | last run |", "|---|---|---|---|---|---|"]
    for number, row in ROWS.items():
        found = [note for note in notes if note["row"] == number]
        cases: dict[str, int] = {}
        for note in found:
            cases[note["note"]] = cases.get(note["note"], 0) + note["cases"]
        ran = "; ".join(f"{count:,}" + f" {text}".rstrip() for text, count in sorted(cases.items()))
        when = max((note["when"][:10] for note in found), default="")
        lines.append(f"| {number} | {row.guarantee} | {row.shown} | {row.asked} | {ran or '–'} | {when or '–'} |")
    return "\n".join(lines)


def machine() -> str:
    """What it ran on."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


START, END = "<!-- table -->", "<!-- /table -->"


def main() -> None:
    """Put the table into the page; what is written around it stays."""
    notes = read(Path(os.environ.get("FAULTS_TABLE", "build/faults/table.jsonl")))
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(START)
    tail = rest.partition(END)[2]
    today = datetime.now(UTC).date()
    said = f"Written on {today} on {machine()}. A dash: not run there."
    PAGE.write_text(f"{head}{START}\n{said}\n\n{table(notes)}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
