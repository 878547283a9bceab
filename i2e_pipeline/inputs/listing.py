"""Which shards `pairs.path` names, and of which format each is: one listing, whatever people have.

A file's format is told by its name, or by `pairs.format`; a folder is looked through. What img2dataset keeps beside its
shards, and shards that it has not finished, are no pairs (`img2dataset.py`). What nothing here reads is said, with the
way there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from urllib.parse import unquote

import pyarrow as pa

from i2e_pipeline.core import files, stores
from i2e_pipeline.core.config import PairsConfig
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.files import FileInfo
from i2e_pipeline.inputs import img2dataset, sidecars
from i2e_pipeline.inputs.columns import InputError
from i2e_pipeline.inputs.formats import FORMATS
from i2e_pipeline.inputs.shard import Source

log = logging.getLogger(__name__)

_LOG = "_delta_log"
_OTHERS = {
    ".tfrecord": "TFRecord: write its features as Parquet (img2dataset has output_format=parquet)",
    ".tfrecords": "TFRecord: write its features as Parquet (img2dataset has output_format=parquet)",
    ".arrow": "an Arrow file: Hugging Face's `dataset.to_parquet(…)` writes Parquet",
    ".feather": "a Feather file: `pyarrow.parquet.write_table(pyarrow.feather.read_table(…), …)` writes Parquet",
    ".orc": "ORC: Spark's `spark.read.orc(…).write.parquet(…)` writes Parquet",
    ".avro": "Avro: Spark's `spark.read.format('avro').load(…).write.parquet(…)` writes Parquet",
    ".zip": "a zip: unpack it, and name the folder",
    ".tar.gz": "a compressed tar: unpack it to .tar, since tasks read at their rows' places",
    ".tgz": "a compressed tar: unpack it to .tar, since tasks read at their rows' places",
    ".tar.zst": "a compressed tar: unpack it to .tar, since tasks read at their rows' places",
    ".h5": "HDF5: write its rows as Parquet",
    ".hdf5": "HDF5: write its rows as Parquet",
    ".lmdb": "LMDB: write its rows as Parquet, or as WebDataset's tars",
    ".mdb": "LMDB: write its rows as Parquet, or as WebDataset's tars",
    ".pkl": "a pickle, which is never opened: write its rows as Parquet",
    ".npz": "arrays of numpy: write images and texts as Parquet",
    ".xlsx": "a spreadsheet: save it as CSV",
    ".json": "JSON: write an object a line (.jsonl)",
}
_ICEBERG = ".metadata.json"


def listed(pairs: PairsConfig, known: Iterable[Sequence[str]] = ()) -> list[Source]:
    """All shards that `pairs.path` names, sorted by path.

    known   images of the shards of folders that were planned before, each in its order
    Raises InputError where a pattern names nothing, or nothing that can be read.
    """
    found: dict[str, Source] = {}
    known = list(known)
    for pattern in pairs.path:
        for source in _of_pattern(pattern, pairs, known):
            found[source.path] = source
    return [found[path] for path in sorted(found)]


def _of_pattern(pattern: str, pairs: PairsConfig, known: Iterable[Sequence[str]]) -> list[Source]:
    if files.exists(files.join(pattern, _LOG)):
        return _of_delta(pattern)
    try:
        infos = files.find((pattern,), "")
    except I2EError as error:
        raise InputError(f"pairs.path: {img2dataset.unfinished_fetch(pattern) or error}") from None
    if deltas := _delta_tables(pattern, infos):
        inside = tuple(f"{folder}/" for folder in deltas)
        rest = [i for i in infos if not i.path.startswith(inside)]
        return [source for folder in deltas for source in _of_delta(folder)] + (
            _sorted(rest, pairs, known, pattern) if rest else []
        )
    return _sorted(infos, pairs, known, pattern)


def _sorted(
    infos: Sequence[FileInfo], pairs: PairsConfig, known: Iterable[Sequence[str]], pattern: str
) -> list[Source]:
    by_format: dict[str, list[FileInfo]] = {}
    alone = len(infos) == 1 and infos[0].path.rstrip("/") == pattern.removeprefix("file://").rstrip("/")
    for info in infos:
        name = format_of(info.path) or (_sniffed(info.path) if alone or pairs.format else None)
        by_format.setdefault(name or "", []).append(info)
    others = by_format.pop("", [])
    images = by_format.pop("files", [])
    if not alone:  # who names one file means it
        by_format = img2dataset.without_unfinished({**by_format, "files": images}, others, pairs.allow_partial)
        by_format = img2dataset.without_facts(by_format, others)
        images = by_format.pop("files", [])
    if pairs.format is not None:
        images = images if pairs.format == "files" else []
        by_format = {name: found for name, found in by_format.items() if name == pairs.format}
    sources = [Source(info, name) for name, found in by_format.items() for info in found]
    if not sources and images:
        sources = sidecars.shards(images, others, known)
    if not sources:
        raise InputError(_nothing(pattern, [*others, *images], pairs))
    return sources


def format_of(path: str) -> str | None:
    """The format that a file's name tells; None for none of ours."""
    lower = path.lower()
    return next((f.name for f in FORMATS.values() if lower.endswith(f.suffixes)), None)


def _sniffed(path: str) -> str | None:
    """The format that the first bytes tell, of a file whose name does not."""
    if next((True for suffix in _OTHERS if path.lower().endswith(suffix)), False):
        return None
    filesystem, inner = files.open_filesystem(path)
    with filesystem.open_input_file(inner) as stream:
        first = bytes(stream.read(512))
    if first[:4] == b"PAR1":
        return "parquet"
    return "webdataset" if first[257:262] == b"ustar" else None


# Delta tables


def _delta_tables(pattern: str, infos: Sequence[FileInfo]) -> list[str]:
    """Folders of Delta tables among those that were looked through."""
    folders: dict[str, None] = {}
    for info in infos:
        folder = info.path.rpartition("/")[0]
        while "=" in folder.rpartition("/")[2]:  # a partition's
            folder = folder.rpartition("/")[0]
        folders[folder] = None
    return [folder for folder in list(folders)[:256] if files.exists(files.join(folder, _LOG))]


def _of_delta(folder: str) -> list[Source]:
    """The files of a table's last version. Raises InputError where its rows are not just those of its files."""
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    try:
        table = DeltaTable(folder, storage_options=stores.delta(folder))
        features = set(table.protocol().reader_features or [])
        actions = pa.table(table.get_add_actions(flatten=True))
    except (DeltaError, OSError) as error:
        raise InputError(f"{folder} is a Delta table whose log cannot be read: {error}") from None
    if features & {"deletionVectors", "columnMapping"}:
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


def _nothing(pattern: str, infos: Sequence[FileInfo], pairs: PairsConfig) -> str:
    """What lies at a pattern where nothing can be read."""
    kinds = "; ".join(f"{' '.join(f.suffixes[:4])} ({f.kind})" for f in FORMATS.values() if f.name != "files")
    if pairs.format is not None:
        what = f"nothing of the format {pairs.format} (pairs.format) among {len(infos)} files"
    elif any(i.path.endswith(_ICEBERG) for i in infos):
        what = "an Iceberg table: write its rows as Parquet (`spark.table(…).write.parquet(…)`)"
    else:
        known = next(((i, why) for i in infos for end, why in _OTHERS.items() if i.path.lower().endswith(end)), None)
        if known is not None:
            what = f"{known[0].path} is {known[1]}"
        elif infos and all(format_of(i.path) == "files" for i in infos):
            what = (
                f"{len(infos)} images without a text: put NAME.txt or NAME.json beside each, or name a table of paths"
            )
        else:
            what = f"nothing that can be read; the first file is {infos[0].path}" if infos else "no file"
    return (
        f"pairs.path: {pattern}: {what}. Read are {kinds}; a folder of images with .txt or .json beside; a Delta table"
    )
