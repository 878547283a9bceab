from __future__ import annotations

import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")

import i2e_pipeline  # noqa: E402
from i2e_pipeline.report.notebooks import ROOT, execute, main, page  # noqa: E402
from tests.chain import settings  # noqa: E402
from tests.report.conftest import Output, image  # noqa: E402
from tests.test_stored_output import STORED  # noqa: E402

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def notebook(folder: Path, source: str) -> Path:
    path = folder / "one.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), path)
    return path


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_notebooks_are_kept_executed(path: Path) -> None:
    """Catches: one that was changed and not run again, one that was run piece by piece, and what names a machine."""
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    outputs = [o for c in cells for o in c.outputs]
    assert {o.output_type for o in outputs} <= {"display_data", "execute_result", "stream"}
    assert not [o.text for o in outputs if o.get("name") == "stderr"]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 4
    assert not re.findall(r"(?:/home|/root|/tmp|/work|/Users|file:/)[/\w]*", path.read_text(encoding="utf-8"))
    assert path.stat().st_size < 300_000


def ran(notebook: str, folder: Path, root: Path = ROOT) -> list[Any]:
    """Outputs of all cells."""
    (path,) = (p for p in NOTEBOOKS if p.name.startswith(notebook))
    copy = execute(path, folder / "executed", root)
    return [o for c in nbformat.read(copy, as_version=4).cells for o in c.get("outputs", [])]


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
    outputs = ran("01", tmp_path)
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 4
    assert "0.900" in "".join(o.get("text", "") for o in outputs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("notebook", "said"), [("02", "labelled pairs"), ("03", "calibration error"), ("04", "names,")]
)
def test_the_others_run_on_an_output_of_an_earlier_version(
    notebook: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a notebook that works on the sample alone; here is no coarse type, and few pairs of known truth."""
    with tarfile.open(STORED) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.setenv("I2E_OUTPUT", "config.yaml")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    outputs = ran(notebook, tmp_path, tmp_path)
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 4
    assert said in "".join(o.get("text", "") for o in outputs)


@pytest.mark.slow
def test_the_cells_work_with_a_session(whole: Path, world: Path, spark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a cell that takes an Arrow table for granted. The session is one that a server put into `spark`."""
    import matplotlib.pyplot as plt

    plt.switch_backend("Agg")
    config = settings(world, whole, "run.waves_in_flight=1", "run.wave_units=1")
    opened = i2e_pipeline.open_output
    sessions = []

    def open_output(where: str, spark: Any) -> Any:
        sessions.append(spark)
        return opened(config, spark=spark)

    monkeypatch.setattr(i2e_pipeline, "open_output", open_output)
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    monkeypatch.setattr(plt, "rcParams", plt.rcParams.copy())
    for path in NOTEBOOKS:
        names: dict[str, Any] = {"spark": spark}
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                exec(compile(cell.source, path.name, "exec"), names)
    assert sessions == [spark] * len(NOTEBOOKS)


def test_the_page_of_a_notebook_fetches_nothing(tmp_path: Path) -> None:
    pytest.importorskip("nbconvert")
    made = page(notebook(tmp_path, "1 + 1")).read_text(encoding="utf-8")
    assert "1 + 1" in re.sub("<[^>]*>", "", made)
    assert not re.findall(r"""(?:src|href)\s*=\s*["']https?:""", made)
    assert not re.findall(r"""(?:import|from|url\()\s*["']?https?:""", made)


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
