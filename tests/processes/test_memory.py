"""The most memory that a process held."""

from __future__ import annotations

import subprocess
import sys

from support.commands import ROOT


def test_the_peak_stays_when_the_memory_is_given_back() -> None:
    code = (
        "from dapo_stages.processes.memory import peak\n"
        "before = peak(); held = b'x' * 300_000_000; del held; print(peak() - before)\n"
        "import sys; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    assert 290_000_000 < int(done.stdout) < 330_000_000
