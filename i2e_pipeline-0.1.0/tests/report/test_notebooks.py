from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")

from i2e_pipeline.report.notebooks import ROOT, execute, main  # noqa: E402
from tests.report.conftest import Output, image  # noqa: E402

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def notebook(folder: Path, source: str) -> Path:
    path = folder / "one.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), path)
    return path


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_notebooks_are_kept_without_outputs(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.slow
def test_the_entity_notebook_runs(
    published: Callable[..., Output], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = image("broken", (434, 1, 0.9), image={"bytes": b"not an image", "path": None})
    output = published(
        images=[image("apple one", (89, 0, 0.95)), image("apple two", (89, 0, 0.8)), broken],
        quality=[{"stage": "published", "slice": "all", "pairs": 3, "precision": 0.9, "recall": None, "counted": "c"}],
    )
    monkeypatch.setenv("I2E_OUTPUT", str(output.root))
    copy = execute(ROOT / "notebooks" / "01_entity_distribution.ipynb", tmp_path / "executed")
    outputs = [o for c in nbformat.read(copy, as_version=4).cells for o in c.get("outputs", [])]
    assert not [o for o in outputs if o["output_type"] == "error"]
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 4
    assert "0.900" in "".join(o.get("text", "") for o in outputs)


@pytest.mark.slow
def test_a_failing_cell_is_an_error_and_its_copy_is_kept(tmp_path: Path) -> None:
    from nbclient.exceptions import CellExecutionError

    with pytest.raises(CellExecutionError, match="no such luck"):
        execute(notebook(tmp_path, "raise ValueError('no such luck')"), tmp_path / "executed")
    assert "no such luck" in (tmp_path / "executed" / "one.ipynb").read_text()


def test_a_missing_notebook_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main(["notebooks/none.ipynb"]) == 2
    assert "none.ipynb" in capsys.readouterr().err
