"""The same pairs, whatever the form they are kept in."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from i2e_pipeline.commands import run as running
from i2e_pipeline.commands.clean import clean
from i2e_pipeline.commands.repair import repair
from i2e_pipeline.commands.verify import verify
from i2e_pipeline.core.config import Config, PairsConfig
from i2e_pipeline.engine.units import Units, kept_columns
from i2e_pipeline.extract.stages import read_shards
from i2e_pipeline.inputs import formats, tables, where
from i2e_pipeline.inputs.columns import InputError
from i2e_pipeline.inputs.shard import ShardChanged
from i2e_pipeline.publish.images import Columns, rows_of_shards
from i2e_pipeline.stages import pipeline
from tests.chain import content, run, settings
from tests.inputs.forms import FORMS, KEPT, WITHOUT_URL, Pair, kept_of, pairs_of
from tests.marks import but_one


@pytest.fixture(scope="module")
def some(world: Path) -> list[Pair]:
    return pairs_of(world / "pairs" / "00000.parquet")


def rows_of(registry: Units, pairs: PairsConfig) -> list[tuple[Any, ...]]:
    """Key, url, text and bytes of each row, as the stages read them."""
    found = []
    for unit in registry.plan(pairs):
        for file in unit.files:
            shard = registry.shard(file, pairs)
            names = [c for c in (pairs.key_column, pairs.url_column, pairs.text_column) if c]
            batches = [formats.texts(shard, batch)[0] for _, batch in formats.columns(shard, names)]
            rows = [row for batch in batches for row in batch.to_pylist()]
            with formats.images(shard) as images:
                stored = list(images.read(range(images.rows)))
            assert len(rows) == len(stored) == file.rows
            # A task that has some of the rows reads the same.
            some = list(range(1, file.rows, 3))
            again = [row for batch in formats.rows(shard, some, names) for row in batch.to_pylist()]
            assert [formats.texts(shard, b)[0].to_pylist() for b in formats.rows(shard, [0], names)] == [[rows[0]]]
            assert len(again) == len(some)
            with formats.images(shard) as images:
                assert list(images.read(some)) == [stored[n] for n in some]
                assert list(images.read([0])) == stored[:1]
            for row, image in zip(rows, stored, strict=True):
                assert isinstance(image, bytes)
                url = row[pairs.url_column] if pairs.url_column else None
                found.append((url, row[pairs.text_column], hashlib.sha256(image).hexdigest()))
    return sorted(found, key=repr)


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_rows(name: str, some: list[Pair], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pairs = PairsConfig(**FORMS[name](some, tmp_path / "in"))
    urls = name not in WITHOUT_URL
    wanted = [(p.url if urls else None, p.caption, hashlib.sha256(p.image).hexdigest()) for p in some]
    registry = Units(str(tmp_path / "out"))
    assert rows_of(registry, pairs) == sorted(wanted, key=repr)
    # Another plan finds nothing new.
    assert registry.plan(pairs) == registry.known()
    assert len(registry.known()) == (2 if name == "tar without json" else 1)


@pytest.mark.parametrize("name", sorted(FORMS.keys() - WITHOUT_URL))
def test_every_form_keeps_the_same_columns(name: str, some: list[Pair], tmp_path: Path) -> None:
    """Catches: a similarity that is a number in Parquet and a text in a tar."""
    (tmp_path / "in").mkdir()
    chosen = FORMS[name](some, tmp_path / "in")
    registry = Units(str(tmp_path / "out"))
    registry.plan(PairsConfig(**chosen))  # what is kept is asked for later
    pairs = PairsConfig(**chosen, keep_columns=list(KEPT))
    units = registry.plan(pairs)
    columns = kept_columns(units, pairs)
    assert columns == pa.schema(list(KEPT.items()))
    assert registry.known() == units  # and remembered
    found = []
    for file in (file for unit in units for file in unit.files):
        lost: Counter[str] = Counter()
        shard = registry.shard(file, pairs)
        of_shard = Columns(pairs.url_column, pairs.text_column, columns)
        rows, _ = rows_of_shards({file.shard: shard}, of_shard, lost, file.shard, range(file.rows))
        assert not +lost
        found += rows.to_pylist()
    wanted = [{"url": p.url, "alt_text": p.caption, **kept_of(p)} for p in some]
    assert sorted(found, key=repr) == sorted(wanted, key=repr)


@pytest.mark.parametrize("form", ["Parquet", "CSV", "JSON lines", "tar"])
def test_an_empty_url_or_key_is_null_in_every_form(form: str, some: list[Pair], tmp_path: Path) -> None:
    """Catches: the text "" in the pairs and in the dataset, where a CSV cannot say null."""
    (tmp_path / "in").mkdir()
    name = {
        "Parquet": "img2dataset's Parquet", "CSV": "CSV", "JSON lines": "JSON lines", "tar": "img2dataset's tars"
    }[form]  # fmt: skip
    empty = [replace(pair, url=("", " ", pair.url)[n]) for n, pair in enumerate(some[:3])]
    pairs = PairsConfig(**FORMS[name](empty, tmp_path / "in"))
    registry = Units(str(tmp_path / "out"))
    (file,) = (file for unit in registry.plan(pairs) for file in unit.files)
    shard = registry.shard(file, pairs)
    row = {
        "shard": 0, "path": shard.path, "format": shard.format, "index": shard.index,
        "digest": bytes(16), "share_from": 0.0, "share_to": 1.0,
    }  # fmt: skip
    # The url twice, since not every form can have a sample without a key.
    columns = pairs.url_column, pairs.url_column, pairs.text_column
    batches = iter([pa.RecordBatch.from_pylist([row])])
    read = [r for b in read_shards(batches, shard, *columns, mended=Counter()) for r in b.to_pylist()]
    published, _ = rows_of_shards(
        {0: shard}, Columns(pairs.url_column, pairs.text_column, pa.schema([])), Counter(), 0, range(3)
    )
    wanted = Counter([None, None, some[2].url])
    assert Counter(r["url"] for r in read) == Counter(r["key"] for r in read) == wanted
    assert Counter(published.column("url").to_pylist()) == wanted
    assert {r["caption"] for r in read} == {pair.caption for pair in some[:3]}


def test_columns_that_folders_name_are_columns_of_the_rows(some: list[Pair], tmp_path: Path) -> None:
    """Catches: a table partitioned by language that has none."""
    from deltalake import write_deltalake

    table = pa.table(
        {
            "key": [p.key for p in some],
            "url": [p.url for p in some],
            "caption": [p.caption for p in some],
            "jpg": [p.image for p in some],
            "language": [("en", "ü /=", None)[n % 3] for n in range(len(some))],
            "year": [2000 + n % 2 for n in range(len(some))],
        }
    )
    ds.write_dataset(
        table, tmp_path / "hive", format="parquet", partitioning=["language", "year"], partitioning_flavor="hive"
    )
    write_deltalake(tmp_path / "delta", table, partition_by=["language", "year"])
    wanted = pa.schema([("language", pa.string()), ("year", pa.int64())])
    for folder in ("hive", "delta"):
        pairs = PairsConfig(path=str(tmp_path / folder), keep_columns=["language", "year"])
        registry = Units(str(tmp_path / f"out of {folder}"))
        units = registry.plan(pairs)
        columns = kept_columns(units, pairs)
        assert columns == wanted
        found = []
        for file in (file for unit in units for file in unit.files):
            of_shard = Columns(pairs.url_column, pairs.text_column, columns)
            shards = {file.shard: registry.shard(file, pairs)}
            rows, _ = rows_of_shards(shards, of_shard, Counter(), file.shard, range(file.rows))
            if file.rows:
                with pytest.raises(
                    ShardChanged, match=r"row 0: its image is another one than was scored: put that back"
                ):
                    rows_of_shards(shards, of_shard, Counter(), file.shard, [0], [bytes(16)])
            found += rows.select(["url", "language", "year"]).to_pylist()
            taken = [
                where.mask("language == 'en' and year >= 2001", b)
                for _, b in formats.columns(shards[file.shard], ["language", "year"])
            ]
            assert sum(t.true_count for t in taken) == sum(
                r["language"] == "en" and r["year"] == 2001 for r in found[-file.rows :]
            )
        assert sorted(found, key=repr) == sorted(table.select(["url", "language", "year"]).to_pylist(), key=repr)


@pytest.fixture
def with_knowledge(whole: Path, tmp_path: Path) -> Path:
    """An output with a knowledge base, and no pairs."""
    output = tmp_path / "out"
    for part in ("kb", "_commits/knowledge_base", "_commits/surfaces", "_storage.json"):
        source = whole / part
        (shutil.copytree if source.is_dir() else shutil.copy)(source, output / part)  # type: ignore[operator]
    for stage in ("knowledge_base", "surfaces"):
        if (whole / "rejects" / f"stage={stage}").exists():
            shutil.copytree(whole / "rejects" / f"stage={stage}", output / "rejects" / f"stage={stage}")
    return output


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    but_one(
        "img2dataset's tars",
        ["img2dataset's tars", "Hugging Face's Parquet with paths alone", "CSV", "img2dataset's folders"],
    ),
)
def test_every_form_gives_the_same_dataset(
    name: str, world: Path, whole: Path, with_knowledge: Path, tmp_path: Path, spark: Any
) -> None:
    """Catches: a stage that knows how rows are stored."""
    shards = sorted((world / "pairs").glob("*.parquet"))
    everything = [pair for shard in shards for pair in pairs_of(shard)]
    (tmp_path / "in").mkdir()
    # In another order, and all in one shard: where a row stood must not matter.
    chosen = FORMS[name](everything[::-1], tmp_path / "in")
    overrides = [f"pairs.{key}={value}" for key, value in chosen.items()]
    overrides += [f"pairs.keep_columns=[{', '.join(KEPT)}]"]
    done = run(settings(world, with_knowledge, *overrides), spark)
    assert done["knowledge_base"] == 0
    images, entities = content(with_knowledge)
    wanted, wanted_entities = content(whole)
    assert images == wanted
    assert entities.keys() == wanted_entities.keys()
    table = ds.dataset(with_knowledge / "i2e" / "images", format="parquet").to_table()
    assert {name: table.schema.field(name).type for name in KEPT} == KEPT
    by_content = {(p.url, p.caption): kept_of(p) for p in everything}
    for row in table.to_pylist():
        assert {name: row[name] for name in KEPT} == by_content[row["url"], row["alt_text"]]
    _lost_indexes_are_made_again(settings(world, with_knowledge, *overrides), name, spark)
    if name == "CSV":
        address = min(images.values(), key=lambda image: image[2])[2]
        (tmp_path / "gone.txt").write_text(f"{address}\n")
        overrides.append(f"select.exclude={tmp_path / 'gone.txt'}")
        _an_index_of_before_the_purge_does_not_come_back(settings(world, with_knowledge, *overrides), address, spark)


def _an_index_of_before_the_purge_does_not_come_back(config: Config, address: str, spark: Any) -> None:
    """It repeats all rows of a CSV, and the CSV is not the run's own."""
    running.run(pipeline(config, lambda: spark))
    clean(pipeline(config, lambda: spark), purged=True)
    (index,) = (Path(config.output) / "units" / "index").glob("*.parquet")
    assert address not in repr(pq.read_table(index).to_pylist())
    index.unlink()
    assert not repair(pipeline(config, lambda: spark)).left.faults
    assert address not in repr(pq.read_table(index).to_pylist())


def _lost_indexes_are_made_again(config: Config, form: str, spark: Any) -> None:
    """From the input, at no other cost; and where that is gone, what was made of it stays."""
    output = Path(config.output)
    indexes = sorted((output / "units" / "index").glob("*.parquet"))
    tables = {p: p.stat().st_mtime_ns for p in output.rglob("unit=*/*.parquet")}
    for n, index in enumerate(indexes):
        rows = pq.read_table(index)
        if n % 2:
            index.unlink()
        else:
            index.write_bytes(index.read_bytes()[:-1] + b"x")
        (fault,) = verify(pipeline(config), deep=True).faults
        assert fault.path == f"units/index/{index.name}"
        assert fault.unit
        assert not repair(pipeline(config, lambda: spark)).left.faults
        assert pq.read_table(index).equals(rows)
    (paths,) = config.pairs.path
    if indexes and Path(paths).exists():
        indexes[0].unlink()
        Path(paths).rename(f"{paths} elsewhere")
        if "folders" in form:  # whose images the index alone knows
            with pytest.raises(InputError, match="i2e repair"):
                repair(pipeline(config, lambda: spark))
        else:
            left = repair(pipeline(config, lambda: spark)).left
            assert len(left.faults) == 1, left.faults
            (fault,) = left.faults
            assert fault.path == f"units/index/{indexes[0].name}"
        Path(f"{paths} elsewhere").rename(paths)
        assert not repair(pipeline(config, lambda: spark)).left.faults
    assert {p: p.stat().st_mtime_ns for p in output.rglob("unit=*/*.parquet")} == tables


@pytest.mark.parametrize("suffix", ["csv", "jsonl.gz"])
def test_a_task_does_not_read_a_table_from_its_beginning(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a table of millions of rows that each of a thousand tasks reads whole, and holds the names of."""
    count = 10_000
    rows = [{"n": str(n), "caption": f"row\n{n}", "jpg": f"{n % 10}.jpg", "tags": n} for n in range(count)]
    for n in range(10):
        (tmp_path / f"{n}.jpg").write_bytes(b"image %d" % n)
    path = tmp_path / f"t.{suffix}"
    if suffix == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["n", "caption", "jpg", "tags"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    pairs = PairsConfig(path=str(path), key_column="n", keep_columns=["tags"])
    registry = Units(str(tmp_path / "out"))
    (unit,) = registry.plan(pairs)
    shard = registry.shard(unit.files[0], pairs)
    assert kept_columns([unit], pairs) == pa.schema([("tags", pa.int64())])
    monkeypatch.setattr(tables, "_opened", lambda path: pytest.fail(f"{path} was read again"))
    some = [0, 4095, 4096, 9999]
    read = [row for batch in formats.rows(shard, some, ["n", "caption"]) for row in batch.to_pylist()]
    assert [formats.texts(shard, pa.RecordBatch.from_pylist(read))[0].to_pylist()] == [
        [{"n": str(n), "caption": f"row\n{n}"} for n in some]
    ]
    assert sum(batch.num_rows for _, batch in formats.columns(shard, ["caption", "no such column"])) == count
    with formats.images(shard) as images:
        assert images.rows == count
        asked = [3, 9998, 4096, 0, 17]
        assert list(images.read(asked)) == [b"image %d" % (n % 10) for n in asked]
        assert len(images._names) <= 4096  # type: ignore[attr-defined]
        with pytest.raises(ShardChanged, match=r"has 10000 rows, and row 10000 was asked for"):
            list(images.read([count]))
