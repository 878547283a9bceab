"""What differs, row by row, as Parquet: a row for each image, split and label that is not in both, by id.

Writes   <out>/images.parquet · splits.parquet · labels.parquet · entities.parquet (all entities of both)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from i2e_pipeline.commands.diffing import compare
from i2e_pipeline.commands.diffing.buckets import hex_of, numbered
from i2e_pipeline.commands.diffing.compare import SPLITS
from i2e_pipeline.core import files

SIDES = ("a", "b")
"""As columns and keys name them."""
_IMAGES = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("only_in", pa.string(), nullable=False),
        pa.field("split", pa.string()),
        pa.field("why", pa.string()),
    ]
)
_SPLITS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("split_a", pa.string()),
        pa.field("split_b", pa.string()),
    ]
)
_LABELS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("only_in", pa.string(), nullable=False),
        pa.field("entity_id", pa.int64(), nullable=False),
        pa.field("score", pa.float32()),
        pa.field("probability_in_other", pa.float32()),
        pa.field("why", pa.string()),
        pa.field("entity_in_other", pa.int64()),
    ]
)
_TABLES = {"images": _IMAGES, "splits": _SPLITS, "labels": _LABELS}


class Written:
    """The files of `out`, which take their names when all are whole; None: nothing is written."""

    def __init__(self, out: str | None) -> None:
        self._out, self._held = out, ExitStack()
        self._files: dict[str, pq.ParquetWriter] = {}

    def __enter__(self) -> Written:
        for name, schema in _TABLES.items() if self._out is not None else ():
            stream = self._held.enter_context(files.fresh_stream(files.join(str(self._out), f"{name}.parquet")))
            self._files[name] = self._held.enter_context(pq.ParquetWriter(stream, schema, compression="zstd"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._held.__exit__(kind, error, trace)

    def _write(self, name: str, columns: Mapping[str, Any]) -> None:
        schema = _TABLES[name]
        table = pa.table({n: pa.array(columns[n], t) for n, t in zip(schema.names, schema.types, strict=True)})
        if table.num_rows:
            self._files[name].write_table(table.cast(schema))

    def images(self, only: np.ndarray, why: np.ndarray) -> None:
        if self._files:
            self._write(
                "images",
                {
                    "image_id": hex_of(only["id"]),
                    "only_in": [SIDES[n] for n in only["side"]],
                    "split": _split_names(only["split"]),
                    "why": why.tolist(),
                },
            )

    def resplit(self, seen: compare.Compared) -> None:
        if self._files:
            order = np.lexsort((seen.resplit[:, 1], seen.resplit[:, 0]))
            columns = {f"split_{n}": _split_names(seen.resplit_from_to[order, i]) for i, n in enumerate(SIDES)}
            self._write("splits", {"image_id": hex_of(seen.resplit[order]), **columns})

    def labels(self, changed: np.ndarray, why: np.ndarray, probability: np.ndarray, moves: np.ndarray) -> None:
        if self._files:
            self._write(
                "labels",
                {
                    "image_id": hex_of(changed["id"]),
                    "only_in": [SIDES[n] for n in changed["side"]],
                    "entity_id": changed["entity"],
                    "score": changed["score"],
                    "probability_in_other": [None if math.isnan(p) else p for p in probability.tolist()],
                    "why": why.tolist(),
                    "entity_in_other": _others(changed, moves),
                },
            )

    def entities(self, rows: Iterator[dict[str, Any]]) -> None:
        if self._out is not None:
            table = pa.Table.from_pylist(list(rows), _ENTITIES)
            files.write_table(files.join(self._out, "entities.parquet"), table)


def _others(changed: np.ndarray, moves: np.ndarray) -> pa.Array:
    """Of each label the most probable entity that its image got in its place, or had before; null where it got none."""
    (image,) = numbered(changed["id"])
    best = np.full((2, len(changed)), -1)
    best[0, image[moves[:, 0]]], best[1, image[moves[:, 1]]] = moves[:, 3], moves[:, 2]
    found = best[changed["side"], image]
    return pa.array(found, pa.int64(), mask=found < 0)


def _split_names(splits: np.ndarray) -> list[str | None]:
    return [None if n == len(SPLITS) - 1 else SPLITS[n] for n in splits.tolist()]


_ENTITIES = pa.schema(
    [
        pa.field("entity_id", pa.int64(), nullable=False),
        *(pa.field(f"{what}_{of}", kind) for what, kind in (("name", pa.string()), ("class_index", pa.int32()),
          ("retired", pa.bool_()), ("images", pa.int64())) for of in SIDES),
        pa.field("change", pa.int64(), nullable=False),
        pa.field("why", pa.string()),
    ]
)  # fmt: skip
