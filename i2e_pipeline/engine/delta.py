"""The Delta logs of tables whose files are written by tasks: one transaction puts files of many units in place.

A log is read when its table is first written in a run, and from then on only what is new of it, so a commit costs the
same however long the log has grown.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from i2e_pipeline.core import files, stores
from i2e_pipeline.engine.records import WrittenFile

if TYPE_CHECKING:
    from deltalake import DeltaTable

_CHECKPOINT_EVERY = 50
"""Transactions. Readers read the last checkpoint and the log behind it."""


_IMPORTING = Lock()
"""Its modules import each other: two threads that begin with different ones each find half of it."""


class DeltaLog:
    """The log of one table; its threads may share it."""

    def __init__(self, path: str) -> None:
        with _IMPORTING:
            import deltalake.exceptions
            import deltalake.schema
            import deltalake.transaction  # noqa: F401
        self.path = path
        self._lock = Lock()
        self._table: DeltaTable | None = None
        self._version = -1
        self._by_folder: dict[str, dict[str, int]] = {}
        """Folder to its files, with their bytes."""

    def replace(
        self, schema: pa.Schema | None, new: Sequence[WrittenFile], folders: set[str], same_rows: bool = False
    ) -> None:
        """One transaction: the folders' old files out, the new ones in. Files that are there already stay.

        schema      None: as the table has it
        same_rows   the rows stay what they are: who reads the table's changes sees none
        """
        from deltalake.schema import Schema
        from deltalake.transaction import AddAction, RemoveAction, create_table_with_add_actions

        if not folders:
            return
        with self._lock:
            table = self._refreshed()
            present = {path for folder in folders for path in self._by_folder.get(folder, {})}
            staying = present & {f.path for f in new}
            now = time.time_ns() // 1_000_000
            keys = [part.partition("=")[0] for part in next(iter(folders)).split("/")]
            adds = [
                AddAction(f.path, f.bytes, _partition(f.path), now, not same_rows, json.dumps({"numRecords": f.rows}))
                for f in new
                if f.path not in present
            ]
            written = None
            if schema is not None:
                written = Schema.from_arrow(pa.schema([*schema, *(pa.field(k, pa.string()) for k in keys)]))
            if table is None:
                if written is not None:
                    create_table_with_add_actions(
                        self.path,
                        written,
                        adds,
                        mode="error",
                        partition_by=keys,
                        storage_options=stores.delta(self.path),
                    )
                    self._changed(new, set())
                return
            if written is not None and written != table.schema():
                # What matches no folder replaces none, and brings the columns: an append leaves them as they were.
                nothing = [(keys[0], "=", "")]
                table.create_write_transaction([], "overwrite", written, keys, partition_filters=nothing)
                table = self._refreshed()
                assert table is not None
            removes: list[Any] = [
                RemoveAction(path, not same_rows, now, size, _partition(path))
                for folder in sorted(folders)
                for path, size in self._by_folder.get(folder, {}).items()
                if path not in staying
            ]
            if not removes and not adds:
                return
            table.create_write_transaction(
                [*removes, *adds], mode="append", schema=written or table.schema(), partition_by=keys
            )
            self._changed(new, folders)

    def vacuum(self, dry_run: bool = False) -> tuple[int, int]:
        """Remove files that the log no longer names, whenever they were replaced. Returns how many, and their bytes."""
        with self._lock:
            table = self._refreshed()
            if table is None:
                return 0, 0
            sizes = {info.path: info.size for info in files.list_files(self.path)}
            listed = table.vacuum(retention_hours=0, dry_run=True, enforce_retention_duration=False, full=True)
            gone = [path for path in listed if path in sizes]  # what was removed before is listed again
            if not dry_run:
                if gone:
                    table.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False, full=True)
                    table.update_incremental()
                    self._version = table.version()
                table.create_checkpoint()
            return len(gone), sum(sizes[path] for path in gone)

    def _refreshed(self) -> DeltaTable | None:
        """The table as it is now; its files are listed anew where somebody else has written it."""
        from deltalake import DeltaTable
        from deltalake.exceptions import TableNotFoundError

        if self._table is None:
            try:
                self._table = DeltaTable(self.path, storage_options=stores.delta(self.path))
            except TableNotFoundError:
                return None
        else:
            self._table.update_incremental()
        if self._table.version() != self._version:
            present = pa.table(self._table.get_add_actions(flatten=True)).select(["path", "size_bytes"])
            self._by_folder = {}
            for path, size in zip(*(c.to_pylist() for c in present.columns), strict=True):
                self._by_folder.setdefault(path.rpartition("/")[0], {})[path] = size
            self._version = self._table.version()
        return self._table

    def _changed(self, new: Sequence[WrittenFile], folders: set[str]) -> None:
        for folder in folders:
            self._by_folder.pop(folder, None)
        for file in new:
            self._by_folder.setdefault(file.path.rpartition("/")[0], {})[file.path] = file.bytes
        self._version += 1
        if self._table is not None and self._version and self._version % _CHECKPOINT_EVERY == 0:
            self._table.update_incremental()
            self._table.create_checkpoint()


def _partition(path: str) -> dict[str, str | None]:
    pairs = (part.partition("=") for part in path.split("/")[:-1])
    return {key: value for key, _, value in pairs}
