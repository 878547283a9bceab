"""Answers are kept as they come, found again, and damaged ones are passed over."""

from __future__ import annotations

import threading
from pathlib import Path

import pyarrow as pa
import pytest

from i2e_pipeline.engine import kept
from i2e_pipeline.verify import answers
from i2e_pipeline.verify.answers import ANSWERS, Answers, as_kept


def one(n: int) -> tuple[bytes, bytes, str]:
    return n.to_bytes(16, "big"), (n + 1).to_bytes(16, "big"), f"said {n}"


def test_what_is_kept_is_there_at_once_and_in_one_file_at_the_end(tmp_path: Path) -> None:
    folder = str(tmp_path / "unit")
    first = Answers(folder)
    assert first.known() == {}
    for n in range(5):
        first.keep([one(n)])
        assert Answers(folder).known() == first.known() == {one(m)[0]: one(m)[2] for m in range(n + 1)}
    first.keep([])
    first.settle()
    assert len(list(Path(folder).iterdir())) == 1
    first.keep([one(7), one(8)])
    first.settle()
    assert len(list(Path(folder).iterdir())) == 1
    assert len(Answers(folder).known()) == 7


def test_a_task_of_many_answers_leaves_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "_FILES", 4)
    keeping = Answers(str(tmp_path / "unit"))
    for n in range(30):
        keeping.keep([one(n)])
        assert len(list((tmp_path / "unit").iterdir())) <= 4
    assert len(Answers(str(tmp_path / "unit")).known()) == 30


def test_tasks_that_keep_and_read_at_a_time_miss_nothing_that_was_there(tmp_path: Path) -> None:
    """Catches: a file that is gone since it was listed counts as damaged, and its questions are asked again."""
    folder = str(tmp_path / "unit")
    Answers(folder).keep([one(n) for n in range(50)])
    over = threading.Event()

    def write(start: int) -> None:
        for n in range(start, start + 400, 8):
            task = Answers(folder)
            for m in range(n, n + 8):
                task.keep([one(m)])
            task.settle()
        over.set()

    writers = [threading.Thread(target=write, args=(1000 * k,)) for k in (1, 2)]
    for writer in writers:
        writer.start()
    while not over.is_set():
        reading = Answers(folder)
        assert len(reading.known()) >= 50
        assert reading.broken == 0
    for writer in writers:
        writer.join()
    assert len(Answers(folder).known()) == 850


def test_damaged_and_strange_files_are_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "unit"
    paths = []
    for n in range(3):
        paths.append(
            Path(
                kept.write(str(folder), pa.table({"key": [one(n)[0]], "pair_id": [one(n)[1]], "said": ["x"]}, ANSWERS))
            )
        )
    paths[0].write_bytes(paths[0].read_bytes().replace(b"PAR1", b"PAR2"))
    paths[1].rename(folder / f"{'0' * 32}.parquet")
    kept.write(str(folder), pa.table({"key": [1]}))
    (folder / ".unfinished.parquet").write_bytes(b"")
    found = Answers(str(folder))
    assert found.known() == {one(2)[0]: "x"}
    assert found.broken == 3


def test_a_unit_that_took_anothers_place_finds_its_answers(tmp_path: Path) -> None:
    Answers(str(tmp_path / "old")).keep([one(1)])
    new = Answers(str(tmp_path / "new"), [str(tmp_path / "old")])
    assert list(new.known()) == [one(1)[0]]
    new.keep([one(2)])
    assert list(Answers(str(tmp_path / "new")).known()) == [one(2)[0]]


def test_purging_takes_the_rows_of_pairs_and_files_that_nobody_can_read(tmp_path: Path) -> None:
    root = str(tmp_path)
    for unit in ("a", "b"):
        Answers(kept.folder(root, "verify", unit)).keep([one(n) for n in range(4)])
    broken = Path(kept.folder(root, "verify", "a")) / f"{'1' * 32}.parquet"
    broken.write_bytes(b"said 2")
    gone = pa.array([one(2)[1]], pa.binary(16))
    assert kept.purge(root, ["a", "none"], lambda rows: pa.compute.is_in(rows["pair_id"].combine_chunks(), gone)) == 1
    assert sorted(Answers(kept.folder(root, "verify", "a")).known().values()) == ["said 0", "said 1", "said 3"]
    assert not broken.exists()
    assert len(Answers(kept.folder(root, "verify", "b")).known()) == 4
    kept.forget(root, "a")
    assert kept.stages(root) == ["verify"]
    assert [p.name for p in (tmp_path / "_kept" / "verify").iterdir()] == ["b"]
    kept.forget_stage(root, "verify")
    assert kept.stages(root) == []
    assert kept.read([kept.folder(root, "verify", "b")], ANSWERS)[0].num_rows == 0


def test_what_is_no_text_is_kept_as_text() -> None:
    assert as_kept("a\0b\ud800" + "x" * 5000) == ("a b?" + "x" * 5000)[:2000]
