"""README's example on a real S3 server: read there and written there, by pyarrow, Hadoop and delta-rs, as on a disk."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyarrow import fs as pafs

from i2e_pipeline.core import files
from tests import chain
from tests.chain import content
from tests.cluster.tables import tables
from tests.stores.conftest import SECRET, Store, on_the_store, run

pytestmark = [pytest.mark.s3, pytest.mark.slow]

README = Path(__file__).parents[2] / "README.md"
LAID_OUT = ("kb/context/", "kb/gazetteer/")
"""Made of the knowledge base, on a store's output in each machine's temporary folder."""


@pytest.mark.delta
@pytest.mark.parametrize("form", ["parquet", pytest.param("delta", marks=pytest.mark.long)])
def test_a_run_on_s3_makes_the_rows_of_one_on_a_disk(
    store: Store, world: Path, whole: Path, tmp_path: Path, form: str
) -> None:
    """Catches: a client or a worker that the options do not reach, jars that nobody brings, and secrets that are
    written."""
    config = on_the_store(store, world, form, f"storage.format={form}")
    done = run(config, tmp_path, "run")
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    looked = run(config, tmp_path, "verify", "--deep")
    assert looked.returncode == 0, looked.stdout + looked.stderr
    assert looked.stdout.splitlines()[-1] == "whole"
    here, there = tables(store.fetched(form, tmp_path / "fetched")), tables(whole)
    there = {name: rows for name, rows in there.items() if not name.startswith(LAID_OUT)}
    assert here.keys() == there.keys()
    assert [name for name in there if here[name] != there[name]] == []
    assert SECRET not in said
    written = [Path(f, name) for f, _, names in os.walk(tmp_path / "fetched") for name in names]
    assert [file for file in written if SECRET.encode() in file.read_bytes()] == []
    status = run(config, tmp_path, "status")
    assert status.returncode == 0, status.stderr
    image = min(content(whole)[0])
    why = run(config, tmp_path, "explain", image, "--json")
    assert why.returncode == 0, why.stderr
    told = json.loads(why.stdout)
    assert (told["image"]["image_id"], told["pairs"][0]["ended"], told["notes"]) == (image, "published", [])


@pytest.mark.long
@pytest.mark.parametrize("form", ["parquet", pytest.param("delta", marks=[pytest.mark.delta, pytest.mark.long])])
def test_an_output_that_was_copied_to_a_store_goes_on_there(
    store: Store,
    world: Path,
    whole: Path,
    tmp_path: Path,
    spark: Any,
    form: str,
) -> None:
    """Its files are told by name and size, its input by content."""
    here = tmp_path / "here"
    chain.run(chain.settings(world, here, f"storage.format={form}", shards="*[01]"), spark)
    name = f"moved-{form}"
    pafs.copy_files(str(here), f"{store.bucket}/{name}", destination_filesystem=store.filesystem)
    shutil.rmtree(here)
    config = on_the_store(store, world, name, f"storage.format={form}", "pairs.path=s3://bucket/laion/*[01].parquet")
    done = run(config, tmp_path, "run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing was to do" in done.stdout, done.stdout + done.stderr
    done = run(on_the_store(store, world, name, f"storage.format={form}"), tmp_path, "run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "find what the texts name" in done.stdout + done.stderr
    fetched = store.fetched(name, tmp_path / "fetched")
    manifest = files.read_json(str(fetched / "i2e" / "manifest.json"))
    assert (len(manifest["units"]), manifest["images"]) == (3, len(content(whole)[0]))


@pytest.mark.long
def test_a_knowledge_base_on_the_store_is_shared(store: Store, world: Path, whole: Path, tmp_path: Path) -> None:
    """Made by an output there, read by one on a disk that knows no dump."""
    path = f"knowledge_base.path=s3://{store.bucket}/bases"
    done = run(on_the_store(store, world, "first", path), tmp_path, "run", "--until", "surfaces")
    assert done.returncode == 0, done.stdout + done.stderr
    sources = [f"knowledge_base.{name}=null" for name in ("dump", "popularity", "anchors")]
    here = tmp_path / "here"
    config = on_the_store(store, world, "unused", path, *sources, f"output={here}")
    done = run(config, tmp_path, "run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert content(here) == content(whole)
    assert not (here / "kb").exists()
    why = run(config, tmp_path, "explain", min(content(here)[0]), "--json")
    assert (why.returncode, json.loads(why.stdout)["notes"]) == (0, []), why.stderr


def test_readme_names_the_paths_that_are_tested(store: Store, world: Path) -> None:
    """Catches: an example whose paths no test has run."""
    text = README.read_text(encoding="utf-8").partition("# mine.yaml\n")[2].partition("```")[0]
    example = yaml.safe_load(text)
    config = on_the_store(store, world, "i2e")
    assert example["output"] == config.output
    assert example["pairs"]["path"] == config.pairs.path[0]
    assert example["knowledge_base"]["dump"] == config.knowledge_base.dump
    assert example["knowledge_base"]["popularity"] == config.knowledge_base.popularity


@pytest.mark.long
def test_doctor_opens_the_output_with_each_client(store: Store, world: Path, tmp_path: Path) -> None:
    done = run(on_the_store(store, world, "asked", "storage.format=delta"), tmp_path, "doctor")
    assert f"s3://{store.bucket}/asked is written, read and deleted by pyarrow, Hadoop, delta-rs" in done.stdout
    left = store.filesystem.get_file_info(f"{store.bucket}/asked").type.name
    assert left in ("NotFound", "Directory")


def test_doctor_says_which_client_and_which_setting(store: Store, world: Path, tmp_path: Path) -> None:
    """Catches: a wrong endpoint that is told as a fault of Spark's."""
    config = on_the_store(store, world, "asked", "storage.options.s3.endpoint=http://127.0.0.1:9")
    done = run(config, tmp_path, "doctor")
    (line,) = [line for line in done.stdout.splitlines() if " store " in line]
    assert line.startswith("FAILED")
    assert f"output: s3://{store.bucket}/asked cannot be opened" in line
    assert "look at storage.options: s3.endpoint" in line
    assert SECRET not in done.stdout + done.stderr
