"""Exports from a store, and into one: the bytes of an export on a disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyarrow import fs as pafs

from i2e_pipeline.commands.export import FORMS
from tests.export.odd_dataset import small_shards, tree, write_odd
from tests.marks import but_one
from tests.stores.conftest import SECRET, Store, on_the_store, run

pytestmark = [pytest.mark.s3, pytest.mark.slow]


@pytest.mark.parametrize("form", but_one("webdataset", sorted(FORMS)))
def test_an_export_from_a_store_into_a_store_is_that_of_a_disk(
    store: Store, world: Path, tmp_path: Path, form: str
) -> None:
    """And goes on where something is missing there."""
    dataset = write_odd(tmp_path / "i2e")
    pafs.copy_files(dataset, f"{store.bucket}/odd-{form}/i2e", destination_filesystem=store.filesystem)
    config = on_the_store(store, world, f"odd-{form}")
    to = f"s3://{store.bucket}/exported-{form}"
    command = ("export", "--to", to, "--format", form, *(() if form == "parquet" else ("--shard-mb", "1")))
    done = run(config, tmp_path, *command)
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout + done.stderr
    wanted = tree(small_shards(dataset, tmp_path / "here", form))
    inside = f"exported-{form}/i2e"
    assert tree(store.fetched(inside, tmp_path / "first")) == wanted
    lost = next(name for name in wanted if name.startswith(("images/", "train/", "data/")))
    store.filesystem.delete_file(f"{store.bucket}/{inside}/{lost}")
    done = run(config, tmp_path, *command)
    assert done.returncode == 0, done.stderr
    assert tree(store.fetched(inside, tmp_path / "again")) == wanted
