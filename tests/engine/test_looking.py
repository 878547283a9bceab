"""What Spark's workers find of input files is what the driver finds."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from i2e_pipeline.core.config import PairsConfig
from i2e_pipeline.engine import looking
from i2e_pipeline.engine.units import InputError, Units
from i2e_pipeline.inputs import formats
from tests.inputs.forms import FORMS, pairs_of


def planned(output: Path, pairs: PairsConfig, looks: Any) -> tuple[Any, Any]:
    """The units, and the rows of their files that the index has."""
    registry = Units(str(output))
    units = registry.plan(pairs, looks=looks)
    assert registry.known() == units
    shards = [registry.shard(file, pairs) for unit in units for file in unit.files]
    return units, [[b.to_pylist() for _, b in formats.columns(shard, ["caption"])] for shard in shards]


def test_workers_plan_as_the_driver_does(
    world: Path, tmp_path: Path, spark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = pairs_of(world / "pairs" / "00000.parquet")
    for n, name in enumerate(["img2dataset's Parquet", "img2dataset's tars", "img2dataset's folders"]):
        folder = tmp_path / "in" / str(n)
        folder.mkdir(parents=True)
        FORMS[name](some[n::3], folder)
    pairs = PairsConfig(path=[f"{tmp_path}/in/{n}" for n in range(3)], keep_columns=["similarity", "license"])
    by_driver = planned(tmp_path / "driver", pairs, looking.by_threads)

    def never() -> Any:
        pytest.fail("Spark was started for three files")

    assert planned(tmp_path / "few", pairs, looking.by_workers(never)) == by_driver
    monkeypatch.setattr(looking, "MANY_FILES", 2)
    assert planned(tmp_path / "workers", pairs, looking.by_workers(lambda: spark)) == by_driver

    # What a worker finds wrong is said as the driver says it.
    tar = tmp_path / "in" / "1" / "00000.tar"
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "cut.tar").write_bytes(tar.read_bytes()[:2000])
    for n in range(3):
        shutil.copy(tar, tmp_path / "cut" / f"{n}.tar")
    said = []
    for looks in (looking.by_threads, looking.by_workers(lambda: spark)):
        with pytest.raises(InputError, match=r"cut\.tar is cut off") as caught:
            Units(str(tmp_path / "out")).plan(PairsConfig(path=f"{tmp_path}/cut"), looks=looks)
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_tars_in_a_store_are_weighed_by_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at one reads all of it; a look at Parquet, or at a tar on a disk, does not."""
    from i2e_pipeline.core.files import FileInfo
    from i2e_pipeline.inputs.shard import Source

    def source(path: str, form: str) -> Source:
        return Source(FileInfo(path, looking.MANY_BYTES, 0), form)

    class Started(Exception):
        pass

    def start() -> Any:
        raise Started

    looks = looking.by_workers(start)
    for light in (source("s3://b/a.parquet", "parquet"), source("/data/a.tar", "webdataset")):
        assert looks(lambda s, images: s.path, [light], [False]) == [light.path]
    with pytest.raises(Started):
        looks(lambda s, images: s.path, [source("s3://b/a.tar", "webdataset")], [False])
