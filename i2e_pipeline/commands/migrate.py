"""`i2e migrate`: a published dataset of an older format, copied as one of today's. Needs its folder alone, no Spark.

What the older format did not keep is null: `key`, `pair_id`, `perceptual_hash`, the labels' `clip_score` and `mention`,
and of entities what stands behind `mean_probability`. `split` is drawn, alt-text masked as the settings say; images,
labels, class indices, units and row groups stay what they are. Who still has the run's tables has `i2e run` make all of
it instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from i2e_pipeline.core import files
from i2e_pipeline.core.config import PublishConfig
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.ids import hex_of
from i2e_pipeline.core.schemas import BUCKETS, ENTITY_STATISTICS, FUNNEL, IMAGE_LABELS, IMAGES
from i2e_pipeline.core.version import __version__
from i2e_pipeline.dataset.published import FORMAT_VERSION, ImageFile, Published, open_published, part_files
from i2e_pipeline.publish.card import card
from i2e_pipeline.publish.croissant import croissant
from i2e_pipeline.publish.images import splits
from i2e_pipeline.publish.masking import mask

_MARK = "_migrating"
"""Lies in a folder until its dataset is whole."""
_STATISTICS = {"entities": ENTITY_STATISTICS, "buckets": BUCKETS, "funnel": FUNNEL}
_TOP = 20


class MigrateError(I2EError, RuntimeError):
    """A dataset that cannot be migrated, or not there; the message says the way out."""


def migrate(source: str, folder: str, settings: PublishConfig) -> Published:
    """Copy the dataset in `source` to `folder` in today's format, as plain Parquet.

    A migration that was cut off begins anew; its dataset has no manifest, and no command reads it. Memory holds some
    row groups. Raises MigrateError for a dataset of today's format, or a `folder` that holds something else;
    DatasetError where `source` holds no whole dataset.
    """
    dataset = open_published(source)
    version: int = dataset.manifest["format_version"]
    if version == FORMAT_VERSION:
        raise MigrateError(f"{source} is of format {version}, today's: nothing is to be done (`i2e export` copies one)")
    mark = files.join(folder, _MARK)
    if not files.exists(mark) and files.list_files(folder):
        raise MigrateError(f"{folder} holds something already: name a folder that is not there yet")
    files.remove(folder)
    files.write_bytes(mark, b"")
    columns = IMAGES
    for file in dataset.files:
        columns = _copy_images(dataset, file, files.join(folder, file.path), settings)
    files.write_table(files.join(folder, "entities", "unit=all", "part-00000.parquet"), dataset.entities)
    for name, schema in _STATISTICS.items():
        _copy_statistics(files.join(source, "statistics", name), files.join(folder, "statistics", name), schema)
    facts = _manifest(dataset, columns, version)
    files.write_bytes(files.join(folder, "README.md"), card(facts, _top(dataset), settings, columns).encode())
    files.write_json(files.join(folder, "croissant.json"), croissant(facts, settings, columns))
    files.write_json(files.join(folder, "manifest.json"), facts)
    files.remove(mark)
    return open_published(folder)


def _schema(stored: pa.Schema) -> pa.Schema:
    """Of today's images, with what else the file has. Nobody knows the pairs of older ones."""
    own = [field.with_nullable(True) if field.name == "pair_id" else field for field in IMAGES]
    return pa.schema([*own, *(field for field in stored if field.name not in IMAGES.names)])


def _copy_images(dataset: Published, file: ImageFile, target: str, settings: PublishConfig) -> pa.Schema:
    with dataset.open(file) as stored, files.fresh_stream(target) as stream:
        schema = _schema(stored.schema_arrow.remove_metadata())
        with pq.ParquetWriter(stream, schema, compression="zstd") as writer:
            for group in range(stored.num_row_groups):
                rows = stored.read_row_group(group)
                writer.write_table(_as_today(rows, schema, settings), row_group_size=max(1, rows.num_rows))
    return schema


def _as_today(rows: pa.Table, schema: pa.Schema, settings: PublishConfig) -> pa.Table:
    rows = rows.combine_chunks()
    ids = rows.column("image_id").combine_chunks()
    labels = rows.column("labels").combine_chunks()
    made = {
        "image_id": ids if pa.types.is_string(ids.type) else hex_of(ids),
        "labels": _labels(labels),
        "split": splits(ids, labels),
        "alt_text": mask(rows.column("alt_text").combine_chunks(), settings.mask),
    }
    columns = []
    for field in schema:
        if field.name in made:
            columns.append(made[field.name])
        elif field.name in rows.column_names:
            columns.append(rows.column(field.name).cast(field.type))
        else:
            columns.append(pa.nulls(rows.num_rows, field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _labels(labels: pa.ListArray) -> pa.ListArray:
    """With the fields that a label has today; those that it had not are null."""
    flat = pc.list_flatten(labels)
    held = {field.name for field in flat.type}
    wanted = list(IMAGE_LABELS.value_type)
    parts = [
        pc.struct_field(flat, f.name).cast(f.type) if f.name in held else pa.nulls(len(flat), f.type) for f in wanted
    ]
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum(pc.list_value_length(labels))])
    return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(parts, fields=wanted))


def _copy_statistics(source: str, target: str, schema: pa.Schema) -> None:
    """A table of statistics, as far as it is there; columns that it has not are null."""
    wanted = pa.schema([field.with_nullable(True) for field in schema])
    for path in part_files(source) if files.exists(source) else []:
        filesystem, inner = files.open_filesystem(files.join(source, path))
        with (
            filesystem.open_input_file(inner) as stored,
            files.fresh_stream(files.join(target, path)) as stream,
            pq.ParquetWriter(stream, wanted, compression="zstd") as writer,
        ):
            for batch in pq.ParquetFile(stored).iter_batches():
                columns = [
                    batch.column(f.name).cast(f.type) if f.name in batch.schema.names else pa.nulls(len(batch), f.type)
                    for f in wanted
                ]
                writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=wanted))


def _top(dataset: Published) -> list[dict[str, Any]]:
    """The entities with the most images, as the card shows them."""
    entities = dataset.entities
    first = entities.take(pc.sort_indices(entities, [("images", "descending"), ("entity_id", "ascending")])[:_TOP])
    return [{**row, "mean_clip_score_labelled": row["mean_clip_score"] or 0.0} for row in first.to_pylist()]


def _manifest(dataset: Published, columns: pa.Schema, version: int) -> Mapping[str, Any]:
    return {
        "images": dataset.rows,
        "labels": sum(dataset.entities.column("images").to_pylist()),
        "entities": len(dataset.entities),
        "funnel": [],
        "dataset": "",
        **dataset.manifest,
        "format_version": FORMAT_VERSION,
        "columns": columns.names,
        "storage": "parquet",
        "migrated": {"from_format": version, "by": __version__},
    }
