"""The parent that faulty commands are forked from: `python -m faults.parent`, with shim.c preloaded (harness.py).

It imports what stages import, once; then it reads a request a line from stdin and answers each with a line. A request
{"arguments": […], …} starts a command in a child, and the answer is its process id; {"wait": id} is answered by its
exit code (negative: the signal) when it has ended, {"look": id} at once, by STILL while it runs. Commands run by the
function of the console script.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import resource
import sys
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

STILL = 1000  # no exit code


def main() -> None:
    """Serve until stdin is closed."""
    from dapo_stages.entrypoints.preloaded import import_everything

    import_everything()
    answers = os.fdopen(os.dup(1), "w")
    children: dict[int, ForkProcess] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "look" in request:
            code = children[request["look"]].exitcode
            answer = STILL if code is None else code
        elif "wait" in request:
            child = children.pop(request["wait"])
            child.join()
            assert child.exitcode is not None
            answer = child.exitcode
            child.close()
        else:
            child = get_context("fork").Process(target=_run, args=(request,))
            child.start()
            assert child.pid is not None
            answer = child.pid
            children[answer] = child
        print(answer, file=answers, flush=True)


def _run(request: dict[str, Any]) -> None:
    """In a child: one thread, deterministic algorithms, the fault, the command; at its end, the state of the RNGs."""
    import torch

    from dapo_stages.entrypoints.cli import main as command

    place = Path(request["place"])
    for target, name in enumerate((Path("/dev/null"), place / "stdout", place / "stderr")):
        source = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(source, target)
        os.close(source)
    os.chdir(request["folder"])
    os.environ |= request["environment"]
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    sys.argv = ["dapo-stages", *request["arguments"]]
    if request["most"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["most"], resource.RLIM_INFINITY))
    else:
        _arm(request, place)
    try:
        command()
    finally:
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        (place / "rng").write_text(hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest())


def _arm(request: dict[str, Any], place: Path) -> None:
    arm = ctypes.CDLL(None).faults_arm
    arm.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_long, ctypes.c_char_p, ctypes.c_char_p]
    names = [str(path).encode() for path in (request["root"], place / "operations", place / "go-on")]
    if arm(names[0], request["action"], request["at"], *names[1:]):
        raise OSError(f"{place}: the fault cannot be armed")


if __name__ == "__main__":
    main()
