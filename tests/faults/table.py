"""What each row of the table in docs/reliability.md rests on: cases, as the tests counted them."""

from __future__ import annotations

import json
import os


def record(row: int, cases: int, note: str = "") -> None:
    """Append a line to the file named by FAULTS_TABLE; without that, nothing."""
    if path := os.environ.get("FAULTS_TABLE"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"row": row, "cases": cases, "note": note}) + "\n")
