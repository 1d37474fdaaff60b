"""The notebook runs from top to bottom."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples/quickstart.ipynb"


def test_its_cells_run_in_order() -> None:
    """As plain Python, without Jupyter."""
    pytest.importorskip("matplotlib").use("Agg")
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert names["depth"].shape == (32, 192, 256)
    assert np.isfinite(names["depth"]).all()
    assert names["jitter"]["student"] < 0.8 * names["jitter"]["teacher"]


@pytest.mark.slow
def test_it_runs_in_a_kernel() -> None:
    """As a reader would run it; a cell that fails raises."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    pictures = [o for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(pictures) == 2
