from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from i2e_pipeline.commands.clean import clean
from i2e_pipeline.engine.pipeline import Pipeline, exclusive
from i2e_pipeline.engine.stage import StageError
from tests.chain import content as dataset
from tests.chain import run, settings
from tests.engine.toys import Small, config, content, toys, worked, write_shard

BOTH = pytest.mark.parametrize("storage", ["parquet", pytest.param("delta", marks=pytest.mark.delta)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for n in range(3):
        write_shard(tmp_path / "in" / f"{n}.parquet", *range(10 * n, 10 * n + 10))
    return tmp_path


@BOTH
def test_what_no_record_names_goes_and_what_counts_stays(folder: Path, spark: Any, storage: str) -> None:
    with_small = toys(config(folder, storage=storage, stages=["small"], small={"limit": 15}), spark, Small())
    with_small.run()
    pipeline = toys(config(folder, storage=storage), spark)
    pipeline.run()
    whole = content(pipeline)
    (folder / "out" / "_staging" / "read-dead" / "numbers").mkdir(parents=True)
    (folder / "out" / "_staging" / "read-dead" / "numbers" / "part-0.parquet").write_bytes(b"x" * 1000)
    unit = next(iter(pipeline.tables.commits("read")))
    orphan = folder / "out" / "numbers" / f"unit={unit}" / "part-99999-1.parquet"
    orphan.write_bytes(b"x" * 50)

    asked = clean(pipeline, dry_run=True)
    assert orphan.exists()
    assert {f.kind for f in asked} == {"staging", "orphans" if storage == "parquet" else "Delta log"}
    assert sum(f.bytes for f in asked if f.kind == "staging") == 1000

    assert clean(pipeline) == asked
    assert not orphan.exists()
    assert not (folder / "out" / "_staging").exists()
    assert clean(pipeline) == []
    assert content(pipeline) == whole
    assert worked(pipeline.run()[1]) == {"read": 0, "total": 0}

    removed = clean(pipeline, removed_stages=True)
    assert {f.kind for f in removed} >= {"removed"}
    assert pipeline.tables.committed_stages() == ["read", "total"]
    # It comes back as one that never was.
    assert worked(toys(with_small.config, spark, Small()).run()[1]) == {"read": 0, "small": 3, "total": 1}


def test_files_that_were_never_finished_go_when_their_writer_is_dead(folder: Path, spark: Any) -> None:
    """Catches: what a kill leaves beside the card or at the top of an output, which nobody looks at again."""
    pipeline = toys(config(folder), spark)
    pipeline.run()
    out = folder / "out"
    left = [out / f".i2e.{'a' * 32}.tmp", out / "i2e" / f".manifest.json.{'b' * 32}.tmp"]
    young = out / f"._seal.{'c' * 32}.tmp"
    for path in (*left, young):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 10)
    for path in left:
        os.utime(path, (0, 0))
    freed = clean(pipeline)
    assert {(f.kind, f.path, f.bytes) for f in freed} == {("staging", p.relative_to(out).as_posix(), 10) for p in left}
    assert [path.exists() for path in (*left, young)] == [False, False, True]


def test_records_become_one_file(folder: Path, spark: Any) -> None:
    pipeline = toys(config(folder, run={"wave_units": 1}), spark)
    pipeline.run()
    journals = folder / "out" / "_commits" / "read"
    assert len(list(journals.iterdir())) == 3
    before = pipeline.tables.commits("read")
    clean(pipeline)
    assert len(list(journals.iterdir())) == 1
    assert pipeline.tables.commits("read") == before


def test_an_output_that_is_being_written_is_left_alone(folder: Path, spark: Any) -> None:
    pipeline = toys(config(folder), spark)
    pipeline.run()
    other = Pipeline(pipeline.config, pipeline.stages, lambda: spark)
    with exclusive(pipeline.config.output):
        os.utime(folder / "out" / "_lock")
        lock = folder / "out" / "_lock"
        lock.write_text(lock.read_text().replace('"host": "', '"host": "not-'))
        with pytest.raises(StageError, match="is being written"):
            clean(other)


@pytest.mark.slow
def test_gazetteers_and_vectors_of_other_settings_go(world: Path, copied: Path, spark: Any) -> None:
    """Catches: every knowledge base that ever was, kept beside the one that counts."""
    from i2e_pipeline.stages import pipeline

    changed = settings(world, copied, "extract.min_link_probability=0.2", "score.text_template=a picture of {name}")
    before = len(list((copied / "kb" / "gazetteer").iterdir()))
    run(changed, spark, redo=("score",))
    assert len(list((copied / "kb" / "gazetteer").iterdir())) == before + 1
    made = dataset(copied)
    freed = clean(pipeline(changed, lambda: spark))
    assert {f.kind for f in freed} == {"laid out", "segments"}
    assert len(list((copied / "kb" / "gazetteer").iterdir())) == 1
    assert len(pipeline(changed).tables.commits("entity_vectors")) == 1
    assert not any(run(changed, spark).values())
    assert dataset(copied) == made
