"""What the input says of its images is read file by file, whatever columns each file has."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from i2e_pipeline.core.config import PairsConfig
from i2e_pipeline.inputs.shard import shard_of
from i2e_pipeline.report.quality import sentences, truth_rows

PAIRS = PairsConfig()


def read(*paths: Path, share: tuple[float, float] = (0.0, 1.0)) -> list[dict]:
    """Rows of all files, each a shard of its own."""
    table = pa.RecordBatch.from_pylist(
        [
            {
                "shard": number, "path": str(path), "format": "parquet", "index": None,
                "digest": number.to_bytes(16, "little"), "share_from": share[0], "share_to": share[1],
            }
            for number, path in enumerate(paths)
        ]
    )  # fmt: skip
    columns = (PAIRS.truth_column, PAIRS.mentioned_column, PAIRS.wider_column, ("hand",))
    settings = shard_of("", "parquet", None, PAIRS)
    return [row for batch in truth_rows(iter([table]), settings, *columns) for row in batch.to_pylist()]


def test_several_inputs_each_with_columns_of_its_own(tmp_path: Path) -> None:
    """Catches: a file without mentioned entities, or without wider names, whose truth is not read; ids as numbers."""
    pq.write_table(pa.table({"truth_qid": ["Q1", None, "none", "odd"], "hand": ["a", "a", None, "b"]}), tmp_path / "a")
    pq.write_table(pa.table({"truth_qid": [7, None], "mentioned_qids": [["Q7", "Q8"], []]}), tmp_path / "b")
    pq.write_table(pa.table({"truth_qid": ["not Q5"], "mentioned_qids": ["Q5 Q6"], "wider": [["Dog"]]}), tmp_path / "c")
    pq.write_table(pa.table({"caption": ["says nothing of truth"]}), tmp_path / "d")
    rows = read(*(tmp_path / name for name in "abcd"))
    assert [(r["shard"], r["truth"], r["nothing"], r["refuted"], r["mentioned"], r["wider"]) for r in rows] == [
        (0, 1, False, None, None, None),
        (0, None, True, None, None, None),
        (0, None, False, None, None, None),
        (1, 7, False, None, [7, 8], None),
        (2, None, False, [5], [5, 6], ["dog"]),
    ]
    assert [r["slices"] for r in rows[:3]] == [["all", "hand: a"], ["all"], ["all", "hand: b"]]
    assert [r["unread"] for r in rows] == [None, None, f"{tmp_path}/a, row 3: 'odd'", None, None]


def test_rows_that_the_sample_leaves_out_say_nothing(tmp_path: Path) -> None:
    pq.write_table(pa.table({"truth_qid": ["Q1", "odd"] * 500}), tmp_path / "a")
    taken = read(tmp_path / "a", share=(0.0, 0.1))
    assert 50 < len(taken) < 150
    assert len({r["pair_id"] for r in taken} & {r["pair_id"] for r in read(tmp_path / "a")}) == len(taken)


def test_real_photos_of_both_kinds(real_data: Path) -> None:
    rows = read(real_data / "pairs_open" / "00000.parquet", *sorted((real_data / "pairs").glob("0*.parquet")))
    kinds = Counter((r["shard"] == 0, r["nothing"], r["truth"] is not None, r["unread"]) for r in rows)
    assert kinds == {
        (True, True, False, None): 455, (True, False, True, None): 56, (False, False, True, None): 3484,
    }  # fmt: skip
    assert all(name == name.casefold() for r in rows[:511] for name in r["wider"])
    assert all(r["wider"] is None for r in rows[511:])


def test_figures_of_older_runs_have_no_sentences() -> None:
    figure = {"stage": "label", "slice": "all", "pairs": 3, "precision": 0.9, "recall": None, "counted": "c"}
    assert sentences([figure, figure | {"stage": "published"}]) == []
    assert sentences([figure | {"calibration_error": None}]) == []
