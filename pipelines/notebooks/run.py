"""Runs a notebook's cells in order, without Jupyter, and saves what they print and draw.

`python run.py NOTEBOOK FILE` writes the result to another file, as `make notebook` does; without FILE, in place.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

Cell = dict[str, Any]


def run(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The notebook with new outputs, and the names its cells define. The cells run in the notebook's own folder."""
    import matplotlib

    matplotlib.use("Agg")
    notebook = json.loads(path.read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "__main__"}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    with contextlib.chdir(path.parent):
        for number, cell in enumerate(cells, 1):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile("".join(cell["source"]), f"{path.name} cell {number}", "exec"), names)
            cell["execution_count"] = number
            cell["outputs"] = [*_text(printed.getvalue()), *_figures()]
    return notebook, names


def _text(printed: str) -> list[Cell]:
    lines = printed.splitlines(keepends=True)
    return [{"name": "stdout", "output_type": "stream", "text": lines}] if lines else []


def _figures() -> list[Cell]:
    """Closes every open figure and returns it as a small PNG."""
    from matplotlib import pyplot
    from PIL import Image

    found = []
    for number in pyplot.get_fignums():
        drawn, small = io.BytesIO(), io.BytesIO()
        pyplot.figure(number).savefig(drawn, format="png", dpi=64, bbox_inches="tight")
        Image.open(drawn).convert("RGB").quantize(64).save(small, format="PNG", optimize=True)
        data = {"image/png": base64.b64encode(small.getvalue()).decode(), "text/plain": ["<Figure>"]}
        found.append({"data": data, "metadata": {}, "output_type": "display_data"})
    pyplot.close("all")
    return found


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    source, target = sys.argv[1], sys.argv[-1]
    made, _ = run(Path(source))
    Path(target).write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{target}: open it in Jupyter or an editor to see its figures")
