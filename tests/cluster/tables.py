"""What two runs made: every table as a multiset of rows, whichever way it is stored."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
from deltalake import DeltaTable

NO_TABLES = ("input", "train", "units")


def tables(output: Path) -> dict[str, Counter[Any]]:
    """The rows of each table by its folder; files of the knowledge base by their content."""
    found: dict[str, Counter[Any]] = {}
    for folder, below, files in os.walk(output):
        name = Path(folder).relative_to(output).as_posix()
        if "_delta_log" in below:
            found[name] = rows(DeltaTable(folder).to_pyarrow_dataset())
            below[:] = []
            continue
        below[:] = [d for d in below if not d.startswith(("_", ".")) and not (name == "." and d in NO_TABLES)]
        if name == ".":  # what the report writes is no table
            continue
        if any("=" in d for d in below) or any(f.endswith(".parquet") for f in files):
            found[name] = rows(ds.dataset(folder, format="parquet", partitioning="hive", exclude_invalid_files=True))
            below[:] = []
        elif name.startswith("kb/") and files:
            found[name] = Counter((f, hashlib.sha256((Path(folder) / f).read_bytes()).hexdigest()) for f in files)
    return found


def rows(table: ds.Dataset) -> Counter[Any]:
    names = sorted(table.schema.names)
    batches = table.to_batches(columns=names)
    return Counter(repr([_plain(value) for value in row.values()]) for batch in batches for row in batch.to_pylist())


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, dict):
        return [(key, _plain(v)) for key, v in value.items()]
    return [_plain(v) for v in value] if isinstance(value, list) else value
