"""doctor: what this machine has, and what is missing for which feature."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dapo_stages.stages.options import Json

_MARKS = {"ok": ("✓", "green"), "optional": ("–", "yellow"), "problem": ("✗", "bold red")}


def main(
    place: Annotated[
        Path, typer.Option("--place", help="Where runs are to be written, for its free space.", metavar="DIR")
    ] = Path("training_logs"),
    as_json: Json = False,
) -> None:
    """Check this machine: Python, devices, memory, disk, versions, and what is missing for which feature.

    Exits with 3 if something is missing that the default run needs; what only a feature needs does no harm. torch is
    asked for its devices in a process of its own, for a minute and a half at most. Works without torch.

    Example: dapo-stages doctor --json
    """
    from dataclasses import asdict

    from dapo_stages.console import answer, painted
    from dapo_stages.errors import EXIT_BAD_INPUT
    from dapo_stages.reporting.health import checks
    from dapo_stages.reporting.text import visible

    found = []
    for check in checks(place):
        found.append(check)
        if not as_json:
            mark, style = _MARKS[check.state]
            use = f" (for {check.needed_for})" if check.needed_for and check.state != "ok" else ""
            print(f"{painted(mark, style)} {check.name}: {visible(check.found)}{use}", flush=True)
            if check.do and check.state != "ok":
                print(f"    {check.do}")
    problems = [check.name for check in found if check.state == "problem"]
    if as_json:
        answer({"ok": not problems, "checks": [asdict(check) for check in found]})
    elif problems:
        print(painted(f"\nmissing for the default run: {', '.join(problems)}", "bold red"))
    else:
        print("\nready for the default run: make iterate")
    if problems:
        raise typer.Exit(EXIT_BAD_INPUT)
