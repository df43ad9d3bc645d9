"""doctor: what this machine has, and what is missing for which feature; whether a run folder is intact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dapo_stages.terminal.options import Json

if TYPE_CHECKING:
    from dapo_stages.runs.run_folder import Run

_MARKS = {"ok": ("✓", "green"), "optional": ("–", "yellow"), "problem": ("✗", "bold red")}


def main(
    place: Annotated[
        Path, typer.Option("--place", help="Where runs will be written, to check its free space.", metavar="DIR")
    ] = Path("training_logs"),
    folder: Annotated[
        Path | None,
        typer.Option("--run", help="Check this run folder instead.", metavar="DIR", exists=True, file_okay=False),
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove temporary files and unpublished parts of --run; nothing else.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check this machine: Python, devices, memory, disk, versions, what is missing for which feature; or a run.

    Exits with 3 if something is missing that the default run needs; missing optional features are fine. torch is asked
    for its devices in a separate process, for 90 seconds at most. Works without torch.

    With --run it checks a run folder: manifests, checksums of all files, whether each output was made from the inputs
    that are there, and files that do not belong there. Exits with 3 if there is a problem, and, with --repair, with 4
    while a process writes there.

    Example: dapo-stages doctor --run training_logs/demo
    """
    from dapo_stages.runs.run_folder import Run

    if folder is not None:
        _check_run(Run(folder), repair=repair, as_json=as_json)
        return
    if repair:
        raise typer.BadParameter("needs --run", param_hint="--repair")
    _check_machine(place, as_json=as_json)


def _check_run(run: Run, *, repair: bool, as_json: bool) -> None:
    from dataclasses import asdict

    from dapo_stages.errors import EXIT_BAD_INPUT
    from dapo_stages.handoff.manifests import remembered
    from dapo_stages.runs.checkup import checkup, size
    from dapo_stages.runs.repair import remove
    from dapo_stages.terminal.console import answer, painted, progress
    from dapo_stages.terminal.safe_text import one_line

    removed = remove(run) if repair else []
    with remembered():
        files = size(run)
        with progress("doctor: files", files) as advance:
            findings = list(checkup(run, advance))
    problems = [finding for finding in findings if finding.state == "problem"]
    if as_json:
        found = [asdict(finding) for finding in findings]
        answer({"ok": not problems, "run": str(run.path), "files": files, "findings": found, "removed": removed})
    else:
        for name in removed:
            print(f"removed {one_line(name)}")
        for finding in findings:
            mark, style = _MARKS["problem" if finding.state == "problem" else "optional"]
            print(f"{painted(mark, style)} {one_line(f'{finding.where}: {finding.problem}.')}")
            print(f"    {one_line(finding.advice)}")
        print(painted(_verdict(len(problems), len(findings), files), "bold red" if problems else ""))
    if problems:
        raise typer.Exit(EXIT_BAD_INPUT)


def _verdict(problems: int, findings: int, files: int) -> str:
    if problems:
        return f"{problems} problem(s); {files} files compared with their checksums"
    harmless = f"; {findings} harmless finding(s)" if findings else ""
    return f"sound: {files} files match their manifests{harmless}"


def _check_machine(place: Path, *, as_json: bool) -> None:
    from dataclasses import asdict

    from dapo_stages.errors import EXIT_BAD_INPUT
    from dapo_stages.processes.machine_check import checks
    from dapo_stages.terminal.console import answer, painted
    from dapo_stages.terminal.safe_text import visible

    found = []
    for check in checks(place):
        found.append(check)
        if not as_json:
            mark, style = _MARKS[check.state]
            use = f" (for {check.needed_for})" if check.needed_for and check.state != "ok" else ""
            print(f"{painted(mark, style)} {check.name}: {visible(check.found)}{use}", flush=True)
            if check.advice and check.state != "ok":
                print(f"    {visible(check.advice)}")
    problems = [check.name for check in found if check.state == "problem"]
    if as_json:
        answer({"ok": not problems, "checks": [asdict(check) for check in found]})
    elif problems:
        print(painted(f"\nmissing for the default run: {', '.join(problems)}", "bold red"))
    else:
        print("\nready for the default run: make iterate")
    if problems:
        raise typer.Exit(EXIT_BAD_INPUT)
