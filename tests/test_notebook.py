"""pipelines/notebooks/inspect.ipynb runs on a run's files, and its heat maps are right."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.commands import ROOT
from support.pipeline import Run

NOTEBOOK = ROOT / "pipelines/notebooks/inspect.ipynb"


def kept_outputs(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [output for cell in notebook["cells"] for output in cell.get("outputs", [])]


@pytest.fixture(scope="module")
def executed(small_run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """The notebook's cells, run in a copy of the project's folders in which training_logs/first is a small run."""
    spec = importlib.util.spec_from_file_location("run_notebook", NOTEBOOK.parent / "run.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    root = tmp_path_factory.mktemp("project")
    (root / "training_logs").mkdir()
    (root / "training_logs/first").symlink_to(small_run.folder)
    (root / "pipelines/notebooks").mkdir(parents=True)
    copy = root / "pipelines/notebooks/inspect.ipynb"
    copy.write_bytes(NOTEBOOK.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RUN", raising=False)
        found: tuple[dict[str, Any], dict[str, Any]] = module.run(copy)
    return found


def test_every_cell_runs_and_the_figures_are_drawn(executed: tuple[dict[str, Any], dict[str, Any]]) -> None:
    outputs = kept_outputs(executed[0])
    said = "".join("".join(output["text"]) for output in outputs if output["output_type"] == "stream")
    assert "2 iterations, iter-0001 to iter-0002" in said and "right minus wrong, within groups" in said
    assert sum(output["output_type"] == "display_data" for output in outputs) == 4
    assert [output for output in outputs if output["output_type"] == "error"] == []


def test_its_figures_are_those_of_the_files(executed: tuple[dict[str, Any], dict[str, Any]], small_run: Run) -> None:
    """Against the report's own streaming of the same rows."""
    from dapo_stages.reporting.iteration.figures import collect
    from dapo_stages.runs import run_folder

    everything = executed[1]["everything"]
    for number in (1, 2):
        figures = collect(number, run_folder.Run(small_run.folder).sources(number))["attention"]
        mine = everything[everything.iteration == number]
        assert len(mine) == figures["status"]["ok"]
        assert mine.vgr_all.mean() == pytest.approx(figures["vgr_all"])


def test_the_brightest_place_is_the_patch_that_was_looked_at(executed: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Two images, neither square: image token 5 of the first (row 1, column 1 of 2 × 4), 1 of the second."""
    heat_maps = executed[1]["heat_maps"]
    grids = np.array([[1, 4, 8], [1, 6, 2]])
    attention = np.full(8 + 3, 0.1)
    attention[[5, 9]] = 1.0
    first, second = heat_maps(attention, grids)
    assert (first.shape, second.shape) == ((2, 4), (3, 1))
    assert np.unravel_index(first.argmax(), first.shape) == (1, 1)
    assert np.unravel_index(second.argmax(), second.shape) == (1, 0)
    with pytest.raises(AssertionError, match="do not belong together"):
        heat_maps(attention[:-1], grids)


def test_the_map_lies_over_the_image_as_the_patches_do(executed: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Drawn over a black image of 120 × 60 pixels, the brightest pixels are those of row 1, column 1 of 2 × 4."""
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(1.2, 0.6), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    heat = np.zeros((2, 4))
    heat[1, 1] = 1
    executed[1]["show"](axes, Image.new("RGB", (120, 60)), heat, "")
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3].sum(axis=-1)  # type: ignore[attr-defined]
    pyplot.close(figure)
    rows, columns = np.nonzero(pixels > 0.9 * pixels.max())
    assert (rows.min(), rows.max()) == pytest.approx((30, 59), abs=1)
    assert (columns.min(), columns.max()) == pytest.approx((30, 59), abs=1)
    assert np.count_nonzero(pixels) == pytest.approx(30 * 30, rel=0.1)  # elsewhere the image is what it was


def test_the_notebook_paints_as_the_report_does(executed: tuple[dict[str, Any], dict[str, Any]]) -> None:
    from matplotlib import pyplot

    from dapo_stages.reporting.iteration.overlay import shades

    figure = pyplot.figure(figsize=(0.6, 0.3), dpi=100)
    heat = np.array([[0.0, 1.0, 2.0], [3.5, 5.0, 0.5]])
    executed[1]["show"](figure.add_axes((0, 0, 1, 1)), Image.new("RGB", (60, 30)), heat, "")
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[7::15, 10::20, :3].astype(float)  # type: ignore[attr-defined]
    pyplot.close(figure)
    painted = shades(heat.ravel()).reshape(2, 3, 4).astype(float)
    assert np.abs(pixels - painted[..., :3] * painted[..., 3:] / 255).max() <= 2  # over black


def test_what_is_committed_is_small_and_names_no_machine() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    notebook = json.loads(text)
    assert notebook["nbformat"] == 4 and len(text) < 300_000
    assert len(kept_outputs(notebook)) >= 7
    said = json.dumps([o.get("text", "") for o in kept_outputs(notebook)])
    assert not re.search(r"/(home|work|tmp|root|Users)/", said)
    assert "../../training_logs" in text


def test_what_is_run_goes_into_another_file(tmp_path: Path) -> None:
    cell: dict[str, Any] = {
        "cell_type": "code",
        "source": ["print(6 * 7)"],
        "outputs": [],
        "execution_count": None,
        "metadata": {},
    }
    source, target = tmp_path / "one.ipynb", tmp_path / "two.ipynb"
    source.write_text(json.dumps({"cells": [cell], "nbformat": 4}))
    before = source.read_bytes()
    subprocess.run([sys.executable, NOTEBOOK.parent / "run.py", source, target], check=True)
    assert source.read_bytes() == before
    assert kept_outputs(json.loads(target.read_text()))[0]["text"] == ["42\n"]
