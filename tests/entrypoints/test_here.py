"""What a command of a process that stays leaves open ends with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.served import wait

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are for Linux")

# A library keeps copies of the streams, as DeepSpeed does of stderr; OWN is open for another purpose.
LEAVES = """
import os, sys, time
from pathlib import Path
from dapo_stages.entrypoints.here import rest
kept = [os.dup(1), os.dup(2)]
own = open(sys.argv[1], "w")
rest()
own.write(" ".join(os.readlink(f"/proc/self/fd/{number}") for number in (0, 1, 2, *kept)))
own.close()
time.sleep(60)
"""


def test_copies_of_a_commands_streams_end_with_it(tmp_path: Path) -> None:
    written = tmp_path / "written"
    command = [sys.executable, "-c", LEAVES, str(written)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read() == process.stderr.read() == b""  # both end, although the process goes on
        assert process.poll() is None
        wait(lambda: written.exists() and written.read_text() != "")
    finally:
        process.kill()
        process.wait()
    assert written.read_text().split() == [os.devnull] * 5
