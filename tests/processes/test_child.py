"""The process that runs what is not ours, and how it is ended."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from dapo_stages.processes.child import Child, Lost


@pytest.mark.long
def test_who_waits_for_an_answer_hears_of_an_interruption_by_another_thread(tmp_path: Path) -> None:
    """Many times over, with threads that change often. A pipe that is closed while it is read says nothing."""
    program = tmp_path / "sleeps.py"
    program.write_text("import time\nprint('{}', flush=True)\ntime.sleep(1000)\n")
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(20):
            child = Child(program=program)
            heard: list[Lost] = []
            child.start(60)

            def ask(child: Child = child, heard: list[Lost] = heard) -> None:
                with pytest.raises(Lost) as lost:
                    child.ask({}, 1000)
                heard.append(lost.value)

            thread = threading.Thread(target=ask, daemon=True)
            thread.start()
            child.interrupt()
            thread.join(timeout=30)
            assert [lost.late for lost in heard] == [False]
    finally:
        sys.setswitchinterval(interval)
