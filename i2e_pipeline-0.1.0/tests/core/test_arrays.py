from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from i2e_pipeline.core import arrays
from i2e_pipeline.core.arrays import Arrays, ArraysError


def write(folder: Path, rows: int = 3, format: int = 1) -> None:
    with arrays.new(folder, "numbers") as store:
        store.save("ids", np.arange(rows))
        filled = store.create("table", (rows, 2), np.float32)
        filled[:] = 7
        stream = store.stream("parts")
        for row in range(rows):
            stream.write(np.full(4, row, dtype="<u4").tobytes())
        store.header = {"format": format, "rows": rows}


@pytest.mark.parametrize("rows", [0, 3])
def test_what_is_written_is_read_as_maps(tmp_path: Path, rows: int) -> None:
    """Catches: an array of no rows, which cannot be mapped."""
    write(tmp_path / "store", rows)
    store = Arrays(tmp_path / "store", "numbers", format=1)
    assert store.header == {"format": 1, "rows": rows}
    assert store["ids"].tolist() == list(range(rows))
    assert store["table"].tolist() == [[7, 7]] * rows
    assert store.numbers("parts", "<u4", width=4).tolist() == [[row] * 4 for row in range(rows)]
    if rows:
        assert all(isinstance(a, np.memmap) for a in (store["ids"], store["table"], store.numbers("parts", "<u4")))


def test_a_writer_that_fails_leaves_the_old_store(tmp_path: Path) -> None:
    write(tmp_path / "store", 2)
    with pytest.raises(KeyboardInterrupt), arrays.new(tmp_path / "store", "numbers") as store:  # noqa: PT012
        store.save("ids", np.arange(9))
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["store"]
    assert Arrays(tmp_path / "store", "numbers", 1).header["rows"] == 2


def test_a_writer_without_a_format_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="said no format"), arrays.new(tmp_path / "store", "numbers"):
        pass
    assert not list(tmp_path.iterdir())


def test_other_formats_and_other_folders_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "store", format=2)
    with pytest.raises(ArraysError, match="store holds a numbers of format 2, not 1: build it again"):
        Arrays(tmp_path / "store", "numbers", 1)
    with pytest.raises(ArraysError, match=r"holds no numbers: numbers\.json is not there"):
        Arrays(tmp_path, "numbers", 1)
    (tmp_path / "numbers.json").write_text('{"rows"')
    with pytest.raises(ArraysError, match="is no header of a numbers"):
        Arrays(tmp_path, "numbers", 1)
