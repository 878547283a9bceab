"""Execute notebooks and keep the executed copies.  python -m i2e_pipeline.report.notebooks NOTEBOOK…

Cells run from the repository's root; copies go to out/notebooks/. The first cell that fails ends the run. Then the copy
holds what was executed so far, and the cell and its error are printed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_TIMEOUT = 900
"""Seconds a cell may take."""


def execute(notebook: Path, folder: Path, root: Path = ROOT) -> Path:
    """Run a notebook from `root`; returns the executed copy in `folder`. Raises nbclient's CellExecutionError."""
    import nbformat
    from nbclient import NotebookClient

    cells = nbformat.read(notebook, as_version=4)
    client = NotebookClient(cells, timeout=_TIMEOUT, kernel_name="python3", resources={"metadata": {"path": str(root)}})
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / notebook.name
    try:
        client.execute()
    finally:
        nbformat.write(cells, copy)
    return copy


def main(notebooks: Sequence[str]) -> int:
    """Execute all; 1 and the cell's error where one fails, 2 where none is named or one is missing."""
    from nbclient.exceptions import CellExecutionError

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
        print(f"{notebook} -> {copy.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
