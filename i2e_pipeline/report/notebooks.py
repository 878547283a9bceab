"""Execute notebooks and keep the executed copies, as notebooks and as pages.

    python -m i2e_pipeline.report.notebooks [--update] NOTEBOOK…

Cells run from the repository's root; copies go to out/notebooks/, with an HTML page each. --update also stores what the
cells gave in the notebooks themselves, which are kept executed on the sample. The first cell that fails ends the run.
Then the copy holds what was executed so far, and the cell and its error are printed.
"""

from __future__ import annotations

import base64
import io
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from i2e_pipeline.core.config import ImageLimits
from i2e_pipeline.images.decode import open_rgb
from i2e_pipeline.pages.palette import DAY, SERIES

ROOT = Path(__file__).resolve().parents[2]
_TIMEOUT = 900
"""Seconds a cell may take."""


def style() -> dict[str, str]:
    """Lets matplotlib draw in the house's colours; returns these by name: blue, orange, green, red, grey, ink …"""
    import matplotlib.pyplot as plt
    from cycler import cycler

    plt.rcParams.update(
        {
            "figure.dpi": 100,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "axes.grid": True,
            "axes.prop_cycle": cycler(color=SERIES),
            "grid.color": DAY["rule"],
            "font.size": 10,
            "savefig.bbox": "tight",
        }
    )
    return dict(DAY)


def execute(notebook: Path, folder: Path, root: Path = ROOT) -> Path:
    """Run a notebook from `root`; returns the executed copy in `folder`. Raises nbclient's CellExecutionError."""
    import nbformat
    from nbclient import NotebookClient

    cells = nbformat.read(notebook, as_version=4)
    resources = {"metadata": {"path": str(root)}}
    client = NotebookClient(cells, timeout=_TIMEOUT, kernel_name="python3", resources=resources, record_timing=False)
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / notebook.name
    try:
        client.execute()
    finally:
        nbformat.write(_plain(cells), copy)
    return copy


def _plain(cells: Any) -> Any:
    """Without what differs from machine to machine, the interpreter's version, and with pictures of 256 colours, which
    take a third."""
    cells.metadata["language_info"] = {"name": "python"}
    for cell in cells.cells:
        for output in cell.get("outputs", []):
            if png := output.get("data", {}).get("image/png"):
                output["data"]["image/png"] = _fewer_colours(png)
    return cells


def _fewer_colours(png: str) -> str:
    opened = open_rgb(base64.b64decode(png), ImageLimits(min_side=1, max_aspect=1e9))
    assert isinstance(opened, tuple), "matplotlib draws what can be opened"
    image = opened[0].quantize(256)
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    return base64.b64encode(content.getvalue()).decode()


def page(notebook: Path) -> Path:
    """Write an executed notebook as an HTML page beside it, which fetches nothing from elsewhere; returns its path."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(mathjax_url="", require_js_url="", jquery_url="", mermaid_js_url="")
    body, _ = exporter.from_filename(str(notebook))
    path = notebook.with_suffix(".html")
    path.write_text(body, encoding="utf-8")
    return path


def main(arguments: Sequence[str]) -> int:
    """Execute all; 1 and the cell's error where one fails, 2 where none is named or one is missing."""
    from nbclient.exceptions import CellExecutionError

    notebooks = [n for n in arguments if n != "--update"]
    missing = [n for n in notebooks if not Path(n).is_file()]
    if missing or not notebooks:
        fault = f"no such notebook: {', '.join(missing)}" if missing else "name the notebooks to execute"
        print(fault, file=sys.stderr)
        return 2
    for notebook in notebooks:
        print(f"{notebook} …", flush=True)
        try:
            copy = execute(Path(notebook), ROOT / "out" / "notebooks")
        except CellExecutionError as error:
            print(f"{notebook} failed:\n{error}", file=sys.stderr)
            return 1
        if "--update" in arguments:
            shutil.copyfile(copy, notebook)
        print(f"{notebook} -> {copy.relative_to(ROOT)}, {page(copy).relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
