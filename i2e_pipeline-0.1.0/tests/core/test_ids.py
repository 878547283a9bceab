from __future__ import annotations

import numpy as np

from i2e_pipeline.core.ids import content_id, row_ids

FILE_A, FILE_B = content_id(b"a"), content_id(b"b")


def test_rows_of_a_file_never_share_an_id() -> None:
    ids = row_ids(FILE_A, np.arange(200_000)).to_pylist()
    assert len(set(ids)) == 200_000


def test_an_id_depends_on_file_and_row_alone() -> None:
    assert row_ids(FILE_A, np.arange(5, 8)).to_pylist() == row_ids(FILE_A, np.arange(10)).to_pylist()[5:8]
    assert not set(row_ids(FILE_A, np.arange(100)).to_pylist()) & set(row_ids(FILE_B, np.arange(100)).to_pylist())


def test_ids_are_pinned() -> None:
    """Catches: another hash or byte order. Datasets that were published would no longer match new ones."""
    assert content_id(b"I2E").hex() == "1ab95bd8ba57a68a6d83354a104ead03"
    assert row_ids(FILE_A, np.array([0, 1])).to_pylist()[1].hex() == "c2c6557e8e65152909c9075d3937909a"
