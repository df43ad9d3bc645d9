"""Restarts a server by the command that the configuration names for it."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence

from dapo_stages.errors import EngineError


def restart(where: str, command: Sequence[str], policy: str) -> None:
    """Run the command, which ends once the server answers again. Raises EngineError if it fails.

    It gets no terminal: what it leaves running would keep ours open.
    """
    words = [word.replace("{policy}", policy) for word in command]
    none = subprocess.DEVNULL
    try:
        code = subprocess.run(words, stdin=none, stdout=none, stderr=none).returncode
        problem = f"ended with exit code {code}" if code else ""
    except OSError as error:
        problem = f"cannot be run ({error.strerror})"
    if problem:
        raise EngineError(
            where,
            f"the command of engines.server.restart, {shlex.join(words)}, {problem}",
            "Try it in a shell, fix it, and run the same command again.",
        )
