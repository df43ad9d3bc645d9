"""W&B's offline folders, read by its own reader, `wandb leet inspect`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def records(run: Path) -> dict[str, list[dict[str, Any]]]:
    """History of each W&B run in a folder, by run id, as `wandb leet inspect`, its own reader, tells it."""
    found: dict[str, list[dict[str, Any]]] = {}
    for folder in sorted((run / "wandb").glob("offline-run-*")):
        written = inspect(folder)
        identity = next(record["run"]["run_id"] for record in written if record["type"] == "run")
        for record in written:
            if record["type"] == "history":
                item = {**record["history"]["item"], "_number": record["history"]["step"].get("num", 0)}
                found.setdefault(identity, []).append(item)
    return found


def inspect(folder: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", str(folder), "--json"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [json.loads(line) for line in lines]
