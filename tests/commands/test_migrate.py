"""A dataset of format 1 alone becomes one of today's."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from i2e_pipeline.commands import migrate as migrating
from i2e_pipeline.commands.migrate import MigrateError, migrate
from i2e_pipeline.core import files
from i2e_pipeline.core.config import PublishConfig, TrainConfig
from i2e_pipeline.core.schemas import I2E_ENTITIES, IMAGES
from i2e_pipeline.dataset.published import NotPublished, manifest_of, open_published
from i2e_pipeline.train.samples import Samples
from tests.test_stored_output import STORED
from tests.train.small_dataset import image_row, trained, write_dataset

ROWS = [image_row(n) for n in range(40)]
PUBLISH = PublishConfig()


@pytest.fixture
def older(tmp_path: Path) -> str:
    rows = [*ROWS[:-1], image_row(39, alt_text="write to someone@example.org")]
    return write_dataset(tmp_path / "older", rows, format_version=1)


def images(folder: str) -> dict[str, dict[str, Any]]:
    rows = ds.dataset(f"{folder}/images", format="parquet").to_table().to_pylist()
    return {row["image_id"] if isinstance(row["image_id"], str) else row["image_id"].hex(): row for row in rows}


def test_rows_stay_and_get_what_is_known(older: str, tmp_path: Path) -> None:
    """As a training of the older dataset drew them, so they are divided now."""
    made = migrate(older, str(tmp_path / "new"), PUBLISH)
    assert made.manifest["format_version"] == 2
    before, now = images(older), images(str(tmp_path / "new"))
    assert now.keys() == before.keys()
    for image, row in before.items():
        told = now[image]
        assert told["image"] == row["image"]
        assert [{k: x[k] for k in ("entity_id", "class_index", "score")} for x in told["labels"]] == row["labels"]
        assert all(x["clip_score"] is x["mention"] is None for x in told["labels"])
        assert (told["key"], told["pair_id"], told["perceptual_hash"]) == (None, None, None)
    masked = {row["alt_text"] for row in now.values()} - {row["alt_text"] for row in before.values()}
    assert masked == {"write to [mail]"}
    opened = open_published(str(tmp_path / "new"))
    assert opened.entities.schema == I2E_ENTITIES
    assert opened.entities.column("description").equals(open_published(older).entities.column("description"))
    (schema,) = {pq.read_schema(tmp_path / "new" / f.path) for f in opened.files}
    assert schema.names == IMAGES.names
    assert [f.row_group_rows for f in opened.files] == [f.row_group_rows for f in open_published(older).files]
    old, new = (Samples.open(open_published(f), TrainConfig()) for f in (older, str(tmp_path / "new")))
    assert (sorted(trained(old).image_ids()), old.classes) == (sorted(trained(new).image_ids()), new.classes)


def test_a_dataset_that_an_earlier_version_published(tmp_path: Path) -> None:
    with tarfile.open(STORED) as archive:
        archive.extractall(tmp_path, filter="data")
    made = migrate(str(tmp_path / "out" / "i2e"), str(tmp_path / "new"), PUBLISH)
    assert (made.rows, len(made.entities)) == (25, 24)
    told = (tmp_path / "new" / "README.md").read_text()
    assert "25 images, 25 labels" in told
    assert "| score | pairs |" in told
    statistics = ds.dataset(tmp_path / "new" / "statistics" / "entities").to_table()
    old = ds.dataset(tmp_path / "out" / "i2e" / "statistics" / "entities").to_table()
    assert statistics.column("entity_id").equals(old.column("entity_id"))
    assert pa.types.is_boolean(statistics.schema.field("retired").type)


def test_one_that_was_cut_off_begins_anew(older: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to = str(tmp_path / "new")
    with monkeypatch.context() as patched:
        patched.setattr(migrating, "_copy_statistics", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            migrate(older, to, PUBLISH)
    with pytest.raises(NotPublished):
        manifest_of(to)
    files.write_bytes(f"{to}/images/unit=u-0/part-of-a-kill.parquet", b"half")
    assert migrate(older, to, PUBLISH).rows == 40
    assert not list((tmp_path / "new").rglob("_*"))
    with pytest.raises(MigrateError, match="holds something already"):
        migrate(older, to, PUBLISH)
    with pytest.raises(MigrateError, match="is of format 2, today's"):
        migrate(to, str(tmp_path / "again"), PUBLISH)
