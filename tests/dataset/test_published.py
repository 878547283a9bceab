"""What belongs to a published dataset, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from i2e_pipeline.core.config import StorageConfig
from i2e_pipeline.dataset import commits
from i2e_pipeline.dataset.published import DatasetError, NotPublished, open_published
from i2e_pipeline.engine.tables import Tables
from tests.train.small_dataset import entity_row, image_row, write_dataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "i2e", [image_row(i) for i in range(20)])
    return tmp_path / "i2e"


def test_files_rows_and_entities(folder: Path) -> None:
    published = open_published(str(folder))
    assert published.rows == 20
    assert [f.row_group_rows for f in published.files] == [(8, 2), (8, 2)]
    assert published.entities.column("entity_id").to_pylist() == [100, 101, 102, 103]
    with published.open(published.files[1]) as file:
        assert file.read(columns=["alt_text"]).column(0)[0].as_py() == "alt text 1"


def test_a_uri_is_read_as_a_path(folder: Path) -> None:
    assert open_published(folder.as_uri()).fingerprint == open_published(str(folder)).fingerprint


def test_files_of_units_that_the_manifest_does_not_name_do_not_belong(folder: Path) -> None:
    """Catches: a unit that a later run has begun and not finished."""
    before = open_published(str(folder))
    shutil.copytree(folder / "images" / "unit=u-000000000000", folder / "images" / "unit=u-begun")
    assert open_published(str(folder)).files == before.files


def test_the_fingerprint_follows_content_and_place_not_attempts(folder: Path, tmp_path: Path) -> None:
    fingerprint = open_published(str(folder)).fingerprint
    file = folder / "images" / "unit=u-000000000000" / "part-00000-0.parquet"
    file.rename(file.with_name("part-00000-77.parquet"))
    assert open_published(str(folder)).fingerprint == fingerprint
    others = [
        write_dataset(tmp_path / "more", [image_row(i) for i in range(21)]),
        write_dataset(tmp_path / "groups", [image_row(i) for i in range(20)], group=4),
        write_dataset(tmp_path / "other", [image_row(i) for i in range(20)], manifest={"dataset": "1" * 32}),
    ]
    assert len({fingerprint, *(open_published(o).fingerprint for o in others)}) == 4


def delta(folder: Path) -> None:
    """Makes a Delta table of the images, with a file that a later version of it dropped."""
    from deltalake import DeltaTable, write_deltalake

    table = folder / "images"
    units = sorted(p.name.removeprefix("unit=") for p in table.iterdir())
    parts = [pq.read_table(next((table / f"unit={u}").glob("*.parquet")), partitioning=None) for u in units]
    shutil.rmtree(table)
    for unit, rows in zip(units, parts, strict=True):
        rows = rows.append_column("unit", pa.array([unit] * len(rows)))
        write_deltalake(table, rows, partition_by=["unit"], mode="append")
        write_deltalake(table, rows, partition_by=["unit"], mode="append")
        doubled = next((table / f"unit={unit}").glob("*.parquet")).name
        action = {
            "remove": {
                "path": f"unit={unit}/{doubled}",
                "deletionTimestamp": 1,
                "dataChange": True,
                "extendedFileMetadata": False,
            }
        }
        version = DeltaTable(table).version() + 1
        (table / "_delta_log" / f"{version:020d}.json").write_text(json.dumps(action) + "\n")


def test_of_a_delta_table_only_the_files_of_its_log_belong(folder: Path) -> None:
    """Catches: rows read twice that an overwrite has replaced but no vacuum removed."""
    delta(folder)
    assert len(list(folder.glob("images/*/*.parquet"))) == 4
    published = open_published(str(folder))
    assert published.rows == 20
    assert len(published.files) == 2


def test_an_export_of_delta_is_plain_parquet(tmp_path: Path) -> None:
    rows = [image_row(i) for i in range(20)]
    assert open_published(write_dataset(tmp_path / "i2e", rows, manifest={"storage": "delta"})).rows == 20


def test_no_manifest_is_refused_in_the_same_words_by_all_who_ask(folder: Path) -> None:
    """Readers of the files (training, evaluation) and readers of the run's tables (report, export)."""
    (folder / "manifest.json").unlink()
    with pytest.raises(NotPublished, match=r"i2e has no manifest\.json.*`i2e run`") as by_files:
        open_published(str(folder))
    with pytest.raises(NotPublished) as by_tables:
        commits.published(Tables(str(folder.parent), StorageConfig()))
    assert str(by_files.value) == str(by_tables.value)


def test_a_manifest_of_something_else_is_refused(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"units": 3}')
    with pytest.raises(DatasetError, match="names no units: it is not the manifest of an I2E dataset"):
        open_published(str(folder))


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("funnel", {}),
        ("funnel", [{"stage": "pairs"}]),
        ("funnel", [{"stage": "pairs", "rows_in": 1, "rows_out": 1, "rejected": {"rare": "many"}}]),
        ("model", "a name"),
        ("labels_chosen_by", [0.5]),
    ],
)
def test_parts_of_a_manifest_that_are_none_are_refused(folder: Path, part: str, value: object) -> None:
    """Catches: a stranger's manifest that ends who looks into it with a traceback."""
    told = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**told, part: value}))
    with pytest.raises(DatasetError, match=f"'{part}' is not what a run writes there"):
        open_published(str(folder))


def test_a_lost_file_is_refused(folder: Path) -> None:
    next((folder / "images").glob("unit=u-000000000001/*")).unlink()
    with pytest.raises(DatasetError, match=r"not whole.*u-000000000001: 0 of 10"):
        open_published(str(folder))


def test_a_damaged_file_is_refused(folder: Path) -> None:
    file = next((folder / "images").glob("*/*.parquet"))
    file.write_bytes(b"no Parquet")
    with pytest.raises(DatasetError, match=rf"{file.name} is not a Parquet file"):
        open_published(str(folder))


def test_another_schema_is_refused(folder: Path) -> None:
    file = next((folder / "images").glob("*/*.parquet"))
    table = pq.read_table(file, partitioning=None)
    pq.write_table(table.drop_columns(["labels"]), file)
    with pytest.raises(DatasetError, match="column labels is missing"):
        open_published(str(folder))


def test_no_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no image"):
        open_published(write_dataset(tmp_path / "i2e", []))


def test_class_indices_with_a_gap_are_refused(tmp_path: Path) -> None:
    entities = [entity_row(0), entity_row(2)]
    with pytest.raises(DatasetError, match="class indices"):
        open_published(write_dataset(tmp_path / "i2e", [image_row(0)], entities=entities))


def test_nothing_of_spark_is_imported() -> None:
    script = (
        "import sys\nimport i2e_pipeline.dataset.published, i2e_pipeline.train.dataset, i2e_pipeline.train.teacher\n"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('pyspark', 'delta', 'py4j')]\nassert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
