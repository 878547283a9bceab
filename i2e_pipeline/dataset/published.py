"""The published dataset as its readers see it: which files belong to it, and what stands in them. No Spark.

Reads    <dataset>/manifest.json · <dataset>/images/unit=*/ · <dataset>/entities/unit=*/
         Parquet, Delta (read through its log) or an export; on a disk or behind a URI that pyarrow.fs knows
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from i2e_pipeline.core import files, stores
from i2e_pipeline.core.config import digest
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.schemas import I2E_ENTITIES, ID, IMAGES
from i2e_pipeline.core.splits import TEST, TRAIN, held_out_entities

_READS = 32
"""Footers that are asked for at the same time: a store answers each in some 50 ms."""
_NEEDED = pa.schema(
    [
        IMAGES.field("image_id"),
        IMAGES.field("image"),
        IMAGES.field("alt_text"),
        pa.field("labels", pa.list_(pa.struct(list(IMAGES.field("labels").type.value_type)[:3]))),
    ]
)
"""What every format has of an image: of a label entity_id, class_index and score."""
_SINCE_FORMAT_2 = tuple(I2E_ENTITIES.names[10:])
"""Columns of entities that format 1 has not."""
FORMAT_VERSION = 2
"""The newest format that is read, and the one that is written; docs/data-formats.md says what each promises."""


class DatasetError(I2EError, ValueError):
    """A dataset that cannot be read or used; the message names folder, file or value, and the way out."""


class NotPublished(DatasetError):
    """There is no whole dataset to read."""


@dataclass(frozen=True)
class ImageFile:
    path: str
    """relative to the folder of the dataset: images/unit=…/part-….parquet"""
    rows: int
    row_group_rows: tuple[int, ...]
    row_group_bytes: tuple[int, ...]
    """uncompressed"""


@dataclass(frozen=True)
class Published:
    folder: str
    manifest: dict[str, Any]
    entities: pa.Table
    """I2E_ENTITIES, a row per class index, in that order."""
    files: tuple[ImageFile, ...]
    """In the order of their paths; a unit's in the order of the tasks that wrote them, whichever attempt it was."""
    fingerprint: str
    """32 hex characters: equal where every row stands in the same place with the same content."""

    @property
    def rows(self) -> int:
        return sum(f.rows for f in self.files)

    @property
    def decontaminated(self) -> dict[str, str]:
        """By name the evaluation sets whose images were left out, each with the digest of its files' content."""
        told = self.manifest.get("told", {}).get("decontaminate", {}).get("settings", {})
        return dict(told.get("evaluation_sets", {}))

    def open(self, file: ImageFile) -> pq.ParquetFile:
        """The file, for one thread at a time. Raises DatasetError where it is gone."""
        return open_parquet(files.join(self.folder, file.path))


def _are_steps(value: Any) -> bool:
    """Steps of the funnel: publish/manifest.py."""
    return isinstance(value, list) and all(
        isinstance(step, dict)
        and isinstance(step.get("stage"), str)
        and isinstance(step.get("rejected"), dict)
        and all(type(rows) is int for rows in (step.get("rows_in"), step.get("rows_out"), *step["rejected"].values()))
        for step in value
    )


def manifest_of(folder: str) -> dict[str, Any]:
    """The manifest of the dataset in `folder`: what says that the dataset is whole, for it is written last, and which
    units belong to it ("units": rows of images by unit).

    Raises NotPublished where there is none, DatasetError where it is of something else.
    """
    place = files.join(folder, "manifest.json")
    if not files.exists(place):
        raise NotPublished(
            f"{folder} has no manifest.json: nothing was published there, or publishing was cut off. "
            "`i2e run` (jobs/build_dataset.py) ends a run that was begun; of a finished one name the folder `i2e`"
        )
    manifest: Any = files.record(place, "copy the dataset again, or `i2e run`")
    if not isinstance(manifest, dict) or not isinstance(manifest.get("units"), dict):
        raise DatasetError(f"{place} names no units: it is not the manifest of an I2E dataset")
    if not all(type(rows) is int and rows >= 0 for rows in manifest["units"].values()):
        raise DatasetError(f"{place} does not say how many rows its units have: copy the dataset again, or `i2e run`")
    wrong = [part for part in ("model", "labels_chosen_by") if not isinstance(manifest.get(part, {}), dict)]
    wrong += ["funnel"] if not _are_steps(manifest.get("funnel", [])) else []
    if wrong:  # readers look into them, and a manifest may be anybody's
        raise DatasetError(
            f"{place}: {wrong[0]!r} is not what a run writes there: copy the dataset again, or `i2e run`"
        )
    version = manifest.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise DatasetError(
            f"{place}: the dataset is of format {version}, and this version reads those up to {FORMAT_VERSION}: "
            "install a newer i2e_pipeline"
        )
    return manifest


def open_published(folder: str) -> Published:
    """The dataset in `folder`, a run's <output>/i2e or an export of it. Reads the manifest, the footer of every file
    and the entities.

    Raises NotPublished where there is no whole dataset, DatasetError where files are missing or its tables are not what
    the schema says.
    """
    manifest = manifest_of(folder)
    with ThreadPoolExecutor(_READS) as pool:
        paths = [path for path, _ in image_parts(folder, manifest)]
        image_files = tuple(pool.map(lambda path: image_file(folder, path), paths))
    return of_parts(folder, manifest, entities_of(folder), image_files)


def image_parts(folder: str, manifest: Mapping[str, Any]) -> list[tuple[str, int]]:
    """The files of the dataset's images, those of the units that the manifest names: their paths from its folder, and
    bytes."""
    units = manifest["units"]
    listed = parts_of(files.join(folder, "images"))
    return [(files.join("images", p), size) for p, size in listed if p.split("/")[0].removeprefix("unit=") in units]


def of_parts(folder: str, manifest: dict[str, Any], entities: pa.Table, image_files: Sequence[ImageFile]) -> Published:
    """The dataset of what `manifest_of`, `entities_of` and `image_file` gave, wherever these were called.

    Raises DatasetError where files are missing.
    """
    refuse_lacking(folder, manifest["units"], image_files)
    facts = [[f.path.split("/")[1], f.rows, f.row_group_rows, f.row_group_bytes] for f in image_files]
    named = {"format": manifest.get("format_version"), "dataset": manifest.get("dataset"), "files": facts}
    return Published(folder, manifest, entities, tuple(image_files), digest(named))


def part_files(table: str) -> list[str]:
    """Files of a table that count, sorted, relative to its folder: those of Delta's log where it has one, else all
    Parquet files that are not hidden."""
    return [path for path, _ in parts_of(table)]


def parts_of(table: str) -> list[tuple[str, int]]:
    """The same with the bytes that each of them has."""
    if not files.exists(files.join(table, "_delta_log")):
        listed = files.list_files(table)
        return [(i.path, i.size) for i in listed if i.path.endswith(".parquet") and not files.is_hidden(i.path)]
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    try:
        actions = pa.table(DeltaTable(table, storage_options=stores.delta(table)).get_add_actions(flatten=True))
    except (DeltaError, OSError) as error:
        raise DatasetError(f"{table} is a Delta table whose log cannot be read: {error}") from None
    named = zip(actions.column("path").to_pylist(), actions.column("size_bytes").to_pylist(), strict=True)
    return sorted((unquote(path), size) for path, size in named)


def open_parquet(path: str) -> pq.ParquetFile:
    """A file of a dataset, for one thread at a time. Raises DatasetError where it is gone or is no Parquet file."""
    stream, footer = open_with_footer(path)
    # pre_buffer=False: with it a row group's bytes stay in memory for as long as the file is open.
    return pq.ParquetFile(stream, metadata=footer, pre_buffer=False)


def open_with_footer(path: str) -> tuple[pa.NativeFile, pq.FileMetaData]:
    """A file of a dataset, for any number of threads that read at places of their own, and its footer. Raises as
    `open_parquet` does."""
    filesystem, inner = files.open_filesystem(path)
    try:
        stream = filesystem.open_input_file(inner)
        return stream, pq.read_metadata(stream)
    except FileNotFoundError:
        raise DatasetError(
            f"{path} belongs to the dataset and is not there: copy or export the dataset again"
        ) from None
    except pa.ArrowInvalid as error:
        raise DatasetError(f"{path} is not a Parquet file: {error}") from None


def image_file(folder: str, path: str) -> ImageFile:
    """What the footer of a file of images says. Raises DatasetError where a column is not what the schema says."""
    with open_parquet(files.join(folder, path)) as file:
        return as_image_file(folder, path, file)


def as_image_file(folder: str, path: str, file: pq.ParquetFile) -> ImageFile:
    """The same of a file that is open."""
    schema, metadata = file.schema_arrow, file.metadata
    for name in _NEEDED.names:
        expected = _NEEDED.field(name).type
        found = schema.field(name).type if name in schema.names else None
        if found is None or not _readable(found, expected):
            raise DatasetError(
                f"{folder}/{path}: column {name} is {found or 'missing'}, and not {expected}: another program or "
                "version wrote it; build the dataset with this one"
            )
    groups = [metadata.row_group(g) for g in range(metadata.num_row_groups)]
    return ImageFile(
        path, metadata.num_rows, tuple(g.num_rows for g in groups), tuple(g.total_byte_size for g in groups)
    )


def _readable(found: pa.DataType, expected: pa.DataType) -> bool:
    """Equal, or with more fields in a struct, or as format 1 or a program that compacted the table has it: ids as
    bytes."""
    if pa.types.is_struct(expected):
        names = [f.name for f in found] if pa.types.is_struct(found) else []
        return all(f.name in names and _readable(found.field(f.name).type, f.type) for f in expected)
    if pa.types.is_list(expected):
        return pa.types.is_list(found) and _readable(found.value_type, expected.value_type)
    if pa.types.is_string(expected):
        return found in (expected, pa.large_string(), ID, pa.binary())
    return bool(found == expected)


def refuse_lacking(folder: str, units: Mapping[str, int], image_files: Sequence[ImageFile]) -> None:
    """Raises DatasetError where the files do not hold the rows that the manifest announces by unit, or none at all."""
    found = dict.fromkeys(units, 0)
    for file in image_files:
        found[file.path.split("/")[1].removeprefix("unit=")] += file.rows
    wrong = [f"{u}: {found[u]:,} of {rows:,}" for u, rows in sorted(units.items()) if found[u] != rows]
    if wrong:
        raise DatasetError(
            f"{folder} is not whole: rows by unit, found and announced by manifest.json: {'; '.join(wrong[:5])}. "
            "Copy it again, or `i2e run`"
        )
    if not sum(found.values()):
        raise DatasetError(f"{folder} holds no image: nothing passed the filters of the run that made it")


def _as_today(entities: pa.Table) -> pa.Table:
    """Rows of entities with the columns that their format has not: nothing is known, none is retired, and the split is
    drawn."""
    for name in _SINCE_FORMAT_2:
        if name in entities.column_names:
            continue
        if name == "split":
            held_out = held_out_entities(entities.column("entity_id").to_numpy())
            entities = entities.append_column(name, pa.array(np.where(held_out, TEST, TRAIN), pa.string()))
        elif name == "retired":
            entities = entities.append_column(name, pa.array([False] * len(entities), pa.bool_()))
        else:
            entities = entities.append_column(name, pa.nulls(len(entities), I2E_ENTITIES.field(name).type))
    return entities.select(I2E_ENTITIES.names).cast(I2E_ENTITIES)


def entities_of(folder: str) -> pa.Table:
    """I2E_ENTITIES, a row per class index, in that order. Raises DatasetError where it is not that."""
    table = files.join(folder, "entities")
    parts = []
    for path in part_files(table):
        with open_parquet(files.join(table, path)) as file:
            held = file.schema_arrow.names
            missing = [n for n in I2E_ENTITIES.names if n not in (*held, *_SINCE_FORMAT_2)]
            if missing:
                raise DatasetError(f"{table}/{path} has no column {', '.join(missing)}: it is no table of entities")
            parts.append(_as_today(file.read(columns=[n for n in I2E_ENTITIES.names if n in held])))
    entities = pa.concat_tables([I2E_ENTITIES.empty_table(), *parts]).sort_by("class_index")
    classes = entities.column("class_index").to_numpy()
    if not np.array_equal(classes, np.arange(len(classes))):
        raise DatasetError(f"{table}: class indices are not 0 … {len(classes) - 1}, each once; build the dataset again")
    return entities
