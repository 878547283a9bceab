"""Tables with versions, in whose folders the files of rows that are no more lie beside the others: Delta, which is read
by its log, and Iceberg and Hudi, which are refused.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote

import pyarrow as pa

from i2e_pipeline.core import files, stores
from i2e_pipeline.core.files import Ancestors, Beside, FileInfo, folder_of
from i2e_pipeline.inputs.columns import InputError
from i2e_pipeline.inputs.shard import Source

log = logging.getLogger(__name__)

DELTA_LOG = "_delta_log"
_HUDI, _HUDI_PARTITION = ".hoodie", ".hoodie_partition_metadata"
_ICEBERG, _ICEBERG_METADATA = "metadata", ".metadata.json"
NAMES = (DELTA_LOG, _HUDI, _HUDI_PARTITION, _ICEBERG)
"""What tells that a folder is a table's, or a part of one; what a search is to note of the folders that it lists."""
_REMEDIES = {
    "an Iceberg table": "spark.table(…).write.parquet(…)",
    "a Hudi table": "spark.read.format('hudi').load(…).write.parquet(…)",
}
_DATA = (".parquet", ".pq", ".parq")
_LOGS_AT_ONCE = 16


def is_iceberg(path: str) -> bool:
    """Whether a file is what an Iceberg table keeps of its versions."""
    return path.endswith(_ICEBERG_METADATA)


def refused(what: str) -> str:
    """Why a kind of table is not read, and the way out."""
    return f"{what}: write its rows as Parquet (`{_REMEDIES[what]}`)"


def live(pattern: str, infos: Sequence[FileInfo], beside: Beside) -> tuple[list[Source], list[FileInfo]]:
    """The live files of the Delta tables among what a pattern has found, and what is found in no such table.

    beside   what the search has noted of NAMES
    A table that was looked through gives all its files; one some of whose files are named, those of them that are live.
    Raises InputError for a table of Iceberg or Hudi, and where only files are named that are not live.
    """
    folders = list(dict.fromkeys(folder_of(i.path) for i in infos if i.path.lower().endswith(_DATA)))
    beside.ask(list(dict.fromkeys(above for folder in folders for above in _may_be_tables(folder))))
    deltas = Ancestors(beside.holding(DELTA_LOG))
    _refuse(pattern, [f for f in folders if deltas.nearest(f) is None], infos, beside)
    rest: list[FileInfo] = []
    tables: dict[str, set[str]] = {}
    for info in infos:
        table = deltas.nearest(folder_of(info.path))
        if table is None:
            rest.append(info)
        else:
            tables.setdefault(table, set()).add(info.path)
    looked_through = Ancestors(beside.whole)
    with ThreadPoolExecutor(_LOGS_AT_ONCE) as pool:
        of_tables = list(pool.map(of_delta, tables))
    sources: list[Source] = []
    dead: dict[str, int] = {}
    for (table, found), all_live in zip(tables.items(), of_tables, strict=True):
        if looked_through.nearest(table) is not None:
            sources += all_live
            continue
        here = [s for s in all_live if s.path in found]
        sources += here
        if len(here) < len(found):
            dead[table] = len(found) - len(here)
    if dead:
        said = (
            f"pairs.path: {pattern}: {sum(dead.values())} of the files that it names are not live in the Delta table "
            f"{next(iter(dead))}: its last version does not have their rows"
        )
        if not sources and not rest:
            raise InputError(f"{said}. Name the table, or files that it has")
        log.warning("%s, and they are not read", said)
    return sources, rest


def _may_be_tables(folder: str) -> list[str]:
    """The folders whose table a file of this folder may be of: partitions lie in it, Iceberg's data in a folder."""
    found = [folder]
    while "=" in found[-1].rpartition("/")[2]:
        found.append(folder_of(found[-1]))
    return [*found, folder_of(found[-1])]


def _refuse(pattern: str, folders: Sequence[str], infos: Sequence[FileInfo], beside: Beside) -> None:
    """Raise InputError where one of these folders is of a table of Iceberg or Hudi."""
    hudi = Ancestors(beside.holding(_HUDI) | beside.holding(_HUDI_PARTITION))
    iceberg = Ancestors(beside.holding(_ICEBERG))
    listed = {folder_of(i.path) for i in infos if is_iceberg(i.path)}
    looked_through = Ancestors(beside.whole)
    asked: dict[str, bool] = {}
    for folder in folders:
        if (table := hudi.nearest(folder)) is not None:
            raise InputError(f"pairs.path: {pattern}: {table} is {refused('a Hudi table')}")
        table = iceberg.nearest(folder)
        while table is not None:
            kept = files.join(table, _ICEBERG)
            if table not in asked:
                seen = looked_through.nearest(kept) is not None
                asked[table] = kept in listed or (
                    not seen and any(is_iceberg(i.path) and "/" not in i.path for i in files.list_files(kept))
                )
            if asked[table]:
                raise InputError(f"pairs.path: {pattern}: {table} is {refused('an Iceberg table')}")
            above = folder_of(table)
            table = iceberg.nearest(above) if above != table else None


def of_delta(folder: str) -> list[Source]:
    """The files of a table's last version. Raises InputError where its rows are not just those of its files."""
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    try:
        table = DeltaTable(folder or ".", storage_options=stores.delta(folder))
        features = set(table.protocol().reader_features or []) & {"deletionVectors", "columnMapping"}
        # Before reader version 3 no feature is named, but the table's properties say it.
        if table.metadata().configuration.get("delta.columnMapping.mode", "none").lower() != "none":
            features.add("columnMapping")
        actions = pa.table(table.get_add_actions(flatten=True))
    except (DeltaError, OSError, ValueError) as error:
        why = str(error).strip().partition("\n")[0]  # a backtrace of Rust's follows
        raise InputError(
            f"{folder} is a Delta table whose log cannot be read ({why}): copy {files.join(folder, DELTA_LOG)} anew "
            "from where the table was made, or restore it; or write its rows as Parquet, and name these"
        ) from None
    if features:
        raise InputError(
            f"{folder} is a Delta table with {' and '.join(sorted(features))}, which its files do not show: write its "
            "rows anew (`REORG TABLE … APPLY (PURGE)`, or spark.read.format('delta').load(…).write.parquet(…))"
        )
    rows = actions.select(["path", "size_bytes", "modification_time"]).to_pylist()
    return [
        Source(FileInfo(files.join(folder, unquote(r["path"])), r["size_bytes"], _nanoseconds(r["modification_time"])))
        for r in rows
    ]


def _nanoseconds(when: object) -> int:
    return int(when.timestamp() * 1e3) * 1_000_000 if hasattr(when, "timestamp") else int(str(when)) * 1_000_000
