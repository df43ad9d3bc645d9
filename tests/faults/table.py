"""What each row of the table of guarantees was tried with: lines in the file that $FAULTS_TABLE names."""

from __future__ import annotations

import json
import os
from pathlib import Path


def record(row: int, cases: int, note: str = "") -> None:
    """Add a line of results; nothing where no file is named."""
    if named := os.environ.get("FAULTS_TABLE"):
        with Path(named).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"row": row, "cases": cases, "note": note}) + "\n")
