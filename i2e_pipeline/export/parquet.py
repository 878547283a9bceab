"""Plain Parquet: the files of the dataset, for readers that know no Delta; or of them the rows of some splits."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from i2e_pipeline.core import digests, files
from i2e_pipeline.dataset.published import part_files
from i2e_pipeline.export.form import CARD, Form, Job
from i2e_pipeline.export.shards import SPLITS

_TABLES = ("entities", "statistics/entities", "statistics/buckets", "statistics/funnel")
_CROISSANT, _MANIFEST = "croissant.json", "manifest.json"
_READ_AT_ONCE = 16

_USAGE = """\
This copy is an export as plain Parquet. Its images: {splits}.

```python
from datasets import load_dataset  # pictures and labels

images = load_dataset("PATH/i2e", split="train")  # every row; the column split says which side it is on
entities = load_dataset("PATH/i2e", "entities", split="train")

import pyarrow.dataset

pyarrow.dataset.dataset("PATH/i2e/images", format="parquet", partitioning="hive")
```
"""


def _config(table: str, default: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = {"config_name": "default" if default else table, "data_files": f"{table}/*/*.parquet"}
    return found | {"default": True} if default else found


@dataclass(frozen=True)
class _File:
    path: str
    """Below the folder of the dataset, and of the export."""
    image_file: int | None = None
    """Index in Published.files of a file of which some rows are taken; None: it is copied."""


class Parquet(Form):
    name = "parquet"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._written: dict[str, str] = {}
        """Digests by path of files of which some rows were taken."""

    @property
    def _all(self) -> bool:
        return self.job.splits == SPLITS

    @property
    def _as_it_is(self) -> bool:
        """Whether the copy is what the dataset says of itself."""
        return self._all and self.job.published.manifest.get("storage") != "delta"

    @cached_property
    def shards(self) -> list[_File]:
        published = self.job.published
        images = [_File(f.path, None if self._all else n) for n, f in enumerate(published.files)]
        if not self._all:
            wanted = [SPLITS.index(split) for split in self.job.splits]
            images = [f for f, counts in zip(images, self.rows.images, strict=True) if counts[:, wanted].any()]
        tables = [t for t in _TABLES if files.exists(files.join(published.folder, t))]
        return images + [
            _File(files.join(table, path))
            for table in tables
            for path in part_files(files.join(published.folder, table))
        ]

    @cached_property
    def _paths(self) -> set[str]:
        return {file.path for file in self.shards}

    @cached_property
    def _sizes(self) -> dict[str, int | None]:
        """Bytes of the dataset's files."""
        places = {files.join(self.job.published.folder, file.path): file.path for file in self.shards}
        return {places[place]: size for place, size in files.sizes(list(places)).items()}

    def belongs(self, path: str) -> bool:
        return path in self._paths or path in (CARD, _CROISSANT, digests.LIST)

    def is_done(self, shard: _File, there: Mapping[str, int], whole: bool) -> bool:
        if shard.path not in there:
            return False
        return shard.image_file is not None or there[shard.path] == self._sizes[shard.path]

    def write(self, shard: _File) -> None:
        if shard.image_file is None:
            files.copy(files.join(self.job.published.folder, shard.path), self.job.path(shard.path))
            return
        published = self.job.published
        with published.open(published.files[shard.image_file]) as source:
            compression = source.metadata.row_group(0).column(0).compression.lower()
            with (
                files.fresh_stream(self.job.path(shard.path)) as stream,
                pq.ParquetWriter(
                    digested := digests.Digested(stream),
                    source.schema_arrow,
                    compression="none" if compression == "uncompressed" else compression,
                ) as writer,
            ):
                for group in range(source.num_row_groups):
                    rows = source.read_row_group(group)
                    ours = rows.filter(pc.is_in(rows.column("split"), value_set=pa.array(self.job.splits)))
                    if ours.num_rows:
                        writer.write_table(ours, row_group_size=ours.num_rows)
            self._written[shard.path] = digested.digest

    def finish(self) -> None:
        if not self._as_it_is:
            usage = _USAGE.format(splits=", ".join(self.job.splits))
            self.write_card([_config("images", default=True), _config("entities")], None, usage)
        for name in (CARD, _CROISSANT) if self._as_it_is else (_CROISSANT,):
            source = files.join(self.job.published.folder, name)
            if files.exists(source):
                files.write_bytes(self.job.path(name), files.read_bytes(source))

    def digests(self, manifest: bytes) -> Mapping[str, str]:
        """Copies must have the digests that the dataset lists: who compares them finds what went wrong on the way."""
        source = files.join(self.job.published.folder, digests.LIST)
        known: dict[str, str] = {}
        if files.exists(source):
            with suppress(ValueError):  # then what was copied is read
                known = digests.listed(files.read_bytes(source))
        found = {s.path: known[s.path] for s in self.shards if s.image_file is None and s.path in known}
        found |= self._written
        beside = [name for name in (CARD, _CROISSANT) if files.exists(self.job.path(name))]
        to_read = [path for path in (*(s.path for s in self.shards), *beside) if path not in found]
        with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
            found |= zip(to_read, pool.map(lambda p: digests.of_file(self.job.path(p)), to_read), strict=True)
        return {**found, _MANIFEST: digests.of_bytes(manifest)}

    @property
    def images(self) -> int:
        return self.job.published.rows if self._all else super().images

    def manifest(self, told: dict[str, Any]) -> dict[str, Any]:
        """That of the dataset, where all of it is here; else its counts are of what is here, as readers of datasets
        check them."""
        if self._all:
            return told if self._as_it_is else told | {"storage": "parquet"}
        wanted = [SPLITS.index(split) for split in self.job.splits]
        units = dict.fromkeys(told["units"], 0)
        for file, counts in zip(self.job.published.files, self.rows.images, strict=True):
            units[file.path.split("/")[1].removeprefix("unit=")] += int(counts[:, wanted].sum())
        found = super().manifest(told)
        labels = sum(counts["labels"] for counts in found["export"]["splits"].values())
        return found | {"storage": "parquet", "units": units, "images": sum(units.values()), "labels": labels}
