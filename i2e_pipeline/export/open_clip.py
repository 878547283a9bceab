"""open_clip's CSV: images in folders, and a table a split that names them (`--dataset-type csv`).

<split>.tsv · images/<split>-00000/<image_id>.jpg · entities.parquet

Paths are relative to the folder of the export, so that it may move: open_clip is started there.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from i2e_pipeline.core import files
from i2e_pipeline.export.form import CARD, Form, Job, classes, image_name, named
from i2e_pipeline.export.shards import Shard

_ENTITIES, _IMAGES, _PARTS = "entities.parquet", "images", "_parts"
_COPIED = 1 << 20
_WRITES = 32
"""Images that are on their way to a store at the same time: it answers each in some 50 ms."""
_NOTHING = pa.array(
    ["NA", "N/A", "n/a", "#N/A", "#N/A N/A", "#NA", "<NA>", "NULL", "null", "None", "NaN", "nan", "-NaN", "-nan"]
    + [f"{sign}1.#{kind}" for sign in ("", "-") for kind in ("IND", "QNAN")]
)
"""What pandas, by which open_clip reads the table, takes for no text."""
_USAGE = """\
{held}

```
cd PATH/i2e
python -m open_clip_train.main --dataset-type csv --train-data {split}.tsv --model ViT-B-32 …
```

The tables are separated by tabs and quoted. `filepath` and `title` (the alt-text) are what open_clip reads; `entity_id`
and `class_index` are of the most probable label, `labels` holds all of them as JSON, and the other columns are the
row's. `entities.parquet` are the classes.
"""


class OpenClipCsv(Form):
    name, shard_mb = "open_clip-csv", 256

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._far = not files.is_local(job.target)
        self._writers = ThreadPoolExecutor(_WRITES if self._far else 1, thread_name_prefix="image")

    @staticmethod
    def _folder(shard: Shard) -> str:
        return f"{_IMAGES}/{named(shard)}"

    @staticmethod
    def _part(shard: Shard) -> str:
        return f"{_PARTS}/{named(shard)}.tsv"

    @cached_property
    def _rows_by_folder(self) -> dict[str, int]:
        return {self._folder(shard): shard.rows for shard in self.shards}

    @property
    def _tables(self) -> list[str]:
        return [f"{split}.tsv" for split in dict.fromkeys(shard.split for shard in self.shards)]

    def belongs(self, path: str) -> bool:
        return (
            path in (CARD, _ENTITIES, *self._tables)
            or files.folder_of(path) in self._rows_by_folder
            or (path.startswith(f"{_PARTS}/") and f"{_IMAGES}/{path[len(_PARTS) + 1 : -4]}" in self._rows_by_folder)
        )

    def is_done(self, shard: Shard, there: Mapping[str, int], whole: bool) -> bool:
        """By the shard's part of the table, which is written when its images are there. A finished export has none of
        these any more; what it lacks is then made again with all of it."""
        return self._is_whole(there) if whole else self._part(shard) in there

    def _is_whole(self, there: Mapping[str, int]) -> bool:
        if self._seen is None:
            found = dict.fromkeys(self._rows_by_folder, 0)
            for path in there:
                if (folder := files.folder_of(path)) in found:
                    found[folder] += 1
            self._seen = found == self._rows_by_folder and all(table in there for table in self._tables)
        return self._seen

    _seen: bool | None = None

    def write(self, shard: Shard) -> None:
        files.remove(self.job.path(self._folder(shard)))
        folder = self.job.path(self._folder(shard))
        files.make_folder(folder)
        filesystem, inner = files.open_filesystem(folder)

        def put(name: str, stored: bytes) -> None:
            # Half of an image is read by nobody: its part of the table is written when all are there.
            with filesystem.open_output_stream(f"{inner}/{name}", compression=None) as stream:
                stream.write(stored)

        with files.fresh_stream(self.job.path(self._part(shard))) as table:
            for batch in self.rows.read(shard):
                stored = batch.column("image").field("bytes").to_pylist()
                names = [image_name(i, b) for i, b in zip(batch.column("image_id").to_pylist(), stored, strict=True)]
                list((self._writers.map if self._far else map)(put, names, stored))
                paths = [f"{self._folder(shard)}/{name}" for name in names]
                table.write(separated(table_of(batch, paths)))

    def finish(self) -> None:
        if self._seen is not True:
            self._put_together()
        self.write_entities(_ENTITIES)
        self.write_card([classes(_ENTITIES)], {}, _USAGE.format(held=self.held(), split=self.shards[0].split))

    def left(self) -> Sequence[str]:
        return [_PARTS]

    def _put_together(self) -> None:
        for split in dict.fromkeys(shard.split for shard in self.shards):
            with files.fresh_stream(self.job.path(f"{split}.tsv")) as table:
                none = pa.RecordBatch.from_pylist([], self.rows.schema)
                table.write(separated(table_of(none, []), header=True))
                for shard in (s for s in self.shards if s.split == split):
                    filesystem, inner = files.open_filesystem(self.job.path(self._part(shard)))
                    with filesystem.open_input_stream(inner, compression=None) as part:
                        while content := part.read(_COPIED):
                            table.write(content)


def table_of(batch: pa.RecordBatch, paths: Sequence[str]) -> pa.Table:
    """The rows as they stand in the table: where the image lies, its title, and all that is known of it."""
    labels = batch.column("labels").to_pylist()
    best: list[dict[str, Any]] = [max(of_row or [{}], key=lambda one: one.get("score") or 0.0) for of_row in labels]
    columns = {
        "filepath": pa.array(paths, pa.string()),
        "title": _titles(batch.column("alt_text")),
        "image_id": batch.column("image_id"),
        "entity_id": pa.array([one.get("entity_id") for one in best], pa.int64()),
        "class_index": pa.array([one.get("class_index") for one in best], pa.int32()),
        "score": pa.array([one.get("score") for one in best], pa.float32()),
        "labels": pa.array([msgspec.json.encode(of_row).decode() for of_row in labels], pa.string()),
    }
    for name in batch.schema.names:
        if name not in (*_OWN, "labels"):
            # A column that the source calls so, too, as pandas would name it.
            columns[f"{name}.1" if name in columns else name] = batch.column(name)
    return pa.table({name: _without_nul(column) for name, column in columns.items()})


_OWN = ("image", "alt_text", "image_id")


def _titles(texts: pa.Array) -> pa.Array:
    """Alt-texts, with a blank behind those that pandas would take for no text: open_clip would train on "nan"."""
    return pc.if_else(pc.is_in(texts, value_set=_NOTHING), pc.binary_join_element_wise(texts, " ", ""), texts)


def _without_nul(column: pa.Array) -> pa.Array:
    """pandas ends a text at a NUL."""
    return pc.replace_substring(column, "\0", "\ufffd") if pa.types.is_string(column.type) else column


def separated(table: pa.Table, header: bool = False) -> bytes:
    """The rows as lines, texts in quotation marks; or the line that names the columns."""
    into = io.BytesIO()
    pyarrow.csv.write_csv(table, into, pyarrow.csv.WriteOptions(include_header=header, delimiter="\t"))
    return into.getvalue()
