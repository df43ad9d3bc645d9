"""Starts a stage in several processes that stay, and run the next one, too.

    python -m dapo_stages.entrypoints.resident_launch [options of accelerate launch] STAGE …

Same command line, streams, exit code, signals and outputs as launch.py. The first command starts the launch, which ends
with make or after a while without commands. If it is lost, the command is launched by itself.
"""

from __future__ import annotations

import hashlib
import json
import sys

from dapo_stages.entrypoints import launch
from dapo_stages.entrypoints.preload import PARENT, ask
from dapo_stages.entrypoints.resident import WORKER, name


def main() -> None:
    """Have the command run by a launch that stays, or launch it."""
    arguments = sys.argv[1:]
    start = next((place for place, word in enumerate(arguments) if word in PARENT.starts), 0)
    options = tuple(arguments[:start])
    if options:
        layout = hashlib.sha256(json.dumps(options).encode()).hexdigest()[:8]
        ask(arguments[start:], WORKER._replace(options=options, name=lambda key: f"{name(key)}-{layout}"))
    launch.main()


if __name__ == "__main__":
    main()
