"""A notebook as a page to photograph: its texts, what it prints and its figures, without the code."""

from __future__ import annotations

import importlib.util
import os
from html import escape
from pathlib import Path
from typing import Any
from unittest import mock

from support.commands import ROOT

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;width:880px;margin:16px 24px;color:#1c2430;background:#fff}"
    "h1{font-size:24px}h2{font-size:19px}h1,h2,p{margin:8px 0}pre{font:13px/1.4 monospace;margin:8px 0;color:#3a4452}"
    "img{display:block;max-width:100%;margin:8px 0}code{font-family:monospace;background:#f0f3f6}"
)


def executed(notebook: Path, run: str) -> dict[str, Any]:
    """The notebook after its cells have run on training_logs/RUN; the file stays as it is."""
    spec = importlib.util.spec_from_file_location("run_notebook", ROOT / "pipelines/notebooks/run.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with mock.patch.dict(os.environ, RUN=run):
        made: dict[str, Any] = module.run(notebook)[0]
    return made


def page(notebook: dict[str, Any]) -> str:
    """HTML that needs no other file."""
    from markdown_it import MarkdownIt

    parts = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            parts.append(MarkdownIt().render("".join(cell["source"])))
        parts.extend(_output(output) for output in cell.get("outputs", []))
    ready = "<script>performance.mark('ready')</script>"
    return f'<!doctype html><meta charset="utf-8"><style>{_STYLE}</style>{"".join(parts)}{ready}'


def _output(output: dict[str, Any]) -> str:
    if output["output_type"] == "stream":
        return f"<pre>{escape(''.join(output['text']))}</pre>"
    return f'<img alt="" src="data:image/png;base64,{output["data"]["image/png"]}">'
